"""One run: what is up to date is taken, what is not is made."""

import shutil
import threading
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from builders import rows_of, utc
from pyspark.sql import DataFrame

import crm_spark.run
from crm_spark.config import Config, load_config
from crm_spark.errors import ContractError, LakeError
from crm_spark.lake import Lake
from crm_spark.run import Run, code_version
from crm_spark.session import conf_dir
from crm_spark.tables import Column, Table

pytestmark = pytest.mark.both_engines

NUMBERS = Table("numbers", "One row per number.", ("number",), (Column("number", "bigint", "The number."),))
SQUARES = Table("squares", "One row per number.", ("square",), (Column("square", "bigint", "Its square."),))


@pytest.fixture
def config(lake: Lake) -> Config:
    return load_config(conf_dir() / "complete_journey.toml", lake=lake.uri)


@pytest.fixture
def run(lake: Lake, config: Config) -> Run:
    until, run_at = utc("2026-11-02 00:00:00"), utc("2026-11-03 00:00:00")
    return Run(config, lake, date(2026, 11, 1), until, until, run_at, previous=None)


class Numbers:
    """Makes both tables and counts how often each is really built."""

    def __init__(self) -> None:
        self.built: list[str] = []

    def update(self, run: Run, *numbers: int, given: object = None) -> None:
        def build_numbers() -> DataFrame:
            self.built.append("numbers")
            return rows_of(run.lake.spark, NUMBERS, *({"number": number} for number in numbers))

        def build_squares(rows: DataFrame) -> DataFrame:
            self.built.append("squares")
            return rows.selectExpr("number * number AS square")

        run.update(NUMBERS, build_numbers, given=[given, numbers])
        run.update(SQUARES, build_squares, [NUMBERS])


def next_run(run: Run, *, published: bool = True) -> Run:
    if not published:
        return replace(run, pins={})
    publication = run.publication()
    run.lake.publish(publication)
    return replace(run, pins={}, previous=run.lake.last_publication())


def versions_of(lake: Lake, table: Table) -> list[str]:
    return sorted(path.name for path in Path(lake.path(table.name), "_delta_log").glob("*.json"))


def test_the_same_inputs_write_nothing_and_publish_the_same(run: Run) -> None:
    numbers = Numbers()
    numbers.update(run, 1, 2, 3)
    assert numbers.built == ["numbers", "squares"]
    assert sorted(row["square"] for row in run.read(SQUARES).collect()) == [1, 4, 9]
    before = versions_of(run.lake, NUMBERS) + versions_of(run.lake, SQUARES)

    again = next_run(run)
    numbers.update(again, 1, 2, 3)
    assert numbers.built == ["numbers", "squares"]
    assert again.pins == run.pins
    assert versions_of(run.lake, NUMBERS) + versions_of(run.lake, SQUARES) == before
    assert again.publication().publication_id == run.publication().publication_id
    assert again.publication().publication_no == 2


def test_what_a_killed_run_finished_is_taken_up(run: Run) -> None:
    numbers = Numbers()
    numbers.update(run, 1, 2, 3)
    after_kill = next_run(run, published=False)
    numbers.update(after_kill, 1, 2, 3)
    assert numbers.built == ["numbers", "squares"]
    assert after_kill.pins == run.pins


def test_a_changed_input_is_made_anew_and_a_result_with_the_same_content_stops_there(run: Run) -> None:
    numbers = Numbers()
    numbers.update(run, 1, 2)
    changed = next_run(run)
    numbers.update(changed, 1, 2, 3)
    assert numbers.built == ["numbers", "squares"] * 2
    assert changed.pins["squares"].version > run.pins["squares"].version
    assert changed.publication().publication_id != run.publication().publication_id

    # Another value, the same rows: the table that reads them need not be made.
    same_rows = next_run(changed)
    numbers.update(same_rows, 1, 2, 3, given="other")
    assert numbers.built == ["numbers", "squares"] * 2 + ["numbers"]
    assert same_rows.pins["squares"] == changed.pins["squares"]


