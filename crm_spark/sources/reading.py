"""Reading landed files: every row of them as its reader gives it, also those that it cannot split into fields."""

import json
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

from pyarrow import ArrowInvalid, ArrowNotImplementedError, fs, parquet
from pyspark.sql import Column, DataFrame, DataFrameReader, SparkSession
from pyspark.sql import functions as F

from crm_spark.config import Source
from crm_spark.delta import quoted
from crm_spark.errors import SourceError
from crm_spark.sources.drift import check_columns
from crm_spark.sources.landing import LandedFile
from crm_spark.tables import local_rows

# A name that no file uses: `_corrupt_record`, the usual one, may be a column of a file.
CORRUPT = "_crm_spark_unreadable_row"
_SHA256_DIGITS = 64
_BLOCK_BYTES = 1 << 20
# What Spark unpacks by a file's suffix and pyarrow can look into.
_COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


@dataclass(frozen=True)
class SourceFiles:
    """Landed files of one source that may have rows, and all columns that its files ever had, name to type."""

    name: str
    source: Source
    files: Sequence[LandedFile]
    known: Mapping[str, str]

    def only(self, files: Set[LandedFile]) -> "SourceFiles":
        return replace(self, files=[file for file in self.files if file in files])

    def but(self, files: Set[LandedFile]) -> "SourceFiles":
        return replace(self, files=[file for file in self.files if file not in files])


def describe_files(
    spark: SparkSession,
    sources: Mapping[str, Source],
    mapped: Mapping[str, Collection[str]],
    landed: Sequence[LandedFile],
    lake_uri: str,
) -> list[LandedFile]:
    """The same files, each with its columns or the fault for which it does not count.

    Files that were described by the same settings stay as they are. `mapped` are, for each source, the columns that its
    expressions name, in lower case.

    Raises:
        SourceError: if a file has other columns than those before it.
    """
    described = {file: file for file in landed}
    for name, source in sources.items():
        read_as = _settings_of(source)
        files = sorted(
            (file for file in landed if file.source == name), key=lambda file: (file.ingested_at, file.file_name)
        )
        new = [file for file in files if file.read_as != read_as]
        described |= {file: _describe(spark, source, file, read_as, lake_uri) for file in new}
        before = [dict(file.columns) for file in files if file.read_as == read_as and file.has_rows]
        named = {file.file_name: dict(now.columns) for file in new if (now := described[file]).has_rows}
        check_columns(name, source, mapped[name], before, named)
    return list(described.values())


def gather_files(sources: Mapping[str, Source], landed: Sequence[LandedFile]) -> list[SourceFiles]:
    """The described files of each source that may have rows."""
    gathered = []
    for name, source in sources.items():
        files = sorted(
            (file for file in landed if file.source == name and file.has_rows),
            key=lambda file: (file.ingested_at, file.file_name),
        )
        known = {column: kind for file in files for column, kind in file.columns}
        gathered.append(SourceFiles(name, source, files, known))
    return gathered


def _settings_of(source: Source) -> str:
    """What the description of a file depends on."""
    of_csv = [source.delimiter, source.quote, source.encoding] if source.format == "csv" else []
    return json.dumps([source.entity, source.landed_format, *of_csv, *source.leave_out])


def _describe(spark: SparkSession, source: Source, file: LandedFile, read_as: str, lake_uri: str) -> LandedFile:
    path = f"{lake_uri}/{file.landed_path}"
    columns: dict[str, str] = {}
    fault = "left_out" if file.file_name in source.leave_out else None
    if fault is None and file.byte_count > 0:
        fault = _find_fault(source, path)
        columns = {} if fault else read_columns(spark, file.source, source, path)
        fault = fault or (None if columns else "no_columns")
    return replace(file, entity=source.entity, read_as=read_as, columns=tuple(columns.items()), fault=fault)


