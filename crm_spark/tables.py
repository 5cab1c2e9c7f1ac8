"""Tables are declared once, as values; validation, Delta constraints and the documentation follow from them."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, reduce
from typing import cast

import pyarrow as pa
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from crm_spark.checks import Check, is_broken
from crm_spark.errors import ContractError

# Fewer values are looked at in one task and one scan, sooner than tasks could exchange what they found.
_MANY_VALUES = 2_000_000


@dataclass(frozen=True)
class Column:
    """A column of a declared table.

    `type` is Spark's simple type string (`bigint`, `decimal(18,4)`, ...). `personal` marks data about a person
    that erasure and masking must touch. `volatile` marks what differs between equal runs (ingest times, run
    ids), which content hashes leave out.
    """

    name: str
    type: str
    comment: str
    nullable: bool = False
    personal: bool = False
    volatile: bool = False


@dataclass(frozen=True)
class Table:
    """A declared table. `comment` says what one row is; `key` names the columns that identify it."""

    name: str
    comment: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    checks: tuple[Check, ...] = ()

    @property
    def column_names(self) -> list[str]:
        return [column.name for column in self.columns]

    @property
    def declaration_hash(self) -> str:
        """Changes whenever anything that readers of the table can rely on changes."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def declared_rows(spark: SparkSession, table: Table, rows: Iterable[Sequence[object]]) -> DataFrame:
    """A few rows from the driver as a declared table, values in the order of its columns."""
    return local_rows(spark, ", ".join(f"{column.name} {column.type}" for column in table.columns), rows)


def local_rows(spark: SparkSession, schema: str | StructType, rows: Iterable[Sequence[object]]) -> DataFrame:
    """A few rows from the driver; by way of Arrow, which needs no Python worker."""
    declared = _parsed(schema) if isinstance(schema, str) else schema
    arrow_schema = to_arrow_schema(declared, timezone="UTC")
    values = [dict(zip(declared.names, row, strict=True)) for row in rows]
    return spark.createDataFrame(pa.Table.from_pylist(values, schema=arrow_schema), schema=declared)


@cache
def _parsed(schema: str) -> StructType:
    return cast(StructType, StructType.fromDDL(schema))


def union_of(frames: Iterable[DataFrame]) -> DataFrame:
    """The rows of all frames, which have the same columns."""
    return reduce(DataFrame.unionByName, frames)


# Spark's names of what a value can be wrong in, and what Sail says instead where it has no such names.
_VALUE_ERRORS = {
    "CAST_INVALID_INPUT": "Cast error: Cannot cast ",
    "CAST_OVERFLOW": "Cast error: Can't cast ",
    "ARITHMETIC_OVERFLOW": "is too large to store in a Decimal",
}


@contextmanager
def value_errors(name: str) -> Iterator[None]:
    """A value that an expression cannot take ends in one line, which names the table and does not show the value.

    Raises:
        ContractError: in place of the engine's error, whose text has the value.
    """
    try:
        yield
    except (PySparkException, Py4JJavaError) as error:  # Spark knows only some of Delta's errors
        for condition, sails_text in _VALUE_ERRORS.items():
            if f"[{condition}]" in str(error) or sails_text in str(error):
                raise ContractError(
                    f"{name}: {condition} in some rows; where a mapping or a rule compares or computes with text, "
                    "write cast(column as type), which gives NULL for what cannot be read"
                ) from None
        raise


def conform(rows: DataFrame, table: Table) -> DataFrame:
    """The same rows with the declared columns in the declared order.

    Raises:
        ContractError: if columns are missing, unexpected, or of another type; all differences at once.
    """
    differences = schema_differences(dict(rows.dtypes), table)
    if differences:
        raise ContractError(f"{table.name}: rows do not match the declared table: {'; '.join(differences)}")
    return rows.select(*table.column_names)


def schema_differences(found: dict[str, str], table: Table) -> list[str]:
    """What distinguishes columns `found` (name to simple type) from the declaration, one text a column."""
    declared = {column.name: column.type for column in table.columns}
    return (
        [f"column {name} is missing (expected {declared[name]})" for name in declared if name not in found]
        + [f"column {name} is not declared (found {found[name]})" for name in found if name not in declared]
        + [
            f"column {name}: found {found[name]}, expected {declared[name]}"
            for name in declared
            if name in found and found[name] != declared[name]
        ]
    )


@dataclass(frozen=True)
class Summary:
    """What one scan tells of a stored table: its size, its content and what in it breaks the declaration."""

    row_count: int
    hash_sum: int
    violations: tuple[str, ...]

    @property
    def content_hash(self) -> str:
        return f"{self.row_count}:{self.hash_sum}"


