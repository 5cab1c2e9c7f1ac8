"""Profiles of batches: what the good rows of a file say as they come, so that one file can be compared with others."""

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from crm_spark.checks import is_broken
from crm_spark.cleaning.rules import SiteRules
from crm_spark.cleaning.tables import BATCH_PROFILES, HAPPENED_AT, PROFILED
from crm_spark.tables import Table, conform

_MOST_VALUES = 50
_NONE = "(none)"


def profile_batches(good: DataFrame, entity: str, table: Table, rules: SiteRules) -> DataFrame:
    """Rows of `batch_profiles`: one per file with a good row. What becomes of the rows afterwards changes nothing."""
    rows, batch = good.where("NOT is_deletion"), ["source", "batch_id"]
    columns = PROFILED[entity]
    values = {f"value_of_{name}": _in_groups(table, name) for name in columns}
    # Rows that are alike are counted once, so that only the counts need to be taken apart by column.
    alike = (
        rows.withColumns(values)
        .groupBy(*batch, *values)
        .agg(
            F.count("*").alias("row_count"),
            F.count_if(_is_late(entity, rules)).alias("late_count"),
            *_when_happened(entity),
            *(F.count_if(is_broken(check)).alias(f"broken_{check.name}") for check in rules.warn),
        )
        .persist()
    )
    broken = [
        F.struct(F.lit(check.name).alias("rule"), F.sum(f"broken_{check.name}").alias("row_count"))
        for check in rules.warn
    ]
    totals = alike.groupBy(*batch).agg(
        F.sum("row_count").alias("good_count"),
        F.sum("late_count").alias("late_count"),
        F.min("first_happened_at").alias("first_happened_at"),
        F.max("last_happened_at").alias("last_happened_at"),
        F.filter(
            F.array(*broken).cast("array<struct<rule:string,row_count:bigint>>"), lambda rule: rule["row_count"] > 0
        ).alias("warnings"),
    )
    profiles = totals.join(_count_values(alike, batch, columns), batch, "left").withColumns(
        {"entity": F.lit(entity), "values": F.coalesce("values", F.array().cast(_TYPE_OF_VALUES))}
    )
    return conform(profiles.select(*BATCH_PROFILES.column_names), BATCH_PROFILES)


_TYPE_OF_VALUES = next(column.type for column in BATCH_PROFILES.columns if column.name == "values")


def _count_values(alike: DataFrame, batch: list[str], columns: tuple[str, ...]) -> DataFrame:
    """Rows: one per batch with its values by column, or buckets of them where they are many."""
    of_column = [
        F.struct(
            F.lit(name).alias("column"),
            F.coalesce(F.col(f"value_of_{name}").cast("string"), F.lit(_NONE)).alias("value"),
        )
        for name in columns
    ]
    counted = (
        alike.select(
            *batch, "row_count", F.inline(F.array(*of_column).cast("array<struct<column:string,value:string>>"))
        )
        .groupBy(*batch, "column", "value")
        .agg(F.sum("row_count").alias("row_count"))
    )
    value_count = F.count("*").over(Window.partitionBy(*batch, "column"))
    in_buckets = F.when(value_count > _MOST_VALUES, bucket_of(F.col("value"))).otherwise(F.col("value"))
    return (
        counted.withColumn("value", in_buckets)
        .groupBy(*batch, "column", "value")
        .agg(F.sum("row_count").alias("row_count"))
        .groupBy(*batch)
        .agg(F.array_sort(F.collect_list(F.struct("column", "value", "row_count"))).alias("values"))
    )


def bucket_of(value: Column) -> Column:
    """The bucket that a value falls into where a column has too many to list; a bucket's name is its own."""
    bucket = F.format_string("#%02d", F.pmod(F.xxhash64(value), F.lit(_MOST_VALUES)))
    return F.when(is_bucket(value), value).otherwise(bucket)


def is_bucket(value: Column) -> Column:
    """Whether it is the name of a bucket."""
    return value.rlike("^#[0-9]{2}$")


def _in_groups(table: Table, name: str) -> Column:
    """The value; of a number its first digit, with zeros for the others: 37.50 and 31 are both in 30."""
    kind = next(column.type for column in table.columns if column.name == name)
    value = F.col(name)
    if not (kind.startswith("decimal") or kind == "bigint"):
        return value
    whole = F.floor(F.abs(value)).cast("bigint")
    size = F.lit(10**18).cast("bigint")
    for digits in reversed(range(18)):
        size = F.when(whole < 10 ** (digits + 1), F.lit(10**digits).cast("bigint")).otherwise(size)
    return F.signum(value).cast("bigint") * (whole - F.pmod(whole, size))


def _is_late(entity: str, rules: SiteRules) -> Column:
    if entity not in HAPPENED_AT:
        return F.lit(False)
    waits = F.make_dt_interval(hours=F.lit(rules.arrival_hours))
    return F.col("known_at") > F.col(HAPPENED_AT[entity]) + waits


def _when_happened(entity: str) -> list[Column]:
    at = F.col(HAPPENED_AT[entity]) if entity in HAPPENED_AT else F.lit(None).cast("timestamp")
    # One row of a wrong year would pass for fresh ones for years.
    has_happened = at <= F.col("ingested_at")
    return [F.min(at).alias("first_happened_at"), F.max(F.when(has_happened, at)).alias("last_happened_at")]
