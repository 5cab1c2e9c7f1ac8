"""The lake: declared tables become Delta tables that hold their rules, and publications pin their versions."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import deltalake
import pytest
from builders import count_by_pyarrow_datasets, read_by_delta_rs, rows_of, utc
from chispa import assert_df_equality
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

import crm_spark.lake
from crm_spark.checks import Check
from crm_spark.delta import quoted
from crm_spark.errors import ContractError, LakeError
from crm_spark.lake import Lake, content_fingerprint
from crm_spark.publications import Pin, Publication, published_views
from crm_spark.session import is_sail
from crm_spark.tables import Column, Table, summarise

pytestmark = pytest.mark.both_engines

PEOPLE = Table(
    name="people",
    comment="One row per person; it's a \\test.",
    key=("person_id",),
    columns=(
        Column("person_id", "string", "The person's id."),
        Column("email", "string", "Where they're written to.", nullable=True, personal=True),
        Column("born_on", "date", "Birthday.", nullable=True, personal=True),
        Column("seen_at", "timestamp", "When last seen.", nullable=True),
        Column("age_years", "int", "Age.", nullable=True),
    ),
    checks=(Check("age_plausible", "age_years IS NULL OR age_years BETWEEN 0 AND 130"),),
)
OTHERS = replace(PEOPLE, name="others")


def a_person(number: int = 1, **values: object) -> dict[str, object]:
    return {
        "person_id": f"p{number}",
        "email": f"secret{number}@example.org",
        "born_on": "1969-07-20",
        "seen_at": "2026-10-01 00:00:00",
        "age_years": 40,
    } | values


def log_of(lake: Lake, table: Table) -> list[dict]:
    commits = sorted(Path(lake.path(table.name), "_delta_log").glob("*.json"))
    return [json.loads(line) for commit in commits for line in commit.read_text().splitlines()]


def test_a_table_is_stored_as_declared_and_any_delta_reader_reads_it(spark: SparkSession, lake: Lake) -> None:
    people = rows_of(spark, PEOPLE, a_person(1), a_person(2, email=None, age_years=None))
    pin = lake.write(PEOPLE, people, "f1")
    summary = summarise(people, PEOPLE)
    assert (pin.name, pin.fingerprint, pin.content_hash) == ("people", "f1", summary.content_hash)
    assert pin.row_count == 2
    assert_df_equality(lake.read(pin), people, ignore_row_order=True, ignore_nullable=True, ignore_metadata=True)

    stored = deltalake.DeltaTable(lake.path("people"))
    assert stored.protocol().min_reader_version == 1
    assert stored.metadata().description == PEOPLE.comment
    properties = stored.metadata().configuration
    assert properties["delta.constraints.age_plausible"] == PEOPLE.checks[0].must_hold
    assert properties["delta.enableDeletionVectors"] == "false"
    fields = {field.name: field for field in stored.schema().fields}
    # On Sail, what may not be NULL is looked at once it is written.
    nullable = {column.name: column.nullable or is_sail(spark) for column in PEOPLE.columns}
    assert {name: field.nullable for name, field in fields.items()} == nullable
    assert {name: field.metadata["comment"] for name, field in fields.items()} == {
        column.name: column.comment for column in PEOPLE.columns
    }
    assert read_by_delta_rs(lake.path("people")).num_rows == 2
    assert count_by_pyarrow_datasets([lake.path("people")]) == [2]

    # Personal values would stay in the log when their rows are erased.
    adds = [json.loads(entry["add"]["stats"]) for entry in log_of(lake, PEOPLE) if "add" in entry]
    assert adds
    for statistics in adds:
        for kind in ("minValues", "maxValues", "nullCount"):
            assert set(statistics[kind]) == {"person_id", "seen_at"}
    assert "secret" not in json.dumps(log_of(lake, PEOPLE))


def test_a_pinned_version_stays_readable_after_a_newer_one(spark: SparkSession, lake: Lake) -> None:
    first = lake.write(PEOPLE, rows_of(spark, PEOPLE, a_person(1)), "f1")
    second = lake.write(PEOPLE, rows_of(spark, PEOPLE, a_person(2), a_person(3)), "f2")
    assert second.version > first.version
    assert [row["person_id"] for row in lake.read(first).collect()] == ["p1"]
    assert lake.read(second).count() == 2


def test_a_table_whose_first_commit_was_cut_off_is_begun_anew(spark: SparkSession, lake: Lake) -> None:
    log = Path(lake.path("people"), "_delta_log")
    (log / "_staged_commits").mkdir(parents=True)
    (log / f".{0:020}.json.part.tmp").write_text("{")
    pin = lake.write(PEOPLE, rows_of(spark, PEOPLE, a_person(1)), "f1")
    assert (pin.version, lake.read(pin).count()) == (1, 1)


def test_a_version_of_no_files_or_of_many_is_read_like_any_other(spark: SparkSession, lake: Lake) -> None:
    nobody = lake.write(PEOPLE, rows_of(spark, PEOPLE), "f1")
    assert lake.read(nobody).count() == nobody.row_count == 0
    many = [a_person(number) for number in range(500)]
    everybody = lake.write(PEOPLE, rows_of(spark, PEOPLE, *many).repartitionByRange(40, "person_id"), "f2")
    assert len(deltalake.DeltaTable(lake.path("people")).file_uris()) > 32
    assert_df_equality(lake.read(everybody), rows_of(spark, PEOPLE, *many), ignore_row_order=True, ignore_metadata=True)
    assert lake.read(nobody).columns == lake.read(everybody).columns
    nobody_again = lake.write(PEOPLE, rows_of(spark, PEOPLE), "f3")
    assert lake.read(nobody_again).count() == nobody_again.row_count == 0


@pytest.fixture(params=["written anew", "merged"])
def changing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small tables are written anew: both ways are tried."""
    if request.param == "merged":
        monkeypatch.setattr(crm_spark.lake, "SMALL_COUNT", 0)
    return request.param


