"""Maintenance: publications expire, small files are put together, and files go that nothing needs any more.

What stays readable are the versions that kept publications pin, the newest version that a run wrote of each table, and
what the next run compares with: the versions that these newest ones note beside them. All else of a table goes.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError
from pyarrow import fs

from crm_spark.commits import changing_spans, is_made_of, last_with_rows_of, newest_noted, note_of
from crm_spark.delta import KEPT_FOREVER
from crm_spark.errors import LakeError, raise_fault_of_machine
from crm_spark.failpoints import step
from crm_spark.lake import Lake
from crm_spark.locks import written_by_two
from crm_spark.publications import PUBLICATIONS, Pin, Publication
from crm_spark.tables import content_of

# So many files so small are put together, into some of about the size that follows.
_MANY_FILES = 16
_SMALL_BYTES = 16 << 20
_FILE_BYTES = 128 << 20
# For so long a file stays after it was written, or taken out of its table: someone may be reading it.
_GRACE_HOURS = 24


def maintain(
    lake: Lake,
    at: datetime,
    keep_days: int,
    say: Callable[[str], None],
    *,
    dry_run: bool = False,
    wait_seconds: float = 0,
) -> None:
    """Withdraw publications older than some days, but never the newest, and make their tables small and quick to read.

    No row of a publication that is kept changes, and the next refresh goes on from where the last one ended. A reader
    of a withdrawn publication may fail from then on. With `dry_run`, it is told what would be done. Who else
    writes the lake is waited for, up to `wait_seconds`.

    Raises:
        LakeError: if another process is still writing then, or a table cannot be read.
    """
    with lake.locked(wait_seconds):
        kept = _withdraw(lake, at - timedelta(days=keep_days), say, dry_run=dry_run)
        needed = _needed_versions(lake, kept)
        _protect(lake, needed, say, dry_run=dry_run)
        # First: on a full disk, nothing could be put together before.
        _vacuum(lake, needed, say, dry_run=dry_run)
        _compact(lake, needed, say, dry_run=dry_run)


def table_names(lake: Lake) -> list[str]:
    """The Delta tables that stand in a lake, by name."""
    file_system, root = fs.FileSystem.from_uri(lake.uri)
    folders = file_system.get_file_info(fs.FileSelector(root, allow_not_found=True))
    names = (info.base_name for info in folders if info.type == fs.FileType.Directory)
    return sorted(name for name in names if DeltaTable.is_deltatable(lake.path(name)))


def _withdraw(lake: Lake, before: datetime, say: Callable[[str], None], *, dry_run: bool) -> list[Publication]:
    """Take back what was published before an instant, in one commit; what is kept.

    The newest stays, and with it the number from which the next is counted.
    """
    publications = lake.publications()
    kept = [each for each in publications[:-1] if each.published_at >= before] + publications[-1:]
    expired = [each for each in publications if each not in kept]
    if not dry_run:
        lake.withdraw(expired)
    say(f"publications: {len(expired)} published before {before:%Y-%m-%d %H:%M} UTC withdrawn, {len(kept)} kept")
    return kept


def _needed_versions(lake: Lake, kept: Iterable[Publication]) -> dict[str, set[int]]:
    """Which versions of each table must stay readable; tables that no run wrote are not among them."""
    noted = {name: commit for name in table_names(lake) if (commit := newest_noted(lake.path(name)))}
    needed: dict[str, set[int]] = {name: {commit["version"]} for name, commit in noted.items()}
    for pin in (pin for publication in kept for pin in publication.tables.values()):
        if pin.name not in needed:
            raise LakeError(
                f"{pin.name}: found no table that a run wrote, expected version {pin.version}, which a publication "
                "shows; nothing was cleared away; crm-spark verify tells what else is missing"
            )
        needed[pin.name].add(pin.version)
    for beside in (Pin(**pin) for commit in noted.values() for pin in note_of(commit).get("beside", ())):
        path = lake.path(beside.name)
        if is_made_of(path, beside.version, beside.fingerprint):
            spans = changing_spans(path, beside.version, noted[beside.name]["version"])
            needed[beside.name].update(version for span in spans for version in span)
    return needed | ({PUBLICATIONS.name: set()} if lake.publications() else {})


def _protect(lake: Lake, names: Iterable[str], say: Callable[[str], None], *, dry_run: bool) -> None:
    """Tables of an earlier version of the program let any engine clear away what a publication shows."""
    lacking = [
        name
        for name in names
        if not KEPT_FOREVER.items() <= DeltaTable(lake.path(name)).metadata().configuration.items()
    ]
    for name in [] if dry_run else lacking:
        with _same_rows(lake, name) as (stored, properties):
            stored.alter.set_table_properties(dict(KEPT_FOREVER), commit_properties=properties)
    if lacking:
        say(f"retention: {len(lacking)} tables keep what publications show, whatever engine writes them")


def _compact(lake: Lake, names: Iterable[str], say: Callable[[str], None], *, dry_run: bool) -> None:
    done = []
    for name in names:
        stored = DeltaTable(lake.path(name))
        small_count = sum(size < _SMALL_BYTES for size in stored.get_add_actions()["size_bytes"].to_pylist())
        if small_count < _MANY_FILES or stored.protocol().min_reader_version > 1:
            continue
        if name != PUBLICATIONS.name and _standing_note(lake.path(name)) is None:
            say(f"compacting: not {name}, whose newest version no run completed; the next that writes it mends that")
            continue
        came = small_count if dry_run else _put_together(lake, name)
        done.append(f"{name} ({small_count} small files{'' if dry_run else f' into {came}'})")
    say(f"compacting: {', '.join(done) or 'no table has many small files'}")


def _put_together(lake: Lake, name: str) -> int:
    """Write the rows of small files into fewer, in the order in which they stand; how many these are.

    Raises:
        LakeError: if the rows are others afterwards; they are then as before.
    """
    with step(f"compaction of {name}"), _same_rows(lake, name) as (stored, properties):
        before = stored.version()
        metrics = stored.optimize.compact(target_size=_FILE_BYTES, commit_properties=properties)
    contents = [content_of(lake.read(Pin(name, version, "", "", 0))) for version in (before, stored.version())]
    if contents[0] != contents[1]:
        with _same_rows(lake, name) as (stored, properties):
            stored.restore(before, commit_properties=properties)
        raise LakeError(f"{name}: found other rows after its files were put together, expected the same; taken back")
    return int(metrics["numFilesAdded"])


def _vacuum(lake: Lake, needed: Mapping[str, set[int]], say: Callable[[str], None], *, dry_run: bool) -> None:
    gone: list[int] = []
    tables = 0
    for name, versions in needed.items():
        sizes = _clear(lake, name, versions, dry_run=dry_run)
        gone += sizes
        tables += bool(sizes)
    say(f"clearing: {len(gone)} files of {tables} tables removed, {sum(gone) / 1e6:.1f} MB")


def _clear(lake: Lake, name: str, versions: Set[int], *, dry_run: bool) -> list[int]:
    """Remove the files of a table that none of its versions needs; their sizes in bytes.

    Raises:
        LakeError: if one of the versions cannot be read; nothing is removed then.
    """
    stored = DeltaTable(lake.path(name))
    file_system, folder = fs.FileSystem.from_uri(lake.path(name))
    sizes = {info.base_name: info.size for info in file_system.get_file_info(fs.FileSelector(folder))}
    keep = sorted(versions | {stored.version()})
    how: dict[str, Any] = {
        "retention_hours": _GRACE_HOURS,
        "enforce_retention_duration": False,  # the table's own is for those who do not know what is needed
        "full": True,  # also what a killed run wrote and no commit names
        "keep_versions": keep,
    }
    try:
        # It lists again what went long ago.
        doomed = [file for file in stored.vacuum(dry_run=True, **how) if file in sizes]
        if doomed and not dry_run:
            # It makes two commits, before and after.
            with step(f"clearing of {name}"), _same_rows(lake, name, commits=2) as (stored, properties):
                stored.vacuum(dry_run=False, commit_properties=properties, **how)
    except DeltaError as error:
        raise_fault_of_machine(error)
        raise LakeError(
            f"{name}: cannot read one of the versions {keep}, which must stay ({type(error).__name__}); nothing of it "
            "was cleared away; crm-spark verify tells more"
        ) from None
    if lake.local_root is not None and not dry_run:
        _remove_lone_checksums(Path(lake.path(name)))
    return [sizes[file] for file in doomed]


def _remove_lone_checksums(folder: Path) -> None:
    """Spark writes one beside each file on a local disk; who removes the file does not know of it."""
    for checksum in folder.glob(".*.parquet.crc"):
        if not checksum.with_name(checksum.name[1 : -len(".crc")]).exists():
            checksum.unlink()


def _standing_note(path: str) -> str | None:
    """The note of the run whose rows a table holds now; None if someone changed them since."""
    noted = newest_noted(path)
    if noted is None or last_with_rows_of(path, noted["version"]) != DeltaTable(path).version():
        return None
    return str(noted["userMetadata"])


@contextmanager
def _same_rows(lake: Lake, name: str, commits: int = 1) -> Iterator[tuple[DeltaTable, CommitProperties]]:
    """A table, with how to commit its very next versions if they hold the same rows.

    They bear the note of the one before, so the last counts as the one that the run wrote.

    Raises:
        LakeBusyError: if another process took over the lake while this one paused, or commits to the table.
    """
    if name == PUBLICATIONS.name:
        with lake.next_publications() as table_and_properties:
            yield table_and_properties
        return
    lake.require_lease()
    stored, note = DeltaTable(lake.path(name)), _standing_note(lake.path(name))
    if note is not None:
        note = json.dumps(json.loads(note) | {"meant_version": stored.version() + commits})
    try:
        yield stored, CommitProperties({"userMetadata": note} if note else None, max_commit_retries=0)
    except CommitFailedError:
        lake.require_lease()
        raise written_by_two(name) from None
    lake.require_lease()
