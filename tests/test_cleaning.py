"""Cleaning: every row of every file is accepted, rejected with all its reasons and its text, or a duplicate."""

import bz2
import gzip
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from random import Random

import pytest
from builders import CURRENCY, ORDER_COLUMNS, RUN_AT, a_source, landed
from pyspark.sql import DataFrame, SparkSession

from crm_spark.cleaning.clean import Cleaned, Stored, build_cleaning_account, clean_entity
from crm_spark.cleaning.judging import mapped_columns
from crm_spark.cleaning.rules import SiteRules
from crm_spark.cleaning.tables import CLEAN, CLEANING_ACCOUNT, REJECTED
from crm_spark.config import Source
from crm_spark.errors import ConfigError, ContractError, CrmSparkError, SourceError
from crm_spark.lake import Lake
from crm_spark.sources.landing import LandedFile
from crm_spark.sources.reading import count_landed, describe_files, gather_files
from crm_spark.tables import summarise

HEADER = "order_id,line_no,customer_id,ordered_at,amount\n"


def a_line(order_id: str = "o1", amount: str = "9.90", customer_id: str = "c1") -> str:
    return f"{order_id},1,{customer_id},2026-10-01 12:00:00,{amount}\n"


class Shop:
    """A source of order lines in a lake of its own."""

    def __init__(self, spark: SparkSession, folder: Path) -> None:
        self.spark, self.folder, self.uri = spark, folder, str(folder / "lake")
        self.sources: dict[str, Source] = {}
        self.rules = SiteRules(CURRENCY)

    def add(self, files: Mapping[str, str | bytes], name: str = "shop", **settings: object) -> "Shop":
        place = self.folder / name
        place.mkdir()
        for file_name, content in files.items():
            (place / file_name).write_bytes(content.encode() if isinstance(content, str) else content)
        self.sources[name] = a_source(place, **settings)
        return self

    def clean(self, entity: str = "orders") -> Cleaned:
        self.landed = self.describe(landed(self.uri, self.sources))
        self.inputs = gather_files(self.sources, self.landed)
        own = [files for files in self.inputs if files.source.entity == entity]
        return clean_entity(self.spark, entity, own, own, self.uri, self.rules)

    def describe(self, files: list[LandedFile]) -> list[LandedFile]:
        mapped = {name: mapped_columns(source) for name, source in self.sources.items()}
        return describe_files(self.spark, self.sources, mapped, files, self.uri)

    def count(self) -> DataFrame:
        return count_landed(self.spark, self.inputs, self.uri)


@pytest.fixture
def shop(spark: SparkSession, tmp_path: Path) -> Shop:
    return Shop(spark, tmp_path)


def rejected(cleaned: Cleaned) -> dict[str, list[str]]:
    return {row["row_text"]: row["reasons"] for row in cleaned.rejected.collect()}


def accepted(cleaned: Cleaned, *columns: str) -> list[tuple[object, ...]]:
    return sorted(tuple(row) for row in cleaned.accepted.select(*(columns or ("order_id",))).collect())


def left_out(cleaned: Cleaned) -> dict[str, int]:
    rows = cleaned.left_out.groupBy().sum().collect()[0].asDict()
    return {name[4:-1].removesuffix("_count"): count for name, count in rows.items() if count}


BAD_LINES = {
    # The text of a row, and the reasons for which it must be rejected; these are not in the file twice.
    "few,1,c1": ["row_not_readable"],
    "many,1,c1,2026-10-01 12:00:00,9.90,surplus": ["row_not_readable"],
}
BAD_VALUES = {
    "nan": ("nan,1,c1,2026-10-01 12:00:00,NaN", ["amount_not_decimal"]),
    "inf": ("inf,1,c1,2026-10-01 12:00:00,-Infinity", ["amount_not_decimal"]),
    "huge": ("huge,1,c1,2026-10-01 12:00:00,1e309", ["amount_not_decimal"]),
    "wide": ("wide,1,c1,2026-10-01 12:00:00,123456789012345.0", ["amount_not_decimal"]),
    "comma": ('comma,1,c1,2026-10-01 12:00:00,"9,90"', ["amount_not_decimal"]),
    "no_amount": ("no_amount,1,c1,2026-10-01 12:00:00,", ["amount_missing"]),
    "no_customer": ('no_customer,1,"",2026-10-01 12:00:00,9.90', ["customer_id_missing"]),
    "no_day": ("no_day,1,c1,2026-02-30 12:00:00,9.90", ["ordered_at_not_timestamp"]),
    "old": ("old,1,c1,0026-10-01 12:00:00,9.90", ["ordered_at_plausible"]),
    "far": ("far,1,c1,2100-01-01 00:00:00,9.90", ["ordered_at_plausible"]),
    "all": ("all,one,,yesterday,much", [
        "amount_not_decimal", "customer_id_missing", "line_no_not_bigint", "ordered_at_not_timestamp",
    ]),
}  # fmt: skip


