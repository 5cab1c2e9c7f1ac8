"""Repair: damaged logs of real tables, what of them can be read again, and what is told of the rest."""

from datetime import date, timedelta
from pathlib import Path

import pytest
from builders import rows_of, utc
from deltalake import DeltaTable
from pyspark.sql import SparkSession
from test_lake import OTHERS, PEOPLE, a_person

from crm_spark.delta import quoted
from crm_spark.errors import LakeError
from crm_spark.lake import Lake
from crm_spark.publications import PUBLICATIONS, Pin, Publication
from crm_spark.repairing import ASIDE, repair

NOW = utc("2026-11-01 12:00:00")


def publish(lake: Lake, number: int, *pins: Pin) -> Publication:
    at, day = NOW + timedelta(days=number), date(2026, 11, 1)
    publication = Publication(number, f"id{number}", at, day, NOW, "EUR", "0.1.0", {pin.name: pin for pin in pins})
    lake.publish(publication)
    return publication


def written(lake: Lake, count: int) -> list[Pin]:
    """Versions 1 to `count` of a table, each with one person of its own."""
    return [
        lake.write(PEOPLE, rows_of(lake.spark, PEOPLE, a_person(number)), f"f{number}")
        for number in range(1, count + 1)
    ]


def log(lake: Lake, name: str = "people") -> Path:
    return Path(lake.path(name), "_delta_log")


def commit(lake: Lake, version: int) -> Path:
    return log(lake) / f"{version:020}.json"


