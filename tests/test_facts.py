"""Facts: what joins between entities tell, each counted on the business's own days."""

from datetime import date
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from builders import ledgers_of, rows_of, utc
from chispa import assert_df_equality
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from crm_spark.cleaning.tables import (
    CLEAN_CAMPAIGNS,
    CLEAN_CONTACTS,
    CLEAN_CUSTOMERS,
    CLEAN_FEEDBACK,
    CLEAN_ORDERS,
    CLEAN_PRODUCTS,
    CLEAN_RESPONSES,
    CLEAN_SERVICE_EVENTS,
    CLEAN_VISITS,
)
from crm_spark.facts.customers import build_customers
from crm_spark.facts.events import (
    build_contacts,
    build_feedback,
    build_order_lines,
    build_responses,
    build_service_events,
    build_visits,
    parse_business_day,
)
from crm_spark.facts.tables import (
    DIM_CUSTOMERS,
    FACT_CONTACTS,
    FACT_CUSTOMER_DAYS,
    FACT_CUSTOMER_THINGS,
    FACT_FEEDBACK,
    FACT_ORDER_LINES,
    FACT_RESPONSES,
    FACT_SERVICE_EVENTS,
    FACT_VISITS,
)
from crm_spark.tables import Table, summarise, union_of

pytestmark = pytest.mark.both_engines

NEW_YORK = "America/New_York"


def orders(spark: SparkSession, *rows: dict[str, object]) -> DataFrame:
    return rows_of(spark, CLEAN_ORDERS, *rows)


def lines_of(spark: SparkSession, *rows: dict[str, object], zone: str = "UTC") -> DataFrame:
    return build_order_lines(orders(spark, *rows), rows_of(spark, CLEAN_PRODUCTS), zone)


def nothing(spark: SparkSession, table: Table) -> DataFrame:
    return rows_of(spark, table)


def same(actual: DataFrame, expected: DataFrame) -> None:
    assert_df_equality(actual, expected, ignore_row_order=True, ignore_nullable=True)


def test_a_business_day_follows_the_local_clock_through_daylight_saving(spark: SparkSession) -> None:
    cases = [
        ("2026-03-08 04:59:59", "2026-03-07"),  # 23:59:59 in winter
        ("2026-03-08 05:00:00", "2026-03-08"),  # midnight before the clock springs forward
        ("2026-03-09 03:59:59", "2026-03-08"),  # 23:59:59 in summer: a day of 23 hours
        ("2026-03-09 04:00:00", "2026-03-09"),
        ("2026-11-01 03:59:59", "2026-10-31"),
        ("2026-11-01 05:30:00", "2026-11-01"),  # 01:30, the first time
        ("2026-11-01 06:30:00", "2026-11-01"),  # 01:30, the second time
        ("2026-11-02 04:59:59", "2026-11-01"),  # a day of 25 hours
        ("2026-11-02 05:00:00", "2026-11-02"),
        ("2024-02-29 12:00:00", "2024-02-29"),
    ]
    rows = spark.createDataFrame([(utc(instant), day) for instant, day in cases], "instant timestamp, day string")
    actual = rows.select("day", parse_business_day(F.col("instant"), NEW_YORK).cast("string").alias("found"))
    assert {(row["day"], row["found"]) for row in actual.collect()} == {(day, day) for _, day in cases}


def test_an_order_over_midnight_is_one_order_on_its_first_day(spark: SparkSession) -> None:
    lines = lines_of(
        spark,
        {"line_no": 2, "ordered_at": "2026-10-02 03:59:59"},
        {"line_no": 1, "ordered_at": "2026-10-02 04:00:00"},
        zone=NEW_YORK,
    )
    expected = spark.createDataFrame(
        [(1, "2026-10-01", False), (2, "2026-10-01", True)], "line_no bigint, happened_on string, opening boolean"
    )
    same(
        lines.select("line_no", F.col("happened_on").cast("string"), F.col("is_order_opening").alias("opening")),
        expected,
    )