def test_bad_lines_of_a_csv_file_are_rejected_with_every_reason_and_no_good_line_is_lost(shop: Shop) -> None:
    lines = [*BAD_LINES, *(line for line, _ in BAD_VALUES.values())]
    # Good lines stand before, between and after the bad ones; a quote spans lines, and a blank line is none.
    text = "\ufeff" + HEADER + a_line("first")
    text += "".join(f"{line}\n{a_line(f'after_{number}')}" for number, line in enumerate(lines))
    text += '\nquoted,1,"Ann\nof ""Oz"", Ltd",2026-10-01 12:00:00,0.00005\nnegative,1,c1,2026-10-01,-1e2'
    cleaned = shop.add({"a.csv": text}).clean()

    good = accepted(cleaned, "order_id", "customer_id", "amount")
    assert {order_id for order_id, _, _ in good} == {
        "first", "quoted", "negative", *(f"after_{number}" for number in range(len(lines))),
    }  # fmt: skip
    assert ("quoted", 'Ann\nof "Oz", Ltd', Decimal("0.0001")) in good
    assert ("negative", "c1", Decimal(-100)) in good
    found = rejected(cleaned)
    assert {text: reasons for text, reasons in found.items() if text in BAD_LINES} == BAD_LINES
    by_id = {text.split('"')[3]: reasons for text, reasons in found.items() if text not in BAD_LINES}
    assert by_id == {name: sorted(reasons) for name, (_, reasons) in BAD_VALUES.items()}
    assert cleaned.left_out.isEmpty()
    assert [row["read_count"] for row in shop.count().collect()] == [len(good) + len(found)]


def test_a_quote_that_never_closes_takes_the_rest_of_its_file_into_quarantine_with_its_text(shop: Shop) -> None:
    swallowed = f'o2,1,"c1,2026-10-01 12:00:00,9.90\n{a_line("o3").strip()}'
    cleaned = shop.add({"a.csv": f"{HEADER}{a_line()}{swallowed}\n", "b.csv": HEADER + a_line("other")}).clean()
    assert accepted(cleaned) == [("o1",), ("other",)]
    assert list(rejected(cleaned)) == [swallowed]


def test_equal_rows_are_kept_once_and_one_key_with_other_content_rejects_all(shop: Shop) -> None:
    bad = a_line("bad", customer_id="")
    first = (
        a_line("twice") + a_line("twice")
        + a_line("conflict") + a_line("conflict", amount="9.91") + a_line("conflict")
        + a_line("beside_bad") + a_line("beside_bad", customer_id="")
        + bad + bad
    )  # fmt: skip
    cleaned = shop.add({"a.csv": HEADER + first, "b.csv": HEADER + a_line("twice") + a_line("both")}).clean()
    assert accepted(cleaned) == [("beside_bad",), ("both",), ("twice",)]
    rows = cleaned.rejected.collect()
    conflicts = [row for row in rows if row["reasons"] == ["key_with_other_content"]]
    assert [row["row_count"] for row in conflicts] == [1, 1]
    assert all('"order_id":"conflict"' in row["row_text"] for row in conflicts)
    assert Counter(row["row_count"] for row in rows if row["reasons"] == ["customer_id_missing"]) == {1: 1, 2: 1}
    # Equal rows of a file are one row of the quarantine, counted; of good lines the one kept is of the first batch.
    first_batch = min(file.batch_id for file in shop.landed)
    kept = cleaned.accepted.where("order_id = 'twice'").collect()
    assert [row["batch_id"] for row in kept] == [first_batch]
    assert left_out(cleaned) == {"duplicate": 3}


