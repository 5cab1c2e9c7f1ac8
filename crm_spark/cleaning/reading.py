"""Reading landed files: every row of them as its reader gives it, also those that it cannot split into fields."""

from collections.abc import Mapping, Sequence
from functools import reduce

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from crm_spark.config import Source
from crm_spark.errors import SourceError
from crm_spark.lake import quoted
from crm_spark.sources.landing import LandedFile
from crm_spark.tables import local_rows

# A name that no file uses: `_corrupt_record`, the usual one, may be a column of a file.
CORRUPT = "_crm_spark_unreadable_row"
_SHA256_DIGITS = 64


def read_landed(spark: SparkSession, source: Source, files: Sequence[LandedFile], lake_uri: str) -> DataFrame:
    """The rows of landed files as the reader gives them, with `_batch_id` beside them.

    CSV and JSON come as text; rows that the reader cannot split into fields keep their text in
    a column of its own, NULL in all others.
    """
    paths = [f"{lake_uri}/{file.landed_path}" for file in files]
    reader = spark.read
    if source.format == "parquet":
        if len(files) > 1:
            _common_header(
                {file.file_name: _typed(reader.parquet(path)) for file, path in zip(files, paths, strict=True)}
            )
        rows = reader.parquet(*paths).withColumn(CORRUPT, F.lit(None).cast("string"))
    elif source.format == "json":
        options = reader.option("primitivesAsString", True).option("columnNameOfCorruptRecord", CORRUPT)
        try:
            rows = options.json(paths)
        except AnalysisException as error:
            if error.getCondition() != "COLUMN_ALREADY_EXISTS":
                raise
            raise SourceError(
                f"sources.{files[0].source}: found fields whose names differ only by case, expected one spelling"
            ) from None
        if CORRUPT not in rows.columns:
            rows = rows.withColumn(CORRUPT, F.lit(None).cast("string"))
    else:
        options = reader.options(
            header=True, sep=source.delimiter, quote=source.quote, escape=source.quote, encoding=source.encoding
        )
        header = _common_header(
            {file.file_name: options.csv(path).columns for file, path in zip(files, paths, strict=True)}
        )
        fields = ", ".join(f"{quoted(name)} string" for name in [*header, CORRUPT])
        rows = options.options(multiLine=True, columnNameOfCorruptRecord=CORRUPT).csv(paths, schema=fields)
    return rows.withColumn("_batch_id", F.substring("_metadata.file_name", 1, _SHA256_DIGITS))


def count_landed(
    spark: SparkSession, sources: Mapping[str, Source], landed: Sequence[LandedFile], lake_uri: str
) -> DataFrame:
    """Rows: one per landed file with the number of rows that its reader finds (source, batch_id, read_count)."""
    counts = [
        read_landed(spark, source, files, lake_uri)
        .groupBy(F.lit(name).alias("source"), F.col("_batch_id").alias("batch_id"))
        .agg(F.count("*").alias("read_count"))
        for name, source in sources.items()
        if (files := files_with_rows(name, landed))
    ]
    nothing = local_rows(spark, "source string, batch_id string, read_count bigint", [])
    return reduce(DataFrame.unionByName, counts, nothing)


def files_with_rows(source: str, landed: Sequence[LandedFile]) -> list[LandedFile]:
    """The files of a source but those of no bytes, which have not even a header."""
    return [file for file in landed if file.source == source and file.byte_count > 0]


def _typed(rows: DataFrame) -> list[str]:
    return [f"{name} {kind}" for name, kind in rows.dtypes]


def _common_header(headers: Mapping[str, list[str]]) -> list[str]:
    """The columns that all files of a source share: Spark would read later files as if they were like the first."""
    (first_name, first), *others = headers.items()
    for name, header in others:
        if header != first:
            found, expected = ", ".join(header), ", ".join(first)
            raise SourceError(f"file {name}: found the columns {found}; expected those of {first_name}: {expected}")
    return first
