"""Customer features: one row per customer and cut-off, seeing only what happened and was known before it."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import date, datetime

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from crm_spark.features.tables import AMOUNT, DEMOGRAPHICS, feature_customers
from crm_spark.tables import conform, local_rows

_SLICE = ["customer_id", "as_of"]


@dataclass(frozen=True, order=True)
class Cutoff:
    """Features at `as_of` see what happened before that day and was known before `known_until`."""

    as_of: date
    known_until: datetime


def build_feature_customers(
    customers: DataFrame,
    customer_days: DataFrame,
    customer_things: DataFrame,
    cutoffs: Sequence[Cutoff],
    windows_days: Sequence[int],
) -> DataFrame:
    """Rows: one per cut-off and customer who was registered or in any event before it.

    A customer without a purchase has NULL recency and zero counts. Windows are `[as_of - n days, as_of)`.

    Raises:
        ContractError: if the result does not match the declaration of `feature_customers`.
    """
    table = feature_customers(windows_days)
    cuts = local_rows(customers.sparkSession, "as_of date, known_until timestamp", map(astuple, cutoffs))
    days = _add_up_days(_keep_visible(customer_days, cuts))
    behaviour = _summarise_days(days, windows_days)
    gaps = _summarise_gaps(days)
    variety = _count_things(_keep_visible(customer_things, cuts), windows_days)
    registered = (
        customers.where("is_registered")
        .join(
            F.broadcast(cuts),
            (F.col("registered_on") < F.col("as_of")) & (F.col("registration_known_at") < F.col("known_until")),
        )
        .select(*_SLICE, *DEMOGRAPHICS)
    )
    features = (
        registered.join(behaviour, _SLICE, "full")
        .join(gaps, _SLICE, "left")
        .join(variety, _SLICE, "left")
        .join(F.broadcast(cuts), "as_of")
    )
    counts = [column.name for column in table.columns if not column.nullable and column.type == "bigint"]
    amounts = [column.name for column in table.columns if column.type == AMOUNT]
    filled = features.withColumns(
        {name: F.coalesce(name, F.lit(0).cast("bigint")) for name in counts}
        | {name: F.coalesce(name, F.lit(0).cast(AMOUNT)) for name in amounts}
        | {"overdue_ratio": F.try_divide(F.col("recency_days").cast("double"), F.col("mean_gap_days"))}
    )
    return conform(filled.select(*table.column_names), table)


def _keep_visible(events: DataFrame, cuts: DataFrame) -> DataFrame:
    """Every event once for each cut-off that sees it; all of a customer's in one partition, there to stay."""
    is_visible = (F.col("happened_on") < F.col("as_of")) & (F.col("known_at") < F.col("known_until"))
    by_customer = events.repartition("customer_id")
    return by_customer.join(F.broadcast(cuts), is_visible).drop("known_at", "known_until")


def _add_up_days(visible: DataFrame) -> DataFrame:
    """One row per customer, cut-off and day, whenever its parts became known."""
    measures = [name for name, kind in visible.dtypes if kind == "bigint"]
    return visible.groupBy(*_SLICE, "happened_on").agg(*(F.sum(name).alias(name) for name in measures))


def _summarise_days(days: DataFrame, windows_days: Sequence[int]) -> DataFrame:
    bought = F.col("order_count") > 0
    sums = ["order_count", "net_amount_e4", "discount_amount_e4", "contact_count", "response_count"]
    aggregates = [F.sum(name).alias(name) for name in [*sums, "return_amount_e4"]]
    aggregates += [
        F.count_if(bought).alias("active_day_count"),
        _days_since(F.max(F.when(bought, F.col("happened_on")))).alias("recency_days"),
        _days_since(F.min(F.when(bought, F.col("happened_on")))).alias("tenure_days"),
        _days_since(F.max(F.expr("CASE WHEN contact_count > 0 THEN happened_on END"))).alias("contact_recency_days"),
        _days_since(F.max(F.expr("CASE WHEN response_count > 0 THEN happened_on END"))).alias("response_recency_days"),
    ]
    for window in windows_days:
        within = F.col("happened_on") >= F.date_sub("as_of", window)
        aggregates += [F.sum(F.when(within, F.col(name))).alias(f"{name}_{window}d") for name in sums]
        aggregates.append(F.count_if(bought & within).alias(f"active_day_count_{window}d"))
    summed = days.groupBy(*_SLICE).agg(*aggregates)
    suffixes = ["", *(f"_{window}d" for window in windows_days)]
    return summed.withColumns(
        {f"net_amount{suffix}": _money(f"net_amount_e4{suffix}") for suffix in suffixes}
        | {f"discount_share{suffix}": _discount_share(suffix) for suffix in suffixes}
        | {
            "return_amount": _money("return_amount_e4"),
            "discount_amount": _money("discount_amount_e4"),
            "mean_order_amount": F.try_divide(
                F.col("net_amount_e4").cast("double") / 10000, F.col("order_count").cast("double")
            ),
        }
    )


def _summarise_gaps(days: DataFrame) -> DataFrame:
    """Mean and spread of the days between active days, from exact sums of gaps and of their squares."""
    in_order = Window.partitionBy(*_SLICE).orderBy("happened_on")
    gap_days = F.date_diff("happened_on", F.lag("happened_on").over(in_order)).cast("bigint")
    gaps = (
        days.where("order_count > 0")
        .withColumn("gap_days", gap_days)
        .groupBy(*_SLICE)
        .agg(
            F.count("gap_days").alias("n"),
            F.sum("gap_days").alias("total"),
            F.sum(F.col("gap_days") * F.col("gap_days")).alias("total_of_squares"),
        )
        .where("n > 0")
    )
    n, total = F.col("n").cast("double"), F.col("total").cast("double")
    # n * sum x^2 - (sum x)^2 is a whole number: nothing is rounded before the root.
    spread = F.sqrt((F.col("n") * F.col("total_of_squares") - F.col("total") * F.col("total")).cast("double")) / n
    return gaps.select(*_SLICE, (total / n).alias("mean_gap_days"), spread.alias("gap_spread_days"))


def _count_things(visible: DataFrame, windows_days: Sequence[int]) -> DataFrame:
    """Distinct things ever and by window: a thing is in a window if its last day is."""
    last = visible.groupBy(*_SLICE, "kind", "thing").agg(F.max("happened_on").alias("last_on"))
    counts = []
    for kind in ("category", "store"):
        is_kind = F.col("kind") == kind
        counts.append(F.count_if(is_kind).alias(f"{kind}_count"))
        counts += [
            F.count_if(is_kind & (F.col("last_on") >= F.date_sub("as_of", window))).alias(f"{kind}_count_{window}d")
            for window in windows_days
        ]
    return last.groupBy(*_SLICE).agg(*counts)


def _days_since(day: Column) -> Column:
    return F.date_diff(F.col("as_of"), day)


def _money(name: str) -> Column:
    return (F.col(name).cast("decimal(22,0)") / 10000).cast(AMOUNT)


def _discount_share(suffix: str) -> Column:
    discount = F.col(f"discount_amount_e4{suffix}").cast("double")
    return F.try_divide(discount, discount + F.col(f"net_amount_e4{suffix}").cast("double"))
