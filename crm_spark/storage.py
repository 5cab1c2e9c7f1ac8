"""How the engine that runs writes Delta tables: Spark all by itself, Sail with delta-rs for what it lacks."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from operator import and_
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol
from urllib.parse import quote

from delta.tables import DeltaTable as SparkDeltaTable
from deltalake import CommitProperties, DeltaTable
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from crm_spark.delta import declaration_sql, file_names, literal, quoted, types_of
from crm_spark.errors import LakeError
from crm_spark.failpoints import step
from crm_spark.session import is_sail
from crm_spark.tables import Table

_NOTE_SETTING = "spark.databricks.delta.commitInfo.userMetadata"
_one_merge = threading.Lock()
# Folders in the lake that hold what is to be merged begin so; a killed run leaves them.
MERGE_PREFIX = ".merge_"
# Merging a day of seven into a table of 390 columns takes Sail three times as long and as much memory as writing all
# of it anew.
_MANY_COLUMNS = 100
# In the rows to merge, this tells those that go.
_IS_GONE = "_is_gone"


class Storage(Protocol):
    """What of writing tables depends on the engine. Each `note` stands in the commit that makes the version.

    Each makes one version; a merge makes up to `merge_commits`, of which the last is the one.
    """

    def merge_commits(self, table: Table) -> int:
        """How many versions a merge into a table makes at most."""

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
    return _SailStorage(spark, local_root) if is_sail(spark) else _SparkStorage(spark, local_root)


class _SparkStorage:
    def __init__(self, spark: SparkSession, local_root: Path | None) -> None:
        self.spark = spark
        self._local_root = local_root

    def declare(self, table: Table, path: str, *, is_new: bool) -> None:
        if is_new and self._local_root is not None:
            _remove_begun_log(Path(path))
        # CREATE OR REPLACE by path refuses other columns than the table has; REPLACE takes them.
        verb = "CREATE" if is_new else "REPLACE"
        self.spark.sql(f"{verb} TABLE delta.{quoted(path)} {declaration_sql(table, refuses_nulls=True)}")

    def save(self, path: str, rows: DataFrame, mode: str, note: str) -> None:
        rows.write.format("delta").mode(mode).option("userMetadata", note).save(path)

    def merge_commits(self, table: Table) -> int:  # noqa: ARG002 (on Sail it depends on the table)
        return 1

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
        with _one_merge:  # or it might bear the note of one
            self.spark.sql(f"RESTORE TABLE delta.{quoted(path)} TO VERSION AS OF {version}")

    def clear_cache(self) -> None:
        self.spark.catalog.clearCache()


class _SailStorage:
    def __init__(self, spark: SparkSession, local_root: Path | None) -> None:
        if local_root is None:
            raise LakeError("lake: found a URI, expected a folder on a local disk for Sail; --engine spark takes it")
        if quote(str(local_root)) != str(local_root):
            raise LakeError(
                f"lake: found the folder {local_root}, expected a name of letters, digits and . _ - ~ alone, as Sail "
                "would write another; --engine spark takes it"
            )
        self.spark = spark

    def declare(self, table: Table, path: str, *, is_new: bool) -> None:  # noqa: ARG002 (one statement does both)
        # Of columns that are NOT NULL, it would look at rows that a filter takes away, too, and with 42 of them take
        # seventeen seconds to write no row. The summary of what was written proves them, before a run goes on.
        sql = declaration_sql(table, refuses_nulls=False)
        # Sail knows tables of its catalog alone by this statement; there, this one is named by its path.
        self.spark.sql(f"CREATE OR REPLACE TABLE {quoted(path)} {sql} LOCATION {literal(path)}")

    def save(self, path: str, rows: DataFrame, mode: str, note: str) -> None:
        before = DeltaTable(path).version()
        rows.write.format("delta").mode(mode).option("userMetadata", note).save(path)
        if DeltaTable(path).version() > before:
            return
        # Sail does not commit what changes nothing.
        if mode == "overwrite" and file_names(DeltaTable(path)):
            raise LakeError(f"{path}: found no new version after rows were written")
        _commit_alone(path, note)

    def merge_commits(self, table: Table) -> int:
        return 1 if _is_wide(table) else 2

    def merge(self, table: Table, path: str, rows: DataFrame, removed: DataFrame, note: str) -> None:
        if _is_wide(table):
            self._replace(table, path, rows, removed, note)
            return
        same_key = " AND ".join(f"t.{quoted(name)} = s.{quoted(name)}" for name in table.key)
        with TemporaryDirectory(prefix=MERGE_PREFIX, dir=Path(path).parent) as folder:
            # Sail persists nothing: rows that the source names twice would be made twice.
            rows.write.parquet(folder, mode="overwrite")
            staged = self.spark.read.schema(types_of(rows.schema)).parquet(folder)
            self.spark.sql(
                f"MERGE INTO delta.{quoted(path)} AS t USING {{source}} AS s ON {same_key} "
                f"WHEN MATCHED AND s.{_IS_GONE} THEN DELETE WHEN MATCHED THEN UPDATE SET * "
                f"WHEN NOT MATCHED AND NOT s.{_IS_GONE} THEN INSERT *",
                source=_merge_source(table, staged, removed),
            )
        # Its merge takes no note. Without the next commit, the next run restores the version before.
        with step(f"note of {table.name}"):
            _commit_alone(path, note)

    def _replace(self, table: Table, path: str, rows: DataFrame, removed: DataFrame, note: str) -> None:
        key = list(table.key)
        gone = rows.select(*key).union(removed.select(*key))
        kept = self.spark.read.format("delta").load(path).join(gone, key, "left_anti")
        self.save(path, kept.unionByName(rows), "overwrite", note)

    def restore(self, path: str, version: int) -> None:
        DeltaTable(path).restore(version)

    def clear_cache(self) -> None:
        """Sail keeps nothing."""


def _remove_begun_log(path: Path) -> None:
    """Remove the log of a table whose first commit a killed process did not end: Spark would take it for a table."""
    log = path / "_delta_log"
    if log.is_dir() and all(entry.name.startswith(("_staged_commits", ".")) for entry in log.iterdir()):
        shutil.rmtree(log)


def _is_wide(table: Table) -> bool:
    return len(table.columns) > _MANY_COLUMNS


def _merge_source(table: Table, rows: DataFrame, removed: DataFrame) -> DataFrame:
    """Rows that come, and keys of those that go."""
    key = list(table.key)
    # A row that takes the place of another is no row that goes: a merge takes one of a key.
    gone = removed.select(*key).join(rows.select(*key), key, "left_anti").withColumn(_IS_GONE, F.lit(True))
    return rows.withColumn(_IS_GONE, F.lit(False)).unionByName(gone, allowMissingColumns=True)


def _commit_alone(path: str, note: str) -> None:
    stored = DeltaTable(path)
    properties = CommitProperties(custom_metadata={"userMetadata": note}, max_commit_retries=0)
    stored.create_write_transaction([], "append", stored.schema(), commit_properties=properties)
