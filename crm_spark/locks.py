"""One writer at a time: a lock of the operating system on a local disk, elsewhere a lease that is noted in the lake.

A lease rests on what Delta itself rests on: of two commits of one version, the storage takes one. It is a commit of the
table `publications` with an epoch, who holds it, and until when. To take it over is a commit, too, of the next epoch;
so the one who held it before, once it wakes, finds its epoch gone and can publish no more, however late it is; before
and after each commit of another table it looks, too. Clocks of the machines may differ, by much less than a lease
lasts. This was tried on local disks alone: on an object store it holds if delta-rs commits by conditional puts there,
which it does on S3, GCS and Azure by its documentation.
"""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError

from crm_spark.commits import note_of
from crm_spark.errors import LakeBusyError, LakeError

_LEASE_SECONDS = 15 * 60
_POLL_SECONDS = 1.0


@contextmanager
def file_lock(path: Path, wait_seconds: float = 0) -> Iterator[None]:
    """Hold a lock that the operating system lets go of when the process dies.

    Raises:
        LakeBusyError: if another process holds it, and still does after `wait_seconds`.
        LakeError: if this user may not write the file.
    """
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    except PermissionError:
        raise LakeError(
            f"lake: found that this user may not write {path}, expected the user who made the lake; run as that one, "
            "or let this one write the lake's folder and all in it"
        ) from None
    try:
        for may_wait in _tries(wait_seconds):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not may_wait:
                    raise _busy(path.read_text()) from None
        os.truncate(descriptor, 0)
        os.write(descriptor, _own_name().encode())
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class _Noted:
    """What a commit says of the lease. `expires_at` is in seconds since 1970."""

    epoch: int
    owner: str
    expires_at: float


class Lease:
    """The right to write a lake, held by this process until another takes it over."""

    def __init__(self, publications: str, noted: _Noted, seconds: float) -> None:
        self._path, self._noted, self._seconds = publications, noted, seconds
        self._is_lost = False
        # Renewals and publications are commits of one table by two threads.
        self._one_commit = threading.Lock()

    @contextmanager
    def for_commit(self) -> Iterator[tuple[DeltaTable, CommitProperties]]:
        """The table of publications with how to commit its very next version, which fails if the lease is lost by then.

        Raises:
            LakeBusyError: if the lease is lost.
        """
        with self._one_commit:
            table = DeltaTable(self._path)
            noted = _newest(table)
            if noted is None or noted.epoch != self._noted.epoch:
                raise self._lost()
            lasting = self._lasting(self._seconds)
            try:
                yield table, _properties(lasting)
            except CommitFailedError:
                raise self._lost() from None
            self._noted = lasting

    def renew(self) -> None:
        """Hold it from now on for its time."""
        with self.for_commit() as (table, properties):
            _commit(table, properties)

    def require(self) -> None:
        """Go on only if it is held: the storage is asked if it has not been renewed for half of its time.

        Raises:
            LakeBusyError: if the lease is lost.
        """
        if self._is_lost:
            raise self._lost()
        if time.time() > self._noted.expires_at - self._seconds / 2:
            self.renew()

    def release(self) -> None:
        """Let others take it without waiting; not if it is lost. If that fails, it ends by itself."""
        with self._one_commit, suppress(DeltaError, OSError):
            table = DeltaTable(self._path)
            noted = _newest(table)
            if noted is not None and noted.epoch == self._noted.epoch:
                _commit(table, _properties(self._lasting(0)))

    def _lasting(self, seconds: float) -> _Noted:
        return replace(self._noted, expires_at=time.time() + seconds)

    def _lost(self) -> LakeBusyError:
        self._is_lost = True
        return LakeBusyError(
            "lake: found that another process took over while this one paused, expected to be the only writer; run "
            "again when the other has ended"
        )


@contextmanager
def held_lease(publications: str, wait_seconds: float = 0, lease_seconds: float = _LEASE_SECONDS) -> Iterator[Lease]:
    """Hold the lease that the table of publications notes, and renew it until the end.

    Raises:
        LakeBusyError: if another process holds it, and still does after `wait_seconds`.
    """
    lease = _take(publications, wait_seconds, lease_seconds)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(lease_seconds / 3):
            # If it is lost, the next commit will say so; what else fails may succeed the next time.
            with suppress(LakeBusyError, DeltaError, OSError):
                lease.renew()

    renewals = threading.Thread(target=renew, daemon=True)
    renewals.start()
    try:
        yield lease
    finally:
        ended.set()
        renewals.join()
        lease.release()


def written_by_two(name: str) -> LakeBusyError:
    """Another process committed to a table between two looks of this one."""
    return LakeBusyError(
        f"{name}: found that another process wrote it at the same time, expected to be the only writer; run again when "
        "the other has ended"
    )


def _take(publications: str, wait_seconds: float, lease_seconds: float) -> Lease:
    holder = ""
    for may_wait in _tries(wait_seconds):
        table = DeltaTable(publications)
        noted = _newest(table)
        if noted is None or noted.expires_at <= time.time():
            own = _Noted(noted.epoch + 1 if noted else 1, _own_name(), time.time() + lease_seconds)
            try:
                _commit(table, _properties(own))
            except CommitFailedError:
                continue  # another was quicker
            else:
                return Lease(publications, own, lease_seconds)
        holder = f"{noted.owner}, until {datetime.fromtimestamp(noted.expires_at, UTC):%Y-%m-%d %H:%M} UTC"
        if not may_wait:
            break
    raise _busy(holder)


def _tries(wait_seconds: float) -> Iterator[bool]:
    """Whether there will be another try, once a second until the time is over."""
    end = time.monotonic() + wait_seconds
    while (left := end - time.monotonic()) > 0:
        yield True
        time.sleep(min(_POLL_SECONDS, left))
    yield False


def _newest(table: DeltaTable) -> _Noted | None:
    # Nearly always the last commit says it; to read all takes longer each night.
    for limit in (4, None):
        for commit in table.history(limit):
            noted = note_of(commit).get("lease")
            if noted is not None:
                return _Noted(**noted)
    return None


def _properties(noted: _Noted) -> CommitProperties:
    note: Mapping[str, object] = {"lease": asdict(noted)}
    return CommitProperties(custom_metadata={"userMetadata": json.dumps(note)}, max_commit_retries=0)


def _commit(table: DeltaTable, properties: CommitProperties) -> None:
    table.create_write_transaction([], "append", table.schema(), commit_properties=properties)


def _own_name() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _busy(holder: str) -> LakeBusyError:
    who = f" ({holder})" if holder else ""
    return LakeBusyError(f"lake: found another process writing it{who}; wait for it with --wait MINUTES, or run again")
