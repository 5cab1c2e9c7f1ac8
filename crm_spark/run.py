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
from crm_spark.lake import SMALL_COUNT, Lake, content_fingerprint
from crm_spark.progress import StageProgress
from crm_spark.publications import Pin, Publication
from crm_spark.tables import Table, declared_rows

_UPDATES_AT_ONCE = 3

# The layers that make tables, each from those before it.
LAYERS = ("sources", "cleaning", "facts", "features", "models", "marts")
# Root modules that change no row of a table.
_WITHOUT_TABLES = frozenset(
    f"{module}.py"
    for module in (
        *("cli", "doctor", "endings", "failpoints", "locks", "maintenance", "printing", "progress", "publications"),
        *("refresh", "repairing", "replay", "verifying"),
    )
)


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
    # By which rules clean rows are made, for each entity with sources: other rules make all that follows anew.
    rules: Mapping[str, object] = field(default_factory=dict)
    # Up to when rows counted as known at each cut-off that has features already.
    slices: Mapping[date, datetime] = field(default_factory=dict)
    # Further days to make features for, and up to when rows shall count as known at `as_of`, if one was told.
    backfill: Sequence[date] = ()
    known_as_of: datetime | None = None
    # The layer whose tables are being made, and those that are made anew though nothing changed.
    layer: str = LAYERS[0]
    rebuilt: Set[str] = frozenset()
    progress: StageProgress | None = None
    # Whether it goes on though a required source has no rows of the last day.
    allow_stale: bool = False
    # Whether something came that the features of `as_of` do not tell, as they stay as they were made.
    is_behind: bool = False
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

    def grow(
        self,
        table: Table,
        build: Callable[[Pin | None], DataFrame],
        change: Callable[[Pin, Mapping[str, Pin]], tuple[DataFrame, DataFrame | None]],
        reads: Sequence[Table],
        given: object = None,
        *,
        is_ledger: bool = False,
        ledgers: Sequence[Table] = (),
    ) -> None:
        """Make a table current by what changed: `update` for tables that would cost too much to make anew.

        `change` gets the version before and those of `reads` that it was made from, and gives the rows to add or to
        replace, and those whose keys go (see `Lake.change`). Where other rules made that version, `build` makes all;
        so it does, given that version, where rows are few, as that is sooner done, but for a ledger, which knows more
        than its inputs; and where one of the `ledgers` that it was made from was made anew.
        """
        fingerprint = self.fingerprint(table, reads, given)
        beside = [self.pins[read.name] for read in reads if read.name not in self.absent]

        def write() -> Pin:
            def is_made_so(noted: Pin, pins: Mapping[str, Pin]) -> bool:
                same_inputs = pins.keys() == {pin.name for pin in beside}
                return same_inputs and noted.fingerprint == self.fingerprint(table, reads, given, pins)

            base, before = self.base(table, is_made_so, ledgers)
            if base is None or (base.row_count < SMALL_COUNT and not is_ledger):
                return self.lake.write(table, build(base), fingerprint, beside)
            rows, removed = change(base, before)
            return self.lake.change(table, base, rows, removed, fingerprint, beside)

        self.make(table, fingerprint, write)

    def base(
        self, table: Table, is_made_so: Callable[[Pin, Mapping[str, Pin]], bool], ledgers: Sequence[Table]
    ) -> tuple[Pin | None, Mapping[str, Pin]]:
        """The newest version to which changes can be added, and the versions beside it.

        None if there is none, if it and those beside it were not made as today, or if one of the `ledgers` did not
        just grow since.
        """
        noted = None if self.layer in self.rebuilt else self.lake.newest(table)
        if noted is None:
            return None, {}
        beside = self.lake.pins_beside(table)
        if not is_made_so(noted, beside) or not all(
            ledger.name in beside and self.lake.only_grew(beside[ledger.name], self.pins[ledger.name])
            for ledger in ledgers
        ):
            return None, {}
        published = self.previous.tables.get(table.name) if self.previous else None
        is_published = published is not None and published.version == noted.version
        return (published if is_published else self.lake.find(table)), beside

    def make(self, table: Table, fingerprint: str, write: Callable[[], Pin]) -> None:
        """Make a table current: take the version with this fingerprint, or let `write` make it."""
        if self.progress:
            self.progress.begin(table.name)
        pin = None if self.layer in self.rebuilt else self._up_to_date(table, fingerprint)
        changed = pin is None
        if pin is None:
            if not self.may_build:
                raise LakeError(f"{table.name}: found no version for these inputs; run a whole refresh first")
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
            raise LakeError(f"{table.name}: found no version; run a whole refresh first")
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

    def fingerprint(
        self, table: Table, reads: Sequence[Table], given: object, pins: Mapping[str, Pin] | None = None
    ) -> str:
        """What a table is made from: code, declaration, inputs (those of this run, if no others are named), values."""
        pins = self.pins if pins is None else pins
        inputs = {read.name: pins[read.name].content_hash for read in reads if read.name not in self.absent}
        return content_fingerprint(code_version(self.layer), table.declaration_hash, inputs, given)

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
def code_version(layer: str) -> str:
    """A hash of the code that makes a layer's tables and those before it, and of the engine's version."""
    digest = hashlib.sha256(pyspark.__version__.encode())
    for name, source in sorted(_python_files(resources.files("crm_spark"), "")):
        if not _is_of_later(name, layer):
            digest.update(name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()


def _is_of_later(name: str, layer: str) -> bool:
    """Whether a file belongs to a later layer, or to what makes no tables."""
    folder, _, rest = name.rpartition("/")
    owner = rest.removesuffix(".py") if folder == "stages" else folder.split("/")[0]
    if not folder:
        return rest in _WITHOUT_TABLES
    return owner not in LAYERS[: LAYERS.index(layer) + 1]


def _python_files(folder: Traversable, prefix: str) -> list[tuple[str, Traversable]]:
    found: list[tuple[str, Traversable]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _python_files(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".py"):
            found.append((f"{prefix}{entry.name}", entry))
    return found
