"""Slices of features: the next one from the one before it is the one computed from all days, to the bit."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from builders import rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession

from crm_spark.facts.measures import MEASURES, THING_KINDS
from crm_spark.facts.tables import (
    DIM_CUSTOMERS,
    FACT_CUSTOMER_DAYS,
    FACT_CUSTOMER_PRODUCTS,
    FACT_CUSTOMER_THINGS,
    FACT_ORDER_LINES,
    FACT_VISITS,
)
from crm_spark.features.customers import Cutoff, Ledgers, build_feature_customers, build_next_slice
from crm_spark.features.tables import DEFAULT_WINDOWS_DAYS
from crm_spark.tables import declared_rows

pytestmark = pytest.mark.both_engines

WINDOWS = (3, 7, 28)
START = date(2026, 1, 1)
EVENTS = sorted({measure.event for measure in MEASURES})


class Histories:
    """Random ledgers of many customers: late rows, corrections that take rows back, and deletions."""

    def __init__(self, seed: int, customers: int = 150, visits_begin: date = START) -> None:
        rng = np.random.default_rng(seed)
        self.days: dict[tuple[object, ...], list[int]] = {}
        self.things: dict[tuple[object, ...], int] = {}
        self.products: dict[tuple[object, ...], int] = {}
        for number in range(customers):
            customer = f"c{number}"
            for _ in range(rng.integers(0, 12)):
                happened_on = START + timedelta(days=int(rng.integers(0, 70)))
                known_at = self._known_at(rng, happened_on)
                event = EVENTS[int(rng.integers(len(EVENTS)))]
                if happened_on < visits_begin and event == FACT_VISITS.name:
                    event = FACT_ORDER_LINES.name
                counts = [int(count) for count in rng.integers(0, 4, len(MEASURES))]
                thing, other_thing = (
                    (THING_KINDS[int(rng.integers(len(THING_KINDS)))].kind, f"{int(rng.integers(10, 14))}")
                    for _ in range(2)
                )
                self._add(customer, happened_on, known_at, event, counts, thing, 1)
                if rng.random() < 0.25:
                    corrected_at = known_at + timedelta(hours=int(rng.integers(0, 24 * 20)))
                    self._add(customer, happened_on, corrected_at, event, counts, thing, -1)
                    if rng.random() < 0.5:
                        moved_to = happened_on - timedelta(days=int(rng.integers(0, 3)))
                        self._add(customer, moved_to, corrected_at, event, counts[::-1], other_thing, 1)
        self.customers = [
            (f"c{number}", START + timedelta(days=int(rng.integers(0, 70)))) for number in range(0, customers, 3)
        ]

    @staticmethod
    def _known_at(rng: np.random.Generator, happened_on: date) -> datetime:
        late_days = int(rng.choice([0, 0, 1, 3, 30]))
        return datetime.combine(happened_on + timedelta(days=late_days), time(int(rng.integers(24))), UTC)

    def _add(
        self,
        customer: str,
        happened_on: date,
        known_at: datetime,
        event: str,
        counts: Sequence[int],
        thing: tuple[str, str],
        sign: int,
    ) -> None:
        own = [count if measure.event == event else 0 for count, measure in zip(counts, MEASURES, strict=True)]
        if not any(own):  # an event always counts as something
            own[[measure.event for measure in MEASURES].index(event)] = 1
        day = self.days.setdefault((customer, happened_on, known_at, event), [0] * len(MEASURES))
        for place, count in enumerate(own):
            day[place] += sign * count
        of_thing = (customer, *thing, happened_on, known_at)
        self.things[of_thing] = self.things.get(of_thing, 0) + sign
        of_product = (customer, thing[1], happened_on, known_at)
        self.products[of_product] = self.products.get(of_product, 0) + sign

    def tables(self, spark: SparkSession) -> tuple[DataFrame, Ledgers]:
        registered = [
            {"customer_id": customer, "registered_on": str(on), "registration_known_at": f"{on} 12:00:00"}
            for customer, on in self.customers
        ]
        days = [(*key[:3], 1, *key[3:], *counts) for key, counts in self.days.items()]
        things, products = (
            [(*key, 1, count) for key, count in counts.items() if count] for counts in (self.things, self.products)
        )
        ledgers = Ledgers(
            declared_rows(spark, FACT_CUSTOMER_DAYS, days),
            declared_rows(spark, FACT_CUSTOMER_THINGS, things),
            declared_rows(spark, FACT_CUSTOMER_PRODUCTS, products),
        )
        return rows_of(spark, DIM_CUSTOMERS, *registered), ledgers


def test_the_next_slice_is_that_of_all_days(spark: SparkSession, pytestconfig: pytest.Config) -> None:
    @settings(max_examples=5 if pytestconfig.getoption("engine") == "sail" else 1, deadline=None)
    @given(
        seed=st.integers(0, 2**32),
        steps=st.lists(st.integers(1, 30), min_size=1, max_size=3),
        arrival_hours=st.lists(st.sampled_from([0, 7, 24, 100, 1000]), min_size=4, max_size=4),
    )
    def holds(seed: int, steps: list[int], arrival_hours: list[int]) -> None:
        compare_slices(spark, seed, steps, arrival_hours)

    holds()


def test_the_next_slice_can_be_planned_with_the_default_windows(spark: SparkSession) -> None:
    # Spark's plan grows with the number of columns, and once took forever with all of them.
    compare_slices(spark, seed=1, steps=[1], arrival_hours=[24, 24], windows=DEFAULT_WINDOWS_DAYS)


def compare_slices(
    spark: SparkSession, seed: int, steps: list[int], arrival_hours: list[int], windows: Sequence[int] = WINDOWS
) -> None:
    as_of, known_until = START + timedelta(days=20), datetime.min.replace(tzinfo=UTC)
    cutoffs = []
    for step, hours in zip([0, *steps], arrival_hours, strict=False):
        as_of += timedelta(days=step)
        # However late rows came for one cut-off, the next one knows all that it knew.
        known_until = max(known_until, datetime.combine(as_of, time(), UTC) + timedelta(hours=hours))
        cutoffs.append(Cutoff(as_of, known_until))
    # At the first cut-off, there is a kind of event that the ledger knows nothing of yet.
    customers, ledgers = Histories(seed, visits_begin=cutoffs[0].as_of + timedelta(days=3)).tables(spark)
    tables = customers, ledgers
    full = build_feature_customers(*tables, cutoffs, windows).toArrow()
    expected = {cutoff: full.filter(pa.compute.equal(full["as_of"], cutoff.as_of)) for cutoff in cutoffs}
    fewer = ledgers._replace(events={*EVENTS} - {FACT_VISITS.name})
    chain = build_feature_customers(customers, fewer, cutoffs[:1], windows).toArrow()
    assert_same_rows(chain, expected[cutoffs[0]])
    for base, cutoff in pairwise(cutoffs):
        so_far = spark.createDataFrame(chain)
        chain = build_next_slice(*tables, so_far, base, cutoff, windows).toArrow()
        assert_same_rows(chain, expected[cutoff])


@pytest.mark.parametrize(("days", "hours"), [(-1, 24), (1, -1)])
def test_a_base_lies_before_the_cut_off_in_both_times(spark: SparkSession, days: int, hours: int) -> None:
    base = Cutoff(START, datetime.combine(START, time(), UTC))
    later = Cutoff(START + timedelta(days=days), base.known_until + timedelta(hours=hours))
    tables = Histories(1, customers=1).tables(spark)
    features = build_feature_customers(*tables, [base], WINDOWS)
    with pytest.raises(ValueError, match="expected a base before the cut-off"):
        build_next_slice(*tables, features, base, later, WINDOWS)


def test_a_day_has_one_cut_off(spark: SparkSession) -> None:
    twice = [Cutoff(START, datetime.combine(START, time(hour), UTC)) for hour in (1, 2)]
    with pytest.raises(ValueError, match="expected one cut-off a day"):
        build_feature_customers(*Histories(1, customers=1).tables(spark), twice, WINDOWS)


def assert_same_rows(actual: pa.Table, expected: pa.Table) -> None:
    rows = [sorted(table.to_pylist(), key=lambda row: row["customer_id"]) for table in (actual, expected)]
    assert [row["customer_id"] for row in rows[0]] == [row["customer_id"] for row in rows[1]]
    for found, wanted in zip(*rows, strict=True):
        assert {k: v for k, v in found.items() if v != wanted[k]} == {k: v for k, v in wanted.items() if v != found[k]}
