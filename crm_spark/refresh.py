"""The main job: every stage from sources to marts, and the publication as its last step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cache, partial

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from crm_spark.cleaning.clean import Cleaned, build_cleaning_account, clean_entity
from crm_spark.cleaning.reading import count_landed
from crm_spark.cleaning.tables import CLEAN, CLEANING_ACCOUNT, REJECTED
from crm_spark.cleaning.tables import TABLES as CLEANING_TABLES
from crm_spark.config import Config
from crm_spark.errors import ConfigError, SourceError
from crm_spark.facts.customers import build_customer_days, build_customer_things, build_customers
from crm_spark.facts.events import build_contacts, build_order_lines, build_responses
from crm_spark.facts.tables import (
    DIM_CUSTOMERS,
    FACT_CONTACTS,
    FACT_CUSTOMER_DAYS,
    FACT_CUSTOMER_THINGS,
    FACT_ORDER_LINES,
    FACT_RESPONSES,
)
from crm_spark.facts.tables import TABLES as FACTS_TABLES
from crm_spark.features.customers import Cutoff, build_feature_customers
from crm_spark.features.tables import TABLES as FEATURES_TABLES
from crm_spark.features.tables import feature_customers
from crm_spark.lake import PUBLICATIONS, Lake, Publication
from crm_spark.marts.customers import (
    build_customer_360,
    build_demographics,
    build_rfm_cells,
    build_segment_profiles,
)
from crm_spark.marts.models import build_model_deciles, build_model_quality, build_model_rules
from crm_spark.marts.operations import build_data_quality, build_department_weeks
from crm_spark.marts.tables import (
    MART_CUSTOMER_360,
    MART_DATA_QUALITY,
    MART_DEMOGRAPHICS,
    MART_DEPARTMENT_WEEKS,
    MART_MODEL_DECILES,
    MART_MODEL_QUALITY,
    MART_MODEL_RULES,
    MART_RFM_CELLS,
    MART_SEGMENT_PROFILES,
)
from crm_spark.marts.tables import TABLES as MARTS_TABLES
from crm_spark.models.fit import FittedTask, build_coefficients, build_registry, build_rules, fit_tasks
from crm_spark.models.labels import build_labels, task_cutoffs
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
from crm_spark.models.tables import TABLES as MODELS_TABLES
from crm_spark.progress import RunProgress
from crm_spark.run import Run
from crm_spark.session import fixed_plans
from crm_spark.sources.landing import LandedFile, build_ingest_ledger, land_sources, read_landed_files
from crm_spark.sources.tables import INGEST_LEDGER
from crm_spark.sources.tables import TABLES as SOURCES_TABLES
from crm_spark.tables import Table


@dataclass(frozen=True)
class Refreshed:
    """What a refresh came to. `publication` is None if it stopped before its last stage."""

    publication: Publication | None
    is_new: bool


def refresh(
    spark: SparkSession,
    config: Config,
    run_at: datetime,
    progress: RunProgress,
    first_stage: str = "sources",
    last_stage: str = "marts",
) -> Refreshed:
    """Bring the lake's tables up to date for `config.as_of` (by default the business's today) and publish them.

    Stages before `first_stage` must be up to date already; a run that ends before the last stage publishes
    nothing, and the next run takes up its tables.

    Raises:
        CrmSparkError: for a configuration, source, table or lake that is not as it must be.
    """
    names = list(STAGES)
    first, last = (_stage_index(names, stage) for stage in (first_stage, last_stage))
    if first > last:
        raise ConfigError(f"--from {first_stage}: found a later stage than --to {last_stage}")
    lake = Lake(spark, config.lake)
    with lake.locked():
        run = _start_run(lake, config, run_at)
        for index, (name, stage) in enumerate(STAGES.items()):
            if index > last:
                progress.say(f"stopped after {last_stage}; nothing published (run without --to to publish)")
                return Refreshed(None, is_new=False)
            with progress.stage(name, len(stage.tables)) as run.progress:
                run.may_build = index >= first
                stage.refresh(run)
        if run.known_until < _knowable_until(run, run.as_of):
            progress.say(
                f"{run.as_of} was published before, as known until {run.known_until:%Y-%m-%d %H:%M} UTC: "
                "what was learned later counts from the next --as-of on"
            )
        publication = run.publication()
        previous = run.previous
        if previous is not None and previous.publication_id == publication.publication_id:
            return Refreshed(previous, is_new=False)
        lake.publish(publication)
    return Refreshed(publication, is_new=True)


def _start_run(lake: Lake, config: Config, run_at: datetime) -> Run:
    as_of = config.as_of or run_at.astimezone(config.zone()).date()
    return Run(
        config=config,
        lake=lake,
        as_of=as_of,
        known_until=run_at,
        run_at=run_at,
        previous=lake.last_publication(),
        learned_until=run_at,
    )


def _refresh_sources(run: Run) -> None:
    if run.may_build:
        previous = run.previous
        pinned = previous.tables.get(INGEST_LEDGER.name) if previous else None
        known = read_landed_files(run.lake.read(pinned)) if pinned else []
        landed = land_sources(run.config.sources, run.lake.uri, known, run.run_at)
        run.update(
            INGEST_LEDGER,
            lambda: build_ingest_ledger(run.lake.spark, landed),
            given=[(file.source, file.batch_id) for file in landed],
        )
    else:
        run.take(INGEST_LEDGER)
    # Not the clock: a run that takes up another's work shall see what that one saw.
    taken_in = [file.ingested_at for file in read_landed_files(run.read(INGEST_LEDGER))]
    run.learned_until = max(taken_in) + timedelta(microseconds=1)
    (cutoff,) = _cutoffs(run, [run.as_of])
    run.known_until = cutoff.known_until


def _cutoffs(run: Run, days: Sequence[date]) -> list[Cutoff]:
    """With up to when rows count as known at each: if it was published before, as they did then."""
    published = run.lake.published_known_until()
    return [Cutoff(day, published.get(day, _knowable_until(run, day))) for day in days]


def _knowable_until(run: Run, day: date) -> datetime:
    """All that has been taken in; for a past cut-off, what was learned up to some hours after it."""
    midnight = datetime.combine(day, time.min, run.config.zone()).astimezone(UTC)
    return min(run.learned_until, midnight + timedelta(hours=run.config.arrival_hours))


def _refresh_cleaning(run: Run) -> None:
    config, lake = run.config, run.lake
    sources = {name: source.model_dump(mode="json") for name, source in config.sources.items()}

    @cache
    def landed() -> list[LandedFile]:
        return read_landed_files(run.read(INGEST_LEDGER))

    @cache
    def cleaned(entity: str) -> Cleaned:
        return clean_entity(lake.spark, entity, config.sources, landed(), lake.uri, config.currency)

    def update_entity(entity: str) -> None:
        given = [config.currency, {name: source for name, source in sources.items() if source["entity"] == entity}]
        run.update(CLEAN[entity], lambda _: cleaned(entity).accepted, [INGEST_LEDGER], given)
        run.update(REJECTED[entity], lambda _: cleaned(entity).rejected, [INGEST_LEDGER], given)

    run.side_by_side(*(partial(update_entity, entity) for entity in CLEAN))
    run.update(
        CLEANING_ACCOUNT,
        lambda *_: build_cleaning_account(
            lake.spark,
            landed(),
            read_counts=count_landed(lake.spark, config.sources, landed(), lake.uri),
            accepted=[run.read(table) for table in CLEAN.values()],
            rejected=[run.read(table) for table in REJECTED.values()],
            left_out=[cleaned(entity).left_out for entity in CLEAN],
        ),
        [INGEST_LEDGER, *CLEAN.values(), *REJECTED.values()],
        [config.currency, sources],
    )
    lake.spark.catalog.clearCache()  # the keys that cleaning noted


def _refresh_facts(run: Run) -> None:
    zone = run.config.business_time_zone
    run.side_by_side(
        lambda: run.update(
            FACT_ORDER_LINES,
            partial(build_order_lines, time_zone=zone),
            [CLEAN["orders"], CLEAN["products"]],
            zone,
        ),
        lambda: run.update(
            FACT_CONTACTS,
            partial(build_contacts, time_zone=zone),
            [CLEAN["contacts"], CLEAN["campaigns"]],
            zone,
        ),
        lambda: run.update(FACT_RESPONSES, partial(build_responses, time_zone=zone), [CLEAN["responses"]], zone),
    )
    events = [FACT_ORDER_LINES, FACT_CONTACTS, FACT_RESPONSES]
    run.side_by_side(
        lambda: run.update(
            DIM_CUSTOMERS,
            partial(build_customers, time_zone=zone),
            [CLEAN["customers"], *events],
            zone,
        ),
        lambda: run.update(FACT_CUSTOMER_DAYS, build_customer_days, events),
        lambda: run.update(FACT_CUSTOMER_THINGS, build_customer_things, [FACT_ORDER_LINES]),
    )


def _refresh_features(run: Run) -> None:
    windows = run.config.features.windows_days
    cutoffs = _cutoffs(run, task_cutoffs(run.config.tasks.values(), run.as_of))
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


def _refresh_models(run: Run) -> None:
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


def _refresh_marts(run: Run) -> None:
    features = feature_customers(run.config.features.windows_days)
    at_as_of = F.col("as_of") == F.lit(run.as_of)
    run.side_by_side(
        lambda: run.update(
            MART_CUSTOMER_360,
            lambda rows, segments, rfm, scores, registry: build_customer_360(
                rows.where(at_as_of), segments, rfm, scores, registry.where("is_champion").select("task", "model")
            ),
            [features, SEGMENT_CUSTOMERS, SCORE_RFM, MODEL_SCORES, MODEL_REGISTRY],
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
        lambda: run.update(MART_DATA_QUALITY, build_data_quality, [CLEANING_ACCOUNT, *REJECTED.values()]),
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


@dataclass(frozen=True)
class _Stage:
    refresh: Callable[[Run], None]
    tables: Sequence[Table]


STAGES: Mapping[str, _Stage] = {
    "sources": _Stage(_refresh_sources, SOURCES_TABLES),
    "cleaning": _Stage(_refresh_cleaning, CLEANING_TABLES),
    "facts": _Stage(_refresh_facts, FACTS_TABLES),
    "features": _Stage(_refresh_features, FEATURES_TABLES),
    "models": _Stage(_refresh_models, MODELS_TABLES),
    "marts": _Stage(_refresh_marts, MARTS_TABLES),
}

# What the data dictionary lists: the layers' tables and the one that makes them visible.
LAYERS = [*((name, stage.tables) for name, stage in STAGES.items()), ("publications", (PUBLICATIONS,))]


def _stage_index(names: list[str], stage: str) -> int:
    if stage not in names:
        raise ConfigError(f"--from/--to: found stage {stage!r}, expected one of: {', '.join(names)}")
    return names.index(stage)
