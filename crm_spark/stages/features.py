"""The features stage: one slice of customers a cut-off. Slices stay as they were made; only new ones are made."""

from collections.abc import Sequence
from datetime import UTC, date, datetime

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from crm_spark.errors import SourceError
from crm_spark.facts.tables import DIM_CUSTOMERS, FACT_CUSTOMER_DAYS, LEDGERS
from crm_spark.features.customers import Cutoff, Ledgers, build_feature_customers, build_next_slice
from crm_spark.features.tables import feature_customers
from crm_spark.lake import Lake, content_fingerprint
from crm_spark.models.labels import task_cutoffs
from crm_spark.publications import Pin
from crm_spark.run import Run
from crm_spark.stages.facts import ENTITIES, rules_of
from crm_spark.stages.sources import cutoffs_of
from crm_spark.tables import union_of

_READS = (DIM_CUSTOMERS, *LEDGERS)

# To plan a slice from another takes longer than to plan a pass over all days, so over few rows it does not pay. From
# how many on it does was not measured.
MANY_ROWS = 1_000_000


def stored_slices(lake: Lake, windows_days: Sequence[int]) -> dict[date, datetime]:
    """Up to when rows counted as known at each cut-off that the newest version of the features has."""
    pin = lake.newest(feature_customers(windows_days))
    if pin is None:
        return {}
    rows = lake.query(f"SELECT DISTINCT as_of, known_until FROM {pin.name}", pin)  # noqa: S608
    return {row["as_of"]: row["known_until"].astimezone(UTC) for row in rows}


def refresh_features(run: Run) -> None:
    """Bring the slices of all cut-offs that tasks ask for up to date, and keep those that stand."""
    windows = run.config.features.windows_days
    table = feature_customers(windows)
    made_by = run.fingerprint(table, [], [windows, rules_of(run, [*ENTITIES, "customers"])])
    base, before = run.base(table, lambda noted, _: noted.fingerprint.startswith(made_by), LEDGERS)
    needed = {*task_cutoffs(run.config.tasks.values(), run.as_of), *run.backfill, *run.slices}
    past = cutoffs_of(run, sorted(needed - {run.as_of}))
    cutoffs = sorted([*past, Cutoff(run.as_of, run.known_until)])
    kept = [cut for cut in cutoffs if base and run.slices.get(cut.as_of) == cut.known_until]
    new = [cut for cut in cutoffs if cut not in kept]
    fingerprint = f"{made_by}:{content_fingerprint([(cut.as_of, cut.known_until) for cut in cutoffs])}"
    beside = [run.pins[read.name] for read in _READS]

    def write() -> Pin:
        if run.progress:
            run.progress.tell(f"cut-offs: {len(new)} made, {len(kept)} kept")
        if base is None:
            return run.lake.write(table, _build_slices(run, new), fingerprint, beside)
        features = run.lake.read(base)
        replaced = [cut.as_of for cut in new if cut.as_of in run.slices]
        removed = features.where(F.col("as_of").isin(replaced)) if replaced else None
        return run.lake.change(table, base, _continue_slices(run, features, kept, new), removed, fingerprint, beside)

    if base is None:  # a version with this fingerprint may be there, of ledgers that were made anew since
        run.rebuilt = {*run.rebuilt, run.layer}
    run.make(table, fingerprint, write)
    run.is_behind = Cutoff(run.as_of, run.known_until) in kept and any(
        before[ledger.name].content_hash != run.pins[ledger.name].content_hash for ledger in LEDGERS
    )
    if run.read(table).where(F.col("as_of") == F.lit(run.as_of)).isEmpty():
        raise SourceError(
            f"as_of {run.as_of}: found no customer known before it; expected history: choose a later --as-of, or "
            "map known_at in the sources if their rows were known long before they were taken in"
        )


def _continue_slices(run: Run, features: DataFrame, kept: Sequence[Cutoff], new: Sequence[Cutoff]) -> DataFrame:
    """The slices of new cut-offs: each from the nearest kept one before it; those that have none, in one pass."""
    row_count = sum(run.pins[ledger.name].row_count for ledger in LEDGERS)
    bases = kept if row_count >= MANY_ROWS else []
    base_of = {cut: max((base for base in bases if _is_before(base, cut)), default=None) for cut in new}
    customers, ledgers = run.read(DIM_CUSTOMERS), _ledgers(run)
    windows = run.config.features.windows_days
    parts = [
        build_next_slice(customers, ledgers, features, base, cut, windows) for cut, base in base_of.items() if base
    ]
    without = [cut for cut, base in base_of.items() if base is None]
    return union_of([*parts, *([_build_slices(run, without)] if without else [])])


def _is_before(base: Cutoff, cutoff: Cutoff) -> bool:
    return base.as_of < cutoff.as_of and base.known_until <= cutoff.known_until


def _build_slices(run: Run, cutoffs: Sequence[Cutoff]) -> DataFrame:
    customers, ledgers = run.read(DIM_CUSTOMERS), _ledgers(run)
    return build_feature_customers(customers, ledgers, cutoffs, run.config.features.windows_days)


def _ledgers(run: Run) -> Ledgers:
    pin = run.pins[FACT_CUSTOMER_DAYS.name]
    events = {row["event"] for row in run.lake.query(f"SELECT DISTINCT event FROM {pin.name}", pin)}  # noqa: S608
    days, things, products = (run.read(ledger) for ledger in LEDGERS)
    return Ledgers(days, things, products, events)
