"""The matrix that classifiers see: which features, in what form, and what each column is called."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyspark.ml import Transformer
from pyspark.ml.base import Estimator
from pyspark.ml.feature import OneHotEncoder, SQLTransformer, StringIndexer, VectorAssembler
from pyspark.sql import DataFrame

from crm_spark.config import Config, Imputation, Outlier
from crm_spark.features.tables import DEMOGRAPHICS
from crm_spark.models.imputation import fit_fills, imputation_rules, known_column, literal
from crm_spark.models.outliers import Limits, capped, check_outlier_rules, fit_limits

# MLlib's sums depend on how rows are laid out: the number of partitions follows from the rows alone.
_ROWS_A_PARTITION = 50_000
_CATEGORIES = [f"category_of_{name}" for name in DEMOGRAPHICS]
_IS_PREFIX = "is_"
_IS_MISSING_PREFIX = "is_missing_"


@dataclass(frozen=True)
class MatrixRules:
    """What the configuration declares of matrices; `imputation` has a rule for each feature that may be missing."""

    windows_days: Sequence[int]
    imputation: Mapping[str, Imputation]
    outliers: Mapping[str, Outlier]


@dataclass(frozen=True)
class Preparation:
    """How features become numbers: the rules, and what they needed of the rows that a model is fitted to."""

    imputation: Mapping[str, Imputation]
    fills: Mapping[str, float | str]
    limits: Mapping[str, Limits]

    def known(self, name: str) -> str:
        """The column that holds what is known of a feature."""
        return known_column(name, self.imputation.get(name))

    def number(self, name: str) -> str:
        """A feature in SQL, as a model sees it: what is known is capped, what is missing has another value."""
        known = capped(f"cast({self.known(name)} AS double)", self.limits.get(name))
        rule = self.imputation.get(name)
        if rule is None:
            return known
        return (
            f"coalesce({known}, {self.number(rule.feature) if rule.feature is not None else literal(self.fills[name])})"
        )


def matrix_rules(config: Config) -> MatrixRules:
    """The rules of a configuration.

    Raises:
        ConfigError: if one is for a feature that there is not, or not for its type.
    """
    windows_days = config.features.windows_days
    check_outlier_rules(config.outliers, windows_days)
    imputation = imputation_rules(config.imputation, windows_days, numeric_features(windows_days))
    return MatrixRules(windows_days, imputation, config.outliers)


def fit_preparation(rows: DataFrame, rules: MatrixRules, cap_outliers: bool) -> Preparation:
    """What the rules need of these rows, for the features that they have."""
    imputation = {name: rule for name, rule in rules.imputation.items() if name in rows.columns}
    outliers = {name: rule for name, rule in rules.outliers.items() if cap_outliers and name in rows.columns}
    return Preparation(imputation, fit_fills(rows, imputation), fit_limits(rows, outliers))


def numeric_features(windows_days: Sequence[int]) -> list[str]:
    """The numeric columns of `feature_customers` that classifiers use."""
    ever = [
        "recency_days", "contact_recency_days", "response_recency_days", "tenure_days", "mean_gap_days",
        "overdue_ratio", "order_count", "active_day_count", "net_amount", "mean_order_amount", "discount_share",
        "gap_spread_days", "category_count", "store_count", "contact_count", "response_count",
    ]  # fmt: skip
    measures = ("order_count", "net_amount", "discount_share", "category_count", "contact_count", "response_count")
    return ever + [f"{measure}_{days}d" for measure in measures for days in windows_days]


def matrix_features(windows_days: Sequence[int]) -> list[str]:
    """All columns of `feature_customers` that classifiers read."""
    return [*numeric_features(windows_days), *DEMOGRAPHICS]


def matrix_stages(
    windows_days: Sequence[int], preparation: Preparation, with_logs: bool
) -> list[Estimator[Any] | Transformer]:
    """Pipeline stages that fill what is missing, encode categories and assemble the column `matrix`.

    `with_logs` takes the logarithm of each number's size and keeps its sign, for models that are linear.
    """
    numbers = {name: preparation.number(name) for name in numeric_features(windows_days)}
    if with_logs:
        numbers = {name: f"signum({number}) * log1p(abs({number}))" for name, number in numbers.items()}
    flagged = [name for name, rule in preparation.imputation.items() if rule.by == "flag"]
    texts = {name: f"coalesce({preparation.known(name)}, {literal(preparation.fills[name])})" for name in DEMOGRAPHICS}
    columns = (
        {_column(name): number for name, number in numbers.items()}
        | {f"{_IS_MISSING_PREFIX}{name}": f"cast({name} IS NULL AS double)" for name in flagged}
        | {f"known_{name}": text for name, text in texts.items()}
    )
    inputs = [
        *map(_column, numbers),
        *(f"{_IS_MISSING_PREFIX}{name}" for name in flagged),
        *(f"{_IS_PREFIX}{name}" for name in DEMOGRAPHICS),
    ]
    made = [*inputs, *_CATEGORIES, *(f"known_{name}" for name in DEMOGRAPHICS)]
    selected = ", ".join(f"{expression} AS {column}" for column, expression in columns.items())
    return [
        SQLTransformer(statement=f"SELECT *, {selected} FROM __THIS__"),  # noqa: S608
        StringIndexer(
            inputCols=[f"known_{name}" for name in DEMOGRAPHICS],
            outputCols=_CATEGORIES,
            handleInvalid="keep",
            stringOrderType="alphabetAsc",
        ),
        OneHotEncoder(inputCols=_CATEGORIES, outputCols=[f"{_IS_PREFIX}{name}" for name in DEMOGRAPHICS]),
        VectorAssembler(inputCols=inputs, outputCol="matrix"),
        SQLTransformer(statement=f"SELECT * EXCEPT ({', '.join(made)}) FROM __THIS__"),  # noqa: S608
    ]


def matrix_terms(rows: DataFrame) -> list[str]:
    """What each column of an assembled `matrix` is called: a feature, `feature=category` or `feature=missing`."""
    attributes = rows.schema["matrix"].metadata["ml_attr"]["attrs"]
    by_index = sorted((a["idx"], a["name"]) for group in attributes.values() for a in group)
    return [_term(name) for _, name in by_index]


@contextmanager
def laid_out(rows: DataFrame, *key: str) -> Iterator[DataFrame]:
    """The rows as a fit sees them: always in the same partitions and order, so that sums come out the same.

    They must come from a session with `fixed_plans`.
    """
    partitions = 1 + rows.count() // _ROWS_A_PARTITION
    rows = rows.repartition(partitions, "customer_id").sortWithinPartitions("customer_id", *key).persist()
    try:
        yield rows
    finally:
        rows.unpersist()


def _column(name: str) -> str:
    return f"number_{name}"


def _term(name: str) -> str:
    if name.startswith(_IS_MISSING_PREFIX):
        return f"{name.removeprefix(_IS_MISSING_PREFIX)}=missing"
    for demographic in DEMOGRAPHICS:
        prefix = f"{_IS_PREFIX}{demographic}_"
        if name.startswith(prefix):
            return f"{demographic}={name.removeprefix(prefix)}"
    return name.removeprefix("number_")
