"""Settling: which of several good rows with one key stands in the clean table, and what the others are.

Rows are settled in the order in which they came, those that stand already first. So settling new rows against what
stands and settling all rows ever landed anew give the same.
"""

from dataclasses import dataclass, replace

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from crm_spark.cleaning.tables import WITHHELD_KEYS
from crm_spark.tables import Table

# What a row that stands already is: a row of the clean table, or a kind of withheld_keys.
_CLEAN, _DELETED, _CONFLICTING = "clean", "deleted", "conflicting"
_TIMESTAMPS = {"timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSS"}


@dataclass(frozen=True)
class Standing:
    """The rows of `clean_<entity>` and of `withheld_keys` for that entity, before new rows come."""

    clean: DataFrame
    withheld: DataFrame


@dataclass(frozen=True)
class Survey:
    """What the keys of new rows tell of the work to do.

    `contested` are the keys that need settling, and perhaps a few more (None: no such key), `standing` is what stands
    near the new keys, and `meets_standing` tells whether any new good row has a key of it.
    """

    contested: DataFrame | None
    standing: Standing | None
    meets_standing: bool
    has_bad: bool


def survey_keys(judged: DataFrame, table: Table, standing: Standing | None) -> Survey:
    """Find the keys that several good rows have, or one and something that stands, or that one deletes."""
    good = judged.where("is_good")
    if standing is not None:
        standing = _near(standing, good.select(*table.key))
    # Hashes of keys are cheaper to count than keys. Of two keys that share one, each is then settled by itself.
    key_hash = F.xxhash64(*table.key).alias("key_hash")
    claims = F.when(~F.col("is_good"), 0).when(F.col("is_deletion"), 2).otherwise(1).alias("claims")
    # Few keys come twice: rows are brought together before they are counted.
    noted = (
        judged.select(key_hash, claims, "is_good")
        .repartition("key_hash")
        .groupBy("key_hash")
        .agg(F.sum("claims").alias("claim_count"), F.count_if(~F.col("is_good")).alias("bad_count"))
    )
    if standing is None:
        noted = noted.withColumn("is_met", F.lit(False))
    else:
        met = _standing_keys(standing, table).select(key_hash).distinct().withColumn("is_met", F.lit(True))
        noted = noted.join(met, "key_hash", "left").na.fill({"is_met": False})
    is_met = F.col("is_met") & (F.col("claim_count") > 0)
    is_contested = is_met | (F.col("claim_count") > 1)
    of_interest = noted.where(is_contested | (F.col("bad_count") > 0)).persist()
    ((contested, meets, bad),) = of_interest.agg(
        F.bool_or(is_contested), F.bool_or(is_met), F.bool_or(F.col("bad_count") > 0)
    ).collect()
    hashes = of_interest.where(is_contested).select("key_hash")
    keys = good.select(*table.key, key_hash).join(hashes, "key_hash", "left_semi").select(*table.key).distinct()
    return Survey(keys.persist() if contested else None, standing, bool(meets), bool(bad))


def standing_versions(standing: Standing, contested: DataFrame, table: Table) -> DataFrame:
    """What stands for contested keys, as rows to settle with the new ones; `stands_as` says what each is."""
    clean = standing.clean.withColumns({"is_deletion": F.lit(False), "stands_as": F.lit(_CLEAN)})
    withheld = _unpack_keys(standing.withheld, table).withColumns(
        {"is_deletion": F.col("kind") == _DELETED, "stands_as": F.col("kind")}
    )
    of_version = [*table.key, "sequence_no", "source", "batch_id", "is_deletion", "stands_as"]
    of_version += ["known_at"] if "known_at" in table.column_names else []
    both = clean.unionByName(withheld.select(*of_version), allowMissingColumns=True)
    return both.join(contested, list(table.key), "left_semi")


