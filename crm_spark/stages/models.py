"""The models stage: prediction tasks and segments, fitted and applied."""

from functools import cache, partial

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from crm_spark.facts.tables import FACT_CONTACTS, FACT_CUSTOMER_DAYS, FACT_RESPONSES
from crm_spark.features.tables import feature_customers
from crm_spark.lake import Lake
from crm_spark.models.fit import (
    FittedTask,
    build_coefficients,
    build_registry,
    build_rules,
    fit_tasks,
    training_rows,
)
from crm_spark.models.imputation import add_last_known, build_imputations
from crm_spark.models.labels import build_labels, task_cutoffs
from crm_spark.models.matrix import matrix_rules
from crm_spark.models.outliers import build_outlier_limits
from crm_spark.models.rfm import fit_rfm_cut_points, score_rfm
from crm_spark.models.score import build_scores
from crm_spark.models.segments import SEGMENT_FEATURES, assign_segments, build_candidates, fit_segments
from crm_spark.models.tables import (
    MODEL_COEFFICIENTS,
    MODEL_IMPUTATIONS,
    MODEL_LABELS,
    MODEL_OUTLIER_LIMITS,
    MODEL_REGISTRY,
    MODEL_RFM_CUT_POINTS,
    MODEL_RULES,
    MODEL_SCORES,
    MODEL_VALUE_LIMITS,
    SCORE_RFM,
    SCORE_VALUE,
    SEGMENT_CANDIDATES,
    SEGMENT_CUSTOMERS,
)
from crm_spark.models.value import fit_value_limits, score_value
from crm_spark.run import Run
from crm_spark.session import fixed_plans


