"""Rows, sources and files with defaults, so that a test shows only what matters to it."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from crm_spark.cleaning.tables import (
    CLEAN_CAMPAIGNS,
    CLEAN_CONTACTS,
    CLEAN_CUSTOMERS,
    CLEAN_ORDERS,
    CLEAN_PRODUCTS,
    CLEAN_RESPONSES,
    CLEAN_VISITS,
    MONEY,
)
from crm_spark.config import Source
from crm_spark.facts.customers import build_customer_days, build_customer_products, build_customer_things
from crm_spark.facts.tables import (
    DIM_CUSTOMERS,
    FACT_CONTACTS,
    FACT_CUSTOMER_DAYS,
    FACT_CUSTOMER_PRODUCTS,
    FACT_CUSTOMER_THINGS,
    FACT_FEEDBACK,
    FACT_ORDER_LINES,
    FACT_RESPONSES,
    FACT_SERVICE_EVENTS,
)
from crm_spark.features.customers import Ledgers
from crm_spark.features.tables import LIST_BY_WINDOW, LIST_OF_THINGS, feature_customers
from crm_spark.sources.landing import LandedFile, land_sources
from crm_spark.tables import Column, Table, declared_rows

# Ended at once, as pyarrow's threads over delta-rs now and then abort a process that ends by itself.
_COUNT_BY_PYARROW = """
import os, sys
from deltalake import DeltaTable
for path in sys.argv[1:]:
    print(DeltaTable(path).to_pyarrow_dataset().count_rows(), flush=True)
os._exit(0)
"""

RUN_AT = datetime(2026, 11, 1, 12, tzinfo=UTC)
CURRENCY = "USD"

_EVENT = {
    "customer_id": "c1",
    "happened_at": "2026-10-01 12:00:00",
    "happened_on": "2026-10-01",
    "known_at": "2026-10-01 12:00:00",
}
_ORIGIN = {"source": "test", "batch_id": "b1"}
_DEFAULTS: dict[str, dict[str, object]] = {
    CLEAN_CUSTOMERS.name: {"customer_id": "c1", **_ORIGIN},
    CLEAN_ORDERS.name: {
        "order_id": "o1",
        "line_no": 1,
        "customer_id": "c1",
        "ordered_at": "2026-10-01 12:00:00",
        "amount": "10.00",
        "currency": CURRENCY,
        **_ORIGIN,
    },
    CLEAN_PRODUCTS.name: {"product_id": "p1", **_ORIGIN},
    CLEAN_CAMPAIGNS.name: {"campaign_id": "k1", "starts_on": "2026-10-01", **_ORIGIN},
    CLEAN_CONTACTS.name: {"contact_id": "t1", "customer_id": "c1", "campaign_id": "k1", **_ORIGIN},
    CLEAN_RESPONSES.name: {
        "response_id": "r1",
        "customer_id": "c1",
        "responded_at": "2026-10-01 12:00:00",
        **_ORIGIN,
    },
    CLEAN_VISITS.name: {"event_id": "v1", "customer_id": "c1", "occurred_at": "2026-10-01 12:00:00", **_ORIGIN},
    FACT_CONTACTS.name: {"contact_id": "t1", **_EVENT},
    FACT_RESPONSES.name: {"response_id": "r1", "happened_hour": 12, **_EVENT},
    FACT_SERVICE_EVENTS.name: {"event_id": "s1", **_EVENT},
    FACT_FEEDBACK.name: {"feedback_id": "f1", **_EVENT},
    FACT_ORDER_LINES.name: {
        "order_id": "o1",
        "line_no": 1,
        **_EVENT,
        "happened_hour": 12,
        "amount": "10.00",
        "discount_amount": "0",
        "is_return": False,
        "is_order_opening": True,
    },
    FACT_CUSTOMER_DAYS.name: {
        "customer_id": "c1",
        "happened_on": "2026-10-01",
        "known_at": "2026-10-01 12:00:00",
        "event": FACT_ORDER_LINES.name,
    }
    | {column.name: 0 for column in FACT_CUSTOMER_DAYS.columns if column.type == "bigint"}
    | {"addition_no": 1},
    FACT_CUSTOMER_THINGS.name: {
        "customer_id": "c1",
        "kind": "category",
        "thing": "bread",
        "happened_on": "2026-10-01",
        "known_at": "2026-10-01 12:00:00",
        "addition_no": 1,
        "event_count": 1,
    },
    FACT_CUSTOMER_PRODUCTS.name: {
        "customer_id": "c1",
        "product_id": "p1",
        "happened_on": "2026-10-01",
        "known_at": "2026-10-01 12:00:00",
        "addition_no": 1,
        "line_count": 1,
    },
    DIM_CUSTOMERS.name: {
        "customer_id": "c1",
        "is_registered": True,
        "registered_on": "1970-01-01",
        "registration_known_at": "1970-01-01 00:00:00",
    },
}


def rows_of(spark: SparkSession, table: Table, *rows: Mapping[str, object]) -> DataFrame:
    """Rows of a declared table. Texts become what a column's type asks for; what nothing says is NULL."""
    names = set(table.column_names)
    given = [_DEFAULTS.get(table.name, {}) | dict(row) for row in rows]
    assert all(set(row) <= names for row in given), f"a row names columns that {table.name} lacks"
    values = [tuple(_value(column, row.get(column.name)) for column in table.columns) for row in given]
    return declared_rows(spark, table, values)


