"""What happened to each customer: who they are, their days, and the things they bought."""

from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from crm_spark.facts.events import parse_business_day
from crm_spark.facts.tables import DIM_CUSTOMERS, FACT_CUSTOMER_DAYS, FACT_CUSTOMER_THINGS
from crm_spark.tables import conform

_MEASURES = [c.name for c in FACT_CUSTOMER_DAYS.columns if c.name not in FACT_CUSTOMER_DAYS.key]


def build_customers(
    customers: DataFrame, lines: DataFrame, contacts: DataFrame, responses: DataFrame, time_zone: str
) -> DataFrame:
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
    named = [events.select("customer_id").distinct() for events in (lines, contacts, responses)]
    unregistered = reduce(DataFrame.union, named).distinct().join(registered, "customer_id", "left_anti")
    everyone = registered.unionByName(unregistered.withColumn("is_registered", F.lit(False)), allowMissingColumns=True)
    return conform(everyone.select(*DIM_CUSTOMERS.column_names), DIM_CUSTOMERS)


def build_customer_days(lines: DataFrame, contacts: DataFrame, responses: DataFrame) -> DataFrame:
    """Rows: one per customer, business day and instant at which something of that day was learned.

    Every measure is a whole number that adds over days; money counts in 1/10,000 of the currency.
    """
    amount_e4 = (F.col("amount") * 10000).cast("bigint")
    is_return = F.col("is_return")
    measures = [
        lines.select(
            *FACT_CUSTOMER_DAYS.key,
            F.col("is_order_opening").cast("bigint").alias("order_count"),
            (~is_return).cast("bigint").alias("line_count"),
            is_return.cast("bigint").alias("return_line_count"),
            amount_e4.alias("net_amount_e4"),
            F.when(is_return, amount_e4).otherwise(0).alias("return_amount_e4"),
            (F.col("discount_amount") * 10000).cast("bigint").alias("discount_amount_e4"),
        ),
        contacts.select(*FACT_CUSTOMER_DAYS.key, F.lit(1).cast("bigint").alias("contact_count")),
        responses.select(*FACT_CUSTOMER_DAYS.key, F.lit(1).cast("bigint").alias("response_count")),
    ]
    events = reduce(lambda left, right: left.unionByName(right, allowMissingColumns=True), measures)
    days = events.groupBy(*FACT_CUSTOMER_DAYS.key).agg(
        *(F.coalesce(F.sum(measure), F.lit(0)).alias(measure) for measure in _MEASURES)
    )
    return conform(days.select(*FACT_CUSTOMER_DAYS.column_names), FACT_CUSTOMER_DAYS)


def build_customer_things(lines: DataFrame) -> DataFrame:
    """Rows: one per customer, category bought or store visited, and business day; returns left out."""
    things = lines.where("NOT is_return").select(
        "customer_id",
        F.inline(
            F.array(
                F.struct(F.lit("category").alias("kind"), F.col("category").alias("thing")),
                F.struct(F.lit("store").alias("kind"), F.col("store_id").alias("thing")),
            )
        ),
        "happened_on",
        "known_at",
    )
    days = things.where("thing IS NOT NULL").groupBy(*FACT_CUSTOMER_THINGS.key).agg(F.min("known_at").alias("known_at"))
    return conform(days.select(*FACT_CUSTOMER_THINGS.column_names), FACT_CUSTOMER_THINGS)
