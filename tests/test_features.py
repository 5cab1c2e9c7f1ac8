"""Features: one row per customer and cut-off, of what had happened and was known before it."""

from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal

import numpy as np
import pytest
from builders import ledgers_of, rows_of, utc
from business import NEW_YORK, Business, expected_features, facts_of, random_business
from pyspark.sql import DataFrame, SparkSession

from crm_spark.cleaning.tables import CLEAN_ORDERS, CLEAN_PRODUCTS
from crm_spark.facts.events import build_order_lines
from crm_spark.facts.tables import DIM_CUSTOMERS, FACT_ORDER_LINES, LEDGERS
from crm_spark.features.customers import Cutoff, Ledgers, build_feature_customers
from crm_spark.features.tables import DEMOGRAPHICS, feature_customers
from crm_spark.tables import declared_rows, summarise

pytestmark = pytest.mark.both_engines

ALWAYS = utc("2100-01-01 00:00:00")


def features_of_orders(spark: SparkSession, orders: list[dict[str, object]], cutoffs: list[Cutoff]) -> list[dict]:
    lines = build_order_lines(rows_of(spark, CLEAN_ORDERS, *orders), rows_of(spark, CLEAN_PRODUCTS), NEW_YORK)
    events = {FACT_ORDER_LINES.name: lines}
    features = build_feature_customers(
        rows_of(spark, DIM_CUSTOMERS, {"customer_id": "registered"}),
        ledgers_of(events),
        cutoffs,
        windows_days=[28],
    )
    return [row.asDict() for row in features.orderBy("as_of", "customer_id").collect()]


# Fourteen purchases of four customers in New York; hand-computed below for 2026-11-01.
PURCHASES = [
    ("ann", "2026-10-01 16:00", "10.00"), ("ann", "2026-10-11 16:00", "20.00"), ("ann", "2026-10-31 16:00", "30.00"),
    ("ben", "2026-09-01 16:00", "5.00"), ("ben", "2026-09-01 20:00", "7.00"), ("ben", "2026-10-05 03:59", "8.00"),
    ("cid", "2026-10-04 04:00", "1.00"), ("cid", "2026-10-04 03:59", "2.00"), ("cid", "2026-11-01 03:59", "4.00"),
    ("cid", "2026-11-01 04:00", "8.00"), ("cid", "2026-11-02 12:00", "16.00"),
    ("dot", "2026-11-01 04:00", "99.00"), ("dot", "2026-11-05 12:00", "99.00"), ("dot", "2026-11-06 12:00", "99.00"),
]  # fmt: skip


def test_hand_computed_recency_frequency_and_money(spark: SparkSession) -> None:
    orders = [
        {"order_id": f"o{number}", "customer_id": who, "ordered_at": f"{when}:00", "amount": amount}
        for number, (who, when, amount) in enumerate(PURCHASES)
    ]
    # November starts in New York at 04:00 UTC: an order then is of the day as_of, and not seen.
    rows = features_of_orders(spark, orders, [Cutoff(date(2026, 11, 1), ALWAYS)])
    columns = ("recency_days", "tenure_days", "order_count", "active_day_count", "net_amount", "order_count_28d",
               "net_amount_28d", "mean_order_amount", "mean_gap_days", "gap_spread_days", "overdue_ratio")  # fmt: skip
    # The window of 28 days starts on 2026-10-04, a day that it holds.
    assert {row["customer_id"]: tuple(row[name] for name in columns) for row in rows} == {
        # Gaps of 10 and 20 days.
        "ann": (1, 31, 3, 3, Decimal(60), 2, Decimal(50), 20.0, 15.0, 5.0, pytest.approx(1 / 15, abs=1e-12)),
        # Twice on one day; then on October 4, late in the evening: a gap of 33 days.
        "ben": (28, 61, 3, 2, Decimal(20), 1, Decimal(8), pytest.approx(20 / 3, abs=1e-12), 33.0, 0.0,
                pytest.approx(28 / 33, abs=1e-12)),
        # On October 3, 4 and 31.
        "cid": (1, 29, 3, 3, Decimal(7), 2, Decimal(5), pytest.approx(7 / 3, abs=1e-12), 14.0, 13.0,
                pytest.approx(1 / 14, abs=1e-12)),
        "registered": (None, None, 0, 0, Decimal(0), 0, Decimal(0), None, None, None, None),
    }  # fmt: skip


