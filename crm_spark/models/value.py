"""The value of a customer: a weighted mean of what purchases, service and feedback say of it."""

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from crm_spark.config import ValuePart
from crm_spark.errors import ConfigError
from crm_spark.features.tables import nearest_names, number_names
from crm_spark.models.imputation import only_row
from crm_spark.models.tables import MODEL_VALUE_LIMITS, SCORE_VALUE
from crm_spark.tables import conform, declared_rows

_LOW, _HIGH = 0.05, 0.95


def check_value_parts(parts: Mapping[str, ValuePart], windows_days: Sequence[int]) -> None:
    """Raises: ConfigError: if one is for a feature that there is not, or that is no number."""
    numbers = number_names(windows_days)
    for name, part in parts.items():
        if part.feature not in numbers:
            raise ConfigError(
                f"value.{name}.feature: found no such numeric feature as {part.feature!r}, expected "
                f"{nearest_names(part.feature, numbers)}"
            )


def fit_value_limits(customers: DataFrame, parts: Mapping[str, ValuePart]) -> DataFrame:
    """Rows: one per part whose feature somebody has, with its exact 5 % and 95 % quantile."""
    quantiles = F.array(F.lit(_LOW), F.lit(_HIGH))
    fitted = only_row(
        customers, {name: F.percentile(F.col(part.feature).cast("double"), quantiles) for name, part in parts.items()}
    )
    rows = [(name, part.feature, *fitted[name]) for name, part in parts.items() if fitted[name]]
    return declared_rows(customers.sparkSession, MODEL_VALUE_LIMITS, rows)


def score_value(customers: DataFrame, limits: DataFrame, parts: Mapping[str, ValuePart]) -> DataFrame:
    """Rows: one per customer; `limits` as of `fit_value_limits`."""
    of_parts = limits.agg(
        *(F.max(F.when(F.col("part") == name, F.struct("low", "high"))).alias(f"limits_{name}") for name in parts)
    )
    scores = {name: _score(name, part) for name, part in parts.items()}
    # Not by sum(), which since Python 3.12 rounds otherwise than Spark does.
    total = reduce(add, (part.weight for part in parts.values()))
    mean = reduce(add, (scores[name] * part.weight for name, part in parts.items())) / total
    listed = F.array(*(F.struct(F.lit(name).alias("part"), score.alias("score")) for name, score in scores.items()))
    scored = customers.crossJoin(F.broadcast(of_parts))
    return conform(scored.select("customer_id", "as_of", mean.alias("value_score"), listed.alias("parts")), SCORE_VALUE)


def _score(name: str, part: ValuePart) -> Column:
    """Where a value stands from the worse limit, 0, to the better one, 1; where they are one, in the middle."""
    value, low, high = F.col(part.feature).cast("double"), F.col(f"limits_{name}.low"), F.col(f"limits_{name}.high")
    place = (
        F.when(value < low, 0.0)
        .when(value > high, 1.0)
        .when(low < high, (value - low) / F.nullif(high - low, F.lit(0.0)))
        .when(low == high, 0.5)
    )
    return F.coalesce(place if part.best == "high" else 1 - place, F.lit(float(part.missing)))
