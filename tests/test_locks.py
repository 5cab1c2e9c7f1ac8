"""One writer at a time: locks on a local disk, leases elsewhere, and writers that die, pause and wake."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from builders import rows_of
from deltalake import DeltaTable
from pyspark.sql import SparkSession
from test_lake import PEOPLE, a_person

import crm_spark.lake
import crm_spark.maintenance
from crm_spark.cli import main
from crm_spark.errors import LakeBusyError, LakeError
from crm_spark.lake import Lake
from crm_spark.locks import Lease, _commit, _properties, _take, held_lease
from crm_spark.maintenance import maintain
from crm_spark.publications import PUBLICATIONS, Pin, Publication, roll_back
from crm_spark.repairing import _LogFolder, repair
from crm_spark.session import is_sail

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


def test_a_lock_that_this_user_may_not_write_is_told_in_one_line(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("crm_spark.locks.os.open", refuse)
    with pytest.raises(LakeError, match=r"^lake: found that this user may not write .*\.lock"), lake.locked():
        pytest.fail("it could not be held")


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


def fall_asleep(lake: Lake) -> Lease:
    """Let a process pause for longer than its lease lasts, and another take over; the other's lease."""
    mine = lake._lease
    assert mine is not None
    mine._noted = replace(mine._noted, expires_at=0)
    with mine._one_commit:  # and nothing renews it meanwhile
        table = DeltaTable(lake.path(PUBLICATIONS.name))
        _commit(table, _properties(mine._noted))
        return _take(lake.path(PUBLICATIONS.name), 0, 900)


