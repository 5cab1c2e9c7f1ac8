"""What the report shows, read from the published marts: small aggregates only."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import pandas as pd

from crm_spark.errors import LakeError
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
from crm_spark.publications import Publication, PublishedLake
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


def read_report_data(lake: PublishedLake, publication: Publication) -> ReportData:
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


def _read_headline(lake: PublishedLake, publication: Publication) -> Headline:
    is_at_risk = f"churn_probability >= {HIGH_RISK}"
    measures = {
        "customer_count": "count(*)",
        "buyer_count": "count(*) FILTER (WHERE order_count > 0)",
        "active_count_28d": "count(*) FILTER (WHERE order_count_28d > 0)",
        "net_amount_28d": "sum(net_amount_28d)",
        "net_amount": "sum(net_amount)",
        "scored_count": "count(churn_probability)",
        "at_risk_count": f"count(*) FILTER (WHERE {is_at_risk})",
        "at_risk_amount": f"sum(net_amount) FILTER (WHERE {is_at_risk})",
    }
    (totals,) = _query(lake, publication, MART_CUSTOMER_360, measures)
    values = {name: totals[name] or 0 for name in measures}
    amounts = {name: float(value) for name, value in values.items() if "amount" in name}
    return Headline(**(values | amounts))


def _read_mart(lake: PublishedLake, publication: Publication, mart: Table) -> pd.DataFrame:
    """A whole mart in the order of its key; without columns' values if the publication lacks it."""
    if mart.name not in publication.tables:
        return pd.DataFrame(columns=mart.column_names)
    columns = {
        column.name: f"CAST({column.name} AS DOUBLE)" if column.type.startswith("decimal") else column.name
        for column in mart.columns
    }
    rows = pd.DataFrame(_query(lake, publication, mart, columns), columns=mart.column_names)
    return rows.sort_values(list(mart.key), ignore_index=True)


def _query(
    lake: PublishedLake, publication: Publication, mart: Table, columns: Mapping[str, str]
) -> list[dict[str, Any]]:
    selected = ", ".join(f"{expression} AS {name}" for name, expression in columns.items())
    return lake.query(f"SELECT {selected} FROM {mart.name}", publication.tables[mart.name])  # noqa: S608 (declared)
