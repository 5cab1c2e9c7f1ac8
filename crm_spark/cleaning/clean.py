"""Cleaning: parse leniently, judge each row by itself, settle rows with the same key, lose nothing."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

from pyspark.errors import AnalysisException
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from crm_spark.checks import broken_names, is_broken
from crm_spark.cleaning.expressions import parse_expression
from crm_spark.cleaning.tables import CLEAN, CLEANING_ACCOUNT, REJECTED
from crm_spark.config import Source
from crm_spark.errors import ConfigError, SourceError
from crm_spark.lake import quoted
from crm_spark.sources.landing import LandedFile
from crm_spark.tables import Table, conform, declared_rows, local_rows

# A name that no file uses: `_corrupt_record`, the usual one, may be a column of a file.
_CORRUPT = "_crm_spark_unreadable_row"
_SHA256_DIGITS = 64
_SEQUENCE = "decimal(38,6)"


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
        _judge(read_landed(spark, source, files, lake_uri), name, source, files, table, currency)
        for name, source in sources.items()
        if source.entity == entity and (files := _files_with_rows(name, landed))
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
    contested, has_bad = _survey(judged, table)
    if contested is None:
        rejected = _build_rejected(bad, REJECTED[entity]) if has_bad else nothing.rejected
        return Cleaned(conform(good, table), rejected, nothing.left_out)
    key = list(table.key)
    settled = _settle(
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


def _survey(judged: Sequence[DataFrame], table: Table) -> tuple[DataFrame | None, bool]:
    """The keys that several good rows have or that one deletes (None: no such key), and whether any row is bad."""
    is_contested = F.col("good_count") + F.col("deletion_count") > 1
    noted = (
        _union(rows.select(*table.key, "is_good", "is_deletion") for rows in judged)
        .groupBy(*table.key)
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


def read_landed(spark: SparkSession, source: Source, files: Sequence[LandedFile], lake_uri: str) -> DataFrame:
    """The rows of landed files as the reader gives them, with `_batch_id` beside them.

    CSV and JSON come as text; rows that the reader cannot split into fields keep their text in
    a column of its own, NULL in all others.
    """
    paths = [f"{lake_uri}/{file.landed_path}" for file in files]
    reader = spark.read
    if source.format == "parquet":
        if len(files) > 1:
            _common_header(
                {file.file_name: _typed(reader.parquet(path)) for file, path in zip(files, paths, strict=True)}
            )
        rows = reader.parquet(*paths).withColumn(_CORRUPT, F.lit(None).cast("string"))
    elif source.format == "json":
        options = reader.option("primitivesAsString", True).option("columnNameOfCorruptRecord", _CORRUPT)
        try:
            rows = options.json(paths)
        except AnalysisException as error:
            if error.getCondition() != "COLUMN_ALREADY_EXISTS":
                raise
            raise SourceError(
                f"sources.{files[0].source}: found fields whose names differ only by case, expected one spelling"
            ) from None
        if _CORRUPT not in rows.columns:
            rows = rows.withColumn(_CORRUPT, F.lit(None).cast("string"))
    else:
        options = reader.options(
            header=True, sep=source.delimiter, quote=source.quote, escape=source.quote, encoding=source.encoding
        )
        header = _common_header(
            {file.file_name: options.csv(path).columns for file, path in zip(files, paths, strict=True)}
        )
        fields = ", ".join(f"{quoted(name)} string" for name in [*header, _CORRUPT])
        rows = options.options(multiLine=True, columnNameOfCorruptRecord=_CORRUPT).csv(paths, schema=fields)
    return rows.withColumn("_batch_id", F.substring("_metadata.file_name", 1, _SHA256_DIGITS))


def _files_with_rows(source: str, landed: Sequence[LandedFile]) -> list[LandedFile]:
    """The files of a source but those of no bytes, which have not even a header."""
    return [file for file in landed if file.source == source and file.byte_count > 0]


def _typed(rows: DataFrame) -> list[str]:
    return [f"{name} {kind}" for name, kind in rows.dtypes]


def _common_header(headers: Mapping[str, list[str]]) -> list[str]:
    """The columns that all files of a source share: Spark would read later files as if they were like the first."""
    (first_name, first), *others = headers.items()
    for name, header in others:
        if header != first:
            found, expected = ", ".join(header), ", ".join(first)
            raise SourceError(f"file {name}: found the columns {found}; expected those of {first_name}: {expected}")
    return first


def count_landed(
    spark: SparkSession, sources: Mapping[str, Source], landed: Sequence[LandedFile], lake_uri: str
) -> DataFrame:
    """Rows: one per landed file with the number of rows that its reader finds (source, batch_id, read_count)."""
    counts = [
        read_landed(spark, source, files, lake_uri)
        .groupBy(F.lit(name).alias("source"), F.col("_batch_id").alias("batch_id"))
        .agg(F.count("*").alias("read_count"))
        for name, source in sources.items()
        if (files := _files_with_rows(name, landed))
    ]
    return _union([local_rows(spark, "source string, batch_id string, read_count bigint", []), *counts])


def _judge(
    raw: DataFrame,
    name: str,
    source: Source,
    files: Sequence[LandedFile],
    table: Table,
    currency: str,
) -> DataFrame:
    """The canonical columns of every row, its place in the sequence of versions, and whether it is good or why not.

    These are `sequence_no`, `is_deletion`, `is_good` and `reasons`. A deletion needs only its key and its place.
    """
    file_columns = [column for column in raw.columns if column not in (_CORRUPT, "_batch_id")]
    mapped = _parse_mapping(name, source, file_columns, table)
    ingested_at = F.element_at(
        F.create_map(*(F.lit(part) for file in files for part in (file.batch_id, file.ingested_at))),
        F.col("_batch_id"),
    )
    defaults = {
        "known_at": ingested_at,
        "currency": F.lit(currency),
        "source": F.lit(name),
        "batch_id": F.col("_batch_id"),
    }
    values = {
        column.name: mapped.get(column.name, defaults.get(column.name, F.lit(None).cast(column.type)))
        for column in table.columns
    }
    # A file may be one piece that cannot be split: all cores shall work on its rows.
    spread = raw.repartition(*(values[name] for name in table.key))
    with_values = spread.select(
        *(value.alias(f"raw_{column}") for column, value in values.items()),
        _sequence_no(spread, name, source, file_columns).alias("sequence_no"),
        _is_deletion(spread, name, source, file_columns).alias("is_deletion"),
        F.struct(*map(quoted, file_columns)).alias("raw_row"),
        F.col(_CORRUPT).alias("corrupt_text"),
        F.col(_CORRUPT).isNotNull().alias("is_corrupt"),
        _has_replaced_bytes(raw).alias("has_replaced_bytes"),
    )
    raw_types = {name.removeprefix("raw_"): kind for name, kind in with_values.dtypes}
    typed = with_values.withColumns({c.name: F.col(f"raw_{c.name}").try_cast(c.type) for c in table.columns})
    of_row = {"row_not_readable": F.col("is_corrupt"), "text_not_in_encoding": F.col("has_replaced_bytes")}
    of_content: dict[str, SparkColumn] = {}
    if source.sequence_by:
        of_row["sequence_missing"] = F.col("sequence_no").isNull()
    for column in table.columns:
        raw_value, value = F.col(f"raw_{column.name}"), F.col(column.name)
        broken = of_row if column.name in table.key else of_content
        if column.type not in ("string", raw_types[column.name]):
            broken[f"{column.name}_not_{column.type.partition('(')[0]}"] = raw_value.isNotNull() & value.isNull()
        if not column.nullable:
            broken[f"{column.name}_missing"] = raw_value.isNull()
    if "currency" in table.column_names:
        of_content["currency_not_reporting"] = ~F.col("currency").eqNullSafe(currency)
    of_content |= {check.name: is_broken(check) for check in table.checks}
    rules = of_row | {rule: is_broken_ & ~F.col("is_deletion") for rule, is_broken_ in of_content.items()}
    return typed.withColumns({"is_good": ~reduce(or_, rules.values()), "reasons": broken_names(rules)})


def _has_replaced_bytes(raw: DataFrame) -> SparkColumn:
    """Whether a text had bytes that are none of its encoding: the reader puts a mark in their place."""
    texts = [quoted(name) for name, kind in raw.dtypes if kind == "string" and name != "_batch_id"]
    return F.contains(F.concat_ws("", *texts), F.lit("\N{REPLACEMENT CHARACTER}"))


def _sequence_no(raw: DataFrame, name: str, source: Source, file_columns: Sequence[str]) -> SparkColumn:
    """Newer rows have greater numbers: times in microseconds, numbers as they are."""
    if source.sequence_by is None:
        return F.lit(None).cast(_SEQUENCE)
    where = f"sources.{name}.sequence_by"
    value = F.expr(parse_expression(source.sequence_by, file_columns, where))
    ((_, kind),) = raw.select(value).dtypes
    if kind in ("date", "timestamp", "timestamp_ntz"):
        return F.unix_micros(value.cast("timestamp")).cast(_SEQUENCE)
    if kind in ("tinyint", "smallint", "int", "bigint") or kind.startswith("decimal"):
        return value.try_cast(_SEQUENCE)
    raise ConfigError(f"{where}: found a {kind}, expected a time or a number: cast(column as timestamp or bigint)")


def _is_deletion(raw: DataFrame, name: str, source: Source, file_columns: Sequence[str]) -> SparkColumn:
    if source.is_deletion is None:
        return F.lit(False)
    where = f"sources.{name}.is_deletion"
    value = F.expr(parse_expression(source.is_deletion, file_columns, where))
    ((_, kind),) = raw.select(value).dtypes
    if kind != "boolean":
        raise ConfigError(f"{where}: found a {kind}, expected a condition such as operation = 'D'")
    return F.coalesce(value, F.lit(False))


def _with_text(judged: DataFrame, table: Table) -> DataFrame:
    """The text of the rows as they came, beside their canonical columns and reasons."""
    return judged.select(
        *table.column_names,
        "sequence_no",
        "is_deletion",
        "reasons",
        F.coalesce("corrupt_text", F.to_json("raw_row")).alias("row_text"),
    )


def _parse_mapping(name: str, source: Source, file_columns: Sequence[str], table: Table) -> dict[str, SparkColumn]:
    provenance = {"source", "batch_id"}
    mappable = [column for column in table.column_names if column not in provenance]
    unknown = sorted(set(source.columns) - set(mappable))
    if unknown:
        raise ConfigError(
            f"sources.{name}.columns.{unknown[0]}: found an unknown column of {source.entity}, expected one of: "
            + ", ".join(mappable)
        )
    missing = [c.name for c in table.columns if not c.nullable and c.name not in {*source.columns, *provenance}]
    if missing:
        raise ConfigError(f"sources.{name}.columns.{missing[0]}: found nothing, expected an expression")
    return {
        column: F.expr(parse_expression(text, file_columns, f"sources.{name}.columns.{column}"))
        for column, text in source.columns.items()
    }


def _settle(contested: DataFrame, table: Table) -> DataFrame:
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
