"""The sides of the benchmark of features, each of which makes those of the next day from the same order lines.

Formulas stand here a second time, apart from those of crm_spark, so that one side checks the other. Amounts and
quantities count in 1/10,000 on the others' sides.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
from measuring import tell

_WINDOWS_DAYS = (7, 14, 28, 56, 91, 182, 364)
LAST_DAY = date(2025, 12, 31)
AS_OF = LAST_DAY + timedelta(days=1)


_Span = tuple[date, date]


def _days_ago(days: int) -> date:
    return AS_OF - timedelta(days=days)


# What names of features end with, and the days from and before which they count.
_SPANS = {"": (date(1970, 1, 1), AS_OF)} | {f"_{days}d": (_days_ago(days), AS_OF) for days in _WINDOWS_DAYS}
_PRIOR_SPANS = {f"_prior_{days}d": (_days_ago(2 * days), _days_ago(days)) for days in _WINDOWS_DAYS}
_MEASURES_BY_SPAN = (
    "order_count", "active_day_count", "line_count", "return_line_count", "discounted_line_count", "net_amount",
    "return_amount", "discount_amount",
)  # fmt: skip
_PARTS_OF_DAY = {"night": (0, 5), "morning": (6, 11), "afternoon": (12, 17), "evening": (18, 23)}
_PARTS_OF_WEEK = [*_PARTS_OF_DAY, "weekend"]
_MEASURES_EVER = (
    "quantity", "discounted_quantity", "quantity_line_count", "discounted_quantity_line_count", "priced_amount",
    "usual_amount", *(f"{part}_order_count" for part in _PARTS_OF_WEEK),
)  # fmt: skip
_COMPARED_WITH_PRIOR = ("order_count", "net_amount")
# Of each sum, the measure that it adds up, and its days.
_SUMS = {
    f"{measure}{suffix}": (measure, span)
    for measures, spans in (
        (_MEASURES_BY_SPAN, _SPANS),
        (_MEASURES_EVER, {"": _SPANS[""]}),
        (_COMPARED_WITH_PRIOR, _PRIOR_SPANS),
    )
    for measure in measures
    for suffix, span in spans.items()
}
# Read as whole numbers, of 1/10,000; units are whole anyway, so that their product with a price is exact.
_E4 = ("amount", "discount_amount", "quantity", "usual_price")
# Of each change, the sum it goes to and the one it comes from.
_CHANGES = {
    f"{measure}_change_{days}d": (f"{measure}_{days}d", f"{measure}_prior_{days}d")
    for measure in _COMPARED_WITH_PRIOR
    for days in _WINDOWS_DAYS
}


class _Ratio(NamedTuple):
    """A sum over the total of others, missing if that is 0; the sum counts in 1/`unit`."""

    part: str
    whole: tuple[str, ...]
    unit: int = 1


_RATIOS = {f"{part}_order_share": _Ratio(f"{part}_order_count", ("order_count",)) for part in _PARTS_OF_WEEK}
_RATIOS["price_ratio"] = _Ratio("priced_amount", ("usual_amount",))
for _end in _SPANS:
    _RATIOS |= {
        f"mean_order_amount{_end}": _Ratio(f"net_amount{_end}", (f"order_count{_end}",), unit=10_000),
        f"mean_order_line_count{_end}": _Ratio(f"line_count{_end}", (f"order_count{_end}",)),
        f"discount_share{_end}": _Ratio(f"discount_amount{_end}", (f"discount_amount{_end}", f"net_amount{_end}")),
        f"discounted_line_share{_end}": _Ratio(f"discounted_line_count{_end}", (f"line_count{_end}",)),
        f"return_line_share{_end}": _Ratio(
            f"return_line_count{_end}", (f"line_count{_end}", f"return_line_count{_end}")
        ),
    }


class _Things(NamedTuple):
    """All things in `column` of the lines with `where`, those of most lines first.

    In columns called `counted` they are counted by span, each in those that its last day lies in.
    """

    column: str
    where: str = "is_purchase"
    counted: str | None = None


_THINGS = {
    "categories": _Things("category", counted="category_count"),
    "stores": _Things("store_id", counted="store_count"),
    "channels": _Things("channel", where="is_order_opening"),
}
# Of each first thing of a list, the list, and the sum that its lines are a share of.
_TOPS = {"top_category": ("categories", "line_count"), "top_channel": ("channels", "order_count")}
# What is 0, not missing, of customers without a purchase; sums are so anyway.
_ZEROS = [
    *(f"{kind.counted}{end}" for kind in _THINGS.values() if kind.counted for end in _SPANS),
    "gap_square_sum",
    "product_count",
]


@contextmanager
def connect_duckdb() -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB on two threads."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'; SET threads = 2; SET preserve_insertion_order = false")
        yield connection


def by_spark(lines: str, out: str, told: str) -> None:
    """By crm_spark on Spark."""
    from crm_spark.session import build_session

    began = time.monotonic()
    spark = build_session()
    spark.range(1).count()
    _by_crm_spark(spark, lines, out, told, time.monotonic() - began)
    spark.stop()


def by_sail(lines: str, out: str, told: str) -> None:
    """By crm_spark on Sail."""
    from crm_spark.session import sail_session

    began = time.monotonic()
    with sail_session() as spark:
        spark.range(1).count()
        _by_crm_spark(spark, lines, out, told, time.monotonic() - began)


def _by_crm_spark(spark: Any, lines: str, out: str, told: str, start_seconds: float) -> None:
    from pyspark.sql import functions as F

    from crm_spark.facts.customers import build_customer_days, build_customer_products, build_customer_things
    from crm_spark.facts.tables import DIM_CUSTOMERS, FACT_ORDER_LINES
    from crm_spark.features.customers import Cutoff, Ledgers, build_feature_customers, build_next_slice
    from crm_spark.tables import declared_rows

    before, after = (Cutoff(day, datetime(day.year, day.month, day.day, 4, tzinfo=UTC)) for day in (LAST_DAY, AS_OF))
    came = spark.read.parquet(lines).withColumn("sign", F.lit(1))
    customers = declared_rows(spark, DIM_CUSTOMERS, [])

    builders = {
        "days": build_customer_days,
        "things": build_customer_things,
        "products": build_customer_products,
    }

    def grow(changes: Any, addition_no: int) -> None:
        """Add to all ledgers."""
        events = {FACT_ORDER_LINES.name: changes}
        for name, build in builders.items():
            rows = build(events, {}, addition_no)
            rows.write.format("delta").mode("append").save(f"{out}/{name}")

    def ledgers() -> Ledgers:
        days, things, products = (spark.read.format("delta").load(f"{out}/{name}") for name in builders)
        return Ledgers(days, things, products, {FACT_ORDER_LINES.name})

    def make_slice() -> None:
        rows = build_feature_customers(customers, ledgers(), cutoffs=[before], windows_days=_WINDOWS_DAYS)
        rows.write.parquet(f"{out}/slice")

    began = time.monotonic()
    grow(came.where(F.col("happened_on") < F.lit(LAST_DAY)), 1)
    grown = time.monotonic()
    make_slice()
    made = time.monotonic()
    grow(came.where(F.col("happened_on") >= F.lit(LAST_DAY)), 2)
    base = spark.read.parquet(f"{out}/slice")
    rows = build_next_slice(customers, ledgers(), base, before, after, _WINDOWS_DAYS)
    rows.write.parquet(f"{out}/next")
    ended = time.monotonic()
    tell(told, build=made - began, rebuild=made - grown, next=ended - made, start=start_seconds)


def by_duckdb(lines: str, out: str, told: str) -> None:
    """By one query of DuckDB."""
    Path(out, "next").mkdir()
    began = time.monotonic()
    is_discounted = "is_purchase AND discount_amount > 0"
    is_priced = "is_purchase AND quantity > 0 AND usual_price > 0"
    amount, discount, quantity, price = (f"CAST({name} * 10000 AS BIGINT)" for name in _E4)
    measures = {
        "order_count": "is_order_opening",
        "line_count": "is_purchase",
        "return_line_count": "is_return",
        "discounted_line_count": is_discounted,
        "net_amount": amount,
        "return_amount": f"if(is_return, {amount}, 0)",
        "discount_amount": discount,
        "quantity": f"if(is_purchase, {quantity}, 0)",
        "discounted_quantity": f"if({is_discounted}, {quantity}, 0)",
        "quantity_line_count": "is_purchase AND quantity IS NOT NULL",
        "discounted_quantity_line_count": f"{is_discounted} AND quantity IS NOT NULL",
        "priced_amount": f"if({is_priced}, {amount}, 0)",
        "usual_amount": f"if({is_priced}, {quantity} * {price} // 10000, 0)",
        "weekend_order_count": "is_order_opening AND isodow(happened_on) >= 6",
    } | {
        f"{part}_order_count": f"is_order_opening AND happened_hour BETWEEN {first} AND {last}"
        for part, (first, last) in _PARTS_OF_DAY.items()
    }
    # Few lines make a day, so that their number fits 32 bits: half the work for the many sums of it.
    types = {name: "INTEGER" if name.endswith("_count") else "BIGINT" for name in measures}
    added_up = ", ".join(
        f"coalesce(sum(({value})::{types[name]}), 0)::{types[name]} AS {name}" for name, value in measures.items()
    )

    def within(day: str, span: _Span) -> str:
        first, end = span
        return f"{day} >= DATE '{first}' AND {day} < DATE '{end}'"

    # A filter for each sum takes twice as long as a choice.
    sums = ", ".join(
        f"sum(if({within('happened_on', span)}, {measure}, 0))::BIGINT AS {name}"
        for name, (measure, span) in _SUMS.items()
    )
    changes = ", ".join(f"{now} - {before} AS {name}" for name, (now, before) in _CHANGES.items())
    ratios = ", ".join(
        f"{ratio.part} / nullif({ratio.unit} * ({' + '.join(ratio.whole)}), 0) AS {name}"
        for name, ratio in _RATIOS.items()
    )

    def things(name: str, kind: _Things) -> str:
        counts = "".join(
            f", count(*) FILTER ({within('last_on', span)}) AS {kind.counted}{suffix}"
            for suffix, span in _SPANS.items()
            if kind.counted
        )
        # A list of structs is sorted by their first field, then by the next.
        return f"""
            SELECT
                customer_id {counts},
                [
                    {{'thing': t.thing, 'event_count': -t.order_no, 'last_on': t.last_on}}
                    FOR t IN list_sort(list({{'order_no': -event_count, 'thing': thing, 'last_on': last_on}}))
                ] AS {name}
            FROM (
                SELECT customer_id, {kind.column} AS thing, count(*) AS event_count, max(happened_on) AS last_on
                FROM lines WHERE {kind.where} AND {kind.column} IS NOT NULL GROUP BY ALL
            ) GROUP BY customer_id"""

    listed = {name: things(name, kind) for name, kind in _THINGS.items()}
    tops = ", ".join(
        f"{things}[1].thing AS {name}, {things}[1].event_count / {whole} AS {name}_share"
        for name, (things, whole) in _TOPS.items()
    )
    filled = ", ".join(
        [f"coalesce({name}, 0) AS {name}" for name in _ZEROS] + [f"coalesce({name}, []) AS {name}" for name in _THINGS]
    )
    with connect_duckdb() as connection:
        connection.execute(
            f"CREATE VIEW lines AS SELECT *, NOT is_return AS is_purchase FROM '{lines}/*.parquet' "
            f"WHERE happened_on < DATE '{AS_OF}'"
        )
        connection.execute(f"""
            COPY (
                WITH days AS (
                    SELECT *, (order_count > 0)::INTEGER AS active_day_count
                    FROM (SELECT customer_id, happened_on, {added_up} FROM lines GROUP BY ALL)
                ),
                summed AS (SELECT customer_id, {sums} FROM days GROUP BY customer_id),
                gaps AS (
                    SELECT
                        customer_id, happened_on,
                        happened_on - lag(happened_on) OVER (PARTITION BY customer_id ORDER BY happened_on) AS gap_days
                    FROM days WHERE order_count > 0
                ),
                rhythm AS (
                    SELECT
                        customer_id, min(happened_on) AS first_purchase_on, max(happened_on) AS last_purchase_on,
                        sum(gap_days * gap_days)::BIGINT AS gap_square_sum, avg(gap_days) AS mean_gap_days,
                        stddev_pop(gap_days) AS gap_spread_days
                    FROM gaps GROUP BY customer_id
                ),
                products AS (
                    SELECT customer_id, count(*) AS product_count
                    FROM (SELECT DISTINCT customer_id, product_id FROM lines WHERE is_purchase)
                    WHERE product_id IS NOT NULL GROUP BY customer_id
                ),
                {", ".join(f"{name}_of AS ({query})" for name, query in listed.items())},
                kept AS (
                    SELECT * REPLACE ({filled})
                    FROM summed
                    LEFT JOIN rhythm USING (customer_id)
                    LEFT JOIN products USING (customer_id)
                    {" ".join(f"LEFT JOIN {name}_of USING (customer_id)" for name in listed)}
                )
                SELECT
                    *, {changes}, {ratios}, {tops},
                    DATE '{AS_OF}' - last_purchase_on AS recency_days,
                    DATE '{AS_OF}' - first_purchase_on AS tenure_days,
                    gap_spread_days / mean_gap_days AS gap_irregularity,
                    recency_days / mean_gap_days AS overdue_ratio,
                    recency_days - mean_gap_days AS overdue_days,
                    discounted_quantity / nullif(discounted_quantity_line_count, 0)
                    / nullif(
                        (quantity - discounted_quantity)
                        / nullif(quantity_line_count - discounted_quantity_line_count, 0), 0
                    ) AS discount_quantity_ratio
                FROM kept
            ) TO '{out}/next/all.parquet' (FORMAT parquet)""")
    tell(told, all=time.monotonic() - began)


def by_polars(lines: str, out: str, told: str) -> None:
    """By one lazy query of Polars."""
    import polars as pl

    Path(out, "next").mkdir()
    began = time.monotonic()
    day, as_of = pl.col("happened_on"), pl.lit(AS_OF)
    rows = pl.scan_parquet(f"{lines}/*.parquet").filter(day < AS_OF).with_columns(is_purchase=~pl.col("is_return"))
    is_order, is_return, is_purchase = (pl.col(name) for name in ("is_order_opening", "is_return", "is_purchase"))
    is_discounted = is_purchase & (pl.col("discount_amount") > 0)
    amount, discount, quantity, price = ((pl.col(name) * 10_000).cast(pl.Int64) for name in _E4)
    is_priced = is_purchase & (quantity > 0) & (price > 0)
    measures = {
        "order_count": is_order,
        "line_count": is_purchase,
        "return_line_count": is_return,
        "discounted_line_count": is_discounted,
        "net_amount": amount,
        "return_amount": pl.when(is_return).then(amount),
        "discount_amount": discount,
        "quantity": pl.when(is_purchase).then(quantity),
        "discounted_quantity": pl.when(is_discounted).then(quantity),
        "quantity_line_count": is_purchase & quantity.is_not_null(),
        "discounted_quantity_line_count": is_discounted & quantity.is_not_null(),
        "priced_amount": pl.when(is_priced).then(amount),
        "usual_amount": pl.when(is_priced).then(quantity * price // 10_000),
        "weekend_order_count": is_order & (day.dt.weekday() >= 6),
    } | {
        f"{part}_order_count": is_order & pl.col("happened_hour").is_between(first, last)
        for part, (first, last) in _PARTS_OF_DAY.items()
    }
    days = (
        rows.group_by("customer_id", "happened_on")
        .agg(value.sum().cast(pl.Int64).alias(name) for name, value in measures.items())
        .with_columns(active_day_count=(pl.col("order_count") > 0).cast(pl.Int64))
    )

    def within(name: str, span: _Span) -> Any:
        return pl.col(name).is_between(*span, closed="left")

    made = days.group_by("customer_id").agg(
        pl.when(within("happened_on", span)).then(measure).otherwise(0).sum().alias(name)
        for name, (measure, span) in _SUMS.items()
    )
    customer, gap = pl.col("customer_id"), pl.col("gap_days")
    rhythm = (
        days.filter(pl.col("order_count") > 0)
        .select("customer_id", "happened_on")
        .sort("customer_id", "happened_on")
        .with_columns(gap_days=pl.when(customer == customer.shift()).then((day - day.shift()).dt.total_days()))
        .group_by("customer_id")
        .agg(
            first_purchase_on=day.min(),
            last_purchase_on=day.max(),
            gap_square_sum=(gap * gap).sum(),
            mean_gap_days=gap.mean(),
            # Of one row in sorted groups Polars tells 0, though there is no gap.
            gap_spread_days=pl.when(gap.count() > 0).then(gap.std(ddof=0)),
        )
    )
    products = rows.filter(is_purchase).group_by("customer_id")
    parts = [rhythm, products.agg(product_count=pl.col("product_id").drop_nulls().n_unique())]
    for name, kind in _THINGS.items():
        things = (
            rows.filter(pl.col(kind.where) & pl.col(kind.column).is_not_null())
            .group_by("customer_id", pl.col(kind.column).alias("thing"))
            .agg(event_count=pl.len().cast(pl.Int64), last_on=day.max())
        )
        entry = pl.struct("thing", "event_count", "last_on").sort_by("event_count", "thing", descending=[True, False])
        counts = (
            within("last_on", span).sum().alias(f"{kind.counted}{end}") for end, span in _SPANS.items() if kind.counted
        )
        parts.append(things.group_by("customer_id").agg(entry.alias(name), *counts))
    for part in parts:
        made = made.join(part, on="customer_id", how="left")
    recency, mean_gap = pl.col("recency_days"), pl.col("mean_gap_days")

    def ratio(part: Any, whole: Any) -> Any:
        return part / pl.when(whole != 0).then(whole)

    def first(things: str, field: str) -> Any:
        return pl.col(things).list.first().struct.field(field)

    made = made.with_columns(
        pl.col(_ZEROS).fill_null(0),
        pl.col(list(_THINGS)).fill_null([]),
        recency_days=(as_of - pl.col("last_purchase_on")).dt.total_days(),
        tenure_days=(as_of - pl.col("first_purchase_on")).dt.total_days(),
    ).with_columns(
        *((pl.col(now) - pl.col(before)).alias(name) for name, (now, before) in _CHANGES.items()),
        *(
            ratio(pl.col(part), unit * pl.sum_horizontal(whole)).alias(name)
            for name, (part, whole, unit) in _RATIOS.items()
        ),
        *(first(things, "thing").alias(name) for name, (things, _) in _TOPS.items()),
        *((first(things, "event_count") / pl.col(of)).alias(f"{name}_share") for name, (things, of) in _TOPS.items()),
        gap_irregularity=pl.col("gap_spread_days") / mean_gap,
        overdue_ratio=recency / mean_gap,
        overdue_days=recency - mean_gap,
        discount_quantity_ratio=ratio(
            ratio(pl.col("discounted_quantity"), pl.col("discounted_quantity_line_count")),
            ratio(
                pl.col("quantity") - pl.col("discounted_quantity"),
                pl.col("quantity_line_count") - pl.col("discounted_quantity_line_count"),
            ),
        ),
    )
    made.collect(engine="streaming").write_parquet(f"{out}/next/all.parquet")
    tell(told, all=time.monotonic() - began)


def by_pandas(lines: str, out: str, told: str) -> None:
    """By pandas, with Arrow for what has no column type there: lists, and decimal numbers as whole ones."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    Path(out, "next").mkdir()
    began = time.monotonic()
    names = ["customer_id", "product_id", *(kind.column for kind in _THINGS.values())]
    table = pq.read_table(
        lines,
        columns=["happened_on", "happened_hour", "is_return", "is_order_opening", *names, *_E4],
        filters=pc.field("happened_on") < AS_OF,
    )
    tells_quantity = table["quantity"].is_valid().to_numpy()
    for name in _E4:
        whole = pc.cast(pc.multiply(table[name], pa.scalar(10_000, pa.decimal128(5, 0))), pa.int64())
        table = table.set_column(table.column_names.index(name), name, whole.fill_null(0))
    for name in names:
        table = table.set_column(table.column_names.index(name), name, table[name].dictionary_encode())
    rows = table.to_pandas(date_as_object=False)
    del table
    for name in names:
        rows[name] = rows[name].cat.reorder_categories(rows[name].cat.categories.sort_values())
    customer_ids = rows["customer_id"].cat.categories
    rows["customer_id"] = rows["customer_id"].cat.codes.astype("int64")
    rows["is_purchase"] = ~rows["is_return"]
    is_order, is_return, is_purchase = rows["is_order_opening"], rows["is_return"], rows["is_purchase"]
    is_discounted = is_purchase & (rows["discount_amount"] > 0)
    is_priced = is_purchase & (rows["quantity"] > 0) & (rows["usual_price"] > 0)
    measures = {
        "order_count": is_order,
        "line_count": is_purchase,
        "return_line_count": is_return,
        "discounted_line_count": is_discounted,
        "net_amount": rows["amount"],
        "return_amount": rows["amount"].where(is_return, 0),
        "discount_amount": rows["discount_amount"],
        "quantity": rows["quantity"].where(is_purchase, 0),
        "discounted_quantity": rows["quantity"].where(is_discounted, 0),
        "quantity_line_count": is_purchase & tells_quantity,
        "discounted_quantity_line_count": is_discounted & tells_quantity,
        "priced_amount": rows["amount"].where(is_priced, 0),
        "usual_amount": (rows["quantity"] * rows["usual_price"] // 10_000).where(is_priced, 0),
        "weekend_order_count": is_order & (rows["happened_on"].dt.weekday >= 5),
    } | {
        f"{part}_order_count": is_order & rows["happened_hour"].between(first, last)
        for part, (first, last) in _PARTS_OF_DAY.items()
    }
    days = pd.DataFrame(measures).groupby([rows["customer_id"], rows["happened_on"]]).sum().reset_index()
    days["active_day_count"] = (days["order_count"] > 0).astype("int64")
    del measures

    def within(name: str, frame: Any, span: _Span) -> Any:
        return frame[frame[name].between(*map(pd.Timestamp, span), inclusive="left")]

    parts = []
    for span in dict.fromkeys(span for _, span in _SUMS.values()):
        names_of = {measure: name for name, (measure, of) in _SUMS.items() if of == span}
        parts.append(
            within("happened_on", days, span).groupby("customer_id")[list(names_of)].sum().rename(columns=names_of)
        )
    bought = days.loc[days["order_count"] > 0, ["customer_id", "happened_on"]]
    gaps = bought["happened_on"].diff().dt.days.where(bought["customer_id"] == bought["customer_id"].shift())
    rhythm = bought.assign(gap=gaps, square=gaps * gaps).groupby("customer_id")
    parts.append(
        pd.DataFrame(
            {
                "first_purchase_on": rhythm["happened_on"].min(),
                "last_purchase_on": rhythm["happened_on"].max(),
                "gap_square_sum": rhythm["square"].sum(),
                "mean_gap_days": rhythm["gap"].mean(),
                "gap_spread_days": rhythm["gap"].std(ddof=0),
            }
        )
    )
    products = rows.loc[is_purchase & rows["product_id"].notna(), ["customer_id", "product_id"]]
    # One number for a pair is told apart sooner than two columns are.
    pairs = pd.unique(products["customer_id"] * 2**32 + products["product_id"].cat.codes)
    parts.append(pd.Series(pairs >> 32).value_counts().rename("product_count").to_frame())
    lists = {}
    for name, kind in _THINGS.items():
        grouped = rows[rows[kind.where]].groupby(["customer_id", kind.column], observed=True)["happened_on"]
        things = grouped.agg(event_count="count", last_on="max").reset_index()
        lists[name] = things.sort_values(["customer_id", "event_count"], ascending=[True, False], kind="stable")
        for suffix, span in _SPANS.items():
            if kind.counted:
                counted = within("last_on", things, span).groupby("customer_id").size()
                parts.append(counted.rename(f"{kind.counted}{suffix}").to_frame())
    for name, (things, _) in _TOPS.items():
        firsts = lists[things].drop_duplicates("customer_id").set_index("customer_id")
        parts.append(firsts[[_THINGS[things].column, "event_count"]].set_axis([name, f"{name}_share"], axis=1))
    made = pd.concat(parts, axis=1).sort_index()
    numbers = [*_SUMS, *_ZEROS]
    made[numbers] = made[numbers].fillna(0).astype("int64")

    def ratio(part: Any, whole: Any) -> Any:
        return part / whole.where(whole != 0)

    derived = {name: made[now] - made[before] for name, (now, before) in _CHANGES.items()}
    derived |= {
        name: ratio(made[part], unit * made[list(whole)].sum(axis=1)) for name, (part, whole, unit) in _RATIOS.items()
    }
    for name, (_, whole) in _TOPS.items():
        made[f"{name}_share"] /= made[whole]
    recency, tenure = ((pd.Timestamp(AS_OF) - made[f"{which}_purchase_on"]).dt.days for which in ("last", "first"))
    derived |= {
        "recency_days": recency,
        "tenure_days": tenure,
        "gap_irregularity": made["gap_spread_days"] / made["mean_gap_days"],
        "overdue_ratio": recency / made["mean_gap_days"],
        "overdue_days": recency - made["mean_gap_days"],
        "discount_quantity_ratio": ratio(
            ratio(made["discounted_quantity"], made["discounted_quantity_line_count"]),
            ratio(
                made["quantity"] - made["discounted_quantity"],
                made["quantity_line_count"] - made["discounted_quantity_line_count"],
            ),
        ),
    }
    columns = pa.Table.from_pandas(pd.concat([made, pd.DataFrame(derived)], axis=1), preserve_index=False)
    columns = columns.append_column("customer_id", pa.array(customer_ids[made.index]))
    for name, things in lists.items():
        entries = pa.StructArray.from_arrays(
            [
                pa.array(things[_THINGS[name].column]).dictionary_decode(),
                pa.array(things["event_count"]),
                pa.array(things["last_on"]).cast(pa.date32()),
            ],
            ["thing", "event_count", "last_on"],
        )
        sizes = things.groupby("customer_id").size().reindex(made.index, fill_value=0)
        columns = columns.append_column(name, pa.ListArray.from_arrays([0, *sizes.cumsum()], entries))
    pq.write_table(columns, f"{out}/next/all.parquet")
    tell(told, all=time.monotonic() - began)


SIDES: dict[str, Callable[[str, str, str], None]] = {
    "spark": by_spark,
    "sail": by_sail,
    "duckdb": by_duckdb,
    "polars": by_polars,
    "pandas": by_pandas,
}
