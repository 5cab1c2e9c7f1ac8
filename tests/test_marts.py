"""Marts, on rows small enough to count by hand."""

from collections import Counter
from datetime import date

import pytest
from builders import rows_of, utc
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from crm_spark.cleaning.profile import bucket_of
from crm_spark.cleaning.tables import BATCH_PROFILES, CLEAN, CLEANING_ACCOUNT, REJECTED
from crm_spark.facts.tables import FACT_ORDER_LINES
from crm_spark.marts.operations import build_data_quality, build_department_weeks, count_missing
from crm_spark.sources.tables import INGEST_LEDGER

MONDAY = date(2026, 9, 28)


def test_a_department_week_holds_what_happened_before_as_of_and_was_known_in_time(spark: SparkSession) -> None:
    known_until = utc("2026-10-01 12:00:00")
    in_time, too_late = {"known_at": "2026-10-01 11:59:59"}, {"known_at": "2026-10-01 12:00:00"}
    bread = {"department": "bread", "happened_on": "2026-09-28", **in_time}
    lines = rows_of(
        spark,
        FACT_ORDER_LINES,
        {**bread, "order_id": "o1", "line_no": 1, "amount": "1.50"},
        {**bread, "order_id": "o1", "line_no": 2, "amount": "2.00"},
        {**bread, "order_id": "of_as_of", "amount": "100", "happened_on": "2026-10-01"},
        {**bread, "order_id": "late", "amount": "100", **too_late},
        {"order_id": "o2", "amount": "4.00", "happened_on": "2026-09-30", **in_time},
    )
    weeks = build_department_weeks(lines, date(2026, 10, 1), known_until).collect()
    assert {(w["department"], w["week_starts_on"], float(w["net_amount"]), w["order_count"]) for w in weeks} == {
        ("bread", MONDAY, 3.5, 1),
        ("(none)", MONDAY, 4.0, 1),
    }
    assert {week["day_count"] for week in weeks} == {3}


def test_data_quality_tells_of_each_file_what_it_lacks_and_how_it_differs_from_those_before(
    spark: SparkSession,
) -> None:
    amounts = [{"3": 8, "20": 2}, {"3": 5, "20": 4, "100": 1}, {"20": 6}]
    # Later files list brands in buckets only.
    names = spark.createDataFrame([("a",), ("b",)], "value string").select("value", bucket_of(F.col("value"))).collect()
    buckets = [value for _, value in names]
    account, ledger, profiles = [], [], []
    for number, values in enumerate(amounts):
        of_file = {"source": "shop", "entity": "orders", "batch_id": f"b{number}", "file_name": f"{number}.csv"}
        counts = {column.name: 0 for column in CLEANING_ACCOUNT.columns if column.type == "bigint"}
        account.append(of_file | counts)
        ledger.append(
            of_file
            | {"byte_count": 1, "landed_path": "", "read_as": "", "columns": []}
            | {"ingested_at": utc("2026-10-02 11:59:00")}
        )
        listed = [{"column": "amount", "value": value, "row_count": count} for value, count in values.items()]
        listed.append({"column": "channel", "value": "web", "row_count": sum(values.values())})
        brands = buckets if number else ("a", "b")
        listed += [{"column": "brand", "value": brand, "row_count": 5} for brand in brands]
        profiles.append(
            {name: of_file[name] for name in ("source", "entity", "batch_id")}
            | {"good_count": 10, "late_count": number, "last_happened_at": utc("2026-10-01 12:00:00"), "values": listed}
            | {"warnings": [{"rule": "r", "row_count": 4}] if number == 1 else []}
        )
    account.append(account[0] | {"batch_id": "empty", "file_name": "empty.csv"})
    ledger.append(ledger[0] | {"batch_id": "empty", "file_name": "empty.csv"})

    orders = rows_of(
        spark,
        CLEAN["orders"],
        {"source": "shop", "batch_id": "b0", "order_id": "o1", "product_id": "p1"},
        {"source": "shop", "batch_id": "b0", "order_id": "o2", "product_id": "p9"},
        {"source": "shop", "batch_id": "b1", "order_id": "o3", "product_id": "p9", "returned_order_id": "o1"},
        {"source": "shop", "batch_id": "b1", "order_id": "o4", "product_id": None, "returned_order_id": "o0"},
        {"source": "shop", "batch_id": "b1", "order_id": "o5", "product_id": "p8"},
    )
    named = {"products": rows_of(spark, CLEAN["products"], {"product_id": "p1"}), "orders": orders}
    missing = count_missing({"product_id": "products", "returned_order_id": "orders"}, orders, named)
    reason = {"source": "shop", "batch_id": "b1", "row_text": "x", "reasons": ["r1", "r2"], "row_count": 3}
    quality = build_data_quality(
        rows_of(spark, CLEANING_ACCOUNT, *account),
        rows_of(spark, INGEST_LEDGER, *ledger),
        rows_of(spark, BATCH_PROFILES, *profiles),
        missing,
        [rows_of(spark, REJECTED["orders"], reason), rows_of(spark, REJECTED["orders"], reason | {"row_text": "y"})],
    )
    rows = {row["batch_id"]: row.asDict(recursive=True) for row in quality.collect()}
    assert [rows[f"b{number}"]["late_count"] for number in range(3)] == [0, 1, 2]
    assert rows["b0"]["freshness_hours"] == 23
    assert (rows["empty"]["late_count"], rows["empty"]["freshness_hours"], rows["empty"]["drift"]) == (0, None, [])
    assert rows["b0"]["warnings"] == [{"rule": "product_id_not_in_products", "row_count": 1}]
    assert rows["b1"]["warnings"] == [
        {"rule": "product_id_not_in_products", "row_count": 2},
        {"rule": "r", "row_count": 4},
        {"rule": "returned_order_id_not_in_orders", "row_count": 1},
    ]
    assert rows["b1"]["reasons"] == [{"reason": "r1", "row_count": 6}, {"reason": "r2", "row_count": 6}]

    def moved(before: Counter[str], values: dict[str, int]) -> float:
        shares = [(before[v] / before.total(), values.get(v, 0) / sum(values.values())) for v in {*before, *values}]
        return sum(abs(old - new) for old, new in shares) / 2

    assert rows["b0"]["drift"] == []
    so_far: Counter[str] = Counter()
    for number, values in enumerate(amounts):
        drift = {row["column"]: float(row["moved_share"]) for row in rows[f"b{number}"]["drift"]}
        if number:
            assert drift == {"amount": pytest.approx(moved(so_far, values), abs=1e-6), "brand": 0, "channel": 0}
        so_far += Counter(values)
