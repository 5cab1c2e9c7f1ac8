"""Tables of PostgreSQL: their columns and rows, asked for through JDBC, and what a database refuses, in one line."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from functools import reduce
from itertools import pairwise
from typing import Any, cast

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from crm_spark.config import Source
from crm_spark.errors import ConfigError, CrmSparkError, SourceError

# A value of a column that grows, or by which the reading of a table is shared.
Place = datetime | Decimal

_DRIVER = "org.postgresql.Driver"
_DRIVER_PACKAGE = "org.postgresql:postgresql:42.7.4"
_FETCHED_ROWS = 10_000
_ZONELESS = "timestamp without time zone"
_TIMES = (_ZONELESS, "timestamp with time zone")
# A time without a zone may be one of another than UTC.
_ZONES_APART = timedelta(days=1)
_NUMBERS = ("smallint", "integer", "bigint", "numeric")
# What Spark reads as it is, whatever the time zone of its Java. All else comes as the database's text of it.
_READ_AS_IT_IS = (
    *_NUMBERS, "real", "double precision", "boolean", "text", "character varying", "character", "bytea", "date",
    "timestamp with time zone",
)  # fmt: skip
# Of tables and views alike; a domain is what it is made of.
_COLUMNS_OF = """\
SELECT a.attname::text AS name, format_type(coalesce(nullif(t.typbasetype, 0), a.atttypid), NULL) AS kind, a.attnum
FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = {table}::regclass AND a.attnum > 0 AND NOT a.attisdropped"""


@dataclass(frozen=True)
class DatabaseTable:
    """The table of a source, and the types of its columns as the database names them."""

    spark: SparkSession
    name: str
    source: Source
    kinds: Mapping[str, str]

    def read(self, conditions: Sequence[str] = ("TRUE",), limit: int | None = None) -> DataFrame:
        """Its rows under each of some conditions, which ask through connections of their own."""
        columns = ", ".join(f"{_read_as(column, kind)} AS {_quoted(column)}" for column, kind in self.kinds.items())
        return reduce(DataFrame.union, (self._select(columns, condition, limit) for condition in conditions))

    def newest_watermark(self, column: str, run_at: datetime) -> Place | None:
        """The greatest watermark; None if no row has one.

        Raises:
            SourceError: if no later one can exceed it, or for years none will.
        """
        ((text,),) = self._select(f"max({_quoted(column)})::text AS newest").collect()
        newest = self._parse_place(text, column)
        if newest is None and text is not None:
            raise SourceError(
                f"sources.{self.name}.watermark: found {text} as the greatest {column}, expected a time or a number "
                "that later ones exceed; mend its row"
            )
        if isinstance(newest, datetime) and newest > run_at + _ZONES_APART:
            raise SourceError(
                f"sources.{self.name}.watermark: found {text} as the greatest {column}, expected none later than now: "
                "rows that change until then would not be asked for; mend its row"
            )
        return newest

    def next_begin(self, column: str, reached: str | None, newest: Place) -> Place | None:
        """From which watermark on rows may be new, if an extract reached one.

        None: all may be, as there was no extract, or the database was set back to before it.
        """
        last = self._parse_place(reached, column)
        if isinstance(last, datetime) and isinstance(newest, datetime) and last <= newest:
            return last - timedelta(minutes=self.source.overlap)
        if isinstance(last, Decimal) and isinstance(newest, Decimal) and last <= newest:
            return last - self.source.overlap
        return None

    def window(self, column: str, begin: Place | None, newest: Place) -> str:
        """The condition of watermarks from one up to another; rows without any are always meant, too."""
        from_begin = "" if begin is None else f" AND {_quoted(column)} >= {_literal(begin)}"
        return f"({_quoted(column)} <= {_literal(newest)}{from_begin} OR {_quoted(column)} IS NULL)"

    def split(self, condition: str) -> tuple[list[str], int]:
        """Conditions that part the rows of one for as many connections, and how many rows these are."""
        by, count = self.source.partition_by, self.source.partitions
        ends = (
            f"min({_quoted(by)})::text AS low, max({_quoted(by)})::text AS high" if by else "NULL AS low, NULL AS high"
        )
        ((row_count, *texts),) = self._select(f"count(*) AS row_count, {ends}", condition).collect()
        low, high = (self._parse_place(text, by) if by else None for text in texts)
        if by is None or low is None or high is None:
            return [condition], row_count
        column, cuts = _quoted(by), [_literal(place) for place in _cuts(low, high, count)]
        parts = [
            f"({column} < {cuts[0]} OR {column} IS NULL)",
            *(f"{column} >= {left} AND {column} < {right}" for left, right in pairwise(cuts)),
            f"{column} >= {cuts[-1]}",
        ]
        return [f"{condition} AND {part}" for part in parts], row_count

    def _parse_place(self, text: str | None, column: str) -> Place | None:
        """The time or number that a database's text of a column's value says; None if it is infinite or none."""
        try:
            if text is None:
                return None
            if self.kinds[column] in _TIMES:
                time = datetime.fromisoformat(text)
                return time if time.tzinfo else time.replace(tzinfo=UTC)
            number = Decimal(text)
        except (ValueError, InvalidOperation):
            return None
        return number if number.is_finite() else None

    def _select(self, columns: str, condition: str = "TRUE", limit: int | None = None) -> DataFrame:
        query = f"SELECT {columns} FROM {_quoted_table(self.source)} WHERE {condition}"  # noqa: S608 (quoted)
        return _ask(self.spark, self.name, self.source, query if limit is None else f"{query} LIMIT {limit}")


def open_table(spark: SparkSession, name: str, source: Source) -> DatabaseTable:
    """Look at a source's table.

    Raises:
        SourceError: if its columns are not as the configuration needs them.
    """
    rows = _ask(spark, name, source, _COLUMNS_OF.format(table=_literal(_quoted_table(source)))).collect()
    kinds = {row["name"]: row["kind"] for row in sorted(rows, key=lambda row: row["attnum"])}
    if len({column.lower() for column in kinds}) < len(kinds):
        raise SourceError(
            f"sources.{name}.table: found columns whose names differ only by case, expected one spelling; "
            "name a view that has it"
        )
    for key in ("watermark", "partition_by"):
        column = getattr(source, key)
        if column is None:
            continue
        if column not in kinds:
            listed = ", ".join(sorted(kinds))
            raise SourceError(f"sources.{name}.{key}: found no column {column}, expected one of the table's: {listed}")
        if kinds[column] not in (*_TIMES, *_NUMBERS):
            raise SourceError(
                f"sources.{name}.{key}: found {column} of type {kinds[column]}, expected a timestamp, integer "
                "or numeric"
            )
    return DatabaseTable(spark, name, source, kinds)


@contextmanager
def database_errors(name: str, source: Source) -> Iterator[None]:
    """What a database refuses, as an error of one line."""
    try:
        yield
    except (PySparkException, Py4JJavaError) as error:
        told = next((told for cause in _causes(error) if (told := _explain(name, source, cause))), None)
        if told is None:
            raise
        raise told from None


def _literal(value: Place | str) -> str:
    """A value as SQL; the database takes it for the type of the column beside it."""
    text = value.isoformat(" ") if isinstance(value, datetime) else str(value)
    return "'" + text.replace("'", "''") + "'"


def _ask(spark: SparkSession, name: str, source: Source, query: str) -> DataFrame:
    options: dict[str, str | int] = {
        "url": source.url,
        "driver": _DRIVER,
        "query": query,
        "user": _secret(name, "user_from", source.user_from),
        "fetchsize": _FETCHED_ROWS,
        "readOnly": "true",
        "sessionInitStatement": "SET TIME ZONE 'UTC'",
        "ApplicationName": "crm_spark",
    }
    if source.password_from is not None:
        options["password"] = _secret(name, "password_from", source.password_from)
    return spark.read.format("jdbc").options(**options).load()


def _secret(name: str, key: str, variable: str | None) -> str:
    value = os.environ.get(str(variable))
    if value is None:
        raise ConfigError(f"sources.{name}.{key}: found no environment variable {variable}, expected one; set it")
    return value


def _read_as(column: str, kind: str) -> str:
    if kind == _ZONELESS:
        return f"{_quoted(column)} AT TIME ZONE 'UTC'"
    return _quoted(column) if kind in _READ_AS_IT_IS else f"{_quoted(column)}::text"


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def _quoted_table(source: Source) -> str:
    return ".".join(_quoted(part) for part in str(source.table).split("."))


def _cuts(low: Place, high: Place, count: int) -> list[Place]:
    """Where to cut what lies between two values into so many parts of about equal length."""
    if isinstance(low, datetime) and isinstance(high, datetime):
        return [low + (high - low) * part / count for part in range(1, count)]
    first, last = int(cast(Decimal, low)), int(cast(Decimal, high))
    return [Decimal(first + (last - first) * part // count) for part in range(1, count)]


def _causes(error: Any) -> Iterator[Any]:
    cause = error.java_exception if isinstance(error, Py4JJavaError) else getattr(error, "_origin", None)
    while cause is not None:
        yield cause
        cause = cause.getCause()


def _explain(name: str, source: Source, cause: Any) -> CrmSparkError | None:
    """What an exception of Java says about a database, without a value of a row or what signs in."""
    where, address = f"sources.{name}", source.url.partition("?")[0]
    kind, message = cause.getClass().getName(), (cause.getMessage() or "").partition("\n")[0]
    if kind == "java.lang.ClassNotFoundException" and message == _DRIVER:
        return SourceError(
            f"{where}: found no JDBC driver of PostgreSQL; give spark-submit --packages {_DRIVER_PACKAGE}"
        )
    if kind == "org.apache.spark.SparkArithmeticException" or message.startswith("Bad value for type BigDecimal"):
        return SourceError(
            f"{where}: found a number that Spark's decimal(38,18) cannot hold, as which numeric without a precision is "
            "read; name a view that casts it"
        )
    if kind != "org.postgresql.util.PSQLException":
        return None
    state = cause.getSQLState() or ""
    if state.startswith("28"):
        variables = " and ".join(filter(None, (source.user_from, source.password_from)))
        return SourceError(f"{where}: {address} refuses the user or the password; see what {variables} hold")
    if state.startswith("08"):
        return SourceError(f"{where}.url: found no PostgreSQL that answers at {address}: {message}")
    if state in ("42P01", "3F000"):
        return SourceError(
            f"{where}.table: found no table {source.table} at {address}, expected one, named with its schema as it "
            "is stored, such as public.orders"
        )
    if state.startswith("22"):  # what is said of a value may show it
        message = "a value cannot be read"
    return SourceError(f"{where}: {address} answers {message} (SQLSTATE {state})")
