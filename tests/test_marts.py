"""Marts, on rows small enough to count by hand."""

from datetime import date

from builders import rows_of, utc
from pyspark.sql import SparkSession

from crm_spark.facts.tables import FACT_ORDER_LINES
from crm_spark.marts.operations import build_department_weeks

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