def test_returns_open_no_order_and_count_in_net_on_their_own_day(spark: SparkSession) -> None:
    lines = lines_of(
        spark,
        # Bought on the 1st; one line came back on the 3rd under the same order, one on the 5th under another.
        {"order_id": "o1", "line_no": 1, "amount": "10.00", "quantity": "2"},
        {"order_id": "o1", "line_no": 2, "amount": "-4.00", "ordered_at": "2026-10-03 12:00:00"},
        {"order_id": "o2", "amount": "5.00", "returned_order_id": "o1", "ordered_at": "2026-10-05 12:00:00"},
        # A return alone, earlier than any purchase; then quantity alone tells.
        {"order_id": "o3", "amount": "-1.00", "ordered_at": "2026-09-01 12:00:00"},
        {"order_id": "o4", "amount": "0.00", "quantity": "-1", "ordered_at": "2026-10-07 12:00:00"},
        # Nothing paid is a purchase still.
        {"order_id": "o5", "amount": "0.00", "quantity": "1", "ordered_at": "2026-10-08 12:00:00"},
    )
    days = ledgers_of({FACT_ORDER_LINES.name: lines}).days
    actual = days.select(
        F.col("happened_on").cast("string"),
        "order_count",
        "line_count",
        "return_line_count",
        "net_amount_e4",
        "return_amount_e4",
    )
    expected = spark.createDataFrame(
        [
            ("2026-09-01", 0, 0, 1, -10000, -10000),
            ("2026-10-01", 1, 1, 0, 100000, 0),
            ("2026-10-03", 0, 0, 1, -40000, -40000),
            ("2026-10-05", 0, 0, 1, 50000, 50000),
            ("2026-10-07", 0, 0, 1, 0, 0),
            ("2026-10-08", 1, 1, 0, 0, 0),
        ],
        actual.schema,
    )
    same(actual, expected)


def test_an_order_opens_with_the_line_first_known(spark: SparkSession) -> None:
    lines = lines_of(
        spark,
        {"line_no": 1, "known_at": "2026-10-09 00:00:00"},
        {"line_no": 2, "known_at": "2026-10-02 00:00:00"},
        {"line_no": 3, "known_at": "2026-10-02 00:00:00"},
        # A return is known before them all, and opens nothing.
        {"line_no": 4, "known_at": "2026-10-01 00:00:00", "amount": "-1"},
    )
    same(
        lines.where("is_order_opening").select("line_no"),
        spark.createDataFrame([(2,)], "line_no bigint"),
    )


def test_an_order_id_used_by_two_customers_is_an_order_of_each(spark: SparkSession) -> None:
    lines = lines_of(
        spark,
        {"line_no": 1, "customer_id": "c1"},
        {"line_no": 2, "customer_id": "c2", "ordered_at": "2026-10-05 00:00:00"},
    )
    opened = lines.where("is_order_opening").select("customer_id", F.col("happened_on").cast("string"))
    same(opened, spark.createDataFrame([("c1", "2026-10-01"), ("c2", "2026-10-05")], opened.schema))


def test_a_line_keeps_its_row_with_an_unknown_product_or_none(spark: SparkSession) -> None:
    lines = build_order_lines(
        orders(spark, {"line_no": 1, "product_id": "p1"}, {"line_no": 2, "product_id": "p9"}, {"line_no": 3}),
        rows_of(spark, CLEAN_PRODUCTS, {"product_id": "p1", "category": "bread", "brand": "own"}),
        "UTC",
    ).select("line_no", "category", "brand")
    same(
        lines,
        spark.createDataFrame([(1, "bread", "own"), (2, None, None), (3, None, None)], lines.schema),
    )


