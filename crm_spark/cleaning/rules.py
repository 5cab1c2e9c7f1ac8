"""What a site asks of its rows beside the checks that every table declares."""

from dataclasses import dataclass

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from crm_spark.checks import Check
from crm_spark.cleaning.expressions import parse_expression
from crm_spark.cleaning.tables import CLEAN, OWN_COLUMNS
from crm_spark.config import Config
from crm_spark.errors import ConfigError
from crm_spark.tables import declared_rows


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
    """See that all rules are conditions.

    Raises:
        ConfigError: if one is not.
    """
    for entity in sorted({rule.entity for rule in config.rules.values()}):
        rules = site_rules(config, entity)
        no_rows = declared_rows(spark, CLEAN[entity], [])
        for check in (*rules.reject, *rules.warn):
            ((_, kind),) = no_rows.select(F.expr(check.must_hold)).dtypes
            if kind != "boolean":
                raise ConfigError(f"rules.{check.name}.must_hold: found a {kind}, expected a condition such as x > 0")
