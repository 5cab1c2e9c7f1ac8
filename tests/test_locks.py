"""One writer at a time: locks on a local disk, leases elsewhere, and writers that die, pause and wake."""

import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from deltalake import DeltaTable

from crm_spark.cli import main
from crm_spark.errors import LakeBusyError, LakeError
from crm_spark.lake import Lake
from crm_spark.locks import held_lease
from crm_spark.publications import PUBLICATIONS, Publication

pytestmark = pytest.mark.both_engines

PUBLICATION = Publication(
    publication_no=1,
    publication_id="a",
    published_at=datetime(2026, 10, 1, tzinfo=UTC),
    as_of=date(2026, 10, 1),
    known_until=datetime(2026, 10, 1, tzinfo=UTC),
    currency="EUR",
    crm_spark_version="1",
    tables={},
)
NEXT = replace(PUBLICATION, publication_no=2)
# A writer in a process of its own, until its input ends.
HOLD_LOCK = """
import sys
from pathlib import Path
from crm_spark.locks import file_lock
with file_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
HOLD_LEASE = """
import sys
from crm_spark.errors import CrmSparkError
from crm_spark.locks import held_lease
with held_lease(sys.argv[1], lease_seconds=float(sys.argv[2])) as lease:
    print("held", flush=True)
    sys.stdin.readline()
    try:
        lease.renew()
        print("renewed", flush=True)
    except CrmSparkError as error:
        print(error, flush=True)
    sys.stdin.read()
"""


class Writer:
    """A process that holds a lake."""

    def __init__(self, code: str, *arguments: object) -> None:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.line() == "held"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.line()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def leased(lake: Lake) -> Lake:
    """A lake that is held by a lease, as if it were on no local disk."""
    with lake.locked():
        lake.publish(PUBLICATION)
    lake.local_root = None
    return lake


def test_a_lake_that_another_process_writes_is_refused_and_free_again_when_that_dies(
    lake: Lake, tmp_path: Path
) -> None:
    with lake.locked():
        pass
    with Writer(HOLD_LOCK, tmp_path / "lake" / ".lock") as other:
        told = re.escape(f"found another process writing it (process {other.process.pid} on ")
        with pytest.raises(LakeBusyError, match=told), lake.locked():
            pytest.fail("the lock was given twice")
    with lake.locked():
        pass


def test_a_lock_is_given_back_after_an_error(lake: Lake) -> None:
    with pytest.raises(ZeroDivisionError), lake.locked():
        _ = 1 / 0
    with lake.locked():
        pass


def test_who_waits_gets_the_lock_when_it_is_free(lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "lake").mkdir()
    with Writer(HOLD_LOCK, tmp_path / "lake" / ".lock") as other:
        ending = subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {other.process.pid}"])
        with lake.locked(wait_seconds=60):
            assert other.process.wait() == -signal.SIGKILL
        ending.wait()


def test_a_second_run_leaves_with_a_code_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def busy() -> None:
        raise LakeBusyError("lake: found another process")

    monkeypatch.setattr("crm_spark.cli.app", busy)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3
    assert capsys.readouterr().err == "crm-spark: lake: found another process\n"


def test_a_lease_is_held_by_one_and_free_when_it_ends(leased: Lake) -> None:
    path = leased.path(PUBLICATIONS.name)
    with leased.locked():
        with pytest.raises(LakeBusyError, match="found another process writing it"), held_lease(path):
            pytest.fail("the lease was given twice")
        leased.publish(NEXT)
    with leased.locked():
        pass
    assert len(leased.publications()) == 2


def test_a_dead_writers_lease_is_taken_over_when_its_time_is_over(leased: Lake) -> None:
    path = leased.path(PUBLICATIONS.name)
    with Writer(HOLD_LEASE, path, 3) as other:
        other.process.kill()
        other.process.wait()
        with pytest.raises(LakeBusyError), held_lease(path):
            pytest.fail("nobody knows yet that it is dead")
        with leased.locked(wait_seconds=60):
            leased.publish(NEXT)
    assert len(leased.publications()) == 2


def test_a_writer_that_paused_cannot_publish_once_another_took_over(leased: Lake) -> None:
    path = leased.path(PUBLICATIONS.name)
    with Writer(HOLD_LEASE, path, 2) as other:
        other.process.send_signal(signal.SIGSTOP)
        with leased.locked(wait_seconds=60):
            other.process.send_signal(signal.SIGCONT)
            assert other.go_on().startswith("lake: found that another process took over while this one paused")
            leased.publish(NEXT)
    assert len(leased.publications()) == 2


def test_a_lease_is_renewed_as_long_as_its_writer_works(leased: Lake) -> None:
    path = leased.path(PUBLICATIONS.name)
    with Writer(HOLD_LEASE, path, 2):
        time.sleep(4)
        with pytest.raises(LakeBusyError), held_lease(path):
            pytest.fail("its holder is at work")


def test_of_two_commits_of_one_version_a_publication_is_the_one_or_fails(leased: Lake) -> None:
    path = leased.path(PUBLICATIONS.name)

    def commit_late() -> None:
        with lease.for_commit() as (table, properties):
            # Between its look and its commit, another commits: as one who takes over does.
            other = DeltaTable(path)
            other.create_write_transaction([], "append", other.schema())
            table.create_write_transaction([], "append", table.schema(), commit_properties=properties)

    with held_lease(path) as lease, pytest.raises(LakeError, match="another process took over"):
        commit_late()