def _find_fault(source: Source, path: str) -> str | None:
    """Why the bytes of a file cannot be read to their end; None if they can.

    Parquet and what is compressed are read once: Spark would come upon a torn piece in the midst of cleaning.
    """
    file_system, inner = fs.FileSystem.from_uri(path)
    compression = _COMPRESSED.get(Path(inner).suffix)
    try:
        if source.landed_format == "parquet":
            with file_system.open_input_file(inner) as file:
                for _ in parquet.ParquetFile(file).iter_batches():
                    pass
        elif compression is not None:
            with file_system.open_input_stream(inner, compression=compression) as stream:
                while stream.read(_BLOCK_BYTES):
                    pass
    except ArrowNotImplementedError:
        return None  # a type that Spark may know
    except (OSError, ArrowInvalid) as error:
        if getattr(error, "errno", None) is not None:
            raise  # the disk's fault, not the file's
        return "parquet_file_damaged" if source.landed_format == "parquet" else "compressed_file_damaged"
    return None


def read_columns(spark: SparkSession, name: str, source: Source, path: str) -> dict[str, str]:
    """The columns of a file, name to type; all of CSV and JSON are text, also what is nested.

    Raises:
        SourceError: if names of JSON fields differ only by case.
    """
    if source.landed_format == "parquet":
        return dict(spark.read.parquet(path).dtypes)
    if source.format == "csv":
        return dict.fromkeys(_csv_reader(spark, source).csv(path).columns, "string")
    fields = spark.read.text(path).select(F.explode(F.json_object_keys("value")).alias("field")).distinct()
    names = sorted(row["field"] for row in fields.collect())
    if len({field.lower() for field in names}) < len(names):
        raise SourceError(f"sources.{name}: found fields whose names differ only by case, expected one spelling")
    return dict.fromkeys(names, "string")


def read_rows(spark: SparkSession, source: Source, paths: Sequence[str], columns: Mapping[str, str]) -> DataFrame:
    """The rows of files that have the same columns.

    CSV and JSON come as text; rows that the reader cannot split into fields keep their text in
    a column of its own, NULL in all others.
    """
    if source.landed_format == "parquet":
        return spark.read.parquet(*paths).withColumn(CORRUPT, F.lit(None).cast("string"))
    fields = ", ".join(f"{quoted(column)} {kind}" for column, kind in [*columns.items(), (CORRUPT, "string")])
    if source.format == "json":
        return spark.read.schema(fields).option("columnNameOfCorruptRecord", CORRUPT).json(list(paths))
    reader = _csv_reader(spark, source).options(multiLine=True, columnNameOfCorruptRecord=CORRUPT)
    return reader.csv(list(paths), schema=fields)


def read_landed(spark: SparkSession, files: SourceFiles, lake_uri: str) -> DataFrame:
    """The rows of a source's files with all columns that it ever had, and `_batch_id` beside them."""
    alike: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for file in files.files:
        alike.setdefault(file.columns, []).append(f"{lake_uri}/{file.landed_path}")
    batch_id = F.substring("_metadata.file_name", 1, _SHA256_DIGITS).alias("_batch_id")
    parts = [
        read_rows(spark, files.source, paths, dict(columns)).select(
            *(
                (F.col(quoted(name)) if name in dict(columns) else _absent(kind)).alias(name)
                for name, kind in files.known.items()
            ),
            CORRUPT,
            batch_id,
        )
        for columns, paths in alike.items()
    ]
    return reduce(DataFrame.union, parts)


def _absent(kind: str) -> Column:
    # Names within nested types are not quoted in `kind`, so it cannot always be parsed.
    return F.lit(None) if "<" in kind else F.lit(None).cast(kind)


def count_landed(spark: SparkSession, inputs: Sequence[SourceFiles], lake_uri: str) -> DataFrame:
    """Rows: one per landed file with the number of rows that its reader finds (source, batch_id, read_count)."""
    counts = [
        read_landed(spark, files, lake_uri)
        .groupBy(F.lit(files.name).alias("source"), F.col("_batch_id").alias("batch_id"))
        .agg(F.count("*").alias("read_count"))
        for files in inputs
        if files.files
    ]
    nothing = local_rows(spark, "source string, batch_id string, read_count bigint", [])
    return reduce(DataFrame.unionByName, counts, nothing)


def _csv_reader(spark: SparkSession, source: Source) -> DataFrameReader:
    return spark.read.options(
        header=True, sep=source.delimiter, quote=source.quote, escape=source.quote, encoding=source.encoding
    )
