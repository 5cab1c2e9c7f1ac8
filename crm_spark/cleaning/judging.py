"""Judging: each row by itself becomes the entity's columns, its place among versions, good or bad with reasons."""

from collections.abc import Sequence
from functools import reduce
from operator import or_

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from crm_spark.checks import broken_names, is_broken
from crm_spark.cleaning.expressions import columns_of, parse_expression
from crm_spark.cleaning.rules import SiteRules
from crm_spark.cleaning.tables import OWN_COLUMNS
from crm_spark.config import Source
from crm_spark.delta import quoted
from crm_spark.errors import ConfigError
from crm_spark.sources.reading import CORRUPT, SourceFiles
from crm_spark.tables import Column, Table, local_rows

_SEQUENCE = "decimal(38,6)"
_DAY = r"^\s*[+-]?\d+-\d+-\d"
# What is said of a row beside the entity's columns.
JUDGEMENT = ("ingested_at", "is_deletion", "is_good", "reasons", "row_text")


def judge_rows(raw: DataFrame, files: SourceFiles, table: Table, rules: SiteRules) -> DataFrame:
    """The canonical columns of every row, when it came, whether it is a deletion, whether it is good or why not.

    These are `ingested_at`, `is_deletion`, `is_good` and `reasons` (NULL if it is good); `row_text` is the row as it
    came. A deletion needs only its key and its place among versions.

    Raises:
        ConfigError: if the mapping is not possible over the file's columns.
    """
    name, source, file_columns = files.name, files.source, list(files.known)
    mapped = _parse_mapping(name, source, file_columns, table)
    if source.key_from_content:
        raw = _number_equal_rows(raw, file_columns)
        mapped |= {c.name: _key_of_content(c) for c in table.columns if c.name in table.key and c.name not in mapped}
    times = local_rows(
        raw.sparkSession,
        "_batch_id string, _ingested_at timestamp",
        [(file.batch_id, file.ingested_at) for file in files.files],
    )
    raw = raw.join(F.broadcast(times), "_batch_id", "left")
    ingested_at = F.col("_ingested_at")
    defaults = {
        "known_at": ingested_at,
        "currency": F.lit(rules.currency),
        "sequence_no": _sequence_no(raw, name, source, file_columns),
        "source": F.lit(name),
        "batch_id": F.col("_batch_id"),
    }
    values = {
        column.name: mapped.get(column.name, defaults.get(column.name, F.lit(None).cast(column.type)))
        for column in table.columns
    }
    task_count = raw.sparkSession.conf.get("spark.sql.shuffle.partitions")
    if len(files.files) < int(str(task_count)):
        # A file may be one piece that cannot be split: all cores shall work on its rows.
        raw = raw.repartition(*(values[name] for name in table.key))
    with_values = raw.select(
        *(value.alias(f"raw_{column}") for column, value in values.items()),
        ingested_at.alias("ingested_at"),
        _is_deletion(raw, name, source, file_columns).alias("is_deletion"),
        F.struct(*map(quoted, file_columns)).alias("row"),
        CORRUPT,
        F.col(CORRUPT).isNotNull().alias("is_corrupt"),
        _has_replaced_bytes(raw, source).alias("has_replaced_bytes"),
    )
    raw_types = {name.removeprefix("raw_"): kind for name, kind in with_values.dtypes}
    typed = with_values.withColumns(
        {c.name: _parse_value(F.col(f"raw_{c.name}"), raw_types[c.name], c.type) for c in table.columns}
    )
    of_text = {"row_not_readable": F.col("is_corrupt"), "text_not_in_encoding": F.col("has_replaced_bytes")}
    of_row: dict[str, SparkColumn] = {}
    of_content: dict[str, SparkColumn] = {}
    if source.sequence_by:
        of_row["sequence_missing"] = F.col("sequence_no").isNull()
    for column in table.columns:
        raw_value, value = F.col(f"raw_{column.name}"), F.col(column.name)
        broken = of_row if column.name in table.key else of_content
        if column.type not in ("string", raw_types[column.name]):
            broken[f"{column.name}_not_{column.type.partition('(')[0]}"] = raw_value.isNotNull() & value.isNull()
        if not column.nullable:
            broken[f"{column.name}_missing"] = raw_value.isNull()
    if "currency" in table.column_names:
        of_content["currency_not_reporting"] = ~F.col("currency").eqNullSafe(rules.currency)
    of_content |= {check.name: is_broken(check) for check in (*table.checks, *rules.reject)}
    of_row |= {rule: is_broken_ & ~F.col("is_deletion") for rule, is_broken_ in of_content.items()}
    # What cannot be split into fields has no values to judge.
    broken_rules = of_text | {rule: is_broken_ & ~F.col("is_corrupt") for rule, is_broken_ in of_row.items()}
    judged = typed.withColumn("is_good", ~reduce(or_, broken_rules.values()))
    # Reasons and text are costly, and few rows need them.
    explained = judged.withColumns(
        {
            "reasons": F.when(~F.col("is_good"), broken_names(broken_rules)),
            "row_text": F.coalesce(CORRUPT, F.to_json("row")),
        }
    )
    return explained.select(*table.column_names, *JUDGEMENT)


