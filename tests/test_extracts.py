"""What is new in a Delta table or a database lands once, as Parquet; a real PostgreSQL is asked."""

import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from builders import CURRENCY, RUN_AT, a_source
from deltalake import DeltaTable, write_deltalake
from postgres import Postgres, find_postgres
from pyspark.sql import SparkSession
from test_increments import Site

from crm_spark.cleaning.preview import Rejection, preview_source
from crm_spark.cleaning.rules import SiteRules
from crm_spark.config import Source, load_config
from crm_spark.errors import CrmSparkError, SourceError
from crm_spark.sources.extracts import staged_extracts
from crm_spark.sources.landing import LandedFile, land_sources
from crm_spark.sources.reading import describe_files

Landed = list[LandedFile]


def taken_in(spark: SparkSession, lake: Path, source: Source, known: Sequence[LandedFile] = ()) -> Landed:
    """The ledger of one source after another extract, an hour after the last."""
    sources, run_at = {"shop": source}, RUN_AT + timedelta(hours=len(known))
    with staged_extracts(spark, sources, str(lake), known, run_at) as extracts:
        landed = land_sources(sources, extracts, str(lake), known, run_at)
    return describe_files(spark, sources, {"shop": set()}, landed, str(lake))


def rows_in(spark: SparkSession, lake: Path, files: Sequence[LandedFile], *columns: str) -> list[tuple[object, ...]]:
    rows = spark.read.parquet(*(f"{lake}/{file.landed_path}" for file in files))
    return sorted((tuple(row) for row in rows.selectExpr(*columns).collect()), key=str)


def new_in(spark: SparkSession, lake: Path, after: Landed, before: Landed, *columns: str) -> list[tuple[object, ...]]:
    return rows_in(spark, lake, [file for file in after if file not in before], *columns)


# What a row is cannot be told from its file alone: folders, deleted rows, other names of columns.
AWKWARD = "'delta.enableDeletionVectors' = 'true', 'delta.columnMapping.mode' = 'name'"


def test_of_a_delta_table_the_rows_of_added_files_are_extracted_as_they_are(
    spark: SparkSession, tmp_path: Path
) -> None:
    lake, path = tmp_path / "lake", tmp_path / "orders"
    columns = "id INT, city STRING, at TIMESTAMP_NTZ, tags MAP<STRING, INT>"
    spark.sql(f"CREATE TABLE delta.`{path}` ({columns}) USING delta PARTITIONED BY (city) TBLPROPERTIES ({AWKWARD})")
    of_march = "(1, 'a b/ü', TIMESTAMP_NTZ'2026-03-29 02:30:00', map('x', 1))"
    spark.sql(f"INSERT INTO delta.`{path}` VALUES {of_march}, (2, 'Rome', NULL, NULL), (3, NULL, NULL, NULL)")
    source = a_source(path, format="delta")
    first = taken_in(spark, lake, source)
    assert new_in(spark, lake, first, [], "id", "city", "cast(at as string)", "tags['x']") == [
        (1, "a b/ü", "2026-03-29 02:30:00", 1), (2, "Rome", None, None), (3, None, None, None),
    ]  # fmt: skip
    assert dict(first[0].columns) == {"id": "int", "city": "string", "at": "timestamp", "tags": "map<string,int>"}

    # Of the row that is deleted before it was ever seen nothing comes; of the one that was seen it is not noticed.
    spark.sql(f"INSERT INTO delta.`{path}` VALUES (4, 'Rome', NULL, NULL), (5, 'Rome', NULL, NULL)")
    spark.sql(f"DELETE FROM delta.`{path}` WHERE id IN (2, 5)")
    second = taken_in(spark, lake, source, first)
    assert new_in(spark, lake, second, first, "id") == [(4,)]
    assert taken_in(spark, lake, source, second) == second

    # Files that hold rows of others anew bring none, before and after rows that are new.
    spark.sql(f"INSERT INTO delta.`{path}` VALUES (6, 'Rome', NULL, NULL)")
    spark.sql(f"OPTIMIZE delta.`{path}`")
    spark.sql(f"INSERT INTO delta.`{path}` VALUES (7, 'a b/ü', NULL, NULL)")
    third = taken_in(spark, lake, source, second)
    assert new_in(spark, lake, third, second, "id") == [(6,), (7,)]
    spark.sql(f"OPTIMIZE delta.`{path}`")
    assert taken_in(spark, lake, source, third) == third


