"""The matrix that classifiers see: which features, how missing ones are filled, and what each column is called."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pyspark.ml import Transformer
from pyspark.ml.base import Estimator
from pyspark.ml.feature import OneHotEncoder, SQLTransformer, StringIndexer, VectorAssembler
from pyspark.sql import DataFrame

from crm_spark.features.tables import DEMOGRAPHICS

# MLlib's sums depend on how rows are laid out: the number of partitions follows from the rows alone.
_ROWS_A_PARTITION = 50_000
# Longer ago than any history: what never happened.
_NEVER_DAYS = 3650
_MISSING = {
    "recency_days": str(_NEVER_DAYS),
    "contact_recency_days": str(_NEVER_DAYS),
    "response_recency_days": str(_NEVER_DAYS),
    "tenure_days": "0",
    # Whoever bought on one day has no rhythm yet: the time since then stands for it.
    "mean_gap_days": "coalesce(tenure_days, 0)",
    "overdue_ratio": "1",
}
_CATEGORIES = [f"category_of_{name}" for name in DEMOGRAPHICS]
_IS_PREFIX = "is_"


def numeric_features(windows_days: Sequence[int]) -> list[str]:
    """The numeric columns of `feature_customers` that classifiers use."""
    ever = [
        *_MISSING, "order_count", "active_day_count", "net_amount", "mean_order_amount", "discount_share",
        "gap_spread_days", "category_count", "store_count", "contact_count", "response_count",
    ]  # fmt: skip
    measures = ("order_count", "net_amount", "discount_share", "category_count", "contact_count", "response_count")
    return ever + [f"{measure}_{days}d" for measure in measures for days in windows_days]


def matrix_features(windows_days: Sequence[int]) -> list[str]:
    """All columns of `feature_customers` that classifiers read."""
    return [*numeric_features(windows_days), *DEMOGRAPHICS]


def matrix_stages(windows_days: Sequence[int], with_logs: bool) -> list[Estimator[Any] | Transformer]:
    """Pipeline stages that fill what is missing, encode categories and assemble the column `matrix`.

    `with_logs` takes the logarithm of each number's size and keeps its sign, for models that are linear.
    """
    numbers = numeric_features(windows_days)
    filled = [f"{_filled(name)} AS {_column(name)}" for name in numbers]
    if with_logs:
        filled = [f"signum({_filled(name)}) * log1p(abs({_filled(name)})) AS {_column(name)}" for name in numbers]
    known = [f"coalesce({name}, 'unknown') AS known_{name}" for name in DEMOGRAPHICS]
    inputs = [*map(_column, numbers), *(f"{_IS_PREFIX}{name}" for name in DEMOGRAPHICS)]
    made = [*inputs, *_CATEGORIES, *(f"known_{name}" for name in DEMOGRAPHICS)]
    return [
        SQLTransformer(statement=f"SELECT *, {', '.join(filled + known)} FROM __THIS__"),  # noqa: S608
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
    """What each column of an assembled `matrix` is called: a feature, or `feature=category`."""
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


def _filled(name: str) -> str:
    return f"cast(coalesce({name}, {_MISSING.get(name, '0')}) as double)"


def _column(name: str) -> str:
    return f"number_{name}"


def _term(name: str) -> str:
    for demographic in DEMOGRAPHICS:
        prefix = f"{_IS_PREFIX}{demographic}_"
        if name.startswith(prefix):
            return f"{demographic}={name.removeprefix(prefix)}"
    return name.removeprefix("number_")
