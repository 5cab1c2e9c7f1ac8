"""What a site asks of its rows beside the checks that every table declares."""

from dataclasses import dataclass

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from crm_spark.checks import Check
from crm_spark.cleaning.expressions import parse_expression
from crm_spark.cleaning.tables import CLEAN, OWN_COLUMNS
from crm_spark.config import Config
from crm_spark.errors import ConfigError
from crm_spark.tables import Table, declared_rows

# Reasons to reject a row that are no check of its table.
_OF_EVERY_ENTITY = frozenset(
    {
        "row_not_readable",
        "text_not_in_encoding",
        "sequence_missing",
        "currency_not_reporting",
        "key_with_other_content",
    }
)


@dataclass(frozen=True)
class SiteRules:
    """Of one entity: rows that break a check of `reject` go to quarantine, those that break one of `warn` are counted.

    Rows that come later than `arrival_hours` after they happened are late: a past cut-off does not wait for them.
    """

    currency: str
    arrival_hours: int = 24
    reject: tuple[Check, ...] = ()
    warn: tuple[Check, ...] = ()


def site_rules(config: Config, entity: str) -> SiteRules:
    """The rules that a configuration has for an entity.

    Raises:
        ConfigError: if an expression cannot be parsed, or is not possible over the columns of the clean table.
    """
    columns = [name for name in CLEAN[entity].column_names if name not in OWN_COLUMNS]
    checks: dict[str, list[Check]] = {"reject": [], "warn": []}
    for name, rule in config.rules.items():
        if rule.entity == entity:
            where = f"rules.{name}.must_hold"
            checks[rule.severity].append(Check(name, parse_expression(rule.must_hold, columns, where, "the table's")))
    return SiteRules(config.currency, config.arrival_hours, tuple(checks["reject"]), tuple(checks["warn"]))


def check_rules(spark: SparkSession, config: Config) -> None:
    """See that all rules are conditions that any text can be held against, under names of their own.

    Raises:
        ConfigError: if one is not.
    """
    for entity in sorted({rule.entity for rule in config.rules.values()}):
        rules, table = site_rules(config, entity), CLEAN[entity]
        texts = ["a text" if column.type == "string" else None for column in table.columns]
        row_of_texts, taken = declared_rows(spark, table, [texts]), _reasons_of(table)
        for check in (*rules.reject, *rules.warn):
            if check.name in taken:
                raise ConfigError(f"rules.{check.name}: found a name that a rule of {table.name} has, expected another")
            judged = row_of_texts.select(F.expr(check.must_hold))
            ((_, kind),) = judged.dtypes
            if kind != "boolean":
                raise ConfigError(f"rules.{check.name}.must_hold: found a {kind}, expected a condition such as x > 0")
            try:
                judged.collect()
            except (PySparkException, Py4JJavaError):
                raise ConfigError(
                    f"rules.{check.name}.must_hold: found a text where a number or a time is needed, expected "
                    "cast(column as type), which gives NULL for what cannot be read"
                ) from None


def _reasons_of(table: Table) -> frozenset[str]:
    """The reasons for which rows of every site are rejected."""
    of_columns = {
        reason
        for column in table.columns
        for reason in (f"{column.name}_missing", f"{column.name}_not_{column.type.partition('(')[0]}")
    }
    return _OF_EVERY_ENTITY | of_columns | {check.name for check in table.checks}
