"""Fitting classifiers: a decision tree and a logistic regression for each task, beside three baselines.

Choices (depth, penalty, which model is shown) are made on the validation cut-off by models that did not see it;
the chosen models are then fitted to all training cut-offs. The test cut-off is not looked at here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Any

import pyspark
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.base import Estimator, Transformer
from pyspark.ml.classification import (
    LogisticRegression,
    LogisticRegressionModel,
)
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.feature import StandardScaler, VectorAssembler
from pyspark.ml.regression import DecisionTreeRegressionModel, DecisionTreeRegressor
from pyspark.ml.stat import Summarizer
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from crm_spark.config import Task
from crm_spark.models.imputation import add_last_known, known_column
from crm_spark.models.labels import test_cutoff, train_cutoffs
from crm_spark.models.matrix import (
    MatrixRules,
    Preparation,
    fit_preparation,
    laid_out,
    matrix_features,
    matrix_stages,
    matrix_terms,
)
from crm_spark.models.tables import MODEL_COEFFICIENTS, MODEL_REGISTRY, MODEL_RULES
from crm_spark.models.tree import Rule, tree_rules
from crm_spark.tables import declared_rows

DECISION_TREE = "decision_tree"
LOGISTIC_REGRESSION = "logistic_regression"
INTERCEPT = "intercept"
# Each is a logistic regression on one value that needs no model, or on none.
BASELINES = {
    "baseline_recency": "coalesce(recency_days, 3650)",
    "baseline_frequency": "order_count_28d",
    "baseline_majority": None,
}
# (depth, fewest rows a leaf)
_TREES = ((4, 25), (5, 100))
_PENALTIES = (0.01, 0.1)
_MAX_ITERATIONS = 100
_MAX_BINS = 128
_KEY = ["as_of", "customer_id"]


@dataclass(frozen=True)
class Coefficient:
    """`mean` and `coefficient` are of the term as the regression sees it (scaled to one standard deviation)."""

    model: str
    term_no: int
    term: str
    coefficient: float
    mean: float


@dataclass(frozen=True)
class FittedTask:
    """All that was learned for a task, `registry` by model as the columns of `model_registry`."""

    task: str
    registry: Sequence[tuple[object, ...]]
    rules: Sequence[Rule]
    coefficients: Sequence[Coefficient]


@dataclass(frozen=True)
class _Family:
    """A kind of model: the stages that make its matrix, and the settings to choose from."""

    model: str
    stages: Callable[[Preparation], Sequence[Estimator[Any] | Transformer]]
    candidates: Sequence[tuple[dict[str, str], DecisionTreeRegressor | LogisticRegression]]


def fit_tasks(
    tasks: Mapping[str, Task],
    features: DataFrame,
    labels: DataFrame,
    as_of: date,
    rules: MatrixRules,
    models_uri: str,
    models_path: str,
) -> list[FittedTask]:
    """All tasks whose training rows are of both classes.

    They are fitted side by side: a fit is many small jobs, which leave cores idle in between.
    """
    with ThreadPoolExecutor() as pool:
        fits = [
            pool.submit(fit_task, name, task, features, labels, as_of, rules, models_uri, models_path)
            for name, task in tasks.items()
        ]
        fitted = [fit.result() for fit in fits]
    return [task for task in fitted if task is not None]


def fit_task(
    name: str,
    task: Task,
    features: DataFrame,
    labels: DataFrame,
    as_of: date,
    rules: MatrixRules,
    models_uri: str,
    models_path: str,
) -> FittedTask | None:
    """Fit, choose and save the models of one task; None if its training rows are not of both classes.

    The models are saved at `<models_uri>/<models_path>/<task>/<model>`.
    """
    with laid_out(training_rows(features, labels, name, rules), "as_of") as rows:
        earlier, later = rows.where("fold = 'train'"), rows.where("fold = 'validation'")
        counts = [_count_events(earlier), _count_events(later)]
        if any(events in (0, count) for count, events in counts):
            return None
        row_count, event_count = (sum(values) for values in zip(*counts, strict=True))
        families = [_tree_family(rules.windows_days, task.seed), _regression_family(rules.windows_days)]
        preparation = fit_preparation(earlier, rules, task.cap_outliers)
        chosen = [_choose(family, preparation, earlier, later) for family in families]
        validation_aucs = [validation_auc for _, validation_auc in chosen]
        champion = families[validation_aucs.index(max(validation_aucs))]
        preparation = fit_preparation(rows, rules, task.cap_outliers)
        registry, coefficients, leaves = [], [], []
        for family, (index, validation_auc) in zip(families, chosen, strict=True):
            parameters, classifier = family.candidates[index]
            with _matrix(family, preparation, rows) as (prepared, matrix):
                fitted = classifier.fit(matrix)
                if isinstance(fitted, DecisionTreeRegressionModel):
                    leaves = tree_rules(fitted, matrix_terms(matrix))
                else:
                    coefficients += _explain_regression(fitted, matrix)
            path = f"{models_path}/{name}/{family.model}"
            PipelineModel([*prepared.stages, fitted]).write().overwrite().save(f"{models_uri}/{path}")
            registry.append(
                (
                    name,
                    family.model,
                    path,
                    matrix_features(rules.windows_days),
                    [{"name": key, "value": value} for key, value in (parameters | _learned(fitted)).items()],
                    sorted(train_cutoffs(task, as_of)),
                    test_cutoff(task, as_of),
                    row_count,
                    event_count,
                    validation_auc,
                    family is champion,
                    pyspark.__version__,
                )
            )
        for baseline, value in BASELINES.items():
            coefficients += _fit_baseline(baseline, value, rows)
    return FittedTask(name, registry, leaves, coefficients)


def training_rows(features: DataFrame, labels: DataFrame, task: str, rules: MatrixRules) -> DataFrame:
    """Rows: one per label that a task's models are chosen by or fitted to, with the features that they read."""
    own = labels.where((F.col("task") == task) & (F.col("fold") != "test")).drop("task")
    names = matrix_features(rules.windows_days)
    known = (known_column(name, rules.imputation.get(name)) for name in names)
    seen = add_last_known(features, rules.imputation).select(*_KEY, *dict.fromkeys([*names, *known]))
    return own.join(seen, _KEY)


