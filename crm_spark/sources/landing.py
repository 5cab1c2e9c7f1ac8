"""Landing: source files are kept as the bytes that came, named by their content; nothing is judged here."""

import fnmatch
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path, PurePosixPath

from pyarrow import fs
from pyspark.sql import DataFrame, SparkSession

from crm_spark.config import Source
from crm_spark.errors import SourceError
from crm_spark.sources.tables import INGEST_LEDGER
from crm_spark.tables import declared_rows

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class LandedFile:
    """One row of `ingest_ledger`."""

    source: str
    entity: str
    batch_id: str
    file_name: str
    byte_count: int
    landed_path: str
    ingested_at: datetime


def land_sources(
    sources: Mapping[str, Source], lake_uri: str, known: Sequence[LandedFile], run_at: datetime
) -> list[LandedFile]:
    """Copy every file not seen before into `<lake>/landing`; the ledger's rows afterwards, old and new.

    A file is recognised by its content, so a renamed copy is not taken twice.

    Raises:
        SourceError: if a source has no file, or a known file name comes with other content.
    """
    ledger = {(landed.source, landed.batch_id): landed for landed in known}
    names = {(landed.source, landed.file_name): landed for landed in known}
    for name, source in sources.items():
        for file_system, path in _find_files(name, source):
            batch_id, byte_count = _hash_file(file_system, path)
            file_name = PurePosixPath(path).name
            before = names.get((name, file_name))
            if before is not None and before.batch_id != batch_id:
                raise SourceError(
                    f"sources.{name}: file {file_name} came before with content {before.batch_id[:12]} and now "
                    f"with {batch_id[:12]}; expected new rows in a file of a new name"
                )
            if (name, batch_id) not in ledger:
                landed_path = f"landing/{name}/{batch_id}{PurePosixPath(path).suffix}"
                _copy_file(file_system, path, f"{lake_uri}/{landed_path}")
                landed = LandedFile(name, source.entity, batch_id, file_name, byte_count, landed_path, run_at)
                ledger[name, batch_id] = names[name, file_name] = landed
    return [ledger[key] for key in sorted(ledger)]


def build_ingest_ledger(spark: SparkSession, landed: Sequence[LandedFile]) -> DataFrame:
    """Rows: one per landed file."""
    return declared_rows(spark, INGEST_LEDGER, map(astuple, landed))


def read_landed_files(ledger: DataFrame) -> list[LandedFile]:
    """The ledger's rows on the driver: as many as there are files."""
    rows = [row.asDict() for row in ledger.collect()]
    return [LandedFile(**row | {"ingested_at": row["ingested_at"].astimezone(UTC)}) for row in rows]


def _find_files(name: str, source: Source) -> Iterator[tuple[fs.FileSystem, str]]:
    """The source's files in order of their paths: one file, a folder's files, or those a pattern matches."""
    location = source.path
    if source.package is not None:
        try:
            location = str(resources.files(source.package) / source.path)
        except ModuleNotFoundError:
            raise SourceError(
                f"sources.{name}: found no Python package {source.package}; install it into this environment"
            ) from None
    is_uri = "://" in location
    file_system, path = fs.FileSystem.from_uri(location if is_uri else str(Path(location).absolute()))
    folder, pattern = str(PurePosixPath(path).parent), PurePosixPath(path).name
    info = file_system.get_file_info(path)
    if info.type == fs.FileType.Directory:
        folder, pattern = path, "*"
    selector = fs.FileSelector(folder, allow_not_found=True)
    paths = sorted(
        found.path
        for found in file_system.get_file_info(selector)
        if found.type == fs.FileType.File
        and fnmatch.fnmatchcase(found.base_name, pattern)
        and not found.base_name.startswith((".", "_"))
    )
    if not paths:
        raise SourceError(f"sources.{name}: found no file at {source.path}, expected at least one")
    for file_path in paths:
        yield file_system, file_path


def _hash_file(file_system: fs.FileSystem, path: str) -> tuple[str, int]:
    digest, byte_count = hashlib.sha256(), 0
    with file_system.open_input_stream(path, compression=None) as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
            byte_count += len(block)
    return digest.hexdigest(), byte_count


def _copy_file(file_system: fs.FileSystem, path: str, target: str) -> None:
    """Copy under a temporary name and rename: what stands under a content's name is that content, whole."""
    target_system, target_path = fs.FileSystem.from_uri(target)
    target_system.create_dir(str(PurePosixPath(target_path).parent))
    temporary = f"{target_path}.part"
    fs.copy_files(path, temporary, source_filesystem=file_system, destination_filesystem=target_system)
    target_system.move(temporary, target_path)
