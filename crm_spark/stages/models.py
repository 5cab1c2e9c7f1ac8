"""The models stage: prediction tasks and segments, fitted and applied."""

from functools import cache, partial

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from crm_spark.facts.tables import FACT_CONTACTS, FACT_CUSTOMER_DAYS, FACT_RESPONSES
from crm_spark.features.tables import feature_customers
from crm_spark.lake import Lake
from crm_spark.models.fit import FittedTask, build_coefficients, build_registry, build_rules, fit_tasks
from crm_spark.models.labels import build_labels
from crm_spark.models.rfm import fit_rfm_cut_points, score_rfm
from crm_spark.models.score import build_scores
from crm_spark.models.segments import assign_segments, build_candidates, fit_segments
from crm_spark.models.tables import (
    MODEL_COEFFICIENTS,
    MODEL_LABELS,
    MODEL_REGISTRY,
    MODEL_RFM_CUT_POINTS,
    MODEL_RULES,
    MODEL_SCORES,
    SCORE_RFM,
    SEGMENT_CANDIDATES,
    SEGMENT_CUSTOMERS,
)
from crm_spark.run import Run
from crm_spark.session import fixed_plans


def refresh_models(run: Run) -> None:
    """Bring models, scores and segments up to date; classifiers and segments are fitted side by side."""
    config, lake = run.config, run.lake
    features, windows = feature_customers(config.features.windows_days), config.features.windows_days
    tasks = {name: task.model_dump() for name, task in config.tasks.items()}
    at_as_of = F.col("as_of") == F.lit(run.as_of)
    given = [tasks, run.as_of]

    def current(rows: DataFrame) -> DataFrame:
        return rows.where(at_as_of)

    def buyers(rows: DataFrame) -> DataFrame:
        return current(rows).where("order_count > 0")

    # Fits read the same tables, by a session of their own.
    fits = Lake(fixed_plans(lake.spark), lake.uri)

    def update_classifiers() -> None:
        run.update(
            MODEL_LABELS,
            partial(build_labels, tasks=config.tasks, as_of=run.as_of, known_until=run.known_until),
            [features, FACT_CUSTOMER_DAYS, FACT_CONTACTS, FACT_RESPONSES],
            [*given, run.known_until],
        )
        learned_from = [features, MODEL_LABELS]
        models_path = f"models/{run.fingerprint(MODEL_REGISTRY, learned_from, given)[:16]}"

        @cache
        def fitted() -> list[FittedTask]:
            rows, labels = (fits.read(run.pins[table.name]) for table in learned_from)
            return fit_tasks(config.tasks, rows, labels, run.as_of, windows, lake.uri, models_path)

        for table, build in (
            (MODEL_REGISTRY, build_registry),
            (MODEL_RULES, build_rules),
            (MODEL_COEFFICIENTS, build_coefficients),
        ):
            run.update(table, lambda rows, _, build=build: build(fitted(), rows), learned_from, given)
        run.update(
            MODEL_SCORES,
            partial(build_scores, tasks=config.tasks, as_of=run.as_of, models_uri=lake.uri),
            [features, MODEL_LABELS, MODEL_REGISTRY, MODEL_RULES, MODEL_COEFFICIENTS],
            given,
        )

    def update_segments() -> None:
        run.update(MODEL_RFM_CUT_POINTS, lambda rows: fit_rfm_cut_points(buyers(rows)), [features], given)
        run.update(SCORE_RFM, lambda rows, cuts: score_rfm(buyers(rows), cuts), [features, MODEL_RFM_CUT_POINTS], given)
        grouped_by = [features, SCORE_RFM]
        given_segments = [config.segments.model_dump(), run.as_of]
        models_path = f"models/{run.fingerprint(SEGMENT_CANDIDATES, grouped_by, given_segments)[:16]}"

        def build_segments(customers: DataFrame, _: DataFrame) -> DataFrame:
            rows, rfm = (fits.read(run.pins[table.name]) for table in grouped_by)
            return build_candidates(fit_segments(buyers(rows), rfm, config.segments, lake.uri, models_path), customers)

        run.update(SEGMENT_CANDIDATES, build_segments, grouped_by, given_segments)
        run.update(
            SEGMENT_CUSTOMERS,
            lambda rows, candidates: assign_segments(current(rows), candidates, lake.uri),
            [features, SEGMENT_CANDIDATES],
            [run.as_of],
        )

    run.side_by_side(update_classifiers, update_segments)
