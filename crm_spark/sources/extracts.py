"""Extracts: what is new in a Delta table or a database becomes Parquet, which then lands like a file that came."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from pyarrow import fs, parquet
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, MapType, StructField, StructType, VariantType

from crm_spark.commits import read_commit
from crm_spark.config import Source
from crm_spark.delta import quoted, read_files, read_version
from crm_spark.errors import SourceError
from crm_spark.sources.databases import database_errors, open_table
from crm_spark.sources.landing import Arrival, LandedFile
from crm_spark.tables import union_of

_ROWS_PER_FILE = 5_000_000
_BATCH, _COPIES, _LANDED_COPIES = "_crm_spark_batch", "_crm_spark_copies", "_crm_spark_landed_copies"


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
    that_count = {name: _that_count(name, source, known) for name, source in extracted.items()}
    try:
        yield {
            name: _stage(spark, name, source, lake_uri, that_count[name], run_at) for name, source in extracted.items()
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


def _that_count(name: str, source: Source, known: Sequence[LandedFile]) -> list[LandedFile]:
    """The landed files of a source whose rows count, the newest first.

    What the newest file held is extracted again if it does not count; of an older one, what changes.
    """
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
            else _extract_table(spark, name, source, lake_uri, known, run_at)
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
    added = None if reached is None else _added_since(path, newest, int(reached))
    if added is None:
        counts = newest.get_add_actions()["num_records"].to_pylist()
        rows, row_count = read_version(spark, path, newest.version()), sum(count or 0 for count in counts)
    elif not added.names_by_version:
        return None
    else:
        parts = [
            read_files(spark, path, DeltaTable(path, version=version), names)
            for version, names in added.names_by_version.items()
        ]
        rows, row_count = union_of(parts), added.row_count
    return _Extract(_with_zones(rows), row_count, f"{newest.version()} of {identity}")


def _open_delta(name: str, source: Source) -> tuple[str, DeltaTable]:
    path = source.path if "://" in source.path else str(Path(source.path).absolute())
    try:
        return path, DeltaTable(path)
    except (DeltaError, OSError):
        raise SourceError(f"sources.{name}.path: found no Delta table at {source.path}, expected one") from None


@dataclass(frozen=True)
class _Added:
    """Files that brought rows to a Delta table, each under the newest version that has it."""

    names_by_version: Mapping[int, Sequence[str]]
    row_count: int


def _added_since(path: str, newest: DeltaTable, version: int) -> _Added | None:
    """What was added since a version and not taken out again; None if the log or the files are no longer there.

    Files that only hold the rows of others anew, as OPTIMIZE writes them, add nothing.
    """
    count_by_name: dict[str, int] = {}
    last_by_name: dict[str, int] = {}
    for number in range(version + 1, newest.version() + 1):
        try:
            actions = read_commit(path, number)
        except ValueError:  # damaged
            actions = None
        if actions is None:
            return None
        added = {action["add"]["path"]: action["add"] for action in actions if "add" in action}
        removed = {action["remove"]["path"]: action["remove"] for action in actions if "remove" in action}
        for name in removed.keys() - added.keys():
            if removed[name]["dataChange"]:
                count_by_name.pop(name, None)
            else:
                last_by_name[name] = number - 1
        for name, add in added.items():
            # A file that is there again has lost rows since, not won any.
            if add["dataChange"] and name not in removed:
                count_by_name[name] = json.loads(add.get("stats") or "{}").get("numRecords", 0)
    names_by_version: dict[int, list[str]] = {}
    for name in sorted(count_by_name):
        names_by_version.setdefault(last_by_name.get(name, newest.version()), []).append(unquote(name))
    file_system, folder = fs.FileSystem.from_uri(path)
    rewritten = [f"{folder}/{unquote(name)}" for name in count_by_name.keys() & last_by_name.keys()]
    if any(info.type == fs.FileType.NotFound for info in file_system.get_file_info(rewritten)):
        return None
    return _Added(names_by_version, sum(count_by_name.values()))


def _with_zones(rows: DataFrame) -> DataFrame:
    """The same rows with times without a zone, which raise a table's reader version, as times of UTC."""
    schema = StructType.fromJson(json.loads(rows.schema.json().replace('"timestamp_ntz"', '"timestamp"')))
    return rows.select(*(F.col(quoted(field.name)).cast(field.dataType).alias(field.name) for field in schema))


def _extract_table(
    spark: SparkSession, name: str, source: Source, lake_uri: str, known: Sequence[LandedFile], run_at: datetime
) -> _Extract:
    """The rows from a little before the last extract's end up to the newest, without those that landed already.

    Where there is no watermark, or it went back as the database was restored, these are all rows.
    """
    table = open_table(spark, name, source)
    watermark, begin, until, condition = source.watermark, None, None, "TRUE"
    # The end is settled first: what changes while rows are read comes with the next extract.
    if watermark is not None and (newest := table.newest_watermark(watermark, run_at)) is not None:
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
        F.coalesce(F.max(F.when(is_landed, F.col(_COPIES))), F.lit(0)).alias(_LANDED_COPIES),
    )
    new = counted.where(F.col(_COPIES) > F.col(_LANDED_COPIES))
    return new.select(*columns, F.explode(F.sequence(F.lit(1), F.col(_COPIES).cast("int")))).select(*columns)
