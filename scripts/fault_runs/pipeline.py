"""A pipeline of three tables, small enough to be run and killed hundreds of times; what each night leaves is known.

One run is a process: `pipeline.py LAKE WORK ENGINE`, which prints a line when its session stands and the work begins.
In a night a table is replaced, one only grows, and into one rows are merged: all ways in which a lake is written. The
other works are what an operator does: maintenance, the repair of a table, a rollback.
"""

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

import crm_spark.lake
import crm_spark.maintenance
import crm_spark.run
from crm_spark.config import conf_dir, load_config
from crm_spark.endings import one_line_errors
from crm_spark.lake import Lake
from crm_spark.maintenance import maintain
from crm_spark.publications import Pin, PublishedLake, roll_back
from crm_spark.repairing import repair
from crm_spark.run import Run
from crm_spark.session import build_session, sail_session
from crm_spark.tables import Column, Table, declared_rows

SALES = Table(
    "clean_sales",
    "One row per sale that stands.",
    ("sale_id",),
    (
        Column("sale_id", "bigint", "The sale."),
        Column("customer_id", "bigint", "Who bought."),
        Column("amount", "bigint", "What was paid."),
    ),
)
LEDGER = Table(
    "fact_sales",
    "One row per sale that came (sign 1) or was taken back (sign -1).",
    ("sale_id", "customer_id", "amount", "night", "sign"),
    (*SALES.columns, Column("night", "bigint", "When."), Column("sign", "bigint", "1 or -1.")),
)
TOTALS = Table(
    "mart_customers",
    "One row per customer with sales.",
    ("customer_id",),
    (
        Column("customer_id", "bigint", "The customer."),
        Column("sale_count", "bigint", "Sales."),
        Column("amount", "bigint", "What was paid for them."),
    ),
)
TABLES = (SALES, LEDGER, TOTALS)
Change = Callable[[Pin, Mapping[str, Pin]], tuple[DataFrame, DataFrame | None]]
_SALES_A_NIGHT = 60
_FIRST_AT = datetime(2026, 10, 1, tzinfo=UTC)
# As an operator would have it two nights later: the first publication has expired.
_MAINTAINED_AT = _FIRST_AT + timedelta(days=3)
_KEEP_DAYS = 1
ROLLBACK_COUNT = 50
# Nearly all code runs once: Java compiles it quickly or not at all, and Spark generates none.
_SPARK_CONF = Path(__file__).parent / "spark-faults.conf"


def sales_of(night: int) -> set[tuple[int, int, int]]:
    """What stands after a night: each brings sales, corrects some of those before it, and takes some back."""
    standing: dict[int, tuple[int, int, int]] = {}
    for now in range(1, night + 1):
        for sale in range((now - 1) * _SALES_A_NIGHT, now * _SALES_A_NIGHT):
            standing[sale] = (sale, sale * 7 % 31, sale * 13 % 101)
        for sale in [sale for sale in standing if now > 1 and sale % 11 == now]:
            standing[sale] = (sale, (sale + now) % 31, sale % 17)
        for sale in [sale for sale in standing if now > 1 and sale % 13 == now]:
            del standing[sale]
    return set(standing.values())


def do(spark: SparkSession, folder: str, work: str) -> None:
    """Do a work: `night N`, `maintenance`, `repair TABLE`, `rollback`, or `rollbacks`, one after another."""
    kind, _, of = work.partition(" ")
    works: dict[str, Callable[[], None]] = {
        "night": lambda: run_night(spark, folder, int(of)),
        "maintenance": lambda: _maintain(Lake(spark, folder)),
        "repair": lambda: repair(Lake(spark, folder), of, _be_silent),
        "rollback": lambda: _roll_back(folder),
        "rollbacks": lambda: _roll_back_often(folder),
    }
    works[kind]()


def _maintain(lake: Lake) -> None:
    # Two files are many here, and nothing is waited for.
    crm_spark.maintenance._MANY_FILES, crm_spark.maintenance._GRACE_HOURS = 2, 0
    maintain(lake, _MAINTAINED_AT, _KEEP_DAYS, _be_silent)


