"""Publications: which versions of the tables belong together, and what readers see of a lake.

Delta commits one table atomically, never several. So a refresh writes its tables first and then appends one row
to `publications`; readers take all versions from that row and never see half a refresh.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, write_deltalake

from crm_spark.delta import answer, quoted
from crm_spark.errors import LakeError
from crm_spark.tables import Column, Table

PUBLICATIONS = Table(
    name="publications",
    comment="One row per publication: the set of table versions that belong together.",
    key=("publication_no",),
    columns=(
        Column("publication_no", "bigint", "Counts publications of this lake from 1."),
        Column("publication_id", "string", "Hash of what was published; equal for equal content."),
        Column("published_at", "timestamp", "When the run that made it began (UTC).", volatile=True),
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


class PublishedLake:
    """What has been published under one URI; read by delta-rs, so that Spark need not be started."""

    def __init__(self, uri: str) -> None:
        self.local_root = _local_folder(uri)
        self.uri = str(self.local_root) if self.local_root else uri.rstrip("/")

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

    def require_publication(self) -> Publication:
        """Raises: LakeError: if nothing has been published here yet."""
        publication = self.last_publication()
        if publication is None:
            raise LakeError(f"{self.uri}: found no publication; run `crm-spark refresh` with this lake first")
        return publication

    def query(self, sql: str, pin: Pin) -> list[dict[str, Any]]:
        """The few rows that SQL (DataFusion's) finds in the pinned version of a table, under the table's name."""
        return answer(sql, pin.name, DeltaTable(self.path(pin.name), version=pin.version))

    def _exists(self, name: str) -> bool:
        return DeltaTable.is_deltatable(self.path(name))


def append_publication(table: DeltaTable, publication: Publication, properties: CommitProperties | None = None) -> None:
    """Add a row to the table of publications, by one commit."""
    pins = [asdict(pin) for _, pin in sorted(publication.tables.items())]
    row = {column: getattr(publication, column) for column in PUBLICATIONS.column_names} | {"tables": pins}
    rows = pa.Table.from_pylist([row], schema=pa.schema(table.schema().to_arrow()))
    write_deltalake(table, rows, mode="append", commit_properties=properties)


def published_views(lake: PublishedLake, publication: Publication) -> dict[str, str]:
    """For each published table, the SQL that makes it a view of its plain name."""
    views = {}
    for name, pin in sorted(publication.tables.items()):
        rows = f"SELECT * FROM delta.{quoted(lake.path(name))} VERSION AS OF {pin.version}"  # noqa: S608 (quoted)
        views[name] = f"CREATE OR REPLACE TEMPORARY VIEW {quoted(name)} AS {rows}"
    return views


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
