"""The sources stage: what is new is landed, and the run learns up to when its rows are known."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta

from crm_spark.cleaning.judging import check_mapping, mapped_columns
from crm_spark.cleaning.rules import check_rules
from crm_spark.cleaning.tables import CLEAN
from crm_spark.features.customers import Cutoff
from crm_spark.run import Run
from crm_spark.sources.extracts import staged_extracts
from crm_spark.sources.landing import LandedFile, build_ingest_ledger, land_sources, read_landed_files, withdraw
from crm_spark.sources.reading import describe_files, gather_files
from crm_spark.sources.tables import INGEST_LEDGER


def refresh_sources(run: Run) -> None:
    """Land what is new; what an earlier run landed counts, whether it was published or not."""
    if run.may_build:
        sources = run.config.sources
        check_rules(run.lake.spark, run.config)
        ledger = run.lake.newest(INGEST_LEDGER)
        known = read_landed_files(run.lake.read(ledger)) if ledger else []
        with staged_extracts(run.lake.spark, sources, run.lake.uri, known, run.run_at) as extracts:
            landed = land_sources(sources, extracts, run.lake.uri, known, run.run_at)
        try:
            described = _describe(run, landed)
        except BaseException:
            # A file that stops the run can be mended or taken away; an extract comes anew.
            for file in set(landed) - set(known):
                run.lake.require_lease()  # lost, it may be named by the ledger of another run
                withdraw(file, run.lake.uri)
            raise
        run.update(
            INGEST_LEDGER,
            lambda: build_ingest_ledger(run.lake.spark, described),
            given=[(file.source, file.batch_id, file.read_as) for file in described],
        )
    else:
        run.take(INGEST_LEDGER)
    # Not the clock: a run that takes up another's work shall see what that one saw.
    taken_in = [file.ingested_at for file in read_landed_files(run.read(INGEST_LEDGER))]
    run.learned_until = max(taken_in) + timedelta(microseconds=1)
    (cutoff,) = cutoffs_of(run, [run.as_of])
    run.known_until = min(run.known_as_of, run.learned_until) if run.known_as_of else cutoff.known_until


def _describe(run: Run, landed: Sequence[LandedFile]) -> list[LandedFile]:
    """The landed files with their columns or faults, if their mappings are possible."""
    sources = run.config.sources
    mapped = {name: mapped_columns(source) for name, source in sources.items()}
    described = describe_files(run.lake.spark, sources, mapped, landed, run.lake.uri)
    for files in gather_files(sources, described):
        check_mapping(files, CLEAN[files.source.entity])
    return described


def cutoffs_of(run: Run, days: Sequence[date]) -> list[Cutoff]:
    """Cut-offs with up to when rows count as known at each: as they did if it was published or has features already."""
    before = {day: known_until for day, known_until in run.slices.items() if day != run.as_of}
    before |= run.lake.published_known_until()
    return [Cutoff(day, before.get(day, knowable_until(run, day))) for day in days]


def knowable_until(run: Run, day: date) -> datetime:
    """All that has been taken in; for a past cut-off, what was learned up to some hours after it."""
    midnight = datetime.combine(day, time.min, run.config.zone()).astimezone(UTC)
    return min(run.learned_until, midnight + timedelta(hours=run.config.arrival_hours))
