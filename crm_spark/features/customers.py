"""Customer features: one row per customer and cut-off, seeing only what happened and was known before it.

A slice is computed from the whole ledger of days, many cut-offs in one pass, or from an earlier slice and what entered,
left or was learned since. Both give the same bits where ledgers only grow, as all that is kept of a customer is whole
numbers, days and lists.
"""

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from datetime import date, datetime, timedelta
from functools import reduce
from operator import or_
from typing import NamedTuple

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from crm_spark.cleaning.tables import MONEY
from crm_spark.facts.measures import MEASURES
from crm_spark.features.declared import DAYS, DERIVED, PRIOR, THING_LISTS, Total, spans, totals
from crm_spark.features.tables import DEMOGRAPHICS, LIST_BY_WINDOW, LIST_OF_THINGS, feature_customers
from crm_spark.tables import conform, local_rows, union_of

_SLICE = ["customer_id", "as_of"]
_THING = [*_SLICE, "kind", "window_days", "thing"]


@dataclass(frozen=True, order=True)
class Cutoff:
    """Features at `as_of` see what happened before that day and was known before `known_until`."""

    as_of: date
    known_until: datetime


class Ledgers(NamedTuple):
    """Rows of `fact_customer_days`, `fact_customer_things` and `fact_customer_products`."""

    days: DataFrame
    things: DataFrame
    products: DataFrame


def build_feature_customers(
    customers: DataFrame,
    ledgers: Ledgers,
    cutoffs: Sequence[Cutoff],
    windows_days: Sequence[int],
) -> DataFrame:
    """Rows: one per cut-off and customer who was registered or in any event before it.

    A customer without a purchase has NULL recency and zero counts. Windows are `[as_of - n days, as_of)`.

    Raises:
        ValueError: if two cut-offs are of one day.
        ContractError: if the result does not match the declaration of `feature_customers`.
    """
    if len({cutoff.as_of for cutoff in cutoffs}) < len(cutoffs):
        raise ValueError(f"expected one cut-off a day: found {cutoffs}")
    cuts = local_rows(customers.sparkSession, "as_of date, known_until timestamp", map(astuple, cutoffs))

    def seen(events: DataFrame) -> DataFrame:
        """Every event once for each cut-off that sees it; all of a customer's in one partition, there to stay."""
        is_seen = (F.col("happened_on") < F.col("as_of")) & (F.col("known_at") < F.col("known_until"))
        return events.repartition("customer_id").join(F.broadcast(cuts), is_seen).withColumn("is_new", F.lit(True))

    kept = (
        _summarise_days(seen(ledgers.days), windows_days)
        .join(_list_things(_add_up_things(seen(ledgers.things), windows_days), windows_days), _SLICE, "left")
        .join(_count_products(seen(ledgers.products)), _SLICE, "left")
    )
    return _finish(kept, customers, cuts, windows_days)


def build_next_slice(
    customers: DataFrame,
    ledgers: Ledgers,
    features: DataFrame,
    base: Cutoff,
    cutoff: Cutoff,
    windows_days: Sequence[int],
) -> DataFrame:
    """Rows: as of `build_feature_customers` for one cut-off, made from the slice of an earlier one among `features`.

    Days are read that entered or left a window, all of those customers of whom something was learned late, and the
    products of those who bought. The ledgers must have grown only since the base: what was corrected or deleted is
    taken back by rows of its own, learned later, and no customer is gone.

    Raises:
        ValueError: if the base is after the cut-off, in one of both times.
        ContractError: if the result does not match the declaration of `feature_customers`.
    """
    cuts = local_rows(customers.sparkSession, "as_of date, known_until timestamp", [astuple(cutoff)])
    # The date comes by a join: Sail takes ten times as long to group by a literal.
    only_cut = F.broadcast(cuts.select("as_of"))
    step = _Step(base, cutoff)
    late = step.late_customers(ledgers)
    ends = _window_ends(windows_days)
    days, things = (step.changing(ledger, late, ends).crossJoin(only_cut) for ledger in (ledgers.days, ledgers.things))
    bought = step.of_changed_customers(ledgers.products, late).crossJoin(only_cut)
    is_base = (F.col("as_of") == F.lit(base.as_of)) & (F.col("known_until") == F.lit(base.known_until))
    before = features.where(is_base).drop("as_of").crossJoin(only_cut)
    if late is not None:
        before = before.join(late, "customer_id", "left_anti")
    lists_before = before.select(*_SLICE, *_list_names())
    listed = _unlist_things(lists_before.join(things.select(*_SLICE).distinct(), _SLICE, "left_semi"))
    both = listed.unionByName(_add_up_things(things, windows_days, base.as_of)).groupBy(*_THING)
    added_up = both.agg(F.sum("event_count").alias("event_count"), F.max("last_on").alias("last_on"))
    lists = _list_things(added_up.where("event_count > 0"), windows_days)
    things_told = lists.join(_count_products(bought), _SLICE, "full")
    changes = _summarise_days(days, windows_days, base.as_of).join(things_told, _SLICE, "full")
    kept_before = before.selectExpr(*_SLICE, *(f"{name} AS before_{name}" for name in _kept_columns(windows_days)))
    kept = kept_before.join(changes, _SLICE, "full").selectExpr(*_SLICE, *_continued(windows_days))
    return _finish(kept, customers, cuts, windows_days)


