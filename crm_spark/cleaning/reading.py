"""Reading landed files: every row of them as its reader gives it, also those that it cannot split into fields."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, DataFrameReader, SparkSession
from pyspark.sql import functions as F

from crm_spark.cleaning.drift import check_columns
from crm_spark.config import Source
from crm_spark.errors import SourceError
from crm_spark.lake import quoted
from crm_spark.sources.landing import LandedFile
from crm_spark.tables import local_rows

# A name that no file uses: `_corrupt_record`, the usual one, may be a column of a file.
CORRUPT = "_crm_spark_unreadable_row"
_SHA256_DIGITS = 64

Columns = Mapping[str, str]
"""Columns of a file, name to type, in its order."""


@dataclass(frozen=True)
class SourceFiles:
    """The landed files of one source that may have rows, each with its columns, and all columns they ever had."""

    name: str
    source: Source
    columns: Mapping[LandedFile, Columns]
    known: Columns

    def only(self, files: Collection[LandedFile]) -> "SourceFiles":
        return replace(self, columns={file: columns for file, columns in self.columns.items() if file in files})

    def but(self, files: Collection[LandedFile]) -> "SourceFiles":
        return replace(self, columns={file: columns for file, columns in self.columns.items() if file not in files})


def survey_files(
    spark: SparkSession,
    sources: Mapping[str, Source],
    landed: Sequence[LandedFile],
    surveyed: Mapping[LandedFile, Columns],
    lake_uri: str,
) -> list[SourceFiles]:
    """The files of each source, but those of no bytes, which have not even a header; with their columns.

    Raises:
        SourceError: if a file that was not `surveyed` before has other columns than those before it.
    """
    surveys = []
    for name, source in sources.items():
        files = [file for file in landed if file.source == name and file.byte_count > 0]
        before = {file: surveyed[file] for file in files if file in surveyed}
        new = {
            file: read_columns(spark, name, source, f"{lake_uri}/{file.landed_path}")
            for file in sorted(files, key=lambda file: (file.ingested_at, file.file_name))
            if file not in before
        }
        named = {file.file_name: columns for file, columns in new.items()}
        known = check_columns(name, source, before.values(), named)
        surveys.append(SourceFiles(name, source, before | new, known))
    return surveys


def read_columns(spark: SparkSession, name: str, source: Source, path: str) -> dict[str, str]:
    """The columns of a file, name to type; all of CSV are text.

    Raises:
        SourceError: if names differ only by case.
    """
    if source.format == "parquet":
        return dict(spark.read.parquet(path).dtypes)
    if source.format == "csv":
        return dict.fromkeys(_csv_reader(spark, source).csv(path).columns, "string")
    try:
        rows = _json_reader(spark).json(path)
    except AnalysisException as error:
        if error.getCondition() != "COLUMN_ALREADY_EXISTS":
            raise
        raise SourceError(
            f"sources.{name}: found fields whose names differ only by case, expected one spelling"
        ) from None
    return {column: kind for column, kind in rows.dtypes if column != CORRUPT}


def read_rows(spark: SparkSession, source: Source, paths: Sequence[str], columns: Columns) -> DataFrame:
    """The rows of files that have the same columns.

    CSV and JSON come as text; rows that the reader cannot split into fields keep their text in
    a column of its own, NULL in all others.
    """
    if source.format == "parquet":
        return spark.read.parquet(*paths).withColumn(CORRUPT, F.lit(None).cast("string"))
    fields = ", ".join(f"{quoted(column)} {kind}" for column, kind in [*columns.items(), (CORRUPT, "string")])
    if source.format == "json":
        return _json_reader(spark).schema(fields).json(list(paths))
    reader = _csv_reader(spark, source).options(multiLine=True, columnNameOfCorruptRecord=CORRUPT)
    return reader.csv(list(paths), schema=fields)


def read_landed(spark: SparkSession, files: SourceFiles, lake_uri: str) -> DataFrame:
    """The rows of a source's files with all columns that it ever had, and `_batch_id` beside them."""
    alike: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for file, columns in files.columns.items():
        alike.setdefault(tuple(columns.items()), []).append(f"{lake_uri}/{file.landed_path}")
    batch_id = F.substring("_metadata.file_name", 1, _SHA256_DIGITS).alias("_batch_id")
    absent = F.lit(None)
    parts = [
        read_rows(spark, files.source, paths, dict(columns)).select(
            *(
                (F.col(quoted(name)) if name in dict(columns) else absent.cast(kind)).alias(name)
                for name, kind in files.known.items()
            ),
            CORRUPT,
            batch_id,
        )
        for columns, paths in alike.items()
    ]
    return reduce(DataFrame.union, parts)


def count_landed(spark: SparkSession, inputs: Sequence[SourceFiles], lake_uri: str) -> DataFrame:
    """Rows: one per landed file with the number of rows that its reader finds (source, batch_id, read_count)."""
    counts = [
        read_landed(spark, files, lake_uri)
        .groupBy(F.lit(files.name).alias("source"), F.col("_batch_id").alias("batch_id"))
        .agg(F.count("*").alias("read_count"))
        for files in inputs
        if files.columns
    ]
    nothing = local_rows(spark, "source string, batch_id string, read_count bigint", [])
    return reduce(DataFrame.unionByName, counts, nothing)


def _csv_reader(spark: SparkSession, source: Source) -> DataFrameReader:
    return spark.read.options(
        header=True, sep=source.delimiter, quote=source.quote, escape=source.quote, encoding=source.encoding
    )


def _json_reader(spark: SparkSession) -> DataFrameReader:
    return spark.read.option("primitivesAsString", True).option("columnNameOfCorruptRecord", CORRUPT)