def test_what_was_known_as_soon_as_it_happened_has_that_instant(spark: SparkSession) -> None:
    lines = lines_of(spark, {"line_no": 1}, {"line_no": 2, "known_at": "2026-10-07 00:00:00"})
    actual = lines.select("line_no", F.col("known_at").cast("string"))
    same(actual, spark.createDataFrame([(1, "2026-10-01 12:00:00"), (2, "2026-10-07 00:00:00")], actual.schema))


def test_a_contact_without_a_date_takes_the_start_of_its_campaign(spark: SparkSession) -> None:
    contacts = rows_of(
        spark,
        CLEAN_CONTACTS,
        {"contact_id": "own", "sent_at": "2026-10-20 01:00:00"},
        {"contact_id": "campaigns"},
        {"contact_id": "known_late", "known_at": "2026-12-01 00:00:00"},
        {"contact_id": "nowhere", "campaign_id": "k9"},
        {"contact_id": "without", "campaign_id": None, "sent_at": "2026-10-20 12:00:00"},
    )
    campaigns = rows_of(spark, CLEAN_CAMPAIGNS, {"campaign_id": "k1", "starts_on": "2026-10-05", "kind": "A"})
    actual = build_contacts(contacts, campaigns, NEW_YORK).select(
        "contact_id",
        F.col("happened_at").cast("string"),
        F.col("happened_on").cast("string"),
        F.col("known_at").cast("string"),
        "campaign_kind",
    )
    expected = spark.createDataFrame(
        [
            ("own", "2026-10-20 01:00:00", "2026-10-19", "2026-10-20 01:00:00", "A"),
            # Midnight in New York.
            ("campaigns", "2026-10-05 04:00:00", "2026-10-05", "2026-10-05 04:00:00", "A"),
            ("known_late", "2026-10-05 04:00:00", "2026-10-05", "2026-12-01 00:00:00", "A"),
            ("without", "2026-10-20 12:00:00", "2026-10-20", "2026-10-20 12:00:00", None),
        ],
        actual.schema,
    )
    same(actual, expected)


def test_every_customer_whom_any_entity_names_is_there_once(spark: SparkSession) -> None:
    customers = rows_of(
        spark,
        CLEAN_CUSTOMERS,
        {"customer_id": "registered", "gender": "f", "signed_up_at": "2026-10-02 03:00:00"},
        {"customer_id": "known_late", "signed_up_at": "2026-01-01 12:00:00", "known_at": "2026-02-01 00:00:00"},
        {"customer_id": "undated"},
    )
    lines = lines_of(spark, {"customer_id": "orders"}, {"customer_id": "registered", "line_no": 2})
    contacts = build_contacts(
        rows_of(spark, CLEAN_CONTACTS, {"customer_id": "contacted", "sent_at": "2026-10-01 00:00:00"}),
        nothing(spark, CLEAN_CAMPAIGNS),
        NEW_YORK,
    )
    responses = build_responses(
        rows_of(spark, CLEAN_RESPONSES, {"customer_id": "responds"}, {"response_id": "r2", "customer_id": "orders"}),
        nothing(spark, CLEAN_CAMPAIGNS),
        NEW_YORK,
    )
    events = {FACT_ORDER_LINES.name: lines, FACT_CONTACTS.name: contacts, FACT_RESPONSES.name: responses}
    everyone = build_customers(customers, ledgers_of(events).days, NEW_YORK)
    assert summarise(everyone, DIM_CUSTOMERS).violations == ()
    actual = everyone.select(
        "customer_id",
        "is_registered",
        F.col("registered_on").cast("string"),
        F.col("registration_known_at").cast("string"),
        "gender",
    )
    expected = spark.createDataFrame(
        [
            ("registered", True, "2026-10-01", "2026-10-02 03:00:00", "f"),
            ("known_late", True, "2026-01-01", "2026-02-01 00:00:00", None),
            ("undated", True, "1969-12-31", "1970-01-01 00:00:00", None),
            ("orders", False, None, None, None),
            ("contacted", False, None, None, None),
            ("responds", False, None, None, None),
        ],
        actual.schema,
    )
    same(actual, expected)