def build_registry(fitted: Sequence[FittedTask], features: DataFrame) -> DataFrame:
    """Rows: one per fitted model."""
    return declared_rows(features.sparkSession, MODEL_REGISTRY, [row for task in fitted for row in task.registry])


def build_rules(fitted: Sequence[FittedTask], features: DataFrame) -> DataFrame:
    """Rows: one per leaf of each task's tree."""
    return declared_rows(
        features.sparkSession,
        MODEL_RULES,
        [
            (task.task, rule.leaf_no, list(rule.conditions), rule.probability, rule.train_count)
            for task in fitted
            for rule in task.rules
        ],
    )


def build_coefficients(fitted: Sequence[FittedTask], features: DataFrame) -> DataFrame:
    """Rows: one per term of each task's regressions."""
    return declared_rows(
        features.sparkSession,
        MODEL_COEFFICIENTS,
        [(task.task, c.model, c.term_no, c.term, c.coefficient, c.mean) for task in fitted for c in task.coefficients],
    )


def auc(scored: DataFrame) -> float:
    """Exact area under the ROC curve of the column `probability` against `label`."""
    evaluator = BinaryClassificationEvaluator(rawPredictionCol="probability", numBins=0)
    return float(evaluator.evaluate(scored))


def _tree_family(windows_days: Sequence[int], seed: int) -> _Family:
    candidates = [
        (
            {"max_depth": str(depth), "min_leaf_rows": str(leaf_rows), "seed": str(seed)},
            # A regression on 0 and 1 splits as Gini does and predicts the share of 1. MLlib's classifier would merge
            # leaves that agree on the likelier class, however far apart their probabilities are.
            DecisionTreeRegressor(
                featuresCol="matrix",
                predictionCol="probability",
                maxDepth=depth,
                maxBins=_MAX_BINS,
                minInstancesPerNode=leaf_rows,
                seed=seed,
                leafCol="leaf_no",
            ),
        )
        for depth, leaf_rows in _TREES
    ]
    return _Family(DECISION_TREE, partial(matrix_stages, windows_days, with_logs=False), candidates)