def cut(path: Path) -> None:
    """Half of a file, as after a disk was full; Spark's checksum is of the whole."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def checkpoint_of(lake: Lake) -> Path:
    DeltaTable(lake.path("people")).create_checkpoint()
    return max(log(lake).glob("*.checkpoint.parquet"))


def repaired(lake: Lake, name: str = "people") -> list[str]:
    told: list[str] = []
    repair(lake, name, told.append)
    return told


def aside(lake: Lake) -> set[str]:
    return {path.name for path in Path(lake.path("people"), ASIDE).glob("[!.]*")}


def people_in(spark: SparkSession, lake: Lake, version: int | None = None) -> list[str]:
    """What Spark reads, by the log alone, in a session that has not read it yet."""
    at = "" if version is None else f" VERSION AS OF {version}"
    rows = spark.newSession().sql(f"SELECT person_id FROM delta.{quoted(lake.path('people'))}{at}")
    return sorted(row["person_id"] for row in rows.collect())


def test_a_whole_log_is_left_as_it_is(lake: Lake) -> None:
    written(lake, 1)
    checkpoint_of(lake)
    before = sorted(log(lake).iterdir())
    assert repaired(lake) == ["people: its log is whole up to version 1; nothing was changed"]
    assert sorted(log(lake).iterdir()) == before


def test_a_checkpoint_that_cannot_be_read_is_not_missed_where_commits_stand(spark: SparkSession, lake: Lake) -> None:
    pins = written(lake, 2)
    checkpoint = checkpoint_of(lake)
    cut(checkpoint)
    with pytest.raises(Exception, match="Corrupt footer"):
        lake.find(PEOPLE)
    told = repaired(lake)
    assert told[0].startswith("people: found: the checkpoint of version 2 cannot be read or lacks a part; put aside")
    assert "the pointer to the last checkpoint leads to none" in told[1]
    assert told[-1] == "people: no version is lost"
    assert aside(lake) == {checkpoint.name, "_last_checkpoint"}
    assert lake.find(PEOPLE, "f2") == pins[1]
    assert (people_in(spark, lake), people_in(spark, lake, 1)) == (["p2"], ["p1"])
    assert repaired(lake)[-1].endswith("nothing was changed")


@pytest.mark.parametrize("content", ["{", '{"version": 99, "size": 3}', ""])
def test_a_pointer_to_no_checkpoint_is_put_aside(lake: Lake, content: str) -> None:
    (pin,) = written(lake, 1)
    checkpoint = checkpoint_of(lake)
    (log(lake) / "_last_checkpoint").write_text(content)
    told = repaired(lake)
    assert (len(told), told[-1]) == (2, "people: no version is lost")
    assert (aside(lake), checkpoint.exists()) == ({"_last_checkpoint"}, True)
    assert lake.find(PEOPLE) == pin


@pytest.mark.parametrize("is_empty", [False, True])
def test_a_torn_last_commit_is_put_aside_and_the_version_before_is_the_newest(
    spark: SparkSession, lake: Lake, is_empty: bool
) -> None:
    pins = written(lake, 2)
    publish(lake, 1, pins[0])
    torn = commit(lake, 2)
    torn.write_text("") if is_empty else cut(torn)
    told = repaired(lake)
    assert told[0].startswith("people: found: the commit of version 2 is cut off or empty; put aside")
    assert told[-2:] == [
        "people: lost: versions 2; version 1 is the newest",
        "people: next: run crm-spark refresh, which makes what is missing from the landed files",
    ]
    assert torn.name in aside(lake)
    assert lake.find(PEOPLE, "f1") == pins[0]
    assert len(lake.publications()) == 1
    # Both engines write the version anew, whatever checksums stood beside the one that was torn.
    again = lake.write(PEOPLE, rows_of(spark, PEOPLE, a_person(5)), "f5")
    assert (again.version, people_in(spark, lake)) == (2, ["p5"])
    DeltaTable(lake.path("people")).delete("person_id = 'p5'")
    assert people_in(spark, lake) == []


def test_publications_that_show_a_lost_version_are_withdrawn_and_the_one_before_stands_again(lake: Lake) -> None:
    pins = written(lake, 2)
    other = lake.write(OTHERS, rows_of(lake.spark, OTHERS), "o", beside=[pins[1]])
    first = publish(lake, 1, pins[0], other)
    publish(lake, 2, pins[1], other)
    assert lake.pins_beside(OTHERS) == {"people": pins[1]}
    cut(commit(lake, 2))
    told = repaired(lake)
    assert "people: publications 2 show versions that are lost; they are withdrawn" in told
    assert "people: publication 1 is published again, as 3" in told
    assert [publication.publication_no for publication in lake.publications()] == [1, 3]
    assert lake.require_publication().tables == first.tables
    # The number of the lost version is given again: what was made beside it is not continued.
    again = lake.write(PEOPLE, rows_of(lake.spark, PEOPLE, a_person(7)), "f7")
    assert again.version == pins[1].version
    assert lake.pins_beside(OTHERS) == {}


def test_what_stands_after_a_missing_commit_cannot_be_saved(spark: SparkSession, lake: Lake) -> None:
    pins = written(lake, 3)
    publish(lake, 1, pins[2])
    commit(lake, 2).unlink()
    told = repaired(lake)
    stranded = "the commits of versions 3 stand after one that is missing, with no checkpoint between"
    assert any(stranded in line for line in told)
    assert "people: lost: versions 3; version 1 is the newest" in told
    assert "people: no publication is left" in told
    assert told[-1] == "people: next: run crm-spark refresh, which makes what is missing from the landed files"
    assert lake.find(PEOPLE, "f1") == pins[0]
    assert lake.last_publication() is None
    assert people_in(spark, lake) == ["p1"]


@pytest.mark.parametrize("is_torn", [False, True])
def test_a_lost_commit_that_a_checkpoint_covers_costs_no_rows(spark: SparkSession, lake: Lake, is_torn: bool) -> None:
    pins = written(lake, 2)
    checkpoint_of(lake)
    pins.append(lake.write(PEOPLE, rows_of(spark, PEOPLE, a_person(3)), "f3"))
    publish(lake, 1, pins[0])
    publish(lake, 2, pins[1])
    publish(lake, 3, pins[2])
    damaged = commit(lake, 1)
    cut(damaged) if is_torn else damaged.unlink()
    told = repaired(lake)
    assert "people: publications 1 show versions that are lost; they are withdrawn" in told
    assert [publication.publication_no for publication in lake.publications()] == [2, 3]
    assert lake.find(PEOPLE, "f3") == pins[2]
    assert (people_in(spark, lake), people_in(spark, lake, 2)) == (["p3"], ["p2"])


def test_a_last_commit_is_lost_also_if_a_checkpoint_covers_it_as_spark_asks_for_it(
    spark: SparkSession, lake: Lake
) -> None:
    pins = written(lake, 2)
    checkpoint = checkpoint_of(lake)
    cut(commit(lake, 2))
    told = repaired(lake)
    assert "people: lost: versions 2; version 1 is the newest" in told
    assert {checkpoint.name, "_last_checkpoint", commit(lake, 2).name} <= aside(lake)
    assert people_in(spark, lake) == ["p1"]
    assert lake.find(PEOPLE) == pins[0]


def test_a_log_of_which_nothing_can_be_read_is_left_alone(lake: Lake) -> None:
    written(lake, 1)
    commit(lake, 0).unlink()
    before = sorted(log(lake).iterdir())
    with pytest.raises(LakeError, match=r"^people: found neither all commits from the first on nor a checkpoint"):
        repaired(lake)
    assert sorted(log(lake).iterdir()) == before
    with pytest.raises(LakeError, match=r"^nothing_here: found no log at .*/nothing_here, expected a table"):
        repaired(lake, "nothing_here")


def test_the_table_of_publications_loses_its_last_row_alone(lake: Lake) -> None:
    (pin,) = written(lake, 1)
    first = publish(lake, 1, pin)
    publish(lake, 2, pin)
    cut(max(log(lake, PUBLICATIONS.name).glob("*.json")))
    assert "publications: publication 1 is the newest left" in repaired(lake, PUBLICATIONS.name)
    assert lake.publications() == [first]


def test_a_mistyped_lake_is_not_made(lake: Lake) -> None:
    with pytest.raises(LakeError, match=r"^people: found no log at"):
        repaired(lake)
    assert not Path(lake.uri).exists()


@pytest.mark.parametrize("is_covered", [False, True])
def test_the_table_that_notes_the_lease_is_repaired_where_none_can_be_taken(lake: Lake, is_covered: bool) -> None:
    (pin,) = written(lake, 1)
    first = publish(lake, 1, pin)
    publish(lake, 2, pin)
    if is_covered:
        DeltaTable(lake.path(PUBLICATIONS.name)).create_checkpoint()
    cut(max(log(lake, PUBLICATIONS.name).glob("*.json")))
    lake.local_root = None
    told = repaired(lake, PUBLICATIONS.name)
    assert "publications: of publications that are gone, drop the schemas that crm-spark views --schema made" in told
    assert told[-1].startswith("publications: next: ")
    assert lake.publications() == [first]
