"""Publications: which versions of the tables belong together, and what readers see of a lake.

Delta commits one table atomically, never several. So a refresh writes its tables first and then appends one row
to `publications`; readers take all versions from that row and never see half a refresh. A rollback appends a row
that repeats an older one.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.fs import DeltaStorageHandler
from deltalake.transaction import AddAction
from pyarrow import fs

from crm_spark.delta import answer, literal, quoted
from crm_spark.errors import ConfigError, LakeError, raise_fault_of_machine
from crm_spark.failpoints import step
from crm_spark.locks import Lease, file_lock, held_lease, written_by_two
from crm_spark.tables import Column, Table

PUBLICATIONS = Table(
    name="publications",
    comment="One row per publication: the set of table versions that belong together.",
    key=("publication_no",),
    columns=(
        Column("publication_no", "bigint", "Counts publications of this lake from 1."),
        Column("publication_id", "string", "Hash of what was published; equal for equal content."),
        Column("published_at", "timestamp", "When the run or the rollback that made it began (UTC).", volatile=True),
        Column("as_of", "date", "The date for which customers are scored."),
        Column("known_until", "timestamp", "Only what was known before this instant is seen."),
        Column("currency", "string", "The currency of all amounts."),
        Column("crm_spark_version", "string", "The program's version."),
        Column(
            "tables",
            "array<struct<name:string,version:bigint,fingerprint:string,content_hash:string,row_count:bigint>>",
            "Every published table with its pinned Delta version.",
        ),
    ),
)

# Of ids, no shorter beginning counts as a name: it might be meant as a number.
_SHORTEST_PREFIX = 4
_NAMED_AS_NEAREST = 3


@dataclass(frozen=True)
class Pin:
    """One version of one table, what it was made from (fingerprint) and what it holds (content hash)."""

    name: str
    version: int
    fingerprint: str
    content_hash: str
    row_count: int


@dataclass(frozen=True)
class Publication:
    publication_no: int
    publication_id: str
    published_at: datetime
    as_of: date
    known_until: datetime
    currency: str
    crm_spark_version: str
    tables: Mapping[str, Pin]

    @property
    def row_count(self) -> int:
        """The rows of all tables."""
        return sum(pin.row_count for pin in self.tables.values())


class PublishedLake:
    """What has been published under one URI; read by delta-rs, so that Spark need not be started."""

    def __init__(self, uri: str) -> None:
        self.local_root = _local_folder(uri)
        self.uri = str(self.local_root) if self.local_root else uri.rstrip("/")
        # Held while a lake that is not on a local disk is locked.
        self._lease: Lease | None = None

    def path(self, name: str) -> str:
        return f"{self.uri}/{name}"

    def publications(self) -> list[Publication]:
        """All publications, the oldest first."""
        if not self._exists(PUBLICATIONS.name):
            return []
        stored = DeltaTable(self.path(PUBLICATIONS.name))
        rows = answer("SELECT * FROM publications ORDER BY publication_no", PUBLICATIONS.name, stored)
        return [_publication(row) for row in rows]

    def last_publication(self) -> Publication | None:
        publications = self.publications()
        return publications[-1] if publications else None

    def published_known_until(self) -> dict[date, datetime]:
        """For each date that customers were scored for, up to when rows were known in its newest publication."""
        return {publication.as_of: publication.known_until for publication in self.publications()}

    def require_publication(self, name: str | None = None) -> Publication:
        """The last publication, or the one of a number, or the newest whose id is the name or begins so.

        Raises:
            LakeError: if nothing has been published here yet, there is none of that name, or ids of several begin so.
        """
        publications = self.publications()
        if not publications:
            raise LakeError(f"{self.uri}: found no publication; run `crm-spark refresh` with this lake first")
        if name is None:
            return publications[-1]
        of_number = [found for found in publications if str(found.publication_no) == name]
        if of_number:
            return of_number[0]
        begin_so = [found for found in publications if found.publication_id.startswith(name.lower())]
        if len(name) < _SHORTEST_PREFIX or not begin_so:
            raise LakeError(
                f"{self.uri}: found no publication {name!r}, expected a number or the first {_SHORTEST_PREFIX} or more "
                f"characters of an id; the nearest are {_listed(_nearest(publications, name))}; "
                "`crm-spark publications` lists all"
            )
        if len({found.publication_id for found in begin_so}) > 1:
            raise LakeError(
                f"{self.uri}: found several publications whose id begins with {name!r}: {_listed(begin_so)}; "
                "name one by its number"
            )
        return begin_so[-1]

    def query(self, sql: str, pin: Pin) -> list[dict[str, Any]]:
        """The few rows that SQL (DataFusion's) finds in the pinned version of a table, under the table's name."""
        return answer(sql, pin.name, DeltaTable(self.path(pin.name), version=pin.version))

    @contextmanager
    def locked(self, wait_seconds: float = 0) -> Iterator[None]:
        """Hold the lake for writing, waiting for who holds it: on a local disk by a lock, elsewhere by a lease.

        Raises:
            LakeBusyError: if another process is writing, and still is after `wait_seconds`.
        """
        if self.local_root is None:
            try:
                with held_lease(self.path(PUBLICATIONS.name), wait_seconds) as self._lease:
                    yield
            finally:
                self._lease = None
            return
        self.local_root.mkdir(parents=True, exist_ok=True)
        with file_lock(self.local_root / ".lock", wait_seconds):
            yield

    def require_lease(self) -> None:
        """Go on only if no other process took over the lake; on a local disk none can.

        Raises:
            LakeBusyError: if one did while this one paused.
        """
        if self._lease is not None:
            self._lease.require()

    @contextmanager
    def next_publications(self) -> Iterator[tuple[DeltaTable, CommitProperties]]:
        """The table of publications, with how to commit its very next version.

        Raises:
            LakeError: if another process took over the lake while this one paused.
        """
        if self._lease is None:
            try:
                yield DeltaTable(self.path(PUBLICATIONS.name)), CommitProperties(max_commit_retries=0)
            except CommitFailedError:
                raise written_by_two(PUBLICATIONS.name) from None
        else:
            with self._lease.for_commit() as table_and_properties:
                yield table_and_properties

    def _exists(self, name: str) -> bool:
        return DeltaTable.is_deltatable(self.path(name))


def published_views(lake: PublishedLake, publication: Publication) -> dict[str, str]:
    """For each published table, the SQL that makes it a view of its plain name."""
    return {
        name: f"CREATE OR REPLACE TEMPORARY VIEW {quoted(name)} AS {_rows_sql(lake, pin)}"
        for name, pin in sorted(publication.tables.items())
    }


def schema_views(lake: PublishedLake, publication: Publication, prefix: str) -> list[str]:
    """The SQL that makes a schema of its own for a publication, with a view of each table.

    What is there stays as it is: a schema always shows the publication whose number it bears.

    Raises:
        ConfigError: if metastores would not take the schema's name.
    """
    if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", prefix):
        raise ConfigError(f"--schema: found {prefix!r}, expected a letter and then letters, digits and _ alone")
    schema = quoted(f"{prefix}_p{publication.publication_no}")
    comment = literal(f"Publication {publication.publication_no} ({publication.publication_id}) of {lake.uri}")
    views = (
        f"CREATE VIEW IF NOT EXISTS {schema}.{quoted(name)} AS {_rows_sql(lake, pin)}"
        for name, pin in sorted(publication.tables.items())
    )
    return [f"CREATE SCHEMA IF NOT EXISTS {schema} COMMENT {comment}", *views]


def _rows_sql(lake: PublishedLake, pin: Pin) -> str:
    return f"SELECT * FROM delta.{quoted(lake.path(pin.name))} VERSION AS OF {pin.version}"  # noqa: S608 (quoted)


def repeated_numbers(publications: Sequence[Publication]) -> dict[int, int]:
    """For each publication whose content was published before, the number of the last that had it."""
    repeated, last_no = {}, dict[str, int]()
    for publication in publications:
        if publication.publication_id in last_no:
            repeated[publication.publication_no] = last_no[publication.publication_id]
        last_no[publication.publication_id] = publication.publication_no
    return repeated


def append_publication(lake: PublishedLake, publication: Publication) -> None:
    """Make a set of versions visible, by one commit to the table of publications, which must be there.

    Raises:
        LakeError: if another process took over the lake while this one paused.
    """
    with step("append to publications"), lake.next_publications() as (stored, properties):
        row = asdict(publication) | {"tables": [asdict(pin) for _, pin in sorted(publication.tables.items())]}
        rows = pa.Table.from_pylist([row], schema=pa.schema(stored.schema().to_arrow()))
        number, published_at = publication.publication_no, publication.published_at
        name = f"{number}-{publication.publication_id}-{published_at.astimezone(UTC):%Y%m%dT%H%M%S%f}.parquet"
        files = _files_of(lake.path(PUBLICATIONS.name))
        # Not by write_deltalake, which aborts where the name of a local folder would not do in a URL.
        pq.write_table(rows, name, filesystem=files)
        size, modified_ms = files.get_file_info(name).size, int(published_at.timestamp() * 1000)
        added = AddAction(name, size, {}, modified_ms, data_change=True, stats=json.dumps({"numRecords": 1}))
        stored.create_write_transaction([added], "append", stored.schema(), commit_properties=properties)


def roll_back(lake: PublishedLake, to: str | None, rolled_back_at: datetime) -> Publication:
    """Publish an older publication again, by one commit; the lake must be locked for writing.

    Without `to`, that is the last before the one that first had what is current: so rollbacks in a row go back step
    by step. The tables themselves stay as they are, and the next refresh goes on from what was built last.

    Raises:
        LakeError: if there is no such publication, it is the current one, or not all of its versions can be read.
    """
    current = lake.require_publication()
    older = lake.require_publication(to) if to else _published_before(lake, current)
    if older.publication_id == current.publication_id:
        raise LakeError(
            f"{lake.uri}: found that publication {older.publication_no} is what readers see already, expected another; "
            "`crm-spark publications` lists all"
        )
    faults = [fault for pin in older.tables.values() if (fault := _read_fault(lake, pin))]
    if faults:
        raise LakeError(
            f"{lake.uri}: publication {older.publication_no} cannot be read any more: {'; '.join(faults)}; "
            "roll back to another with --to, if there is one that is whole, or restore the files from a backup"
        )
    repeated = replace(older, publication_no=current.publication_no + 1, published_at=rolled_back_at)
    append_publication(lake, repeated)
    return repeated


def _published_before(lake: PublishedLake, current: Publication) -> Publication:
    publications = lake.publications()
    ids = [publication.publication_id for publication in publications]
    first = ids.index(current.publication_id)
    if first == 0:
        raise LakeError(
            f"{lake.uri}: found nothing older than publication {publications[0].publication_no}, expected one to roll "
            "back to; --to names a newer one"
        )
    return publications[first - 1]


def _read_fault(lake: PublishedLake, pin: Pin) -> str | None:
    """Why a pinned version cannot be read, if it cannot."""
    try:
        stored = DeltaTable(lake.path(pin.name), version=pin.version)
    except (DeltaError, OSError) as error:
        raise_fault_of_machine(error)
        return f"{pin.name} does not open at version {pin.version}"
    faults = file_faults(stored, standing_sizes(lake, pin.name))
    if faults:
        return f"{pin.name} at version {pin.version}: {len(faults)} files, of which {faults[0]}"
    return None


def standing_sizes(lake: PublishedLake, name: str) -> dict[str, int]:
    """The sizes in bytes of the files that stand in a table's folder, by their names there."""
    file_system, root = fs.FileSystem.from_uri(lake.path(name))
    infos = file_system.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    return {info.path.removeprefix(f"{root}/"): info.size for info in infos if info.type == fs.FileType.File}


def file_faults(stored: DeltaTable, sizes: Mapping[str, int]) -> list[str]:
    """Which files of a version are missing, or of another size than its log says, among those that stand."""
    files = stored.get_add_actions().select(["path", "size_bytes"])
    faults = []
    for name, size in zip(*(column.to_pylist() for column in files.columns), strict=True):
        if name not in sizes:
            faults.append(f"{name} is missing")
        elif sizes[name] != size:
            faults.append(f"{name} has {sizes[name]} bytes, expected {size}")
    return faults


def _files_of(path: str) -> fs.PyFileSystem:
    """The files of a table by their names, wherever it is."""
    return fs.PyFileSystem(DeltaStorageHandler(path))


def _nearest(publications: Sequence[Publication], name: str) -> list[Publication]:
    """The publications whose numbers or ids are most like a name, the most alike first."""
    if name.isdecimal() and len(name) < _SHORTEST_PREFIX:
        by_distance = sorted(publications, key=lambda found: abs(found.publication_no - int(name)))
        return by_distance[:_NAMED_AS_NEAREST]
    newest = {found.publication_id: found for found in publications}
    ids = difflib.get_close_matches(name.lower(), newest, _NAMED_AS_NEAREST, cutoff=0)
    return [newest[found] for found in ids]


def _listed(publications: Sequence[Publication]) -> str:
    return ", ".join(f"{found.publication_no} ({found.publication_id})" for found in publications)


def _local_folder(uri: str) -> Path | None:
    """The folder of a lake on a local disk; None if it is elsewhere.

    Raises:
        LakeError: if delta-rs would read the folder's name as something else.
    """
    is_uri = re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", uri)
    if is_uri and urlparse(uri).scheme != "file":
        return None
    folder = unquote(urlparse(uri).path) if is_uri else uri
    if re.search(r"[?#\\]|%[0-9A-Fa-f]{2}", folder):
        raise LakeError(f"lake: found the folder {folder}, expected a name without ?, #, backslash and %20 or the like")
    return Path(folder).absolute()


def _publication(row: dict[str, Any]) -> Publication:
    """A row of `publications` as delta-rs reads it."""
    pins = {pin["name"]: Pin(**pin) for pin in row["tables"]}
    utc = {name: row[name].astimezone(UTC) for name in ("published_at", "known_until")}
    return Publication(**(row | utc | {"tables": pins}))