def test_a_change_adds_replaces_and_removes_rows_and_its_summary_is_that_of_the_whole(
    spark: SparkSession, lake: Lake, changing: str
) -> None:
    base = lake.write(PEOPLE, rows_of(spark, PEOPLE, *map(a_person, range(4))), "f1")
    # What a killed run left is no part of the change.
    lake.change(PEOPLE, base, rows_of(spark, PEOPLE, a_person(8)), None, "killed")
    rows = rows_of(spark, PEOPLE, a_person(1, age_years=41), a_person(9, email=None))
    # One key goes, one is not there, and one comes again in another row.
    removed = rows_of(spark, PEOPLE, a_person(2), a_person(7), a_person(1)).select("person_id")
    pin = lake.change(PEOPLE, base, rows, removed, "f2")
    ages = {row["person_id"]: row["age_years"] for row in lake.read(pin).collect()}
    assert ages == {"p0": 40, "p1": 41, "p3": 40, "p9": 40}
    summary = summarise(lake.read(pin), PEOPLE)
    assert (pin.row_count, pin.content_hash) == (4, summary.content_hash)
    assert lake.find(PEOPLE, "f2") == pin
    assert lake.read(base).count() == 4
    assert "secret" not in json.dumps(log_of(lake, PEOPLE))
    fewer = lake.change(PEOPLE, pin, rows_of(spark, PEOPLE), rows_of(spark, PEOPLE, a_person(0)), "f3")
    assert {row["person_id"] for row in lake.read(fewer).collect()} == {"p1", "p3", "p9"}
    assert fewer.row_count == 3
    assert deltalake.DeltaTable(lake.path("people")).protocol().min_reader_version == 1


def test_rows_that_are_only_added_leave_all_files_as_they_are(spark: SparkSession, lake: Lake) -> None:
    base = lake.write(PEOPLE, rows_of(spark, PEOPLE, a_person(1)), "f1")
    pin = lake.change(PEOPLE, base, rows_of(spark, PEOPLE, a_person(2)), None, "f2")
    came, went = lake.difference(base, pin)
    assert ([row["person_id"] for row in came.collect()], went.count()) == (["p2"], 0)
    assert (pin.row_count, pin.content_hash) == (2, summarise(lake.read(pin), PEOPLE).content_hash)