def test_text_that_is_not_in_the_declared_encoding_is_rejected_alone(shop: Shop) -> None:
    lines = HEADER + a_line("utf_8", customer_id="Zoé") + a_line("after")
    files = {"a.csv": lines.encode() + a_line("latin", customer_id="Zoé").encode("latin-1") + a_line("last").encode()}
    shop.add(files)
    shop.add(
        {"b.csv": (HEADER + a_line("declared", customer_id="Zoé")).encode("latin-1")}, "old", encoding="ISO-8859-1"
    )
    cleaned = shop.clean()
    assert accepted(cleaned, "order_id", "customer_id") == [
        ("after", "c1"), ("declared", "Zoé"), ("last", "c1"), ("utf_8", "Zoé"),
    ]  # fmt: skip
    ((text, reasons),) = rejected(cleaned).items()
    assert '"order_id":"latin"' in text
    assert reasons == ["text_not_in_encoding"]


@pytest.mark.parametrize("format_", ["csv", "json"])
def test_a_file_without_a_byte_has_no_rows(shop: Shop, format_: str) -> None:
    order = '{"order_id":"o1","line_no":1,"customer_id":7,"ordered_at":"2026-10-01","amount":9.90}\n'
    one = {"csv": HEADER + a_line(), "json": order}[format_]
    cleaned = shop.add({f"a.{format_}": "", f"b.{format_}": one}, format=format_).clean()
    assert accepted(cleaned) == [("o1",)]
    assert [row["read_count"] for row in shop.count().collect()] == [1]
    only_empty = Shop(shop.spark, shop.folder / "only_empty")
    only_empty.folder.mkdir()
    assert only_empty.add({f"a.{format_}": ""}, format=format_).clean().accepted.isEmpty()
    assert only_empty.count().isEmpty()


def test_rows_without_a_key_keep_their_twins_and_come_once_however_often_they_are_sent(shop: Shop) -> None:
    view = "c1,2026-10-01 12:00:00,/home\n"
    first = "who,at,page\n" + view + view + "c2,2026-10-01 12:00:00,/cart\n"
    files = {"a.csv": first, "b.csv": "who,at,page\n" + "c3,2026-10-01 13:00:00,/home\n" + view}
    columns = {"customer_id": "who", "occurred_at": "at", "page": "page"}
    cleaned = shop.add(files, entity="visits", columns=columns, key_from_content=True).clean("visits")
    assert [customer for (customer,) in accepted(cleaned, "customer_id")] == ["c1", "c1", "c2", "c3"]
    assert left_out(cleaned) == {"duplicate": 1}
    lines = {"c.csv": "order_id,customer_id,ordered_at,amount\n" + 2 * "o1,c1,2026-10-01,5\n" + "o1,c1,2026-10-01,6\n"}
    unnumbered = {name: text for name, text in ORDER_COLUMNS.items() if name != "line_no"}
    orders = shop.add(lines, "till", columns=unnumbered, key_from_content=True).clean()
    assert accepted(orders, "amount") == [(Decimal(5),), (Decimal(5),), (Decimal(6),)]


MEMBERS = {
    "entity": "customers",
    "columns": {"customer_id": "id", "city": "city", "known_at": "cast(known_at as timestamp)"},
    "sequence_by": "cast(changed_at as timestamp)",
    "is_deletion": "operation = 'D'",
}


def a_member(id_: str, changed_on: str, city: str = "", operation: str = "U", known_on: str = "2026-10-01") -> str:
    return f"{id_},{changed_on},{city},{operation},{known_on}\n"


def members(*lines: str) -> str:
    return "id,changed_at,city,operation,known_at\n" + "".join(lines)


