"""Cleaning: parse leniently, judge each row by itself, settle rows with the same key, lose nothing."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from crm_spark.cleaning.judging import judge_rows
from crm_spark.cleaning.reading import files_with_rows, read_landed
from crm_spark.cleaning.settling import settle_versions, survey_keys
from crm_spark.cleaning.tables import CLEAN, CLEANING_ACCOUNT, REJECTED
from crm_spark.config import Source
from crm_spark.sources.landing import LandedFile
from crm_spark.tables import Table, conform, declared_rows, local_rows


@dataclass(frozen=True)
class Cleaned:
    """Every row of an entity's files, in exactly one of three frames.

    `left_out` says by its column `verdict` what a row is: a duplicate, superseded by a newer one, or a deletion.
    """

    accepted: DataFrame
    rejected: DataFrame
    left_out: DataFrame


def clean_entity(
    spark: SparkSession,
    entity: str,
    sources: Mapping[str, Source],
    landed: Sequence[LandedFile],
    lake_uri: str,
    currency: str,
) -> Cleaned:
    """Judge all landed rows of an entity.

    A row is rejected for what it is by itself (unreadable or missing values, broken rules). Of good rows with
    one key and the same content the first is accepted and the others are duplicates. Of different content, the
    newest by its source's `sequence_by` is accepted, whenever it came, unless it is a deletion; without that
    order all are rejected, since nothing says which is true. An entity without a source gives empty frames.

    Raises:
        ConfigError: if a mapping is not possible over the file's columns.
        SourceError: if the files of a source differ in their columns.
    """
    table = CLEAN[entity]
    judged = [
        judge_rows(read_landed(spark, source, files, lake_uri), name, source, files, table, currency)
        for name, source in sources.items()
        if source.entity == entity and (files := files_with_rows(name, landed))
    ]
    nothing = Cleaned(
        accepted=declared_rows(spark, table, []),
        rejected=declared_rows(spark, REJECTED[entity], []),
        left_out=local_rows(spark, "source string, batch_id string, verdict string", []),
    )
    if not judged:
        return nothing
    good = _union(rows.where("is_good").select(*table.column_names) for rows in judged)
    bad = _union(_with_text(rows.where("NOT is_good"), table) for rows in judged)
    # One pass over keys and verdicts tells what else is needed: nothing, where no key stands twice.
    contested, has_bad = survey_keys(
        _union(rows.select(*table.key, "is_good", "is_deletion") for rows in judged), table
    )
    if contested is None:
        rejected = _build_rejected(bad, REJECTED[entity]) if has_bad else nothing.rejected
        return Cleaned(conform(good, table), rejected, nothing.left_out)
    key = list(table.key)
    settled = settle_versions(
        _union(_with_text(rows.where("is_good").join(contested, key, "left_semi"), table) for rows in judged), table
    )
    accepted = good.join(contested, key, "left_anti").unionByName(
        settled.where("verdict = 'accepted'").select(*table.column_names)
    )
    conflicting = settled.where("verdict = 'conflicting'").withColumn(
        "reasons", F.array(F.lit("key_with_other_content"))
    )
    return Cleaned(
        accepted=conform(accepted, table),
        rejected=_build_rejected(bad.unionByName(conflicting.drop("verdict")), REJECTED[entity]),
        left_out=settled.where("verdict NOT IN ('accepted', 'conflicting')").select("source", "batch_id", "verdict"),
    )


def build_cleaning_account(
    spark: SparkSession,
    landed: Sequence[LandedFile],
    read_counts: DataFrame,
    accepted: Sequence[DataFrame],
    rejected: Sequence[DataFrame],
    left_out: Sequence[DataFrame],
) -> DataFrame:
    """Rows: one per landed file, each count taken from its own place, so that their equation means something.

    `accepted` and `rejected` are the stored tables of all entities, `read_counts` a count of the files
    themselves (source, batch_id, read_count).
    """
    files = local_rows(
        spark,
        "source string, entity string, batch_id string, file_name string",
        [(file.source, file.entity, file.batch_id, file.file_name) for file in landed],
    )
    counted = [
        read_counts,
        _count_rows((rows.select("source", "batch_id") for rows in accepted), accepted_count=F.count("*")),
        _count_rows(
            (rows.select("source", "batch_id", "row_count") for rows in rejected), rejected_count=F.sum("row_count")
        ),
        _count_rows(
            left_out,
            duplicate_count=F.count_if(F.col("verdict") == "duplicate"),
            superseded_count=F.count_if(F.col("verdict") == "superseded"),
            deletion_count=F.count_if(F.col("verdict") == "deletion"),
        ),
    ]
    account = reduce(lambda left, right: left.join(right, ["source", "batch_id"], "left"), counted, files)
    return conform(account.na.fill(0), CLEANING_ACCOUNT)


def _with_text(judged: DataFrame, table: Table) -> DataFrame:
    """The text of the rows as they came, beside their canonical columns and reasons."""
    return judged.select(
        *table.column_names,
        "sequence_no",
        "is_deletion",
        "reasons",
        F.coalesce("corrupt_text", F.to_json("raw_row")).alias("row_text"),
    )


def _build_rejected(rows: DataFrame, table: Table) -> DataFrame:
    grouped = rows.groupBy("source", "batch_id", "row_text").agg(
        F.array_sort(F.array_distinct(F.flatten(F.collect_set("reasons")))).alias("reasons"),
        F.count("*").alias("row_count"),
    )
    return conform(grouped.select(*table.column_names), table)


def _count_rows(frames: Iterable[DataFrame], **counts: SparkColumn) -> DataFrame:
    return _union(frames).groupBy("source", "batch_id").agg(*(count.alias(name) for name, count in counts.items()))


def _union(frames: Iterable[DataFrame]) -> DataFrame:
    return reduce(DataFrame.unionByName, frames)