@dataclass(frozen=True)
class _Step:
    """From one cut-off to a later one: which events count anew, and which no longer."""

    base: Cutoff
    cutoff: Cutoff

    def __post_init__(self) -> None:
        if self.base.as_of > self.cutoff.as_of or self.base.known_until > self.cutoff.known_until:
            raise ValueError(f"expected a base before the cut-off: found {self.base}, {self.cutoff}")

    def late_customers(self, ledgers: Ledgers) -> DataFrame | None:
        """Those of whom something was learned since that happened before the base; None if there are none."""
        happened_before = F.col("happened_on") < F.lit(self.base.as_of)
        rows = (ledger.where(self._is_new() & happened_before).select("customer_id") for ledger in ledgers)
        late = union_of(rows).distinct()
        return None if late.isEmpty() else late

    def changing(self, ledger: DataFrame, late: DataFrame | None, window_ends: Sequence[int]) -> DataFrame:
        """The events that entered, or left a window that ends so many days back; of late customers all they have."""
        left = [
            F.col("happened_on").between(
                F.lit(self.base.as_of - timedelta(days=end)), F.lit(self.cutoff.as_of - timedelta(days=end + 1))
            )
            for end in window_ends
        ]
        is_new = self._is_new()
        seen = ledger.where(self._is_seen(self.cutoff))
        changing = seen.where(reduce(or_, left, is_new)).withColumn("is_new", is_new)
        if late is not None:
            theirs = seen.join(late, "customer_id", "left_semi").withColumn("is_new", F.lit(True))
            changing = changing.join(late, "customer_id", "left_anti").unionByName(theirs)
        return changing

    def of_changed_customers(self, ledger: DataFrame, late: DataFrame | None) -> DataFrame:
        """All events of those customers of whom something is new, or was learned late."""
        changed = ledger.where(self._is_new()).select("customer_id")
        changed = (changed if late is None else changed.union(late)).distinct()
        return ledger.where(self._is_seen(self.cutoff)).join(changed, "customer_id", "left_semi")

    def _is_new(self) -> Column:
        return self._is_seen(self.cutoff) & ~self._is_seen(self.base)

    @staticmethod
    def _is_seen(cut: Cutoff) -> Column:
        return (F.col("happened_on") < F.lit(cut.as_of)) & (F.col("known_at") < F.lit(cut.known_until))


def _summarise_days(seen: DataFrame, windows_days: Sequence[int], base_as_of: date | None = None) -> DataFrame:
    """Sums, days and gaps of each customer; with a base, by how much they change from there.

    Events that are not `is_new` were counted at the base, and leave those windows that they are no longer in.
    """
    days = _add_gaps(_add_up_days(seen))
    bands = _add_up_bands(days, _window_ends(windows_days), base_as_of)
    weights = {_weight_name(total): _weight(total) for total in totals(windows_days)}
    weighed = bands.selectExpr("*", *(f"{value} AS {name}" for name, value in weights.items()))
    # A product of two longs would be checked for overflow, which takes several times as long as the choice.
    aggregates = {
        total.name: "sum(CASE WHEN {1} > 0 THEN {0} WHEN {1} < 0 THEN -{0} ELSE 0 END)".format(
            total.sum.measure, _weight_name(total)
        )
        for total in totals(windows_days)
    }
    aggregates["gap_square_sum"] = "sum(gap_square_sum)"
    aggregates |= {name: f"{function}({name})" for name, (function, _) in _days_of_events().items()}
    summed = weighed.groupBy(*_SLICE).agg(*(F.expr(value).alias(name) for name, value in aggregates.items()))
    scaled = {total.name for total in totals(windows_days) if total.sum.is_scaled}
    return summed.selectExpr(
        *_SLICE,
        *(
            f"cast(cast({name} AS decimal(22,0)) / 10000 AS {MONEY}) AS {name}" if name in scaled else name
            for name in aggregates
        ),
    )