def test_the_newest_version_of_a_record_counts_whenever_it_came(shop: Shop) -> None:
    files = {
        "1.csv": members(
            a_member("moved", "2026-01-02", "Rome"),
            a_member("left", "2026-01-02", operation="D"),
            a_member("back", "2026-01-01", "Oslo"),
            a_member("same", "2026-01-01", "Bern", known_on="2026-02-02"),
            a_member("tied", "2026-01-01", "Zug"),
            a_member("torn", "2026-01-01", "Bonn"),
        ),
        "2.csv": members(
            a_member("moved", "2026-01-01", "Kyiv", known_on="2026-01-15"),
            a_member("moved", "2026-01-02", "Rome"),
            a_member("left", "2026-01-01", "Linz"),
            a_member("back", "2026-01-02", operation="D"),
            a_member("back", "2026-01-03", "Oslo"),
            a_member("same", "2026-01-05", "Bern", known_on="2026-03-03"),
            a_member("torn", "lately", "Riga"),
            a_member("never", "2026-01-01", operation="D"),
            a_member("tied", "2026-01-01", operation="D"),
        ),
    }
    cleaned = shop.add(files, "crm", **MEMBERS).clean("customers")
    assert accepted(cleaned, "customer_id", "city") == [
        ("back", "Oslo"), ("moved", "Rome"), ("same", "Bern"), ("torn", "Bonn"),
    ]  # fmt: skip
    # A record sent again, changed or not, is known since it first came.
    known = cleaned.accepted.where("customer_id IN ('moved', 'same')").orderBy("customer_id").select("known_at")
    assert [row["known_at"] for row in known.collect()] == [datetime(2026, 1, 15), datetime(2026, 2, 2)]  # noqa: DTZ001
    # By their hashes the first file comes first: Oslo stands, is deleted, and stands again.
    assert left_out(cleaned) == {"superseded": 5, "duplicate": 2, "deletion": 3}
    assert list(rejected(cleaned).values()) == [["sequence_missing"]]


def test_versions_in_any_order_and_pieces_settle_alike(shop: Shop) -> None:
    random = Random(5)
    versions = [
        (f"c{random.randrange(120)}", f"2026-01-0{random.randrange(1, 5)}", random.choice("ABC"), random.choice("UUUD"))
        for _ in range(400)
    ]
    newest: dict[str, tuple[str, ...]] = {}
    for customer_id, *version in versions:
        changed_on, city, operation = version
        newest[customer_id] = max(newest.get(customer_id, ("",)), (changed_on, operation == "D", city))
    expected = sorted((id_, city) for id_, (_, is_deletion, city) in newest.items() if not is_deletion)
    for name in ("once", "again"):
        random.shuffle(versions)
        replayed = versions + random.sample(versions, 40)
        pieces = {f"{piece}.csv": members(*(a_member(*row) for row in replayed[piece::4])) for piece in range(4)}
        cleaned = shop.add(pieces, name, **MEMBERS).clean("customers")
        assert accepted(cleaned, "customer_id", "city") == expected
        counted = cleaned.accepted.count() + sum(left_out(cleaned).values())
        assert cleaned.rejected.isEmpty()
        assert counted == len(replayed)
        del shop.sources[name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sequence_by": "changed_at"}, "sources.crm.sequence_by: found a string, expected a time or a number"),
        ({"is_deletion": "operation"}, "sources.crm.is_deletion: found a string, expected a condition"),
        ({"sequence_by": "changed"}, "sources.crm.sequence_by: found column 'changed', expected one of the file's"),
    ],
)
def test_an_order_or_a_deletion_that_cannot_be_is_an_error_in_one_line(
    shop: Shop, settings: dict[str, str], message: str
) -> None:
    shop.add({"1.csv": members(a_member("c", "2026-01-01"))}, "crm", **(MEMBERS | settings))
    with pytest.raises(ConfigError, match=message) as caught:
        shop.clean("customers")
    assert "\n" not in str(caught.value)