def test_things_are_counted_by_day_and_by_when_they_were_learned_of(spark: SparkSession) -> None:
    lines = rows_of(
        spark,
        FACT_ORDER_LINES,
        {"line_no": 1, "category": "bread", "store_id": "s1", "known_at": "2026-10-03 00:00:00", "channel": "web"},
        {"line_no": 2, "category": "bread", "store_id": None, "known_at": "2026-10-02 00:00:00"},
        {"line_no": 5, "category": "bread", "store_id": None, "known_at": "2026-10-02 00:00:00"},
        {"line_no": 3, "category": "wine", "is_return": True},
        {"line_no": 4, "category": None, "store_id": None, "channel": "web"},
        {"order_id": "o2", "category": "bread", "store_id": "s1", "happened_on": "2026-10-04"},
    ).withColumn("is_order_opening", F.expr("line_no = 1"))
    responses = rows_of(
        spark,
        FACT_RESPONSES,
        {"happened_hour": 9, "happened_on": "2026-10-04", "channel": "email"},
        {"response_id": "r2", "happened_hour": 9, "happened_on": "2026-10-04"},
    )
    actual = ledgers_of({FACT_ORDER_LINES.name: lines, FACT_RESPONSES.name: responses}).things
    expected = rows_of(
        spark,
        FACT_CUSTOMER_THINGS,
        {"thing": "bread", "known_at": "2026-10-02 00:00:00", "event_count": 2},
        {"thing": "bread", "known_at": "2026-10-03 00:00:00"},
        {"kind": "store", "thing": "s1", "known_at": "2026-10-03 00:00:00"},
        {"kind": "channel", "thing": "web", "known_at": "2026-10-03 00:00:00"},
        {"thing": "bread", "happened_on": "2026-10-04"},
        {"kind": "store", "thing": "s1", "happened_on": "2026-10-04"},
        {"kind": "response_channel", "thing": "email", "happened_on": "2026-10-04"},
        {"kind": "response_hour", "thing": "09", "happened_on": "2026-10-04", "event_count": 2},
        {"kind": "response_weekday", "thing": "Sun", "happened_on": "2026-10-04", "event_count": 2},
    )
    same(actual, expected)


@pytest.fixture(scope="module")
def random_orders() -> pd.DataFrame:
    """Order lines of a month with returns, discounts and late knowledge, the same in every run."""
    rng = np.random.default_rng(7)
    count = 300
    ordered_at = pd.Timestamp("2026-10-15", tz="UTC") + pd.to_timedelta(rng.integers(0, 40 * 86400, count), unit="s")
    late = pd.to_timedelta(rng.choice([0, 0, 3600, 86400 * 5], count), unit="s")
    orders_of = rng.integers(0, 90, count)
    return pd.DataFrame(
        {
            "order_id": [f"o{number}" for number in orders_of],
            "line_no": range(count),
            "customer_id": [f"c{number % 12}" for number in orders_of],
            "ordered_at": ordered_at,
            "known_at": ordered_at + late,
            "amount": [Decimal(int(cents)).scaleb(-4) for cents in rng.integers(-30_000, 200_000, count)],
            "discount_amount": [
                None if cents < 0 else Decimal(int(cents)).scaleb(-4) for cents in rng.integers(-9_000, 9_000, count)
            ],
        }
    )


def test_the_measures_of_the_days_add_up_to_the_lines_exactly(spark: SparkSession, random_orders: pd.DataFrame) -> None:
    given = [
        row | {"ordered_at": row["ordered_at"].to_pydatetime(), "known_at": row["known_at"].to_pydatetime()}
        for row in random_orders.to_dict("records")
    ]
    lines = lines_of(spark, *given, zone=NEW_YORK)
    days = ledgers_of({FACT_ORDER_LINES.name: lines}).days
    actual = {
        (row["customer_id"], row["happened_on"], row["known_at"].timestamp()): [row[name] for name in MEASURES]
        for row in days.collect()
    }
    assert actual == customer_days_by_pandas(random_orders)


