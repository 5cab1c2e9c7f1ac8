"""One run of the job over one lake: what is up to date is taken, what is not is made.

A table is made by a function of other tables and of values. A hash of these is its fingerprint, stored with the
version it made. So a table whose inputs did not change is not written again, a run after a killed one takes up
what that one had finished, and running the same job twice publishes once.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

import pyspark
from pyspark.sql import DataFrame

import crm_spark
from crm_spark.config import Config
from crm_spark.errors import LakeError
from crm_spark.lake import Lake, Pin, Publication, content_fingerprint
from crm_spark.progress import StageProgress
from crm_spark.tables import Table, declared_rows

_UPDATES_AT_ONCE = 3


@dataclass
class Run:
    """The state of one run: which version of each table belongs to it so far."""

    config: Config
    lake: Lake
    as_of: date
    # Up to when rows count as known, and by when the newest was taken in: settled by the sources stage.
    known_until: datetime
    learned_until: datetime
    run_at: datetime
    previous: Publication | None
    pins: dict[str, Pin] = field(default_factory=dict)
    # Versions that stages completed, though nothing was published with them yet.
    completed: Mapping[str, Pin] = field(default_factory=dict)
    # Tables that this run has none of, as nothing feeds them: they are read as empty.
    absent: Set[str] = frozenset()
    progress: StageProgress | None = None
    # Whether it goes on though a required source has no rows of the last day.
    allow_stale: bool = False
    # False in the stages before --from: what they make must be there already.
    may_build: bool = True

    def read(self, table: Table) -> DataFrame:
        """The version of a table that belongs to this run; no rows of one that is absent."""
        if table.name in self.absent:
            return declared_rows(self.lake.spark, table, [])
        return self.lake.read(self.pins[table.name])

    def update(
        self,
        table: Table,
        build: Callable[..., DataFrame],
        reads: Sequence[Table] = (),
        given: object = None,
    ) -> None:
        """Make a table current: `build` gets the tables of `reads` in order and gives its rows.

        `given` are all other values that the rows depend on, as JSON can hold them.
        """
        fingerprint = self.fingerprint(table, reads, given)
        self.make(
            table, fingerprint, lambda: self.lake.write(table, build(*(self.read(read) for read in reads)), fingerprint)
        )

    def make(self, table: Table, fingerprint: str, write: Callable[[], Pin]) -> None:
        """Make a table current: take the version with this fingerprint, or let `write` make it."""
        if self.progress:
            self.progress.begin(table.name)
        pin = self._up_to_date(table, fingerprint)
        changed = pin is None
        if pin is None:
            if not self.may_build:
                raise LakeError(f"{table.name}: found no version for these inputs; run without --from")
            pin = write()
        self.pins[table.name] = pin
        if self.progress:
            self.progress.end(changed)

    def take(self, table: Table) -> None:
        """Take the newest version of a table as it stands.

        Raises:
            LakeError: if there is none.
        """
        pin = self.lake.find(table)
        if pin is None:
            raise LakeError(f"{table.name}: found no version; run without --from")
        self.pins[table.name] = pin
        if self.progress:
            self.progress.end(changed=False)

    def side_by_side(self, *updates: Callable[[], None]) -> None:
        """Make tables that do not read each other: while one plans or commits, another uses the cores."""
        with ThreadPoolExecutor(_UPDATES_AT_ONCE) as pool:
            try:
                for done in [pool.submit(update) for update in updates]:
                    done.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def fingerprint(self, table: Table, reads: Sequence[Table], given: object) -> str:
        inputs = {read.name: self.pins[read.name].content_hash for read in reads if read.name not in self.absent}
        return content_fingerprint(code_version(), table.declaration_hash, inputs, given)

    def _up_to_date(self, table: Table, fingerprint: str) -> Pin | None:
        published = self.previous.tables if self.previous else {}
        for pin in (published.get(table.name), self.completed.get(table.name)):
            if pin is not None and pin.fingerprint == fingerprint:
                return pin
        return self.lake.find(table, fingerprint)

    def publication(self) -> Publication:
        """The publication that this run's versions make."""
        contents = {name: pin.content_hash for name, pin in sorted(self.pins.items())}
        return Publication(
            publication_no=self.previous.publication_no + 1 if self.previous else 1,
            publication_id=content_fingerprint(contents, self.as_of, self.known_until)[:16],
            published_at=self.run_at,
            as_of=self.as_of,
            known_until=self.known_until,
            currency=self.config.currency,
            crm_spark_version=crm_spark.__version__,
            tables=self.pins,
        )


@cache
def code_version() -> str:
    """A hash of the package's code and of the engine's version: other code may make other rows."""
    digest = hashlib.sha256(pyspark.__version__.encode())
    for name, source in sorted(_python_files(resources.files("crm_spark"), "")):
        digest.update(name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()


def _python_files(folder: Traversable, prefix: str) -> list[tuple[str, Traversable]]:
    found: list[tuple[str, Traversable]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _python_files(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".py"):
            found.append((f"{prefix}{entry.name}", entry))
    return found
