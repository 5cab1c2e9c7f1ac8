"""Customer features: one row per customer and cut-off, seeing only what happened and was known before it.

A slice is computed from the whole ledger of days, many cut-offs in one pass, or from an earlier slice and what entered,
left or was learned since. Both give the same bits where ledgers only grow, as all that is kept of a customer is whole
numbers, days and lists.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import astuple, dataclass
from datetime import date, datetime, timedelta
from functools import reduce
from operator import or_
from typing import NamedTuple

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from crm_spark.cleaning.tables import MONEY
from crm_spark.facts.measures import MEASURES, THING_KINDS, Measure
from crm_spark.facts.tables import FACT_ORDER_LINES
from crm_spark.features.declared import DAYS, DERIVED, PRIOR, THING_LISTS, ThingList, Total, spans, totals
from crm_spark.features.tables import DEMOGRAPHICS, feature_customers
from crm_spark.tables import conform, local_rows, union_of

_EVENTS = frozenset(measure.event for measure in MEASURES)
_SLICE = ["customer_id", "as_of"]
_THING = [*_SLICE, "kind", "window_days", "thing"]
# What lists tell of a thing.
_LISTED_EVER = ("thing", "event_count", "last_on")
_LISTED_BY_WINDOW = ("window_days", "thing", "event_count")


@dataclass(frozen=True, order=True)
class Cutoff:
    """Features at `as_of` see what happened before that day and was known before `known_until`."""

    as_of: date
    known_until: datetime


class Ledgers(NamedTuple):
    """Rows of `fact_customer_days`, `fact_customer_things` and `fact_customer_products`.

    `events` are the kinds of events that they tell of, if these are not all there are.
    """

    days: DataFrame
    things: DataFrame
    products: DataFrame
    events: Set[str] = _EVENTS

    @property
    def tables(self) -> tuple[DataFrame, ...]:
        return self.days, self.things, self.products


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

    shape = _shape_of(ledgers, windows_days)

    def seen(events: DataFrame) -> DataFrame:
        """Every event once for each cut-off that sees it; all of a customer's in one partition, there to stay."""
        is_seen = (F.col("happened_on") < F.col("as_of")) & (F.col("known_at") < F.col("known_until"))
        return events.repartition("customer_id").join(F.broadcast(cuts), is_seen).withColumn("is_new", F.lit(True))

    kept = (
        _summarise_days(seen(ledgers.days), shape)
        .join(_list_things(_add_up_things(seen(ledgers.things), shape), shape), _SLICE, "left")
        .join(_count_products(seen(ledgers.products)), _SLICE, "left")
    )
    return _finish(kept, customers, cuts, shape)


def build_next_slice(
    customers: DataFrame,
    ledgers: Ledgers,
    features: DataFrame,
    base: Cutoff,
    cutoff: Cutoff,
    windows_days: Sequence[int],
) -> DataFrame:
    """Rows: as of `build_feature_customers` for one cut-off, made from the slice of an earlier one among `features`.

    Days and things are read that entered or left a window, and all of those customers of whom something was learned
    late; of products the whole ledger, for those who bought. The ledgers must have grown only since the base: what was
    corrected or deleted is taken back by rows of its own, learned later, and no customer is gone.

    Raises:
        ValueError: if the base is after the cut-off, in one of both times.
        ContractError: if the result does not match the declaration of `feature_customers`.
    """
    cuts = local_rows(customers.sparkSession, "as_of date, known_until timestamp", [astuple(cutoff)])
    # The date comes by a join: Sail takes ten times as long to group by a literal.
    only_cut = F.broadcast(cuts.select("as_of"))
    step, shape = _Step(base, cutoff), _shape_of(ledgers, windows_days)
    late = step.late_customers(ledgers)
    ends = shape.window_ends()
    days, things = (step.changing(ledger, late, ends).crossJoin(only_cut) for ledger in (ledgers.days, ledgers.things))
    bought = step.of_changed_customers(ledgers.products, late).crossJoin(only_cut)
    is_base = (F.col("as_of") == F.lit(base.as_of)) & (F.col("known_until") == F.lit(base.known_until))
    before = features.where(is_base).drop("as_of").crossJoin(only_cut)
    if late is not None:
        before = before.join(late, "customer_id", "left_anti")
    lists_before = before.select(*_SLICE, *shape.lists())
    listed = _unlist_things(lists_before.join(things.select(*_SLICE).distinct(), _SLICE, "left_semi"), shape)
    both = listed.unionByName(_add_up_things(things, shape, base.as_of)).groupBy(*_THING)
    added_up = both.agg(F.sum("event_count").alias("event_count"), F.max("last_on").alias("last_on"))
    lists = _list_things(added_up.where("event_count > 0"), shape)
    things_told = lists.join(_count_products(bought), _SLICE, "full")
    changes = _summarise_days(days, shape, base.as_of).join(things_told, _SLICE, "full")
    kept_before = before.selectExpr(*_SLICE, *(f"{name} AS before_{name}" for name in shape.columns()))
    kept = kept_before.join(changes, _SLICE, "full").selectExpr(*_SLICE, *_continued(shape))
    return _finish(kept, customers, cuts, shape)