def _roll_back(folder: str) -> None:
    """Let readers see publication 1 again, if they do not: an operator would look first, too."""
    lake = PublishedLake(folder)
    with lake.locked():
        if lake.require_publication().publication_id != lake.require_publication("1").publication_id:
            roll_back(lake, "1", _MAINTAINED_AT)


def _roll_back_often(folder: str) -> None:
    lake = PublishedLake(folder)
    with lake.locked():
        for number in range(ROLLBACK_COUNT):
            roll_back(lake, str(number % 2 + 1), _MAINTAINED_AT + timedelta(seconds=number))


def _be_silent(_: str) -> None:
    """What the works tell is for operators."""


def run_night(spark: SparkSession, folder: str, night: int) -> None:
    """Bring the three tables to what stands after a night, and publish them."""
    # Tables as small as these would be made anew.
    crm_spark.run.SMALL_COUNT = crm_spark.lake.SMALL_COUNT = 0
    lake, at = Lake(spark, folder), _FIRST_AT + timedelta(days=night)
    config = load_config(conf_dir() / "complete_journey.toml", lake=folder)
    with lake.locked(wait_seconds=60):
        run = Run(config, lake, at.date(), at, at, at, previous=lake.last_publication())
        run.update(SALES, lambda: declared_rows(spark, SALES, sorted(sales_of(night))), given=night)
        run.grow(LEDGER, lambda _: _signed(run.read(SALES), night), _ledger_change(run, night), [SALES], is_ledger=True)
        run.grow(TOTALS, lambda _: _totals(run.read(LEDGER)), _totals_change(run), [LEDGER])
        publication = run.publication()
        if run.previous is None or run.previous.publication_id != publication.publication_id:
            lake.publish(publication)


def _signed(sales: DataFrame, night: int) -> DataFrame:
    return sales.withColumns({"night": F.lit(night).cast("bigint"), "sign": F.lit(1).cast("bigint")})


def _ledger_change(run: Run, night: int) -> Change:
    def change(_: Pin, before: Mapping[str, Pin]) -> tuple[DataFrame, None]:
        changes = run.lake.row_changes(SALES, before[SALES.name], run.pins[SALES.name])
        return changes.withColumn("night", F.lit(night).cast("bigint")).select(*LEDGER.column_names), None

    return change


def _totals(ledger: DataFrame) -> DataFrame:
    summed = ledger.groupBy("customer_id").agg(
        F.sum("sign").alias("sale_count"), F.sum(F.col("sign") * F.col("amount")).alias("amount")
    )
    return summed.where("sale_count > 0")


def _totals_change(run: Run) -> Change:
    def change(_: Pin, before: Mapping[str, Pin]) -> tuple[DataFrame, DataFrame]:
        came, _went = run.lake.difference(before[LEDGER.name], run.pins[LEDGER.name])
        touched = came.select("customer_id").distinct()
        now = _totals(run.read(LEDGER).join(touched, "customer_id", "left_semi"))
        return now, touched

    return change


@contextmanager
def session_on(engine: str) -> Iterator[SparkSession]:
    """A session on Spark or Sail."""
    if engine == "sail":
        with sail_session() as spark:
            yield spark
        return
    spark = build_session(_SPARK_CONF)
    yield spark
    spark.stop()


def serve(engine: str, requests: Connection) -> None:
    """Do works in one session, as they are asked for, and answer None or a traceback, until nobody asks any more.

    A request is a lake and the works to be done to it, one after another.
    """
    with session_on(engine) as spark, suppress(EOFError, BrokenPipeError):
        while True:
            folder, works = requests.recv()
            requests.send(_failure_of(spark, folder, works))


def _failure_of(spark: SparkSession, folder: str, works: Sequence[str]) -> str | None:
    try:
        for work in works:
            do(spark, folder, work)
    except Exception:  # noqa: BLE001 (whatever it is, the one who asked is told)
        return traceback.format_exc()
    return None


if __name__ == "__main__":
    with one_line_errors(), session_on(sys.argv[3]) as session:
        sys.stdout.write("begins\n")
        sys.stdout.flush()
        do(session, sys.argv[1], sys.argv[2])
