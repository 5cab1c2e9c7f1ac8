"""Verification: a lake that is as it was published is whole; whatever is broken in another is found and named."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession
from shop import RUN_AT, refreshed, write_shop

from crm_spark.cleaning.tables import BATCH_PROFILES, CLEAN, CLEANING_ACCOUNT, REJECTED
from crm_spark.cli import main
from crm_spark.delta import quoted
from crm_spark.errors import LakeError, MachineFaultError
from crm_spark.lake import Lake
from crm_spark.publications import PUBLICATIONS, Pin, Publication
from crm_spark.sources.landing import read_landed_files
from crm_spark.sources.tables import INGEST_LEDGER
from crm_spark.verifying import verify

ORDERS, BAD_ORDERS = CLEAN["orders"].name, REJECTED["orders"].name


def publish(lake: Lake, number: int, *pins: Pin) -> None:
    tables = {pin.name: pin for pin in pins}
    lake.publish(Publication(number, f"id{number}", RUN_AT, date(2025, 10, 1), RUN_AT, "EUR", "0.1.0", tables))


@pytest.fixture(scope="module")
def cleaned(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake that was refreshed up to its clean tables, and these published."""
    folder = tmp_path_factory.mktemp("cleaned")
    refreshed(spark, write_shop(folder / "files"), folder / "lake", last_stage="cleaning")
    lake = Lake(spark, str(folder / "lake"))
    own = [pin for table in (INGEST_LEDGER, CLEANING_ACCOUNT) if (pin := lake.find(table))]
    publish(lake, 1, *own, *lake.pins_beside(CLEANING_ACCOUNT).values())
    return folder / "lake"


@pytest.fixture
def broken(spark: SparkSession, cleaned: Path, tmp_path: Path) -> Lake:
    """A copy of it to break."""
    return Lake(spark, str(shutil.copytree(cleaned, tmp_path / "lake")))


def a_file(lake: Lake, name: str) -> Path:
    pin = lake.require_publication().tables[name]
    return Path(min(DeltaTable(lake.path(name), version=pin.version).file_uris()))


def found_in(lake: Lake) -> list[str]:
    return sorted(verify(lake, lambda what: None))


def test_a_lake_as_it_was_published_is_whole_and_nothing_in_it_is_changed(spark: SparkSession, cleaned: Path) -> None:
    lake = Lake(spark, str(cleaned))
    before = {path: path.stat().st_mtime_ns for path in cleaned.rglob("*")}
    looked_at: list[str] = []
    assert list(verify(lake, looked_at.append)) == []
    assert {path: path.stat().st_mtime_ns for path in cleaned.rglob("*")} == before
    tables = lake.require_publication().tables
    assert {f"{what} of {name}" for what in ("files", "rows") for name in tables} <= set(looked_at)
    assert sum(what.startswith("landing/") for what in looked_at) == 3


def test_files_that_are_missing_or_others_are_named(broken: Lake) -> None:
    pins = dict(broken.require_publication().tables)
    publish(broken, 2, *pins.values(), Pin("nowhere", 1, "f", "0:0", 0))
    publish(broken, 3, *(pins | {ORDERS: replace(pins[ORDERS], version=99)}).values())
    publish(broken, 4, *pins.values())
    rejected, profiles, account = (
        a_file(broken, name) for name in (BAD_ORDERS, BATCH_PROFILES.name, CLEANING_ACCOUNT.name)
    )
    rejected.unlink()
    with profiles.open("ab") as file:
        file.write(b"more")
    size = account.stat().st_size
    account.write_bytes(b"0" * size)
    account.with_name(f".{account.name}.crc").unlink(missing_ok=True)
    first, second, _ = read_landed_files(broken.read(pins[INGEST_LEDGER.name]))
    root = Path(broken.uri)
    (root / first.landed_path).write_bytes(b"x" * first.byte_count)
    (root / second.landed_path).unlink()

    def shown(name: str, numbers: str = "1 to 4") -> str:
        return f"version {pins[name].version}, which publications {numbers} show"

    found = found_in(broken)
    for start in (
        f"{BATCH_PROFILES.name}: {shown(BATCH_PROFILES.name)}: {profiles.name} has ",
        f"{CLEANING_ACCOUNT.name}: version {pins[CLEANING_ACCOUNT.name].version} cannot be read",
        f"{ORDERS}: version 99, which publication 3 shows, cannot be opened (",
        f"{first.landed_path} ({first.file_name}): holds other bytes than came",
        f"{second.landed_path} ({second.file_name}): is missing",
        "nowhere: version 1, which publication 2 shows, cannot be opened (",
        f"{BAD_ORDERS}: {shown(BAD_ORDERS)}: {rejected.name} is missing",
    ):
        assert sum(line.startswith(start) for line in found) == 1, start
    assert len(found) == 7