def test_of_a_delta_table_whose_past_is_unknown_all_is_extracted(spark: SparkSession, tmp_path: Path) -> None:
    lake, path = tmp_path / "lake", tmp_path / "orders"
    source = a_source(path, format="delta")
    with pytest.raises(SourceError, match=r"sources.shop.path: found no Delta table at .*/orders, expected one"):
        taken_in(spark, lake, source)
    write_deltalake(path, pa.table({"id": pa.array([], pa.int64())}))
    empty = taken_in(spark, lake, source)
    assert (rows_in(spark, lake, empty, "id"), empty[0].columns) == ([], (("id", "bigint"),))

    write_deltalake(path, pa.table({"id": [1, 2]}), mode="append")
    first = taken_in(spark, lake, source, empty)
    (file,) = (file for file in first if file not in empty)
    identity = DeltaTable(path).metadata().id
    assert (file.file_name, file.extracted_until) == ("orders_20261101T130000Z.parquet", f"1 of {identity}")
    # Its log was cleaned up.
    for number in (3, 30):
        write_deltalake(path, pa.table({"id": [number]}), mode="append")
    DeltaTable(path).create_checkpoint()
    for version in (0, 1, 2):
        (path / "_delta_log" / f"{version:020}.json").unlink()
    second = taken_in(spark, lake, source, first)
    assert new_in(spark, lake, second, first, "id") == [(1,), (2,), (3,), (30,)]
    # It was made anew, and has as many versions.
    path.rename(tmp_path / "old")
    for number in (4, 5, 6):
        write_deltalake(path, pa.table({"id": [number]}), mode="append")
    third = taken_in(spark, lake, source, second)
    assert new_in(spark, lake, third, second, "id") == [(4,), (5,), (6,)]
    # What an extract held that shall not count is asked for again, and is the same.
    (last,) = (file for file in third if file not in second)
    without = source.model_copy(update={"leave_out": (last.file_name,)})
    again = taken_in(spark, lake, without, third)
    assert [file.batch_id for file in again] == [file.batch_id for file in third]
    # No extract is left behind.
    landed = {Path(file.landed_path).name for file in third}
    assert {path.name for path in (lake / "landing" / "shop").iterdir()} == landed


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    programs = find_postgres()
    if programs is None:
        said = "found no PostgreSQL server: run scripts/setup-postgres"
        if os.environ.get("CI") == "true":
            pytest.fail(said)
        pytest.skip(said)
    server = Postgres(programs)
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def login(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "postgres" in request.fixturenames:
        owner = request.getfixturevalue("postgres").owner
        monkeypatch.setenv("SHOP_USER", owner.user)
        monkeypatch.setenv("SHOP_PASSWORD", owner.password)


def a_table(postgres: Postgres, table: str, **settings: object) -> Source:
    signs_in = {"url": postgres.url, "user_from": "SHOP_USER", "password_from": "SHOP_PASSWORD"}
    mapped = {"entity": "orders", "format": "jdbc", "columns": {"order_id": "id"}}
    return Source(**{**mapped, **signs_in, "table": table, **settings})


TYPES = """
CREATE SCHEMA odd;
CREATE TYPE odd.mood AS ENUM ('sad', 'well');
CREATE DOMAIN odd.positive AS int CHECK (value > 0);
CREATE TABLE odd."All Kinds" (
    id bigint, price numeric(12, 2), share numeric, sold_at timestamp, "changed at" timestamptz, day date, hour time,
    key uuid, doc jsonb, tags text[], grid int[][], span interval, mood odd.mood, size odd.positive, raw bytea,
    ratio float8, is_new boolean, code char(4), word varchar(9), cost money
);
INSERT INTO odd."All Kinds" SELECT
    i, i / 4.0, i / 8.0, timestamp '2026-03-29 00:00' + i * interval '10 minutes',
    CASE WHEN i % 7 > 0 THEN timestamptz '2026-03-29 00:00+00' + i * interval '1 microsecond' END, '2026-03-29',
    '12:30', '00000000-0000-0000-0000-000000000001', '{"a": [1]}', '{x,NULL}', '{{1,2},{3,4}}', '1 day 2 hours', 'well',
    5, '\\x00ff', 0.5, true, 'ab', 'abc', 5.5
FROM generate_series(1, 700) i;
INSERT INTO odd."All Kinds" (id) VALUES (NULL);
"""


def test_all_kinds_of_columns_come_and_connections_share_the_reading(
    spark: SparkSession, postgres: Postgres, tmp_path: Path
) -> None:
    postgres.run(TYPES)
    sources = [a_table(postgres, "odd.All Kinds")] + [
        a_table(postgres, "odd.All Kinds", watermark=watermark, partition_by=column, partitions=3)
        for watermark, column in (("id", "sold_at"), ("changed at", "share"), (None, "id"))
    ]
    landed = [taken_in(spark, tmp_path / str(number), source) for number, source in enumerate(sources)]
    assert len({file.batch_id for (file,) in landed}) == 1
    assert landed[1][0].extracted_until == "700 of odd.All Kinds.id"
    assert landed[2][0].extracted_until == "2026-03-29 00:00:00.000699+00:00 of odd.All Kinds.changed at"
    rows = spark.read.parquet(str(tmp_path / "0" / landed[0][0].landed_path))
    assert rows.count() == 701
    # 02:30 is no time of that day in Berlin, where a Java may run; it is one in UTC, as which it is stored.
    (row,) = rows.where("id = 15").collect()
    assert dict(landed[0][0].columns)["sold_at"] == "timestamp"
    assert {name: str(value) for name, value in row.asDict().items()} == {
        "id": "15", "price": "3.75", "share": "1.875000000000000000", "sold_at": "2026-03-29 02:30:00",
        "changed at": "2026-03-29 00:00:00.000015", "day": "2026-03-29", "hour": "12:30:00",
        "key": "00000000-0000-0000-0000-000000000001", "doc": '{"a": [1]}', "tags": "{x,NULL}", "grid": "{{1,2},{3,4}}",
        "span": "1 day 02:00:00", "mood": "well", "size": "5", "raw": str(b"\x00\xff"), "ratio": "0.5",
        "is_new": "True", "code": "ab  ", "word": "abc", "cost": "$5.50",
    }  # fmt: skip


def test_events_that_are_equal_are_not_taken_for_one_and_a_database_that_was_set_back_is_read_anew(
    spark: SparkSession, postgres: Postgres, tmp_path: Path
) -> None:
    postgres.run("CREATE TABLE clicks (n int, page text); INSERT INTO clicks VALUES (1, 'a'), (1, 'a'), (9, 'b')")
    source = a_table(postgres, "clicks", watermark="n", overlap=3, key_from_content=True)
    first = taken_in(spark, tmp_path, source)
    postgres.run("INSERT INTO clicks VALUES (9, 'b'), (10, 'c'), (7, 'late'), (2, 'too late')")
    second = taken_in(spark, tmp_path, source, first)
    assert new_in(spark, tmp_path, second, first, "n", "page") == [
        (10, "c"), (7, "late"), (9, "b"), (9, "b"),
    ]  # fmt: skip
    assert taken_in(spark, tmp_path, source, second) == second
    postgres.run("DELETE FROM clicks WHERE n > 1; INSERT INTO clicks VALUES (NULL, 'never'), (2, 'again')")
    third = taken_in(spark, tmp_path, source, second)
    assert new_in(spark, tmp_path, third, second, "n", "page") == [(2, "again"), (None, "never")]


CONF = """
as_of = 2026-11-01

[sources.shop]
entity = "orders"
format = "jdbc"
url = "{url}"
table = "public.lines"
user_from = "SHOP_USER"
password_from = "SHOP_PASSWORD"
watermark = "updated_at"
overlap = 30
partition_by = "receipt"
partitions = 2

[sources.shop.columns]
order_id = "receipt"
line_no = "1"
customer_id = "card"
ordered_at = "sold_at"
amount = "price"
known_at = "sold_at"
"""
LINES = """
CREATE TABLE lines (
    receipt bigint PRIMARY KEY, card text, sold_at timestamptz, price numeric(12, 2), updated_at timestamp
);
INSERT INTO lines SELECT
    i, 'c' || i % 90, timestamptz '2026-01-01 00:00+01' + i * interval '1 hour',
    CASE WHEN i % 50 > 0 THEN i / 100.0 END, CASE WHEN i <> 7 THEN timestamp '2026-10-01' + i * interval '1 second' END
FROM generate_series(1, 3000) i;
"""
# The database's own answer.
CLEAN = """
SELECT receipt, card, sold_at AT TIME ZONE 'UTC', price::numeric(18, 4) FROM lines
WHERE price IS NOT NULL AND updated_at IS NOT NULL ORDER BY receipt::text
"""


def test_a_database_is_followed_row_by_row_and_its_password_is_written_nowhere(
    spark: SparkSession, postgres: Postgres, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    site = Site(spark, tmp_path)
    site.conf.write_text(CONF.format(url=postgres.url))
    postgres.run(LINES)

    def clean_lines() -> str:
        rows = site.lake.read(site.pins()["clean_orders"]).selectExpr(
            "order_id", "customer_id", "cast(ordered_at as string)", "cast(amount as string)"
        )
        return "".join("|".join(row) + "\n" for row in sorted(rows.collect()))

    def read_counts() -> list[object]:
        return [count for _, count in site.rows("cleaning_account", "file_name", "read_count")]

    source = load_config(site.conf).sources["shop"]
    preview = preview_source(spark, "shop", source, SiteRules(CURRENCY))
    assert (preview.file_name, preview.file_count, preview.row_count) == ("public.lines", 0, 1000)
    assert preview.rejections == [Rejection("amount_missing", 20, None), Rejection("sequence_missing", 1, None)]
    assert not Path(site.lake.uri).exists()

    site.clean()
    assert clean_lines() == postgres.run(CLEAN)
    assert read_counts() == [3000]
    assert site.rows("rejected_orders", "reasons").count((["sequence_missing"],)) == 1

    # New, changed, committed late, and changed in what nobody maps; of what did not change nothing lands.
    postgres.run("""
        INSERT INTO lines SELECT i, 'c1', '2026-10-02 12:00+02', 5, '2026-10-02' FROM generate_series(3001, 3100) i;
        UPDATE lines SET price = 9.99, updated_at = '2026-10-02 00:01' WHERE receipt BETWEEN 100 AND 109;
        UPDATE lines SET updated_at = '2026-10-02 00:02' WHERE receipt = 200;
        INSERT INTO lines VALUES (4000, 'c2', '2026-10-01 12:00+02', 7, timestamp '2026-10-01 00:49:00');
        UPDATE lines SET updated_at = '2026-10-02 00:03' WHERE receipt = 7;
    """)
    site.clean()
    assert clean_lines() == postgres.run(CLEAN)
    assert read_counts() == [3000, 113]
    stood = site.pins()
    assert "0 tables written" in site.clean()
    assert site.pins() == stood
    assert len(list((Path(site.lake.uri) / "landing" / "shop").iterdir())) == 2

    # A table of another form stops the run before anything of it is taken in.
    postgres.run("ALTER TABLE lines RENAME COLUMN card TO member; UPDATE lines SET updated_at = '2026-10-03'")
    with pytest.raises(
        SourceError,
        match=r"file public.lines_.*: found no column card, .*; a view that has the columns",
    ):
        site.clean()
    assert site.pins() == stood
    assert len(list((Path(site.lake.uri) / "landing" / "shop").iterdir())) == 2

    password = postgres.owner.password.encode()
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert [str(file) for file in written if password in file.read_bytes()] == []
    assert postgres.owner.password not in "".join(capfd.readouterr())


def test_what_a_database_refuses_is_told_in_one_line_without_a_secret(
    spark: SparkSession, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres.run("""
        CREATE TABLE things (id int, at timestamptz, size numeric, name text);
        INSERT INTO things VALUES (1, 'infinity', 1e30, 'x');
        CREATE ROLE guest LOGIN PASSWORD 'a guest';
        CREATE TABLE twins (id int, "ID" int);
        CREATE SEQUENCE numbers;
        CREATE VIEW that_writes AS SELECT nextval('numbers') AS id;
    """)

    def the_error(table: str = "things", **settings: object) -> str:
        with pytest.raises(CrmSparkError) as caught:
            preview_source(spark, "shop", a_table(postgres, table, **settings), SiteRules(CURRENCY))
        message = str(caught.value)
        assert "\n" not in message
        assert postgres.owner.password not in message
        return message

    columns = "expected one of the table's: at, id, name, size"
    numeric = "found a number that Spark's decimal(38,18) cannot hold, as which numeric without a precision is read"
    assert the_error(watermark="changed") == f"sources.shop.watermark: found no column changed, {columns}"
    assert "found name of type text, expected a timestamp, integer or" in the_error(partition_by="name", partitions=2)
    assert the_error() == f"sources.shop: {numeric}; name a view that casts it"
    assert "found columns whose names differ only by case" in the_error("twins")
    assert "cannot execute nextval() in a read-only transaction (SQLSTATE 25006)" in the_error("that_writes")
    nowhere = "found no table public.nothing at jdbc:postgresql://"
    assert the_error("public.nothing").startswith(f"sources.shop.table: {nowhere}{postgres.host}/postgres, expected")
    with pytest.raises(SourceError, match=r"sources.shop.watermark: found infinity as the greatest at, expected a"):
        taken_in(spark, tmp_path, a_table(postgres, "things", watermark="at"))
    postgres.run(
        "CREATE TABLE plans (id int, at timestamp); INSERT INTO plans VALUES (1, '2026-01-01'), (2, '2062-01-01')"
    )
    later = r"sources.shop.watermark: found 2062-01-01 00:00:00 as the greatest at, expected none later than now"
    with pytest.raises(SourceError, match=later):
        taken_in(spark, tmp_path, a_table(postgres, "plans", watermark="at"))
    shut = the_error(url="jdbc:postgresql://127.0.0.1:9/postgres?sslmode=disable")
    assert shut.startswith(
        "sources.shop.url: found no PostgreSQL that answers at jdbc:postgresql://127.0.0.1:9/postgres:"
    )
    assert "(SQLSTATE 3D000)" in the_error(url=f"jdbc:postgresql://{postgres.host}/absent")

    monkeypatch.setenv("SHOP_USER", "guest")
    refused = f"sources.shop: jdbc:postgresql://{postgres.host}/postgres refuses the user or the password"
    assert the_error() == f"{refused}; see what SHOP_USER and SHOP_PASSWORD hold"
    monkeypatch.setenv("SHOP_PASSWORD", "a guest")
    assert "permission denied for table things (SQLSTATE 42501)" in the_error()
    monkeypatch.delenv("SHOP_PASSWORD")
    assert (
        the_error() == "sources.shop.password_from: found no environment variable SHOP_PASSWORD, expected one; set it"
    )
