"""Delta tables as they lie: their files, their rows, and the SQL that declares one."""

import json
import re
from collections.abc import Sequence
from typing import Any, cast

import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from crm_spark.tables import Table, local_rows

# A publication may show a version that is older than any retention, where a table has not changed since. Spark would
# refuse to read it, and other engines would clean its log or its files away: only `maintain` knows what is needed.
KEPT_FOREVER = {
    "delta.enableExpiredLogCleanup": "false",
    "delta.deletedFileRetentionDuration": "interval 36500 days",
    "delta.logRetentionDuration": "interval 36500 days",
}
# Every reader that analysts use knows reader version 1; each of these would raise it or mislead one of them.
READ_BY_ALL = {
    "delta.enableDeletionVectors": "false",
    "delta.columnMapping.mode": "none",
    "delta.checkpointPolicy": "classic",
    "delta.enableTypeWidening": "false",
}

# To read a table, Spark first runs three jobs over its log, whatever its size. So few files are named to it instead,
# which hold the rows as they are: at reader version 1 no file has deleted rows or other names of columns.
_FEW_FILES = 32


def read_version(spark: SparkSession, path: str, version: int) -> DataFrame:
    """The rows of one version of a Delta table, whoever wrote it."""
    return spark.read.format("delta").option("versionAsOf", version).load(path)


def read_rows(spark: SparkSession, path: str, version: int) -> DataFrame:
    """The rows of one version of a table as the lake writes it, the quickest way."""
    stored = DeltaTable(path, version=version)
    names = file_names(stored)
    if len(names) > _FEW_FILES or not _can_be_named(path, stored, names):
        return read_version(spark, path, version)
    return read_files(spark, path, stored, names)


def read_files(spark: SparkSession, path: str, stored: DeltaTable, names: Sequence[str]) -> DataFrame:
    """The rows of some files of a version, by their names."""
    schema = StructType.fromJson(json.loads(stored.schema().to_json()))
    if not names:
        return local_rows(spark, schema, [])
    if not _can_be_named(path, stored, names):
        last_parts = [name.rsplit("/", 1)[-1] for name in names]
        return read_version(spark, path, stored.version()).where(F.col("_metadata.file_name").isin(last_parts))
    return spark.read.schema(types_of(schema)).parquet(*(f"{path}/{name}" for name in names))


def types_of(schema: StructType) -> str:
    """A schema's names and types alone: told more of nested fields, such as metadata, Sail fails to read them."""
    return ", ".join(f"{quoted(field.name)} {field.dataType.simpleString()}" for field in schema)


def file_names(stored: DeltaTable) -> list[str]:
    """The names of a version's files, relative to the table."""
    return cast(list[str], stored.get_add_actions()["path"].to_pylist())


def _can_be_named(path: str, stored: DeltaTable, names: Sequence[str]) -> bool:
    """Whether Spark reads a table's rows from its files by their names, without a look at its log."""
    holds_rows_as_they_are = stored.protocol().min_reader_version == 1 and not stored.metadata().partition_columns
    return holds_rows_as_they_are and not _is_pattern(path) and not any("/" in name for name in names)


def answer(sql: str, name: str, table: DeltaTable) -> list[dict[str, Any]]:
    """The few rows that SQL (DataFusion's) finds in a table, under a name."""
    # Not by way of pyarrow's datasets: their threads now and then abort the process when it ends.
    rows = QueryBuilder().register(name, table).execute(sql).read_all()
    return cast(list[dict[str, Any]], pa.table(rows).to_pylist())


def declaration_sql(table: Table, *, refuses_nulls: bool) -> str:
    """What follows a table's name in the SQL that creates or replaces it.

    Unless it `refuses_nulls`, no column is NOT NULL, whatever is declared.
    """
    required = {c.name for c in table.columns if refuses_nulls and not c.nullable}
    columns = ", ".join(
        f"{quoted(c.name)} {c.type}{' NOT NULL' if c.name in required else ''} COMMENT {literal(c.comment)}"
        for c in table.columns
    )
    properties = READ_BY_ALL | KEPT_FOREVER
    properties |= {f"delta.constraints.{check.name}": check.must_hold for check in table.checks}
    # Statistics on what readers prune by; personal values would stay in the log after their rows were erased.
    properties["delta.dataSkippingStatsColumns"] = ",".join(
        quoted(c.name)
        for c in table.columns
        if not c.personal and (c.name in table.key or c.type in ("date", "timestamp"))
    )
    listed = ", ".join(f"{literal(key)} = {literal(value)}" for key, value in sorted(properties.items()))
    return f"({columns}) USING delta COMMENT {literal(table.comment)} TBLPROPERTIES ({listed})"


def quoted(identifier: str) -> str:
    """An identifier as Spark SQL reads it literally."""
    return "`" + identifier.replace("`", "``") + "`"


def literal(value: str) -> str:
    """A text as a literal of Spark SQL."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _is_pattern(uri: str) -> bool:
    """Whether Spark takes the name of a file below for a pattern (or, because of a colon, for no path at all)."""
    return re.search(r"[\\\[\]{}*?:]", uri.split("://")[-1]) is not None