def settle_versions(versions: DataFrame, table: Table) -> DataFrame:
    """Give every row a verdict: accepted, duplicate, superseded, deleted or conflicting.

    `versions` are good rows with `is_deletion`, `ingested_at` (NULL for what stands) and `stands_as` (NULL for what
    is new). The newest content has the highest `sequence_no`; of several with that, a deletion wins, then the
    greatest text. Which one wins depends on the rows alone; whether another is superseded, or a duplicate of what
    stood when it came, depends on the order of coming. Where a row differs from what stands and not all up to it are
    in sequence, it, what stands, and all that comes later are in conflict.

    The row that stands has the highest `sequence_no` of its content and is known since the first of all versions was,
    so that a customer who changes does not vanish from earlier cut-offs.
    """
    arrival = ["ingested_at", "batch_id", "source", "sequence_no", "is_deletion", "content"]
    of_key = Window.partitionBy(*table.key)
    in_order = of_key.orderBy(*arrival)
    so_far = in_order.rowsBetween(Window.unboundedPreceding, Window.currentRow)
    before = in_order.rowsBetween(Window.unboundedPreceding, -1)
    was_conflicting = F.coalesce(F.col("stands_as") == _CONFLICTING, F.lit(False))
    is_unordered = F.max(F.col("sequence_no").isNull() & ~was_conflicting).over(so_far)
    place = F.when(~was_conflicting, F.struct("sequence_no", "is_deletion", "content"))
    newest_before = F.col("newest_before")
    repeats = F.coalesce(
        newest_before["content"].eqNullSafe(F.col("content")) & (newest_before["is_deletion"] == F.col("is_deletion")),
        F.lit(False),
    )
    leads = ~F.col("is_conflicting") & ~repeats & (newest_before.isNull() | (F.col("place") > newest_before))
    comes_into_conflict = was_conflicting | (is_unordered & newest_before.isNotNull() & ~repeats)
    is_last_lead = F.col("arrival_no") == F.max(F.when(leads, F.col("arrival_no"))).over(of_key)
    is_conflicting = F.col("is_conflicting") | (F.max("is_conflicting").over(of_key) & is_last_lead)
    verdict = (
        F.when(is_conflicting, _CONFLICTING)
        .when(repeats, "duplicate")
        .when(~is_last_lead, "superseded")
        .when(F.col("is_deletion"), _DELETED)
        .otherwise("accepted")
    )
    is_in_sequence = F.min(F.col("sequence_no").isNotNull()).over(of_key)
    settled = (
        add_content(versions, table)
        .withColumn("arrival_no", F.row_number().over(in_order))
        .withColumn("place", place)
        .withColumn("newest_before", F.max("place").over(before))
        .withColumn("comes_into_conflict", comes_into_conflict)
        .withColumn("is_conflicting", F.max("comes_into_conflict").over(so_far))
        .withColumn("verdict", verdict)
        .withColumn("sequence_no", F.when(is_in_sequence, F.max("place").over(of_key)["sequence_no"]))
    )
    if "known_at" in table.column_names:  # NULL, which comes first: known as soon as it happened
        settled = settled.withColumn("known_at", F.first("known_at").over(of_key.orderBy("known_at")))
    return settled.select(*table.column_names, "content", "stands_as", "verdict")


def add_content(rows: DataFrame, table: Table) -> DataFrame:
    """With `content`, a text of what a row says in the columns that count; NULL for deletions."""
    business = [c.name for c in table.columns if not c.volatile and c.name not in ("known_at", "sequence_no")]
    return rows.withColumn("content", F.when(~F.col("is_deletion"), F.to_json(F.struct(*business), _TIMESTAMPS)))


def build_withheld(entity: str, settled: DataFrame, table: Table) -> DataFrame:
    """Rows of `withheld_keys` for the keys that were settled and that no clean row has."""
    key = F.to_json(F.struct(*table.key))
    is_conflicting = F.col("verdict") == _CONFLICTING
    known_at = F.col("known_at") if "known_at" in table.column_names else F.lit(None).cast("timestamp")
    withheld = settled.where(is_conflicting | (F.col("verdict") == _DELETED)).select(
        F.lit(entity).alias("entity"),
        key.alias("key"),
        F.col("verdict").alias("kind"),
        F.when(~is_conflicting, F.col("sequence_no")).alias("sequence_no"),
        F.when(~is_conflicting, known_at).alias("known_at"),
        "source",
        "batch_id",
    )
    # Of conflicting rows any will do to remember the key; the least, so that it is always the same.
    return (
        withheld.groupBy("entity", "key", "kind", "sequence_no", "known_at")
        .agg(F.min(F.struct("source", "batch_id")).alias("origin"))
        .select("entity", "key", "kind", "sequence_no", "known_at", "origin.source", "origin.batch_id")
    )


def keep_other_keys(withheld: DataFrame, contested: DataFrame, table: Table) -> DataFrame:
    """The withheld keys that are not contested."""
    return (
        _unpack_keys(withheld, table).join(contested, list(table.key), "left_anti").select(*WITHHELD_KEYS.column_names)
    )


def _near(standing: Standing, keys: DataFrame) -> Standing:
    """What stands within the range of some keys: files wholly outside it need not be read."""
    first = keys.columns[0]
    ((low, high),) = keys.agg(F.min(first), F.max(first)).collect()
    return replace(standing, clean=standing.clean.where(F.col(first).between(F.lit(low), F.lit(high))))


def _standing_keys(standing: Standing, table: Table) -> DataFrame:
    return standing.clean.select(*table.key).union(_unpack_keys(standing.withheld, table).select(*table.key))


def _unpack_keys(withheld: DataFrame, table: Table) -> DataFrame:
    types = {column.name: column.type for column in table.columns}
    parts = F.from_json("key", ", ".join(f"{name} {types[name]}" for name in table.key))
    return withheld.withColumns({name: parts[name] for name in table.key})
