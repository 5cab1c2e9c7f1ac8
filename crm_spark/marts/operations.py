"""Marts about the business's flow and the data's health."""

from datetime import date, datetime
from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from crm_spark.features.tables import AMOUNT
from crm_spark.marts.tables import MART_DATA_QUALITY, MART_DEPARTMENT_WEEKS
from crm_spark.tables import conform


def build_department_weeks(lines: DataFrame, as_of: date, known_until: datetime) -> DataFrame:
    """Rows: one per department and week before as_of with a sale or return known before `known_until`."""
    week_starts_on = F.date_trunc("week", "happened_on").cast("date")
    is_visible = (F.col("happened_on") < F.lit(as_of)) & (F.col("known_at") < F.lit(known_until))
    dated = lines.where(is_visible).withColumn("week_starts_on", week_starts_on)
    first_day = dated.agg(F.min("happened_on").alias("first_on"))
    covered_from = F.greatest("first_on", "week_starts_on")
    covered_to = F.least(F.lit(as_of), F.date_add("week_starts_on", 7))
    weeks = (
        dated.groupBy(F.coalesce("department", F.lit("(none)")).alias("department"), "week_starts_on")
        .agg(F.sum("amount").cast(AMOUNT).alias("net_amount"), F.count_distinct("order_id").alias("order_count"))
        .crossJoin(F.broadcast(first_day))
        .withColumn("day_count", F.date_diff(covered_to, covered_from))
    )
    return conform(weeks.select(*MART_DEPARTMENT_WEEKS.column_names), MART_DEPARTMENT_WEEKS)


def build_data_quality(account: DataFrame, *rejected: DataFrame) -> DataFrame:
    """Rows: one per file, with the rejected rows counted by each of their reasons."""
    reasons = (
        reduce(DataFrame.unionByName, (rows.select("source", "batch_id", "reasons", "row_count") for rows in rejected))
        .select("source", "batch_id", F.explode("reasons").alias("reason"), "row_count")
        .groupBy("source", "batch_id", "reason")
        .agg(F.sum("row_count").alias("row_count"))
        .groupBy("source", "batch_id")
        .agg(F.array_sort(F.collect_list(F.struct("reason", "row_count"))).alias("reasons"))
    )
    none = F.array().cast("array<struct<reason:string,row_count:bigint>>")
    joined = account.join(reasons, ["source", "batch_id"], "left").withColumn("reasons", F.coalesce("reasons", none))
    return conform(joined.select(*MART_DATA_QUALITY.column_names), MART_DATA_QUALITY)
