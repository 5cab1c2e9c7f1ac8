"""What readers see of a lake: its publications by their names, one after a rollback, and never a mixed set."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from builders import utc
from deltalake import write_deltalake
from pyspark.sql import SparkSession
from test_locks import HOLD_LOCK, Writer

from crm_spark.cli import main
from crm_spark.errors import LakeError
from crm_spark.lake import Lake
from crm_spark.publications import (
    Pin,
    Publication,
    PublishedLake,
    append_publication,
    repeated_numbers,
    roll_back,
    schema_views,
)

IDS = ("aaaa111122223333", "aaaa999922223333", "bbbb111122223333")
ROLLED_BACK_AT = utc("2026-11-05 09:30:00")


def publish_pair(lake: PublishedLake, number: int, publication_id: str) -> Publication:
    """Write a new version of two tables, whose rows all tell the number, and publish both."""
    for name in ("people", "things"):
        write_deltalake(lake.path(name), pa.table({"number": [number] * 3}), mode="overwrite")
    pins = {name: Pin(name, number - 1, f"f{number}", f"3:{number}", 3) for name in ("people", "things")}
    published_at = datetime(2026, 11, 1, 4, tzinfo=UTC) + timedelta(days=number - 1)
    known_until = published_at - timedelta(hours=1)
    publication = Publication(
        number, publication_id, published_at, published_at.date(), known_until, "EUR", f"0.{number}", pins
    )
    lake.publish(publication) if isinstance(lake, Lake) else append_publication(lake, publication)
    return publication


@pytest.fixture(scope="module")
def published(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lake = Lake(spark, str(tmp_path_factory.mktemp("published") / "lake"))
    for number, publication_id in enumerate(IDS, start=1):
        publish_pair(lake, number, publication_id)
    return Path(lake.uri)


@pytest.fixture
def copied(published: Path, tmp_path: Path) -> PublishedLake:
    """A lake of three publications that a test may change."""
    return PublishedLake(str(shutil.copytree(published, tmp_path / "lake")))


@pytest.fixture
def crm_spark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The command; gives what it printed, or the line of its error."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["crm-spark", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return printed.err if ended.value.code else printed.out

    return run


def numbers_in(lake: PublishedLake, publication: Publication) -> set[int]:
    """The numbers that the rows of all tables tell."""
    return {
        row["number"]
        for name, pin in publication.tables.items()
        for row in lake.query(f"SELECT number FROM {name}", pin)
    }


@pytest.mark.parametrize(
    ("name", "number"),
    [(None, 3), ("1", 1), (IDS[1], 2), ("bbbb", 3), ("AAAA9", 2), ("aaaa1", 1)],
)
def test_a_publication_is_named_by_its_number_its_id_or_how_that_begins(
    published: Path, name: str | None, number: int
) -> None:
    lake = PublishedLake(str(published))
    found = lake.require_publication(name)
    assert found.publication_no == number
    assert numbers_in(lake, found) == {number}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "12",
            r"no publication '12', .*; the nearest are 3 \(bbbb111122223333\), 2 \(aaaa999922223333\), 1 \(aaaa1111",
        ),
        (
            "aaa",
            r"no publication 'aaa', expected a number or the first 4 or more characters of an id; the nearest are ",
        ),
        ("bbbb2", r"no publication 'bbbb2', .*; the nearest are 3 \(bbbb111122223333\), "),
        (
            "aaaa",
            r"several .* begins with 'aaaa': 1 \(aaaa111122223333\), 2 \(aaaa999922223333\); name one by its number",
        ),
    ],
)
def test_a_name_of_none_or_of_several_is_one_line(published: Path, name: str, message: str) -> None:
    with pytest.raises(LakeError, match=message) as caught:
        PublishedLake(str(published)).require_publication(name)
    assert "\n" not in str(caught.value)


def test_what_was_published_twice_is_named_by_its_newest_number(copied: PublishedLake) -> None:
    roll_back(copied, "1", ROLLED_BACK_AT)
    assert copied.require_publication(IDS[0]).publication_no == 4
    assert copied.require_publication("1").publication_no == 1
    assert repeated_numbers(copied.publications()) == {4: 1}


def test_publications_are_listed_the_newest_first(
    copied: PublishedLake, crm_spark: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    roll_back(copied, "1", ROLLED_BACK_AT)
    monkeypatch.setenv("COLUMNS", "120")
    lines = crm_spark("publications", "--lake", copied.uri, "--limit", "3").splitlines()
    rows = [line.split() for line in lines if any(found in line for found in IDS)]
    assert [row[0] for row in rows] == ["4", "3", "2"]
    published_at, as_of, known_until = ["2026-11-05", "09:30"], ["2026-11-01"], ["2026-11-01", "03:00"]
    assert rows[0] == ["4", IDS[0], *published_at, *as_of, *known_until, "2", "6", "1"]
    assert rows[1][-2:] == ["2", "6"]
    assert lines[-1] == "1 older ones are not shown; --limit 4 shows all."
    assert "older" not in crm_spark("publications", "--lake", copied.uri)


def test_a_rollback_repeats_the_publication_before_and_a_second_one_goes_further_back(
    copied: PublishedLake, crm_spark: Callable[..., str]
) -> None:
    second = copied.require_publication("2")
    done = roll_back(copied, None, ROLLED_BACK_AT)
    assert done == replace(second, publication_no=4, published_at=ROLLED_BACK_AT)
    assert copied.require_publication() == done
    assert numbers_in(copied, done) == {2}
    printed = crm_spark("rollback", "--lake", copied.uri)
    assert printed.startswith(
        f"publication 5 ({IDS[0]}) published: it repeats 1, as of 2026-11-01; readers see that from"
    )
    assert "The next refresh goes on from what was built last" in printed
    assert numbers_in(copied, copied.require_publication()) == {1}
    assert "found nothing older than publication 1" in crm_spark("rollback", "--lake", copied.uri)
    # Forward again, by name.
    assert "it repeats 3" in crm_spark("rollback", "--lake", copied.uri, "--to", "bbbb")
    assert [found.publication_no for found in copied.publications()] == [1, 2, 3, 4, 5, 6]


def test_a_rollback_to_what_readers_see_already_is_refused(copied: PublishedLake) -> None:
    with pytest.raises(LakeError, match="publication 3 is what readers see already"):
        roll_back(copied, "3", ROLLED_BACK_AT)
    assert len(copied.publications()) == 3


@pytest.mark.parametrize(
    ("lost", "fault"),
    [
        (
            "things/*.parquet",
            r"things at version 1: 1 files, of which .*\.parquet is missing; roll back to another with --to",
        ),
        ("things/_delta_log/*0.json", "things does not open at version 1; roll"),
        ("things", "things does not open at version 1; roll"),
    ],
)
def test_a_rollback_to_what_cannot_be_read_any_more_is_refused(copied: PublishedLake, lost: str, fault: str) -> None:
    for path in Path(copied.uri).glob(lost):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(LakeError, match=rf"publication 2 cannot be read any more: {fault}"):
        roll_back(copied, None, ROLLED_BACK_AT)
    assert len(copied.publications()) == 3


def test_a_rollback_to_a_file_that_was_cut_off_is_refused(copied: PublishedLake) -> None:
    for path in Path(copied.uri).glob("things/*.parquet"):
        path.write_bytes(path.read_bytes()[:7])
    with pytest.raises(LakeError, match=r"things at version 1: 1 files, of which .* has 7 bytes, expected \d+;"):
        roll_back(copied, None, ROLLED_BACK_AT)


def test_a_rollback_waits_for_no_writer_and_makes_no_lake(
    copied: PublishedLake, crm_spark: Callable[..., str], tmp_path: Path
) -> None:
    with Writer(HOLD_LOCK, f"{copied.uri}/.lock"):
        assert "found another process writing it" in crm_spark("rollback", "--lake", copied.uri)
    assert len(copied.publications()) == 3
    assert "found no publication" in crm_spark("rollback", "--lake", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_a_publication_comes_back_from_a_folder_of_many_names(published: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(published, tmp_path / "our lake; [new] {1} é*=:'")
    for uri in (str(folder), folder.as_uri()):
        lake = PublishedLake(uri)
        before = lake.require_publication()
        after = replace(before, publication_no=before.publication_no + 1)
        append_publication(lake, after)
        assert lake.require_publication() == after


def test_an_older_publication_is_reported_beside_the_last_one(
    published: Path, crm_spark: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crm_spark.report.build.write_report", lambda _lake, found, path, _: (found.as_of, str(path)))
    older = (date(2026, 11, 1), f"{published}/report_p1.html")
    assert crm_spark("report", "--lake", str(published), "--publication", "aaaa1") == f"report: {older}\n"
    newest = (date(2026, 11, 3), f"{published}/report.html")
    assert crm_spark("report", "--lake", str(published)) == f"report: {newest}\n"


def test_views_are_of_the_publication_that_was_asked_for(
    spark: SparkSession, published: Path, crm_spark: Callable[..., str]
) -> None:
    for statement in crm_spark("views", "--lake", str(published), "--publication", "2").splitlines():
        spark.sql(statement.removesuffix(";"))
    assert {row["number"] for row in spark.table("people").collect()} == {2}
    for name in ("people", "things"):
        spark.catalog.dropTempView(name)


def test_each_publication_has_a_schema_of_its_own_that_nothing_replaces(
    spark: SparkSession, published: Path, crm_spark: Callable[..., str]
) -> None:
    prefix = "our_lake"
    lake = PublishedLake(str(published))
    try:
        for number in ("1", "2"):
            printed = crm_spark("views", "--lake", lake.uri, "--publication", number, "--schema", prefix)
            for statement in printed.splitlines():
                spark.sql(statement.removesuffix(";"))
        # Of another lake, under a name that is taken.
        others = replace(lake.require_publication("3"), publication_no=1)
        for statement in schema_views(lake, others, prefix):
            spark.sql(statement)
        for number in (1, 2):
            schema = f"{prefix}_p{number}"
            assert {row["viewName"] for row in spark.sql(f"SHOW VIEWS IN {schema}").collect()} == {"people", "things"}
            for name in ("people", "things"):
                assert {row["number"] for row in spark.table(f"{schema}.{name}").collect()} == {number}
    finally:
        for number in (1, 2):
            spark.sql(f"DROP SCHEMA IF EXISTS {prefix}_p{number} CASCADE")


def test_a_schema_that_metastores_would_not_take_is_refused(published: Path, crm_spark: Callable[..., str]) -> None:
    printed = crm_spark("views", "--lake", str(published), "--schema", "x`; DROP SCHEMA y; --")
    assert printed.startswith("crm-spark: --schema: found 'x`; DROP SCHEMA y; --', expected a letter and then letters")


# Prints the number of each publication that it sees first, and of every one in which tables are of different numbers.
POLL = """
import sys
from crm_spark.publications import PublishedLake

