"""Features: one row per customer and cut-off, of what had happened and was known before it."""

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal

import duckdb
import numpy as np
import pandas as pd
import pytest
from builders import rows_of, utc
from pyspark.sql import DataFrame, SparkSession

from crm_spark.cleaning.tables import CLEAN_CUSTOMERS, CLEAN_ORDERS, CLEAN_PRODUCTS
from crm_spark.facts.customers import build_customer_days, build_customer_things, build_customers
from crm_spark.facts.events import build_order_lines
from crm_spark.facts.tables import (
    DIM_CUSTOMERS,
    FACT_CONTACTS,
    FACT_CUSTOMER_DAYS,
    FACT_CUSTOMER_THINGS,
    FACT_RESPONSES,
)
from crm_spark.features.customers import Cutoff, build_feature_customers
from crm_spark.features.tables import feature_customers
from crm_spark.tables import summarise

NEW_YORK = "America/New_York"
ALWAYS = utc("2100-01-01 00:00:00")


def features_of_orders(spark: SparkSession, orders: list[dict[str, object]], cutoffs: list[Cutoff]) -> list[dict]:
    lines = build_order_lines(rows_of(spark, CLEAN_ORDERS, *orders), rows_of(spark, CLEAN_PRODUCTS), NEW_YORK)
    contacts, responses = rows_of(spark, FACT_CONTACTS), rows_of(spark, FACT_RESPONSES)
    features = build_feature_customers(
        rows_of(spark, DIM_CUSTOMERS, {"customer_id": "registered"}),
        build_customer_days(lines, contacts, responses),
        build_customer_things(lines),
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


class Business:
    """Half a year of 200 customers, the same in every run."""

    def __init__(self) -> None:
        rng = np.random.default_rng(20261101)
        start = pd.Timestamp("2026-05-15", tz="UTC")

        def instants(count: int) -> pd.Series:
            return pd.Series(start + pd.to_timedelta(rng.integers(0, 185 * 86400, count), unit="s"))

        def late(count: int) -> pd.Series:
            return pd.Series(pd.to_timedelta(rng.choice([0, 60, 86_400, 20 * 86_400], count), unit="s"))

        def customers(count: int) -> list[str]:
            # Few buy much, many little, and some nothing.
            return [f"c{int(number)}" for number in np.minimum(199, rng.exponential(40, count))]

        count = 1500
        lines = pd.DataFrame({"order_no": rng.integers(0, 900, count), "line_no": range(count)})
        owners = customers(900)
        lines["customer_id"] = [owners[number] for number in lines["order_no"]]
        lines["order_id"] = "o" + lines["order_no"].astype(str)
        opened = instants(900)
        # Lines of an order lie hours apart, many over midnight.
        hours = pd.to_timedelta(rng.integers(0, 6 * 3600, count), unit="s")
        lines["happened_at"] = opened[lines["order_no"]].reset_index(drop=True) + hours
        lines["known_at"] = lines["happened_at"] + late(count)
        lines["amount_e4"] = rng.integers(-20_000, 300_000, count)
        lines["discount_e4"] = np.where(lines["amount_e4"] < 0, 0, rng.integers(0, 40_000, count))
        lines["category"] = [f"k{number}" for number in rng.integers(0, 8, count)]
        lines["store_id"] = [None if number == 0 else f"s{number}" for number in rng.integers(0, 5, count)]
        lines["is_return"] = lines["amount_e4"] < 0
        self.lines = lines
        self.contacts, self.responses = (self._events(customers(n), instants(n), late(n)) for n in (300, 120))
        known = [f"c{number}" for number in range(200) if number % 3]
        registered_at = instants(len(known))
        self.customers = pd.DataFrame(
            {
                "customer_id": known,
                "signed_up_at": registered_at,
                "known_at": registered_at + late(len(known)),
                "gender": [None if number % 5 == 0 else "f" for number in range(len(known))],
            }
        )

    @staticmethod
    def _events(customers: list[str], happened_at: pd.Series, late: pd.Series) -> pd.DataFrame:
        return pd.DataFrame({"customer_id": customers, "happened_at": happened_at, "known_at": happened_at + late})


@pytest.fixture(scope="module")
def business() -> Business:
    return Business()


def records(frame: pd.DataFrame) -> list[dict[str, object]]:
    """Rows with Python's own instants and None."""
    return [
        {key: value.to_pydatetime() if isinstance(value, pd.Timestamp) else value for key, value in row.items()}
        for row in frame.to_dict("records")
    ]


def facts(spark: SparkSession, business: Business) -> tuple[DataFrame, DataFrame, DataFrame]:
    orders = [
        {
            "order_id": row["order_id"], "line_no": row["line_no"], "customer_id": row["customer_id"],
            "ordered_at": row["happened_at"], "known_at": row["known_at"], "product_id": row["category"],
            "store_id": row["store_id"], "amount": Decimal(row["amount_e4"]).scaleb(-4),
            "discount_amount": Decimal(int(row["discount_e4"])).scaleb(-4),
        }
        for row in records(business.lines)
    ]  # fmt: skip
    products = [{"product_id": f"k{number}", "category": f"k{number}"} for number in range(8)]
    lines = build_order_lines(
        rows_of(spark, CLEAN_ORDERS, *orders), rows_of(spark, CLEAN_PRODUCTS, *products), NEW_YORK
    )

    def events(frame: pd.DataFrame) -> list[dict[str, object]]:
        days = frame["happened_at"].dt.tz_convert(NEW_YORK).dt.date
        return [row | {"happened_on": day} for row, day in zip(records(frame), days, strict=True)]

    contacts = rows_of(
        spark, FACT_CONTACTS, *({"contact_id": f"t{n}", **row} for n, row in enumerate(events(business.contacts)))
    )
    responses = rows_of(
        spark, FACT_RESPONSES, *({"response_id": f"r{n}", **row} for n, row in enumerate(events(business.responses)))
    )
    customers = rows_of(spark, CLEAN_CUSTOMERS, *records(business.customers))
    return (
        build_customers(customers, lines, contacts, responses, NEW_YORK),
        build_customer_days(lines, contacts, responses),
        build_customer_things(lines),
    )


def build(frames: Sequence[DataFrame]) -> DataFrame:
    return build_feature_customers(*frames, cutoffs=CUTOFFS, windows_days=WINDOWS)


@pytest.fixture(scope="module")
def stored_facts(spark: SparkSession, business: Business) -> list[DataFrame]:
    """The facts once and for all, so that two builds of features start from the same rows."""
    tables = (DIM_CUSTOMERS, FACT_CUSTOMER_DAYS, FACT_CUSTOMER_THINGS)
    kept = []
    for frame, table in zip(facts(spark, business), tables, strict=True):
        kept.append(spark.createDataFrame(frame.collect(), ", ".join(f"{c.name} {c.type}" for c in table.columns)))
    return kept


def oracle(business: Business, cut: Cutoff) -> pd.DataFrame:
    """The same features by other means: DuckDB over the events themselves, one cut-off at a time."""
    db = duckdb.connect()

    def days_of(instants: pd.Series) -> pd.Series:
        return pd.Series(instants.dt.tz_convert(NEW_YORK).dt.strftime("%Y-%m-%d"), index=instants.index)

    def plain(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(**{name: frame[name].dt.tz_localize(None) for name in frame.select_dtypes("datetimetz")})

    lines = business.lines.assign(own_on=days_of(business.lines["happened_at"]))
    customers = business.customers.assign(registered_on=days_of(business.customers["signed_up_at"]))
    db.register("all_lines", plain(lines))
    db.register("all_customers", plain(customers))
    for name, frame in (("contacts", business.contacts), ("responses", business.responses)):
        db.register(f"all_{name}", plain(frame.assign(happened_on=days_of(frame["happened_at"]))))
    until = cut.known_until.replace(tzinfo=None).isoformat(" ")
    seen = f"known_at < TIMESTAMP '{until}'"
    before = f"< DATE '{cut.as_of}'"
    db.execute(
        f"""
        CREATE TABLE orders AS
        SELECT order_id, customer_id, min_by(own_on, happened_at)::DATE AS bought_on, min(known_at) AS known_at
        FROM all_lines WHERE NOT is_return GROUP BY ALL;
        CREATE TABLE lines AS
        SELECT l.customer_id, l.amount_e4, l.discount_e4, l.category, l.store_id, l.is_return,
               CASE WHEN l.is_return THEN l.own_on::DATE ELSE o.bought_on END AS happened_on
        FROM all_lines l LEFT JOIN orders o USING (order_id, customer_id)
        WHERE l.{seen} AND CASE WHEN l.is_return THEN l.own_on::DATE ELSE o.bought_on END {before};
        CREATE TABLE contacts AS SELECT customer_id, happened_on::DATE AS happened_on FROM all_contacts
        WHERE {seen} AND happened_on::DATE {before};
        CREATE TABLE responses AS SELECT customer_id, happened_on::DATE AS happened_on FROM all_responses
        WHERE {seen} AND happened_on::DATE {before};
        DELETE FROM orders WHERE NOT ({seen} AND bought_on {before});
        CREATE TABLE registered AS SELECT customer_id, gender FROM all_customers
        WHERE {seen} AND registered_on::DATE {before};
        CREATE TABLE population AS
        SELECT customer_id FROM registered UNION SELECT customer_id FROM lines
        UNION SELECT customer_id FROM contacts UNION SELECT customer_id FROM responses;
        """
    )
    parts = [
        f"""SELECT customer_id, DATE '{cut.as_of}' - max(bought_on) AS recency_days,
                   DATE '{cut.as_of}' - min(bought_on) AS tenure_days FROM orders GROUP BY 1""",
        f"SELECT customer_id, DATE '{cut.as_of}' - max(happened_on) AS contact_recency_days FROM contacts GROUP BY 1",
        f"""SELECT customer_id, DATE '{cut.as_of}' - max(happened_on) AS response_recency_days
            FROM responses GROUP BY 1""",
        """SELECT customer_id, avg(gap) AS mean_gap_days, stddev_pop(gap) AS gap_spread_days FROM (
               SELECT customer_id, bought_on - lag(bought_on) OVER (PARTITION BY customer_id ORDER BY bought_on) AS gap
               FROM (SELECT DISTINCT customer_id, bought_on FROM orders)) GROUP BY 1""",
        """SELECT customer_id, sum(CASE WHEN is_return THEN amount_e4 ELSE 0 END)::BIGINT AS return_amount,
                  sum(discount_e4)::BIGINT AS discount_amount FROM lines GROUP BY 1""",
        "SELECT customer_id, gender FROM registered",
    ]
    for suffix, first in [("", date(1900, 1, 1)), *((f"_{w}d", cut.as_of - timedelta(days=w)) for w in WINDOWS)]:
        since = f">= DATE '{first}'"
        parts += [
            f"""SELECT customer_id, count(*) AS order_count{suffix},
                       count(DISTINCT bought_on) AS active_day_count{suffix}
                FROM orders WHERE bought_on {since} GROUP BY 1""",
            f"""SELECT customer_id, sum(amount_e4)::BIGINT AS net_amount{suffix},
                       sum(discount_e4) / nullif(sum(discount_e4) + sum(amount_e4), 0) AS discount_share{suffix}
                FROM lines WHERE happened_on {since} GROUP BY 1""",
            f"""SELECT customer_id, count(DISTINCT category) AS category_count{suffix},
                       count(DISTINCT store_id) AS store_count{suffix}
                FROM lines WHERE NOT is_return AND happened_on {since} GROUP BY 1""",
            f"""SELECT customer_id, count(*) AS contact_count{suffix} FROM contacts
                WHERE happened_on {since} GROUP BY 1""",
            f"""SELECT customer_id, count(*) AS response_count{suffix} FROM responses
                WHERE happened_on {since} GROUP BY 1""",
        ]
    joined = " ".join(f"LEFT JOIN ({part}) p{n} USING (customer_id)" for n, part in enumerate(parts))
    wide = f"SELECT * FROM population {joined}"
    return db.execute(
        f"""SELECT *, net_amount / 1e4 / order_count AS mean_order_amount,
                   recency_days / mean_gap_days AS overdue_ratio FROM ({wide}) ORDER BY customer_id"""
    ).df()


def test_all_features_equal_an_independent_computation(
    spark: SparkSession, business: Business, stored_facts: list[DataFrame]
) -> None:
    table = feature_customers(WINDOWS)
    rows = build(stored_facts).collect()
    compared = 0
    for cut in CUTOFFS:
        actual = {row["customer_id"]: row.asDict() for row in rows if row["as_of"] == cut.as_of}
        expected = {row["customer_id"]: row for row in oracle(business, cut).to_dict("records")}
        assert actual.keys() == expected.keys()
        for column in table.columns:
            if column.name not in next(iter(expected.values())):
                continue
            found = {key: row[column.name] for key, row in actual.items()}
            wanted = {key: as_typed(row[column.name], column.type, column.nullable) for key, row in expected.items()}
            if column.type == "double":
                wanted = {
                    key: pytest.approx(v, rel=1e-9, abs=1e-9) if v is not None else v for key, v in wanted.items()
                }
            assert found == wanted, column.name
            compared += 1
    # All but the cut-off itself and the seven demographic columns that nobody stated.
    assert compared == len(CUTOFFS) * (len(table.columns) - 9)
    assert len({row["customer_id"] for row in rows}) > 150


def as_typed(value: object, kind: str, nullable: bool) -> object:
    if value is None or pd.isna(value):
        return None if nullable else 0
    if kind.startswith("decimal"):
        return Decimal(int(value)).scaleb(-4)
    return int(value) if kind in ("int", "bigint") else value


def test_the_order_and_partitions_of_rows_do_not_matter(spark: SparkSession, stored_facts: list[DataFrame]) -> None:
    table = feature_customers(WINDOWS)
    shuffled = [
        spark.createDataFrame(sorted(frame.collect(), key=str, reverse=True), frame.schema).repartition(3)
        for frame in stored_facts
    ]
    summary = summarise(build(stored_facts), table)
    assert summary.violations == ()
    assert summary.row_count > 0
    assert summarise(build(shuffled), table) == summary


def test_nobody_known_gives_no_rows(spark: SparkSession) -> None:
    tables = (DIM_CUSTOMERS, FACT_CUSTOMER_DAYS, FACT_CUSTOMER_THINGS)
    nobody = build_feature_customers(*(rows_of(spark, table) for table in tables), cutoffs=CUTOFFS, windows_days=[28])
    assert nobody.collect() == []


def test_the_clock_of_the_cut_off_is_kept_with_its_rows(spark: SparkSession) -> None:
    (row,) = features_of_orders(spark, [], [Cutoff(date(2026, 11, 1), utc("2026-11-01 06:30:00"))])
    known_until: datetime = row["known_until"]
    assert known_until.timestamp() == utc("2026-11-01 06:30:00").timestamp()
