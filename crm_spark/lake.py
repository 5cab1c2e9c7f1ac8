"""The lake as it is written: declared tables as Delta at `<lake>/<table>`, by one process at a time."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import delta.exceptions as delta_conflicts
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from crm_spark.commits import (
    changing_spans,
    commit_info,
    has_late_rows,
    is_made_of,
    last_with_rows_of,
    newest_noted,
    note_of,
)
from crm_spark.delta import file_names, read_files, read_rows
from crm_spark.errors import ContractError, LakeError
from crm_spark.failpoints import step
from crm_spark.locks import written_by_two
from crm_spark.publications import PUBLICATIONS, Pin, Publication, PublishedLake, append_publication
from crm_spark.storage import MERGE_PREFIX, storage_on
from crm_spark.tables import Summary, Table, conform, shifted_hash, summarise, union_of, value_errors

# Fewer rows are written anew sooner than merged, which takes many jobs.
SMALL_COUNT = 100_000
# What engines raise where another's commit stands in the way of theirs; Delta's own have no family.
_CONFLICTS = (CommitFailedError, *(getattr(delta_conflicts, name) for name in delta_conflicts.__all__))


@dataclass(frozen=True)
class _Head:
    """A commit of a table, and what its note says if a run wrote it."""

    version: int
    fingerprint: str | None
    declaration: str | None
    beside: Sequence[Pin]


class Lake(PublishedLake):
    """The tables under one URI. One process writes at a time; any number read."""

    def __init__(self, spark: SparkSession, uri: str) -> None:
        super().__init__(uri)
        self.spark = spark
        self._storage = storage_on(spark, self.local_root)

    def read(self, pin: Pin) -> DataFrame:
        """The rows of one version."""
        return read_rows(self.spark, self.path(pin.name), pin.version)

    def write(self, table: Table, rows: DataFrame, fingerprint: str, beside: Sequence[Pin] = ()) -> Pin:
        """Replace the rows of a table and check what was written.

        The commit notes the versions of other tables that belong `beside` it; see `pins_beside`.

        Raises:
            ContractError: if the rows break the declaration; the published version stays what it was.
        """
        rows = conform(rows, table)
        head = self._head(table.name)
        version, mode = head.version if head else -1, "overwrite"
        if head is None or head.declaration != table.declaration_hash:
            version = self._declare(table, version)
            mode = "append"  # To overwrite, Delta would first look for files to replace; there are none.
        head = self._save(table, rows, mode, _Head(version + 1, fingerprint, table.declaration_hash, beside))
        return self._checked(table, head)

    def change(
        self,
        table: Table,
        base: Pin,
        rows: DataFrame,
        removed: DataFrame | None,
        fingerprint: str,
        beside: Sequence[Pin] = (),
    ) -> Pin:
        """Add rows to a version of a table, and check those alone.

        Without `removed`, no row may have a key that stands there. With it, rows take the place of those with their
        key, and the other rows whose keys are `removed` go. It costs what the files cost in which such keys may stand.
        The commit notes what belongs `beside` it, as `write` does.

        Raises:
            ContractError: if the rows break the declaration; the published version stays what it was.
        """
        rows = conform(rows, table)
        if removed is not None and base.row_count < SMALL_COUNT:
            key = list(table.key)
            gone = rows.select(*key).union(removed.select(*key))
            kept = self.read(base).join(gone, key, "left_anti")
            return self.write(table, kept.unionByName(rows), fingerprint, beside)
        head = self._head(table.name)
        version = head.version if head else -1
        standing = last_with_rows_of(self.path(table.name), base.version)
        if version != standing:
            # What a run wrote that was not completed is no part of this version.
            version = self._restore(table, standing, version)
        head = _Head(version + 1, fingerprint, table.declaration_hash, beside)
        head = self._save(table, rows, "append", head) if removed is None else self._merge(table, rows, removed, head)
        row_count = max(base.row_count, self._count_rows(table.name, head.version))
        came, went = (
            summarise(part, table, row_count)
            for part in self.difference(base, Pin(table.name, head.version, fingerprint, "", 0))
        )
        _raise_if_broken(table, came)
        content_hash = shifted_hash(base.content_hash, came, went)
        row_count = base.row_count + came.row_count - went.row_count
        return Pin(table.name, head.version, fingerprint, content_hash, row_count)

    def difference(self, before: Pin | None, after: Pin) -> tuple[DataFrame, DataFrame]:
        """The rows of files that came, and of files that went, between two versions of a table.

        What was only put together in other files in between neither came nor went.
        """
        path = self.path(after.name)
        if before is None:
            new = DeltaTable(path, version=after.version)
            return self.read(after), read_files(self.spark, path, new, [])
        came, went = [], []
        for old, new in self._spans(before, after):
            old_names, new_names = (set(file_names(stored)) for stored in (old, new))
            came.append(read_files(self.spark, path, new, sorted(new_names - old_names)))
            went.append(read_files(self.spark, path, old, sorted(old_names - new_names)))
        return union_of(came), union_of(went)

    def row_changes(self, table: Table, before: Pin, after: Pin) -> DataFrame:
        """The rows that differ between two versions, volatile columns apart: `sign` is 1 if a row came, -1 if it went.

        Reads the files that came and went, and leaves out the rows that stand in both.
        """
        lasting = [column.name for column in table.columns if not column.volatile]
        came, went = (rows.select(*lasting) for rows in self.difference(before, after))
        signed = came.withColumn("sign", F.lit(1).cast("bigint"))
        if not self._lost_files(before, after):
            return signed
        signed = signed.unionByName(went.withColumn("sign", F.lit(-1).cast("bigint")))
        return signed.groupBy(*lasting).agg(F.sum("sign").alias("sign")).where("sign != 0")

    def only_grew(self, before: Pin, after: Pin) -> bool:
        """Whether every file of a version still stands in a later one, or was only put together with others."""
        return not self._lost_files(before, after)

    def pins_beside(self, table: Table) -> dict[str, Pin]:
        """The versions of other tables that the newest version of a table notes, by their names.

        A version that was lost since, in whose place another may have been written, is left out.
        """
        noted = self._newest_noted(table.name)
        beside = noted.beside if noted else ()
        return {pin.name: pin for pin in beside if is_made_of(self.path(pin.name), pin.version, pin.fingerprint)}

    def find(self, table: Table, fingerprint: str | None = None) -> Pin | None:
        """The newest version that a run wrote, published or not, if declared and, where asked, made as now."""
        noted = self._newest_noted(table.name)
        if noted is None or noted.declaration != table.declaration_hash:
            return None
        if noted.fingerprint is None or fingerprint not in (None, noted.fingerprint):
            return None
        return self._checked(table, noted)

    def newest(self, table: Table) -> Pin | None:
        """The newest version that a run wrote, however it was declared then; not checked again.

        Raises:
            LakeError: if the table has rows, but no run wrote them.
        """
        noted = self._newest_noted(table.name)
        if noted is not None and noted.fingerprint is not None:
            return Pin(table.name, noted.version, noted.fingerprint, content_hash="", row_count=0)
        path = self.path(table.name)
        if self._exists(table.name) and file_names(DeltaTable(path)) and not has_late_rows(path):
            raise LakeError(f"{table.name}: found rows that no run wrote; restore the version that one did")
        return None

    def publish(self, publication: Publication) -> None:
        """Make a set of versions visible, by one commit.

        Raises:
            LakeError: if another process took over while this one paused.
        """
        self._declare_publications()
        append_publication(self, publication)

    def withdraw(self, publications: Sequence[Publication]) -> None:
        """Take publications back, by one commit."""
        if publications:
            numbers = ", ".join(str(publication.publication_no) for publication in publications)
            with step("withdrawal from publications"), self.next_publications() as (stored, properties):
                stored.delete(f"publication_no IN ({numbers})", commit_properties=properties)

    def clear_cache(self) -> None:
        """Forget what was persisted of this lake's rows."""
        self._storage.clear_cache()

    @contextmanager
    def locked(self, wait_seconds: float = 0) -> Iterator[None]:
        """Hold the lake for writing, as `PublishedLake` does, and clear away what a killed run left.

        Raises:
            LakeBusyError: if another process is writing, and still is after `wait_seconds`.
        """
        if self.local_root is None:
            self._declare_publications()
        with super().locked(wait_seconds):
            for left in self.local_root.glob(f"{MERGE_PREFIX}*") if self.local_root else ():
                shutil.rmtree(left)
            yield

    def _declare_publications(self) -> None:
        if not self._exists(PUBLICATIONS.name):
            self._declare(PUBLICATIONS, -1)

    def _head(self, name: str) -> _Head | None:
        if not self._exists(name):
            return None
        # Not by Spark: its history takes a job of its own, more than some tables take to write.
        return _as_head(commit_info(self.path(name), DeltaTable(self.path(name)).version()))

    def _newest_noted(self, name: str) -> _Head | None:
        noted = newest_noted(self.path(name)) if self._exists(name) else None
        return _as_head(noted) if noted else None

    def _declare(self, table: Table, version: int) -> int:
        """Declare a table of which this is the newest version, or -1 if there is none; its newest then."""
        path = self.path(table.name)
        return self._commit(
            table, "declaration of", version + 1, lambda: self._storage.declare(table, path, is_new=version < 0)
        )

    def _restore(self, table: Table, standing: int, version: int) -> int:
        path = self.path(table.name)
        return self._commit(table, "restoration of", version + 1, lambda: self._storage.restore(path, standing))

    def _save(self, table: Table, rows: DataFrame, mode: str, head: _Head) -> _Head:
        path, note = self.path(table.name), _run_note(head)
        with _constraint_errors(table):
            version = self._commit(
                table, f"{mode} of", head.version, lambda: self._storage.save(path, rows, mode, note)
            )
        return replace(head, version=version)

    def _merge(self, table: Table, rows: DataFrame, removed: DataFrame, head: _Head) -> _Head:
        last = head.version + self._storage.merge_commits(table) - 1
        path, note = self.path(table.name), _run_note(replace(head, version=last))
        with _constraint_errors(table):
            version = self._commit(
                table, "merge into", last, lambda: self._storage.merge(table, path, rows, removed, note)
            )
        return replace(head, version=version)

    def _commit(self, table: Table, what: str, meant_version: int, commit: Callable[[], None]) -> int:
        """Make the next versions of a table, up to the one that is meant to be its newest; what its newest is then.

        Raises:
            LakeBusyError: if another process took over the lake while this one paused, or committed one of them.
        """
        self.require_lease()
        try:
            with step(f"{what} {table.name}"):
                commit()
        except Exception as error:
            self.require_lease()  # if it is lost, that is why
            if isinstance(error, _CONFLICTS):
                raise written_by_two(table.name) from None
            raise
        self.require_lease()
        version = DeltaTable(self.path(table.name)).version()
        if version > meant_version:
            raise written_by_two(table.name)
        return version

    def _lost_files(self, before: Pin, after: Pin) -> bool:
        return any(not set(file_names(old)) <= set(file_names(new)) for old, new in self._spans(before, after))

    def _spans(self, before: Pin, after: Pin) -> Iterator[tuple[DeltaTable, DeltaTable]]:
        path = self.path(after.name)
        for old, new in changing_spans(path, before.version, after.version):
            yield DeltaTable(path, version=old), DeltaTable(path, version=new)

    def _count_rows(self, name: str, version: int) -> int:
        files = DeltaTable(self.path(name), version=version).get_add_actions()
        return sum(count or 0 for count in files["num_records"].to_pylist())

    def _checked(self, table: Table, head: _Head) -> Pin:
        fingerprint = str(head.fingerprint)
        pin = Pin(table.name, head.version, fingerprint, content_hash="", row_count=0)
        summary = summarise(self.read(pin), table, self._count_rows(table.name, head.version))
        _raise_if_broken(table, summary)
        return Pin(table.name, head.version, fingerprint, summary.content_hash, summary.row_count)


