"""Extracts: what is new in a Delta table or a database becomes Parquet, which then lands like a file that came."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from pyarrow import fs, parquet
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, MapType, StructField, StructType, VariantType

from crm_spark.config import Source
from crm_spark.errors import SourceError
from crm_spark.lake import file_names, quoted, read_files, read_version
from crm_spark.sources.databases import database_errors, open_table
from crm_spark.sources.landing import Arrival, LandedFile

_ROWS_PER_FILE = 5_000_000
_BATCH, _COPIES = "_crm_spark_batch", "_crm_spark_copies"


@dataclass(frozen=True)
class _Extract:
    """Rows that are new in a source, of about how many rows they are, and how far the ledger shall say they reach."""

    rows: DataFrame
    row_count: int
    until: str | None


@contextmanager
def staged_extracts(
    spark: SparkSession, sources: Mapping[str, Source], lake_uri: str, known: Sequence[LandedFile], run_at: datetime
) -> Iterator[dict[str, list[Arrival]]]:
    """Files with what is new in each source that is extracted; they are in the lake until they land, or are cleared.

    Raises:
        SourceError: if a source cannot be read.
    """
    extracted = {name: source for name, source in sources.items() if source.is_extracted}
    counting = {name: _counting(name, source, known) for name, source in extracted.items()}
    try:
        yield {
            name: _stage(spark, name, source, lake_uri, counting[name], run_at) for name, source in extracted.items()
        }
    finally:
        for name in extracted:
            file_system, path = fs.FileSystem.from_uri(_staging(lake_uri, name))
            if file_system.get_file_info(path).type != fs.FileType.NotFound:
                file_system.delete_dir(path)


def sample_rows(spark: SparkSession, name: str, source: Source, row_count: int) -> DataFrame:
    """Some rows as an extract would have them.

    Raises:
        SourceError: if the source cannot be read.
    """
    with database_errors(name, source):
        if source.format == "delta":
            path, stored = _open_delta(name, source)
            return _with_zones(read_version(spark, path, stored.version()).limit(row_count))
        sample = open_table(spark, name, source).read(limit=row_count).persist()
        sample.count()
        return sample


def _staging(lake_uri: str, name: str) -> str:
    return f"{lake_uri}/landing/{name}/.extract"


def _counting(name: str, source: Source, known: Sequence[LandedFile]) -> list[LandedFile]:
    """The landed files of a source whose rows count, the newest first: what others held is to be extracted again."""
    files = [file for file in known if file.source == name and file.has_rows and file.file_name not in source.leave_out]
    return sorted(files, key=lambda file: (file.ingested_at, file.file_name), reverse=True)


def _stage(
    spark: SparkSession, name: str, source: Source, lake_uri: str, known: Sequence[LandedFile], run_at: datetime
) -> list[Arrival]:
    """Write what is new; of nothing new there is no file, except of a source that has none yet."""
    folder = _staging(lake_uri, name)
    with database_errors(name, source):
        extract = (
            _extract_delta(spark, name, source, known)
            if source.format == "delta"
            else _extract_table(spark, name, source, lake_uri, known)
        )
        if extract is None:
            return []
        # In a total order, so that the same rows are the same bytes.
        order = [_sortable(field) for field in extract.rows.schema.fields]
        file_count = -(-max(extract.row_count, 1) // _ROWS_PER_FILE)
        in_order = extract.rows.repartition(file_count, *order).sortWithinPartitions(*order)
        in_order.write.mode("overwrite").parquet(folder)
    file_system, path = fs.FileSystem.from_uri(folder)
    written = sorted(file_system.get_file_info(fs.FileSelector(path)), key=lambda info: info.path)
    parts = [info for info in written if info.base_name.startswith("part-")]
    if known:
        parts = [info for info in parts if parquet.read_metadata(info.path, filesystem=file_system).num_rows]
    stem = f"{source.table or PurePosixPath(source.path).name}_{run_at:%Y%m%dT%H%M%SZ}"
    numbers = [""] if len(parts) == 1 else [f"_{number}" for number in range(1, len(parts) + 1)]
    return [
        Arrival(file_system, info, f"{stem}{number}.parquet", is_extract=True, extracted_until=extract.until)
        for info, number in zip(parts, numbers, strict=True)
    ]


def _sortable(field: StructField) -> Column:
    column = F.col(quoted(field.name))
    has_no_order = isinstance(field.dataType, ArrayType | MapType | StructType | VariantType)
    return F.to_json(column) if has_no_order else column


def _reached(known: Sequence[LandedFile], what: str) -> str | None:
    """How far the newest extract of something went."""
    for file in known:
        reached, _, of_what = (file.extracted_until or "").partition(" of ")
        if of_what == what:
            return reached
    return None


def _extract_delta(spark: SparkSession, name: str, source: Source, known: Sequence[LandedFile]) -> _Extract | None:
    """The rows of files that were added since the version that was read last."""
    path, newest = _open_delta(name, source)
    # A table that was made anew under the same name has another id.
    identity = str(newest.metadata().id)
    reached = _reached(known, identity)
    if reached is None:
        names = file_names(newest)
        rows = read_version(spark, path, newest.version())
    else:
        names = _names_since(path, newest, int(reached))
        if not names:
            return None
        rows = read_files(spark, path, newest, names)
    actions = newest.get_add_actions()
    counts = dict(zip(actions["path"].to_pylist(), actions["num_records"].to_pylist(), strict=True))
    row_count = sum(counts[file_name] or 0 for file_name in names)
    return _Extract(_with_zones(rows), row_count, f"{newest.version()} of {identity}")


def _open_delta(name: str, source: Source) -> tuple[str, DeltaTable]:
    path = source.path if "://" in source.path else str(Path(source.path).absolute())
    try:
        return path, DeltaTable(path)
    except (DeltaError, OSError):
        raise SourceError(f"sources.{name}.path: found no Delta table at {source.path}, expected one") from None


def _names_since(path: str, newest: DeltaTable, version: int) -> list[str]:
    """The files that were added since a version; all of them if that one's log is gone."""
    try:
        before = file_names(DeltaTable(path, version=version))
    except DeltaError:
        before = []
    return sorted(set(file_names(newest)) - set(before))