def test_every_row_is_accounted_for_and_delta_holds_the_equation(shop: Shop, lake: Lake) -> None:
    text = HEADER + a_line("a") + a_line("a") + a_line("b") + a_line("b", "1") + "torn,1\n" + "\n"
    shop.add({"a.csv": text, "empty.csv": HEADER}).add(
        {"c.csv": "customer_id\nc1\nc1\n"}, "members", entity="customers", columns={"customer_id": "customer_id"}
    )
    orders, customers = shop.clean("orders"), shop.clean("customers")

    def account(read_counts: DataFrame) -> DataFrame:
        return build_cleaning_account(
            shop.spark,
            shop.landed,
            read_counts,
            Stored([orders.accepted, customers.accepted], []),
            Stored([orders.rejected, customers.rejected], []),
            [orders.left_out, customers.left_out],
        )

    pin = lake.write(CLEANING_ACCOUNT, account(shop.count()), "f1")
    counts = {row["file_name"]: tuple(row)[5:] for row in lake.read(pin).collect()}
    assert counts == {"a.csv": (5, 1, 3, 1, 0, 0), "c.csv": (2, 1, 0, 1, 0, 0), "empty.csv": (0, 0, 0, 0, 0, 0)}
    # A row that nobody read, or that got lost, breaks the constraint.
    lossy = shop.count().selectExpr("source", "batch_id", "read_count + 1 AS read_count")
    with pytest.raises(ContractError, match="cleaning_account: rows break every_row_accounted"):
        lake.write(CLEANING_ACCOUNT, account(lossy), "f2")


def test_a_broken_line_of_json_is_rejected_with_its_text(shop: Shop) -> None:
    def a_row(order_id: str, amount: str) -> str:
        return f'{{"order_id":"{order_id}","line_no":1,"customer_id":7,"ordered_at":"2026-10-01","amount":{amount}}}\n'

    broken = '{"order_id":"torn", '
    text = a_row("o1", "9.90") + broken + "\n\n" + a_row("o2", "NaN") + a_row("o3", '"8"') + '{"order_id":"o4"}\n'
    cleaned = shop.add({"a.json": text}, format="json").clean()
    # Numbers stay the digits that came.
    assert accepted(cleaned, "order_id", "customer_id", "amount") == [
        ("o1", "7", Decimal("9.9")),
        ("o3", "7", Decimal(8)),
    ]
    found = rejected(cleaned)
    assert found.pop(broken) == ["row_not_readable"]
    assert found.pop('{"order_id":"o4"}') == [
        "amount_missing", "customer_id_missing", "line_no_missing", "ordered_at_missing",
    ]  # fmt: skip
    assert list(found.values()) == [["amount_not_decimal"]]
    assert [row["read_count"] for row in shop.count().collect()] == [5]


def test_parquet_keeps_its_types_and_what_does_not_fit_is_rejected(shop: Shop) -> None:
    written = shop.folder / "written"
    shop.spark.createDataFrame(
        [
            ("o1\N{REPLACEMENT CHARACTER}", 1, 9.9),
            ("o2", 1, float("nan")),
            ("o3", 1, float("inf")),
            ("o4", None, 1.0),
            ("o5", 1, 1e15),
        ],
        "order_id string, line_no int, amount double",
    ).coalesce(1).write.parquet(str(written))
    (file,) = written.glob("*.parquet")
    columns = ORDER_COLUMNS | {
        "customer_id": "'c1'",
        "ordered_at": "timestamp '2026-10-01 12:00:00'",
        "known_at": "timestamp '2026-10-02 00:00:00'",
    }
    cleaned = shop.add({"a.parquet": file.read_bytes()}, format="parquet", columns=columns).clean()
    # Parquet's text has one encoding: a mark in it is what came, not bytes that the reader replaced.
    assert accepted(cleaned, "order_id", "amount") == [("o1\N{REPLACEMENT CHARACTER}", Decimal("9.9"))]
    assert sorted(rejected(cleaned).values()) == [
        ["amount_not_decimal"], ["amount_not_decimal"], ["amount_not_decimal"], ["line_no_missing"],
    ]  # fmt: skip


@pytest.mark.parametrize("other", ["order_id string, line_no int, rebate double", "order_id string, line_no bigint"])
def test_parquet_files_of_one_source_have_the_same_columns(shop: Shop, other: str) -> None:
    files = {}
    for name, schema in {"a.parquet": "order_id string, line_no int", "b.parquet": other}.items():
        written = shop.folder / "written" / name
        shop.spark.createDataFrame([], schema).coalesce(1).write.parquet(str(written))
        (file,) = written.glob("*.parquet")
        files[name] = file.read_bytes()
    with pytest.raises(SourceError, match=r"file b.parquet: found (a new column rebate|column line_no of type bigint)"):
        shop.add(files, format="parquet").clean()


