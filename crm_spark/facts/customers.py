"""What happened to each customer: who they are, their days, and the things they bought."""

from collections.abc import Iterable, Mapping

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from crm_spark.facts.events import parse_business_day
from crm_spark.facts.measures import MEASURES, THING_KINDS
from crm_spark.facts.tables import DIM_CUSTOMERS, FACT_CUSTOMER_DAYS, FACT_CUSTOMER_THINGS
from crm_spark.tables import conform, union_of


def build_customers(customers: DataFrame, events: Iterable[DataFrame], time_zone: str) -> DataFrame:
    """Rows: one per customer in the customer table or in any event.

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
    named = union_of(rows.select("customer_id").distinct() for rows in events).distinct()
    unregistered = named.join(registered, "customer_id", "left_anti")
    everyone = registered.unionByName(unregistered.withColumn("is_registered", F.lit(False)), allowMissingColumns=True)
    return conform(everyone.select(*DIM_CUSTOMERS.column_names), DIM_CUSTOMERS)


def build_customer_days(events: Mapping[str, DataFrame]) -> DataFrame:
    """Rows: one per customer, business day, instant at which something of that day was learned, and kind of event.

    `events` are the fact tables by name. Every measure is a whole number that adds over days; money counts in 1/10,000
    of the currency.
    """
    days = union_of(_add_up(rows, name) for name, rows in events.items())
    return conform(days.select(*FACT_CUSTOMER_DAYS.column_names), FACT_CUSTOMER_DAYS)


def _add_up(events: DataFrame, name: str) -> DataFrame:
    """The measures of one kind of event, and zeros for those of others."""
    zero = F.lit(0).cast("bigint")
    own = {m.name: F.sum(F.expr(f"cast(coalesce({m.counts}, 0) AS bigint)")) for m in MEASURES if m.event == name}
    key = [column for column in FACT_CUSTOMER_DAYS.key if column != "event"]
    counted = events.groupBy(*key).agg(*(total.alias(measure) for measure, total in own.items()))
    others = {m.name: zero for m in MEASURES if m.event != name}
    return counted.withColumns(others | {"event": F.lit(name)})


def build_customer_things(events: Mapping[str, DataFrame]) -> DataFrame:
    """Rows: one per customer, thing that events were about, business day, and instant of learning."""
    days = union_of(
        events[thing.event]
        .where(thing.where)
        .select(
            "customer_id",
            F.lit(thing.kind).alias("kind"),
            F.expr(thing.thing).alias("thing"),
            "happened_on",
            "known_at",
        )
        for thing in THING_KINDS
        if thing.event in events
    )
    counted = days.where("thing IS NOT NULL").groupBy(*FACT_CUSTOMER_THINGS.key).agg(F.count("*").alias("event_count"))
    return conform(counted.select(*FACT_CUSTOMER_THINGS.column_names), FACT_CUSTOMER_THINGS)