MEASURES = (
    "order_count", "line_count", "return_line_count", "net_amount_e4", "return_amount_e4", "discount_amount_e4",
    "discounted_line_count", "night_order_count", "evening_order_count", "weekend_order_count",
)  # fmt: skip


def customer_days_by_pandas(given: pd.DataFrame) -> dict[tuple[object, ...], list[int]]:
    """The same days by other means: pandas, and Python's own whole numbers."""
    frame = given.copy()
    frame["amount_e4"] = [int(amount.scaleb(4)) for amount in frame["amount"]]
    frame["discount_e4"] = [0 if value is None else int(value.scaleb(4)) for value in frame["discount_amount"]]
    frame["is_return"] = frame["amount_e4"] < 0
    purchases = frame[~frame["is_return"]]
    first = purchases.groupby(["order_id", "customer_id"])["ordered_at"].transform("min")
    frame["day"] = frame["ordered_at"].where(frame["is_return"], first).dt.tz_convert(NEW_YORK).dt.date
    openings = purchases.sort_values(["known_at", "line_no"]).groupby(["order_id", "customer_id"]).head(1).index
    frame["opens"] = frame.index.isin(openings)
    frame["hour"] = frame["ordered_at"].where(frame["is_return"], first).dt.tz_convert(NEW_YORK).dt.hour
    days: dict[tuple[object, ...], list[int]] = {}
    for row in frame.to_dict("records"):
        day = days.setdefault((row["customer_id"], row["day"], row["known_at"].timestamp()), [0] * len(MEASURES))
        returned = bool(row["is_return"])
        added = (
            int(row["opens"]), int(not returned), int(returned), row["amount_e4"], row["amount_e4"] * returned,
            row["discount_e4"], int(not returned and row["discount_e4"] > 0), int(row["opens"] and row["hour"] < 6),
            int(row["opens"] and row["hour"] >= 18), int(row["opens"] and row["day"].weekday() >= 5),
        )  # fmt: skip
        for place, value in enumerate(added):
            day[place] += value
    return days


def test_days_count_each_kind_of_event_by_itself(spark: SparkSession) -> None:
    lines = rows_of(spark, FACT_ORDER_LINES, {"amount": "1.2345", "quantity": "2"})
    contacts = rows_of(spark, FACT_CONTACTS, {"contact_id": "t1"}, {"contact_id": "t2"})
    service_events = rows_of(
        spark,
        FACT_SERVICE_EVENTS,
        {"event_id": "s1", "duration_seconds": 90, "is_resolved": False},
        {"event_id": "s2", "duration_seconds": 30, "is_resolved": True},
        {"event_id": "s3"},
    )
    feedback = rows_of(spark, FACT_FEEDBACK, {"feedback_id": "f1", "rating": "4.5"}, {"feedback_id": "f2"})
    events = {
        FACT_ORDER_LINES.name: lines,
        FACT_CONTACTS.name: contacts,
        FACT_SERVICE_EVENTS.name: service_events,
        FACT_FEEDBACK.name: feedback,
    }
    day_no = (date(2026, 10, 1) - date(2000, 1, 1)).days
    expected = rows_of(
        spark,
        FACT_CUSTOMER_DAYS,
        {
            "event": FACT_ORDER_LINES.name, "order_count": 1, "line_count": 1, "net_amount_e4": 12345,
            "quantity_e4": 20000, "quantity_line_count": 1, "afternoon_order_count": 1,
        },
        {"event": FACT_CONTACTS.name, "contact_count": 2},
        {
            "event": FACT_SERVICE_EVENTS.name, "service_event_count": 3, "service_seconds": 120,
            "unresolved_service_event_count": 1, "judged_service_event_count": 2,
        },
        {
            "event": FACT_FEEDBACK.name, "feedback_count": 2, "rated_feedback_count": 1, "rating_sum_e4": 45000,
            "rated_day_sum": day_no, "rated_day_square_sum": day_no * day_no, "rating_day_sum_e4": day_no * 45000,
        },
    )  # fmt: skip
    same(ledgers_of(events).days, expected)


