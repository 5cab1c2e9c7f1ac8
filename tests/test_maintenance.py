"""Maintenance: what publications and the next run need stays, the rest goes, and no row is lost or doubled."""

import json
import os
import time
from copy import deepcopy
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
from builders import rows_of, utc
from business import random_business
from deltalake import DeltaTable
from pyspark.sql import SparkSession
from test_growth import FIRST, Growing, amended, known_before, midnight_after
from test_lake import OTHERS, PEOPLE, a_person, log_of

import crm_spark.lake
import crm_spark.maintenance
from crm_spark.delta import file_names, quoted
from crm_spark.errors import LakeBusyError, LakeError
from crm_spark.facts.tables import EVENTS, FACT_CUSTOMER_DAYS, LEDGERS
from crm_spark.lake import Lake
from crm_spark.maintenance import maintain
from crm_spark.publications import Pin, Publication
from crm_spark.repairing import repair
from crm_spark.session import is_sail
from crm_spark.stages.facts import refresh_facts
from crm_spark.tables import summarise

pytestmark = pytest.mark.both_engines

NOW = utc("2026-11-01 12:00:00")


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables grow also if they are small, four files are many, and nothing is waited for."""
    monkeypatch.setattr(crm_spark.lake, "SMALL_COUNT", 0)
    monkeypatch.setattr(crm_spark.maintenance, "_MANY_FILES", 4)
    monkeypatch.setattr(crm_spark.maintenance, "_GRACE_HOURS", 0)


def publish(lake: Lake, number: int, published_at: datetime, *pins: Pin) -> Publication:
    tables = {pin.name: pin for pin in pins}
    day = date(2026, 11, 1)
    publication = Publication(number, f"id{number}", published_at, day, NOW, "EUR", "0.1.0", tables)
    lake.publish(publication)
    return publication


def grown(lake: Lake, count: int) -> list[Pin]:
    """The versions of a table to which one person after the other was added, each in a file of their own."""
    pins = [lake.write(PEOPLE, rows_of(lake.spark, PEOPLE, a_person(0)).coalesce(1), "f0")]
    for number in range(1, count):
        rows = rows_of(lake.spark, PEOPLE, a_person(number)).coalesce(1)
        pins.append(lake.change(PEOPLE, pins[-1], rows, None, f"f{number}"))
    return pins


def maintained(lake: Lake, keep_days: int = 30, *, dry_run: bool = False) -> list[str]:
    told: list[str] = []
    maintain(lake, NOW, keep_days, told.append, dry_run=dry_run)
    return told


def files_of(lake: Lake, version: int | None = None) -> set[str]:
    return set(file_names(DeltaTable(lake.path("people"), version=version)))


def stored_files(lake: Lake) -> set[str]:
    return {path.name for path in Path(lake.path("people")).glob("*.parquet")}


def people_in(lake: Lake, pin: Pin) -> list[str]:
    return sorted(row["person_id"] for row in lake.read(pin).collect())


def test_old_publications_go_but_never_the_newest_and_their_numbers_do_not_come_again(lake: Lake) -> None:
    (pin,) = grown(lake, 1)
    days_old = [40, 31, 29, 28]
    for number, days in enumerate(days_old, 1):
        publish(lake, number, NOW - timedelta(days=days), pin)
    assert maintained(lake)[0] == "publications: 2 published before 2026-10-02 12:00 UTC withdrawn, 2 kept"
    assert [publication.publication_no for publication in lake.publications()] == [3, 4]
    maintained(lake, keep_days=1)
    newest = lake.require_publication()
    assert (lake.publications(), newest.publication_no, newest.tables["people"]) == ([newest], 4, pin)


def test_files_that_no_kept_publication_shows_go_and_the_others_stay(spark: SparkSession, lake: Lake) -> None:
    def people(*numbers: int, fingerprint: str) -> Pin:
        return lake.write(PEOPLE, rows_of(spark, PEOPLE, *map(a_person, numbers)), fingerprint)

    expired, unpublished, kept, newest = (people(number, fingerprint=f"f{number}") for number in range(4))
    publish(lake, 1, NOW - timedelta(days=31), expired)
    publish(lake, 2, NOW - timedelta(days=29), kept)
    orphan = Path(lake.path("people"), "part-of-a-killed-run.parquet")
    orphan.write_bytes(b"PAR1")
    before = files_of(lake, expired.version) | files_of(lake, unpublished.version) | {orphan.name}
    told = maintained(lake, dry_run=True)
    assert before <= stored_files(lake)
    assert len(lake.publications()) == 2
    # It cannot count what its own withdrawal leaves.
    assert told[::2] == maintained(lake)[::2]
    assert stored_files(lake) == files_of(lake, kept.version) | files_of(lake, newest.version)
    checksums = {path.name[1:-4] for path in Path(lake.path("people")).glob(".*.parquet.crc")}
    assert checksums <= stored_files(lake)
    assert (people_in(lake, kept), people_in(lake, newest)) == (["p2"], ["p3"])
    # The newest version counts as the one that the run wrote, and there is nothing more to do.
    found = lake.find(PEOPLE, "f3")
    assert found is not None
    assert found.content_hash == newest.content_hash
    version = DeltaTable(lake.path("people")).version()
    assert maintained(lake)[1] == "clearing: 0 files of 0 tables removed, 0.0 MB"
    assert DeltaTable(lake.path("people")).version() == version


def test_a_file_that_was_just_written_or_taken_out_stays(
    spark: SparkSession, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crm_spark.maintenance, "_GRACE_HOURS", 24)
    for number in range(2):
        lake.write(PEOPLE, rows_of(spark, PEOPLE, a_person(number)), f"f{number}")
    Path(lake.path("people"), "being-written.parquet").write_bytes(b"PAR1")
    before = stored_files(lake)
    maintained(lake)
    assert stored_files(lake) == before


def test_small_files_are_put_together_and_rows_content_and_changes_are_the_same(
    spark: SparkSession, lake: Lake
) -> None:
    pins = grown(lake, 5)
    publish(lake, 1, NOW, pins[2])
    lake.write(OTHERS, rows_of(spark, OTHERS), "o", beside=[pins[3]])
    assert "people (5 small files into 1)" in maintained(lake)[2]
    assert len(files_of(lake)) == 1
    together = lake.find(PEOPLE, "f4")
    assert together is not None
    assert (together.content_hash, together.row_count) == (pins[4].content_hash, 5)
    assert people_in(lake, pins[2]) == ["p0", "p1", "p2"]
    assert DeltaTable(lake.path("people")).protocol().min_reader_version == 1
    assert "secret" not in json.dumps(log_of(lake, PEOPLE))

    # Who adds to the version before adds to that one, and what came since another version is what was added.
    grown_on = lake.change(PEOPLE, pins[4], rows_of(spark, PEOPLE, a_person(9)), None, "f9")
    assert files_of(lake, together.version) < files_of(lake, grown_on.version)
    assert people_in(lake, grown_on) == ["p0", "p1", "p2", "p3", "p4", "p9"]
    assert grown_on.content_hash == summarise(lake.read(grown_on), PEOPLE).content_hash
    came, went = lake.difference(pins[3], grown_on)
    assert (sorted(row["person_id"] for row in came.collect()), went.count()) == (["p4", "p9"], 0)
    assert lake.only_grew(pins[2], grown_on)
    fewer = lake.change(PEOPLE, grown_on, rows_of(spark, PEOPLE), rows_of(spark, PEOPLE, a_person(0)), "f10")
    assert not lake.only_grew(pins[2], fewer)
    changes = lake.row_changes(PEOPLE, pins[3], fewer).collect()
    assert {(row["person_id"], row["sign"]) for row in changes} == {("p0", -1), ("p4", 1), ("p9", 1)}


def test_what_a_run_compares_with_stays_also_if_it_is_not_published(spark: SparkSession, lake: Lake) -> None:
    pins = grown(lake, 3)
    lake.write(OTHERS, rows_of(spark, OTHERS), "o", beside=[pins[0]])
    base = lake.write(PEOPLE, rows_of(spark, PEOPLE, *map(a_person, range(1, 4))).coalesce(1), "f3")
    for number in range(4, 7):
        base = lake.change(PEOPLE, base, rows_of(spark, PEOPLE, a_person(number)).coalesce(1), None, f"f{number}")
    maintained(lake)
    maintained(lake)
    assert len(files_of(lake)) == 1
    newest = lake.newest(PEOPLE)
    assert newest is not None
    changes = lake.row_changes(PEOPLE, pins[0], newest).collect()
    assert {(row["person_id"], row["sign"]) for row in changes} == {
        ("p0", -1),
        *((f"p{number}", 1) for number in range(1, 7)),
    }


def test_a_version_that_no_run_completed_is_not_put_together(spark: SparkSession, lake: Lake) -> None:
    pins = grown(lake, 5)
    spark.sql(f"DELETE FROM delta.{quoted(lake.path('people'))} WHERE person_id = 'p0'")
    told = maintained(lake)
    assert any("compacting: not people, whose newest version no run completed" in line for line in told)
    assert len(files_of(lake)) == 4
    assert lake.find(PEOPLE, "f4") == pins[4]


def test_put_together_rows_that_differ_are_taken_back(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = grown(lake, 4)
    monkeypatch.setattr(crm_spark.maintenance, "content_of", lambda rows: [len(rows.inputFiles())])
    if is_sail(lake.spark):
        monkeypatch.setattr(crm_spark.maintenance, "content_of", id)
    with pytest.raises(LakeError, match=r"^people: found other rows after its files were put together"):
        maintained(lake)
    assert files_of(lake) == files_of(lake, pins[-1].version)
    newest = lake.newest(PEOPLE)
    assert newest is not None
    assert newest.version == DeltaTable(lake.path("people")).version()


def test_the_log_and_the_files_of_an_old_version_outlive_every_retention(spark: SparkSession, lake: Lake) -> None:
    first = lake.write(PEOPLE, rows_of(spark, PEOPLE, a_person(1)), "f1")
    path = lake.path("people")
    long_ago = time.time() - 400 * 86_400
    for commit in Path(path, "_delta_log").iterdir():
        os.utime(commit, (long_ago, long_ago))
    # With this commit, delta-rs writes a checkpoint and clears away what of the log is out of date.
    lake.write(PEOPLE, rows_of(spark, PEOPLE, a_person(2)), "f2")
    for _ in range(101 - DeltaTable(path).version()):
        stored = DeltaTable(path)
        stored.create_write_transaction([], "append", stored.schema())
    stored.cleanup_metadata()
    assert list(Path(path, "_delta_log").glob("*.checkpoint.parquet"))
    assert DeltaTable(path).vacuum(dry_run=False) == []
    assert people_in(lake, first) == ["p1"]
    by_version = spark.read.format("delta").option("versionAsOf", first.version).load(path)
    assert [row["person_id"] for row in by_version.collect()] == ["p1"]


def test_tables_of_an_earlier_program_get_its_retention(spark: SparkSession, lake: Lake) -> None:
    pins = grown(lake, 1)
    DeltaTable(lake.path("people")).alter.set_table_properties({"delta.enableExpiredLogCleanup": "true"})
    assert any(line.startswith("retention: 1 tables") for line in maintained(lake))
    assert DeltaTable(lake.path("people")).metadata().configuration["delta.enableExpiredLogCleanup"] == "false"
    assert not any(line.startswith("retention") for line in maintained(lake))
    grown_on = lake.change(PEOPLE, pins[0], rows_of(spark, PEOPLE, a_person(7)), None, "f7")
    assert people_in(lake, grown_on) == ["p0", "p7"]
    assert DeltaTable(lake.path("people")).metadata().configuration["delta.enableExpiredLogCleanup"] == "false"


def test_nothing_is_cleared_away_where_a_publication_cannot_be_read(spark: SparkSession, lake: Lake) -> None:
    pins = grown(lake, 2)
    publish(lake, 1, NOW, pins[0], Pin("things", 3, "f", "0:0", 0))
    with pytest.raises(LakeError, match=r"^things: found no table that a run wrote, expected version 3"):
        maintained(lake)
    publish(lake, 2, NOW, pins[0], Pin("people", 99, "f", "0:0", 0))
    lake_of_one = lake.publications()[1:]
    assert lake_of_one
    with pytest.raises(LakeError, match=r"^people: cannot read one of the versions"):
        crm_spark.maintenance._clear(lake, "people", {99}, dry_run=False)


def test_a_refresh_goes_on_after_maintenance_and_neither_doubles_nor_loses_rows(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_sail(spark):
        pytest.skip("three refreshes take minutes there; test_nightly maintains its lake between nights")
    business, stages = random_business(5), [("facts", refresh_facts)]
    days = [FIRST + timedelta(days=number) for number in (0, 4, 5)]
    growing = Growing(Lake(spark, str(tmp_path / "lake")))
    lake, runs = growing.lake, []
    monkeypatch.setattr(crm_spark.maintenance, "_MANY_FILES", 2)
    for day, change in zip(days, (deepcopy, amended, amended), strict=True):
        now = change(known_before(business, midnight_after(day)))
        growing.follow(now)
        if len(runs) == 2:
            lake.publish(runs[1].publication())
            maintain(lake, midnight_after(day), 30, print)
            newest = [lake.newest(ledger) for ledger in LEDGERS]
            assert all(pin and pin.version > runs[1].pins[pin.name].version for pin in newest)
        runs.append(growing.refresh(day, midnight_after(day), stages))
    last = runs[-1]
    for table in (*EVENTS, *LEDGERS):
        assert summarise(last.read(table), table).content_hash == last.pins[table.name].content_hash, table.name
    # What was there was added to, not made anew.
    assert all(lake.only_grew(runs[0].pins[ledger.name], last.pins[ledger.name]) for ledger in LEDGERS)
    told_of_days = "SELECT sum(response_count) AS responses, max(addition_no) AS additions FROM fact_customer_days"
    (told,) = lake.query(told_of_days, last.pins[FACT_CUSTOMER_DAYS.name])
    assert told == {"responses": len(now.responses), "additions": 3}
    counts = {name: last.pins[f"fact_{name}"].row_count for name in ("order_lines", "responses", "visits")}
    assert counts == {"order_lines": len(now.orders), "responses": len(now.responses), "visits": len(now.visits)}


def test_a_lake_that_is_being_written_is_not_maintained(lake: Lake) -> None:
    grown(lake, 1)
    with lake.locked():
        with pytest.raises(LakeBusyError, match="found another process writing it"):
            maintained(lake)
        with pytest.raises(LakeBusyError, match="found another process writing it"):
            repair(lake, "people", print)
