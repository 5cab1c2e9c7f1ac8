"""Landing: source files are kept as the bytes that came, named by their content; nothing is judged here."""

import fnmatch
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
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
_SAMPLE_BYTES = 1 << 22


@dataclass(frozen=True)
class LandedFile:
    """One row of `ingest_ledger`."""

    source: str
    entity: str
    batch_id: str
    file_name: str
    byte_count: int
    modified_at: datetime | None
    landed_path: str
    ingested_at: datetime
    read_as: str = ""
    columns: tuple[tuple[str, str], ...] = ()
    fault: str | None = None
    extracted_until: str | None = None

    @property
    def has_rows(self) -> bool:
        """A file of no bytes has not even a header."""
        return self.byte_count > 0 and self.fault is None


@dataclass(frozen=True)
class Arrival:
    """A file that a source brings: one of its own, or an extract, which stands in the lake already."""

    file_system: fs.FileSystem
    info: fs.FileInfo
    file_name: str
    is_extract: bool = False
    extracted_until: str | None = None


def land_sources(
    sources: Mapping[str, Source],
    extracts: Mapping[str, Sequence[Arrival]],
    lake_uri: str,
    known: Sequence[LandedFile],
    run_at: datetime,
) -> list[LandedFile]:
    """Take every file not seen before into `<lake>/landing`; the ledger's rows afterwards, old and new.

    A file is recognised by its content, so a renamed copy is not taken twice. The content of a known name whose size
    and time of writing are those of before is not read again: a night costs what is new.

    Raises:
        SourceError: if a source has no file, or a known file name comes with other content.
    """
    ledger = {(landed.source, landed.batch_id): landed for landed in known}
    names = {(landed.source, landed.file_name): landed for landed in known}
    new: list[tuple[Arrival, LandedFile]] = []
    for name, source in sources.items():
        for file in extracts[name] if source.is_extracted else find_files(name, source):
            file_name, info = file.file_name, file.info
            before = names.get((name, file_name))
            if before is not None and _looks_like(info, before):
                continue
            batch_id = hash_file(file.file_system, info.path)
            if before is not None and before.batch_id != batch_id:
                raise SourceError(
                    f"sources.{name}: file {file_name} came before with content {before.batch_id[:12]} and now "
                    f"with {batch_id[:12]}; expected new rows in a file of a new name"
                )
            if (name, batch_id) not in ledger:
                landed_path = f"landing/{name}/{batch_id}{PurePosixPath(file_name).suffix}"
                landed = LandedFile(
                    name, source.entity, batch_id, file_name, info.size, info.mtime, landed_path, run_at,
                    extracted_until=file.extracted_until,
                )  # fmt: skip
                ledger[name, batch_id] = names[name, file_name] = landed
                new.append((file, landed))
    for file, landed in new:
        _take_in(file, landed, lake_uri)
    return [ledger[key] for key in sorted(ledger)]


def withdraw(file: LandedFile, lake_uri: str) -> None:
    """Take a file out of the lake again that no ledger names."""
    file_system, path = fs.FileSystem.from_uri(f"{lake_uri}/{file.landed_path}")
    file_system.delete_file(path)


def build_ingest_ledger(spark: SparkSession, landed: Sequence[LandedFile]) -> DataFrame:
    """Rows: one per landed file."""
    rows = [
        asdict(file) | {"columns": [{"name": name, "type": kind} for name, kind in file.columns]} for file in landed
    ]
    return declared_rows(spark, INGEST_LEDGER, ([row[name] for name in INGEST_LEDGER.column_names] for row in rows))


def read_landed_files(ledger: DataFrame) -> list[LandedFile]:
    """The ledger's rows on the driver: as many as there are files, always in the same order.

    A ledger of an earlier version may lack columns that have come since.
    """
    files = []
    for row in ledger.collect():
        values = row.asDict()
        values |= {name: values.get(name) and values[name].astimezone(UTC) for name in ("modified_at", "ingested_at")}
        values["columns"] = tuple((column["name"], column["type"]) for column in values.get("columns", ()))
        files.append(LandedFile(**values))
    return sorted(files, key=lambda file: (file.source, file.batch_id))


def _looks_like(info: fs.FileInfo, before: LandedFile) -> bool:
    return info.size == before.byte_count and info.mtime is not None and info.mtime == before.modified_at


def find_files(name: str, source: Source) -> Iterator[Arrival]:
    """The source's files in order of their paths: one file, a folder's files, or those a pattern matches.

    Raises:
        SourceError: if there is none.
    """
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
    files = [
        found
        for found in file_system.get_file_info(selector)
        if found.type == fs.FileType.File
        and fnmatch.fnmatchcase(found.base_name, pattern)
        and not found.base_name.startswith((".", "_"))
    ]
    if not files:
        raise SourceError(f"sources.{name}: found no file at {source.path}, expected at least one")
    for file in sorted(files, key=lambda found: found.path):
        yield Arrival(file_system, file, file.base_name)


def _take_in(file: Arrival, landed: LandedFile, lake_uri: str) -> None:
    """Put a file under the name of its content: a copy of one that is the source's, an extract itself."""
    target = f"{lake_uri}/{landed.landed_path}"
    file_system, path = file.file_system, file.info.path
    if not file.is_extract:
        if _copy_file(file_system, path, f"{target}.part") != landed.batch_id:
            raise SourceError(
                f"sources.{landed.source}: file {file.file_name} changed while it was read; run again when it is "
                "complete"
            )
        file_system, path = fs.FileSystem.from_uri(f"{target}.part")
    # What stands under a content's name is that content, whole.
    file_system.move(path, fs.FileSystem.from_uri(target)[1])


def hash_file(file_system: fs.FileSystem, path: str) -> str:
    """The SHA-256 of a file's bytes, by which it is recognised."""
    digest = hashlib.sha256()
    with file_system.open_input_stream(path, compression=None) as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _copy_file(file_system: fs.FileSystem, path: str, target: str) -> str:
    """Copy a file; the hash of what was copied."""
    digest = hashlib.sha256()
    target_system, target_path = fs.FileSystem.from_uri(target)
    target_system.create_dir(str(PurePosixPath(target_path).parent))
    with (
        file_system.open_input_stream(path, compression=None) as stream,
        target_system.open_output_stream(target_path, compression=None) as copy,
    ):
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
            copy.write(block)
    return digest.hexdigest()


def copy_sample(file_system: fs.FileSystem, path: str, target: str, only_first_lines: bool) -> None:
    """Copy a file to a local one: whole, or of a long text its first lines."""
    with file_system.open_input_stream(path, compression=None) as stream, Path(target).open("wb") as copy:
        if only_first_lines:
            block = stream.read(_SAMPLE_BYTES)
            copy.write(block if len(block) < _SAMPLE_BYTES else block[: block.rfind(b"\n") + 1])
        else:
            while block := stream.read(_BLOCK_BYTES):
                copy.write(block)