@dataclass(frozen=True)
class _Shape:
    """What is kept of a customer from one slice to the next, of the kinds of `events` that there are.

    Of the others there is nothing to tell, and telling it again and again of all customers would cost as much.
    """

    windows_days: Sequence[int]
    events: Set[str]

    def measures(self) -> list[Measure]:
        return [measure for measure in MEASURES if measure.event in self.events]

    def totals(self) -> list[Total]:
        # Active days are of orders, which every lake has.
        others = {measure.name for measure in MEASURES if measure.event not in self.events}
        return [total for total in totals(self.windows_days) if total.sum.measure not in others]

    def window_ends(self) -> list[int]:
        """How many days before the cut-off windows begin and end."""
        return sorted({end for total in self.totals() for end in (total.first, total.end) if end})

    def days_of_events(self) -> dict[str, tuple[str, str]]:
        """By column, whether it is the least or the greatest day, and of which measure."""
        counted = {measure.name for measure in self.measures()}
        return {
            f"{which}_{event.event}_on": (function, event.measure)
            for event in DAYS
            for which, function in (("first", "min"), ("last", "max"))
            if event.measure in counted
        }

    def things(self) -> list[ThingList]:
        kinds = {thing.kind for thing in THING_KINDS if thing.event in self.events}
        return [listed for listed in THING_LISTS if listed.kind in kinds]

    def lists(self) -> dict[str, ThingList]:
        """By column, of which things it lists those ever, or those by window."""
        ever = {listed.name: listed for listed in self.things()}
        return ever | {listed.by_window: listed for listed in self.things() if listed.by_window}

    def thing_counts(self) -> dict[str, str]:
        """By column, in SQL, which rows of `_add_up_things` it counts."""
        return {
            f"{listed.count}{suffix}": f"kind = '{listed.kind}' AND window_days IS NULL"
            + (f" AND last_on >= date_sub(as_of, {window})" if window else "")
            for listed in self.things()
            for window, suffix, _ in (spans(self.windows_days) if listed.count else ())
        }

    def thing_columns(self) -> list[str]:
        return [*self.lists(), *self.thing_counts(), "product_count"]

    def columns(self) -> list[str]:
        sums = [total.name for total in self.totals()]
        return [*sums, "gap_square_sum", *self.days_of_events(), *self.thing_columns()]


def _shape_of(ledgers: Ledgers, windows_days: Sequence[int]) -> _Shape:
    return _Shape(windows_days, {FACT_ORDER_LINES.name, *ledgers.events})


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
        rows = (ledger.where(self._is_new() & happened_before).select("customer_id") for ledger in ledgers.tables)
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


def _summarise_days(seen: DataFrame, shape: _Shape, base_as_of: date | None = None) -> DataFrame:
    """Sums, days and gaps of each customer; with a base, by how much they change from there.

    Events that are not `is_new` were counted at the base, and leave those windows that they are no longer in.
    """
    days = _add_gaps(_add_up_days(seen, shape))
    bands = _add_up_bands(days, shape, base_as_of)
    weights = {_weight_name(total): _weight(total) for total in shape.totals()}
    weighed = bands.selectExpr("*", *(f"{value} AS {name}" for name, value in weights.items()))
    # A product of two longs would be checked for overflow, which takes several times as long as the choice.
    aggregates = {
        total.name: "sum(CASE WHEN {1} > 0 THEN {0} WHEN {1} < 0 THEN -{0} ELSE 0 END)".format(
            total.sum.measure, _weight_name(total)
        )
        for total in shape.totals()
    }
    aggregates["gap_square_sum"] = "sum(gap_square_sum)"
    aggregates |= {name: f"{function}({name})" for name, (function, _) in shape.days_of_events().items()}
    summed = weighed.groupBy(*_SLICE).agg(*(F.expr(value).alias(name) for name, value in aggregates.items()))
    scaled = {total.name for total in shape.totals() if total.sum.is_scaled}
    return summed.selectExpr(
        *_SLICE,
        *(
            f"cast(cast({name} AS decimal(22,0)) / 10000 AS {MONEY}) AS {name}" if name in scaled else name
            for name in aggregates
        ),
    )