def refresh_models(run: Run) -> None:
    """Bring models, scores and segments up to date; classifiers and segments are fitted side by side."""
    config, lake = run.config, run.lake
    features, rules = feature_customers(config.features.windows_days), matrix_rules(config)
    tasks = {name: task.model_dump() for name, task in config.tasks.items()}
    imputation = {name: rule.model_dump() for name, rule in rules.imputation.items()}
    outliers = {name: rule.model_dump() for name, rule in rules.outliers.items()}
    at_as_of = F.col("as_of") == F.lit(run.as_of)
    given = [tasks, run.as_of]
    cutoffs = task_cutoffs(config.tasks.values(), run.as_of)

    def needed(rows: DataFrame) -> DataFrame:
        """The slices that this run's models ask for, of all that were made since the first refresh."""
        return rows.where(F.col("as_of").isin(cutoffs))

    def current(rows: DataFrame) -> DataFrame:
        return rows.where(at_as_of)

    def buyers(rows: DataFrame) -> DataFrame:
        return current(rows).where("order_count > 0")

    # Fits read the same tables, by a session of their own.
    fits = Lake(fixed_plans(lake.spark), lake.uri)

    def update_labels() -> None:
        run.update(
            MODEL_LABELS,
            partial(build_labels, tasks=config.tasks, as_of=run.as_of, known_until=run.known_until),
            [features, FACT_CUSTOMER_DAYS, FACT_CONTACTS, FACT_RESPONSES],
            [*given, run.known_until],
        )

    def update_rfm() -> None:
        run.update(MODEL_RFM_CUT_POINTS, lambda rows: fit_rfm_cut_points(buyers(rows)), [features], given)
        run.update(
            SCORE_RFM,
            lambda rows, cuts: score_rfm(buyers(rows), cuts, config.rfm),
            [features, MODEL_RFM_CUT_POINTS],
            [*given, config.rfm.model_dump()],
        )

    def update_value() -> None:
        given_parts = [run.as_of, {name: part.model_dump() for name, part in config.value_parts.items()}]
        run.update(
            MODEL_VALUE_LIMITS,
            lambda rows: fit_value_limits(current(rows), config.value_parts),
            [features],
            given_parts,
        )
        run.update(
            SCORE_VALUE,
            lambda rows, limits: score_value(current(rows), limits, config.value_parts),
            [features, MODEL_VALUE_LIMITS],
            given_parts,
        )

    def update_classifiers() -> None:
        is_capped = any(task.cap_outliers for task in config.tasks.values())
        given_fits = [*given, imputation, outliers if is_capped else None]
        learned_from = [features, MODEL_LABELS]
        models_path = f"models/{run.fingerprint(MODEL_REGISTRY, learned_from, given_fits)[:16]}"

        @cache
        def fitted() -> list[FittedTask]:
            rows, labels = (fits.read(run.pins[table.name]) for table in learned_from)
            return fit_tasks(config.tasks, needed(rows), labels, run.as_of, rules, lake.uri, models_path)

        for table, build in (
            (MODEL_REGISTRY, build_registry),
            (MODEL_RULES, build_rules),
            (MODEL_COEFFICIENTS, build_coefficients),
        ):
            run.update(table, lambda rows, _, build=build: build(fitted(), rows), learned_from, given_fits)
        run.update(
            MODEL_SCORES,
            lambda rows, labels, registry, tree_rules, coefficients: build_scores(
                needed(rows),
                labels,
                registry,
                tree_rules,
                coefficients,
                tasks=config.tasks,
                imputation=rules.imputation,
                as_of=run.as_of,
                models_uri=lake.uri,
            ),
            [features, MODEL_LABELS, MODEL_REGISTRY, MODEL_RULES, MODEL_COEFFICIENTS],
            given_fits,
        )

    def update_segments() -> None:
        grouped_by = [features, SCORE_RFM]
        settings = config.segments
        given_fit = [settings.model_dump(), run.as_of, imputation, outliers if settings.cap_outliers else None]
        models_path = f"models/{run.fingerprint(SEGMENT_CANDIDATES, grouped_by, given_fit)[:16]}"

        def build_segments(customers: DataFrame, _: DataFrame) -> DataFrame:
            rows, rfm = (fits.read(run.pins[table.name]) for table in grouped_by)
            seen = buyers(add_last_known(needed(rows), rules.imputation))
            return build_candidates(fit_segments(seen, rfm, settings, rules, lake.uri, models_path), customers)

        run.update(SEGMENT_CANDIDATES, build_segments, grouped_by, given_fit)
        run.update(
            SEGMENT_CUSTOMERS,
            lambda rows, candidates: assign_segments(
                current(add_last_known(needed(rows), rules.imputation)), candidates, lake.uri
            ),
            [features, SEGMENT_CANDIDATES],
            [run.as_of, imputation],
        )

    # The fits find the same values in the same rows. They do not read these tables, so that a rule that no model asks
    # for, or a model that others do not depend on, can change without fitting them again.
    def update_preparations() -> None:
        def rows_by_use(rows: DataFrame, labels: DataFrame) -> dict[str, DataFrame]:
            by_task = {f"tasks.{name}": training_rows(needed(rows), labels, name, rules) for name in config.tasks}
            return by_task | {"segments": buyers(rows).select(*SEGMENT_FEATURES)}

        run.update(
            MODEL_IMPUTATIONS,
            lambda rows, labels: build_imputations(rows_by_use(rows, labels), rules.imputation),
            [features, MODEL_LABELS],
            [*given, imputation],
        )
        capped_uses = [f"tasks.{name}" for name, task in config.tasks.items() if task.cap_outliers]
        capped_uses += ["segments"] if config.segments.cap_outliers else []
        run.update(
            MODEL_OUTLIER_LIMITS,
            lambda rows, labels: build_outlier_limits(
                rows_by_use(rows, labels) | {"mart_outliers": current(rows)}, rules.outliers, capped_uses
            ),
            [features, MODEL_LABELS],
            [*given, outliers, capped_uses],
        )

    run.side_by_side(update_labels, update_rfm, update_value)
    run.side_by_side(update_classifiers, update_segments, update_preparations)
