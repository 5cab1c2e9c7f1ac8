"""What comes in single values, right and wrong: each is read as it must be or rejected for its reason."""

import csv
import io
import json
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from test_cleaning import HEADER, Shop

NO_NUMBER = ["amount_not_decimal"]
AMOUNTS: dict[str, str | list[str]] = {
    "9.90": "9.9000", " 9.90 ": "9.9000", "+9.90": "9.9000", "-9.90": "-9.9000", ".5": "0.5000", "5.": "5.0000",
    "1e3": "1000.0000", "1E-3": "0.0010", "-0": "0.0000", "00012.5": "12.5000", "0.00004": "0.0000",
    "0.00005": "0.0001", "99999999999999.9999": "99999999999999.9999", "": ["amount_missing"],
    **dict.fromkeys(
        [
            "100000000000000", "1e309", "-1e309", "NaN", "nan", "Infinity", "-inf", "9,90", "1 000", "1.000,50",
            "1_000", "0x1F", "$9", "9.90 EUR", "--9", "1e", "  ", "NULL", "None", "\u00a09.90", "1/2", "true", "9.9f",
        ],
        NO_NUMBER,
    ),
}  # fmt: skip

NO_TIME, NOT_PLAUSIBLE = ["ordered_at_not_timestamp"], ["ordered_at_plausible"]
TIMES: dict[str, str | list[str]] = {
    "2026-10-01 12:00:00": "2026-10-01 12:00:00", "2026-10-01": "2026-10-01 00:00:00",
    " 2026-10-01 ": "2026-10-01 00:00:00", "2026-10-01 12:00": "2026-10-01 12:00:00",
    "2026-10-01T12:00:00Z": "2026-10-01 12:00:00", "2026-10-01T12:00:00+02:00": "2026-10-01 10:00:00",
    "2026-10-01 12:00:00 Europe/Berlin": "2026-10-01 10:00:00", "2024-02-29": "2024-02-29 00:00:00",
    "2026-3-29 02:30:00": "2026-03-29 02:30:00", "1970-01-01": "1970-01-01 00:00:00",
    "2026-10-01 12:00:00.1234567": "2026-10-01 12:00:00.123456",
    "2099-12-31 23:59:59.999999": "2099-12-31 23:59:59.999999", "": ["ordered_at_missing"],
    **dict.fromkeys(
        [
            "2026-10-01 24:00:00", "2026-10-01 23:59:60", "2026-02-29", "2026-02-30", "2026-13-01", "01.10.2026",
            "10/01/2026", "20261001", "1760000000", "now", "today", "epoch", "   ",
            # Spark alone would make a day of a year, and add to a time the day on which it runs.
            "2026", "2026-10", "12:00:00", "T12:00", " 7:15",
        ],
        NO_TIME,
    ),
    **dict.fromkeys(
        ["0026-10-01", "9999-12-31", "1969-12-31 23:59:59", "2100-01-01", "-2026-10-01", "12026-10-01"], NOT_PLAUSIBLE
    ),
}  # fmt: skip

NO_COUNT = ["line_no_not_bigint"]
LINE_NUMBERS: dict[str, str | list[str]] = {
    "1": "1", "01": "1", " 1 ": "1", "-1": "-1", "+1": "1", "9223372036854775807": "9223372036854775807",
    **dict.fromkeys(["1.0", "1.5", "9223372036854775808", "one", "1e0", " "], NO_COUNT),
}  # fmt: skip

KEYS = [
    "with space",
    "ünïcödé",
    "客户",
    "a;b",
    'a"b',
    "a,b",
    "a\nb",
    "'; DROP TABLE x; --",
    "🙂",
    "x" * 100_000,
]


@pytest.fixture(scope="module")
def outcomes(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str] | list[str]]:
    """What became of each line by its order id: its values, or the reasons for which it was rejected."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(HEADER.strip().split(","))
    writer.writerows([f"amount {value}", 1, "c1", "2026-10-01", value] for value in AMOUNTS)
    writer.writerows([f"time {value}", 1, "c1", value, 1] for value in TIMES)
    writer.writerows([f"line {value}", value, "c1", "2026-10-01", 1] for value in LINE_NUMBERS)
    writer.writerows([key, 1, key, "2026-10-01", 1] for key in KEYS)
    shop = Shop(spark, tmp_path_factory.mktemp("corpus"))
    cleaned = shop.add({"a.csv": text.getvalue().encode()}).clean()
    good = cleaned.accepted.selectExpr(
        "order_id", "cast(line_no AS string)", "customer_id", "cast(amount AS string)", "cast(ordered_at AS string)"
    )
    found: dict[str, dict[str, str] | list[str]] = {row["order_id"]: row.asDict() for row in good.collect()}
    for row in cleaned.rejected.collect():
        found[json.loads(row["row_text"])["order_id"]] = row["reasons"]
    return found


@pytest.mark.parametrize(
    ("kind", "column", "values"),
    [("amount", "amount", AMOUNTS), ("time", "ordered_at", TIMES), ("line", "line_no", LINE_NUMBERS)],
)
def test_every_value_is_read_exactly_or_rejected_for_its_reason(
    outcomes: dict[str, dict[str, str] | list[str]], kind: str, column: str, values: dict[str, str | list[str]]
) -> None:
    found = {value: outcomes[f"{kind} {value}"] for value in values}
    assert {value: row[column] if isinstance(row, dict) else row for value, row in found.items()} == values


def test_texts_come_through_as_they_are(outcomes: dict[str, dict[str, str] | list[str]]) -> None:
    rows = [outcomes[key] for key in KEYS]
    assert [row["customer_id"] if isinstance(row, dict) else row for row in rows] == KEYS


def test_structures_of_json_are_judged_line_by_line(spark: SparkSession, tmp_path: Path) -> None:
    good = {"order_id": "good", "line_no": 1, "customer_id": "c", "ordered_at": "2026-10-01", "amount": 1}
    unreadable = ["{", '"text"', "7", "null", '{"order_id":"open', "order_id: o1", '{"order_id" "o"}']
    others = {
        "nested": json.dumps(good | {"order_id": "nested", "amount": {"value": 1}}),
        "twice": json.dumps(good | {"order_id": "twice"}).replace("{", '{"amount": 2, ', 1),
        "escaped": json.dumps(good | {"order_id": "escaped", "customer_id": "Zoé \u5ba2 \n"}),
        "empty": "{}",
    }
    lines = [json.dumps(good), *unreadable, *others.values(), "", json.dumps(good | {"order_id": "last"})]
    shop = Shop(spark, tmp_path)
    cleaned = shop.add({"a.json": "\n".join(lines)}, format="json").clean()
    amounts = {row["order_id"]: int(row["amount"]) for row in cleaned.accepted.collect()}
    assert amounts == {"good": 1, "twice": 1, "escaped": 1, "last": 1}
    rejected = {row["row_text"]: row["reasons"] for row in cleaned.rejected.collect()}
    # An object that can be read is told by its fields, anything else by its text.
    told = good | {"order_id": "nested", "line_no": "1", "amount": '{"value": 1}'}
    assert rejected.pop(json.dumps(told, separators=(",", ":"), sort_keys=True)) == NO_NUMBER
    for line in unreadable:
        assert rejected.pop(line) == ["row_not_readable"], line
    assert list(rejected.values()) == [
        ["amount_missing", "customer_id_missing", "line_no_missing", "order_id_missing", "ordered_at_missing"]
    ]
    assert [row["read_count"] for row in shop.count().collect()] == [len(amounts) + len(unreadable) + 2]
