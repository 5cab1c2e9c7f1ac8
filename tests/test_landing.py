import hashlib
import os
import sys
from pathlib import Path

import pytest
from builders import RUN_AT, a_source, landed
from chispa import assert_df_equality
from pyarrow import fs
from pyspark.sql import SparkSession

from crm_spark.errors import SourceError
from crm_spark.sources import landing
from crm_spark.sources.landing import build_ingest_ledger, read_landed_files


def a_file(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def landing_of(lake: Path) -> dict[str, str]:
    return {
        str(path.relative_to(lake)): path.read_text()
        for path in sorted((lake / "landing").rglob("*"))
        if path.is_file()
    }


def test_a_file_is_kept_as_the_bytes_that_came_under_the_name_of_its_content(tmp_path: Path) -> None:
    text = '\ufeffid;"x"\r\n1;ä\n'
    path = a_file(tmp_path / "in", "orders.csv", text)
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    (file,) = landed(str(tmp_path / "lake"), {"shop": a_source(path)})
    assert file.batch_id == content
    assert (file.source, file.entity, file.file_name) == ("shop", "orders", "orders.csv")
    assert file.byte_count == path.stat().st_size
    assert file.landed_path == f"landing/shop/{content}.csv"
    assert file.ingested_at == RUN_AT
    assert (tmp_path / "lake" / file.landed_path).read_bytes() == path.read_bytes()


def test_a_compressed_file_is_kept_compressed(tmp_path: Path) -> None:
    path = tmp_path / "orders.csv.gz"
    path.write_bytes(b"\x1f\x8b not really gzip")
    (file,) = landed(str(tmp_path / "lake"), {"shop": a_source(path)})
    assert (tmp_path / "lake" / file.landed_path).read_bytes() == path.read_bytes()
    assert file.landed_path.endswith(".gz")


def test_the_same_file_again_and_a_renamed_copy_change_nothing(tmp_path: Path) -> None:
    lake = str(tmp_path / "lake")
    sources = {"shop": a_source(tmp_path / "in")}
    a_file(tmp_path / "in", "orders.csv", "id\n1\n")
    first = landed(lake, sources)
    assert landed(lake, sources, first) == first
    a_file(tmp_path / "in", "copy.csv", "id\n1\n")
    assert landed(lake, sources, first) == first
    assert len(landing_of(tmp_path / "lake")) == 1


def test_two_equal_files_that_come_together_are_taken_once(tmp_path: Path) -> None:
    a_file(tmp_path / "in", "a.csv", "id\n1\n")
    a_file(tmp_path / "in", "b.csv", "id\n1\n")
    (file,) = landed(str(tmp_path / "lake"), {"shop": a_source(tmp_path / "in")})
    assert file.file_name == "a.csv"


def test_equal_files_of_two_sources_are_two_batches(tmp_path: Path) -> None:
    path = a_file(tmp_path / "in", "a.csv", "id\n1\n")
    files = landed(str(tmp_path / "lake"), {"web": a_source(path), "shop": a_source(path)})
    assert [file.source for file in files] == ["shop", "web"]
    assert files[0].batch_id == files[1].batch_id


def test_a_new_file_is_added_to_those_before(tmp_path: Path) -> None:
    lake = str(tmp_path / "lake")
    sources = {"shop": a_source(tmp_path / "in")}
    a_file(tmp_path / "in", "day1.csv", "id\n1\n")
    first = landed(lake, sources)
    a_file(tmp_path / "in", "day2.csv", "id\n2\n")
    both = landed(lake, sources, first)
    assert {file.file_name for file in both} == {"day1.csv", "day2.csv"}
    assert set(first) <= set(both)


def test_a_file_that_went_away_stays_in_the_ledger(tmp_path: Path) -> None:
    lake = str(tmp_path / "lake")
    sources = {"shop": a_source(tmp_path / "in")}
    a_file(tmp_path / "in", "day1.csv", "id\n1\n")
    first = landed(lake, sources)
    (tmp_path / "in" / "day1.csv").unlink()
    a_file(tmp_path / "in", "day2.csv", "id\n2\n")
    assert {file.file_name for file in landed(lake, sources, first)} == {"day1.csv", "day2.csv"}


def test_a_known_name_with_other_content_is_an_error_that_names_both(tmp_path: Path) -> None:
    lake = str(tmp_path / "lake")
    sources = {"shop": a_source(tmp_path / "in")}
    a_file(tmp_path / "in", "orders.csv", "id\n1\n")
    first = landed(lake, sources)
    a_file(tmp_path / "in", "before.csv", "id\n0\n")
    a_file(tmp_path / "in", "orders.csv", "id\n2\n")
    with pytest.raises(SourceError) as caught:
        landed(lake, sources, first)
    message = str(caught.value)
    assert message.startswith("sources.shop: file orders.csv came before with content ")
    assert sha256("id\n1\n")[:12] in message
    assert sha256("id\n2\n")[:12] in message
    assert list(landing_of(tmp_path / "lake").values()) == ["id\n1\n"]


def test_a_folder_gives_its_files_but_not_hidden_ones_or_those_of_folders_within(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", ".hidden.csv", "_SUCCESS"):
        a_file(tmp_path / "in", name, name)
    a_file(tmp_path / "in" / "deeper", "c.csv", "c")
    files = landed(str(tmp_path / "lake"), {"shop": a_source(tmp_path / "in")})
    assert {file.file_name for file in files} == {"a.csv", "b.csv"}


def test_a_pattern_gives_the_files_that_match(tmp_path: Path) -> None:
    for name in ("day1.csv", "day2.csv", "other.csv", "day3.json"):
        a_file(tmp_path / "in", name, name)
    files = landed(str(tmp_path / "lake"), {"shop": a_source(tmp_path / "in" / "day*.csv")})
    assert {file.file_name for file in files} == {"day1.csv", "day2.csv"}


def test_a_package_ships_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_file(tmp_path / "shipping_orders", "__init__.py", "")
    a_file(tmp_path / "shipping_orders" / "data", "orders.csv", "id\n1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "shipping_orders", raising=False)
    source = a_source("data/orders.csv", package="shipping_orders")
    (file,) = landed(str(tmp_path / "lake"), {"shop": source})
    assert file.batch_id == sha256("id\n1\n")


@pytest.mark.parametrize("path", ["absent.csv", "absent/*.csv", "empty", "empty/*.csv"])
def test_a_source_without_a_file_is_named(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError) as caught:
        landed(str(tmp_path / "lake"), {"shop": a_source(tmp_path / path)})
    assert str(caught.value) == f"sources.shop: found no file at {tmp_path / path}, expected at least one"


def test_an_absent_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"sources.shop: found no Python package no_such_package; install it"):
        landed(str(tmp_path / "lake"), {"shop": a_source("a.csv", package="no_such_package")})


def test_an_interrupted_copy_is_not_taken_for_the_file(tmp_path: Path) -> None:
    path = a_file(tmp_path / "in", "orders.csv", "id\n1\n")
    batch_id = sha256("id\n1\n")
    a_file(tmp_path / "lake" / "landing" / "shop", f"{batch_id}.csv.part", "id")
    (file,) = landed(str(tmp_path / "lake"), {"shop": a_source(path)})
    assert landing_of(tmp_path / "lake") == {file.landed_path: "id\n1\n"}


def test_only_files_that_look_new_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, sources = str(tmp_path / "lake"), {"shop": a_source(tmp_path / "in")}
    old = a_file(tmp_path / "in", "old.csv", "id\n1\n")
    touched = a_file(tmp_path / "in", "touched.csv", "id\n2\n")
    first = landed(lake, sources)
    a_file(tmp_path / "in", "new.csv", "id\n3\n")
    os.utime(touched, (1, 1))
    read: list[str] = []
    hash_file = landing.hash_file
    monkeypatch.setattr(landing, "hash_file", lambda system, path: read.append(path) or hash_file(system, path))
    assert len(landed(lake, sources, first)) == 3
    assert sorted(Path(path).name for path in read) == ["new.csv", "touched.csv"]
    # Other content of the same size is noticed by its time.
    old.write_text("id\n9\n")
    with pytest.raises(SourceError, match=r"file old.csv came before with content"):
        landed(lake, sources, first)


def test_a_file_that_grows_while_it_is_copied_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = a_file(tmp_path / "in", "orders.csv", "id\n1\n")
    hash_file = landing.hash_file

    def hash_then_grow(system: fs.FileSystem, name: str) -> str:
        batch_id = hash_file(system, name)
        path.write_text("id\n1\n2\n")
        return batch_id

    monkeypatch.setattr(landing, "hash_file", hash_then_grow)
    with pytest.raises(SourceError, match=r"sources.shop: file orders.csv changed while it was read; run again"):
        landed(str(tmp_path / "lake"), {"shop": a_source(path)})
    assert not list((tmp_path / "lake" / "landing" / "shop").glob("*.csv"))


def test_the_ledger_keeps_every_file_as_it_was(spark: SparkSession, tmp_path: Path) -> None:
    a_file(tmp_path / "in", "a.csv", "id\n1\n")
    a_file(tmp_path / "in", "b.csv", "id\n2\n")
    files = landed(str(tmp_path / "lake"), {"shop": a_source(tmp_path / "in")})
    ledger = build_ingest_ledger(spark, files)
    # In the same order, however the ledger's rows are stored.
    assert read_landed_files(ledger) == read_landed_files(ledger.orderBy("batch_id", ascending=False)) == files
    assert_df_equality(ledger, build_ingest_ledger(spark, files[::-1]), ignore_row_order=True)
