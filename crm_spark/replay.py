"""Replay: rows in quarantine are run again after a mapping or a rule was mended, and accounted for.

A mended mapping may change good rows, too. So all landed files of an entity are cleaned anew where its mapping or a
rule changed, as a refresh would do; here the refresh ends after cleaning, and what became of the quarantine is told.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from crm_spark.cleaning.tables import CLEANING_ACCOUNT, REJECTED
from crm_spark.config import Config
from crm_spark.errors import LakeError
from crm_spark.lake import Lake
from crm_spark.progress import RunProgress
from crm_spark.publications import Pin
from crm_spark.refresh import refresh

_OUTCOMES = ("accepted", "duplicate", "superseded", "deletion")


@dataclass(frozen=True)
class Replayed:
    """How many rows of one entity were in quarantine for some reasons and are for others; none: not in it."""

    entity: str
    reasons_before: tuple[str, ...]
    reasons: tuple[str, ...]
    row_count: int


@dataclass(frozen=True)
class Replay:
    """What became of the quarantine, and by entity how many rows more (or less) count as what."""

    rows: Sequence[Replayed]
    outcomes: Mapping[str, Mapping[str, int]]


def replay_rejected(
    spark: SparkSession, config: Config, run_at: datetime, progress: RunProgress, wait_seconds: float = 0
) -> Replay:
    """Clean what a mended mapping or rule concerns, and compare the quarantine with what it was.

    New files are taken in, too, but not compared. Entities are left out of which every row is where it was. Who else
    writes the lake is waited for, up to `wait_seconds`.

    Raises:
        CrmSparkError: as a refresh does; LakeError if nothing has been cleaned here yet.
    """
    lake = Lake(spark, config.lake)
    before = _read_cleaned(lake)
    if before is None:
        raise LakeError(f"{lake.uri}: found no quarantine, expected one; run `crm-spark refresh` with this lake first")
    refresh(spark, config, run_at, progress, last_stage="cleaning", wait_seconds=wait_seconds)
    after = _read_cleaned(lake) or before
    files = lake.read(before[CLEANING_ACCOUNT.name]).select("source", "batch_id")
    rows: list[Replayed] = []
    for entity, table in REJECTED.items():
        old, new = before.get(table.name), after.get(table.name)
        if old and new and old != new:
            rows += _compare(entity, lake.read(old), lake.read(new).join(files, ["source", "batch_id"], "left_semi"))
    account_before, account = (lake.read(pins[CLEANING_ACCOUNT.name]) for pins in (before, after))
    return Replay(rows, _compare_outcomes(account_before, account, [replayed.entity for replayed in rows]))


def _read_cleaned(lake: Lake) -> dict[str, Pin] | None:
    account = lake.find(CLEANING_ACCOUNT)
    return lake.pins_beside(CLEANING_ACCOUNT) | {account.name: account} if account else None


def _compare(entity: str, before: DataFrame, after: DataFrame) -> list[Replayed]:
    row = ["source", "batch_id", "row_text"]
    was = before.select(*row, F.col("reasons").alias("reasons_before"), F.col("row_count").alias("before_count"))
    joined = was.join(after.select(*row, "reasons", "row_count"), row, "full")
    joined = joined.na.fill(0, ["before_count", "row_count"])
    none, now, then = F.array().cast("array<string>"), F.col("row_count"), F.col("before_count")
    moves = [
        F.struct("reasons_before", "reasons", F.least(then, now).alias("count")),
        F.struct("reasons_before", none.alias("reasons"), F.greatest(then - now, F.lit(0)).alias("count")),
        F.struct(none.alias("reasons_before"), "reasons", F.greatest(now - then, F.lit(0)).alias("count")),
    ]
    counted = (
        joined.select(F.inline(F.array(*moves)))
        .where("count > 0")
        .groupBy("reasons_before", "reasons")
        .agg(F.sum("count").alias("row_count"))
        .orderBy(F.desc("row_count"), "reasons_before", "reasons")
    )
    rows = [
        Replayed(entity, tuple(found["reasons_before"]), tuple(found["reasons"]), found["row_count"])
        for found in counted.collect()
    ]
    return rows if any(row.reasons_before != row.reasons for row in rows) else []


def _compare_outcomes(before: DataFrame, after: DataFrame, entities: Sequence[str]) -> dict[str, dict[str, int]]:
    """By entity, how the counts of the files of before changed."""
    known = after.join(before.select("source", "batch_id"), ["source", "batch_id"], "left_semi")
    was, now = (
        {
            row["entity"]: row.asDict()
            for row in account.groupBy("entity").agg(*(F.sum(f"{o}_count").alias(o) for o in _OUTCOMES)).collect()
        }
        for account in (before, known)
    )
    nothing = dict.fromkeys(_OUTCOMES, 0)
    return {
        entity: {outcome: now.get(entity, nothing)[outcome] - was[entity][outcome] for outcome in _OUTCOMES}
        for entity in dict.fromkeys(entities)
    }
