"""The marts stage: what analysts read."""

from functools import partial, reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from crm_spark.cleaning.tables import BATCH_PROFILES, CLEAN, CLEANING_ACCOUNT, REFERENCES, REJECTED
from crm_spark.facts.tables import FACT_ORDER_LINES
from crm_spark.features.tables import feature_customers
from crm_spark.marts.customers import (
    build_customer_360,
    build_demographics,
    build_outliers,
    build_rfm_cells,
    build_segment_profiles,
)
from crm_spark.marts.models import build_model_deciles, build_model_quality, build_model_rules
from crm_spark.marts.operations import build_data_quality, build_department_weeks, count_missing
from crm_spark.marts.tables import (
    MART_CUSTOMER_360,
    MART_DATA_QUALITY,
    MART_DEMOGRAPHICS,
    MART_DEPARTMENT_WEEKS,
    MART_MODEL_DECILES,
    MART_MODEL_QUALITY,
    MART_MODEL_RULES,
    MART_OUTLIERS,
    MART_RFM_CELLS,
    MART_SEGMENT_PROFILES,
)
from crm_spark.models.tables import (
    MODEL_OUTLIER_LIMITS,
    MODEL_REGISTRY,
    MODEL_RULES,
    MODEL_SCORES,
    SCORE_RFM,
    SCORE_VALUE,
    SEGMENT_CUSTOMERS,
)
from crm_spark.run import Run
from crm_spark.sources.tables import INGEST_LEDGER
from crm_spark.tables import local_rows


def refresh_marts(run: Run) -> None:
    """Bring the marts up to date."""
    features = feature_customers(run.config.features.windows_days)
    at_as_of = F.col("as_of") == F.lit(run.as_of)
    run.side_by_side(
        lambda: run.update(
            MART_CUSTOMER_360,
            lambda rows, segments, rfm, values, scores, registry: build_customer_360(
                rows.where(at_as_of),
                segments,
                rfm,
                values,
                scores,
                registry.where("is_champion").select("task", "model"),
            ),
            [features, SEGMENT_CUSTOMERS, SCORE_RFM, SCORE_VALUE, MODEL_SCORES, MODEL_REGISTRY],
            run.as_of,
        ),
        lambda: run.update(MART_MODEL_QUALITY, build_model_quality, [MODEL_SCORES, MODEL_REGISTRY]),
        lambda: run.update(MART_MODEL_DECILES, build_model_deciles, [MODEL_SCORES]),
        lambda: run.update(MART_MODEL_RULES, build_model_rules, [MODEL_RULES]),
        lambda: run.update(
            MART_DEPARTMENT_WEEKS,
            partial(build_department_weeks, as_of=run.as_of, known_until=run.known_until),
            [FACT_ORDER_LINES],
            [run.as_of, run.known_until],
        ),
        lambda: run.update(
            MART_OUTLIERS,
            lambda rows, limits: build_outliers(rows.where(at_as_of), limits, run.config.outliers),
            [features, MODEL_OUTLIER_LIMITS],
            [run.as_of, sorted(run.config.outliers)],
        ),
        lambda: _update_data_quality(run),
    )
    run.side_by_side(
        lambda: run.update(
            MART_SEGMENT_PROFILES,
            lambda customers, rows: build_segment_profiles(customers, rows.where(at_as_of)),
            [MART_CUSTOMER_360, features],
            run.as_of,
        ),
        lambda: run.update(MART_RFM_CELLS, build_rfm_cells, [MART_CUSTOMER_360]),
        lambda: run.update(MART_DEMOGRAPHICS, build_demographics, [MART_CUSTOMER_360]),
    )


def _update_data_quality(run: Run) -> None:
    def build(account: DataFrame, ledger: DataFrame, profiles: DataFrame, *tables: DataFrame) -> DataFrame:
        clean = dict(zip(CLEAN, tables, strict=False))
        # Where an entity has no source, nothing is missing from it.
        references = {
            entity: {column: target for column, target in columns.items() if CLEAN[target].name not in run.absent}
            for entity, columns in REFERENCES.items()
        }
        missing = [count_missing(columns, clean[entity], clean) for entity, columns in references.items() if columns]
        none = local_rows(run.lake.spark, "source string, batch_id string, row_count bigint, rule string", [])
        return build_data_quality(
            account, ledger, profiles, reduce(DataFrame.unionByName, missing, none), tables[len(CLEAN) :]
        )

    reads = [CLEANING_ACCOUNT, INGEST_LEDGER, BATCH_PROFILES, *CLEAN.values(), *REJECTED.values()]
    run.update(MART_DATA_QUALITY, build, reads)