def ledgers_of(events: Mapping[str, DataFrame]) -> Ledgers:
    """The ledgers of fact tables, by their names, that came in one go."""
    came = {name: rows.withColumn("sign", F.lit(1)) for name, rows in events.items()}
    lines = FACT_ORDER_LINES.name
    if lines not in came:
        spark = next(iter(came.values())).sparkSession
        came[lines] = rows_of(spark, FACT_ORDER_LINES).withColumn("sign", F.lit(1))
    builds = (build_customer_days, build_customer_things, build_customer_products)
    days, things, products = (build(came, {}, 1) for build in builds)
    return Ledgers(days, things, products, set(events))


def features_of(spark: SparkSession, rows: pd.DataFrame, as_of: date = date(2026, 6, 1)) -> DataFrame:
    """Rows of feature_customers with one window and plausible values for every column that `rows` lacks."""
    table = feature_customers([28])
    defaults = {"as_of": as_of, "known_until": utc("2026-06-02"), "recency_days": 5, "tenure_days": 400}
    of_type = {"bigint": 1, "int": 1, "double": 0.5, MONEY: 0, LIST_OF_THINGS: [], LIST_BY_WINDOW: []}
    known = rows.astype(object).where(rows.notna(), None).to_dict("records")
    filled = [{column.name: of_type.get(column.type) for column in table.columns} | defaults | row for row in known]
    return declared_rows(
        spark, table, [[_typed(column, row[column.name]) for column in table.columns] for row in filled]
    )


def _typed(column: Column, value: Any) -> Any:
    """A value whose column pandas may have made floating, as one missing among whole numbers makes it."""
    whole = column.type in ("int", "bigint") and value is not None
    return _value(column, int(value) if whole else value)


def read_by_delta_rs(path: str | Path, version: int | None = None, columns: str = "*") -> pa.Table:
    """The rows of a Delta table as delta-rs reads them, none of Spark's code being involved."""
    table = QueryBuilder().register("rows", DeltaTable(str(path), version=version))
    return pa.table(table.execute(f"SELECT {columns} FROM rows").read_all())


def count_by_pyarrow_datasets(paths: Sequence[str | Path]) -> list[int]:
    """The rows that delta-rs's pyarrow datasets find in Delta tables."""
    command = [sys.executable, "-c", _COUNT_BY_PYARROW, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def _value(column: Column, value: Any) -> Any:
    if value is None or not isinstance(value, str | int | float):
        return value
    if column.type.startswith("decimal"):
        return Decimal(str(value))
    if column.type == "timestamp":
        return utc(str(value))
    return date.fromisoformat(str(value)) if column.type == "date" else value


ORDER_COLUMNS = {
    "order_id": "order_id",
    "line_no": "line_no",
    "customer_id": "customer_id",
    "ordered_at": "ordered_at",
    "amount": "amount",
}


def a_source(path: Path | str, **settings: Any) -> Source:
    return Source(**{"entity": "orders", "format": "csv", "path": str(path), "columns": ORDER_COLUMNS} | settings)


def landed(lake_uri: str, sources: Mapping[str, Source], known: Sequence[LandedFile] = ()) -> list[LandedFile]:
    return land_sources(sources, {}, lake_uri, known, RUN_AT)
