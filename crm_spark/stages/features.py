"""The features stage: one slice of customers a cut-off. Slices stay as they were made; only new ones are made."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from crm_spark.errors import SourceError
from crm_spark.facts.tables import DIM_CUSTOMERS, FACT_CUSTOMER_DAYS, FACT_CUSTOMER_THINGS
from crm_spark.features.customers import Cutoff, build_feature_customers, build_next_slice
from crm_spark.features.tables import feature_customers
from crm_spark.lake import Lake, Pin
from crm_spark.models.labels import task_cutoffs
from crm_spark.run import Run
from crm_spark.stages.facts import facts_rules
from crm_spark.stages.sources import cutoffs_of
from crm_spark.tables import union_of

_LEDGERS = (FACT_CUSTOMER_DAYS, FACT_CUSTOMER_THINGS)
# To plan a slice from another takes some ten seconds, whatever the data; a pass over fewer rows takes less.
MANY_ROWS = 1_000_000
_READS = (DIM_CUSTOMERS, *_LEDGERS)


def stored_slices(lake: Lake, windows_days: Sequence[int]) -> dict[date, datetime]:
    """Up to when rows counted as known at each cut-off that the newest version of the features has."""
    pin = lake.newest(feature_customers(windows_days))
    if pin is None:
        return {}
    rows = lake.query(f"SELECT DISTINCT as_of, known_until FROM {pin.name}", pin)  # noqa: S608
    return {row["as_of"]: row["known_until"].astimezone(UTC) for row in rows}


def refresh_features(run: Run) -> None:
    """Bring the slices of all cut-offs that tasks ask for up to date, and keep those that stand."""
    table = feature_customers(run.config.features.windows_days)
    needed = {*task_cutoffs(run.config.tasks.values(), run.as_of), *run.backfill}
    cutoffs = [cut for cut in cutoffs_of(run, sorted(needed | set(run.slices))) if cut.as_of != run.as_of]
    cutoffs = sorted([*cutoffs, Cutoff(run.as_of, run.known_until)])

    def fingerprint(slices: Mapping[date, datetime]) -> str:
        made_of = [run.config.features.windows_days, facts_rules(run), sorted(slices.items())]
        return run.fingerprint(table, [], made_of)

    wanted = fingerprint({cut.as_of: cut.known_until for cut in cutoffs})
    beside = [run.pins[read.name] for read in _READS]

    def write() -> Pin:
        base, before = run.base(table, lambda _: fingerprint(run.slices))
        if base is None:
            _tell(run, made=len(cutoffs), kept=0)
            return run.lake.write(table, _build_slices(run, cutoffs), wanted, beside)
        standing = [cut for cut in cutoffs if run.slices.get(cut.as_of) == cut.known_until]
        new = [cut for cut in cutoffs if cut not in standing]
        rows = _continue_slices(run, run.lake.read(base), standing if _can_continue(run, before) else [], new)
        _tell(run, made=len(new), kept=len(standing))
        replaced = [cut.as_of for cut in new if cut.as_of in run.slices]
        removed = run.lake.read(base).where(F.col("as_of").isin(replaced)) if replaced else None
        return run.lake.change(table, base, rows, removed, wanted, beside)

    run.make(table, wanted, write)
    if run.read(table).where(F.col("as_of") == F.lit(run.as_of)).isEmpty():
        raise SourceError(
            f"as_of {run.as_of}: found no customer known before it; expected history: choose a later --as-of, or "
            "map known_at in the sources if their rows were known long before they were taken in"
        )


def _tell(run: Run, made: int, kept: int) -> None:
    if run.progress:
        run.progress.tell(f"cut-offs: {made} made, {kept} kept")


def _can_continue(run: Run, before: Mapping[str, Pin]) -> bool:
    """Whether slices follow from others: sooner than from all days where these are many, and if ledgers only grew."""
    now = [run.pins[ledger.name] for ledger in _LEDGERS]
    return sum(pin.row_count for pin in now) >= MANY_ROWS and all(
        run.lake.only_grew(before[pin.name], pin) for pin in now
    )


def _continue_slices(run: Run, features: DataFrame, standing: Sequence[Cutoff], new: Sequence[Cutoff]) -> DataFrame:
    """The slices of new cut-offs: each from the nearest that stands before it; those that have none, in one pass."""
    windows = run.config.features.windows_days
    customers, days, things = (run.read(table) for table in _READS)
    bases = {cut: max((old for old in standing if _is_before(old, cut)), default=None) for cut in new}
    parts = [
        build_next_slice(customers, days, things, features, base, cut, windows) for cut, base in bases.items() if base
    ]
    without = [cut for cut, base in bases.items() if base is None]
    return union_of([*parts, *([_build_slices(run, without)] if without else [])])


def _is_before(base: Cutoff, cutoff: Cutoff) -> bool:
    return base.as_of < cutoff.as_of and base.known_until <= cutoff.known_until


def _build_slices(run: Run, cutoffs: Sequence[Cutoff]) -> DataFrame:
    customers, days, things = (run.read(table) for table in _READS)
    return build_feature_customers(customers, days, things, cutoffs, run.config.features.windows_days)
