"""Cleaning: parse leniently, judge each row by itself, settle rows with the same key, lose nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from crm_spark.cleaning.judging import judge_rows
from crm_spark.cleaning.profile import profile_batches
from crm_spark.cleaning.rules import SiteRules
from crm_spark.cleaning.settling import (
    Standing,
    add_content,
    build_withheld,
    keep_other_keys,
    settle_versions,
    standing_versions,
    survey_keys,
)
from crm_spark.cleaning.tables import BATCH_PROFILES, CLEAN, CLEANING_ACCOUNT, REJECTED, WITHHELD_KEYS
from crm_spark.sources.landing import LandedFile
from crm_spark.sources.reading import SourceFiles, read_landed
from crm_spark.tables import Table, conform, declared_rows, local_rows, union_of, value_errors

_OF_REJECTED = ("source", "batch_id", "row_text", "reasons")
_LEFT_OUT = "source string, batch_id string, duplicate_count bigint, superseded_count bigint, deletion_count bigint"


@dataclass(frozen=True)
class Cleaned:
    """What new files make of an entity's tables.

    `accepted` are rows for the clean table, in place of those that stand there with their keys. `removed` are keys
    whose row there goes; None: no new row has a key that stands there. `rejected` are rows to add to the quarantine.
    `withheld` are all withheld keys of the entity. `left_out` are rows by file that count as duplicates, superseded or
    deletions; less than 0 for a deletion that stood and does so no more. `profiles` tell of the new files.
    """

    accepted: DataFrame
    removed: DataFrame | None
    rejected: DataFrame
    withheld: DataFrame
    left_out: DataFrame
    profiles: DataFrame


def clean_entity(
    spark: SparkSession,
    entity: str,
    inputs: Sequence[SourceFiles],
    new: Sequence[SourceFiles],
    lake_uri: str,
    rules: SiteRules,
    standing: Standing | None = None,
) -> Cleaned:
    """Judge the rows of the new files among an entity's inputs, and settle them against what `standing` has.

    A row is rejected for what it is by itself (unreadable or missing values, broken rules). Of good rows with
    one key the newest by its source's `sequence_by` is accepted, whenever it came, unless it is a deletion; equal
    ones are duplicates. Where contents differ without that order, all are rejected, since nothing says which is true.

    Raises:
        ConfigError: if a mapping is not possible over the file's columns.
        ContractError: if a mapping or a rule compares or computes with a text that it cannot read.
    """
    table = CLEAN[entity]

    def judge(files: SourceFiles) -> DataFrame:
        return judge_rows(read_landed(spark, files, lake_uri), files, table, rules)

    nothing = Cleaned(
        accepted=declared_rows(spark, table, []),
        removed=None,
        rejected=declared_rows(spark, REJECTED[entity], []),
        withheld=standing.withheld if standing else declared_rows(spark, WITHHELD_KEYS, []),
        left_out=local_rows(spark, _LEFT_OUT, []),
        profiles=declared_rows(spark, BATCH_PROFILES, []),
    )
    if not any(files.files for files in new):
        return nothing
    # Files are parsed once. The text of a good row is seldom asked for, and then read again.
    kept_text = F.when(~F.col("is_good"), F.col("row_text"))
    judged = union_of(judge(files) for files in new if files.files).withColumn("row_text", kept_text).persist()
    good = judged.where("is_good")
    with value_errors(table.name):
        survey = survey_keys(judged, table, standing)
    bad = judged.where("NOT is_good").select(*_OF_REJECTED)
    profiles = profile_batches(good, entity, table, rules)
    if survey.contested is None:
        return replace(
            nothing,
            accepted=conform(good.select(*table.column_names), table),
            rejected=_build_rejected(bad, REJECTED[entity]) if survey.has_bad else nothing.rejected,
            profiles=profiles,
        )
    key = list(table.key)
    versions = good.join(survey.contested, key, "left_semi").withColumn("stands_as", F.lit(None).cast("string"))
    if survey.standing is not None:
        stands = standing_versions(survey.standing, survey.contested, table)
        versions = versions.unionByName(stands, allowMissingColumns=True)
    settled = settle_versions(versions, table).persist()
    conflicting = _read_conflicting(settled, table, inputs, judge)
    settled_accepted = settled.where("verdict = 'accepted'")
    uncontested = good.join(survey.contested, key, "left_anti")
    accepted = uncontested.select(*table.column_names).unionByName(settled_accepted.select(*table.column_names))
    return Cleaned(
        accepted=conform(accepted, table),
        removed=survey.contested.join(settled_accepted, key, "left_anti") if survey.meets_standing else None,
        rejected=_build_rejected(union_of([bad, *conflicting]), REJECTED[entity]),
        withheld=conform(
            keep_other_keys(nothing.withheld, survey.contested, table).unionByName(
                build_withheld(entity, settled, table)
            ),
            WITHHELD_KEYS,
        ),
        left_out=_count_left_out(settled),
        profiles=profiles,
    )


def _read_conflicting(
    settled: DataFrame,
    table: Table,
    inputs: Sequence[SourceFiles],
    judge: Callable[[SourceFiles], DataFrame],
) -> list[DataFrame]:
    """Rows that come into conflict, new ones and those that stood until now, as their files have them."""
    lost = settled.where("verdict = 'conflicting' AND coalesce(stands_as, '') != 'conflicting'")
    of_row = [*table.key, "source", "batch_id", "content"]
    lost = lost.groupBy(*of_row).agg(F.count("*").alias("lost_count"))
    origins = {tuple(row) for row in lost.select("source", "batch_id").distinct().collect()}
    # Equal rows of a file beside those that are lost are duplicates of them: the first texts stand for the lost.
    in_order = Window.partitionBy(*of_row).orderBy("row_text")
    affected = [
        files.only({file for file in files.files if (file.source, file.batch_id) in origins}) for files in inputs
    ]
    return [
        add_content(judge(files).where("is_good"), table)
        .join(lost, of_row)
        .withColumn("place", F.row_number().over(in_order))
        .where("place <= lost_count")
        .withColumn("reasons", F.array(F.lit("key_with_other_content")))
        .select(*_OF_REJECTED)
        for files in affected
        if files.files
    ]


def _count_left_out(settled: DataFrame) -> DataFrame:
    verdict = F.col("verdict")
    stood_deleted = F.coalesce(F.col("stands_as") == "deleted", F.lit(False))
    return settled.select(
        "source",
        "batch_id",
        (verdict == "duplicate").cast("bigint").alias("duplicate_count"),
        (verdict == "superseded").cast("bigint").alias("superseded_count"),
        ((verdict == "deleted").cast("bigint") - stood_deleted.cast("bigint")).alias("deletion_count"),
    )


@dataclass(frozen=True)
class Stored:
    """Rows that came into the stored tables of cleaning, and that went from them, since the account before."""

    came: Sequence[DataFrame]
    went: Sequence[DataFrame]


def build_cleaning_account(
    spark: SparkSession,
    landed: Sequence[LandedFile],
    read_counts: DataFrame,
    accepted: Stored,
    rejected: Stored,
    left_out: Sequence[DataFrame],
    before: DataFrame | None = None,
) -> DataFrame:
    """Rows: one per landed file, each count taken from its own place, so that their equation means something.

    `accepted` and `rejected` are rows of stored tables, `read_counts` a count of the files themselves (source,
    batch_id, read_count), `left_out` what settling left out. All are changes since the account `before`.
    """
    files = local_rows(
        spark,
        "source string, entity string, batch_id string, file_name string, fault string",
        [(file.source, file.entity, file.batch_id, file.file_name, file.fault) for file in landed],
    )
    counts = [
        read_counts,
        *(_as_count(rows, "accepted_count", F.lit(1)) for rows in accepted.came),
        *(_as_count(rows, "accepted_count", F.lit(-1)) for rows in accepted.went),
        *(_as_count(rows, "rejected_count", F.col("row_count")) for rows in rejected.came),
        *(_as_count(rows, "rejected_count", -F.col("row_count")) for rows in rejected.went),
        *left_out,
        *([before.drop("entity", "file_name", "fault")] if before is not None else []),
    ]
    names = [column.name for column in CLEANING_ACCOUNT.columns if column.type == "bigint"]
    summed = (
        reduce(lambda left, right: left.unionByName(right, allowMissingColumns=True), counts)
        .groupBy("source", "batch_id")
        .agg(*(F.sum(name).alias(name) for name in names))
    )
    return conform(files.join(summed, ["source", "batch_id"], "left").na.fill(0, names), CLEANING_ACCOUNT)


def _as_count(rows: DataFrame, name: str, count: SparkColumn) -> DataFrame:
    return rows.select("source", "batch_id", count.cast("bigint").alias(name))


def _build_rejected(rows: DataFrame, table: Table) -> DataFrame:
    grouped = rows.groupBy("source", "batch_id", "row_text").agg(
        F.array_sort(F.array_distinct(F.flatten(F.collect_set("reasons")))).alias("reasons"),
        F.count("*").alias("row_count"),
    )
    return conform(grouped.select(*table.column_names), table)
