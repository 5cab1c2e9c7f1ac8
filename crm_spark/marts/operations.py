"""Marts about the business's flow and the data's health."""

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from functools import reduce

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from crm_spark.cleaning.profile import bucket_of, is_bucket
from crm_spark.cleaning.tables import CLEAN
from crm_spark.marts.tables import AMOUNT, MART_DATA_QUALITY, MART_DEPARTMENT_WEEKS, NO_DEPARTMENT
from crm_spark.tables import conform

_BATCH = ["source", "batch_id"]


def build_department_weeks(lines: DataFrame, as_of: date, known_until: datetime) -> DataFrame:
    """Rows: one per department and week before as_of with a sale or return known before `known_until`."""
    week_starts_on = F.date_trunc("week", "happened_on").cast("date")
    is_visible = (F.col("happened_on") < F.lit(as_of)) & (F.col("known_at") < F.lit(known_until))
    dated = lines.where(is_visible).withColumn("week_starts_on", week_starts_on)
    first_day = dated.agg(F.min("happened_on").alias("first_on"))
    covered_from = F.greatest("first_on", "week_starts_on")
    covered_to = F.least(F.lit(as_of), F.date_add("week_starts_on", 7))
    weeks = (
        dated.groupBy(F.coalesce("department", F.lit(NO_DEPARTMENT)).alias("department"), "week_starts_on")
        .agg(F.sum("amount").cast(AMOUNT).alias("net_amount"), F.count_distinct("order_id").alias("order_count"))
        .crossJoin(F.broadcast(first_day))
        .withColumn("day_count", F.date_diff(covered_to, covered_from))
    )
    return conform(weeks.select(*MART_DEPARTMENT_WEEKS.column_names), MART_DEPARTMENT_WEEKS)


def build_data_quality(
    account: DataFrame, ledger: DataFrame, profiles: DataFrame, missing: DataFrame, rejected: Sequence[DataFrame]
) -> DataFrame:
    """Rows: one per file, with the rejected rows counted by each of their reasons; for `missing` see count_missing."""
    reasons = (
        reduce(DataFrame.unionByName, (rows.select(*_BATCH, "reasons", "row_count") for rows in rejected))
        .select(*_BATCH, F.explode("reasons").alias("reason"), "row_count")
        .groupBy(*_BATCH, "reason")
        .agg(F.sum("row_count").alias("row_count"))
        .groupBy(*_BATCH)
        .agg(F.array_sort(F.collect_list(F.struct("reason", "row_count"))).alias("reasons"))
    )
    warnings = (
        profiles.select(*_BATCH, F.inline("warnings"))
        .unionByName(missing)
        .groupBy(*_BATCH)
        .agg(F.array_sort(F.collect_list(F.struct("rule", "row_count"))).alias("warnings"))
    )
    files = (
        account.join(ledger.select(*_BATCH, "ingested_at"), _BATCH, "left")
        .join(profiles.drop("entity", "warnings", "values"), _BATCH, "left")
        .join(reasons, _BATCH, "left")
        .join(warnings, _BATCH, "left")
        .join(_measure_drift(profiles, ledger), _BATCH, "left")
    )
    waited_seconds = F.unix_seconds("ingested_at") - F.unix_seconds("last_happened_at")
    types = {column.name: column.type for column in MART_DATA_QUALITY.columns}
    lists = {name: F.coalesce(name, F.array().cast(types[name])) for name in ("reasons", "warnings", "drift")}
    filled = files.na.fill(0, ["late_count"]).withColumns(
        lists | {"freshness_hours": F.floor(waited_seconds / 3600).cast("bigint")}
    )
    return conform(filled.select(*MART_DATA_QUALITY.column_names), MART_DATA_QUALITY)


def count_missing(references: Mapping[str, str], entity: DataFrame, named: Mapping[str, DataFrame]) -> DataFrame:
    """Rows: one per file and reference of an entity that no row of the entity it names has (batch, rule, row_count).

    `references` are columns and the entities they name; `named` are those entities' clean rows.
    """
    counts = []
    for column, target in references.items():
        there = named[target].select(F.col(CLEAN[target].key[0]).alias(column)).distinct()
        counts.append(
            entity.where(F.col(column).isNotNull())
            .groupBy(*_BATCH, column)
            .agg(F.count("*").alias("row_count"))
            .join(there, column, "left_anti")
            .groupBy(*_BATCH)
            .agg(F.sum("row_count").alias("row_count"))
            .withColumn("rule", F.lit(f"{column}_not_in_{target}"))
        )
    return reduce(DataFrame.unionByName, counts)


def _measure_drift(profiles: DataFrame, ledger: DataFrame) -> DataFrame:
    """Rows: one per file that has others of its source before it: how its columns' values differ from theirs.

    It is half the sum of differences between the shares of each value (total variation distance). The sums are of
    whole numbers, so that they are exact; one division comes last.
    """
    counted = profiles.join(ledger.select(*_BATCH, "ingested_at", "file_name"), _BATCH).select(
        *_BATCH, "ingested_at", "file_name", F.inline("values")
    )
    # Where one file has buckets of values, all are compared by them.
    has_buckets = F.bool_or(is_bucket(F.col("value"))).over(Window.partitionBy("source", "column"))
    counted = (
        counted.withColumn("value", F.when(has_buckets, bucket_of(F.col("value"))).otherwise(F.col("value")))
        .groupBy(*_BATCH, "ingested_at", "file_name", "column", "value")
        .agg(F.sum("row_count").alias("row_count"))
    )
    files = counted.groupBy(*_BATCH, "ingested_at", "file_name", "column").agg(F.sum("row_count").alias("file_count"))
    values = counted.select("source", "column", "value").distinct()
    counts = counted.select(*_BATCH, "column", "value", "row_count")
    grid = files.join(values, ["source", "column"]).join(counts, [*_BATCH, "column", "value"], "left")
    in_order = Window.partitionBy("source", "column", "value").orderBy("ingested_at", "file_name", "batch_id")
    before = in_order.rowsBetween(Window.unboundedPreceding, -1)
    exact = "decimal(38,0)"
    grid = (
        grid.na.fill(0, ["row_count"])
        .withColumn("value_before_count", F.sum("row_count").over(before).cast(exact))
        .withColumn("before_count", F.sum("file_count").over(before).cast(exact))
        .where("before_count > 0")
    )
    moved = F.abs(F.col("row_count") * F.col("before_count") - F.col("value_before_count") * F.col("file_count"))
    distance = F.sum("moved") / (2 * F.first("file_count") * F.first("before_count"))
    return (
        grid.withColumn("moved", moved.cast(exact))
        .groupBy(*_BATCH, "column")
        .agg(distance.cast("decimal(9,6)").alias("moved_share"))
        .groupBy(*_BATCH)
        .agg(F.array_sort(F.collect_list(F.struct("column", "moved_share"))).alias("drift"))
    )
