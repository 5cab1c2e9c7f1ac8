"""Scoring: saved models and stored coefficients applied to features, with the reasons in words."""

from collections.abc import Mapping, Sequence
from datetime import date
from functools import reduce

from pyspark.ml import PipelineModel
from pyspark.ml.functions import vector_to_array
from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F

from crm_spark.config import Imputation, Task
from crm_spark.errors import ModelError
from crm_spark.models.fit import BASELINES, DECISION_TREE, INTERCEPT, LOGISTIC_REGRESSION
from crm_spark.models.imputation import add_last_known
from crm_spark.models.tables import MODEL_SCORES
from crm_spark.tables import conform, declared_rows

_REASON_COUNT = 3


def build_scores(
    features: DataFrame,
    labels: DataFrame,
    registry: DataFrame,
    rules: DataFrame,
    coefficients: DataFrame,
    tasks: Mapping[str, Task],
    imputation: Mapping[str, Imputation],
    as_of: date,
    models_uri: str,
) -> DataFrame:
    """Rows: one per fitted task, model or baseline, and customer labelled or to be scored at `as_of`.

    For churn these are the customers with a purchase, for responses all customers.

    Raises:
        ModelError: if a model reads features that are not there.
    """
    seen = add_last_known(features, imputation)
    models, terms = registry.collect(), coefficients.orderBy("task", "model", "term_no").collect()
    parts = [declared_rows(features.sparkSession, MODEL_SCORES, [])]
    for task in sorted({model["task"] for model in models}):
        rows = _rows_to_score(task, tasks[task], seen, labels, as_of)
        own_terms = [term for term in terms if term["task"] == task]
        own_rules = rules.where(F.col("task") == task)
        for model in (model for model in models if model["task"] == task):
            scored = _load(model, features, models_uri).transform(rows)
            if model["model"] == DECISION_TREE:
                scored = _add_rule(scored, own_rules)
            else:
                arrays = {"probability": F.col("probability"), "scaled_values": F.col("scaled")}
                scored = scored.withColumns({name: vector_to_array(vector) for name, vector in arrays.items()})
                scored = scored.withColumn("reasons", _main_contributions(own_terms))
                scored = scored.withColumn("probability", F.get("probability", F.lit(1)))
            parts.append(_select(scored, task, model["model"]))
        for baseline in BASELINES:
            scored = rows.withColumns({"probability": _logistic(baseline, own_terms), "reasons": F.array()})
            parts.append(_select(scored, task, baseline))
    return conform(reduce(DataFrame.unionByName, parts), MODEL_SCORES)


def _rows_to_score(task: str, settings: Task, features: DataFrame, labels: DataFrame, as_of: date) -> DataFrame:
    labelled = features.join(labels.where(F.col("task") == task).drop("task"), ["as_of", "customer_id"])
    current = features.where(F.col("as_of") == F.lit(as_of))
    if settings.label == "no_purchase":
        current = current.where("order_count > 0")
    fold = F.when(F.col("fold") == "validation", "train").otherwise(F.col("fold"))
    return labelled.withColumn("fold", fold).unionByName(
        current.withColumns({"fold": F.lit("current"), "label": F.lit(None).cast("int")})
    )


def _load(model: Row, features: DataFrame, models_uri: str) -> PipelineModel:
    missing = sorted(set(model["features"]) - set(features.columns))
    if missing:
        raise ModelError(
            f"{model['task']}/{model['model']}: found no feature {missing[0]} (and {len(missing) - 1} others), "
            "expected those it was fitted to; fit it again with the present configuration"
        )
    return PipelineModel.load(f"{models_uri}/{model['path']}")


def _add_rule(scored: DataFrame, rules: DataFrame) -> DataFrame:
    """A tree's reasons are the conditions of the leaf that the customer falls into."""
    of_leaf = rules.select(F.col("leaf_no").cast("double").alias("leaf_no"), F.col("conditions").alias("reasons"))
    return scored.join(F.broadcast(of_leaf), "leaf_no", "left")


def _main_contributions(terms: Sequence[Row]) -> Column:
    """What raises a customer's log odds most above those of a mean customer, in words."""
    matrix = [term for term in terms if term["model"] == LOGISTIC_REGRESSION and term["term"] != INTERCEPT]
    contributions = []
    for index, term in enumerate(matrix):
        value = F.get(F.col("scaled_values"), F.lit(index))
        feature, is_category, category = term["term"].partition("=")
        more, less = (f"is {category}", f"is not {category}") if is_category else ("is high", "is low")
        words = F.when(value > term["mean"], f"{feature} {more}").otherwise(f"{feature} {less}")
        contributions.append(
            F.struct(((value - term["mean"]) * term["coefficient"]).alias("size"), words.alias("words"))
        )
    raising = F.filter(F.array(*contributions), lambda contribution: contribution["size"] > 0)
    largest = F.slice(F.sort_array(raising, asc=False), 1, _REASON_COUNT)
    return F.transform(largest, lambda contribution: contribution["words"])


def _logistic(model: str, terms: Sequence[Row]) -> Column:
    log_odds = F.lit(0.0)
    for term in (term for term in terms if term["model"] == model):
        value = F.lit(1.0) if term["term"] == INTERCEPT else F.expr(term["term"]).cast("double")
        log_odds = log_odds + F.lit(term["coefficient"]) * value
    return 1 / (1 + F.exp(-log_odds))


def _select(scored: DataFrame, task: str, model: str) -> DataFrame:
    return scored.select(
        F.lit(task).alias("task"),
        F.lit(model).alias("model"),
        "fold",
        "as_of",
        "customer_id",
        "probability",
        "label",
        F.coalesce(F.col("reasons"), F.array()).cast("array<string>").alias("reasons"),
    )