def test_row_changes_are_rows_that_differ_and_not_those_that_were_written_again(
    spark: SparkSession, lake: Lake, changing: str
) -> None:
    base = lake.write(PEOPLE, rows_of(spark, PEOPLE, *map(a_person, range(4))).coalesce(1), "f1")
    rows = rows_of(spark, PEOPLE, a_person(1, age_years=41), a_person(9))
    pin = lake.change(PEOPLE, base, rows, rows_of(spark, PEOPLE, a_person(2)), "f2")

    def told(changes: DataFrame) -> set[tuple[object, ...]]:
        return {(row["person_id"], row["age_years"], row["sign"]) for row in changes.collect()}

    assert told(lake.row_changes(PEOPLE, base, pin)) == {("p1", 40, -1), ("p1", 41, 1), ("p2", 40, -1), ("p9", 40, 1)}
    assert told(lake.row_changes(PEOPLE, pin, pin)) == set()
    assert not lake.only_grew(base, pin)
    grown = lake.change(PEOPLE, pin, rows_of(spark, PEOPLE, a_person(5)), None, "f3")
    assert told(lake.row_changes(PEOPLE, pin, grown)) == {("p5", 40, 1)}
    assert lake.only_grew(pin, grown)


@pytest.mark.parametrize("removes", [False, True])
def test_a_change_that_breaks_the_declaration_is_refused(
    spark: SparkSession, lake: Lake, changing: str, removes: bool
) -> None:
    base = lake.write(PEOPLE, rows_of(spark, PEOPLE, a_person(1)), "f1")
    nobody = rows_of(spark, PEOPLE).select("person_id") if removes else None
    with pytest.raises(ContractError, match="people: rows break age_plausible"):
        lake.change(PEOPLE, base, rows_of(spark, PEOPLE, a_person(2, age_years=131)), nobody, "f2")
    with pytest.raises(ContractError, match="stand more than once"):
        lake.change(PEOPLE, base, rows_of(spark, PEOPLE, a_person(3), a_person(3)), nobody, "f3")


def test_what_a_run_wrote_is_found_behind_commits_of_others(spark: SparkSession, lake: Lake) -> None:
    assert lake.newest(PEOPLE) is None
    other = lake.write(OTHERS, rows_of(spark, OTHERS), "f0")
    first = lake.write(PEOPLE, rows_of(spark, PEOPLE, a_person(1)), "f1", beside=[other])
    spark.sql(f"DELETE FROM delta.{quoted(lake.path('people'))}")
    assert lake.find(PEOPLE, "f1") == first
    assert "others" in lake.pins_beside(PEOPLE)
    # A declaration of today finds no table of yesterday's, whose rows can still be read.
    wider = replace(PEOPLE, columns=(*PEOPLE.columns, Column("shoe_size", "int", "Size.", nullable=True)))
    assert lake.find(wider) is None
    newest = lake.newest(wider)
    assert newest is not None
    assert lake.read(newest).count() == 1


def test_a_table_that_no_run_wrote_is_not_taken_for_an_empty_one(spark: SparkSession, lake: Lake) -> None:
    rows_of(spark, PEOPLE, a_person(1)).write.format("delta").save(lake.path("people"))
    with pytest.raises(LakeError, match="people: found rows that no run wrote; restore the version that one did"):
        lake.newest(PEOPLE)


def test_a_commit_notes_what_belongs_beside_it(spark: SparkSession, lake: Lake) -> None:
    assert lake.pins_beside(PEOPLE) == {}
    other = lake.write(OTHERS, rows_of(spark, OTHERS), "f0")
    lake.write(PEOPLE, rows_of(spark, PEOPLE, a_person(1)), "f1", beside=[other])
    assert lake.pins_beside(PEOPLE) == {"others": other}
    # After a repair, another version may have its number.
    lake.write(PEOPLE, rows_of(spark, PEOPLE, a_person(1)), "f1", beside=[replace(other, fingerprint="of rows lost")])
    assert lake.pins_beside(PEOPLE) == {}
    lake.write(PEOPLE, rows_of(spark, PEOPLE, a_person(2)), "f2")
    assert lake.pins_beside(PEOPLE) == {}


