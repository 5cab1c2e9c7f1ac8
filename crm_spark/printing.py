"""What commands print: lines, and tables of what they found."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from crm_spark.errors import CrmSparkError

if TYPE_CHECKING:  # importing Spark takes seconds; --help and clear errors should not
    from crm_spark.cleaning.preview import Preview
    from crm_spark.publications import Publication
    from crm_spark.replay import Replay

_LEFT: Any = {"title_justify": "left", "title_style": "bold"}


def say(text: str) -> None:
    """A line, of whatever length, as it is."""
    Console(highlight=False).print(text, soft_wrap=True, markup=False)


def print_replay(replayed: "Replay") -> None:
    """What became of the quarantine."""
    if not replayed.rows:
        say("The quarantine is as it was: for the files before, no row has left it, joined it, or is in it otherwise.")
        return
    shown = RichTable("entity", "was rejected for", "is rejected for", "rows", title="Quarantine", **_LEFT)
    for rows in replayed.rows:
        reasons = (", ".join(names) or "-" for names in (rows.reasons_before, rows.reasons))
        shown.add_row(rows.entity, *reasons, str(rows.row_count))
    Console().print(shown)
    for entity, outcomes in replayed.outcomes.items():
        changes = ", ".join(f"{outcome} {change:+}" for outcome, change in outcomes.items() if change)
        say(f"{entity}: {changes or 'nothing else changed'}")
    say("Nothing is published yet: crm-spark refresh does that.")


def print_publications(stored: Sequence["Publication"], limit: int) -> None:
    """Publications, the newest first."""
    from crm_spark.publications import repeated_numbers

    repeats = repeated_numbers(stored)
    shown = RichTable("no", title="Publications", box=SIMPLE_HEAD, padding=0, **_LEFT)
    shown.add_column("id", no_wrap=True)
    for name in ("published at", "as of", "known until"):
        shown.add_column(name, min_width=len("2026-11-01"))
    for name in ("tables", "rows", "repeats"):
        shown.add_column(name, justify="right")
    for found in stored[: -limit - 1 : -1]:
        shown.add_row(
            str(found.publication_no),
            found.publication_id,
            f"{found.published_at:%Y-%m-%d %H:%M}",
            f"{found.as_of}",
            f"{found.known_until:%Y-%m-%d %H:%M}",
            str(len(found.tables)),
            f"{found.row_count:,}",
            str(repeats.get(found.publication_no, "")),
        )
    Console().print(shown)
    if len(stored) > limit:
        say(f"{len(stored) - limit} older ones are not shown; --limit {len(stored)} shows all.")


def print_preview(name: str, preview: "Preview") -> None:
    """What a source's mapping would do to its first rows."""
    files = {0: "a table", 1: "1 file"}.get(preview.file_count, f"the first of {preview.file_count} files")
    say(f"\nsources.{name} gives {preview.entity}: {preview.row_count} rows of {preview.file_name} ({files})\n")
    columns = RichTable("column of the file", "looks like", "filled", "used by", title="What came", **_LEFT)
    for column in preview.columns:
        used_by = ", ".join(column.used_by)
        columns.add_row(escape(column.name), column.looks_like, f"{column.filled_share:.0%}", used_by)
    shown_count = max(map(len, preview.shown.values()), default=0)
    mapped = RichTable(title="What it becomes (times in UTC)", **_LEFT)
    mapped.add_column(f"column of\n{preview.entity}", no_wrap=True)
    for number in range(1, shown_count + 1):
        mapped.add_column(f"good\nrow {number}", overflow="fold")
    for entity_column, values in preview.shown.items():
        mapped.add_row(entity_column, *map(escape, values))
    console = Console()
    console.print(columns)
    console.print(mapped)
    if preview.lacks_known_at:
        say("Mind: known_at has no mapping; rows count as learned when they are taken in, however old they are.")
    for rule, count in preview.warnings.items():
        say(f"Warned of by rules.{rule}: {count} of the good rows.")
    bad_count = preview.row_count - preview.good_count
    for entity_column, count in preview.lost_counts.items():
        say(f"Mind: {entity_column} is NULL in {count} good rows in which the file has a value.")
    say(f"Good rows: {preview.good_count} (keys are compared later, over all files). Rejected rows: {bad_count}.")
    if preview.rejections:
        reasons = RichTable("reason", "rows", "such as", title="What is rejected, and why", **_LEFT)
        for rejection in preview.rejections:
            reasons.add_row(rejection.reason, str(rejection.row_count), escape(rejection.example or ""))
        console.print(reasons)


def print_rows(spark: Any, query: str, limit: int) -> None:
    """The first rows that a query gives.

    Raises:
        CrmSparkError: if Spark does not understand the query.
    """
    from pyspark.errors import AnalysisException

    try:
        rows = spark.sql(query)
    except AnalysisException as error:
        raise CrmSparkError(f"sql: {error.getMessage() or error}".splitlines()[0]) from None
    shown = RichTable()
    for name in rows.columns:
        shown.add_column(escape(name), overflow="fold")
    for row in rows.limit(limit).collect():
        shown.add_row(*("NULL" if value is None else escape(str(value)) for value in row))
    Console().print(shown)