def test_a_damaged_commit_that_a_checkpoint_covers_is_named_as_is_its_repair(broken: Lake) -> None:
    version = broken.require_publication().tables[ORDERS].version
    DeltaTable(broken.path(ORDERS)).create_checkpoint()
    Path(broken.path(ORDERS), "_delta_log", f"{version:020}.json").write_text("{")
    assert found_in(broken) == [
        f"{ORDERS}: version {version}, which publication 1 shows, cannot be opened by Spark (its commit is damaged); "
        f"try crm-spark repair {ORDERS}"
    ]
    told = f"^{ORDERS}: found that the commit of version {version} is cut off .*; run crm-spark repair {ORDERS}$"
    with pytest.raises(LakeError, match=told):
        broken.newest(CLEAN["orders"])


def test_a_damaged_commit_that_no_publication_shows_is_named(broken: Lake) -> None:
    version = broken.require_publication().tables[ORDERS].version + 1
    Path(broken.path(ORDERS), "_delta_log", f"{version:020}.json").write_text('{"commitInfo":{"timestamp":17')
    assert found_in(broken) == [
        f"{ORDERS}: the commit of version {version}, which no publication shows, is damaged; "
        f"try crm-spark repair {ORDERS}"
    ]


def test_who_meets_a_missing_or_damaged_file_is_told_in_one_line(
    spark: SparkSession, broken: Lake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told_by(fails: Callable[[], object]) -> str:
        monkeypatch.setattr("crm_spark.cli.app", fails)
        with pytest.raises(SystemExit) as exit_:
            main()
        assert exit_.value.code == 2
        return capsys.readouterr().err

    pins = broken.require_publication().tables
    orders = broken.read(pins[ORDERS])
    missing = a_file(broken, ORDERS)
    missing.unlink()
    told = f"crm-spark: {ORDERS}: found that {missing.name} is missing or damaged, expected a whole file; "
    told += "if the table is the lake's, crm-spark verify tells what to do\n"
    assert told_by(orders.collect) == told
    assert told_by(lambda: broken.read(pins[ORDERS])) == told
    assert told_by(lambda: broken.query(f"SELECT max(amount) FROM {ORDERS}", pins[ORDERS])) == told
    commit = Path(broken.path(BAD_ORDERS), "_delta_log", f"{pins[BAD_ORDERS].version + 1:020}.json")
    commit.write_text("{")
    newest = spark.read.format("delta")
    assert told_by(lambda: newest.load(broken.path(BAD_ORDERS)).collect()) == told.replace(
        f"{ORDERS}: found that {missing.name}", f"{BAD_ORDERS}: found that {commit.name}"
    )


def test_rows_that_break_rules_or_are_not_the_published_ones_are_told(spark: SparkSession, broken: Lake) -> None:
    pins = dict(broken.require_publication().tables)
    account = broken.read(pins[CLEANING_ACCOUNT.name])
    wrong = account.withColumns(
        {"accepted_count": account.accepted_count - 1, "rejected_count": account.rejected_count + 1}
    )
    pins[CLEANING_ACCOUNT.name] = broken.write(CLEANING_ACCOUNT, wrong, "wrong")
    pins[ORDERS] = replace(pins[ORDERS], content_hash="1:2")
    rejected, ledger = (f"delta.{quoted(broken.path(name))}" for name in (BAD_ORDERS, INGEST_LEDGER.name))
    spark.sql(f"ALTER TABLE {rejected} DROP CONSTRAINT has_reason")
    spark.sql(f"ALTER TABLE {rejected} SET TBLPROPERTIES ('delta.enableDeletionVectors' = 'true')")
    spark.sql(f"INSERT INTO {ledger} SELECT * FROM {ledger} LIMIT 1")
    for name in (BAD_ORDERS, INGEST_LEDGER.name):
        pins[name] = replace(pins[name], version=DeltaTable(broken.path(name)).version())
    publish(broken, 2, *pins.values())
    found = found_in(broken)
    again = f"{INGEST_LEDGER.name}: version {pins[INGEST_LEDGER.name].version}"
    for start in (
        f"{BAD_ORDERS}: the stored table does not have its rule has_reason: size(reasons) > 0",
        f"{BAD_ORDERS}: found delta.enableDeletionVectors = true, expected false",
        f"{BAD_ORDERS}: found reader version 3, expected 1",
        f"{INGEST_LEDGER.name}: 1 keys (source, batch_id) stand more than once",
        f"{again} has other content than was published: found 4 rows",
        f"{ORDERS}: version {pins[ORDERS].version} has other content than was published: found",
    ):
        assert sum(line.startswith(start) for line in found) == 1, start
    # Each of three files has a row fewer in the one and a row more in the other than the account says.
    assert sum(" rows that stand, expected accepted_count = " in line for line in found) == 3
    assert sum(" rows that stand, expected rejected_count = " in line for line in found) == 3
    assert len(found) == 12


def test_a_table_that_is_declared_otherwise_is_not_called_whole(spark: SparkSession, broken: Lake) -> None:
    pins = broken.require_publication().tables
    profiles = f"delta.{quoted(broken.path(BATCH_PROFILES.name))}"
    spark.sql(f"ALTER TABLE {profiles} ADD COLUMNS (extra string)")
    changed = replace(pins[BATCH_PROFILES.name], version=DeltaTable(broken.path(BATCH_PROFILES.name)).version())
    publish(broken, 2, changed)
    (found,) = found_in(broken)
    assert found.startswith("batch_profiles: is not as this version of the program declares it")
    assert "column extra is not declared" in found


def test_the_command_ends_with_1_if_something_is_wrong(
    spark: SparkSession, broken: Lake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def shared(*_: object) -> Iterator[SparkSession]:
        yield spark

    monkeypatch.setattr("crm_spark.cli._session", shared)

    def ended(*arguments: str) -> tuple[object, list[str]]:
        monkeypatch.setattr(sys, "argv", ["crm-spark", *arguments, "--lake", broken.uri])
        with pytest.raises(SystemExit) as exit_:
            main()
        return exit_.value.code, capsys.readouterr().out.splitlines()

    publish(broken, 2, broken.require_publication().tables[ORDERS])
    assert ended("verify") == (0, [f"{broken.uri} is whole, up to publication 2: 1 tables"])
    a_file(broken, ORDERS).unlink()
    code, told = ended("verify")
    assert (code, len(told)) == (1, 2)
    assert told[-1].startswith("1 finding. ")
    code, told = ended("maintain", "--dry-run", "--keep-days", "36500")
    assert (code, told[0]) == (0, "Nothing is changed. This would be done:")
    assert told[1].endswith("UTC withdrawn, 2 kept")
    assert ended("repair", ORDERS)[0] == 0
    shutil.rmtree(broken.path(PUBLICATIONS.name))
    assert ended("verify")[0] == 2


def test_publications_that_cannot_be_read_are_an_error_that_says_so(broken: Lake) -> None:
    only, *_ = Path(broken.path(PUBLICATIONS.name)).glob("*.parquet")
    only.unlink()
    with pytest.raises(LakeError, match=r"^publications: cannot be read"):
        found_in(broken)


def test_a_machine_that_cannot_read_says_nothing_of_the_lake(broken: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError("Generic LocalFileSystem error: Permission denied (os error 13)")

    with monkeypatch.context() as patch:
        patch.setattr("crm_spark.verifying.DeltaTable", refused)
        with pytest.raises(MachineFaultError, match=r"^storage: found a file that this user may not read"):
            found_in(broken)
    monkeypatch.setattr("crm_spark.publications.answer", refused)
    with pytest.raises(MachineFaultError):
        found_in(broken)
