"""The cleaning stage: new files are cleaned and added to what stands; where a mapping or rule changed, all are."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cache, partial
from threading import Lock

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from crm_spark.cleaning.clean import Cleaned, Stored, build_cleaning_account, clean_entity
from crm_spark.cleaning.rules import site_rules
from crm_spark.cleaning.settling import Standing
from crm_spark.cleaning.tables import BATCH_PROFILES, CLEAN, CLEANING_ACCOUNT, REJECTED, WITHHELD_KEYS
from crm_spark.config import OF_NO_ROW
from crm_spark.errors import SourceError
from crm_spark.publications import Pin
from crm_spark.run import Run
from crm_spark.sources.landing import LandedFile, read_landed_files
from crm_spark.sources.reading import SourceFiles, count_landed, gather_files
from crm_spark.sources.tables import INGEST_LEDGER
from crm_spark.tables import Table, union_of


@dataclass(frozen=True)
class _Entity:
    """An entity that has sources: its new files, and what makes its tables from them.

    `base` are the versions to which what is `new` is added; without any, all files are new.
    """

    name: str
    new: Sequence[SourceFiles]
    base: Mapping[str, Pin]
    made_of: object
    rules: object
    cleaned: Callable[[], Cleaned]


def refresh_cleaning(run: Run) -> None:
    """Bring the clean tables, the quarantine and their account up to date with the ledger.

    The account is the stage's last commit. It names the versions that it accounts for: the next run adds to these.
    """
    lake, sources = run.lake, run.config.sources
    landed = [file for file in read_landed_files(run.read(INGEST_LEDGER)) if file.source in sources]
    last = lake.find(CLEANING_ACCOUNT)
    run.completed = lake.pins_beside(CLEANING_ACCOUNT) if last else {}
    account = lake.read(last) if last else None
    keys = {tuple(row) for row in account.select("source", "batch_id").collect()} if account else set()
    accounted = {file for file in landed if (file.source, file.batch_id) in keys}
    inputs = gather_files(sources, landed)
    fed = {source.entity for source in sources.values()}
    run.absent = {table.name for tables in (CLEAN, REJECTED) for name, table in tables.items() if name not in fed}
    entities = [
        _plan_entity(run, name, [files for files in inputs if files.source.entity == name], landed, accounted)
        for name in CLEAN
        if name in fed
    ]

    run.rules = {entity.name: entity.rules for entity in entities}
    run.side_by_side(*(partial(_update_entity, run, entity) for entity in entities))
    made_of = [entity.made_of for entity in entities]
    stored = [*(CLEAN[entity.name] for entity in entities), *(REJECTED[entity.name] for entity in entities)]
    added_to = [entity.name for entity in entities if entity.base]
    profiled = run.completed.get(BATCH_PROFILES.name)

    def all_profiles() -> DataFrame:
        before = [lake.read(profiled).where(F.col("entity").isin(added_to))] if profiled and added_to else []
        return union_of([*(entity.cleaned().profiles for entity in entities), *before])

    run.side_by_side(
        lambda: run.update(
            WITHHELD_KEYS, lambda: union_of([entity.cleaned().withheld for entity in entities]), given=made_of
        ),
        lambda: run.update(BATCH_PROFILES, all_profiles, given=made_of),
    )

    def build_account() -> DataFrame:
        return build_cleaning_account(
            lake.spark,
            landed,
            read_counts=count_landed(lake.spark, [files for entity in entities for files in entity.new], lake.uri),
            accepted=_stored(run, entities, CLEAN),
            rejected=_stored(run, entities, REJECTED),
            left_out=[entity.cleaned().left_out for entity in entities],
            before=account.where(F.col("entity").isin(added_to)) if account and added_to else None,
        )

    fingerprint = run.fingerprint(CLEANING_ACCOUNT, stored, made_of)
    run.make(
        CLEANING_ACCOUNT,
        fingerprint,
        lambda: lake.write(
            CLEANING_ACCOUNT,
            build_account(),
            fingerprint,
            beside=[run.pins[table.name] for table in (*stored, WITHHELD_KEYS, BATCH_PROFILES)],
        ),
    )
    lake.clear_cache()  # what cleaning noted of keys and versions
    if not run.allow_stale:
        _check_freshness(run)


def _check_freshness(run: Run) -> None:
    """See that required sources have rows of the last day.

    Raises:
        SourceError: if one has none.
    """
    last_day = run.as_of - timedelta(days=1)
    newest = run.read(BATCH_PROFILES).groupBy("source").agg(F.max("last_happened_at")).collect()
    newest_on_by_source = {name: at.astimezone(run.config.zone()).date() for name, at in newest if at}
    for name, source in run.config.sources.items():
        newest_on = newest_on_by_source.get(name)
        if source.required and (newest_on is None or newest_on < last_day):
            found = f"newest rows of {newest_on}" if newest_on else "no rows"
            raise SourceError(
                f"sources.{name}: found {found}, expected some of {last_day}, the day before as_of; "
                "--allow-stale publishes all the same"
            )


def _plan_entity(
    run: Run,
    name: str,
    inputs: Sequence[SourceFiles],
    landed: Sequence[LandedFile],
    accounted: Set[LandedFile],
) -> _Entity:
    """Find the versions that were made by the same rules from some of the files."""
    lake, rules = run.lake, site_rules(run.config, name)
    mapping = {files.name: files.source.model_dump(mode="json", exclude=OF_NO_ROW) for files in inputs}

    made_by = [asdict(rules), mapping]

    def made_of(files: Sequence[LandedFile]) -> object:
        return [*made_by, [(file.source, file.batch_id, file.fault) for file in files]]

    files = [file for file in landed if file.entity == name]
    done = [file for file in files if file in accounted]
    stored = (CLEAN[name], REJECTED[name])
    base = {
        table.name: pin
        for table in stored
        if (pin := run.completed.get(table.name)) and pin.fingerprint == run.fingerprint(table, [], made_of(done))
    }
    withheld = run.completed.get(WITHHELD_KEYS.name)
    if len(base) < len(stored) or withheld is None or BATCH_PROFILES.name not in run.completed:
        base = {}
    new = [files.but(set(done) if base else set()) for files in inputs]

    @cache
    def clean() -> Cleaned:
        standing = None
        if base and withheld is not None:
            of_entity = lake.read(withheld).where(F.col("entity") == name)
            standing = Standing(lake.read(base[CLEAN[name].name]), of_entity)
        return clean_entity(lake.spark, name, inputs, new, lake.uri, rules, standing)

    one_at_a_time = Lock()

    def cleaned() -> Cleaned:
        with one_at_a_time:
            return clean()

    left_out = {files.name: files.source.leave_out for files in inputs}
    row_rules = [rules.currency, [asdict(check) for check in rules.reject], mapping, left_out]
    return _Entity(name, new, base, made_of(files), row_rules, cleaned)


def _update_entity(run: Run, entity: _Entity) -> None:
    def update(table: Table, rows: Callable[[], DataFrame], removed: Callable[[], DataFrame | None]) -> None:
        fingerprint = run.fingerprint(table, [], entity.made_of)
        base = entity.base.get(table.name)

        def write() -> Pin:
            if base is None:
                return run.lake.write(table, rows(), fingerprint)
            return run.lake.change(table, base, rows(), removed(), fingerprint)

        run.make(table, fingerprint, write)

    update(CLEAN[entity.name], lambda: entity.cleaned().accepted, lambda: entity.cleaned().removed)
    update(REJECTED[entity.name], lambda: entity.cleaned().rejected, lambda: None)


def _stored(run: Run, entities: Sequence[_Entity], tables: Mapping[str, Table]) -> Stored:
    """What this run changed in the stored tables of all entities."""
    names = [(entity, tables[entity.name].name) for entity in entities]
    parts = [run.lake.difference(entity.base.get(name), run.pins[name]) for entity, name in names]
    return Stored([came for came, _ in parts], [went for _, went in parts])