def test_a_head_that_was_never_published_does_not_hide_the_published_version(run: Run) -> None:
    numbers = Numbers()
    numbers.update(run, 1, 2)
    stopped = next_run(run)
    numbers.update(stopped, 7)
    back = replace(stopped, pins={})
    numbers.update(back, 1, 2)
    assert back.pins == run.pins
    assert sorted(row["square"] for row in back.read(SQUARES).collect()) == [1, 4]


def test_a_stage_before_the_first_must_be_there_already(run: Run) -> None:
    run.may_build = False
    with pytest.raises(LakeError, match="numbers: found no version for these inputs; run a whole refresh first"):
        Numbers().update(run, 1)


def test_what_nothing_feeds_is_read_as_empty_and_what_is_missing_is_an_error(run: Run) -> None:
    with pytest.raises(KeyError):
        run.read(NUMBERS)
    run.absent = {"numbers"}
    assert run.read(NUMBERS).columns == NUMBERS.column_names
    assert run.read(NUMBERS).isEmpty()
    assert run.fingerprint(SQUARES, [NUMBERS], None) == run.fingerprint(SQUARES, [], None)


def test_a_broken_table_leaves_its_published_version_as_it_was(run: Run) -> None:
    numbers = Numbers()
    numbers.update(run, 1, 2)
    broken = next_run(run)
    with pytest.raises(ContractError, match=r"numbers: .*stand more than once"):
        numbers.update(broken, 5, 5)
    assert "numbers" not in broken.pins
    repaired = replace(broken, pins={})
    numbers.update(repaired, 1, 2)
    assert repaired.pins == run.pins


def test_the_code_the_declaration_and_all_values_make_a_fingerprint(run: Run) -> None:
    Numbers().update(run, 1)
    other = replace(NUMBERS, comment="One row per thing.")
    fingerprints = [
        run.fingerprint(NUMBERS, [], None),
        run.fingerprint(NUMBERS, [], 1),
        run.fingerprint(NUMBERS, [NUMBERS], None),
        run.fingerprint(NUMBERS, [SQUARES], None),
        run.fingerprint(other, [], None),
    ]
    assert len(set(fingerprints)) == len(fingerprints)
    assert run.fingerprint(NUMBERS, [], 1) == fingerprints[1]


def test_updates_side_by_side_run_at_once_and_an_error_is_raised_when_none_runs_any_more(run: Run) -> None:
    # Each waits for the other: they can only end if they really run at once.
    met = threading.Barrier(2, timeout=30)
    run.side_by_side(met.wait, met.wait)
    done: list[int] = []

    def fail() -> None:
        met.wait()
        raise LakeError("no")

    def write() -> None:
        met.wait()
        time.sleep(0.2)
        done.append(1)

    with pytest.raises(LakeError, match="no"):
        run.side_by_side(fail, write)
    assert done == [1]


@pytest.mark.parametrize(
    ("file", "layer", "counts"),
    [
        ("features/declared.py", "facts", False),
        ("features/declared.py", "features", True),
        ("features/declared.py", "marts", True),
        ("stages/features.py", "facts", False),
        ("stages/features.py", "features", True),
        ("sources/landing.py", "features", True),
        ("lake.py", "sources", True),
        ("config.py", "sources", True),
        ("cli.py", "marts", False),
        ("report/build.py", "marts", False),
        ("generator/shop.py", "marts", False),
        ("stages/__init__.py", "marts", False),
    ],
)
def test_other_code_makes_anew_its_own_layer_and_later_ones(
    file: str, layer: str, counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "crm_spark"
    shutil.copytree(Path(crm_spark.run.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(crm_spark.run.resources, "files", lambda name: package)
    before = code_version.__wrapped__(layer)
    changed = package / file
    changed.write_text(changed.read_text() + "# a comment\n")
    assert (code_version.__wrapped__(layer) != before) == counts