def content_fingerprint(*parts: object) -> str:
    """A hash of values that JSON can hold, dates by their text."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _as_head(info: Mapping[str, Any]) -> _Head:
    note = note_of(info)
    beside = [Pin(**pin) for pin in note.get("beside", ())]
    return _Head(info["version"], note.get("fingerprint"), note.get("declaration"), beside)


def _run_note(head: _Head) -> str:
    note = {"fingerprint": head.fingerprint, "declaration": head.declaration, "meant_version": head.version}
    return json.dumps(note | ({"beside": [asdict(pin) for pin in head.beside]} if head.beside else {}))


def _raise_if_broken(table: Table, summary: Summary) -> None:
    if summary.violations:
        raise ContractError(f"{table.name}: rows break the declared table: {'; '.join(summary.violations)}")


@contextmanager
def _constraint_errors(table: Table) -> Iterator[None]:
    """Name the broken rule without the values that broke it, which may be personal."""
    try:
        with value_errors(table.name):
            yield
    except (PySparkException, Py4JJavaError) as error:
        text = str(error)
        for check in table.checks:
            if f"CHECK constraint {check.name} " in text:
                raise ContractError(f"{table.name}: rows break {check.name}: {check.must_hold}") from None
        if "NOT NULL constraint violated for column: " in text:
            column = text.split("NOT NULL constraint violated for column: ")[1].split(".")[0]
            raise ContractError(f"{table.name}: {column} is NULL in some rows, expected a value") from None
        raise
