"""Facts and features from day to day: what is learned later changes no slice that was made, and the next tells it."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from builders import rows_of, utc
from business import NEW_YORK, Business, Row, expected_features, random_business
from pyspark.sql import SparkSession

from crm_spark.cleaning.tables import CLEAN, HAPPENED_AT
from crm_spark.config import Config, conf_dir, load_config
from crm_spark.facts.tables import EVENTS, FACT_ORDER_LINES, LEDGERS
from crm_spark.features.tables import DEMOGRAPHICS, feature_customers
from crm_spark.lake import Lake
from crm_spark.publications import Pin, Publication
from crm_spark.run import Run
from crm_spark.session import is_sail
from crm_spark.stages.facts import refresh_facts
from crm_spark.stages.features import refresh_features, stored_slices

pytestmark = pytest.mark.both_engines

WINDOWS = (7, 28)
FEATURES = feature_customers(WINDOWS)
Stages = Sequence[tuple[str, Callable[[Run], None]]]
STAGES: Stages = (("facts", refresh_facts), ("features", refresh_features))
FIRST = date(2026, 10, 1)
ORIGIN = {"source": "test", "batch_id": "b1"}
ENTITIES = ("customers", "orders", "products", "responses", "campaigns", "visits")


class Growing:
    """A lake whose clean tables follow a business, and the runs over it."""

    def __init__(self, lake: Lake, small_count: int = 0) -> None:
        self.lake = lake
        # Tables as small as these would be made anew: here they are not, unless it is asked for.
        self.small_count = small_count
        shipped = load_config(conf_dir() / "complete_journey.toml", lake=lake.uri)
        self.config: Config = shipped.model_copy(
            update={
                "tasks": {},
                "business_time_zone": NEW_YORK,
                "features": shipped.features.model_copy(update={"windows_days": WINDOWS}),
            }
        )
        self.stored: dict[str, dict[tuple[object, ...], Row]] = {}
        self.pins: dict[str, Pin] = {}
        self.previous: Publication | None = None

    def follow(self, business: Business) -> None:
        """Bring the clean tables to what the business says now, by as few changes as cleaning would make."""
        for entity in ENTITIES:
            table = CLEAN[entity]
            now = {tuple(row[name] for name in table.key): row for row in getattr(business, entity)}
            before = self.stored.get(entity)
            if now == before:
                continue
            changed = [row for key, row in now.items() if before is None or before.get(key) != row]
            rows = rows_of(self.lake.spark, table, *(ORIGIN | row for row in changed))
            if before is None:
                pin = self.lake.write(table, rows, "0")
            else:
                replaced = [before[key] for key in before if now.get(key) != before[key]]
                gone = rows_of(self.lake.spark, table, *(ORIGIN | row for row in replaced)) if replaced else None
                number = str(self.pins[table.name].version + 1)
                pin = self.lake.change(table, self.pins[table.name], rows, gone, number)
            self.stored[entity], self.pins[table.name] = now, pin

    def refresh(self, as_of: date, known_until: datetime, stages: Stages = STAGES, **settings: Any) -> Run:
        run = Run(
            config=self.config,
            lake=self.lake,
            as_of=as_of,
            known_until=known_until,
            learned_until=known_until,
            run_at=known_until,
            previous=self.previous,
            pins=dict(self.pins),
            absent={table.name for entity, table in CLEAN.items() if entity not in ENTITIES},
            rules=dict.fromkeys(ENTITIES, "as ever"),
            slices=stored_slices(self.lake, WINDOWS),
            **settings,
        )
        with pytest.MonkeyPatch.context() as patch:
            for name in ("run.SMALL_COUNT", "lake.SMALL_COUNT", "stages.features.MANY_ROWS"):
                patch.setattr(f"crm_spark.{name}", self.small_count)
            for run.layer, refresh in stages:
                refresh(run)
        self.previous = run.publication()
        return run


def known_before(business: Business, known_until: datetime) -> Business:
    """What of the entities that are fed here was known by an instant."""
    known = deepcopy(business)
    for entity in fields(Business):
        if entity.name not in ENTITIES:
            setattr(known, entity.name, [])
    for entity in ENTITIES:
        at = HAPPENED_AT.get(entity, "signed_up_at")
        rows = [row for row in getattr(known, entity) if at not in row or row.get("known_at", row[at]) < known_until]
        setattr(known, entity, rows)
    return known


def slices_of(run: Run) -> dict[date, dict[str, Row]]:
    found: dict[date, dict[str, Row]] = {}
    for row in run.read(FEATURES).toArrow().to_pylist():
        found.setdefault(row["as_of"], {})[row["customer_id"]] = row
    return found


def assert_told(actual: Mapping[str, Row], business: Business, as_of: date, known_until: datetime) -> None:
    """That a slice tells what plain Python finds in the events themselves."""
    expected = expected_features(business, as_of, known_until, WINDOWS)
    assert actual.keys() == expected.keys()
    compared = [c for c in FEATURES.columns if c.name not in {"customer_id", "as_of", "known_until", *DEMOGRAPHICS}]
    for column in compared:
        for customer, row in actual.items():
            wanted = expected[customer][column.name]
            if column.type == "double" and wanted is not None:
                wanted = pytest.approx(wanted, rel=1e-9, abs=1e-9)
            assert row[column.name] == wanted, (column.name, customer)


def midnight_after(as_of: date) -> datetime:
    return utc(f"{as_of + timedelta(days=1)} 04:00:00")


@pytest.fixture(scope="module")
def growing(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Growing:
    return Growing(Lake(spark, str(tmp_path_factory.mktemp("growing") / "lake")))


@pytest.fixture(scope="module")
def business() -> Business:
    return random_business(20261122)


@pytest.fixture(scope="module")
def first(growing: Growing, business: Business) -> Run:
    until = midnight_after(FIRST)
    growing.follow(known_before(business, until))
    return growing.refresh(FIRST, until)


GONE = ("c7", "c8", "c190")


def amended(business: Business) -> Business:
    """Some of everything is corrected, moved, deleted or told of long after it was known elsewhere."""
    other = deepcopy(business)
    for place, row in enumerate(other.orders):
        if place % 50 == 0:
            row["amount"] += Decimal(1)
        elif place % 50 == 1:
            row["ordered_at"] -= timedelta(days=3)
        if int(row["order_id"][1:]) % 50 == 2:
            row["customer_id"] = "c5"
    other.orders = [row for place, row in enumerate(other.orders) if place % 50 != 3 and row["customer_id"] != "c7"]
    for entity in ("responses", "visits"):
        rows = getattr(other, entity)
        setattr(other, entity, [row for place, row in enumerate(rows) if place % 40 and row["customer_id"] != "c7"])
    for row in other.visits[::10]:
        row["action"] = "cart"
    other.customers = [row for row in other.customers if row["customer_id"] not in GONE]
    other.products[3]["category"] = "k4"
    other.campaigns[0]["channel"] = "text"
    early = {"line_no": 1, "customer_id": "c9", "product_id": "k1", "store_id": None, "channel": None,
             "amount": Decimal(7), "quantity": None, "discount_amount": None}  # fmt: skip
    told_late = {"order_id": "told late", "ordered_at": utc("2026-08-01 12:00:00")}
    other.orders.append(early | told_late)
    return other


@pytest.fixture(scope="module")
def second(growing: Growing, business: Business, first: Run) -> Run:
    """Four days on: what was learned since has come, much of it long after it happened, and what is amended."""
    as_of = FIRST + timedelta(days=4)
    growing.follow(amended(known_before(business, midnight_after(as_of))))
    return growing.refresh(as_of, midnight_after(as_of))


def test_each_slice_tells_what_was_known_then(business: Business, first: Run, second: Run) -> None:
    for run, change in ((first, deepcopy), (second, amended)):
        until = midnight_after(run.as_of)
        assert_told(slices_of(run)[run.as_of], change(known_before(business, until)), run.as_of, until)


def test_slices_stay_as_they_were_made(first: Run, second: Run) -> None:
    was, is_now = slices_of(first), slices_of(second)
    assert list(was) == [first.as_of]
    assert is_now[first.as_of] == was[first.as_of]
    assert set(is_now) == {first.as_of, second.as_of}


def test_slices_made_anew_from_the_ledgers_are_the_same_to_the_bit(growing: Growing, second: Run) -> None:
    anew = growing.refresh(second.as_of, second.known_until, rebuilt={"features"})
    assert anew.pins[FEATURES.name].version > second.pins[FEATURES.name].version

    def lasting(run: Run) -> dict[date, dict[str, Row]]:
        # Who is registered is no ledger: whoever was deleted there is unknown to slices that are made after that.
        return {
            as_of: {who: row for who, row in rows.items() if who not in GONE} for as_of, rows in slices_of(run).items()
        }

    assert lasting(anew) == lasting(second)
    for name in (ledger.name for ledger in LEDGERS):
        assert anew.pins[name] == second.pins[name]


def test_a_day_known_otherwise_replaces_its_slice_alone(growing: Growing, first: Run, second: Run) -> None:
    earlier = growing.refresh(second.as_of, midnight_after(first.as_of))
    told = slices_of(earlier)
    assert {row["known_until"] for row in told[second.as_of].values()} == {midnight_after(first.as_of)}
    assert told[second.as_of] != slices_of(second)[second.as_of]
    again = growing.refresh(second.as_of, second.known_until)
    assert slices_of(again)[second.as_of] == slices_of(second)[second.as_of]
    assert slices_of(again)[first.as_of] == told[first.as_of]


def test_ledgers_only_grow(growing: Growing, first: Run, second: Run) -> None:
    for name in (ledger.name for ledger in LEDGERS):
        assert growing.lake.only_grew(first.pins[name], second.pins[name])
        assert first.pins[name].row_count < second.pins[name].row_count


def test_the_same_rows_again_write_nothing(growing: Growing, second: Run) -> None:
    assert growing.previous is not None
    before = dict(growing.previous.tables)
    assert growing.refresh(second.as_of, second.known_until).pins == before


def test_ledgers_made_anew_make_every_slice_anew_as_if_all_had_come_in_time(
    growing: Growing, business: Business, first: Run, second: Run
) -> None:
    # Ended after the facts: the next run finds that the ledgers are others.
    anew = growing.refresh(second.as_of, second.known_until, stages=[("facts", refresh_facts)], rebuilt={"facts"})
    for table in EVENTS:
        assert anew.pins[table.name].version > second.pins[table.name].version
        assert anew.pins[table.name].content_hash == second.pins[table.name].content_hash, table.name
    told = slices_of(growing.refresh(second.as_of, second.known_until))
    now = amended(known_before(business, second.known_until))
    for as_of in (first.as_of, second.as_of):
        assert_told(told[as_of], now, as_of, midnight_after(as_of))


@pytest.mark.parametrize("small_count", [0, 100])
def test_a_line_keeps_the_first_price_of_its_product(spark: SparkSession, tmp_path: Path, small_count: int) -> None:
    if small_count and not is_sail(spark):
        pytest.skip("tables are made anew by the same functions on either engine")
    growing = Growing(Lake(spark, str(tmp_path / "lake")), small_count)
    line = {"line_no": 1, "customer_id": "c1", "ordered_at": utc("2026-09-01 12:00:00"), "amount": Decimal(9)}
    shop = Business(
        orders=[line | {"order_id": "a", "product_id": "p1"}, line | {"order_id": "b", "product_id": "p2"}],
        products=[{"product_id": "p1", "price": Decimal(10)}, {"product_id": "p2"}],
    )

    def usual_prices(**settings: Any) -> dict[str, Decimal]:
        growing.follow(shop)
        run = growing.refresh(FIRST, midnight_after(FIRST), stages=[("facts", refresh_facts)], **settings)
        rows = run.read(FACT_ORDER_LINES).collect()
        return {f"{row['order_id']}{row['line_no']}": row["usual_price"] for row in rows}

    assert usual_prices() == {"a1": 10, "b1": None}
    # One gets another price, one its first; and a line comes beside one that stands.
    shop.products = [{"product_id": "p1", "price": Decimal(12)}, {"product_id": "p2", "price": Decimal(7)}]
    shop.orders.append(shop.orders[0] | {"line_no": 2})
    assert usual_prices() == {"a1": 10, "a2": 12, "b1": 7}
    # A line was of another product.
    shop.orders[0] = shop.orders[0] | {"product_id": "p2"}
    assert usual_prices() == {"a1": 7, "a2": 12, "b1": 7}