def test_an_amount_in_another_currency_is_rejected_and_one_without_is_in_the_lakes(shop: Shop) -> None:
    header = HEADER.strip() + ",currency\n"
    text = "".join(a_line(name).strip() + f",{name}\n" for name in ("USD", "EUR", "usd"))
    shop.add({"a.csv": header + text}, columns=ORDER_COLUMNS | {"currency": "currency"})
    cleaned = shop.add({"b.csv": HEADER + a_line("silent")}, "till").clean()
    assert accepted(cleaned, "order_id", "currency", "source") == [("USD", "USD", "shop"), ("silent", "USD", "till")]
    assert list(rejected(cleaned).values()) == [["currency_not_reporting"]] * 2


def test_a_row_is_known_since_it_was_taken_in_unless_its_source_says_otherwise(shop: Shop) -> None:
    shop.add({"a.csv": HEADER + a_line("taken_in")})
    shop.add({"b.csv": HEADER + a_line("told")}, "told", columns=ORDER_COLUMNS | {"known_at": "ordered_at"})
    shop.add(
        {"c.csv": HEADER + a_line("null")}, "null", columns=ORDER_COLUMNS | {"known_at": "cast(null as timestamp)"}
    )
    rows = shop.clean().accepted.selectExpr("order_id", "cast(known_at AS string)").collect()
    assert {tuple(row) for row in rows} == {
        ("taken_in", RUN_AT.replace(tzinfo=None).isoformat(" ")),
        ("told", datetime(2026, 10, 1, 12).isoformat(" ")),  # noqa: DTZ001
        ("null", None),
    }


def test_an_entity_without_a_source_is_empty(shop: Shop) -> None:
    cleaned = shop.add({"a.csv": HEADER + a_line()}).clean("products")
    for rows, table in ((cleaned.accepted, CLEAN["products"]), (cleaned.rejected, REJECTED["products"])):
        summary = summarise(rows, table)
        assert (summary.row_count, summary.violations) == (0, ())


def test_compressed_files_are_read_and_damaged_ones_put_aside_whole(shop: Shop, lake: Lake) -> None:
    def a_file(order_id: str) -> bytes:
        return (HEADER + "".join(a_line(f"{order_id}{number}") for number in range(2000))).encode()

    files = {
        "good.csv.gz": gzip.compress(a_file("gz")),
        "good.csv.bz2": bz2.compress(a_file("bz")),
        "torn.csv.gz": gzip.compress(a_file("torn"))[:-900],
        "none.csv.gz": b"\x1f\x8b not really gzip",
        "unwanted.csv": a_file("un"),
    }
    cleaned = shop.add(files, leave_out=["unwanted.csv"]).clean()
    assert {row["order_id"][:2] for row in cleaned.accepted.select("order_id").collect()} == {"gz", "bz"}
    account = build_cleaning_account(
        shop.spark,
        shop.landed,
        shop.count(),
        Stored([cleaned.accepted], []),
        Stored([cleaned.rejected], []),
        [cleaned.left_out],
    )
    pin = lake.write(CLEANING_ACCOUNT, account, "f1")
    counts = {row["file_name"]: (row["fault"], row["read_count"]) for row in lake.read(pin).collect()}
    assert counts == {
        "good.csv.gz": (None, 2000), "good.csv.bz2": (None, 2000),
        "torn.csv.gz": ("compressed_file_damaged", 0), "none.csv.gz": ("compressed_file_damaged", 0),
        "unwanted.csv": ("left_out", 0),
    }  # fmt: skip


def test_a_file_that_holds_no_object_has_no_rows_and_stops_nothing(shop: Shop) -> None:
    order = '{"order_id":"o1","line_no":1,"customer_id":7,"ordered_at":"2026-10-01","amount":9.90}\n'
    cleaned = shop.add({"junk.json": "junk\n\n", "good.json": order}, format="json").clean()
    assert accepted(cleaned) == [("o1",)]
    assert {file.file_name: file.fault for file in shop.landed} == {"junk.json": "no_columns", "good.json": None}


