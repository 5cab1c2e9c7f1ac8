"""Given to spark-submit: writes a table and merges into it. Tasks wait at gates, so that they can be killed there."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from crm_spark.lake import SMALL_COUNT, Lake
from crm_spark.session import build_session
from crm_spark.tables import Column, Table

NUMBERS = Table(
    "numbers",
    "One row per number.",
    ("number",),
    (Column("number", "bigint", "The number."), Column("told", "string", "When it was last told.")),
)
COUNT = 2 * SMALL_COUNT
_PARTITIONS = 4
_WAITS_SECONDS = 300


def main(lake_uri: str, gates: str) -> None:
    """Tell numbers from 0 on; tell the second half and as many new ones again, and take the first 1000 back."""
    spark = build_session()
    lake = Lake(spark, lake_uri)
    first = gated(numbers(spark, 0, COUNT, "first"), Path(gates, "write"))
    base = lake.write(NUMBERS, first, "first")
    again = gated(numbers(spark, COUNT // 2, 3 * COUNT // 2, "again"), Path(gates, "merge"), job="MERGE")
    removed = numbers(spark, 0, 1000, "first").select("number")
    lake.change(NUMBERS, base, again, removed, "again")
    spark.stop()


def numbers(spark: SparkSession, start: int, end: int, told: str) -> DataFrame:
    """After a shuffle, so that an executor takes what it has written with it."""
    rows = spark.range(start, end).select(F.col("id").alias("number"), F.lit(told).alias("told"))
    return rows.repartition(_PARTITIONS, "number")


def gated(rows: DataFrame, gate: Path, job: str = "") -> DataFrame:
    """The same rows, of which later tasks wait at a gate until it is open; only in jobs whose description has a word.

    Earlier tasks do not, so that what executors keep of them can be lost.
    """

    def wait(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        context = TaskContext.get()
        assert context is not None
        described = context.getLocalProperty("spark.job.description") or ""
        if job in described and context.partitionId() >= _PARTITIONS // 2:
            (gate / f"task-{context.taskAttemptId()}").touch()
            ends_at = time.monotonic() + _WAITS_SECONDS
            while not (gate / "open").exists():
                assert time.monotonic() < ends_at, "nobody opened the gate"
                time.sleep(0.05)
        yield from batches

    return rows.mapInArrow(wait, rows.schema)


if __name__ == "__main__":
    main(*sys.argv[1:])