def mapped_columns(source: Source) -> set[str]:
    """The columns that a source's expressions name, in lower case."""
    texts = [*source.columns.values(), source.sequence_by or "", source.is_deletion or ""]
    return {column for text in texts for column in columns_of(text)}


def check_mapping(files: SourceFiles, table: Table) -> None:
    """See that a source's expressions are possible over its files' columns; a source of no rows passes.

    Raises:
        ConfigError: if one is not.
    """
    if not files.files:
        return
    _parse_mapping(files.name, files.source, list(files.known), table)
    for key in ("sequence_by", "is_deletion"):
        if text := getattr(files.source, key):
            parse_expression(text, files.known, f"sources.{files.name}.{key}")


def _parse_value(raw: SparkColumn, raw_type: str, type_: str) -> SparkColumn:
    """The value as the declared type; NULL if it is none."""
    if raw_type == "string" and type_ in ("timestamp", "date"):
        # Spark would take a year for its first day, and add to a time the day on which it runs.
        return F.when(raw.rlike(_DAY), raw.try_cast(type_))
    return raw.try_cast(type_)


def _number_equal_rows(raw: DataFrame, file_columns: Sequence[str]) -> DataFrame:
    """With `_content`, and `_content_no` counting the rows of a file that have the same: twins are told apart."""
    with_content = raw.withColumn("_content", F.to_json(F.struct(*map(quoted, file_columns))))
    twins = Window.partitionBy("_batch_id", "_content")
    return with_content.withColumn("_content_no", F.row_number().over(twins.orderBy("_content")))


def _key_of_content(column: Column) -> SparkColumn:
    if column.type == "bigint":
        return F.xxhash64("_content", "_content_no")
    return F.concat_ws("-", F.md5("_content"), "_content_no")


def _has_replaced_bytes(raw: DataFrame, source: Source) -> SparkColumn:
    """Whether a text file had bytes that are none of its encoding: the reader puts a mark in their place."""
    if source.landed_format == "parquet":
        return F.lit(False)
    texts = [quoted(name) for name, kind in raw.dtypes if kind == "string" and name != "_batch_id"]
    return F.contains(F.concat_ws("", *texts), F.lit("\N{REPLACEMENT CHARACTER}"))


def _sequence_no(raw: DataFrame, name: str, source: Source, file_columns: Sequence[str]) -> SparkColumn:
    """Newer rows have greater numbers: times in microseconds, numbers as they are."""
    if source.sequence_by is None:
        return F.lit(None).cast(_SEQUENCE)
    where = f"sources.{name}.sequence_by"
    value = F.expr(parse_expression(source.sequence_by, file_columns, where))
    ((_, kind),) = raw.select(value).dtypes
    if kind in ("date", "timestamp", "timestamp_ntz"):
        return F.unix_micros(value.cast("timestamp")).cast(_SEQUENCE)
    if kind in ("tinyint", "smallint", "int", "bigint") or kind.startswith("decimal"):
        return value.try_cast(_SEQUENCE)
    raise ConfigError(f"{where}: found a {kind}, expected a time or a number: cast(column as timestamp or bigint)")


def _is_deletion(raw: DataFrame, name: str, source: Source, file_columns: Sequence[str]) -> SparkColumn:
    if source.is_deletion is None:
        return F.lit(False)
    where = f"sources.{name}.is_deletion"
    value = F.expr(parse_expression(source.is_deletion, file_columns, where))
    ((_, kind),) = raw.select(value).dtypes
    if kind != "boolean":
        raise ConfigError(f"{where}: found a {kind}, expected a condition such as operation = 'D'")
    return F.coalesce(value, F.lit(False))


def _parse_mapping(name: str, source: Source, file_columns: Sequence[str], table: Table) -> dict[str, SparkColumn]:
    mappable = [column for column in table.column_names if column not in OWN_COLUMNS]
    unknown = sorted(set(source.columns) - set(mappable))
    if unknown:
        raise ConfigError(
            f"sources.{name}.columns.{unknown[0]}: found an unknown column of {source.entity}, expected one of: "
            + ", ".join(mappable)
        )
    missing = [c.name for c in table.columns if not c.nullable and c.name not in {*source.columns, *OWN_COLUMNS}]
    if source.key_from_content:
        missing = [column for column in missing if column not in table.key]
    if missing:
        hint = "; or key_from_content = true if rows have no key of their own" if missing[0] in table.key else ""
        raise ConfigError(
            f"sources.{name}.columns.{missing[0]}: found no mapping, expected one: it must not be NULL{hint}"
        )
    return {
        column: F.expr(parse_expression(text, file_columns, f"sources.{name}.columns.{column}"))
        for column, text in source.columns.items()
    }