def _window_ends(windows_days: Sequence[int]) -> list[int]:
    """How many days before the cut-off windows begin and end."""
    return sorted({end for total in totals(windows_days) for end in (total.first, total.end) if end})


def _add_up_days(seen: DataFrame) -> DataFrame:
    """Rows: one per customer, cut-off and day.

    What was learned late makes all of a customer's days new, so no day is new in part.
    """
    sums = (F.sum(measure.name).alias(measure.name) for measure in MEASURES)
    days = seen.groupBy(*_SLICE, "happened_on").agg(F.bool_or("is_new").alias("is_new"), *sums)
    return days.withColumn("active_day_count", F.expr("cast(order_count > 0 AS bigint)"))


def _add_gaps(days: DataFrame) -> DataFrame:
    """The days with, of each new one with an order, how long the one before is ago."""
    bought_on = F.expr("CASE WHEN order_count > 0 AND is_new THEN happened_on END")
    earlier = Window.partitionBy(*_SLICE).orderBy("happened_on").rowsBetween(Window.unboundedPreceding, -1)
    gap_days = F.date_diff(bought_on, F.last(bought_on, ignorenulls=True).over(earlier))
    return days.withColumn("gap_days", gap_days.cast("bigint"))


def _add_up_bands(days: DataFrame, ends: Sequence[int], base_as_of: date | None) -> DataFrame:
    """Rows: one per customer, cut-off and band of days by age, now and, if they were counted then, at the base.

    The band is the nearest end of a window that a day lies in, or NULL, so days of one band lie in the same windows.
    There are far fewer bands than days, so that the many sums by window, made of bands, cost less.
    """

    def band(as_of: str) -> str:
        ago = f"datediff({as_of}, happened_on)"
        return f"CASE {' '.join(f'WHEN {ago} <= {end} THEN {end}' for end in ends)} END"

    base = f"DATE '{base_as_of}'" if base_as_of else "NULL"
    at_base = f"CASE WHEN NOT is_new THEN {band(base)} END"
    in_bands = days.selectExpr("*", f"{band('as_of')} AS band_days", f"{at_base} AS band_at_base_days")
    aggregates = {measure.name: f"sum({measure.name})" for measure in MEASURES}
    aggregates |= {"active_day_count": "sum(active_day_count)", "gap_square_sum": "sum(gap_days * gap_days)"}
    for name, (function, measure) in _days_of_events().items():
        aggregates[name] = f"{function}(CASE WHEN {measure} > 0 AND is_new THEN happened_on END)"
    bands = in_bands.groupBy(*_SLICE, "is_new", "band_days", "band_at_base_days")
    return bands.agg(*(F.expr(value).alias(name) for name, value in aggregates.items()))


def _days_of_events() -> dict[str, tuple[str, str]]:
    """By column, whether it is the least or the greatest day, and of which measure."""
    return {
        f"{which}_{event.event}_on": (function, event.measure)
        for event in DAYS
        for which, function in (("first", "min"), ("last", "max"))
    }


def _weight(total: Total) -> str:
    """1 if a band's days are to be added, -1 if they counted at the base and do no longer, 0 otherwise."""
    if total.first is None:
        return "cast(is_new AS int)"
    now, before = (
        f"CASE WHEN {band} > {total.end} AND {band} <= {total.first} THEN 1 ELSE 0 END"
        for band in ("band_days", "band_at_base_days")
    )
    return f"{now} - {before}"


def _weight_name(total: Total) -> str:
    return "weight" if total.first is None else f"weight_{total.first}_{total.end}"


