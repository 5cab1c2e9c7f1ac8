"""Labels: the only module that looks past a cut-off."""

from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta
from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from crm_spark.config import Task
from crm_spark.models.tables import MODEL_LABELS
from crm_spark.tables import conform, local_rows

_POPULATION_KEY = ["as_of", "customer_id"]


def test_cutoff(task: Task, as_of: date) -> date:
    """The last cut-off whose horizon has passed by `as_of`."""
    return as_of - timedelta(days=task.horizon_days)


def train_cutoffs(task: Task, as_of: date) -> list[date]:
    """The cut-offs that train, the latest first: on that one choices are made."""
    return [as_of - timedelta(days=task.horizon_days * back) for back in range(2, task.train_cutoffs + 2)]


def task_cutoffs(tasks: Iterable[Task], as_of: date) -> list[date]:
    """Every cut-off that tasks need features at, from the earliest to `as_of` itself."""
    needed = {as_of}
    for task in tasks:
        needed |= {test_cutoff(task, as_of), *train_cutoffs(task, as_of)}
    return sorted(needed)


def build_labels(
    features: DataFrame,
    customer_days: DataFrame,
    contacts: DataFrame,
    responses: DataFrame,
    tasks: Mapping[str, Task],
    as_of: date,
    known_until: datetime,
) -> DataFrame:
    """Rows: one per task, cut-off and customer of the task's population at it.

    Only cut-offs whose horizon has passed by `as_of` are labelled, by what was known before `known_until`.
    """
    is_known = F.col("known_at") < F.lit(known_until)
    days = customer_days.where(is_known).groupBy("customer_id", "happened_on").agg(F.sum("order_count").alias("count"))
    purchases = days.where("count > 0").drop("count")
    parts = []
    for name, task in tasks.items():
        fold_of = dict.fromkeys(train_cutoffs(task, as_of), "train")
        fold_of |= {train_cutoffs(task, as_of)[0]: "validation", test_cutoff(task, as_of): "test"}
        folds = local_rows(features.sparkSession, "as_of date, fold string", fold_of.items())
        known = features.select(*_POPULATION_KEY, "order_count").join(F.broadcast(folds), "as_of")
        known = known.withColumn("horizon_ends_on", F.date_add("as_of", task.horizon_days))
        if task.label == "no_purchase":
            labelled = _label_no_purchase(known, purchases)
        else:
            labelled = _label_response(known, contacts.where(is_known), responses.where(is_known))
        parts.append(labelled.withColumn("task", F.lit(name)).select(*MODEL_LABELS.column_names))
    return conform(reduce(DataFrame.unionByName, parts), MODEL_LABELS)


def _label_no_purchase(known: DataFrame, purchases: DataFrame) -> DataFrame:
    """Among those with a purchase before the cut-off: 1 if none follows within the horizon."""
    buyers = _keep_within_horizon(known, purchases).select(*_POPULATION_KEY).distinct()
    population = known.where("order_count > 0").join(buyers.withColumn("bought", F.lit(True)), _POPULATION_KEY, "left")
    return population.withColumn("label", F.col("bought").isNull().cast("int"))


def _label_response(known: DataFrame, contacts: DataFrame, responses: DataFrame) -> DataFrame:
    """Among those contacted within the horizon: 1 if they respond to one of these campaigns within it."""
    contacted = _keep_within_horizon(known, contacts).select(*_POPULATION_KEY, "fold", "campaign_id").distinct()
    responded = (
        _keep_within_horizon(known, responses)
        .select(*_POPULATION_KEY, "campaign_id", F.lit(1).alias("has_responded"))
        .distinct()
    )
    return (
        contacted.join(responded, [*_POPULATION_KEY, "campaign_id"], "left")
        .groupBy(*_POPULATION_KEY, "fold")
        .agg(F.coalesce(F.max("has_responded"), F.lit(0)).alias("label"))
    )


def _keep_within_horizon(known: DataFrame, events: DataFrame) -> DataFrame:
    """The events in `[as_of, as_of + horizon)` beside the customers known at each cut-off."""
    return known.join(events, "customer_id").where("happened_on >= as_of AND happened_on < horizon_ends_on")