def _add_up_days(seen: DataFrame, shape: _Shape) -> DataFrame:
    """Rows: one per customer, cut-off and day.

    What was learned late makes all of a customer's days new, so no day is new in part.
    """
    sums = (F.sum(measure.name).alias(measure.name) for measure in shape.measures())
    days = seen.groupBy(*_SLICE, "happened_on").agg(F.bool_or("is_new").alias("is_new"), *sums)
    return days.withColumn("active_day_count", F.expr("cast(order_count > 0 AS bigint)"))


def _add_gaps(days: DataFrame) -> DataFrame:
    """The days with, of each new one with an order, how long the one before is ago."""
    bought_on = F.expr("CASE WHEN order_count > 0 AND is_new THEN happened_on END")
    earlier = Window.partitionBy(*_SLICE).orderBy("happened_on").rowsBetween(Window.unboundedPreceding, -1)
    gap_days = F.date_diff(bought_on, F.last(bought_on, ignorenulls=True).over(earlier))
    return days.withColumn("gap_days", gap_days.cast("bigint"))


def _add_up_bands(days: DataFrame, shape: _Shape, base_as_of: date | None) -> DataFrame:
    """Rows: one per customer, cut-off and band of days by age, now and, if they were counted then, at the base.

    The band is the nearest end of a window that a day lies in, or NULL, so days of one band lie in the same windows.
    There are far fewer bands than days, so that the many sums by window, made of bands, cost less.
    """

    def band(as_of: str) -> str:
        ago = f"datediff({as_of}, happened_on)"
        return f"CASE {' '.join(f'WHEN {ago} <= {end} THEN {end}' for end in shape.window_ends())} END"

    base = f"DATE '{base_as_of}'" if base_as_of else "NULL"
    at_base = f"CASE WHEN NOT is_new THEN {band(base)} END"
    in_bands = days.selectExpr("*", f"{band('as_of')} AS band_days", f"{at_base} AS band_at_base_days")
    aggregates = {measure.name: f"sum({measure.name})" for measure in shape.measures()}
    aggregates |= {"active_day_count": "sum(active_day_count)", "gap_square_sum": "sum(gap_days * gap_days)"}
    for name, (function, measure) in shape.days_of_events().items():
        aggregates[name] = f"{function}(CASE WHEN {measure} > 0 AND is_new THEN happened_on END)"
    bands = in_bands.groupBy(*_SLICE, "is_new", "band_days", "band_at_base_days")
    return bands.agg(*(F.expr(value).alias(name) for name, value in aggregates.items()))


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


def _continued(shape: _Shape) -> Iterator[str]:
    """What is kept of each customer, in SQL: what it was before and how it changed."""
    for total in shape.totals():
        yield f"cast(coalesce(before_{total.name}, 0) + coalesce({total.name}, 0) AS {total.type}) AS {total.name}"
    # New days lie after all days before: the gap between them is one more.
    gap_days = "cast(datediff(first_purchase_on, before_last_purchase_on) AS bigint)"
    squares = ("before_gap_square_sum", "gap_square_sum", f"{gap_days} * {gap_days}")
    yield " + ".join(f"coalesce({square}, 0)" for square in squares) + " AS gap_square_sum"
    for name, (function, _) in shape.days_of_events().items():
        earlier_and_later = f"before_{name}, {name}" if function == "min" else f"{name}, before_{name}"
        yield f"coalesce({earlier_and_later}) AS {name}"
    # Of whom no thing came or left a window, nothing is listed anew; who bought nothing has as many products as before.
    for name in shape.thing_columns():
        yield f"coalesce({name}, before_{name}) AS {name}"


def _count_products(seen: DataFrame) -> DataFrame:
    """Rows: one per customer and cut-off who bought a product: how many."""
    products = seen.groupBy(*_SLICE, "product_id").agg(F.sum("line_count").alias("line_count"))
    return products.where("line_count > 0").groupBy(*_SLICE).agg(F.count("product_id").alias("product_count"))