def test_a_session_is_of_its_first_day_and_what_it_came_to_is_known_as_its_actions_are(spark: SparkSession) -> None:
    visits = [
        # Over midnight in New York; the cart was known of after the purchase.
        ("a1", "s1", "2026-10-02 03:50:00", "VIEW", "2026-10-02 03:50:00"),
        ("a2", "s1", "2026-10-02 04:10:00", "cart", "2026-10-05 00:00:00"),
        ("a3", "s1", "2026-10-02 04:20:00", "purchase", "2026-10-02 04:20:00"),
        ("a4", "s1", "2026-10-02 04:30:00", "purchase", "2026-10-02 04:30:00"),
        # Nothing came of the cart.
        ("b1", "s2", "2026-10-03 12:00:00", "cart", None),
        # Two actions of a day without a session are one; another day is another.
        ("d1", None, "2026-10-04 12:00:00", "view", None),
        ("d2", None, "2026-10-04 11:00:00", None, None),
        ("d3", None, "2026-10-06 12:00:00", "view", None),
    ]
    names = ("event_id", "session_id", "occurred_at", "action", "known_at")
    rows = rows_of(spark, CLEAN_VISITS, *(dict(zip(names, row, strict=True)) for row in visits))
    found = {
        row["event_id"]: (str(row["happened_on"]), *(name for name in FLAGS if row[name]))
        for row in build_visits(rows, NEW_YORK).collect()
    }
    assert found == {
        "a1": ("2026-10-01", "is_session_opening"),
        "a2": ("2026-10-01", "is_first_cart", "is_cart_bought"),
        "a3": ("2026-10-01", "is_first_purchase"),
        "a4": ("2026-10-01",),
        "b1": ("2026-10-03", "is_session_opening", "is_first_cart"),
        "d1": ("2026-10-04",),
        "d2": ("2026-10-04", "is_session_opening"),
        "d3": ("2026-10-06", "is_session_opening"),
    }


FLAGS = ("is_session_opening", "is_first_cart", "is_first_purchase", "is_cart_bought")


def test_visits_of_nobody_known_are_left_out(spark: SparkSession) -> None:
    visits = rows_of(spark, CLEAN_VISITS, {"customer_id": None}, {"event_id": "v2"})
    assert [row["event_id"] for row in build_visits(visits, "UTC").collect()] == ["v2"]


def test_nothing_in_gives_nothing_out(spark: SparkSession) -> None:
    campaigns = nothing(spark, CLEAN_CAMPAIGNS)
    events = {
        FACT_ORDER_LINES.name: lines_of(spark),
        FACT_CONTACTS.name: build_contacts(nothing(spark, CLEAN_CONTACTS), campaigns, "UTC"),
        FACT_RESPONSES.name: build_responses(nothing(spark, CLEAN_RESPONSES), campaigns, "UTC"),
        FACT_SERVICE_EVENTS.name: build_service_events(nothing(spark, CLEAN_SERVICE_EVENTS), "UTC"),
        FACT_FEEDBACK.name: build_feedback(nothing(spark, CLEAN_FEEDBACK), "UTC"),
        FACT_VISITS.name: build_visits(nothing(spark, CLEAN_VISITS), "UTC"),
    }
    ledgers = ledgers_of(events)
    made = [*events.values(), build_customers(nothing(spark, CLEAN_CUSTOMERS), ledgers.days, "UTC"), *ledgers.tables]
    counted = [frame.groupBy().count() for frame in made]
    assert [row["count"] for row in union_of(counted).collect()] == [0] * len(made)
