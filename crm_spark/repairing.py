"""Repair: a table whose log is damaged is made readable again as far as what is left of the log goes.

A Delta table is its log: commits, one a version, and checkpoints, which hold what all commits up to theirs came to.
So a checkpoint that cannot be read is not missed where all commits stand, nor an old commit that a checkpoint covers.
Nothing is deleted: what cannot be used is moved to a folder in the table that no engine reads.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from pyarrow import fs

from crm_spark.errors import LakeError
from crm_spark.failpoints import step
from crm_spark.lake import Lake
from crm_spark.publications import PUBLICATIONS

ASIDE = "_crm_spark_repair"
_COMMIT = re.compile(r"(\d{20})\.json")
_CHECKSUM = re.compile(r"(\d{20})\.crc")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint(?:\.\d{10}\.(\d{10}))?\.parquet")
_LAST_CHECKPOINT = "_last_checkpoint"


@dataclass(frozen=True)
class Log:
    """The versions of a table's commits and of its checkpoints (with their files), those that can be read and not."""

    commits: Set[int]
    torn_commits: Set[int]
    checkpoints: Mapping[int, Sequence[str]]
    torn_checkpoints: Mapping[int, Sequence[str]]
    # Spark notes in files beside the commits what each version holds; delta-rs opens no table with one too many.
    stale_checksums: Set[str] = frozenset()

    def can_be_read(self, version: int) -> bool:
        """Spark asks for the version's own commit also where a checkpoint covers it."""
        start = max((checkpoint for checkpoint in self.checkpoints if checkpoint <= version), default=-1)
        return version in self.commits and self.commits >= set(range(start + 1, version + 1))

    @property
    def newest(self) -> int | None:
        return max(filter(self.can_be_read, self.commits), default=None)


def repair(lake: Lake, name: str, say: Callable[[str], None], wait_seconds: float = 0) -> None:
    """Put aside what of a table's log cannot be read, and tell what was found, what is lost, and what to do next.

    Publications that show a version that is lost are withdrawn, and the newest of the others is published again.
    Another process that writes is waited for, up to `wait_seconds`.

    Raises:
        LakeError: if there is no such table, if nothing of it can be saved, or if another process is still writing.
    """
    _open_log(lake, name)  # a mistyped lake shall not be made
    with _held(lake, name, wait_seconds):
        folder = _open_log(lake, name)
        log = folder.read()
        newest = log.newest
        if newest is None:
            raise LakeError(
                f"{name}: found neither all commits from the first on nor a checkpoint that can be read, so nothing of "
                f"it can be saved; restore {lake.path(name)} from a backup, or make another lake from the source files"
            )
        # First: whoever kills this in between shall find no publication that shows what other rows may replace.
        withdrawn = _withdraw_unreadable(lake, name, log, say) if name != PUBLICATIONS.name else 0
        found = _put_aside(lake, folder, log, newest, say)
        seen = {*log.commits, *log.torn_commits, *log.checkpoints, *log.torn_checkpoints}
        lost = sorted(version for version in seen if version > newest)
        if lost:
            say(f"{name}: lost: versions {_listed(lost)}; version {newest} is the newest")
        if _version_read(lake.path(name)) != newest:
            raise LakeError(
                f"{name}: what is left of its log cannot be read up to version {newest}; restore {lake.path(name)} "
                "from a backup, or make another lake from the source files"
            )
    if not found and not withdrawn:
        say(f"{name}: its log is whole up to version {newest}; nothing was changed")
    elif lost or withdrawn:
        if name == PUBLICATIONS.name:
            say(f"{name}: {_last_publication(lake)}")
        if withdrawn or name == PUBLICATIONS.name:
            say(f"{name}: of publications that are gone, drop the schemas that crm-spark views --schema made")
        say(f"{name}: next: run crm-spark refresh, which makes what is missing from the landed files")
    else:
        say(f"{name}: no version is lost")


def read_log(lake: Lake, name: str) -> Log:
    """What of a table's log can be read; nothing if there is none."""
    return _LogFolder(lake, name).read()


def _open_log(lake: Lake, name: str) -> "_LogFolder":
    folder = _LogFolder(lake, name)
    if not folder.log_names:
        raise LakeError(f"{name}: found no log at {lake.path(name)}, expected a table of this lake")
    return folder


def _held(lake: Lake, name: str, wait_seconds: float) -> AbstractContextManager[None]:
    """The lake held for writing, but where the lease would be noted in the very table whose log is damaged."""
    if name == PUBLICATIONS.name and lake.local_root is None and not _is_readable(lake, name):
        return nullcontext()
    return lake.locked(wait_seconds)


def _is_readable(lake: Lake, name: str) -> bool:
    return _version_read(lake.path(name)) is not None and not read_log(lake, name).torn_commits


