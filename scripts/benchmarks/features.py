"""Features of customers from order lines: crm_spark on Spark and on Sail, DuckDB, Polars and pandas.

Each side is a process of its own on two cores. crm_spark makes its ledgers and the slice of one day (build), of which
the slice alone is a part (rebuild), and then the next day's from it and the lines of the day between (next): by the
functions of the job, without its checks and commits, on lines none of which is late. The others make the next day's
features from all lines (all). Compared are, before any time is told, the next day's features that all sides make, by a
hash of all rows, in every round; crm_spark makes some 290 columns more.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
from measuring import Measured, parser_of, run_side, say, tell

_WINDOWS_DAYS = (7, 14, 28, 56, 91, 182, 364)
_LAST_DAY = date(2025, 12, 31)
_AS_OF = _LAST_DAY + timedelta(days=1)
# A measure of a line, in SQL; amounts count in 1/10,000.
_SUMS = {
    "order_count": "is_order_opening",
    "line_count": "NOT is_return",
    "return_line_count": "is_return",
    "discounted_line_count": "NOT is_return AND discount_amount > 0",
    "net_amount": "CAST(amount * 10000 AS BIGINT)",
    "return_amount": "CASE WHEN is_return THEN CAST(amount * 10000 AS BIGINT) ELSE 0 END",
    "discount_amount": "CAST(discount_amount * 10000 AS BIGINT)",
}
_SPANS = {"": date.min} | {f"_{days}d": _AS_OF - timedelta(days=days) for days in _WINDOWS_DAYS}
_SUMMED = [f"{name}{suffix}" for name in (*_SUMS, "active_day_count") for suffix in _SPANS]
_COUNTED = [f"{name}_count{suffix}" for name in ("category", "store") for suffix in _SPANS]
_OTHERS = ["gap_square_sum", "first_purchase_on", "last_purchase_on", "top_category"]
_COMPARED = ["customer_id", *_SUMMED, *_COUNTED, *_OTHERS]


def main() -> None:
    """Run all sides, compare, and print a line each."""
    parser = parser_of(__doc__, lines=4_000_000)
    parser.add_argument("--customers", type=int, help="how many customers; by default one for 80 lines")
    parser.add_argument("--sides", default=",".join(_SIDES), help="which sides run; DuckDB must be among them")
    parser.add_argument("--skew", action="store_true", help="also give half of all lines to one customer, on Spark")
    given = parser.parse_args()
    if given.side:
        _SIDES[given.side](*given.paths)
        return
    sides = given.sides.split(",")
    if "duckdb" not in sides or set(sides) - set(_SIDES):
        parser.error(f"--sides: found {given.sides}, expected duckdb and others of: {', '.join(_SIDES)}")
    with tempfile.TemporaryDirectory(prefix="crm_spark_bench_") as scratch:
        work, customers = Path(scratch), given.customers or max(100, given.lines // 80)
        data = given.data or work / "data"
        _compare_sides(_generated(data, given.lines, customers, half_on_one=False), work, sides, given.rounds)
        if given.skew:
            _compare_skew(data, work, given.lines, customers, given.rounds)


def _generated(data: Path, lines: int, customers: int, *, half_on_one: bool) -> Path:
    """Lines of orders of eight over three years, the latest last, with the columns of the facts layer."""
    folder = data / f"lines_{lines}_{customers}{'_skewed' if half_on_one else ''}"
    if folder.exists():
        return folder
    say(f"generating {lines:,} order lines in {data}")
    unfinished = folder.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    orders, days = max(1, lines // 8), 1096
    someone = f"hash(order_no, 1) % {customers}"
    customer = f"CASE WHEN hash(order_no, 12) % 2 = 0 THEN 0 ELSE {someone} END" if half_on_one else someone
    with _duckdb() as connection:
        connection.execute(f"""
            COPY (
                WITH orders AS (
                    SELECT
                        order_no, {customer} AS customer_no, order_no * {days} // {orders} AS day_no,
                        hash(order_no, 3) % 86400 AS second, hash(order_no, 4) % 100 AS store_no
                    FROM range({orders}) AS numbers(order_no)
                ), drawn AS (
                    SELECT
                        *, hash(order_no, line, 6) % 20000 AS product_no, hash(order_no, line, 8) % 50 = 0 AS is_return,
                        CAST(DATE '{_LAST_DAY}' - {days - 1} + CAST(day_no AS INTEGER) AS DATE) AS happened_on
                    FROM orders, range(8) AS lines(line)
                ), dated AS (
                    SELECT *, CAST(happened_on AS TIMESTAMP) + second * INTERVAL 1 SECOND AS happened_at FROM drawn
                )
                SELECT
                    'o' || order_no AS order_id, line AS line_no,
                    'c' || lpad(customer_no::VARCHAR, 8, '0') AS customer_id,
                    happened_at AT TIME ZONE 'UTC' AS happened_at, happened_on,
                    CAST(second // 3600 AS INTEGER) AS happened_hour,
                    happened_at AT TIME ZONE 'UTC' AS known_at, 'p' || product_no AS product_id,
                    'k' || product_no % 30 AS category, 's' || store_no AS store_id,
                    CASE order_no % 3 WHEN 0 THEN 'web' WHEN 1 THEN 'shop' ELSE 'app' END AS channel,
                    CAST(1 + hash(order_no, line, 7) % 3 AS DECIMAL(18, 4)) AS quantity,
                    CAST(if(is_return, -1, 1) * (hash(order_no, line, 9) % 200000) / 10000 AS DECIMAL(18, 4)) AS amount,
                    CAST(
                        if(hash(order_no, line, 10) % 4 = 0, hash(order_no, line, 11) % 20000, 0) / 10000
                        AS DECIMAL(18, 4)
                    ) AS discount_amount,
                    is_return, line = 0 AND NOT is_return AS is_order_opening
                FROM dated ORDER BY happened_on
            ) TO '{unfinished}' (FORMAT parquet, PER_THREAD_OUTPUT true)""")
    unfinished.rename(folder)
    return folder


def _compare_sides(lines: Path, work: Path, sides: list[str], rounds: int) -> None:
    best: dict[str, Measured] = {}
    for number in range(rounds):
        for side in sides:
            if number and side in ("polars", "pandas"):
                continue
            best[side] = _fastest(_run(side, lines, work), best.get(side))
        customers, features = _compare(work, sides)
        if number == 0:
            say(f"\nequal on all sides: {features} features of {customers:,} customers, {', '.join(sides)}")
    with _duckdb() as connection:
        (line_count,) = connection.execute(f"SELECT count(*) FROM '{lines}/*.parquet'").fetchone()
    of_duckdb = best["duckdb"].seconds["all"]
    say(f"{'side':<8}{'step':<9}{'seconds':>9}{'lines/s':>13}{'DuckDB takes':>14}{'start':>7}{'peak MiB':>10}")
    for side, measured in best.items():
        start = measured.seconds.pop("start", 0.0)
        for step, seconds in measured.seconds.items():
            ratio = f"{of_duckdb / seconds:.2f} times"
            rate = f"{line_count / seconds:,.0f}" if step in ("all", "build") else ""
            told = f"{side:<8}{step:<9}{seconds:>9.2f}{rate:>13}{ratio:>14}"
            say(f"{told}{start:>7.1f}{measured.peak_mib:>10,.0f}")
    ratios = [
        f"{of_duckdb / best[side].seconds[step]:.2f} for {side}'s {step}"
        for side in ("spark", "sail")
        if side in best
        for step in ("build", "rebuild", "next")
    ]
    say(f"{line_count:,} lines: DuckDB's time from the lines over crm_spark's is {', '.join(ratios) or 'not measured'}")


def _compare_skew(data: Path, work: Path, lines: int, customers: int, rounds: int) -> None:
    best: dict[bool, Measured] = {}
    for number in range(rounds):
        for half_on_one in (False, True):
            rows = _generated(data, lines, customers, half_on_one=half_on_one)
            best[half_on_one] = _fastest(_run("spark", rows, work), best.get(half_on_one))
            if number == 0:
                _run("duckdb", rows, work)
                _compare(work, ["spark", "duckdb"])
    for step in ("build", "rebuild", "next"):
        ratio = best[True].seconds[step] / best[False].seconds[step]
        say(f"half of all lines on one customer: {step} takes {ratio:.2f} times as long as with even data")


def _run(side: str, lines: Path, work: Path) -> Measured:
    out = work / side
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return run_side(__file__, side, lines, out)


def _fastest(measured: Measured, before: Measured | None) -> Measured:
    """The least seconds of every step, and the most memory."""
    if before is None:
        return measured
    seconds = {step: min(value, before.seconds[step]) for step, value in measured.seconds.items()}
    return Measured(seconds, max(measured.peak_mib, before.peak_mib))


def _compare(work: Path, sides: list[str]) -> tuple[int, int]:
    """The number of customers and of compared features, if all sides made the same."""
    names = ", ".join(_COMPARED)
    scaled = [name for name in _SUMMED if "_amount" in name]
    found = {}
    with _duckdb() as connection:
        for side in sides:
            rows = f"read_parquet('{work}/{side}/next/*.parquet')"
            if side in ("spark", "sail"):
                whole = ", ".join(f"CAST({name} * 10000 AS BIGINT) AS {name}" for name in scaled)
                rows = f"(SELECT * REPLACE ({whole}) FROM {rows})"
            typed = ", ".join(_typed(name) for name in _COMPARED)
            found[side] = connection.execute(
                f"SELECT count(*), sum(hash({names})) FROM (SELECT {typed} FROM {rows})"
            ).fetchone()
    if len(set(found.values())) > 1:
        sys.exit(f"results differ, in rows or their hash: {found}")
    return int(found["duckdb"][0]), len(_COMPARED) - 1


def _typed(name: str) -> str:
    if name in ("customer_id", "top_category"):
        return name
    return f"CAST({name} AS {'DATE' if name.endswith('_on') else 'BIGINT'}) AS {name}"


@contextmanager
def _duckdb() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'; SET threads = 2; SET preserve_insertion_order = false")
        yield connection


def _by_spark(lines: str, out: str, told: str) -> None:
    from crm_spark.session import build_session

    began = time.monotonic()
    spark = build_session()
    spark.range(1).count()
    _by_crm_spark(spark, lines, out, told, time.monotonic() - began)
    spark.stop()


def _by_sail(lines: str, out: str, told: str) -> None:
    from crm_spark.session import sail_session

    began = time.monotonic()
    with sail_session() as spark:
        spark.range(1).count()
        _by_crm_spark(spark, lines, out, told, time.monotonic() - began)


def _by_crm_spark(spark: Any, lines: str, out: str, told: str, start_seconds: float) -> None:
    from pyspark.sql import functions as F

    from crm_spark.facts.customers import build_customer_days, build_customer_things
    from crm_spark.facts.tables import DIM_CUSTOMERS, FACT_ORDER_LINES
    from crm_spark.features.customers import Cutoff, build_feature_customers, build_next_slice
    from crm_spark.tables import declared_rows

    before, after = (Cutoff(day, datetime(day.year, day.month, day.day, 4, tzinfo=UTC)) for day in (_LAST_DAY, _AS_OF))
    came = spark.read.parquet(lines).withColumn("sign", F.lit(1))
    customers = declared_rows(spark, DIM_CUSTOMERS, [])

    def grow(changes: Any, addition_no: int) -> None:
        """Add to both ledgers."""
        events = {FACT_ORDER_LINES.name: changes}
        for name, build in (("days", build_customer_days), ("things", build_customer_things)):
            rows = build(events, {}, addition_no)
            rows.write.format("delta").mode("append").save(f"{out}/{name}")

    def ledgers() -> list[Any]:
        return [spark.read.format("delta").load(f"{out}/{name}") for name in ("days", "things")]

    def make_slice() -> None:
        rows = build_feature_customers(customers, *ledgers(), cutoffs=[before], windows_days=_WINDOWS_DAYS)
        rows.write.parquet(f"{out}/slice")

    began = time.monotonic()
    grow(came.where(F.col("happened_on") < F.lit(_LAST_DAY)), 1)
    grown = time.monotonic()
    make_slice()
    made = time.monotonic()
    grow(came.where(F.col("happened_on") >= F.lit(_LAST_DAY)), 2)
    base = spark.read.parquet(f"{out}/slice")
    rows = build_next_slice(customers, *ledgers(), base, before, after, _WINDOWS_DAYS)
    rows.write.parquet(f"{out}/next")
    ended = time.monotonic()
    tell(told, build=made - began, rebuild=made - grown, next=ended - made, start=start_seconds)


def _by_duckdb(lines: str, out: str, told: str) -> None:
    Path(out, "next").mkdir()
    began = time.monotonic()
    sums = ", ".join(f"CAST(sum({value}::BIGINT) AS BIGINT) AS {name}" for name, value in _SUMS.items())

    def within(first: date) -> str:
        return "" if first is date.min else f" FILTER (WHERE happened_on >= DATE '{first}')"

    totals = [f"coalesce(sum({name}){within(first)}, 0) AS {name}{s}" for name in _SUMS for s, first in _SPANS.items()]
    totals += [
        f"count(CASE WHEN order_count > 0 THEN 1 END){within(first)} AS active_day_count{suffix}"
        for suffix, first in _SPANS.items()
    ]

    def things(thing: str) -> str:
        def since(first: date) -> str:
            return "" if first is date.min else f" FILTER (WHERE last_on >= DATE '{first}')"

        counts = ", ".join(f"count(*){since(first)} AS {thing}_count{suffix}" for suffix, first in _SPANS.items())
        column = "store_id" if thing == "store" else thing
        return (
            f"SELECT customer_id, {counts}, arg_min({column}, {{'n': -n, 'thing': {column}}}) AS top_{thing} FROM ("
            f"SELECT customer_id, {column}, count(*) AS n, max(happened_on) AS last_on FROM lines "
            f"WHERE NOT is_return GROUP BY ALL) GROUP BY customer_id"
        )

    with _duckdb() as connection:
        connection.execute(
            f"CREATE VIEW lines AS SELECT * FROM '{lines}/*.parquet' WHERE happened_on < DATE '{_AS_OF}'"
        )
        connection.execute(f"""
            COPY (
                WITH days AS (SELECT customer_id, happened_on, {sums} FROM lines GROUP BY ALL),
                bought AS (
                    SELECT
                        *,
                        CASE WHEN order_count > 0
                        THEN happened_on - max(happened_on) FILTER (WHERE order_count > 0) OVER earlier END AS gap_days
                    FROM days
                    WINDOW earlier AS (
                        PARTITION BY customer_id ORDER BY happened_on
                        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
                    )
                ),
                summed AS (
                    SELECT
                        customer_id, {", ".join(totals)},
                        coalesce(sum(gap_days * gap_days), 0) AS gap_square_sum,
                        min(CASE WHEN order_count > 0 THEN happened_on END) AS first_purchase_on,
                        max(CASE WHEN order_count > 0 THEN happened_on END) AS last_purchase_on
                    FROM bought GROUP BY customer_id
                ),
                categories AS ({things("category")}), stores AS ({things("store")})
                SELECT * REPLACE ({", ".join(f"coalesce({name}, 0) AS {name}" for name in _COUNTED)})
                FROM summed
                LEFT JOIN categories USING (customer_id)
                LEFT JOIN (SELECT * EXCLUDE (top_store) FROM stores) USING (customer_id)
            ) TO '{out}/next/features.parquet' (FORMAT parquet)""")
    tell(told, all=time.monotonic() - began)


def _by_polars(lines: str, out: str, told: str) -> None:
    import polars as pl

    Path(out, "next").mkdir()
    began = time.monotonic()
    rows = pl.scan_parquet(f"{lines}/*.parquet").filter(pl.col("happened_on") < _AS_OF)
    amount, discount = ((pl.col(name) * 10000).cast(pl.Int64) for name in ("amount", "discount_amount"))
    bought = ~pl.col("is_return")
    measures = {
        "order_count": pl.col("is_order_opening"),
        "line_count": bought,
        "return_line_count": pl.col("is_return"),
        "discounted_line_count": bought & (pl.col("discount_amount") > 0),
        "net_amount": amount,
        "return_amount": pl.when(pl.col("is_return")).then(amount).otherwise(0),
        "discount_amount": discount,
    }
    days = rows.group_by("customer_id", "happened_on").agg(
        *(value.cast(pl.Int64).sum().alias(name) for name, value in measures.items())
    )
    days = days.with_columns((pl.col("order_count") > 0).cast(pl.Int64).alias("active_day_count"))
    purchases = days.filter(pl.col("order_count") > 0).sort("customer_id", "happened_on")
    gaps = (pl.col("happened_on") - pl.col("happened_on").shift(1).over("customer_id")).dt.total_days()
    rhythm = (
        purchases.with_columns((gaps * gaps).alias("gap_square"))
        .group_by("customer_id")
        .agg(
            pl.col("gap_square").sum().alias("gap_square_sum"),
            pl.col("happened_on").min().alias("first_purchase_on"),
            pl.col("happened_on").max().alias("last_purchase_on"),
        )
    )
    summed = days.group_by("customer_id").agg(
        pl.col(name).filter(pl.col("happened_on") >= first).sum().alias(f"{name}{suffix}")
        for name in (*_SUMS, "active_day_count")
        for suffix, first in _SPANS.items()
    )
    made = summed.join(rhythm, on="customer_id", how="left").with_columns(pl.col("gap_square_sum").fill_null(0))
    for thing, column in (("category", "category"), ("store", "store_id")):
        things = (
            rows.filter(bought)
            .group_by("customer_id", column)
            .agg(pl.len().alias("n"), pl.col("happened_on").max().alias("last_on"))
        )
        counts = (
            things.sort("n", column, descending=[True, False])
            .group_by("customer_id", maintain_order=True)
            .agg(
                *((pl.col("last_on") >= first).sum().alias(f"{thing}_count{s}") for s, first in _SPANS.items()),
                pl.col(column).first().alias(f"top_{thing}"),
            )
        )
        made = made.join(counts, on="customer_id", how="left")
    made.with_columns(pl.col(_COUNTED).fill_null(0)).select(_COMPARED).collect().write_parquet(
        f"{out}/next/all.parquet"
    )
    tell(told, all=time.monotonic() - began)


def _by_pandas(lines: str, out: str, told: str) -> None:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    Path(out, "next").mkdir()
    began = time.monotonic()
    columns = ["customer_id", "happened_on", "category", "store_id", "is_return", "is_order_opening"]
    table = pq.read_table(lines, columns=[*columns, "amount", "discount_amount"])
    for name in ("amount", "discount_amount"):
        whole = pc.cast(pc.multiply(table[name], pa.scalar(10000, pa.decimal128(5, 0))), pa.int64())
        table = table.set_column(table.column_names.index(name), name, whole)
    for name in ("customer_id", "category", "store_id"):
        table = table.set_column(table.column_names.index(name), name, table[name].dictionary_encode())
    rows = table.to_pandas(date_as_object=False)
    rows = rows[rows["happened_on"] < pd.Timestamp(_AS_OF)]
    bought = ~rows["is_return"]
    measured = pd.DataFrame(
        {
            "customer_id": rows["customer_id"],
            "happened_on": rows["happened_on"],
            "order_count": rows["is_order_opening"].astype("int64"),
            "line_count": bought.astype("int64"),
            "return_line_count": rows["is_return"].astype("int64"),
            "discounted_line_count": (bought & (rows["discount_amount"] > 0)).astype("int64"),
            "net_amount": rows["amount"],
            "return_amount": rows["amount"].where(rows["is_return"], 0),
            "discount_amount": rows["discount_amount"],
        }
    )
    days = measured.groupby(["customer_id", "happened_on"], observed=True).sum().reset_index()
    days["active_day_count"] = (days["order_count"] > 0).astype("int64")
    names = [*_SUMS, "active_day_count"]
    parts = [
        days[days["happened_on"] >= (pd.Timestamp(first) if first > date.min else pd.Timestamp.min)]
        .groupby("customer_id", observed=True)[names]
        .sum()
        .add_suffix(suffix)
        for suffix, first in _SPANS.items()
    ]
    purchases = days[days["order_count"] > 0].sort_values(["customer_id", "happened_on"])
    gaps = purchases.groupby("customer_id", observed=True)["happened_on"].diff().dt.days
    purchases = purchases.assign(gap_square=gaps * gaps)
    by_customer = purchases.groupby("customer_id", observed=True)
    rhythm = by_customer["gap_square"].sum().rename("gap_square_sum").to_frame()
    rhythm["first_purchase_on"] = by_customer["happened_on"].min()
    rhythm["last_purchase_on"] = by_customer["happened_on"].max()
    parts.append(rhythm)
    for thing, column in (("category", "category"), ("store", "store_id")):
        grouped = rows[bought].groupby(["customer_id", column], observed=True)["happened_on"]
        things = grouped.agg(n="count", last_on="max").reset_index()
        things[column] = things[column].astype(str)
        for suffix, first in _SPANS.items():
            recent = things if first == date.min else things[things["last_on"] >= pd.Timestamp(first)]
            parts.append(
                recent.groupby("customer_id", observed=True).size().rename(f"{thing}_count{suffix}").to_frame()
            )
        if thing == "category":
            top = things.sort_values(["n", column], ascending=[False, True]).drop_duplicates("customer_id")
            parts.append(top.set_index("customer_id")[[column]].rename(columns={column: "top_category"}))
    made = parts[0].join(parts[1:]).reset_index()
    whole = [*_SUMMED, *_COUNTED, "gap_square_sum"]
    made[whole] = made[whole].fillna(0).astype("int64")
    made["customer_id"] = made["customer_id"].astype(str)
    made[_COMPARED].to_parquet(f"{out}/next/all.parquet", index=False)
    tell(told, all=time.monotonic() - began)


_SIDES: dict[str, Callable[..., None]] = {
    "spark": _by_spark,
    "sail": _by_sail,
    "duckdb": _by_duckdb,
    "polars": _by_polars,
    "pandas": _by_pandas,
}

if __name__ == "__main__":
    main()
