"""Missing features: what stands for them in a model's matrix, by the rules that the configuration declares.

Tables keep their NULLs. What a rule needs of the data is fitted on the rows that a model is fitted to.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from crm_spark.config import Imputation
from crm_spark.errors import ConfigError
from crm_spark.features.tables import feature_customers, nearest_names
from crm_spark.models.tables import MODEL_IMPUTATIONS
from crm_spark.tables import declared_rows

_WINDOW = re.compile(r"_\d+d$")
_OF_NUMBERS_ALONE = ("median", "flag", "feature")


def imputation_rules(
    declared: Mapping[str, Imputation], windows_days: Sequence[int], numbers: Sequence[str]
) -> dict[str, Imputation]:
    """The rules of features that may be missing; a windowed one follows its measure's unless it has its own.

    Each has a value for where it finds nothing, but for those that another one of the matrix's `numbers` stands for.

    Raises:
        ConfigError: if a rule is for no such feature or not for its type, or if a number that may be missing has none.
    """
    columns = feature_customers(windows_days).columns
    types = {column.name: column.type for column in columns}
    may_miss = [column.name for column in columns if column.nullable]
    for name, rule in declared.items():
        if name not in may_miss:
            raise ConfigError(
                f"imputation.{name}: found no such feature, or one that is never missing; "
                f"expected {nearest_names(name, may_miss)}"
            )
        _check_type(name, rule, is_text=types[name] == "string")
    found = {name: declared.get(name) or declared.get(_WINDOW.sub("", name)) for name in may_miss}
    rules = {name: rule for name, rule in found.items() if rule is not None}
    if unruled := [name for name in numbers if name in may_miss and name not in rules]:
        raise ConfigError(f"imputation: found no rule for {', '.join(unruled)}, which may be missing in models")
    stand_ins = {name for name in numbers if name not in rules or rules[name].by != "feature"}
    for name, rule in rules.items():
        if rule.feature is not None and rule.feature not in stand_ins:
            raise ConfigError(
                f"imputation.{name}.feature: found {rule.feature!r}, expected a number of the matrix that no other "
                "feature stands for"
            )
    return {name: _with_value(rule, is_text=types[name] == "string") for name, rule in rules.items()}


def fit_fills(rows: DataFrame, rules: Mapping[str, Imputation]) -> dict[str, float | str]:
    """The value that stands for each feature's missing ones; none for those that another feature stands for.

    Medians are exact, midway between the middle two of an even number of values; of equally frequent values the
    least is taken. So nothing depends on the order of rows.
    """
    fitted = {name: _fitted(name, rule) for name, rule in rules.items() if rule.by in ("median", "most_frequent")}
    found = {name: value for name, value in only_row(rows, fitted).items() if value is not None}
    return {name: found.get(name, rule.value) for name, rule in rules.items() if rule.value is not None}


def add_last_known(features: DataFrame, rules: Mapping[str, Imputation]) -> DataFrame:
    """The same rows with what was last known of each feature that is filled forward, up to their own cut-off."""
    so_far = Window.partitionBy("customer_id").orderBy("as_of").rowsBetween(Window.unboundedPreceding, 0)
    forward = {name: rule for name, rule in rules.items() if rule.by == "forward_fill"}
    return features.withColumns(
        {known_column(name, rule): F.last(name, ignorenulls=True).over(so_far) for name, rule in forward.items()}
    )


def known_column(name: str, rule: Imputation | None) -> str:
    """Where that which is known of a feature stands: in its own column or in that of `add_last_known`."""
    return f"last_known_{name}" if rule is not None and rule.by == "forward_fill" else name


def literal(value: float | str) -> str:
    """A value in SQL. Texts come from the data: as bytes, nothing in them can end the literal or be substituted."""
    return f"{value!r}D" if isinstance(value, float) else f"cast(X'{value.encode().hex()}' AS string)"


def build_imputations(rows_by_use: Mapping[str, DataFrame], rules: Mapping[str, Imputation]) -> DataFrame:
    """Rows: one per use and each feature of its rows that may be missing."""
    values = []
    for used_by, rows in rows_by_use.items():
        own = {name: rule for name, rule in rules.items() if name in rows.columns}
        fills = fit_fills(rows, own)
        (row_count, *known_counts) = rows.agg(F.count("*"), *map(F.count, own)).collect()[0]
        for (name, rule), known_count in zip(own.items(), known_counts, strict=True):
            by = f"feature {rule.feature}" if rule.feature else rule.by
            value = str(fills[name]) if name in fills else None
            values.append((used_by, name, by, value, row_count - known_count, row_count))
    return declared_rows(next(iter(rows_by_use.values())).sparkSession, MODEL_IMPUTATIONS, values)


def only_row(rows: DataFrame, aggregates: Mapping[str, Column]) -> dict[str, Any]:
    """Aggregates over all rows, by name."""
    if not aggregates:
        return {}
    (found,) = rows.agg(*(column.alias(name) for name, column in aggregates.items())).collect()
    return dict(found.asDict())


def _fitted(name: str, rule: Imputation) -> Column:
    value = F.col(name) if isinstance(rule.value, str) else F.col(name).cast("double")
    return F.percentile(value, 0.5) if rule.by == "median" else F.mode(value, deterministic=True)


def _with_value(rule: Imputation, is_text: bool) -> Imputation:
    if rule.by == "feature" or rule.value is not None:
        return rule
    return rule.model_copy(update={"value": "unknown" if is_text else 0.0})


def _check_type(name: str, rule: Imputation, is_text: bool) -> None:
    if is_text and rule.by in _OF_NUMBERS_ALONE:
        raise ConfigError(
            f"imputation.{name}.by: found {rule.by!r} for a text, expected constant, most_frequent or forward_fill"
        )
    if rule.value is not None and isinstance(rule.value, str) != is_text:
        raise ConfigError(
            f"imputation.{name}.value: found {rule.value!r}, expected a {'text' if is_text else 'number'}"
        )
