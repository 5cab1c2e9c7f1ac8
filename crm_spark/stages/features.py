"""The features stage: one slice of customers a cut-off."""

from functools import partial

from pyspark.sql import functions as F

from crm_spark.errors import SourceError
from crm_spark.facts.tables import DIM_CUSTOMERS, FACT_CUSTOMER_DAYS, FACT_CUSTOMER_THINGS
from crm_spark.features.customers import build_feature_customers
from crm_spark.features.tables import feature_customers
from crm_spark.models.labels import task_cutoffs
from crm_spark.run import Run
from crm_spark.stages.sources import cutoffs_of


def refresh_features(run: Run) -> None:
    """Bring the slices of all cut-offs that tasks ask for up to date."""
    windows = run.config.features.windows_days
    cutoffs = cutoffs_of(run, task_cutoffs(run.config.tasks.values(), run.as_of))
    table = feature_customers(windows)
    run.update(
        table,
        partial(build_feature_customers, cutoffs=cutoffs, windows_days=windows),
        [DIM_CUSTOMERS, FACT_CUSTOMER_DAYS, FACT_CUSTOMER_THINGS],
        [windows, [(cut.as_of, cut.known_until) for cut in cutoffs]],
    )
    if run.read(table).where(F.col("as_of") == F.lit(run.as_of)).isEmpty():
        raise SourceError(
            f"as_of {run.as_of}: found no customer known before it; expected history: choose a later --as-of, or "
            "map known_at in the sources if their rows were known long before they were taken in"
        )
