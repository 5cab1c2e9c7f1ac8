"""Events with their business day, the instant they were learned of, and what joins tell about them."""

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from crm_spark.facts.sentiment import parse_sentiment
from crm_spark.facts.tables import (
    FACT_CONTACTS,
    FACT_FEEDBACK,
    FACT_ORDER_LINES,
    FACT_RESPONSES,
    FACT_SERVICE_EVENTS,
    FACT_VISITS,
)
from crm_spark.tables import conform


def parse_business_day(instant: Column, time_zone: str) -> Column:
    """The business's calendar day of an instant in UTC."""
    return F.from_utc_timestamp(instant, time_zone).cast("date")


def parse_business_hour(instant: Column, time_zone: str) -> Column:
    """The hour on the business's clock, 0 to 23, at an instant in UTC."""
    return F.hour(F.from_utc_timestamp(instant, time_zone))


def build_order_lines(orders: DataFrame, products: DataFrame, time_zone: str) -> DataFrame:
    """Rows: one per clean order line.

    A line is a return if it refers to a returned order or if its amount or quantity is negative. An order is
    purchased on the business day of its first purchased line, so that an order over midnight is one order; a
    return counts on its own day.
    """
    is_return = (
        F.col("returned_order_id").isNotNull() | (F.col("amount") < 0) | F.coalesce(F.col("quantity") < 0, F.lit(False))
    )
    dated = orders.withColumnRenamed("ordered_at", "happened_at").withColumns(
        {
            "known_at": F.coalesce("known_at", "happened_at"),
            "discount_amount": F.coalesce("discount_amount", F.lit(0).cast("decimal(18,4)")),
            "is_return": is_return,
        }
    )
    # Structs are compared by sorting all rows; most lines of an order were learned at once, so few are left to sort.
    openings = (
        dated.where("NOT is_return")
        .groupBy("order_id", "customer_id", "known_at")
        .agg(F.min("happened_at").alias("opened_at"), F.min("line_no").alias("line_no"))
        .groupBy("order_id", "customer_id")
        .agg(
            F.min("opened_at").alias("opened_at"),
            F.min_by("line_no", "known_at").alias("opening_line_no"),
        )
    )
    own_day = parse_business_day(F.col("happened_at"), time_zone)
    order_day = parse_business_day(F.col("opened_at"), time_zone)
    own_hour = parse_business_hour(F.col("happened_at"), time_zone)
    order_hour = parse_business_hour(F.col("opened_at"), time_zone)
    lines = (
        dated.join(openings, ["order_id", "customer_id"], "left")
        .withColumn("happened_on", F.when(F.col("is_return"), own_day).otherwise(order_day))
        .withColumn("happened_hour", F.when(F.col("is_return"), own_hour).otherwise(order_hour))
        .withColumn("is_order_opening", ~F.col("is_return") & (F.col("line_no") == F.col("opening_line_no")))
        .join(
            products.select("product_id", "category", "department", "brand", F.col("price").alias("usual_price")),
            "product_id",
            "left",
        )
    )
    return conform(lines.select(*FACT_ORDER_LINES.column_names), FACT_ORDER_LINES)


def build_contacts(contacts: DataFrame, campaigns: DataFrame, time_zone: str) -> DataFrame:
    """Rows: one per clean contact whose date is known: its own, or that of its campaign's start."""
    starts_at = F.to_utc_timestamp(F.col("starts_on").cast("timestamp"), time_zone)
    of_campaign = campaigns.select("campaign_id", F.col("kind").alias("campaign_kind"), starts_at.alias("starts_at"))
    dated = (
        contacts.join(of_campaign, "campaign_id", "left")
        .withColumn("happened_at", F.coalesce("sent_at", "starts_at"))
        .where("happened_at IS NOT NULL")
    )
    return conform(_add_days(dated, time_zone).select(*FACT_CONTACTS.column_names), FACT_CONTACTS)


def build_responses(responses: DataFrame, campaigns: DataFrame, time_zone: str) -> DataFrame:
    """Rows: one per clean response."""
    dated = responses.withColumnRenamed("responded_at", "happened_at").join(
        campaigns.select("campaign_id", "channel"), "campaign_id", "left"
    )
    hour = parse_business_hour(F.col("happened_at"), time_zone)
    rows = _add_days(dated, time_zone).withColumn("happened_hour", hour)
    return conform(rows.select(*FACT_RESPONSES.column_names), FACT_RESPONSES)


def build_service_events(service_events: DataFrame, time_zone: str) -> DataFrame:
    """Rows: one per clean service event."""
    dated = service_events.withColumnRenamed("started_at", "happened_at")
    return conform(_add_days(dated, time_zone).select(*FACT_SERVICE_EVENTS.column_names), FACT_SERVICE_EVENTS)


def build_feedback(feedback: DataFrame, time_zone: str) -> DataFrame:
    """Rows: one per clean feedback."""
    dated = feedback.withColumnRenamed("given_at", "happened_at").withColumn(
        "sentiment", parse_sentiment(F.col("text"))
    )
    return conform(_add_days(dated, time_zone).select(*FACT_FEEDBACK.column_names), FACT_FEEDBACK)


def add_sessions(visits: DataFrame, time_zone: str) -> DataFrame:
    """The clean views and actions of customers; one without a session is of the session of its business day."""
    own_day = F.date_format(parse_business_day(F.col("occurred_at"), time_zone), "yyyy-MM-dd")
    return visits.where("customer_id IS NOT NULL").withColumn("session_id", F.coalesce("session_id", own_day))


def build_visits(visits: DataFrame, time_zone: str) -> DataFrame:
    """Rows: one per clean view or action of a customer.

    A session is of the business day of its first action, which may move if an earlier one is learned of. Its opening,
    first cart and first purchase are those known first, so that they count from when they were known.
    """
    dated = (
        add_sessions(visits, time_zone)
        .withColumnRenamed("occurred_at", "happened_at")
        .withColumn("known_at", F.coalesce("known_at", "happened_at"))
    )
    session = ["customer_id", "session_id"]

    def is_first_known(condition: str) -> Column:
        """Whether a row is the first known, of equals the one with the least id, of its session's with `condition`."""
        known_first = Window.partitionBy(*session, F.expr(condition)).orderBy("known_at", "event_id")
        return F.expr(condition) & (F.row_number().over(known_first) == 1)

    opened_at = F.min("happened_at").over(Window.partitionBy(*session))
    marked = dated.withColumns(
        {
            "happened_on": parse_business_day(opened_at, time_zone),
            "action": F.lower("action"),
        }
    ).withColumns(
        {
            "is_session_opening": is_first_known("TRUE"),
            "is_first_cart": is_first_known("coalesce(action = 'cart', FALSE)"),
            "is_first_purchase": is_first_known("coalesce(action = 'purchase', FALSE)"),
        }
    )
    is_first = F.expr("is_first_cart OR is_first_purchase")
    place = F.row_number().over(Window.partitionBy(*session, is_first).orderBy("known_at", "event_id"))
    rows = marked.withColumn("is_cart_bought", is_first & (place == 2))
    return conform(rows.select(*FACT_VISITS.column_names), FACT_VISITS)


def _add_days(events: DataFrame, time_zone: str) -> DataFrame:
    return events.withColumns(
        {
            "happened_on": parse_business_day(F.col("happened_at"), time_zone),
            "known_at": F.coalesce("known_at", "happened_at"),
        }
    )