def test_what_was_learned_at_or_after_known_until_is_not_seen(spark: SparkSession) -> None:
    cutoffs = [
        Cutoff(date(2026, 11, 1), utc("2026-11-02 00:00:00")),
        Cutoff(date(2026, 11, 3), utc("2026-11-04 00:00:00.000001")),
    ]
    orders = [
        {"order_id": "in_time", "customer_id": "c1", "amount": "1.00", "known_at": "2026-11-01 23:59:59.999999"},
        {"order_id": "at_once", "customer_id": "c1", "amount": "2.00", "known_at": "2026-11-02 00:00:00"},
        {"order_id": "later", "customer_id": "c1", "amount": "4.00", "known_at": "2026-11-04 00:00:00"},
        {"order_id": "never", "customer_id": "c2", "amount": "8.00", "known_at": "2026-11-04 00:00:00.000001"},
        # A return that is learned of late; and a customer known by a return alone.
        {"order_id": "back", "customer_id": "c1", "amount": "-0.50", "known_at": "2026-11-03 00:00:00"},
        {"order_id": "alone", "customer_id": "c3", "amount": "-3.00"},
    ]
    rows = features_of_orders(spark, orders, cutoffs)
    found = [
        (str(row["as_of"]), row["customer_id"], row["order_count"], row["net_amount"], row["recency_days"])
        for row in rows
        if row["customer_id"] != "registered"
    ]
    assert found == [
        ("2026-11-01", "c1", 1, Decimal(1), 31),
        ("2026-11-01", "c3", 0, Decimal(-3), None),
        ("2026-11-03", "c1", 3, Decimal("6.5"), 33),
        ("2026-11-03", "c3", 0, Decimal(-3), None),
    ]


CUTOFFS = [
    Cutoff(date(2026, 8, 1), utc("2026-08-02 04:00:00")),
    Cutoff(date(2026, 9, 15), utc("2026-09-16 04:00:00")),
    Cutoff(date(2026, 11, 2), utc("2026-11-02 05:00:00")),
]
WINDOWS = [7, 28, 91]


def build(frames: Sequence[DataFrame]) -> DataFrame:
    customers, *ledgers = frames
    return build_feature_customers(customers, Ledgers(*ledgers), CUTOFFS, WINDOWS)


@pytest.fixture(scope="module")
def business() -> Business:
    return random_business(20261101)


@pytest.fixture(scope="module")
def stored_facts(spark: SparkSession, business: Business) -> list[DataFrame]:
    """The facts once and for all, so that two builds of features start from the same rows."""
    customers, ledgers = facts_of(spark, business)
    stored = []
    for frame, table in zip((customers, *ledgers.tables), (DIM_CUSTOMERS, *LEDGERS), strict=True):
        assert summarise(frame, table).violations == ()
        stored.append(declared_rows(spark, table, [tuple(row) for row in frame.collect()]))
    return stored


def test_all_features_equal_an_independent_computation(business: Business, stored_facts: list[DataFrame]) -> None:
    table = feature_customers(WINDOWS)
    rows = build(stored_facts).toArrow().to_pylist()
    told: set[str] = set()
    for cut in CUTOFFS:
        actual = {row["customer_id"]: row for row in rows if row["as_of"] == cut.as_of}
        expected = expected_features(business, cut.as_of, cut.known_until, WINDOWS)
        assert actual.keys() == expected.keys()
        assert len(actual) > 150
        for column in table.columns:
            if column.name in NOT_COMPARED:
                continue
            found = {key: row[column.name] for key, row in actual.items()}
            wanted = {key: expected[key][column.name] for key in actual}
            told |= {column.name for value in wanted.values() if value not in (None, [], 0)}
            if column.type == "double":
                wanted = {
                    key: value if value is None else pytest.approx(value, rel=1e-9, abs=1e-9)
                    for key, value in wanted.items()
                }
            assert found == wanted, column.name
    assert set(table.column_names) - NOT_COMPARED - told == set()


# The key, the clock, and the demographic columns that nobody stated.
NOT_COMPARED = {"customer_id", "as_of", "known_until", *DEMOGRAPHICS} - {"gender"}


def test_the_order_and_partitions_of_rows_do_not_matter(spark: SparkSession, stored_facts: list[DataFrame]) -> None:
    table = feature_customers(WINDOWS)
    shuffled = [
        spark.createDataFrame(frame.toArrow().take(np.random.default_rng(1).permutation(frame.count()))).repartition(3)
        for frame in stored_facts
    ]
    summary = summarise(build(stored_facts), table)
    assert summary.violations == ()
    assert summary.row_count > 0
    assert summarise(build(shuffled), table) == summary


def test_nobody_known_gives_no_rows(spark: SparkSession) -> None:
    nobody = build([rows_of(spark, table) for table in (DIM_CUSTOMERS, *LEDGERS)])
    assert nobody.collect() == []


def test_the_clock_of_the_cut_off_is_kept_with_its_rows(spark: SparkSession) -> None:
    (row,) = features_of_orders(spark, [], [Cutoff(date(2026, 11, 1), utc("2026-11-01 06:30:00"))])
    known_until: datetime = row["known_until"]
    assert known_until.timestamp() == utc("2026-11-01 06:30:00").timestamp()