lake = PublishedLake(sys.argv[1])
last = 0
while last < int(sys.argv[2]):
    seen = lake.require_publication()
    numbers = {
        row["number"] for name, pin in seen.tables.items() for row in lake.query(f"SELECT number FROM {name}", pin)
    }
    if numbers != {seen.publication_no}:
        print("mixed", seen.publication_no, sorted(numbers), flush=True)
    if seen.publication_no > last:
        last = seen.publication_no
        print(last, flush=True)
"""
PUBLISH_COUNT = 50


def test_a_reader_beside_fifty_publishes_never_sees_a_mixed_set(copied: PublishedLake) -> None:
    command = [sys.executable, "-c", POLL, copied.uri, str(PUBLISH_COUNT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        # From then on it polls, while more is written.
        seen = [reader.stdout.readline().strip()]
        for number in range(len(IDS) + 1, PUBLISH_COUNT + 1):
            publish_pair(copied, number, f"{number:016}")
            if number % 10 == 0 and number < PUBLISH_COUNT:
                seen.append(reader.stdout.readline().strip())
        seen += reader.stdout.read().split("\n")[:-1]
    assert reader.returncode == 0
    assert [line for line in seen if "mixed" in line] == []
    assert (seen[0], seen[-1]) == ("3", "50")
    assert len(seen) >= 6
