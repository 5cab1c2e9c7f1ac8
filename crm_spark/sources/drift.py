"""Drift: files of a source have the columns that its files had before, or the run stops and says which differ."""

from collections.abc import Collection, Iterable, Mapping

from crm_spark.config import Source
from crm_spark.errors import SourceError


def check_columns(
    name: str,
    source: Source,
    mapped: Collection[str],
    before: Iterable[Mapping[str, str]],
    new: Mapping[str, Mapping[str, str]],
) -> None:
    """Compare `new` files (their names and columns, name to type, in the order of coming) with those `before` them.

    A column that all files had must not be gone, change its type or the case of its name, and there must be no new one.
    The source's `other_columns` may allow new ones and the loss of those that are not `mapped` (names in lower case).
    Fields of JSON may be left out.

    Raises:
        SourceError: if a file differs; the first difference is named.
    """
    known: dict[str, str] = {}
    of_all: set[str] | None = None
    for columns in before:
        known |= columns
        of_all = set(columns) if of_all is None else of_all & set(columns)
    for file_name, columns in new.items():
        if of_all is not None:
            where = f"sources.{name}: file {file_name}"
            must_be = set() if source.format == "json" else of_all
            if source.other_columns == "allow":
                must_be = {column for column in must_be if column.lower() in mapped}
            way_out = (
                "a view that has the columns of before can be its table"
                if source.is_extracted
                else "files of another form need a source of their own"
            )
            _check_file(where, columns, known, must_be, way_out, may_be_new=source.other_columns == "allow")
        known |= columns
        of_all = set(columns) if of_all is None else of_all & set(columns)


def _check_file(
    where: str,
    columns: Mapping[str, str],
    known: Mapping[str, str],
    must_be: Collection[str],
    way_out: str,
    *,
    may_be_new: bool,
) -> None:
    if must_be and not set(columns) & set(known):
        # Of a file without a header these would be values, perhaps of a person.
        raise SourceError(f"{where}: found none of the columns of files before; has it a header line?")
    spelled = {column.lower(): column for column in known}
    added = [column for column in columns if column not in known]
    for column in added:
        if column.lower() in spelled and spelled[column.lower()] not in columns:
            raise SourceError(f"{where}: found column {column}, expected {spelled[column.lower()]} as in files before")
    gone = sorted(set(must_be) - set(columns))
    if gone:
        news = f" (and has new ones: {', '.join(added)})" if added else ""
        raise SourceError(
            f"{where}: found no column {', '.join(gone)}, expected it as in files before{news}; {way_out}"
        )
    for column, kind in columns.items():
        if column in known and known[column] != kind:
            raise SourceError(
                f"{where}: found column {column} of type {kind}, expected {known[column]} as before; {way_out}"
            )
    if added and not may_be_new:
        raise SourceError(
            f"{where}: found a new column {', '.join(added)}, expected those of files before; "
            'other_columns = "allow" takes it'
        )