def test_a_version_with_rows_marked_as_deleted_is_read_without_them(spark: SparkSession, lake: Lake) -> None:
    if is_sail(spark):
        pytest.skip("only Spark marks rows, and only where it is told to")
    pin = lake.write(PEOPLE, rows_of(spark, PEOPLE, a_person(1), a_person(2), a_person(3)).coalesce(1), "f1")
    table = f"delta.{quoted(lake.path('people'))}"
    spark.sql(f"ALTER TABLE {table} SET TBLPROPERTIES ('delta.enableDeletionVectors' = 'true')")
    spark.sql(f"DELETE FROM {table} WHERE person_id = 'p2'")
    assert any("deletionVector" in entry.get("add", {}) for entry in log_of(lake, PEOPLE))
    version = deltalake.DeltaTable(lake.path("people")).version()
    rows = lake.read(replace(pin, version=version))
    assert sorted(row["person_id"] for row in rows.collect()) == ["p1", "p3"]


def test_a_lake_may_stand_in_a_folder_of_many_names(spark: SparkSession, tmp_path: Path) -> None:
    folder = tmp_path / "our lake; [new] {1} é*=:'"
    if is_sail(spark):  # it would write the names of URLs
        with pytest.raises(LakeError, match=r"^lake: found the folder .*; --engine spark takes it$"):
            Lake(spark, str(folder))
        return
    for uri in (str(folder), folder.as_uri()):
        lake = Lake(spark, uri)
        assert lake.local_root == folder
        pin = lake.write(PEOPLE, rows_of(spark, PEOPLE, a_person()), "f1")
        assert lake.read(pin).count() == 1
        assert lake.query("SELECT count(*) AS n FROM people", pin) == [{"n": 1}]
        assert lake.find(PEOPLE, "f1") == pin


@pytest.mark.parametrize("name", ["what?", "lake#2", "a%20b", "a\\b"])
def test_a_folder_that_delta_would_take_for_another_is_refused(spark: SparkSession, tmp_path: Path, name: str) -> None:
    with pytest.raises(LakeError, match=r"lake: found the folder .*, expected a name without"):
        Lake(spark, str(tmp_path / name))


@pytest.mark.parametrize(
    ("person", "rule"),
    [(a_person(age_years=999), "rows break age_plausible: "), (a_person(person_id=None), "person_id is NULL")],
)
def test_broken_rows_are_refused_and_the_error_names_the_rule_and_no_value(
    spark: SparkSession, lake: Lake, person: dict[str, object], rule: str
) -> None:
    good = lake.write(PEOPLE, rows_of(spark, PEOPLE, a_person()), "f1")
    with pytest.raises(ContractError) as caught:
        lake.write(PEOPLE, rows_of(spark, PEOPLE, person), "f2")
    assert str(caught.value).startswith("people: ")
    assert rule in str(caught.value)
    for value in ("999", "secret", "\n"):
        assert value not in str(caught.value)
    assert caught.value.__cause__ is None
    assert lake.read(good).count() == 1
    if not is_sail(spark):  # there, what is NULL is found once it is written
        assert lake.find(PEOPLE, "f1") == good


def test_an_expression_that_trips_over_a_text_is_an_error_without_the_text(spark: SparkSession, lake: Lake) -> None:
    people = rows_of(spark, PEOPLE, a_person()).withColumn("age_years", F.expr("cast(email AS int)"))
    with pytest.raises(ContractError, match=r"people: CAST_INVALID_INPUT in some rows; .*write cast") as caught:
        lake.write(PEOPLE, people, "f1")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_repeated_key_is_found_after_the_write_and_does_not_become_a_pin(spark: SparkSession, lake: Lake) -> None:
    twice = rows_of(spark, PEOPLE, a_person(1), a_person(1, email="other@example.org"))
    with pytest.raises(ContractError, match=r"people: .*1 keys \(person_id\) stand more than once"):
        lake.write(PEOPLE, twice, "f1")
    with pytest.raises(ContractError, match="stand more than once"):
        lake.find(PEOPLE, "f1")


def test_rows_of_another_shape_are_refused_before_anything_is_written(spark: SparkSession, lake: Lake) -> None:
    with pytest.raises(ContractError, match="column age_years is missing"):
        lake.write(PEOPLE, rows_of(spark, PEOPLE, a_person()).drop("age_years"), "f1")
    assert not Path(lake.path("people")).exists()