def _continued(windows_days: Sequence[int]) -> Iterator[str]:
    """What is kept of each customer, in SQL: what it was before and how it changed."""
    for total in totals(windows_days):
        yield f"cast(coalesce(before_{total.name}, 0) + coalesce({total.name}, 0) AS {total.type}) AS {total.name}"
    # New days lie after all days before: the gap between them is one more.
    gap_days = "cast(datediff(first_purchase_on, before_last_purchase_on) AS bigint)"
    squares = ("before_gap_square_sum", "gap_square_sum", f"{gap_days} * {gap_days}")
    yield " + ".join(f"coalesce({square}, 0)" for square in squares) + " AS gap_square_sum"
    for event in DAYS:
        first, last = f"first_{event.event}_on", f"last_{event.event}_on"
        yield f"coalesce(before_{first}, {first}) AS {first}"
        yield f"coalesce({last}, before_{last}) AS {last}"
    # Of whom no thing came or left a window, nothing is listed anew; who bought nothing has as many products as before.
    for name in _thing_columns(windows_days):
        yield f"coalesce({name}, before_{name}) AS {name}"


def _kept_columns(windows_days: Sequence[int]) -> list[str]:
    """The columns that are kept from one slice to the next."""
    sums = [total.name for total in totals(windows_days)]
    return [*sums, "gap_square_sum", *_days_of_events(), *_thing_columns(windows_days)]


def _thing_columns(windows_days: Sequence[int]) -> list[str]:
    return [*_list_names(), *_thing_counts(windows_days), "product_count"]


def _list_names() -> list[str]:
    return [*(things.name for things in THING_LISTS), *(things.by_window for things in THING_LISTS if things.by_window)]


def _thing_counts(windows_days: Sequence[int]) -> dict[str, str]:
    """By column, in SQL, which rows of `_add_up_things` it counts."""
    return {
        f"{things.count}{suffix}": f"kind = '{things.kind}' AND window_days IS NULL"
        + (f" AND last_on >= date_sub(as_of, {window})" if window else "")
        for things in THING_LISTS
        for window, suffix, _ in (spans(windows_days) if things.count else ())
    }


def _count_products(seen: DataFrame) -> DataFrame:
    """Rows: one per customer and cut-off who bought a product: how many."""
    products = seen.groupBy(*_SLICE, "product_id").agg(F.sum("line_count").alias("line_count"))
    return products.where("line_count > 0").groupBy(*_SLICE).agg(F.count("product_id").alias("product_count"))


def _add_up_things(seen: DataFrame, windows_days: Sequence[int], base_as_of: date | None = None) -> DataFrame:
    """Rows: one per customer, cut-off and thing, and one a window if its kind is listed by window (NULL: ever).

    They tell how many events were about it, and when the last; with a base, by how many more than there.
    """
    of_day = [*_SLICE, "kind", "thing", "happened_on"]
    days = seen.groupBy(*of_day).agg(F.bool_or("is_new").alias("is_new"), F.sum("event_count").alias("event_count"))
    spans_of_kinds = [
        (things.kind, days) for things in THING_LISTS for days, _, _ in spans(windows_days if things.by_window else ())
    ]
    kinds = local_rows(seen.sparkSession, "kind string, window_days int", spans_of_kinds)
    lies_now, lay_at_base = (
        f"CASE WHEN datediff({as_of}, happened_on) <= window_days THEN 1 ELSE 0 END"
        for as_of in ("as_of", f"DATE '{base_as_of}'")
    )
    lay_at_base = f"CASE WHEN is_new THEN 0 ELSE {lay_at_base} END" if base_as_of else "0"
    weight = f"CASE WHEN window_days IS NULL THEN cast(is_new AS int) ELSE {lies_now} - {lay_at_base} END"
    weighed = days.where("event_count > 0").join(F.broadcast(kinds), "kind").selectExpr("*", f"{weight} AS weight")
    return (
        weighed.where("weight <> 0")
        .groupBy(*_THING)
        .agg(F.sum(F.expr("event_count * weight")).alias("event_count"), F.max("happened_on").alias("last_on"))
    )


