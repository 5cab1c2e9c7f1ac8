"""Mapping expressions: text of a configuration that becomes SQL only if every part of it is on a list.

`F.expr` executes whatever function a text names, `java_method` and subqueries included. So an expression is
parsed, every node of it is compared with what is allowed here, and the SQL is written anew from the tree. Only
deterministic functions are listed, and what could end the job on a bad row becomes its lenient twin: `cast` is
written as `try_cast`, arithmetic as `try_add` and so on.
"""

from collections.abc import Callable, Iterable
from typing import ClassVar

import sqlglot
from sqlglot import exp
from sqlglot.dialects.spark import Spark
from sqlglot.errors import SqlglotError
from sqlglot.generators.spark import SparkGenerator

from crm_spark.errors import ConfigError

_FUNCTIONS: dict[str, type[exp.Expression]] = {
    "abs": exp.Abs, "coalesce": exp.Coalesce, "concat": exp.Concat, "concat_ws": exp.ConcatWs,
    "date_add": exp.TsOrDsAdd, "date_trunc": exp.TimestampTrunc, "greatest": exp.Greatest, "if": exp.If,
    "initcap": exp.Initcap, "least": exp.Least, "length": exp.Length, "lower": exp.Lower, "lpad": exp.Pad,
    "md5": exp.MD5, "nullif": exp.Nullif, "regexp_extract": exp.RegexpExtract,
    "regexp_replace": exp.RegexpReplace, "round": exp.Round, "sha2": exp.SHA2, "split_part": exp.SplitPart,
    "substring": exp.Substring, "to_utc_timestamp": exp.FromTimeZone, "trim": exp.Trim,
    "try_divide": exp.SafeDivide, "upper": exp.Upper,
}  # fmt: skip
# Functions that sqlglot knows by name alone.
_NAMED_FUNCTIONS = frozenset({"timestamp_millis", "timestamp_micros", "timestamp_seconds", "try_to_timestamp"})
_SYNTAX: tuple[type[exp.Expression], ...] = (
    exp.Column, exp.Identifier, exp.Literal, exp.Null, exp.Boolean, exp.Paren, exp.Neg, exp.Var,
    exp.Cast, exp.TryCast, exp.DataType, exp.DataTypeParam,
    exp.Case, exp.Is, exp.In, exp.Between, exp.Like, exp.And, exp.Or, exp.Not,
    exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.NullSafeEQ,
    exp.Add, exp.Sub, exp.Mul, exp.Div, exp.IntDiv, exp.Mod, exp.DPipe,
)  # fmt: skip
_ALLOWED = frozenset({*_SYNTAX, *_FUNCTIONS.values()})


# What Spark itself would cast, and end the job on a text that it cannot.
_IMPLIED_CASTS: dict[type[exp.Expression], exp.DType] = {
    exp.TimestampTrunc: exp.DType.TIMESTAMP,
    exp.TsOrDsAdd: exp.DType.DATE,
}

# To a time without a day, Spark would add the day on which it runs.
_TIME_ALONE = r"'^\\s*T?\\d{1,2}:'"


def _cast(generator: SparkGenerator, node: exp.Expression) -> str:
    value, to = generator.sql(node, "this"), node.args["to"]
    cast = f"TRY_CAST({value} AS {generator.sql(to)})"
    if to.is_type(exp.DType.TIMESTAMP, exp.DType.TIMESTAMPTZ, exp.DType.TIMESTAMPLTZ):
        return f"IF(TRY_CAST({value} AS STRING) RLIKE {_TIME_ALONE}, NULL, {cast})"
    return cast


def _lenient(function: str) -> Callable[[SparkGenerator, exp.Expression], str]:
    return lambda generator, node: generator.func(function, node.this, node.expression)


class _Lenient(Spark):
    """Spark SQL in which a bad value gives NULL instead of the end of the job."""

    class Tokenizer(Spark.Tokenizer):
        # As Spark 4 reads it: a doubled quote within a text is one quote, not two texts put together.
        STRING_ESCAPES: ClassVar = ["\\", "'"]

    class Generator(SparkGenerator):
        TRANSFORMS: ClassVar = {
            **SparkGenerator.TRANSFORMS,
            exp.Cast: _cast,
            exp.TryCast: _cast,
            exp.Add: _lenient("TRY_ADD"),
            exp.Sub: _lenient("TRY_SUBTRACT"),
            exp.Mul: _lenient("TRY_MULTIPLY"),
            exp.Div: _lenient("TRY_DIVIDE"),
            exp.Mod: _lenient("TRY_MOD"),
            exp.Neg: lambda self, node: f"TRY_SUBTRACT(0, {self.sql(node, 'this')})",
            exp.IntDiv: lambda self, node: f"({self.sql(node, 'this')}) DIV NULLIF({self.sql(node, 'expression')}, 0)",
        }


def parse_expression(text: str, columns: Iterable[str], where: str, whose: str = "the file's") -> str:
    """The SQL of a mapping expression over `columns`; `where` and `whose` name it and them in errors.

    Raises:
        ConfigError: if the text cannot be parsed, names a column that is not there, or uses anything that is
            not on the list.
    """
    try:
        tree = _parse(text)
    except SqlglotError:
        raise ConfigError(f"{where}: found {text!r}, expected one SQL expression") from None
    known = {column.lower(): column for column in columns}
    for node in tree.walk():
        if isinstance(node, exp.Column):
            _resolve_column(node, known, where, whose)
        elif isinstance(node, exp.Anonymous):
            if node.name.lower() not in _NAMED_FUNCTIONS:
                raise _not_allowed(where, node.name.lower())
        elif type(node) not in _ALLOWED:
            raise _not_allowed(where, node.key)
    for node in list(tree.find_all(*_IMPLIED_CASTS)):
        node.set("this", exp.cast(node.this, _IMPLIED_CASTS[type(node)]))
    return tree.sql(dialect=_Lenient, comments=False)


def columns_of(text: str) -> set[str]:
    """The columns that an expression names, in lower case; none if it cannot be parsed."""
    try:
        return {column.name.lower() for column in _parse(text).find_all(exp.Column)}
    except SqlglotError:
        return set()


def _parse(text: str) -> exp.Condition:
    # As a statement, `comment` or `show` would be a command; in an expression they are columns.
    return sqlglot.parse_one(text, read=_Lenient, into=exp.Condition)


def _resolve_column(column: exp.Column, known: dict[str, str], where: str, whose: str) -> None:
    """Quote a column by the name the file gives it."""
    found = None if column.table else known.get(column.name.lower())
    if found is None:
        listed = ", ".join(sorted(known.values()))
        hint = " (only one: is the delimiter right?)" if len(known) == 1 else ""
        raise ConfigError(f"{where}: found column {column.sql()!r}, expected one of {whose}: {listed}{hint}")
    column.set("this", exp.to_identifier(found, quoted=True))


def _not_allowed(where: str, what: str) -> ConfigError:
    listed = ", ".join(sorted({*_FUNCTIONS, *_NAMED_FUNCTIONS, "cast", "case"}))
    return ConfigError(f"{where}: found {what!r}, expected operators and functions of this list: {listed}")
