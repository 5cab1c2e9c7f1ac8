"""What happened to each customer: who they are, their days, what these were about, and the products they bought.

Days, things and products are ledgers: they only grow. An event counts from when the company learned of it. What an
earlier cut-off did not see, though it would have by that instant (a late row, a correction, a row taken back), counts
from when that cut-off was: so features of that day stay what they were, and later ones tell the truth.
"""

from collections.abc import Mapping
from datetime import date, datetime

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from crm_spark.facts.events import parse_business_day
from crm_spark.facts.measures import MEASURES, THING_KINDS, ThingKind
from crm_spark.facts.tables import (
    DIM_CUSTOMERS,
    FACT_CUSTOMER_DAYS,
    FACT_CUSTOMER_PRODUCTS,
    FACT_CUSTOMER_THINGS,
    FACT_ORDER_LINES,
)
from crm_spark.tables import Table, conform, union_of


def build_customers(customers: DataFrame, customer_days: DataFrame, time_zone: str) -> DataFrame:
    """Rows: one per customer in the customer table or in any event, be it one that was taken back.

    A registration without a date, known since always, counts from the beginning of time.
    """
    since_always = F.lit("1970-01-01 00:00:00").cast("timestamp")
    registered = customers.withColumns(
        {
            "is_registered": F.lit(True),
            "registered_on": parse_business_day(F.coalesce("signed_up_at", since_always), time_zone),
            "registration_known_at": F.coalesce("known_at", "signed_up_at", since_always),
        }
    )
    unregistered = customer_days.select("customer_id").distinct().join(registered, "customer_id", "left_anti")
    everyone = registered.unionByName(unregistered.withColumn("is_registered", F.lit(False)), allowMissingColumns=True)
    return conform(everyone.select(*DIM_CUSTOMERS.column_names), DIM_CUSTOMERS)


def build_customer_days(
    changes: Mapping[str, DataFrame], slices: Mapping[date, datetime], addition_no: int
) -> DataFrame:
    """Rows: one per customer, business day, instant of learning and kind of event, of the events that changed.

    `changes` are rows of fact tables, by their names, with a `sign`: 1 if they came, -1 if they went. `slices` are the
    cut-offs that did not see them, with up to when rows counted as known. Every measure is a whole number that adds
    over days; money counts in 1/10,000 of the currency.
    """
    days = union_of(_add_up(_as_learned(rows, slices), name) for name, rows in changes.items())
    is_change = " OR ".join(f"{measure.name} <> 0" for measure in MEASURES)
    return _as_ledger(days.where(is_change), addition_no, FACT_CUSTOMER_DAYS)


def build_customer_things(
    changes: Mapping[str, DataFrame], slices: Mapping[date, datetime], addition_no: int
) -> DataFrame:
    """Rows: one per customer, thing that events were about, business day and instant of learning.

    Arguments as of `build_customer_days`.
    """
    counted = union_of(
        _count_things(_as_learned(changes[thing.event], slices), thing)
        for thing in THING_KINDS
        if thing.event in changes
    )
    return _as_ledger(counted.where("event_count <> 0"), addition_no, FACT_CUSTOMER_THINGS)


def build_customer_products(
    changes: Mapping[str, DataFrame], slices: Mapping[date, datetime], addition_no: int
) -> DataFrame:
    """Rows: one per customer, product bought, business day and instant of learning.

    Arguments as of `build_customer_days`.
    """
    lines = _as_learned(changes[FACT_ORDER_LINES.name], slices).where("NOT is_return AND product_id IS NOT NULL")
    counted = lines.groupBy("customer_id", "product_id", "happened_on", "known_at").agg(
        F.sum("sign").alias("line_count")
    )
    return _as_ledger(counted.where("line_count <> 0"), addition_no, FACT_CUSTOMER_PRODUCTS)


def _count_things(events: DataFrame, thing: ThingKind) -> DataFrame:
    """Events about each thing of one kind. Kinds are counted apart: all in one takes Sail five times as long."""
    named = events.where(thing.where).withColumn("thing", F.expr(thing.thing)).where("thing IS NOT NULL")
    counted = named.groupBy("customer_id", "thing", "happened_on", "known_at").agg(F.sum("sign").alias("event_count"))
    return counted.withColumn("kind", F.lit(thing.kind))


def _as_learned(events: DataFrame, slices: Mapping[date, datetime]) -> DataFrame:
    """The same rows, each known no earlier than up to when any cut-off after it counted rows as known."""
    earliest: list[Column] = []
    last_known_until = None
    for as_of, known_until in sorted(slices.items(), reverse=True):
        if last_known_until is None or known_until > last_known_until:
            earliest.append(F.when(F.col("happened_on") < F.lit(as_of), F.lit(known_until)))
            last_known_until = known_until
    return events.withColumn("known_at", F.greatest("known_at", *earliest)) if earliest else events


def _add_up(events: DataFrame, name: str) -> DataFrame:
    """The measures of one kind of event, and zeros for those of others."""
    zero = F.lit(0).cast("bigint")
    own = {m.name: F.expr(f"sum(cast(coalesce({m.counts}, 0) AS bigint) * sign)") for m in MEASURES if m.event == name}
    key = [column for column in FACT_CUSTOMER_DAYS.key if column not in ("event", "addition_no")]
    counted = events.groupBy(*key).agg(*(total.alias(measure) for measure, total in own.items()))
    others = {m.name: zero for m in MEASURES if m.event != name}
    return counted.withColumns(others | {"event": F.lit(name)})


def _as_ledger(rows: DataFrame, addition_no: int, table: Table) -> DataFrame:
    """The rows of one addition, in the order of days, so that readers of some days pass over the others."""
    numbered = rows.withColumn("addition_no", F.lit(addition_no).cast("bigint"))
    return conform(numbered.select(*table.column_names), table).sort("happened_on", "customer_id")
