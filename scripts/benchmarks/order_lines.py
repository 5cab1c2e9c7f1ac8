"""Generated order lines as the facts layer has them; DuckDB writes them in parts, so that many need little memory."""

import shutil
from pathlib import Path

from feature_sides import LAST_DAY, connect_duckdb
from measuring import say

DAYS = 1096
# A part is sorted in memory.
_ORDERS_A_PART = 625_000


def customers_of(lines: int) -> int:
    """How many customers there are, unless that is told: one for 80 lines."""
    return max(100, lines // 80)


def generated(data: Path, lines: int, customers: int, *, days: int = DAYS, half_on_one: bool = False) -> Path:
    """Lines of orders of eight over so many days, the latest last, with the columns of the facts layer.

    Of 200 products one has no category and ten no usual price; of 50 lines one has no store and one tells no units.
    """
    folder = data / f"order_lines_{lines}_{customers}_{days}{'_skewed' if half_on_one else ''}"
    if folder.exists():
        return folder
    say(f"generating {lines:,} order lines in {data}")
    unfinished = folder.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    orders = max(1, lines // 8)
    someone = f"hash(order_no, 1) % {customers}"
    customer_no = f"CASE WHEN hash(order_no, 12) % 2 = 0 THEN 0 ELSE {someone} END" if half_on_one else someone
    day_no = f"CAST(order_no * {days} // {orders} AS INTEGER)"
    happened_on = f"CAST(DATE '{LAST_DAY}' - {days - 1} + {day_no} AS DATE)"
    with connect_duckdb() as connection:
        for first in range(0, orders, _ORDERS_A_PART):
            rows = _lines_of(range(first, min(first + _ORDERS_A_PART, orders)), customer_no, happened_on)
            options = f"PER_THREAD_OUTPUT true, OVERWRITE_OR_IGNORE true, FILENAME_PATTERN 'orders_{first:09}_{{i}}'"
            connection.execute(f"COPY ({rows}) TO '{unfinished}' (FORMAT parquet, {options})")
    unfinished.rename(folder)
    return folder


def _lines_of(order_nos: range, customer_no: str, happened_on: str) -> str:
    """A query for the lines of some orders."""
    return f"""
        WITH orders AS (
            SELECT
                order_no, {customer_no} AS customer_no, {happened_on} AS happened_on,
                hash(order_no, 3) % 86400 AS second, hash(order_no, 4) % 100 AS store_no
            FROM range({order_nos.start}, {order_nos.stop}) AS numbers(order_no)
        ), drawn AS (
            SELECT
                *, hash(order_no, line, 6) % 20000 AS product_no, hash(order_no, line, 8) % 50 = 0 AS is_return,
                if(hash(order_no, line, 14) % 50 = 0, NULL, 1 + hash(order_no, line, 7) % 3) AS units
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
            if(product_no % 200 = 0, NULL, 'k' || product_no % 30) AS category,
            if(hash(order_no, line, 13) % 50 = 0, NULL, 's' || store_no) AS store_id,
            CASE order_no % 3 WHEN 0 THEN 'web' WHEN 1 THEN 'shop' ELSE 'app' END AS channel,
            CAST(if(is_return, -1, 1) * units AS DECIMAL(18, 4)) AS quantity,
            CAST(if(product_no % 20 = 0, NULL, product_no % 977 + 1) / 100 AS DECIMAL(18, 4)) AS usual_price,
            CAST(if(is_return, -1, 1) * (hash(order_no, line, 9) % 200000) / 10000 AS DECIMAL(18, 4)) AS amount,
            CAST(
                if(hash(order_no, line, 10) % 4 = 0, hash(order_no, line, 11) % 20000, 0) / 10000
                AS DECIMAL(18, 4)
            ) AS discount_amount,
            is_return, line = 0 AND NOT is_return AS is_order_opening
        FROM dated ORDER BY happened_on"""
