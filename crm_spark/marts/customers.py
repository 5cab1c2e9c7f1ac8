"""Marts about customers: one row each, what groups of them have in common, and who is unlike the others."""

from collections.abc import Iterable

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from crm_spark.marts.tables import (
    AMOUNT,
    MART_CUSTOMER_360,
    MART_DEMOGRAPHICS,
    MART_OUTLIERS,
    MART_RFM_CELLS,
    MART_SEGMENT_PROFILES,
)
from crm_spark.tables import conform

_DAYS = 28


def build_customer_360(
    customers: DataFrame,
    segments: DataFrame,
    rfm: DataFrame,
    values: DataFrame,
    scores: DataFrame,
    champions: DataFrame,
) -> DataFrame:
    """Rows: one per customer in `customers`, the features at as_of.

    `scores` are current probabilities and `champions` the model to show for each task; a customer outside a
    task's population has NULL there.
    """
    current = scores.where("fold = 'current'").join(F.broadcast(champions), ["task", "model"], "left_semi")
    churn = current.where("task = 'churn'").select(
        "customer_id", F.col("probability").alias("churn_probability"), F.col("reasons").alias("churn_reasons")
    )
    response = current.where("task = 'campaign_response'").select(
        "customer_id", F.col("probability").alias("response_probability")
    )
    cell = F.concat("recency_score", "frequency_score", "monetary_score")
    daily_amount = F.try_divide(F.col("net_amount").cast("double"), F.col("tenure_days").cast("double"))
    joined = (
        customers.join(segments.drop("as_of"), "customer_id")
        .join(rfm.drop("as_of"), "customer_id", "left")
        .join(values.select("customer_id", "value_score"), "customer_id")
        .join(churn, "customer_id", "left")
        .join(response, "customer_id", "left")
        .withColumn("rfm_cell", cell)
        .withColumn("expected_amount_28d", daily_amount * _DAYS * (1 - F.col("churn_probability")))
    )
    return conform(joined.select(*MART_CUSTOMER_360.column_names), MART_CUSTOMER_360)


def build_segment_profiles(customers_360: DataFrame, features: DataFrame) -> DataFrame:
    """Rows: one per segment; `features` are those at as_of."""
    everyone = Window.partitionBy()
    profiles = (
        customers_360.join(features.select("customer_id", "category_count"), "customer_id")
        .groupBy("segment_name")
        .agg(
            F.count("*").alias("customer_count"),
            _total("net_amount"),
            _mean("recency_days"),
            _mean("order_count"),
            _mean("net_amount"),
            _mean("mean_order_amount").alias("mean_order_amount"),
            _mean("discount_share"),
            _mean("category_count"),
            _mean("churn_probability"),
        )
        .withColumns(
            {
                "customer_share": F.col("customer_count") / F.sum("customer_count").over(everyone),
                "net_amount_share": F.try_divide(
                    F.col("net_amount").cast("double"), F.sum("net_amount").over(everyone).cast("double")
                ),
            }
        )
    )
    return conform(profiles.select(*MART_SEGMENT_PROFILES.column_names), MART_SEGMENT_PROFILES)


def build_rfm_cells(customers_360: DataFrame) -> DataFrame:
    """Rows: one per recency and frequency score that some customer has."""
    cells = (
        customers_360.where("recency_score IS NOT NULL")
        .groupBy(*MART_RFM_CELLS.key)
        .agg(F.count("*").alias("customer_count"), _total("net_amount"), _mean("churn_probability"))
    )
    return conform(cells, MART_RFM_CELLS)


def build_demographics(customers_360: DataFrame) -> DataFrame:
    """Rows: one per age and income band of the customers who state both."""
    bands = (
        customers_360.where("age_band IS NOT NULL AND income_band IS NOT NULL")
        .groupBy(*MART_DEMOGRAPHICS.key)
        .agg(F.count("*").alias("customer_count"), _mean("net_amount"))
    )
    return conform(bands, MART_DEMOGRAPHICS)


def build_outliers(customers: DataFrame, limits: DataFrame, features: Iterable[str]) -> DataFrame:
    """Rows: one per customer in `customers`, the features at as_of, and one of `features` that is beyond its limits."""
    pairs = [F.struct(F.lit(name).alias("feature"), F.col(name).cast("double").alias("value")) for name in features]
    values = customers.select(
        "customer_id", "as_of", F.inline(F.array(*pairs).cast("array<struct<feature:string,value:double>>"))
    )
    own = limits.where(F.col("used_by") == MART_OUTLIERS.name).select("feature", "low", "high", "rule")
    beyond = values.join(F.broadcast(own), "feature").where("value < low OR value > high")
    return conform(beyond.select(*MART_OUTLIERS.column_names), MART_OUTLIERS)


def _total(name: str) -> Column:
    return F.sum(name).cast(AMOUNT).alias(name)


def _mean(name: str) -> Column:
    """The mean from an exact sum: a sum of floating numbers would depend on the order of rows."""
    exact = F.sum(F.col(name).cast("decimal(28,10)"))
    return F.try_divide(exact.cast("double"), F.count(name).cast("double")).alias(f"mean_{name}")