def test_damaged_parquet_is_put_aside_whole(shop: Shop) -> None:
    written = shop.folder / "written"
    shop.spark.range(3).selectExpr("cast(id as string) AS order_id").coalesce(1).write.parquet(str(written))
    (file,) = written.glob("*.parquet")
    columns = dict.fromkeys(ORDER_COLUMNS, "1") | {
        "order_id": "order_id",
        "ordered_at": "timestamp '2026-10-01 00:00:00'",
    }
    whole = file.read_bytes()
    in_midst = whole[:10] + bytes(40) + whole[50:]
    files = {"whole.parquet": whole, "torn.parquet": whole[:-100], "text.parquet": b"order_id\n1\n"}
    files["overwritten.parquet"] = in_midst
    cleaned = shop.add(files, format="parquet", columns=columns).clean()
    assert accepted(cleaned) == [("0",), ("1",), ("2",)]
    assert {file.file_name for file in shop.landed if file.fault == "parquet_file_damaged"} == {
        "torn.parquet", "text.parquet", "overwritten.parquet",
    }  # fmt: skip


def test_files_with_other_columns_are_read_by_their_own_header(shop: Shop) -> None:
    files = {
        "a.csv": HEADER + a_line("plain"),
        "b.csv": "amount,ordered_at,customer_id,line_no,order_id\n1,2026-10-01,c1,1,turned\n",
        "c.csv": f"{HEADER.strip()},till\n{a_line('more').strip()},t7\n",
    }
    shop.add(files, other_columns="allow", columns=ORDER_COLUMNS | {"store_id": "till"})
    assert accepted(shop.clean(), "order_id", "amount", "store_id") == [
        ("more", Decimal("9.9"), "t7"), ("plain", Decimal("9.9"), None), ("turned", Decimal(1), None),
    ]  # fmt: skip
    assert sum(row["read_count"] for row in shop.count().collect()) == 3


def test_odd_headers_are_read_as_they_stand(shop: Shop) -> None:
    header = HEADER.strip() + ",a.b,,Note,note,_corrupt_record,x`y\n"
    good, bad = (a_line(name, amount).strip() + ",1,2,3,4,5,6\n" for name, amount in (("o1", "1"), ("o2", "x")))
    cleaned = shop.add({"a.csv": header + good + bad}, columns=ORDER_COLUMNS | {"store_id": "`a.b`"}).clean()
    assert accepted(cleaned, "order_id", "store_id") == [("o1", "1")]
    assert list(rejected(cleaned).values()) == [["amount_not_decimal"]]


@pytest.mark.parametrize(
    ("files", "settings", "error", "message"),
    [
        ({"a.csv": HEADER, "b.csv": "order_id,line_no\n"}, {}, SourceError, "file b.csv: found no column amount, "),
        (
            {"a.json": '{"order_id":1,"line_no":1}\n{"Order_Id":2,"line_no":1}\n'},
            {"format": "json"},
            SourceError,
            "sources.shop: found fields whose names differ only by case",
        ),
        ({"a.csv": "receipt\n"}, {}, ConfigError, "sources.shop.columns.order_id: found column 'order_id'"),
        (
            {"a.csv": HEADER},
            {"columns": {name: name for name in ORDER_COLUMNS if name != "line_no"}},
            ConfigError,
            "sources.shop.columns.line_no: found no mapping, expected one: it must not be NULL; or key_from_cont",
        ),
        (
            {"a.csv": HEADER},
            {"columns": {"colour": "'red'"}},
            ConfigError,
            "sources.shop.columns",
        ),
        (
            {"a.csv": HEADER},
            {"columns": ORDER_COLUMNS | {"order_id": "reflect('java.lang.System', 'exit', '1')"}},
            ConfigError,
            "sources.shop.columns.order_id: found 'reflect'",
        ),
    ],
)
def test_a_file_or_mapping_that_cannot_be_read_is_an_error_in_one_line(
    shop: Shop, files: dict[str, str], settings: dict[str, object], error: type[CrmSparkError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        shop.add(files, **settings).clean()
    assert "\n" not in str(caught.value)