def within_the_next_save(lake: Lake, monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Something happens after a writer looked at a table, and before it commits."""
    save = lake._storage.save

    def late(*arguments: Any) -> None:
        monkeypatch.undo()
        happens()
        save(*arguments)

    monkeypatch.setattr(lake._storage, "save", late)


def ids_in(lake: Lake, pin: Pin) -> list[str]:
    return sorted(row["person_id"] for row in lake.read(pin).collect())


def test_who_lost_the_lease_writes_no_table(spark: SparkSession, leased: Lake) -> None:
    with leased.locked():
        fall_asleep(leased)
        for _ in range(2):
            with pytest.raises(LakeBusyError, match="another process took over while this one paused"):
                leased.write(PEOPLE, rows_of(spark, PEOPLE, a_person()), "f1")
    assert not DeltaTable.is_deltatable(leased.path(PEOPLE.name))


def test_who_loses_the_lease_in_the_midst_of_a_commit_stops_after_it(
    spark: SparkSession, leased: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    with leased.locked():
        base = leased.write(PEOPLE, rows_of(spark, PEOPLE, a_person(1)), "f1")
        within_the_next_save(leased, monkeypatch, lambda: fall_asleep(leased))
        with pytest.raises(LakeBusyError, match="another process took over while this one paused"):
            leased.write(PEOPLE, rows_of(spark, PEOPLE, a_person(2)), "f2")
        with pytest.raises(LakeBusyError, match="another process took over while this one paused"):
            leased.publish(NEXT)
    assert ids_in(leased, base) == ["p1"]
    assert len(leased.publications()) == 1


def test_rows_that_were_added_behind_those_of_another_writer_are_no_version_of_anybody(
    spark: SparkSession, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crm_spark.lake, "SMALL_COUNT", 0)
    base = lake.write(PEOPLE, rows_of(spark, PEOPLE, a_person(1)), "f1")
    with monkeypatch.context() as patch:

        def write_as_another() -> None:
            patch.setattr(crm_spark.lake, "SMALL_COUNT", 0)
            others.append(Lake(spark, lake.uri).change(PEOPLE, base, rows_of(spark, PEOPLE, a_person(2)), None, "f2"))

        others: list[Pin] = []
        within_the_next_save(lake, patch, write_as_another)
        with pytest.raises(LakeBusyError, match=r"^people: found that another process wrote it at the same time"):
            lake.change(PEOPLE, base, rows_of(spark, PEOPLE, a_person(3)), None, "f3")
    assert DeltaTable(lake.path(PEOPLE.name)).version() == others[0].version + 1
    assert lake.newest(PEOPLE) == replace(others[0], content_hash="", row_count=0)
    assert lake.find(PEOPLE, "f3") is None
    again = lake.change(PEOPLE, others[0], rows_of(spark, PEOPLE, a_person(3)), None, "f3")
    assert ids_in(lake, again) == ["p1", "p2", "p3"]
    assert lake.find(PEOPLE, "f3") == again


def test_a_table_whose_first_rows_came_behind_another_writers_commit_is_made_anew(
    spark: SparkSession, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commit_as_another() -> None:
        stored = DeltaTable(lake.path(PEOPLE.name))
        stored.create_write_transaction([], "append", stored.schema())

    within_the_next_save(lake, monkeypatch, commit_as_another)
    with pytest.raises(LakeBusyError, match=r"^people: found that another process wrote it at the same time"):
        lake.write(PEOPLE, rows_of(spark, PEOPLE, a_person(1)), "f1")
    assert lake.newest(PEOPLE) is None
    again = lake.write(PEOPLE, rows_of(spark, PEOPLE, a_person(2)), "f1")
    assert ids_in(lake, again) == ["p2"]
    assert lake.find(PEOPLE, "f1") == again


def test_a_commit_in_whose_way_another_stands_is_told_as_that_of_two_writers(spark: SparkSession, lake: Lake) -> None:
    if is_sail(spark):
        pytest.skip("there, rows are not made while a commit is under way")
    pin = lake.write(PEOPLE, rows_of(spark, PEOPLE, a_person(1)), "f1")
    path = lake.path(PEOPLE.name)

    def delete_meanwhile(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        DeltaTable(path).delete()
        yield from batches

    rows = rows_of(spark, PEOPLE, a_person(2)).coalesce(1)
    with pytest.raises(LakeBusyError, match=r"^people: found that another process wrote it at the same time"):
        lake.write(PEOPLE, rows.mapInArrow(delete_meanwhile, rows.schema), "f2")
    assert DeltaTable(path).version() == pin.version + 1


def test_a_repair_that_lost_the_lease_puts_nothing_aside(
    spark: SparkSession, leased: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = leased.write(PEOPLE, rows_of(spark, PEOPLE, a_person()), "f1")
    torn = Path(leased.path(PEOPLE.name), "_delta_log", f"{pin.version:020}.json")
    torn.write_text("{")
    read = _LogFolder.read

    def read_and_sleep(folder: _LogFolder) -> object:
        log = read(folder)
        fall_asleep(leased)
        return log

    monkeypatch.setattr(_LogFolder, "read", read_and_sleep)
    with pytest.raises(LakeBusyError, match="another process took over while this one paused"):
        repair(leased, PEOPLE.name, lambda _: None)
    assert torn.exists()


def test_who_lost_the_lease_neither_withdraws_nor_rolls_back_nor_maintains(spark: SparkSession, leased: Lake) -> None:
    with leased.locked():
        leased.write(PEOPLE, rows_of(spark, PEOPLE, a_person()), "f1")
        leased.publish(replace(NEXT, publication_id="b"))
        fall_asleep(leased)
        before = {name: DeltaTable(leased.path(name)).version() for name in (PEOPLE.name, PUBLICATIONS.name)}
        for change in (
            lambda: leased.withdraw(leased.publications()[:1]),
            lambda: roll_back(leased, None, NEXT.published_at),
            lambda: crm_spark.maintenance._put_together(leased, PEOPLE.name),
            lambda: crm_spark.maintenance._put_together(leased, PUBLICATIONS.name),
        ):
            with pytest.raises(LakeBusyError, match="another process took over while this one paused"):
                change()
    assert {name: DeltaTable(leased.path(name)).version() for name in before} == before


def test_a_lake_is_rolled_back_maintained_and_repaired_under_a_lease(
    spark: SparkSession, leased: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crm_spark.maintenance._MANY_FILES", 2)
    monkeypatch.setattr("crm_spark.maintenance._GRACE_HOURS", 0)
    at = datetime(2026, 10, 3, tzinfo=UTC)
    with leased.locked():
        pins = [leased.write(PEOPLE, rows_of(spark, PEOPLE, a_person(number)), f"f{number}") for number in (2, 3)]
        for number, pin in enumerate(pins, 2):
            leased.publish(replace(NEXT, publication_no=number, publication_id=pin.fingerprint, tables={pin.name: pin}))
        assert roll_back(leased, None, at).publication_no == 4
        leased.publish(replace(NEXT, publication_no=5, published_at=at, tables={pins[1].name: pins[1]}))
    told: list[str] = []
    maintain(leased, at, 1, told.append)
    assert told[0].startswith("publications: 3 published before ")
    assert told[-1] == "compacting: publications (2 small files into 1)"
    Path(leased.path(PEOPLE.name), "_delta_log", f"{pins[1].version:020}.json").write_text("{")
    repair(leased, PEOPLE.name, told.append)
    assert "people: publication 4 is published again, as 6" in told
    assert [publication.publication_no for publication in leased.publications()] == [4, 6]
    with held_lease(leased.path(PUBLICATIONS.name)):
        for use in (lambda: maintain(leased, at, 1, told.append), lambda: repair(leased, PEOPLE.name, told.append)):
            with pytest.raises(LakeBusyError, match="found another process writing it"):
                use()