def _with_zones(rows: DataFrame) -> DataFrame:
    """The same rows with times without a zone, which raise a table's reader version, as times of UTC."""
    schema = StructType.fromJson(json.loads(rows.schema.json().replace('"timestamp_ntz"', '"timestamp"')))
    return rows.select(*(F.col(quoted(field.name)).cast(field.dataType).alias(field.name) for field in schema))


def _extract_table(
    spark: SparkSession, name: str, source: Source, lake_uri: str, known: Sequence[LandedFile]
) -> _Extract:
    """The rows from a little before the last extract's end up to the newest, without those that landed already.

    Where there is no watermark, or it went back as the database was restored, these are all rows.
    """
    table = open_table(spark, name, source)
    watermark, begin, until, condition = source.watermark, None, None, "TRUE"
    # The end is settled first: what changes while rows are read comes with the next extract.
    if watermark is not None and (newest := table.newest_watermark(watermark)) is not None:
        what = f"{source.table}.{watermark}"
        begin = table.next_begin(watermark, _reached(known, what), newest)
        condition, until = table.window(watermark, begin, newest), f"{newest} of {what}"
    conditions, row_count = table.split(condition)
    rows = table.read(conditions)
    alike = [f"{lake_uri}/{file.landed_path}" for file in known if dict(file.columns) == dict(rows.dtypes)]
    if alike:
        landed = spark.read.parquet(*alike)
        if watermark is not None and begin is not None:
            place = F.col(quoted(watermark))
            landed = landed.where((place >= F.lit(begin)) | place.isNull())
        rows = _drop_landed(rows, landed)
    return _Extract(rows, row_count, until)


def _drop_landed(rows: DataFrame, landed: DataFrame) -> DataFrame:
    """The rows but those of which one landed file has as many: of rows that are equal, each is an event."""
    columns = [quoted(column) for column in rows.columns]
    both = rows.select(*columns, F.lit(None).cast("string").alias(_BATCH)).union(
        landed.select(*columns, F.col("_metadata.file_name").alias(_BATCH))
    )
    copies = both.groupBy(*columns, _BATCH).agg(F.count("*").alias(_COPIES))
    is_landed = F.col(_BATCH).isNotNull()
    counted = copies.groupBy(*columns).agg(
        F.max(F.when(~is_landed, F.col(_COPIES))).alias(_COPIES),
        F.coalesce(F.max(F.when(is_landed, F.col(_COPIES))), F.lit(0)).alias(_BATCH),
    )
    new = counted.where(F.col(_COPIES) > F.col(_BATCH))
    return new.select(*columns, F.explode(F.sequence(F.lit(1), F.col(_COPIES).cast("int")))).select(*columns)
