"""Facts and features on Sail: what either engine made, the other takes up and continues, with equal rows."""

import shutil
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from shop import RUN_AT, SMALLER, refreshed, write_shop

import crm_spark.lake
import crm_spark.run
import crm_spark.stages.features
from crm_spark.cli import main
from crm_spark.facts.tables import TABLES as FACTS_TABLES
from crm_spark.features.tables import feature_customers
from crm_spark.lake import Lake

pytestmark = pytest.mark.beside
TABLES = (*FACTS_TABLES, feature_customers([28]))
FIRST, SECOND = date(2025, 10, 1), date(2025, 10, 2)
# A process has Spark or Sail: the command runs in one of its own. Tables as small as these would be made anew.
ON_SAIL = """
import crm_spark.lake, crm_spark.run, crm_spark.stages.features
from pyspark import SparkContext
from crm_spark.cli import main
crm_spark.run.SMALL_COUNT = crm_spark.lake.SMALL_COUNT = crm_spark.stages.features.MANY_ROWS = 0
try:
    main()
finally:
    assert SparkContext._gateway is None, "Java runs"
"""


@pytest.fixture(autouse=True)
def small_tables_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (crm_spark.run, crm_spark.lake):
        monkeypatch.setattr(module, "SMALL_COUNT", 0)
    monkeypatch.setattr(crm_spark.stages.features, "MANY_ROWS", 0)


def refresh_on_sail(conf: Path, lake: Path, *arguments: str) -> None:
    settings = [word for setting in SMALLER for word in ("--set", setting)]
    command = ["refresh", "--conf", str(conf), "--lake", str(lake), *settings, "--engine", "sail", *arguments]
    done = subprocess.run([sys.executable, "-c", ON_SAIL, *command], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def contents(spark: SparkSession, folder: Path) -> dict[str, str]:
    lake = Lake(spark, str(folder))
    pins = {table.name: lake.find(table) for table in TABLES}
    return {name: pin.content_hash for name, pin in pins.items() if pin}


def test_each_engine_takes_up_and_continues_what_the_other_made(spark: SparkSession, tmp_path: Path) -> None:
    conf, by_spark, by_sail = write_shop(tmp_path / "files"), tmp_path / "by_spark", tmp_path / "by_sail"
    refreshed(spark, conf, by_spark, last_stage="cleaning")
    shutil.copytree(by_spark, by_sail)
    _, log = refreshed(spark, conf, by_spark, last_stage="features")
    assert "facts: 10 tables written" in log[2]
    refresh_on_sail(conf, by_sail, "--from", "facts", "--to", "features")
    _, log = refreshed(spark, conf, by_sail, last_stage="features")
    assert "facts: 0 tables written, 10 unchanged" in log[2]
    assert "features: 0 tables written, 1 unchanged" in log[3]

    # A line joins an order that is there, so that rows are merged, and a new order is added.
    header, line = (tmp_path / "files" / "orders_0.csv").read_text().splitlines()[:2]
    order, _, customer, sold_at, *_ = line.split(",")
    lines = [f"{order},99,{customer},{sold_at},p1,1,5.00", "day-1,1,c1,2025-10-01 12:00:00,p1,2,11.00"]
    (tmp_path / "files" / "orders_night.csv").write_text("\n".join([header, *lines]) + "\n")
    conf.write_text(conf.read_text().replace(f"as_of = {FIRST}", f"as_of = {SECOND}"))
    for folder in (by_spark, by_sail):
        refreshed(spark, conf, folder, RUN_AT + timedelta(days=1), last_stage="cleaning")
    refresh_on_sail(conf, by_spark, "--from", "facts", "--to", "features")
    refreshed(spark, conf, by_sail, RUN_AT + timedelta(days=1), last_stage="features")
    standing = contents(spark, by_spark)
    assert len(standing) == len(TABLES)
    assert contents(spark, by_sail) == standing
    _, log = refreshed(spark, conf, by_spark, RUN_AT + timedelta(days=1), last_stage="features")
    assert "facts: 0 tables written, 10 unchanged" in log[2]
    assert "features: 0 tables written, 1 unchanged" in log[3]


@pytest.mark.both_engines
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "duck"], "--engine: found 'duck', expected one of: spark, sail"),
        (
            ["--engine", "sail"],
            "--engine sail: found stages sources to marts, expected facts and features alone: run",
        ),
        (["--engine", "sail", "--from", "facts", "--to", "models"], "--engine sail: found stages facts to models, "),
        (
            ["--engine", "sail", "--from", "facts", "--to", "features", "--properties-file", "spark.conf"],
            "--properties-file: found settings of Spark, which --engine sail does not take",
        ),
    ],
)
def test_what_an_engine_does_not_run_is_refused_in_one_line(
    tmp_path: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    conf = write_shop(tmp_path / "files")
    monkeypatch.setattr(sys, "argv", ["crm-spark", "refresh", "--conf", str(conf), *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"crm-spark: {message}")
