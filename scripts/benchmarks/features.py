"""Features of customers from order lines: crm_spark on Spark and on Sail, DuckDB, Polars and pandas.

Each side is a process of its own on two cores. crm_spark makes its ledgers and the slice of one day (build), of which
the slice alone is a part (rebuild), and then the next day's from it and the lines of the day between (next): by the
functions of the job, without its checks and commits, on lines none of which is late. The others make the next day's
features from all lines (all): every column that order lines decide. Before any time is told, these are compared in
every round, customer by customer, and those that only crm_spark makes, of contacts, sessions and the like, must hold
one value each.
"""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from duckdb import DuckDBPyConnection
from feature_sides import SIDES, connect_duckdb
from measuring import Measured, parser_of, run_side, say
from order_lines import DAYS, customers_of, generated

_CRM_SPARK = ("spark", "sail")
_STEPS = ("build", "rebuild", "next")
# Not compared: the customer, and what a slice is of.
_KEY = ("customer_id", "as_of", "known_until")
_LIST_OF_THINGS = "STRUCT(thing VARCHAR, event_count BIGINT, last_on DATE)[]"
# By how much doubles may differ: sums of them are rounded in other orders.
_TOLERANCE = 1e-9


def main() -> None:
    """Run all sides, compare, and print a line each."""
    parser = parser_of(__doc__, lines=4_000_000)
    parser.add_argument("--customers", type=int, help="how many customers; by default one for 80 lines")
    parser.add_argument("--sides", default=",".join(SIDES), help="which sides run; DuckDB must be among them")
    parser.add_argument("--skew", action="store_true", help="also give half of all lines to one customer")
    parser.add_argument("--history", action="store_true", help="also make the next day after five times the days")
    given = parser.parse_args()
    if given.side:
        SIDES[given.side](*given.paths)
        return
    sides = given.sides.split(",")
    if "duckdb" not in sides or set(sides) - set(SIDES):
        parser.error(f"--sides: found {given.sides}, expected duckdb and others of: {', '.join(SIDES)}")
    ours = [side for side in sides if side in _CRM_SPARK]
    if (given.skew or given.history) and not ours:
        parser.error(f"--skew and --history: expected one of these among --sides: {', '.join(_CRM_SPARK)}")
    with tempfile.TemporaryDirectory(prefix="crm_spark_bench_") as scratch:
        work, customers = Path(scratch), given.customers or customers_of(given.lines)
        data = given.data or work / "data"
        even = generated(data, given.lines, customers)
        _compare_sides(even, work, sides, given.rounds)
        if given.skew:
            skewed = generated(data, given.lines, customers, half_on_one=True)
            _compare_data("half of all lines on one customer", even, skewed, work, ours, _STEPS, given.rounds)
        if given.history:
            longer = generated(data, 5 * given.lines, customers, days=5 * DAYS)
            _compare_data("five times the days of the same customers", even, longer, work, ours, ["next"], given.rounds)


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
    with connect_duckdb() as connection:
        (line_count,) = _row(connection, f"SELECT count(*) FROM '{lines}/*.parquet'")
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
        for side in _CRM_SPARK
        if side in best
        for step in _STEPS
    ]
    say(f"{line_count:,} lines: DuckDB's time from the lines over crm_spark's is {', '.join(ratios) or 'not measured'}")


def _compare_data(
    name: str, even: Path, other: Path, work: Path, sides: Sequence[str], steps: Sequence[str], rounds: int
) -> None:
    """How long sides take on other data, by how long on even."""
    for side in sides:
        best: dict[Path, Measured] = {}
        for number in range(rounds):
            for lines in (even, other):
                best[lines] = _fastest(_run(side, lines, work), best.get(lines))
                if number == 0:
                    _run("duckdb", lines, work)
                    _compare(work, [side, "duckdb"])
        for step in steps:
            ratio = best[other].seconds[step] / best[even].seconds[step]
            say(f"{name}: {step} takes {side} {ratio:.2f} times as long")


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


