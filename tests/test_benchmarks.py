"""Benchmarks measure what they say: the same data however it was written, and no time where results differ."""

from pathlib import Path

import duckdb
import order_lines
import pytest
from cluster import Measured, check_equal, idle_time


def test_generated_lines_are_the_same_in_one_part_and_in_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = order_lines.generated(tmp_path / "whole", lines=800, customers=10)
    monkeypatch.setattr(order_lines, "_ORDERS_A_PART", 30)
    parts = order_lines.generated(tmp_path / "parts", lines=800, customers=10)
    rows = [
        duckdb.sql(f"SELECT * FROM '{folder}/*.parquet' ORDER BY order_id, line_no").fetchall()
        for folder in (whole, parts)
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 800
    assert len(list(parts.iterdir())) >= 4


def measured(hash_: str = "1:5", coefficient: float = 0.5) -> Measured:
    told = {"seconds": {}, "exact": {"ledger": hash_}, "coefficients": {"intercept": coefficient}}
    return Measured("1 worker", told, {}, {})


def test_clusters_that_made_the_same_may_be_compared() -> None:
    check_equal([measured(), measured(coefficient=0.5 + 1e-12)])


@pytest.mark.parametrize(
    ("other", "differing"), [(measured(hash_="1:6"), "ledger"), (measured(coefficient=0.500001), "intercept")]
)
def test_clusters_that_made_other_things_are_not_compared(other: Measured, differing: str) -> None:
    with pytest.raises(SystemExit, match=f"results differ: {differing}"):
        check_equal([measured(), other])


def test_time_in_which_no_task_ran_is_what_no_span_covers() -> None:
    assert idle_time([(9, 12), (0, 4), (1, 2), (3, 6), (12, 13)]) == 3
