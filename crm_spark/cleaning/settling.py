"""Settling: which of several good rows with one key stands in the clean table, and what the others are."""

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from crm_spark.tables import Table


def survey_keys(judged: DataFrame, table: Table) -> tuple[DataFrame | None, bool]:
    """The keys that several good rows have or that one deletes (None: no such key), and whether any row is bad."""
    is_contested = F.col("good_count") + F.col("deletion_count") > 1
    noted = (
        judged.groupBy(*table.key)
        .agg(
            F.count_if("is_good").alias("good_count"),
            F.count_if(F.col("is_good") & F.col("is_deletion")).alias("deletion_count"),
            F.count_if(~F.col("is_good")).alias("bad_count"),
        )
        .where(is_contested | (F.col("bad_count") > 0))
        .persist()
    )
    ((has_contested, has_bad),) = noted.agg(F.bool_or(is_contested), F.bool_or(F.col("bad_count") > 0)).collect()
    if has_contested:
        return noted.where(is_contested).select(*table.key), bool(has_bad)
    noted.unpersist()
    return None, bool(has_bad)


def settle_versions(contested: DataFrame, table: Table) -> DataFrame:
    """Give rows with contested keys a verdict: accepted, duplicate, superseded, deletion or conflicting.

    It depends on the rows alone, not on the order in which they came: the newest content has the highest
    `sequence_no`; of several with that, a deletion wins, then the greatest text. The accepted row is known since the
    first of all versions was, so that a customer who changes does not vanish from earlier cut-offs.
    """
    business = [c.name for c in table.columns if not c.volatile and c.name != "known_at"]
    of_key, of_content = Window.partitionBy(*table.key), Window.partitionBy(*table.key, "content")
    content = F.to_json(F.struct("is_deletion", *business), {"timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSS"})
    earliest = ["known_at"] if "known_at" in table.column_names else []
    verdict = (
        F.when(F.col("has_other_content") & ~F.col("is_ordered"), "conflicting")
        .when(F.col("place") > 1, "duplicate")
        .when(F.col("content") != F.col("newest.content"), "superseded")
        .when(F.col("is_deletion"), "deletion")
        .otherwise("accepted")
    )
    settled = (
        contested.withColumn("content", content)
        .withColumn("has_other_content", F.min("content").over(of_key) != F.max("content").over(of_key))
        .withColumn("is_ordered", F.bool_and(F.col("sequence_no").isNotNull()).over(of_key))
        .withColumn("newest", F.max(F.struct("sequence_no", "content")).over(of_key))
        .withColumn("place", F.row_number().over(of_content.orderBy(*earliest, "batch_id", "source")))
        .withColumn("verdict", verdict)
    )
    if earliest:  # NULL, which comes first: known as soon as it happened
        settled = settled.withColumn("known_at", F.first("known_at").over(of_key.orderBy("known_at")))
    return settled.drop("content", "has_other_content", "is_ordered", "newest", "place")
