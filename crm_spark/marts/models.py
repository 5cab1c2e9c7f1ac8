"""Marts about models: how good they are, and the trees in words."""

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from crm_spark.marts.tables import MART_MODEL_DECILES, MART_MODEL_QUALITY, MART_MODEL_RULES
from crm_spark.models.quality import measure_deciles, measure_quality
from crm_spark.tables import conform


def build_model_quality(scores: DataFrame, registry: DataFrame) -> DataFrame:
    """Rows: one per task, model, fold and metric; on the validation fold the AUC that choices were made by."""
    chosen_by = registry.select(
        "task",
        "model",
        F.lit("validation").alias("fold"),
        F.lit("auc").alias("metric"),
        F.col("validation_auc").alias("value"),
    )
    return conform(measure_quality(scores).unionByName(chosen_by), MART_MODEL_QUALITY)


def build_model_deciles(scores: DataFrame) -> DataFrame:
    """Rows: one per task, model, fold and decile of the probability."""
    return conform(measure_deciles(scores).select(*MART_MODEL_DECILES.column_names), MART_MODEL_DECILES)


def build_model_rules(rules: DataFrame) -> DataFrame:
    """Rows: one per leaf, the most probable first."""
    by_probability = Window.partitionBy("task").orderBy(F.desc("probability"), "leaf_no")
    worded = rules.withColumns(
        {
            "rule_no": F.row_number().over(by_probability),
            "rule": F.coalesce(F.nullif(F.array_join("conditions", " and "), F.lit("")), F.lit("all customers")),
        }
    )
    return conform(worded.select(*MART_MODEL_RULES.column_names), MART_MODEL_RULES)
