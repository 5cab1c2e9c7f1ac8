"""Drift: files of a source have the columns that its files had before, or the run stops and says which differ."""

from collections.abc import Iterable, Mapping

from crm_spark.config import Source
from crm_spark.errors import SourceError


def check_columns(
    name: str, source: Source, before: Iterable[Mapping[str, str]], new: Mapping[str, Mapping[str, str]]
) -> None:
    """Compare `new` files (their names and columns, name to type, in the order of coming) with those `before` them.

    A column that all files had must not be gone, change its type or the case of its name; a new one must be allowed
    by the source's `added_columns`. Fields of JSON may be left out.

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
            _check_file(f"sources.{name}: file {file_name}", source, columns, known, of_all)
        known |= columns
        of_all = set(columns) if of_all is None else of_all & set(columns)


def _check_file(
    where: str, source: Source, columns: Mapping[str, str], known: Mapping[str, str], of_all: Iterable[str]
) -> None:
    spelled = {column.lower(): column for column in known}
    added = [column for column in columns if column not in known]
    for column in added:
        if column.lower() in spelled and spelled[column.lower()] not in columns:
            raise SourceError(f"{where}: found column {column}, expected {spelled[column.lower()]} as in files before")
    gone = [] if source.format == "json" else sorted(set(of_all) - set(columns))
    if gone:
        news = f" (and has new ones: {', '.join(added)})" if added else ""
        raise SourceError(f"{where}: found no column {', '.join(gone)}, expected it as in files before{news}")
    for column, kind in columns.items():
        if column in known and known[column] != kind:
            raise SourceError(f"{where}: found column {column} of type {kind}, expected {known[column]} as before")
    if added and source.added_columns == "stop":
        raise SourceError(
            f"{where}: found a new column {', '.join(added)}, expected those of files before; "
            'added_columns = "allow" takes it'
        )
