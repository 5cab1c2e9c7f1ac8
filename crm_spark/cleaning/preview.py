"""What a source's mapping would do, on a sample of its first file or its table: nothing is landed or written."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_
from pathlib import Path, PurePosixPath

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from crm_spark.checks import is_broken
from crm_spark.cleaning.expressions import columns_of
from crm_spark.cleaning.judging import judge_rows
from crm_spark.cleaning.rules import SiteRules
from crm_spark.cleaning.tables import CLEAN
from crm_spark.config import Source
from crm_spark.delta import quoted
from crm_spark.sources.extracts import sample_rows
from crm_spark.sources.landing import copy_sample, find_files
from crm_spark.sources.reading import CORRUPT, SourceFiles, read_columns, read_rows
from crm_spark.tables import Table, value_errors

PERSONAL = "(personal)"
_SAMPLE_ROWS = 1000
_SHOWN_ROWS = 5
# In these, a line ends with one byte.
_BYTE_PER_LINE_END = ("UTF-8", "ISO-8859-1", "US-ASCII")
# Of what a text may be read as, the first that all of them can.
_READABLE_AS = ("bigint", "decimal(38,9)", "date", "timestamp", "boolean")


@dataclass(frozen=True)
class FileColumn:
    """A column of a file: what its values can be read as, which share is filled, which entity columns use it."""

    name: str
    looks_like: str
    filled_share: float
    used_by: Sequence[str]


@dataclass(frozen=True)
class Rejection:
    """A reason, how many of the sampled rows it rejects, and a value that does, unless that is personal."""

    reason: str
    row_count: int
    example: str | None


@dataclass(frozen=True)
class Preview:
    """What became of the first rows of a source's first file; of a table, the number of files is 0.

    By entity column, `shown` are values of good rows, and `lost_counts` tell in how many good rows there is none though
    the file's columns that it is made of are filled.
    """

    source: str
    entity: str
    file_name: str
    file_count: int
    columns: Sequence[FileColumn]
    row_count: int
    good_count: int
    shown: Mapping[str, Sequence[str]]
    lost_counts: Mapping[str, int]
    lacks_known_at: bool
    warnings: Mapping[str, int]
    rejections: Sequence[Rejection]


def preview_source(spark: SparkSession, name: str, source: Source, rules: SiteRules) -> Preview:
    """Read a sample and judge it, as a refresh would.

    Raises:
        ConfigError: if the mapping is not possible over the file's columns.
        SourceError: if there is no file or table, or it cannot be read.
        ContractError: if a mapping or a rule compares or computes with a text that it cannot read.
    """
    with tempfile.TemporaryDirectory() as folder, value_errors(f"sources.{name}"):
        sample = (
            _sample_extract(spark, name, source) if source.is_extracted else _sample_file(spark, name, source, folder)
        )
        raw, columns = sample.rows.persist(), sample.columns
        with_batch = raw.withColumn("_batch_id", F.lit(sample.file_name))
        table = CLEAN[source.entity]
        judged = judge_rows(with_batch, SourceFiles(name, source, [], columns), table, rules).persist()
        good = judged.where("is_good")
        return Preview(
            source=name,
            entity=source.entity,
            file_name=sample.file_name,
            file_count=sample.file_count,
            columns=_describe_columns(raw, source, columns),
            row_count=judged.count(),
            good_count=good.count(),
            shown=_show_rows(good, source, table),
            lost_counts=_count_lost(good, source, columns),
            lacks_known_at="known_at" in table.column_names and "known_at" not in source.columns,
            warnings=_count_warnings(good, rules),
            rejections=_count_reasons(judged, source, table, rules, columns),
        )


@dataclass(frozen=True)
class _Sample:
    """The first rows of a file, or some of a table's, of which there is no file yet."""

    file_name: str
    file_count: int
    columns: Mapping[str, str]
    rows: DataFrame


def _sample_file(spark: SparkSession, name: str, source: Source, folder: str) -> _Sample:
    files = list(find_files(name, source))
    file_name = files[0].file_name
    path = str(Path(folder) / f"sample{''.join(PurePosixPath(file_name).suffixes)}")
    # Of text, the first lines; what is compressed or has other line ends than a byte is taken whole.
    is_plain = source.format != "parquet" and file_name.endswith((".csv", ".json", ".jsonl", ".txt", ".tsv"))
    only_first_lines = is_plain and source.encoding in _BYTE_PER_LINE_END
    copy_sample(files[0].file_system, files[0].info.path, path, only_first_lines)
    columns = read_columns(spark, name, source, path)
    return _Sample(file_name, len(files), columns, read_rows(spark, source, [path], columns).limit(_SAMPLE_ROWS))