def _add_up_things(seen: DataFrame, shape: _Shape, base_as_of: date | None = None) -> DataFrame:
    """Rows: one per customer, cut-off and thing, and one a window if its kind is listed by window (NULL: ever).

    They tell how many events were about it, and when the last; with a base, by how many more than there.
    """
    of_day = [*_SLICE, "kind", "thing", "happened_on"]
    days = seen.groupBy(*of_day).agg(F.bool_or("is_new").alias("is_new"), F.sum("event_count").alias("event_count"))
    spans_of_kinds = dict.fromkeys(
        (listed.kind, window)
        for listed in shape.things()
        for window, _, _ in spans(shape.windows_days if listed.by_window else ())
    )
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


def _list_things(things: DataFrame, shape: _Shape) -> DataFrame:
    """Rows: one per customer and cut-off, the things of each kind in lists, and their counts ever and by window."""
    fields = {
        name: _LISTED_BY_WINDOW if name == listed.by_window else _LISTED_EVER for name, listed in shape.lists().items()
    }
    counts = shape.thing_counts()

    def collected(name: str, listed: ThingList) -> Column:
        # Lists are sorted by their first field, then by the next.
        order = (-F.col("event_count")).alias("order")
        by_window = name == listed.by_window
        entry = F.struct("window_days", order, "thing", "event_count") if by_window else F.struct(order, *fields[name])
        is_listed = (F.col("kind") == listed.kind) & (F.col("window_days").isNotNull() == F.lit(by_window))
        return F.collect_list(F.when(is_listed, entry)).alias(name)

    def without_order(name: str) -> str:
        told = ", ".join(f"'{field}', t.{field}" for field in fields[name])
        return f"transform(sort_array({name}), t -> named_struct({told})) AS {name}"

    lists = things.groupBy(*_SLICE).agg(
        *(collected(name, listed) for name, listed in shape.lists().items()),
        *(F.count(F.when(F.expr(condition), 1)).alias(name) for name, condition in counts.items()),
    )
    return lists.selectExpr(*_SLICE, *map(without_order, fields), *counts)


def _unlist_things(lists: DataFrame, shape: _Shape) -> DataFrame:
    """The rows that lists were made of."""

    def rows(name: str, listed: ThingList) -> str:
        by_window = name == listed.by_window
        window_days, last_on = (
            ("t.window_days", "cast(NULL AS date)") if by_window else ("cast(NULL AS int)", "t.last_on")
        )
        return (
            f"transform({name}, t -> named_struct('kind', '{listed.kind}', 'window_days', {window_days}, "
            f"'thing', t.thing, 'event_count', t.event_count, 'last_on', {last_on}))"
        )

    entries = ", ".join(rows(name, listed) for name, listed in shape.lists().items())
    return lists.select(*_SLICE, F.inline(F.expr(f"concat({entries})")))


def _finish(kept: DataFrame, customers: DataFrame, cuts: DataFrame, shape: _Shape) -> DataFrame:
    """Rows: one per customer known at each cut-off, with all that follows from what is kept of them."""
    windows_days = shape.windows_days
    table = feature_customers(windows_days)
    is_known = (F.col("registered_on") < F.col("as_of")) & (F.col("registration_known_at") < F.col("known_until"))
    registered = customers.where("is_registered").join(F.broadcast(cuts), is_known).select(*_SLICE, *DEMOGRAPHICS)
    # A customer of whom all was taken back is known no longer; of the base's registered ones `customers` tells anew.
    is_seen = " OR ".join(f"{total.name} <> 0" for total in shape.totals() if total.first is None)
    everyone = registered.join(kept.where(is_seen), _SLICE, "full").join(F.broadcast(cuts), "as_of")
    everything = _Shape(windows_days, _EVENTS)
    types = {column.name: column.type for column in table.columns}
    told = set(shape.columns())

    def filled(name: str) -> str:
        nothing = "NULL" if types[name] == "date" else "array()" if name in everything.lists() else "0"
        typed = f"cast({nothing} AS {types[name]})"
        return f"coalesce({name}, {typed}) AS {name}" if name in told else f"{typed} AS {name}"

    rows = everyone.selectExpr(*_SLICE, "known_until", *DEMOGRAPHICS, *map(filled, everything.columns()))
    return conform(rows.selectExpr("*", *_derived(windows_days)), table)


def _derived(windows_days: Sequence[int]) -> Iterator[str]:
    kinds = {total.sum.name: total.type for total in totals(windows_days)}
    for feature in DERIVED:
        for _, suffix, _ in spans(windows_days if "{w}" in feature.name else ()):
            yield f"cast({feature.value} AS {feature.type}) AS {feature.name}".format(w=suffix)
    for name in PRIOR:
        for days in windows_days:
            yield f"cast({name}_{days}d - {name}_prior_{days}d AS {kinds[name]}) AS {name}_change_{days}d"
