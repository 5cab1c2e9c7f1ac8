"""How the engine that runs writes Delta tables: Spark all by itself, Sail with delta-rs for what it lacks."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from itertools import chain
from operator import and_
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from delta.tables import DeltaTable as SparkDeltaTable
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import DeltaError
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from crm_spark.delta import declaration, quoted, text, types_of
from crm_spark.errors import ContractError, LakeError
from crm_spark.session import is_sail
from crm_spark.tables import Table

_NOTE_SETTING = "spark.databricks.delta.commitInfo.userMetadata"
_one_merge = threading.Lock()
# In the rows to merge, this tells those that go.
_IS_GONE = "_is_gone"


class Storage(Protocol):
    """What of writing tables depends on the engine. Each `note` stands in the commit that makes the version."""

    def declare(self, table: Table, path: str, *, is_new: bool) -> None:
        """Create a declared table without rows, or replace another declaration and its rows."""

    def save(self, path: str, rows: DataFrame, mode: str, note: str) -> None:
        """Append rows or overwrite all; a version without rows is a version, too."""

    def merge(self, table: Table, path: str, rows: DataFrame, removed: DataFrame, note: str) -> None:
        """Let rows take the place of those with their key, or join them; other rows whose keys are `removed` go."""

    def restore(self, path: str, version: int) -> None:
        """Make an older version the newest."""

    def clear_cache(self) -> None:
        """Forget what was persisted."""


def storage_on(spark: SparkSession, local_root: Path | None) -> Storage:
    """How the session's engine writes a lake.

    Raises:
        LakeError: if it cannot write one there.
    """
    return _SailStorage(spark, local_root) if is_sail(spark) else _SparkStorage(spark)


class _SparkStorage:
    def __init__(self, spark: SparkSession) -> None:
        self.spark = spark

    def declare(self, table: Table, path: str, *, is_new: bool) -> None:
        # CREATE OR REPLACE by path refuses other columns than the table has; REPLACE takes them.
        verb = "CREATE" if is_new else "REPLACE"
        self.spark.sql(f"{verb} TABLE delta.{quoted(path)} {declaration(table)}")

    def save(self, path: str, rows: DataFrame, mode: str, note: str) -> None:
        rows.write.format("delta").mode(mode).option("userMetadata", note).save(path)

    def merge(self, table: Table, path: str, rows: DataFrame, removed: DataFrame, note: str) -> None:
        source = _merge_source(table, rows, removed)
        first = table.key[0]
        ((low, high),) = source.agg(F.min(first), F.max(first)).collect()
        # The range lets Delta pass over files that hold none of these keys.
        within = F.col(f"t.{quoted(first)}").between(F.lit(low), F.lit(high))
        same_key = [F.col(f"t.{quoted(name)}") == F.col(f"s.{quoted(name)}") for name in table.key]
        values: dict[str, str | SparkColumn] = {name: f"s.{quoted(name)}" for name in table.column_names}
        merge = (
            SparkDeltaTable.forPath(self.spark, path)
            .alias("t")
            .merge(source.alias("s"), reduce(and_, [within, *same_key]))
            .whenMatchedDelete(f"s.{_IS_GONE}")
            .whenMatchedUpdate(set=values)
            .whenNotMatchedInsert(f"NOT s.{_IS_GONE}", values=values)
        )
        with self._note_in_session(note):
            merge.execute()

    @contextmanager
    def _note_in_session(self, note: str) -> Iterator[None]:
        # A merge takes its note from the session alone. Other threads' writes have their own, which goes before it;
        # what they create or restore meanwhile gets this one, but no version is taken by another table's fingerprint.
        with _one_merge:
            self.spark.conf.set(_NOTE_SETTING, note)
            try:
                yield
            finally:
                self.spark.conf.unset(_NOTE_SETTING)

    def restore(self, path: str, version: int) -> None:
        self.spark.sql(f"RESTORE TABLE delta.{quoted(path)} TO VERSION AS OF {version}")

    def clear_cache(self) -> None:
        self.spark.catalog.clearCache()


class _SailStorage:
    def __init__(self, spark: SparkSession, local_root: Path | None) -> None:
        if local_root and quote(str(local_root)) != str(local_root):
            raise LakeError(
                f"lake: found the folder {local_root}, expected a name of letters, digits and . _ - ~ alone, as Sail "
                "would write another; --engine spark takes it"
            )
        self.spark = spark

    def declare(self, table: Table, path: str, *, is_new: bool) -> None:  # noqa: ARG002 (one statement does both)
        # Sail knows tables of its catalog alone by this statement; there, this one is named by its path.
        self.spark.sql(f"CREATE OR REPLACE TABLE {quoted(path)} {declaration(table)} LOCATION {text(path)}")

    def save(self, path: str, rows: DataFrame, mode: str, note: str) -> None:
        before = DeltaTable(path).version()
        rows.write.format("delta").mode(mode).option("userMetadata", note).save(path)
        if DeltaTable(path).version() == before:  # Sail does not commit what changes nothing
            _commit_note(path, note)

    def merge(self, table: Table, path: str, rows: DataFrame, removed: DataFrame, note: str) -> None:
        # Sail's own merge takes no note, and does not end where columns are many.
        same_key = " AND ".join(f't."{name}" = s."{name}"' for name in table.key)
        with TemporaryDirectory() as folder:
            rows.write.parquet(f"{folder}/rows")  # Sail persists nothing, and the source names them twice
            staged = self.spark.read.schema(types_of(rows.schema)).parquet(f"{folder}/rows")
            _merge_source(table, staged, removed).write.parquet(f"{folder}/source")
            merge = DeltaTable(path).merge(
                _batches(Path(folder, "source")), same_key, "s", "t", commit_properties=_noting(note)
            )
            merge = merge.when_matched_delete(f"s.{_IS_GONE}").when_matched_update_all(except_cols=[_IS_GONE])
            merge = merge.when_not_matched_insert_all(f"NOT s.{_IS_GONE}", except_cols=[_IS_GONE])
            with _rows_unsaid(table, staged):
                merge.execute()

    def restore(self, path: str, version: int) -> None:
        DeltaTable(path).restore(version)

    def clear_cache(self) -> None:
        """Sail keeps nothing."""


def _merge_source(table: Table, rows: DataFrame, removed: DataFrame) -> DataFrame:
    """Rows that come, and keys of those that go."""
    key = list(table.key)
    # A row that takes the place of another is no row that goes: a merge takes one of a key.
    gone = removed.select(*key).join(rows.select(*key), key, "left_anti").withColumn(_IS_GONE, F.lit(True))
    return rows.withColumn(_IS_GONE, F.lit(False)).unionByName(gone, allowMissingColumns=True)


@contextmanager
def _rows_unsaid(table: Table, rows: DataFrame) -> Iterator[None]:
    """Name the broken rule instead of the rows that break it, which delta-rs shows."""
    try:
        yield
    except DeltaError as error:
        if "failed validation check" not in str(error):
            raise
        for check in table.checks:
            if not rows.where(f"NOT ({check.must_hold})").isEmpty():
                raise ContractError(f"{table.name}: rows break {check.name}: {check.must_hold}") from None
        raise ContractError(f"{table.name}: rows break the declared table") from None


def _batches(folder: Path) -> pa.RecordBatchReader:
    """The rows of Parquet files, a few at a time."""
    files = [pq.ParquetFile(file) for file in sorted(folder.glob("*.parquet"))]
    batches = chain.from_iterable(file.iter_batches() for file in files)
    return pa.RecordBatchReader.from_batches(files[0].schema_arrow, batches)


def _commit_note(path: str, note: str) -> None:
    stored = DeltaTable(path)
    stored.create_write_transaction([], "append", stored.schema(), commit_properties=_noting(note))


def _noting(note: str) -> CommitProperties:
    return CommitProperties(custom_metadata={"userMetadata": note})