def _list_things(things: DataFrame, windows_days: Sequence[int]) -> DataFrame:
    """Rows: one per customer and cut-off, the things of each kind in lists, and their counts ever and by window."""
    counts = _thing_counts(windows_days)
    # Lists are sorted by their first field, then by the next.
    order = (-F.col("event_count")).alias("order")
    ever = F.struct(order, "thing", "event_count", "last_on")
    of_window = F.struct("window_days", order, "thing", "event_count")

    def collected(kind: str, entry: Column, *, by_window: bool) -> Column:
        is_listed = (F.col("kind") == kind) & (F.col("window_days").isNotNull() == F.lit(by_window))
        return F.collect_list(F.when(is_listed, entry))

    lists = things.groupBy(*_SLICE).agg(
        *(collected(kind.kind, ever, by_window=False).alias(kind.name) for kind in THING_LISTS),
        *(
            collected(kind.kind, of_window, by_window=True).alias(kind.by_window)
            for kind in THING_LISTS
            if kind.by_window
        ),
        *(F.count(F.when(F.expr(condition), 1)).alias(name) for name, condition in counts.items()),
    )
    fields = {kind.name: ("thing", "event_count", "last_on") for kind in THING_LISTS}
    fields |= {kind.by_window: ("window_days", "thing", "event_count") for kind in THING_LISTS if kind.by_window}

    def without_order(name: str) -> str:
        told = ", ".join(f"'{field}', t.{field}" for field in fields[name])
        return f"transform(sort_array({name}), t -> named_struct({told})) AS {name}"

    return lists.selectExpr(*_SLICE, *map(without_order, fields), *counts)


def _unlist_things(lists: DataFrame) -> DataFrame:
    """The rows that lists were made of."""

    def rows(name: str, kind: str, window_days: str, last_on: str) -> str:
        return (
            f"transform({name}, t -> named_struct('kind', '{kind}', 'window_days', {window_days}, 'thing', t.thing, "
            f"'event_count', t.event_count, 'last_on', {last_on}))"
        )

    ever = [rows(kind.name, kind.kind, "cast(NULL AS int)", "t.last_on") for kind in THING_LISTS]
    by_window = [
        rows(kind.by_window, kind.kind, "t.window_days", "cast(NULL AS date)") for kind in THING_LISTS if kind.by_window
    ]
    return lists.select(*_SLICE, F.inline(F.expr(f"concat({', '.join([*ever, *by_window])})")))


def _finish(kept: DataFrame, customers: DataFrame, cuts: DataFrame, windows_days: Sequence[int]) -> DataFrame:
    """Rows: one per customer known at each cut-off, with all that follows from what is kept of them."""
    table = feature_customers(windows_days)
    is_known = (F.col("registered_on") < F.col("as_of")) & (F.col("registration_known_at") < F.col("known_until"))
    registered = customers.where("is_registered").join(F.broadcast(cuts), is_known).select(*_SLICE, *DEMOGRAPHICS)
    # A customer of whom all was taken back is known no longer; of the base's registered ones `customers` tells anew.
    is_seen = " OR ".join(f"{total.name} <> 0" for total in totals(windows_days) if total.first is None)
    everyone = registered.join(kept.where(is_seen), _SLICE, "full").join(F.broadcast(cuts), "as_of")
    counts = (total.name for total in totals(windows_days))
    zeros = dict.fromkeys([*counts, *_thing_counts(windows_days), "gap_square_sum", "product_count"], "0")
    zeros |= {things.name: f"cast(array() AS {LIST_OF_THINGS})" for things in THING_LISTS}
    zeros |= {things.by_window: f"cast(array() AS {LIST_BY_WINDOW})" for things in THING_LISTS if things.by_window}
    filled = everyone.selectExpr(
        *_SLICE,
        "known_until",
        *DEMOGRAPHICS,
        *(
            f"coalesce({name}, {zeros[name]}) AS {name}" if name in zeros else name
            for name in _kept_columns(windows_days)
        ),
    )
    return conform(filled.selectExpr("*", *_derived(windows_days)), table)


def _derived(windows_days: Sequence[int]) -> Iterator[str]:
    kinds = {total.sum.name: total.type for total in totals(windows_days)}
    for feature in DERIVED:
        for _, suffix, _ in spans(windows_days if "{w}" in feature.name else ()):
            yield f"cast({feature.value} AS {feature.type}) AS {feature.name}".format(w=suffix)
    for name in PRIOR:
        for days in windows_days:
            yield f"cast({name}_{days}d - {name}_prior_{days}d AS {kinds[name]}) AS {name}_change_{days}d"
