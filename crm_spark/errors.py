"""The one family of errors that a run reports in one line; anything else is a programming error."""

import re
import traceback
from collections.abc import Iterator


class CrmSparkError(Exception):
    """What was found, what was expected, and what to do, in one line."""

    exit_code = 2


class ConfigError(CrmSparkError):
    """The configuration names something unknown, of the wrong type, or impossible."""


class SourceError(CrmSparkError):
    """A source file is missing, unreadable, or not of the declared form."""


class ContractError(CrmSparkError):
    """Rows do not match the declaration of their table."""


class ModelError(CrmSparkError):
    """A model cannot be fitted, or does not fit the features it is given."""


class LakeError(CrmSparkError):
    """The lake is locked, empty, or not what its publication says."""


class LakeBusyError(LakeError):
    """Another process is writing the lake: the same command may succeed later."""

    exit_code = 3


class MachineError(CrmSparkError):
    """The machine lacks something that the program needs."""


class MachineFaultError(MachineError):
    """The machine failed in the midst of a run: the same command may succeed as soon as it works again."""

    exit_code = 4


# By what an engine, a store or the operating system says if the machine failed, and what is told then.
_FAULTS = (
    (
        r"No space left on device|Disk quota exceeded",
        "disk: found no space left for the lake or for Spark's scratch (spark.local.dir), expected some; what was "
        "published stands: free space and run again",
    ),
    (
        r"Input/output error|Read-only file system",
        "disk: found one that fails to read or write, expected a sound one (the system's log tells why); what was "
        "published stands: run again",
    ),
    (
        r"Permission denied|Operation not permitted",
        "storage: found a file that this user may not read or write, expected the right to read the sources and to "
        "write the lake; mend that, or let the owner run again",
    ),
    (
        r"Generic (S3|GCS|MicrosoftAzure|HTTP) error|AWS Error (ACCESS_DENIED|NETWORK_CONNECTION)|AccessDeniedException"
        r"|The operation lacked (the necessary privileges|valid authentication credentials)",
        "storage: found a store that does not answer or refuses, expected one that lets the lake be read and written; "
        "look at its address, its state and the credentials, then run again",
    ),
    (
        r"ExecutorLostFailure|All masters are unresponsive",
        "cluster: found too many workers lost, expected some that live (their logs tell why; often it is memory); "
        "what was published stands: run again",
    ),
    (
        r"OutOfMemoryError|GC overhead limit exceeded",
        "java: found that Spark's memory was full, expected enough; raise spark.driver.memory, on a cluster "
        "spark.executor.memory, too (in the file of --properties-file, else in conf/spark-local.conf), and run again",
    ),
    (
        r"Py4JNetworkError|SparkContext was shut down|stopped SparkContext",
        "java: found that Spark's process ended, expected it to run until the end (killed by an operator, or for "
        "memory: see spark.driver.memory); what was published stands: run again",
    ),
)


def fault_of_machine(error: BaseException) -> MachineFaultError | None:
    """What of the machine failed, if that is why an engine, a store or the operating system raised an error."""
    chain = list(_chain(error))
    text = "\n".join(map(_described, chain))
    files = [f" (met at {one.filename})" for one in chain if isinstance(one, OSError) and one.filename]
    where = files[0] if files else ""
    return next((MachineFaultError(f"{told}{where}") for signs, told in _FAULTS if re.search(signs, text)), None)


def raise_fault_of_machine(error: BaseException) -> None:
    """Raise what of the machine failed, if that is why; so nothing else is blamed for it."""
    if fault := fault_of_machine(error):
        raise fault from None


def _described(error: BaseException) -> str:
    """An error's type and text. Java is asked for the text of its own; if it is dead, Py4J says so instead."""
    if isinstance(error, ConnectionRefusedError) and _is_of_py4j(error):
        return "Py4JNetworkError"
    try:
        return f"{type(error).__name__}: {error}"
    except Exception as silent:  # noqa: BLE001 (whatever Py4J raises when nobody answers)
        return _described(silent)


def _is_of_py4j(error: BaseException) -> bool:
    """Whether it was raised where Py4J connects to Java; others' connections are refused, too."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_globals["__name__"].startswith("py4j.")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
