"""Verification: a lake is proved whole, or what is wrong with it is told; nothing of it is changed."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from py4j.protocol import Py4JJavaError
from pyarrow import fs
from pyspark.errors import PySparkException
from pyspark.sql import functions as F

from crm_spark.cleaning.tables import CLEAN, CLEANING_ACCOUNT, REJECTED
from crm_spark.delta import READ_BY_ALL
from crm_spark.errors import LakeError, raise_fault_of_machine
from crm_spark.features.tables import feature_customers, stored_windows
from crm_spark.lake import Lake
from crm_spark.publications import Pin, Publication, file_faults, standing_sizes
from crm_spark.refresh import LAYER_TABLES
from crm_spark.repairing import read_log
from crm_spark.sources.landing import hash_file, read_landed_files
from crm_spark.sources.tables import INGEST_LEDGER
from crm_spark.tables import Table, schema_differences, summarise, union_of

Begin = Callable[[str], None]


class _UnreadError(Exception):
    """Rows that cannot be read, or not as they are declared: nothing more is asked of them."""


def verify(lake: Lake, begin: Begin) -> Iterator[str]:
    """What is wrong with a lake, a line each, as it is found; nothing if it is whole.

    Looked at are the files of every publication; of the newest also the rows of all tables against their declarations
    and against what was published, the account of the landed files' rows, and these files themselves. `begin` is told
    what is looked at next.

    Raises:
        LakeError: if nothing has been published, or what was cannot be read.
        MachineFaultError: if the storage fails or refuses to be read, which tells nothing of the lake.
    """
    try:
        publications = lake.publications()
    except Exception as error:  # noqa: BLE001 (delta-rs has many)
        raise_fault_of_machine(error)
        raise LakeError(
            f"publications: cannot be read ({type(error).__name__}); run crm-spark repair publications"
        ) from None
    newest = lake.require_publication()
    pins = dict(sorted(newest.tables.items()))
    for name, shown_by in _shown_versions(publications).items():
        begin(f"files of {name}")
        for version, finding in _file_findings(lake, name, shown_by):
            if name in pins and pins[name].version == version:
                del pins[name]
            yield finding
    for name in list(pins):
        begin(f"rows of {name}")
        try:
            yield from _table_findings(lake, pins[name])
        except _UnreadError as finding:
            del pins[name]
            yield str(finding)
    begin("the account of rows")
    yield from _account_findings(lake, pins)
    if INGEST_LEDGER.name in pins:
        yield from _landed_findings(lake, pins[INGEST_LEDGER.name], begin)


def _shown_versions(publications: Iterable[Publication]) -> Mapping[str, Mapping[int, list[int]]]:
    """For each table and version, the numbers of the publications that show it."""
    shown: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for publication in publications:
        for name, pin in publication.tables.items():
            shown[name][pin.version].append(publication.publication_no)
    return shown


def _file_findings(lake: Lake, name: str, shown_by: Mapping[int, list[int]]) -> Iterator[tuple[int, str]]:
    """Versions that cannot be opened, and files that are missing or of another size than the log says.

    Also commits that are damaged and no publication shows: readers who ask for the newest version meet them, and the
    next run does.
    """
    log, sizes = read_log(lake, name), standing_sizes(lake, name)
    for version in sorted(log.torn_commits - shown_by.keys()):
        yield (
            version,
            f"{name}: the commit of version {version}, which no publication shows, is damaged; try crm-spark repair "
            f"{name}",
        )
    for version, numbers in sorted(shown_by.items()):
        shown = f"{name}: version {version}, which {_who_show(numbers)}"
        try:
            faults = file_faults(DeltaTable(lake.path(name), version=version), sizes)
        except (DeltaError, OSError) as error:
            raise_fault_of_machine(error)
            yield version, f"{shown}, cannot be opened ({type(error).__name__}); try crm-spark repair {name}"
            continue
        if not log.can_be_read(version):  # delta-rs may have opened it by a checkpoint that covers it
            yield version, f"{shown}, cannot be opened by Spark (its commit is damaged); try crm-spark repair {name}"
        yield from ((version, f"{shown}: {fault}") for fault in faults)


def _table_findings(lake: Lake, pin: Pin) -> Iterator[str]:
    """Rules of the declaration that the stored table lacks or its rows break, and rows that are not the pinned."""
    stored = DeltaTable(lake.path(pin.name), version=pin.version)
    if stored.protocol().min_reader_version > 1:
        yield f"{pin.name}: found reader version {stored.protocol().min_reader_version}, expected 1, which all know"
    properties = stored.metadata().configuration
    for key, value in READ_BY_ALL.items():
        if properties.get(key, value) != value:
            yield f"{pin.name}: found {key} = {properties[key]}, expected {value}"
    table = _declared_as(pin.name, [field.name for field in stored.schema().fields])
    rows = lake.read(pin)
    if table is None or (differences := schema_differences(dict(rows.dtypes), table)):
        what = "; ".join(differences) if table else "it is not among the program's tables"
        raise _UnreadError(
            f"{pin.name}: is not as this version of the program declares it, so its rows were not checked: {what}"
        )
    for check in table.checks:
        if properties.get(f"delta.constraints.{check.name}") != check.must_hold:
            yield f"{pin.name}: the stored table does not have its rule {check.name}: {check.must_hold}"
    try:
        summary = summarise(rows, table, pin.row_count)
    except (PySparkException, Py4JJavaError) as error:
        raise_fault_of_machine(error)
        files = sorted(set(re.findall(r"part-[\w.-]+\.parquet", str(error))))
        what = ", ".join(files) or type(error).__name__
        raise _UnreadError(f"{pin.name}: version {pin.version} cannot be read: {what}") from None
    yield from (f"{pin.name}: {violation}" for violation in summary.violations)
    if (summary.row_count, summary.content_hash) != (pin.row_count, pin.content_hash):
        yield (
            f"{pin.name}: version {pin.version} has other content than was published: found {summary.row_count} rows "
            f"({summary.content_hash}), expected {pin.row_count} ({pin.content_hash})"
        )


def _declared_as(name: str, columns: Sequence[str]) -> Table | None:
    declared = {table.name: table for _, tables in LAYER_TABLES for table in tables}
    features = feature_customers(stored_windows(columns))
    return (declared | {features.name: features}).get(name)


def _account_findings(lake: Lake, pins: Mapping[str, Pin]) -> Iterator[str]:
    """Files whose rows do not add up, or do not stand where the account says."""
    if CLEANING_ACCOUNT.name not in pins:
        return
    account = lake.read(pins[CLEANING_ACCOUNT.name])
    file = ["source", "batch_id"]
    outcomes = ["accepted_count", "rejected_count", "duplicate_count", "superseded_count", "deletion_count"]
    for row in account.where(f"read_count != {' + '.join(outcomes)}").collect():
        counts = ", ".join(f"{row[name]} {name.removesuffix('_count')}" for name in outcomes)
        yield f"cleaning_account: {row['source']}/{row['batch_id'][:12]}: {row['read_count']} rows read, but {counts}"
    for tables, told, count in (
        (CLEAN, "accepted_count", F.count("*")),
        (REJECTED, "rejected_count", F.sum("row_count")),
    ):
        stored = [pins[table.name] for table in tables.values() if table.name in pins]
        standing = [lake.read(pin).groupBy(*file).agg(count.alias("standing")) for pin in stored]
        if not standing:
            continue
        known = [entity for entity, table in tables.items() if table.name in pins]
        compared = account.where(F.col("entity").isin(known)).join(union_of(standing), file, "full")
        compared = compared.na.fill(0, ["standing", told])
        for row in compared.where(F.col("standing") != F.col(told)).select(*file, told, "standing").collect():
            yield (
                f"cleaning_account: {row['source']}/{row['batch_id'][:12]}: found {row['standing']} rows that stand, "
                f"expected {told} = {row[told]}"
            )


def _landed_findings(lake: Lake, ledger: Pin, begin: Begin) -> Iterator[str]:
    """Landed files that are missing or hold other bytes than came."""
    for file in read_landed_files(lake.read(ledger)):
        begin(file.landed_path)
        file_system, path = fs.FileSystem.from_uri(f"{lake.uri}/{file.landed_path}")
        if file_system.get_file_info(path).type != fs.FileType.File:
            yield f"{file.landed_path} ({file.file_name}): is missing; every row of it is still in the tables"
        elif hash_file(file_system, path) != file.batch_id:
            yield f"{file.landed_path} ({file.file_name}): holds other bytes than came, whose hash is its name"


def _who_show(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"publication {numbers[0]} shows"
    return f"publications {numbers[0]} to {numbers[-1]} show"