def test_the_head_is_found_by_what_it_was_made_from(spark: SparkSession, lake: Lake) -> None:
    assert lake.find(PEOPLE, "f1") is None
    pin = lake.write(PEOPLE, rows_of(spark, PEOPLE, a_person()), "f1")
    assert lake.find(PEOPLE, "f1") == pin
    assert lake.find(PEOPLE, "f2") is None


def test_a_changed_declaration_replaces_the_table_with_its_rules(spark: SparkSession, lake: Lake) -> None:
    first = lake.write(PEOPLE, rows_of(spark, PEOPLE, a_person()), "f1")
    changed = Table("people", PEOPLE.comment, PEOPLE.key, PEOPLE.columns[:2], (Check("id_short", "person_id < 'p5'"),))
    pin = lake.write(changed, rows_of(spark, changed, {"person_id": "p1"}), "f2")
    assert lake.read(pin).columns == ["person_id", "email"]
    properties = deltalake.DeltaTable(lake.path("people")).metadata().configuration
    assert [key for key in properties if "constraints" in key] == ["delta.constraints.id_short"]
    assert pin.version > first.version
    assert [row["person_id"] for row in lake.read(first).collect()] == ["p1"]


@pytest.fixture
def new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A host on another clock than UTC."""
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


# Both are 01:30 on the clocks of New York, an hour apart.
@pytest.mark.parametrize("known_until", [utc("2026-11-01 05:30:00.000001"), utc("2026-11-01 06:30:00.000001")])
@pytest.mark.usefixtures("new_york")
def test_a_publication_comes_back_as_it_was_published_on_a_host_of_any_time_zone(
    lake: Lake, known_until: datetime
) -> None:
    assert lake.last_publication() is None
    assert lake.published_known_until() == {}
    with pytest.raises(LakeError, match="found no publication; run `crm-spark refresh`"):
        lake.require_publication()
    first = Publication(
        publication_no=1,
        publication_id="abc",
        published_at=datetime(2026, 11, 1, 7, tzinfo=UTC),
        as_of=date(2026, 10, 31),
        known_until=known_until,
        currency="EUR",
        crm_spark_version="0.1.0",
        tables={name: Pin(name, 3, f"f_{name}", f"5:{-(2**70)}", 5) for name in ("people", "things")},
    )
    lake.publish(first)
    assert lake.require_publication() == first
    second = Publication(
        **(vars(first) | {"publication_no": 2, "publication_id": "def", "known_until": utc("2026-11-01 04:00:00")})
    )
    lake.publish(second)
    assert lake.last_publication() == second
    # The newest publication of a date tells, not the highest instant.
    assert lake.published_known_until() == {date(2026, 10, 31): utc("2026-11-01 04:00:00")}


def test_views_show_the_pinned_versions(spark: SparkSession, lake: Lake) -> None:
    pin = lake.write(PEOPLE, rows_of(spark, PEOPLE, a_person(1)), "f1")
    publication = Publication(
        1, "abc", utc("2026-11-01"), date(2026, 11, 1), utc("2026-11-01"), "USD", "0", {"people": pin}
    )
    for statement in published_views(lake, publication).values():
        spark.sql(statement)
    lake.write(PEOPLE, rows_of(spark, PEOPLE, a_person(2), a_person(3)), "f2")
    assert [row["person_id"] for row in spark.table("people").collect()] == ["p1"]
    spark.catalog.dropTempView("people")


def test_fingerprints_tell_values_apart_and_not_the_order_of_keys() -> None:
    assert content_fingerprint({"a": 1, "b": 2}) == content_fingerprint({"b": 2, "a": 1})
    different = [content_fingerprint(*parts) for parts in (("a", "b"), ("ab",), (["a", "b"],), ("a", None), ("a",))]
    assert len(set(different)) == len(different)
    assert content_fingerprint(date(2026, 11, 1)) != content_fingerprint(date(2026, 11, 2))


def test_a_quoted_identifier_cannot_end_early(spark: SparkSession) -> None:
    name = "a`; DROP TABLE b; --`"
    assert spark.sql(f"SELECT 1 AS {quoted(name)}").columns == [name]