def _sample_extract(spark: SparkSession, name: str, source: Source) -> _Sample:
    rows = sample_rows(spark, name, source, _SAMPLE_ROWS)
    columns = dict(rows.dtypes)
    return _Sample(source.table or source.path, 0, columns, rows.withColumn(CORRUPT, F.lit(None).cast("string")))


def _describe_columns(raw: DataFrame, source: Source, columns: Mapping[str, str]) -> list[FileColumn]:
    used = {column: columns_of(text) for column, text in source.columns.items()}
    measures = [F.count("*").alias("row_count")]
    for index, (name, kind) in enumerate(columns.items()):
        value = F.col(quoted(name))
        measures.append(F.count(value).alias(f"filled_{index}"))
        if kind == "string":
            fits = [F.bool_and(value.isNull() | _is_readable(value, other)) for other in _READABLE_AS]
            measures.append(F.array(*fits).alias(f"fits_{index}"))
    (measured,) = raw.agg(*measures).collect()
    described = []
    for index, (name, kind) in enumerate(columns.items()):
        filled = measured[f"filled_{index}"]
        looks_like = kind
        if kind == "string" and filled:
            tried = zip(_READABLE_AS, measured[f"fits_{index}"], strict=True)
            looks_like = next((other for other, does_fit in tried if does_fit), "string")
        used_by = [column for column, names in used.items() if name.lower() in names]
        described.append(FileColumn(name, looks_like, filled / max(measured["row_count"], 1), used_by))
    return described


def _is_readable(value: Column, kind: str) -> Column:
    is_readable = F.trim(value).try_cast(kind).isNotNull()
    # Spark reads a date in a text that goes on with the time of day.
    return is_readable & (F.length(F.trim(value)) <= len("2026-12-31")) if kind == "date" else is_readable


def _show_rows(good: DataFrame, source: Source, table: Table) -> dict[str, list[str]]:
    declared = {column.name: column for column in table.columns}
    mapped = [name for name in table.column_names if name in source.columns]
    rows = (
        good.orderBy(*table.key).select(*(F.col(name).cast("string") for name in mapped)).limit(_SHOWN_ROWS).collect()
    )
    return {
        name: [PERSONAL if declared[name].personal and row[name] else str(row[name]) for row in rows] for name in mapped
    }


def _count_lost(good: DataFrame, source: Source, columns: Iterable[str]) -> dict[str, int]:
    row = F.from_json("row_text", "map<string,string>")
    counts = [F.lit(0).alias("none")]
    for column, expression in source.columns.items():
        filled = [row[name].isNotNull() for name in _named_in(expression, columns)]
        if filled:
            counts.append(F.count_if(F.col(column).isNull() & reduce(and_, filled)).alias(column))
    (counted,) = good.agg(*counts).collect()
    return {name: count for name, count in counted.asDict().items() if count}


def _count_warnings(good: DataFrame, rules: SiteRules) -> dict[str, int]:
    if not rules.warn:
        return {}
    (counted,) = good.agg(*(F.count_if(is_broken(check)).alias(check.name) for check in rules.warn)).collect()
    return {rule: count for rule, count in counted.asDict().items() if count}


def _count_reasons(
    judged: DataFrame, source: Source, table: Table, rules: SiteRules, columns: Iterable[str]
) -> list[Rejection]:
    declared = {column.name: column for column in table.columns}
    concerns = {check.name: columns_of(check.must_hold) for check in (*table.checks, *rules.reject)}
    bad = judged.where("NOT is_good").select(
        F.explode("reasons").alias("reason"), F.from_json("row_text", "map<string,string>").alias("row")
    )
    counts = bad.groupBy("reason").agg(F.count("*").alias("row_count")).orderBy(F.desc("row_count"), "reason")
    rejections = []
    for reason, row_count in counts.collect():
        concerned = [
            name
            for name in source.columns
            if (name in concerns[reason] if reason in concerns else reason.rpartition("_not_")[0] == name)
            and not declared[name].personal
        ]
        example = None
        if concerned:
            named = {column: None for name in concerned for column in _named_in(source.columns[name], columns)}
            text = F.concat_ws(", ", *(F.col("row")[column] for column in named))
            ((example,),) = bad.where(F.col("reason") == reason).agg(F.min(F.when(text != "", text))).collect()
        rejections.append(Rejection(reason, row_count, example or None))
    return rejections


def _named_in(expression: str, columns: Iterable[str]) -> list[str]:
    named = columns_of(expression)
    return [column for column in columns if column.lower() in named]
