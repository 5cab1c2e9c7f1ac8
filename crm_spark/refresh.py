"""The main job: every stage from sources to marts, and the publication as its last step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cache, partial

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from crm_spark.cleaning.clean import Cleaned, build_cleaning_account, clean_entity, count_landed
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
from crm_spark.lake import Lake, Publication
from crm_spark.models.labels import task_cutoffs
from crm_spark.progress import RunProgress
from crm_spark.run import Run
from crm_spark.sources.landing import LandedFile, build_ingest_ledger, land_sources, read_landed_files
from crm_spark.sources.tables import INGEST_LEDGER
from crm_spark.sources.tables import TABLES as SOURCES_TABLES


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
            with progress.stage(name, stage.table_count) as run.progress:
                run.may_build = index >= first
                stage.refresh(run)
        publication = run.publication()
        previous = run.previous
        if previous is not None and previous.publication_id == publication.publication_id:
            return Refreshed(previous, is_new=False)
        lake.publish(publication)
    return Refreshed(publication, is_new=True)


def _start_run(lake: Lake, config: Config, run_at: datetime) -> Run:
    as_of = config.as_of or run_at.astimezone(config.zone()).date()
    run = Run(
        config=config,
        lake=lake,
        as_of=as_of,
        known_until=_known_until(config, as_of, run_at),
        run_at=run_at,
        previous=lake.last_publication(),
    )
    run.known_until = lake.published_known_until().get(as_of, run.known_until)
    return run


def _known_until(config: Config, as_of: date, run_at: datetime) -> datetime:
    """The run's clock, which what it takes in itself precedes; for a past cut-off, some hours after it."""
    midnight = datetime.combine(as_of, time.min, config.zone()).astimezone(UTC)
    return min(run_at + timedelta(microseconds=1), midnight + timedelta(hours=config.arrival_hours))


def _refresh_sources(run: Run) -> None:
    previous = run.previous
    pinned = previous.tables.get(INGEST_LEDGER.name) if previous else None
    known = read_landed_files(run.lake.read(pinned)) if pinned else []
    sources = run.config.sources if run.may_build else {}
    landed = land_sources(sources, run.lake.uri, known, run.run_at)
    run.update(
        INGEST_LEDGER,
        lambda: build_ingest_ledger(run.lake.spark, landed),
        given=[(file.source, file.batch_id) for file in landed],
    )


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
            duplicates=[cleaned(entity).duplicates for entity in CLEAN],
        ),
        [INGEST_LEDGER, *CLEAN.values(), *REJECTED.values()],
        [config.currency, sources],
    )


def _refresh_facts(run: Run) -> None:
    zone = run.config.business_time_zone
    run.side_by_side(
        lambda: run.update(
            FACT_ORDER_LINES,
            lambda orders, products: build_order_lines(orders, products, zone),
            [CLEAN["orders"], CLEAN["products"]],
            zone,
        ),
        lambda: run.update(
            FACT_CONTACTS,
            lambda contacts, campaigns: build_contacts(contacts, campaigns, zone),
            [CLEAN["contacts"], CLEAN["campaigns"]],
            zone,
        ),
        lambda: run.update(
            FACT_RESPONSES, lambda responses: build_responses(responses, zone), [CLEAN["responses"]], zone
        ),
    )
    events = [FACT_ORDER_LINES, FACT_CONTACTS, FACT_RESPONSES]
    run.side_by_side(
        lambda: run.update(
            DIM_CUSTOMERS,
            lambda customers, *facts: build_customers(customers, *facts, zone),
            [CLEAN["customers"], *events],
            zone,
        ),
        lambda: run.update(FACT_CUSTOMER_DAYS, build_customer_days, events),
        lambda: run.update(FACT_CUSTOMER_THINGS, build_customer_things, [FACT_ORDER_LINES]),
    )


def _refresh_features(run: Run) -> None:
    windows = run.config.features.windows_days
    published = run.lake.published_known_until()
    cutoffs = [
        Cutoff(day, published.get(day, _known_until(run.config, day, run.run_at)))
        for day in task_cutoffs(run.config.tasks.values(), run.as_of)
        if day != run.as_of
    ] + [Cutoff(run.as_of, run.known_until)]
    table = feature_customers(windows)
    run.update(
        table,
        lambda *facts: build_feature_customers(*facts, cutoffs=cutoffs, windows_days=windows),
        [DIM_CUSTOMERS, FACT_CUSTOMER_DAYS, FACT_CUSTOMER_THINGS],
        [windows, [(cut.as_of, cut.known_until) for cut in cutoffs]],
    )
    if run.read(table).where(F.col("as_of") == F.lit(run.as_of)).isEmpty():
        raise SourceError(
            f"as_of {run.as_of}: found no customer known before it; expected history: choose a later --as-of, or "
            "map known_at in the sources if their rows were known long before they were taken in"
        )


@dataclass(frozen=True)
class _Stage:
    refresh: Callable[[Run], None]
    table_count: int


STAGES: Mapping[str, _Stage] = {
    "sources": _Stage(_refresh_sources, len(SOURCES_TABLES)),
    "cleaning": _Stage(_refresh_cleaning, len(CLEANING_TABLES)),
    "facts": _Stage(_refresh_facts, len(FACTS_TABLES)),
    "features": _Stage(_refresh_features, len(FEATURES_TABLES)),
}


def _stage_index(names: list[str], stage: str) -> int:
    if stage not in names:
        raise ConfigError(f"--from/--to: found stage {stage!r}, expected one of: {', '.join(names)}")
    return names.index(stage)
