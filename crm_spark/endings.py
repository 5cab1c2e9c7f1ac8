"""How a command ends: what a user or an operator can mend in one line, and by which exit code."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from crm_spark.errors import CrmSparkError, LakeError, fault_of_machine

# So Spark and delta-rs say that they cannot read a file, and so a table's files are named.
_NOT_READ = re.compile(r"\[FAILED_READ_FILE|\[PATH_NOT_FOUND\]|External error: ")
_FILE_OF_TABLE = re.compile(r"(\w+)/(?:_delta_log/)?(part-[\w.-]+\.parquet|\d{20}[\w.]*\.(?:json|parquet))")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user or an operator can mend ends in one line, and in an exit code that tells who may try again."""
    try:
        yield
    except Exception as error:
        told = error if isinstance(error, CrmSparkError) else fault_of_machine(error) or _fault_of_lake(error)
        if told is None:
            raise
        Console(stderr=True, highlight=False).print(f"crm-spark: {told}", soft_wrap=True, markup=False)
        sys.exit(told.exit_code)


def _fault_of_lake(error: Exception) -> LakeError | None:
    from deltalake.exceptions import DeltaError

    text = str(error)
    if _NOT_READ.search(text) and (file := _FILE_OF_TABLE.search(text)):
        return LakeError(
            f"{file[1]}: found that {file[2]} is missing or damaged, expected a whole file; if the table is the "
            "lake's, crm-spark verify tells what to do"
        )
    # So it begins if a log is at fault; in what it says of queries, commits and schemas, the program is.
    if not isinstance(error, DeltaError) or not text.startswith("Kernel error"):
        return None
    return LakeError(
        f"lake: found a table whose log cannot be read ({type(error).__name__}), expected none; run crm-spark verify, "
        "which names it, and then crm-spark repair TABLE"
    )