def _regression_family(windows_days: Sequence[int]) -> _Family:
    scaler = StandardScaler(inputCol="matrix", outputCol="scaled")
    candidates = [({"ridge_penalty": str(penalty)}, _regression("scaled", penalty)) for penalty in _PENALTIES]

    def stages(preparation: Preparation) -> list[Estimator[Any] | Transformer]:
        return [*matrix_stages(windows_days, preparation, with_logs=True), scaler]

    return _Family(LOGISTIC_REGRESSION, stages, candidates)


def _regression(features: str, penalty: float) -> LogisticRegression:
    return LogisticRegression(featuresCol=features, regParam=penalty, standardization=False, maxIter=_MAX_ITERATIONS)


def _choose(family: _Family, preparation: Preparation, earlier: DataFrame, later: DataFrame) -> tuple[int, float]:
    """Which candidate has the highest AUC on later rows than it was fitted to (the first of equals), and that AUC."""
    with _matrix(family, preparation, earlier) as (prepared, matrix):
        held_out = prepared.transform(later).select(*matrix.columns).persist()
        try:
            aucs = [auc(classifier.fit(matrix).transform(held_out)) for _, classifier in family.candidates]
        finally:
            held_out.unpersist()
    best = max(aucs)
    return aucs.index(best), best


@contextmanager
def _matrix(family: _Family, preparation: Preparation, rows: DataFrame) -> Iterator[tuple[PipelineModel, DataFrame]]:
    """The fitted stages that make a family's matrix, and the rows with it but without what it was made from."""
    prepared = Pipeline(stages=list(family.stages(preparation))).fit(rows)
    matrix = prepared.transform(rows).drop(*rows.drop("label").columns).persist()
    try:
        yield prepared, matrix
    finally:
        matrix.unpersist()


def _learned(fitted: DecisionTreeRegressionModel | LogisticRegressionModel) -> dict[str, str]:
    if isinstance(fitted, DecisionTreeRegressionModel):
        return {"depth": str(fitted.depth)}
    iterations = fitted.summary.totalIterations
    return {"iterations": str(iterations), "has_converged": str(iterations < _MAX_ITERATIONS).lower()}


def _explain_regression(fitted: LogisticRegressionModel, matrix: DataFrame) -> list[Coefficient]:
    ((means,),) = matrix.select(Summarizer.mean(F.col("scaled"))).collect()
    terms = matrix_terms(matrix)
    values = zip(terms, fitted.coefficients.toArray(), means.toArray(), strict=True)
    coefficients = [
        Coefficient(LOGISTIC_REGRESSION, number, term, float(coefficient), float(mean))
        for number, (term, coefficient, mean) in enumerate(values)
    ]
    return [*coefficients, Coefficient(LOGISTIC_REGRESSION, len(terms), INTERCEPT, float(fitted.intercept), 0.0)]


def _fit_baseline(name: str, value: str | None, rows: DataFrame) -> list[Coefficient]:
    """The intercept and, unless the baseline is a constant, the coefficient of its one value."""
    term = F.expr(value).cast("double") if value else F.lit(0.0)
    terms = VectorAssembler(inputCols=["term"], outputCol="terms").transform(rows.withColumn("term", term))
    regression = _regression("terms", penalty=0.0).fit(terms)
    intercept = Coefficient(name, 1, INTERCEPT, float(regression.intercept), 0.0)
    if value is None:
        return [intercept]
    return [Coefficient(name, 0, value, float(regression.coefficients[0]), 0.0), intercept]


def _count_events(rows: DataFrame) -> tuple[int, int]:
    ((count, events),) = rows.agg(F.count("*"), F.coalesce(F.sum("label"), F.lit(0))).collect()
    return count, events
