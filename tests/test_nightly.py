"""A night after the first: a file of the day and of a late line comes, and only what it changes is made."""

from datetime import date
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from shop import RUN_AT, refreshed, write_shop

from crm_spark.errors import ConfigError
from crm_spark.features.tables import feature_customers
from crm_spark.lake import Lake
from crm_spark.maintenance import maintain

pytestmark = pytest.mark.beside
FEATURES = feature_customers([28])
FIRST, SECOND = date(2025, 10, 1), date(2025, 10, 2)
BACKFILL = [date(2025, 7, 1), date(2025, 7, 15)]
HEADER = "order_id,line_no,customer_id,sold_at,product_id,quantity,amount\n"


def slice_of(lake: Lake, as_of: date) -> dict[str, dict[str, object]]:
    pin = lake.find(FEATURES)
    assert pin is not None
    rows = lake.read(pin).where(f"as_of = DATE '{as_of}'").collect()
    return {row["customer_id"]: row.asDict() for row in rows}


def test_a_night_adds_a_slice_and_changes_none(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf, lake = write_shop(tmp_path / "files"), Lake(spark, str(tmp_path / "lake"))

    def night(as_of: date, **options: object) -> str:
        run_at = RUN_AT + (as_of - FIRST)
        conf.write_text(conf.read_text().replace(f"as_of = {FIRST}", f"as_of = {as_of}"))
        _, log = refreshed(spark, conf, tmp_path / "lake", run_at, last_stage="features", **options)
        (line,) = (line for line in log if line.startswith("features:"))
        return line

    # as_of, the day to test on and the five to train on.
    assert "cut-offs: 7 made, 0 kept" in night(FIRST)
    was = {as_of: slice_of(lake, as_of) for as_of in (FIRST, date(2025, 9, 3))}

    # Between nights, a lake may be maintained.
    monkeypatch.setattr("crm_spark.maintenance._MANY_FILES", 2)
    told: list[str] = []
    maintain(lake, RUN_AT, 30, told.append)
    # Among others, if any: "clean_orders" alone also ends other tables' names.
    assert told[-1].startswith("compacting: ")
    assert " clean_orders (" in told[-1]

    # Both were sold before the first night, and it did not know of them; c1 bought once more on the day itself.
    lines = [
        "late-1,1,c1,2025-08-01 12:00:00,p1,1,5.00",
        "late-2,1,c-new,2025-08-02 12:00:00,p1,1,7.00",
        "day-1,1,c1,2025-10-01 12:00:00,p1,2,11.00",
    ]
    (tmp_path / "files" / "orders_night.csv").write_text(HEADER + "\n".join(lines) + "\n")
    assert "cut-offs: 9 made, 7 kept" in night(SECOND, backfill=BACKFILL)
    assert {as_of: slice_of(lake, as_of) for as_of in was} == was
    now = slice_of(lake, SECOND)
    before, after = was[FIRST]["c1"], now["c1"]
    assert after["order_count"] == before["order_count"] + 2
    assert after["net_amount"] == before["net_amount"] + 16
    assert (after["recency_days"], now["c-new"]["order_count"]) == (1, 1)
    assert "c-new" not in slice_of(lake, FIRST)
    assert all(slice_of(lake, as_of) for as_of in BACKFILL)

    # The same day as it was known before the file came: without the file.
    assert "cut-offs: 1 made, 15 kept" in night(SECOND, known_as_of=RUN_AT)
    replaced = slice_of(lake, SECOND)
    assert replaced["c1"]["order_count"] == before["order_count"]
    assert slice_of(lake, FIRST) == was[FIRST]


def test_only_growing_stages_are_rebuilt_and_no_cut_off_lies_ahead(spark: SparkSession, tmp_path: Path) -> None:
    conf = write_shop(tmp_path / "files")
    with pytest.raises(ConfigError, match=r"^--rebuild: found 'marts', expected one of: facts, features"):
        refreshed(spark, conf, tmp_path / "lake", rebuild="marts")
    with pytest.raises(ConfigError, match=r"^--to: found a cut-off on 2025-10-02, expected none after"):
        refreshed(spark, conf, tmp_path / "lake", backfill=[SECOND])
