"""What a table's commits say: what they did to its rows, and what the run noted that made them.

They are read as they lie: where one is missing, as after a repair, delta-rs counts its history wrongly.
"""

import json
from collections.abc import Mapping
from typing import Any

from deltalake import DeltaTable
from pyarrow import fs

from crm_spark.errors import LakeError

# After each of these, a table has the rows that it had before.
_KEEPS_ROWS = {"OPTIMIZE", "VACUUM START", "VACUUM END", "SET TBLPROPERTIES"}


def read_commit(path: str, version: int) -> list[dict[str, Any]] | None:
    """The actions of one commit; None if its log is gone.

    Raises:
        ValueError: if it is damaged.
    """
    file_system, folder = fs.FileSystem.from_uri(path)
    try:
        with file_system.open_input_stream(f"{folder}/_delta_log/{version:020}.json") as stream:
            return [json.loads(line) for line in stream.read().splitlines()]
    except FileNotFoundError:
        return None


def commit_info(path: str, version: int) -> dict[str, Any]:
    """What a commit says of itself, and its version; no more than that if its log is gone.

    Raises:
        LakeError: if it is damaged.
    """
    try:
        actions = read_commit(path, version) or ()
    except ValueError:
        name = path.rsplit("/", 1)[-1]
        raise LakeError(
            f"{name}: found that the commit of version {version} is cut off or damaged, expected a whole one; run "
            f"crm-spark repair {name}"
        ) from None
    infos = (action["commitInfo"] for action in actions if "commitInfo" in action)
    return next(infos, {}) | {"version": version}


def note_of(info: Mapping[str, Any]) -> dict[str, Any]:
    """What a run noted in its commit; nothing in a commit of others.

    Nothing, too, if the commit is a later version than it was meant to be: Delta put it behind those that others
    committed meanwhile, and it does not hold what its note says.
    """
    note = _noted(info)
    return {} if _is_late(note, info["version"]) else note


def has_late_rows(path: str) -> bool:
    """Whether a run committed to a table behind others, so that its rows are not those of any note."""
    infos = (commit_info(path, version) for version in range(DeltaTable(path).version(), -1, -1))
    return any(_is_late(_noted(info), info["version"]) for info in infos)


def is_made_of(path: str, version: int, fingerprint: str) -> bool:
    """Whether a version is there that a run made of these inputs: after a repair, others may have its number."""
    return note_of(commit_info(path, version)).get("fingerprint") == fingerprint


def newest_noted(path: str) -> dict[str, Any] | None:
    """The newest commit that a run wrote; later ones may be of others, or of a run that was killed."""
    infos = (commit_info(path, version) for version in range(DeltaTable(path).version(), -1, -1))
    return next((info for info in infos if note_of(info).get("fingerprint") is not None), None)


def last_with_rows_of(path: str, version: int) -> int:
    """The newest version up to which every commit after `version` kept the rows as they were."""
    while commit_info(path, version + 1).get("operation") in _KEEPS_ROWS:
        version += 1
    return version


def changing_spans(path: str, before: int, after: int) -> list[tuple[int, int]]:
    """Pairs of versions whose differences make up that of two versions, the newest pair first.

    Between one pair and the next, files were only put together: what went there came back in another file.
    """
    spans, version, end = [], after, after
    while version > before:
        info = commit_info(path, version)
        if info.get("operation") == "OPTIMIZE":
            spans.append((version, end))
            version = end = version - 1
        elif info.get("operation") == "RESTORE":  # to the very files of another version
            version = _restored_version(info, or_else=before)
        else:
            version -= 1
    return [*spans, (before, end)]


def _noted(info: Mapping[str, Any]) -> dict[str, Any]:
    try:
        note = json.loads(info.get("userMetadata") or "{}")
    except ValueError:  # others write there what they like
        return {}
    return note if isinstance(note, dict) else {}


def _is_late(note: Mapping[str, Any], version: int) -> bool:
    return bool(note.get("meant_version", version) < version)


def _restored_version(info: Mapping[str, Any], or_else: int) -> int:
    version = info["operationParameters"].get("version")
    return or_else if version is None else int(version)
