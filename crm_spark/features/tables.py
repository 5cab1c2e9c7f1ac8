"""Tables of the features layer. Windowed columns follow the windows of the configuration."""

import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches

from crm_spark.checks import Check
from crm_spark.cleaning.tables import MONEY
from crm_spark.features.declared import DAYS, DERIVED, PRIOR, THING_LISTS, spans, totals
from crm_spark.tables import Column, Table

# Written into the data dictionary; a run declares the windows of its configuration.
DEFAULT_WINDOWS_DAYS = (7, 14, 28, 56, 91, 182, 364)

DEMOGRAPHICS = (
    "age_band", "gender", "income_band", "household_size_band", "household_kind", "home_ownership",
    "marital_status", "kids_band",
)  # fmt: skip

LIST_OF_THINGS = "array<struct<thing:string,event_count:bigint,last_on:date>>"
LIST_BY_WINDOW = "array<struct<window_days:int,thing:string,event_count:bigint>>"


def feature_customers(windows_days: Sequence[int]) -> Table:
    """The declaration of `feature_customers` with a set of columns for each window."""
    return Table(
        name="feature_customers",
        comment="One row per customer known before the cut-off and cut-off: what was known of the days before it.",
        key=("customer_id", "as_of"),
        columns=(
            Column("customer_id", "string", "The customer."),
            Column("as_of", "date", "The cut-off: nothing that happened on or after it is looked at."),
            Column("known_until", "timestamp", "Nothing learned at or after it is looked at (UTC)."),
            *_derived_columns(windows_days),
            *_total_columns(windows_days),
            *_day_columns(),
            Column("product_count", "bigint", "Products bought, each counted once, ever."),
            *_thing_columns(windows_days),
            *(
                Column(name, "string", f"{name.replace('_', ' ').capitalize()}.", nullable=True, personal=True)
                for name in DEMOGRAPHICS
            ),
        ),
        checks=(
            Check("recency_positive", "recency_days IS NULL OR recency_days >= 1"),
            Check("recency_within_tenure", "recency_days IS NULL OR recency_days <= tenure_days"),
            Check("recency_if_ordered", "(recency_days IS NULL) = (order_count = 0)"),
        ),
    )


def stored_windows(column_names: Iterable[str]) -> tuple[int, ...]:
    """The windows that the columns of a stored `feature_customers` are of, in days."""
    windowed = (re.fullmatch(r".+_(\d+)d", name) for name in column_names)
    return tuple(sorted({int(found[1]) for found in windowed if found}))


def number_names(windows_days: Sequence[int]) -> list[str]:
    """The columns of `feature_customers` that are numbers."""
    numbers = ("int", "bigint", "double", MONEY)
    return [column.name for column in feature_customers(windows_days).columns if column.type in numbers]


def nearest_names(name: str, names: Sequence[str]) -> str:
    """The few of many columns that are spelt most like a name, as an error says them."""
    nearest = get_close_matches(name, names, n=5, cutoff=0)
    return f"one such as {', '.join(nearest)} (docs/data-dictionary.md lists all)"


def _derived_columns(windows_days: Sequence[int]) -> Iterator[Column]:
    for feature in DERIVED:
        is_windowed = "{w}" in feature.name
        missing = f"; NULL: {feature.missing}" if feature.missing else ""
        for _, suffix, when in spans(windows_days if is_windowed else ()):
            meaning = f"{feature.meaning} {when}{missing}." if is_windowed else f"{feature.meaning}{missing}."
            yield Column(feature.name.format(w=suffix), feature.type, meaning, nullable=feature.missing is not None)


def _total_columns(windows_days: Sequence[int]) -> Iterator[Column]:
    yield from (Column(total.name, total.type, f"{total.meaning}.") for total in totals(windows_days))
    kinds = {total.sum.name: total.type for total in totals(windows_days)}
    for name in PRIOR:
        for days in windows_days:
            meaning = f"{name}_{days}d less {name}_prior_{days}d."
            yield Column(f"{name}_change_{days}d", kinds[name], meaning)


def _day_columns() -> Iterator[Column]:
    yield Column("gap_square_sum", "bigint", "Sum of the squares of the days between days with an order.")
    for days in DAYS:
        for which in ("first", "last"):
            yield Column(f"{which}_{days.event}_on", "date", f"Day of the {which} {days.event}.", nullable=True)


def _thing_columns(windows_days: Sequence[int]) -> Iterator[Column]:
    for things in THING_LISTS:
        order = "those of most events first, of equals the first by name"
        yield Column(things.name, LIST_OF_THINGS, f"{things.meaning}, with their events and last day; {order}.")
        if things.count:
            for _, suffix, when in spans(windows_days):
                yield Column(f"{things.count}{suffix}", "bigint", f"{things.meaning}, each counted once, {when}.")
        if things.by_window:
            meaning = f"{things.meaning} by window, the shortest first, with their events in it; {order}."
            yield Column(things.by_window, LIST_BY_WINDOW, meaning)


TABLES = (feature_customers(DEFAULT_WINDOWS_DAYS),)
