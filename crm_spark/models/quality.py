"""How good scores are: exact measures of ranking and calibration, for all tasks, models and folds in one pass."""

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

_FOLD = ["task", "model", "fold"]
_SMALLEST_PROBABILITY = 1e-15


def measure_quality(scores: DataFrame) -> DataFrame:
    """Rows: one per task, model, fold and metric (task, model, fold, metric, value); unlabelled scores left out.

    AUC counts ties by half. Average precision is the sum of precision times the gain in recall over distinct
    scores. Metrics that need both classes are left out where there is one.
    """
    steps = _score_steps(scores)
    events, others = F.col("events").cast("double"), F.col("others").cast("double")
    before, events_before = F.col("others_before").cast("double"), F.col("events_before").cast("double")
    p = F.greatest(F.least(F.col("probability"), F.lit(1 - _SMALLEST_PROBABILITY)), F.lit(_SMALLEST_PROBABILITY))
    measured = steps.groupBy(*_FOLD).agg(
        F.sum("rows").cast("double").alias("row_count"),
        F.sum(events).alias("event_count"),
        F.sum(others).alias("other_count"),
        F.sum(F.when(F.col("probability") >= 0.5, events).otherwise(others)).alias("right"),
        F.sum(events * before + events * others / 2).alias("others_above_events"),
        F.sum(events * (events_before + events) / (events_before + before + events + others)).alias("precision_sum"),
        F.sum(-events * F.ln(p) - others * F.ln(1 - p)).alias("log_loss_sum"),
        F.sum(events * F.pow(1 - F.col("probability"), 2) + others * F.pow("probability", 2)).alias("brier_sum"),
    )
    n, n_events, n_others = F.col("row_count"), F.col("event_count"), F.col("other_count")
    metrics = {
        "row_count": n,
        "event_share": n_events / n,
        "accuracy": F.col("right") / n,
        "auc": 1 - F.try_divide("others_above_events", n_events * n_others),
        "average_precision": F.try_divide("precision_sum", n_events),
        "log_loss": F.col("log_loss_sum") / n,
        "brier": F.col("brier_sum") / n,
    }
    long = F.inline(F.array(*(F.struct(F.lit(k).alias("metric"), v.alias("value")) for k, v in metrics.items())))
    by_decile = (
        measure_deciles(scores)
        .groupBy(*_FOLD)
        .agg(
            (
                F.sum(F.abs(F.col("mean_probability") - F.col("event_share")) * F.col("customer_count"))
                / F.sum("customer_count")
            ).alias("calibration_error"),
            F.min_by("lift", "decile").alias("top_decile_lift"),
        )
    )
    deciles = F.inline(
        F.array(
            *(
                F.struct(F.lit(name).alias("metric"), F.col(name).alias("value"))
                for name in ("calibration_error", "top_decile_lift")
            )
        )
    )
    rows = measured.select(*_FOLD, long).unionByName(by_decile.select(*_FOLD, deciles))
    return rows.where("value IS NOT NULL")


def measure_deciles(scores: DataFrame) -> DataFrame:
    """Rows: one per task, model, fold and decile of the probability, 1 being the highest.

    Equal probabilities share a decile, the one that their middle falls into; so a decile may be empty.
    """
    steps = _score_steps(scores)
    all_rows = F.sum("rows").over(Window.partitionBy(*_FOLD))
    middle = F.col("rows_before") + F.col("rows") / 2
    decile = F.least(F.floor(middle * 10 / all_rows) + 1, F.lit(10)).cast("int")
    fold_share = F.sum("event_count").over(Window.partitionBy(*_FOLD)) / F.sum("customer_count").over(
        Window.partitionBy(*_FOLD)
    )
    return (
        steps.withColumn("decile", decile)
        .groupBy(*_FOLD, "decile")
        .agg(
            F.sum("rows").alias("customer_count"),
            F.sum("events").alias("event_count"),
            (F.sum(F.col("probability") * F.col("rows")) / F.sum("rows")).alias("mean_probability"),
            (F.sum("events") / F.sum("rows")).alias("event_share"),
        )
        .withColumn("lift", F.try_divide(F.col("event_share"), fold_share))
    )


def _score_steps(scores: DataFrame) -> DataFrame:
    """One row per task, model, fold and distinct probability, with what ranks above it."""
    falling = Window.partitionBy(*_FOLD).orderBy(F.desc("probability"))
    above = falling.rowsBetween(Window.unboundedPreceding, -1)
    counted = (
        scores.where("label IS NOT NULL")
        .groupBy(*_FOLD, "probability")
        .agg(F.count("*").alias("rows"), F.sum("label").alias("events"))
        .withColumn("others", F.col("rows") - F.col("events"))
    )
    return counted.withColumns(
        {f"{name}_before": F.coalesce(F.sum(name).over(above), F.lit(0)) for name in ("rows", "events", "others")}
    )