class _LogFolder:
    """The files of one table's log."""

    def __init__(self, lake: Lake, name: str) -> None:
        self.name = name
        self._file_system, self._root = fs.FileSystem.from_uri(lake.path(name))
        infos = self._file_system.get_file_info(fs.FileSelector(f"{self._root}/_delta_log", allow_not_found=True))
        self.log_names = {info.base_name for info in infos if info.type == fs.FileType.File}

    def read(self) -> Log:
        commits = {int(match[1]) for log_name in self.log_names if (match := _COMMIT.fullmatch(log_name))}
        torn_commits = {version for version in commits if not self._is_whole_json(f"{version:020}.json")}
        parts: dict[int, list[str]] = {}
        for log_name in sorted(self.log_names):
            if match := _CHECKPOINT.fullmatch(log_name):
                parts.setdefault(int(match[1]), []).append(log_name)
        whole = {version: names for version, names in parts.items() if self._is_whole_checkpoint(names)}
        torn = {version: names for version, names in parts.items() if version not in whole}
        log = Log(commits - torn_commits, torn_commits, whole, torn)
        checksums = {log_name: int(match[1]) for log_name in self.log_names if (match := _CHECKSUM.fullmatch(log_name))}
        stale = {
            log_name
            for log_name, version in checksums.items()
            if not log.can_be_read(version) or not self._is_whole_json(log_name)
        }
        return replace(log, stale_checksums=stale)

    def last_checkpoint(self) -> int | None:
        """The version that the pointer to the last checkpoint names, if it can be read."""
        try:
            return int(json.loads(self._read(_LAST_CHECKPOINT))["version"])
        except (ValueError, KeyError, TypeError):
            return None

    def put_aside(self, log_name: str) -> None:
        """Move a file of the log away, with the checksum that Spark wrote beside it on a local disk."""
        aside = f"{self._root}/{ASIDE}"
        self._file_system.create_dir(aside)
        for each in {log_name, f".{log_name}.crc"} & self.log_names:
            target = f"{aside}/{each}"
            while self._file_system.get_file_info(target).type != fs.FileType.NotFound:  # of an earlier repair
                target += "~"
            self._file_system.move(f"{self._root}/_delta_log/{each}", target)

    def _read(self, log_name: str) -> bytes:
        with self._file_system.open_input_stream(f"{self._root}/_delta_log/{log_name}") as stream:
            return bytes(stream.read())

    def _is_whole_json(self, log_name: str) -> bool:
        try:
            actions = [json.loads(line) for line in self._read(log_name).splitlines() if line.strip()]
        except ValueError:
            return False
        return bool(actions) and all(isinstance(action, dict) for action in actions)

    def _is_whole_checkpoint(self, names: Sequence[str]) -> bool:
        part_counts = {int(match[2] or 1) for match in map(_CHECKPOINT.fullmatch, names) if match}
        if part_counts != {len(names)}:
            return False
        parts = [self._read(log_name) for log_name in names]  # a fault of the disk is none of the file
        try:
            for part in parts:
                pq.read_table(pa.BufferReader(part))
        except (pa.ArrowException, OSError):
            return False
        return True


def _put_aside(lake: Lake, folder: _LogFolder, log: Log, newest: int, say: Callable[[str], None]) -> bool:
    """Move away what cannot be used; whether there was any."""
    told: dict[str, Sequence[str]] = {}
    for version, names in sorted(log.torn_checkpoints.items()):
        told[f"the checkpoint of version {version} cannot be read or lacks a part"] = names
    kept = {version for version in log.checkpoints if version <= newest}
    for version in sorted(log.checkpoints.keys() - kept):
        told[f"the checkpoint of version {version} stands there without its commit"] = log.checkpoints[version]
    if _LAST_CHECKPOINT in folder.log_names and folder.last_checkpoint() not in kept:
        told["the pointer to the last checkpoint leads to none that can be read"] = [_LAST_CHECKPOINT]
    for version in sorted(log.torn_commits):
        told[f"the commit of version {version} is cut off or empty"] = [f"{version:020}.json"]
    stranded = sorted(version for version in log.commits if not log.can_be_read(version))
    if stranded:
        what = (
            f"the commits of versions {_listed(stranded)} stand after one that is missing, with no checkpoint between"
        )
        told[what] = [f"{version:020}.json" for version in stranded]
    if log.stale_checksums:
        told["checksums stand there without their commits, or cannot be read"] = sorted(log.stale_checksums)
    for what, names in told.items():
        for log_name in names:
            with step(f"putting aside of {folder.name}/{log_name}"):
                lake.require_lease()  # lost, another may have made this version since
                folder.put_aside(log_name)
        say(f"{folder.name}: found: {what}; put aside in {folder.name}/{ASIDE}: {', '.join(names)}")
    return bool(told)


def _withdraw_unreadable(lake: Lake, name: str, log: Log, say: Callable[[str], None]) -> int:
    """Withdraw publications that show a version which is lost: its number will be that of other rows. How many."""
    publications = lake.publications()
    broken = [
        publication
        for publication in publications
        if name in publication.tables and not log.can_be_read(publication.tables[name].version)
    ]
    if not broken:
        return 0
    whole = [publication for publication in publications if publication not in broken]
    newest = publications[-1]
    if whole and newest in broken:
        # Under the next number: none is given twice.
        lake.publish(replace(whole[-1], publication_no=newest.publication_no + 1))
    lake.withdraw(broken)
    numbers = _listed([publication.publication_no for publication in broken])
    say(f"{name}: publications {numbers} show versions that are lost; they are withdrawn")
    if whole and newest in broken:
        say(f"{name}: publication {whole[-1].publication_no} is published again, as {newest.publication_no + 1}")
    elif not whole:
        say(f"{name}: no publication is left")
    return len(broken)


def _last_publication(lake: Lake) -> str:
    publications = lake.publications()
    return f"publication {publications[-1].publication_no} is the newest left" if publications else "none is left"


def _version_read(path: str) -> int | None:
    """The newest version of a table as readers find it, if they can read it."""
    try:
        return DeltaTable(path).version()
    except DeltaError:
        return None


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
