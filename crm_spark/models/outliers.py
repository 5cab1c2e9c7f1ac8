"""Outliers: limits fitted by declared rules, beyond which a value is flagged and, where a model asks for it, capped."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from crm_spark.config import Outlier
from crm_spark.errors import ConfigError
from crm_spark.features.tables import nearest_names, number_names
from crm_spark.models.imputation import literal, only_row
from crm_spark.models.tables import MODEL_OUTLIER_LIMITS
from crm_spark.tables import declared_rows

# Makes the median absolute deviation of normal values their standard deviation (Iglewicz and Hoaglin 1993).
_NORMAL_MAD = 0.6745


@dataclass(frozen=True)
class Limits:
    """Values below `low` or above `high` are outliers; None is no limit."""

    low: float | None
    high: float | None


def check_outlier_rules(declared: Mapping[str, Outlier], windows_days: Sequence[int]) -> None:
    """Raises: ConfigError: if a rule is for no numeric feature."""
    numbers = number_names(windows_days)
    for name in declared:
        if name not in numbers:
            raise ConfigError(
                f"outliers.{name}: found no such numeric feature, expected {nearest_names(name, numbers)}"
            )


def fit_limits(rows: DataFrame, rules: Mapping[str, Outlier]) -> dict[str, Limits]:
    """The limits of each feature with a rule, from the values that these rows have.

    Quantiles and medians are exact, linear between two values. Without any value, or where the median absolute
    deviation (MAD) is 0 and tells no spread, there are no limits.
    """
    points = only_row(
        rows, {name: F.percentile(_number(name), F.array(*map(F.lit, _shares(rule)))) for name, rule in rules.items()}
    )
    medians = {name: found[0] for name, found in points.items() if found and rules[name].by == "robust_z"}
    mads = only_row(
        rows, {name: F.percentile(F.abs(_number(name) - median), F.lit(0.5)) for name, median in medians.items()}
    )
    return {name: _limits(rules[name], found, mads.get(name)) for name, found in points.items()}


def capped(number: str, limits: Limits | None) -> str:
    """A number in SQL, moved to its limit if it is beyond; what is missing stays so."""
    beyond = [] if limits is None else [("<", limits.low), (">", limits.high)]
    cases = [
        f"WHEN {number} {sign} {literal(limit)} THEN {literal(limit)}" for sign, limit in beyond if limit is not None
    ]
    return f"CASE {' '.join(cases)} ELSE {number} END" if cases else number


def build_outlier_limits(
    rows_by_use: Mapping[str, DataFrame], rules: Mapping[str, Outlier], capped_uses: Collection[str]
) -> DataFrame:
    """Rows: one per use and each feature of its rows that has a rule."""
    values: list[tuple[object, ...]] = []
    for used_by, rows in rows_by_use.items():
        limits = fit_limits(rows, {name: rule for name, rule in rules.items() if name in rows.columns})
        counts = only_row(
            rows,
            {f"flagged_{name}": F.count_if(_is_beyond(name, limit)) for name, limit in limits.items()}
            | {f"known_{name}": F.count(name) for name in limits},
        )
        values += [
            (
                used_by,
                name,
                _worded(rules[name]),
                limit.low,
                limit.high,
                used_by in capped_uses,
                counts[f"flagged_{name}"],
                counts[f"known_{name}"],
            )
            for name, limit in limits.items()
        ]
    return declared_rows(next(iter(rows_by_use.values())).sparkSession, MODEL_OUTLIER_LIMITS, values)


def _shares(rule: Outlier) -> list[float]:
    """The shares of values whose quantiles a rule needs."""
    return [0.5] if rule.by == "robust_z" else [rule.low or 0.0, 1.0 if rule.high is None else rule.high]


def _limits(rule: Outlier, points: Sequence[float] | None, mad: float | None) -> Limits:
    if not points or mad == 0:
        return Limits(None, None)
    if rule.above is not None and mad is not None:
        reach = rule.above * mad / _NORMAL_MAD
        return Limits(points[0] - reach, points[0] + reach)
    return Limits(None if rule.low is None else points[0], None if rule.high is None else points[1])


def _number(name: str) -> Column:
    return F.col(name).cast("double")


def _is_beyond(name: str, limits: Limits) -> Column:
    return (_number(name) < F.lit(limits.low)) | (_number(name) > F.lit(limits.high))


def _worded(rule: Outlier) -> str:
    """A rule as the configuration says it."""
    numbers = rule.model_dump(exclude={"by"}, exclude_none=True)
    return f"{rule.by}, {', '.join(f'{key} = {value:g}' for key, value in numbers.items())}"
