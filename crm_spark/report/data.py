"""What the report shows, brought from the published marts to the driver: small aggregates only."""

from dataclasses import dataclass
from datetime import date, datetime

import pandas as pd
from pyspark.sql import functions as F

from crm_spark.errors import LakeError
from crm_spark.lake import Lake, Publication
from crm_spark.marts.tables import (
    MART_CUSTOMER_360,
    MART_DATA_QUALITY,
    MART_DEMOGRAPHICS,
    MART_DEPARTMENT_WEEKS,
    MART_MODEL_DECILES,
    MART_MODEL_QUALITY,
    MART_MODEL_RULES,
    MART_RFM_CELLS,
    MART_SEGMENT_PROFILES,
)
from crm_spark.tables import Table

HIGH_RISK = 0.5


@dataclass(frozen=True)
class Headline:
    """The numbers at the top. Amounts are net: paid less returned."""

    customer_count: int
    buyer_count: int
    active_count_28d: int
    net_amount_28d: float
    net_amount: float
    # Customers that a churn model has scored, and those of them at or above HIGH_RISK.
    scored_count: int
    at_risk_count: int
    at_risk_amount: float


@dataclass(frozen=True)
class ReportData:
    """Frames have the declared columns of the mart they are named after, amounts as floats; they may be empty."""

    headline: Headline
    segment_profiles: pd.DataFrame
    rfm_cells: pd.DataFrame
    demographics: pd.DataFrame
    department_weeks: pd.DataFrame
    model_quality: pd.DataFrame
    model_deciles: pd.DataFrame
    model_rules: pd.DataFrame
    data_quality: pd.DataFrame
    as_of: date
    publication_no: int
    publication_id: str
    published_at: datetime
    crm_spark_version: str
    currency: str


def read_report_data(lake: Lake, publication: Publication) -> ReportData:
    """Everything that the report shows of one publication.

    Raises:
        LakeError: if the publication holds no marts.
    """
    if MART_CUSTOMER_360.name not in publication.tables:
        raise LakeError(
            f"publication {publication.publication_no}: found no {MART_CUSTOMER_360.name}, "
            "expected all marts; run `crm-spark refresh` through its last stage"
        )
    return ReportData(
        headline=_read_headline(lake, publication),
        segment_profiles=_read_mart(lake, publication, MART_SEGMENT_PROFILES),
        rfm_cells=_read_mart(lake, publication, MART_RFM_CELLS),
        demographics=_read_mart(lake, publication, MART_DEMOGRAPHICS),
        department_weeks=_read_mart(lake, publication, MART_DEPARTMENT_WEEKS),
        model_quality=_read_mart(lake, publication, MART_MODEL_QUALITY),
        model_deciles=_read_mart(lake, publication, MART_MODEL_DECILES),
        model_rules=_read_mart(lake, publication, MART_MODEL_RULES),
        data_quality=_read_mart(lake, publication, MART_DATA_QUALITY),
        as_of=publication.as_of,
        publication_no=publication.publication_no,
        publication_id=publication.publication_id,
        published_at=publication.published_at,
        crm_spark_version=publication.crm_spark_version,
        currency=publication.currency,
    )


def _read_headline(lake: Lake, publication: Publication) -> Headline:
    customers = lake.read(publication.tables[MART_CUSTOMER_360.name])
    is_at_risk = F.col("churn_probability") >= HIGH_RISK
    measures = {
        "customer_count": F.count("*"),
        "buyer_count": F.count_if(F.col("order_count") > 0),
        "active_count_28d": F.count_if(F.col("order_count_28d") > 0),
        "net_amount_28d": F.sum("net_amount_28d"),
        "net_amount": F.sum("net_amount"),
        "scored_count": F.count("churn_probability"),
        "at_risk_count": F.count_if(is_at_risk),
        "at_risk_amount": F.sum(F.when(is_at_risk, F.col("net_amount"))),
    }
    totals = customers.agg(*(measure.alias(name) for name, measure in measures.items())).collect()[0]
    values = {name: totals[name] or 0 for name in measures}
    amounts = {name: float(value) for name, value in values.items() if "amount" in name}
    return Headline(**(values | amounts))


def _read_mart(lake: Lake, publication: Publication, mart: Table) -> pd.DataFrame:
    """A whole mart in the order of its key; without columns' values if the publication lacks it."""
    pin = publication.tables.get(mart.name)
    if pin is None:
        return pd.DataFrame(columns=mart.column_names)
    decimals = {column.name for column in mart.columns if column.type.startswith("decimal")}
    rows = lake.read(pin).select(
        *(F.col(name).cast("double").alias(name) if name in decimals else F.col(name) for name in mart.column_names)
    )
    return rows.toPandas().sort_values(list(mart.key), ignore_index=True)
