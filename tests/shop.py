"""A small shop that has nothing but orders: files as it might export them, always the same, and a refresh over them."""

import io
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.sql import SparkSession
from rich.console import Console

from crm_spark.config import load_config
from crm_spark.progress import RunProgress
from crm_spark.refresh import Refreshed, refresh

# The very day for which customers are scored: what is known then is not all that will be known of it.
RUN_AT = datetime(2025, 10, 1, 4, tzinfo=UTC)
LATER = RUN_AT + timedelta(hours=1)
# Less to fit and narrower tables: what is shown here does not depend on their number.
SMALLER = ("segments.starts=1", "segments.cluster_counts=[2, 3]", "features.windows_days=[28]")

AS_OF = "2025-10-01"
_OPENED = datetime(2025, 1, 1)  # noqa: DTZ001 (the shop's own clock, as in an export)
_CUSTOMERS = 150
_DAYS = 300
_PRODUCTS = 40

_SOURCES = """
[sources.shop]
entity = "orders"
format = "csv"
path = "{folder}/orders_*.csv"

[sources.shop.columns]
order_id = "order_id"
line_no = "cast(line_no as bigint)"
customer_id = "customer_id"
ordered_at = "cast(sold_at as timestamp)"
product_id = "product_id"
quantity = "cast(quantity as decimal(18, 4))"
amount = "cast(amount as decimal(18, 4))"
known_at = "cast(sold_at as timestamp)"
"""


def write_shop(folder: Path) -> Path:
    """Write the files and their configuration, and return the latter's path.

    Among the order lines are one that comes twice, one with an amount that is no number, and one too short.
    """
    folder.mkdir(parents=True)
    _write_orders(folder, np.random.default_rng(7))
    conf = folder / "shop.toml"
    conf.write_text(f'as_of = {AS_OF}\ncurrency = "EUR"\n' + _SOURCES.format(folder=folder))
    return conf


def _write_orders(folder: Path, random: np.random.Generator) -> None:
    lines: list[str] = []
    for customer in range(_CUSTOMERS):
        day = float(random.uniform(0, 60))
        mean_gap_days, last_day = random.uniform(3, 25), random.uniform(100, 2 * _DAYS)
        while day < min(_DAYS, last_day):
            sold_at = _OPENED + timedelta(days=day)
            for line_no in range(1, int(random.integers(2, 6))):
                product, quantity = random.integers(_PRODUCTS), random.integers(1, 4)
                amount = quantity * (0.99 + product / 7)
                lines.append(
                    f"o{customer}-{day:.3f},{line_no},c{customer},{sold_at:%Y-%m-%d %H:%M:%S},"
                    f"p{product},{quantity},{amount:.2f}"
                )
            day += float(random.exponential(mean_gap_days)) + 0.05
    broken = ["o-bad,1,c1,2025-03-01 10:00:00,p1,1,two euros", "o-short,1,c1"]
    thirds = [lines[part::3] for part in range(3)]
    for number, part in enumerate([thirds[0] + broken, thirds[1] + lines[:1], thirds[2]]):
        header = "order_id,line_no,customer_id,sold_at,product_id,quantity,amount"
        (folder / f"orders_{number}.csv").write_text("\n".join([header, *part]) + "\n")


def refreshed(
    spark: SparkSession,
    conf: Path,
    lake: Path,
    run_at: datetime = RUN_AT,
    settings: Sequence[str] = (),
    **options: Any,
) -> tuple[Refreshed, list[str]]:
    """What a refresh came to, and the lines that its log shows."""
    log = io.StringIO()
    config = load_config(conf, [*SMALLER, *settings], lake=str(lake))
    with RunProgress(Console(file=log, width=200)) as progress:
        done = refresh(spark, config, run_at, progress, **options)
    return done, log.getvalue().splitlines()