def _compare(work: Path, sides: Sequence[str]) -> tuple[int, int]:
    """The number of customers and of compared features, if all sides made the same."""
    with connect_duckdb() as connection:
        for side in sides:
            connection.execute(f"CREATE VIEW {side} AS SELECT * FROM '{work}/{side}/next/*.parquet'")
        types = {
            side: dict(connection.execute(f"SELECT column_name, column_type FROM (DESCRIBE {side})").fetchall())
            for side in sides
        }
        compared = [name for name in types["duckdb"] if name not in _KEY]
        for side in sides:
            if lacking := [name for name in compared if name not in types[side]]:
                sys.exit(f"{side} does not make what duckdb makes: {', '.join(lacking)}")
            alone = [name for name in types[side] if name not in (*compared, *_KEY)]
            _check_constant(connection, side, alone)
            if side != "duckdb":
                _check_equal(connection, side, types, compared)
        (customers,) = _row(connection, "SELECT count(*) FROM duckdb")
    return customers, len(compared)


def _check_constant(connection: DuckDBPyConnection, side: str, names: Sequence[str]) -> None:
    """What only crm_spark makes, order lines must not decide."""
    if names and side in _CRM_SPARK:
        varies = ", ".join(f"min(hash({name})) <> max(hash({name}))" for name in names)
        found = _row(connection, f"SELECT {varies} FROM {side}")
        if varying := [name for name, is_varying in zip(names, found, strict=True) if is_varying]:
            sys.exit(f"order lines decide what only {side} makes: {', '.join(varying)}")


def _check_equal(
    connection: DuckDBPyConnection, side: str, types: dict[str, dict[str, str]], names: Sequence[str]
) -> None:
    """Every customer must stand once on both sides, with equal features."""
    values = {
        of: ", ".join(f"{_comparable(name, types[of][name])} AS {name}" for name in names) for of in (side, "duckdb")
    }
    differing = ", ".join(f"count(*) FILTER ({_differs(name, types['duckdb'][name])})" for name in names)
    *sizes, unmatched, joined = _row(
        connection,
        f"""
        SELECT
            (SELECT count(*) FROM {side}), (SELECT count(*) FROM duckdb),
            count(*) FILTER (found.customer_id IS NULL OR expected.customer_id IS NULL), count(*)
        FROM {side} AS found FULL JOIN duckdb AS expected ON found.customer_id = expected.customer_id""",
    )
    if unmatched or set(sizes) != {joined}:
        sys.exit(f"{side} and duckdb tell of other customers: {sizes[0]:,} and {sizes[1]:,}, {unmatched:,} on one only")
    counts = _row(
        connection,
        f"""
        SELECT {differing}
        FROM (SELECT customer_id, {values[side]} FROM {side}) AS found
        JOIN (SELECT customer_id, {values["duckdb"]} FROM duckdb) AS expected USING (customer_id)""",
    )
    if wrong := [f"{name} ({count:,})" for name, count in zip(names, counts, strict=True) if count]:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        sys.exit(f"{side} and duckdb differ, in so many of {joined:,} customers: {', '.join(wrong[:5])}{more}")


def _row(connection: DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    (row,) = connection.execute(query).fetchall()
    return tuple(row)


def _comparable(name: str, type_: str) -> str:
    """Money in 1/10,000 and lists by their hash, all else as it is."""
    if type_.startswith("DECIMAL"):
        return f"{name} * 10000"
    return f"if({name} IS NULL, NULL, hash({name}::{_LIST_OF_THINGS}))" if type_.endswith("[]") else name


def _differs(name: str, type_: str) -> str:
    found, expected = f"found.{name}", f"expected.{name}"
    differs = f"{found} IS DISTINCT FROM {expected}"
    if type_ != "DOUBLE":
        return differs
    near = f"abs({found} - {expected}) <= {_TOLERANCE} * abs({expected})"
    return f"{differs} AND NOT coalesce(isfinite({found}) AND isfinite({expected}) AND {near}, FALSE)"


if __name__ == "__main__":
    main()