def shifted_hash(content_hash: str, came: Summary, went: Summary) -> str:
    """The content hash of a table after some of its rows came and others went."""
    row_count, hash_sum = map(int, content_hash.split(":"))
    return f"{row_count + came.row_count - went.row_count}:{hash_sum + came.hash_sum - went.hash_sum}"


def summarise(rows: DataFrame, table: Table, about_count: int = 0) -> Summary:
    """Count and hash the rows, some `about_count`, and check them against the declaration.

    The content hash is the row count and the sum of `xxhash64` over the non-volatile columns and over which of
    them are NULL: it does not depend on the order of rows or on how they are partitioned.
    """
    nulls = {f"{c.name} is NULL": F.col(c.name).isNull() for c in table.columns if not c.nullable}
    broken = {f"{c.name} is broken ({c.must_hold})": is_broken(c) for c in table.checks}
    faults = nulls | broken
    lasting = [column for column in table.columns if not column.volatile]
    # xxhash64 passes over NULL, so a value that moved to a column beside it would not show.
    is_null = (F.col(column.name).isNull() for column in lasting if column.nullable)
    hash_ = F.xxhash64(*(F.col(column.name) for column in lasting), *is_null)
    key_hash = F.xxhash64(*(F.col(name) for name in table.key))
    measures = [F.count("*"), *(F.sum(part) for part in _hash_parts(hash_))]
    measures += [F.count_if(fault) for fault in faults.values()]
    if about_count * len(table.columns) >= _MANY_VALUES:  # in one scan, all measures would be kept for every key
        hashed = rows.select(key_hash.alias("key_hash")).repartition("key_hash")
        measured = [*_measure(rows, measures), *_measure(hashed, [F.count_distinct("key_hash")])]
    else:
        measured = _measure(rows.coalesce(1), [*measures, F.count_distinct(key_hash)])
    row_count, low, middle, high, *fault_counts, keys = measured
    violations = [f"{count} rows: {fault}" for fault, count in zip(faults, fault_counts, strict=True) if count]
    # Hashes of keys are cheaper to compare than keys, and in rare cases equal for two of them.
    if keys < row_count and (repeated := rows.groupBy(*table.key).count().where("count > 1").count()):
        violations.append(f"{repeated} keys ({', '.join(table.key)}) stand more than once")
    return Summary(row_count, low + (middle << 21) + (high << 42), tuple(violations))


def content_of(rows: DataFrame) -> list[int]:
    """How many rows there are, and numbers that differ where they do, over all columns and in whatever order."""
    hash_ = F.xxhash64(*(F.col(name) for name in rows.columns), *(F.col(name).isNull() for name in rows.columns))
    return _measure(rows, [F.count("*"), *(F.sum(part) for part in _hash_parts(hash_))])


def _measure(rows: DataFrame, measures: Sequence[SparkColumn]) -> list[int]:
    (measured,) = rows.agg(*(measure.alias(f"m{index}") for index, measure in enumerate(measures))).collect()
    return [value or 0 for value in measured]


def _hash_parts(hash_: SparkColumn) -> list[SparkColumn]:
    """64 bits as three numbers small enough that their sums stay exact in 64 bits, for trillions of rows."""
    part = F.lit((1 << 21) - 1).cast("bigint")
    return [hash_.bitwiseAND(part), F.shiftright(hash_, 21).bitwiseAND(part), F.shiftright(hash_, 42)]


def data_dictionary(layers: Iterable[tuple[str, Iterable[Table]]]) -> str:
    """The documentation of all tables in Markdown, from their declarations."""
    lines = ["# Data dictionary", "", "Made by `crm-spark dictionary` from the declarations in the code.", ""]
    for layer, tables in layers:
        lines += [f"## {layer}", ""]
        for table in tables:
            lines += [f"### {table.name}", "", f"{table.comment} Key: {', '.join(table.key)}.", ""]
            lines += ["| column | type | NULL | meaning |", "|---|---|---|---|"]
            for column in table.columns:
                marks = (" *Personal.*" if column.personal else "") + (" *Volatile.*" if column.volatile else "")
                null = "yes" if column.nullable else "no"
                lines.append(f"| {column.name} | {column.type} | {null} | {column.comment}{marks} |")
            lines.append("")
            lines += [f"- `{check.name}`: `{check.must_hold}`" for check in table.checks]
            lines += [""] if table.checks else []
    return "\n".join(lines)
