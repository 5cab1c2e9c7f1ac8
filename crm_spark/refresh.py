"""The main job: every stage from sources to marts, and the publication as its last step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime

from pyspark.sql import SparkSession

from crm_spark.cleaning.tables import TABLES as CLEANING_TABLES
from crm_spark.config import Config
from crm_spark.errors import ConfigError
from crm_spark.facts.tables import TABLES as FACTS_TABLES
from crm_spark.features.tables import TABLES as FEATURES_TABLES
from crm_spark.lake import Lake
from crm_spark.marts.tables import TABLES as MARTS_TABLES
from crm_spark.models.matrix import matrix_rules
from crm_spark.models.tables import TABLES as MODELS_TABLES
from crm_spark.models.value import check_value_parts
from crm_spark.progress import RunProgress
from crm_spark.publications import PUBLICATIONS, Publication
from crm_spark.run import Run
from crm_spark.sources.tables import TABLES as SOURCES_TABLES
from crm_spark.stages.cleaning import refresh_cleaning
from crm_spark.stages.facts import refresh_facts
from crm_spark.stages.features import refresh_features, stored_slices
from crm_spark.stages.marts import refresh_marts
from crm_spark.stages.models import refresh_models
from crm_spark.stages.sources import knowable_until, refresh_sources
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
    *,
    allow_stale: bool = False,
    known_as_of: datetime | None = None,
    rebuild: str | None = None,
    backfill: Sequence[date] = (),
    wait_seconds: float = 0,
) -> Refreshed:
    """Bring the lake's tables up to date for `config.as_of` (by default the business's today) and publish them.

    Stages before `first_stage` must be up to date already; a run that ends before the last stage publishes
    nothing, and the next run takes up its tables. `allow_stale` publishes also if a required source has no rows of the
    last day. `known_as_of` sets up to when rows count as known at the date, though it was published otherwise before.
    `rebuild` names the stage from which facts or features are made anew instead of from what changed, and `backfill`
    further days to make features for. Another run over the lake is waited for, up to `wait_seconds`.

    Raises:
        LakeBusyError: if another run still writes the lake then.
        CrmSparkError: for a configuration, source, table or lake that is not as it must be.
    """
    # What is declared for a feature that there is not stops the run before it reads anything.
    matrix_rules(config)
    check_value_parts(config.value_parts, config.features.windows_days)
    names = list(STAGES)
    first, last = (_stage_index(names, stage) for stage in (first_stage, last_stage))
    if first > last:
        raise ConfigError(f"--from {first_stage}: found a later stage than --to {last_stage}")
    if rebuild not in (None, *_GROWING):
        raise ConfigError(f"--rebuild: found {rebuild!r}, expected one of: {', '.join(_GROWING)}")
    lake = Lake(spark, config.lake)
    with lake.locked(wait_seconds):
        run = _start_run(lake, config, run_at)
        late = max(backfill, default=run.as_of)
        if late > run.as_of:
            raise ConfigError(f"--to: found a cut-off on {late}, expected none after as_of, {run.as_of}")
        run.known_as_of, run.backfill = known_as_of, backfill
        run.rebuilt = set(_GROWING[_GROWING.index(rebuild) :]) if rebuild else set()
        run.allow_stale = allow_stale or last < len(names) - 1  # what is not published may be old
        for index, (name, stage) in enumerate(STAGES.items()):
            if index > last:
                progress.say(f"stopped after {last_stage}; nothing is published before a refresh runs to the end")
                return Refreshed(None, is_new=False)
            run.layer = name
            with progress.stage(name, len(stage.tables)) as run.progress:
                run.may_build = index >= first
                stage.refresh(run)
        if run.is_behind or run.known_until < knowable_until(run, run.as_of):
            progress.say(
                f"{run.as_of} has features already, of what was known until {run.known_until:%Y-%m-%d %H:%M} UTC: what "
                "was learned later counts from the next --as-of on, or now with --known-as-of"
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
        slices=stored_slices(lake, config.features.windows_days),
    )


@dataclass(frozen=True)
class _Stage:
    refresh: Callable[[Run], None]
    tables: Sequence[Table]


# Stages whose tables are made from what changed, unless they are asked to make them anew.
_GROWING = ("facts", "features")

STAGES: Mapping[str, _Stage] = {
    "sources": _Stage(refresh_sources, SOURCES_TABLES),
    "cleaning": _Stage(refresh_cleaning, CLEANING_TABLES),
    "facts": _Stage(refresh_facts, FACTS_TABLES),
    "features": _Stage(refresh_features, FEATURES_TABLES),
    "models": _Stage(refresh_models, MODELS_TABLES),
    "marts": _Stage(refresh_marts, MARTS_TABLES),
}

# What the data dictionary lists: the layers' tables and the one that makes them visible.
LAYER_TABLES = [*((name, stage.tables) for name, stage in STAGES.items()), ("publications", (PUBLICATIONS,))]


def _stage_index(names: list[str], stage: str) -> int:
    if stage not in names:
        raise ConfigError(f"--from/--to: found stage {stage!r}, expected one of: {', '.join(names)}")
    return names.index(stage)
