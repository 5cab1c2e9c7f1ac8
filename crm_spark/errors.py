"""The one family of errors that a run reports in one line; anything else is a programming error."""

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


def fault_of_machine(error: BaseException) -> MachineFaultError | None:
    """What of the machine failed, if that is why an engine or the operating system raised an error."""
    chain = list(_chain(error))
    text = "\n".join(map(str, chain))
    if "No space left on device" in text or "Disk quota exceeded" in text:
        return MachineFaultError(
            "disk: found no space left for the lake or for Spark's scratch (spark.local.dir), expected some; what was "
            "published stands: free space and run again"
        )
    if "ExecutorLostFailure" in text or "All masters are unresponsive" in text:
        return MachineFaultError(
            "cluster: found too many workers lost, expected some that live (their logs tell why; often it is memory); "
            "what was published stands: run again"
        )
    if any(type(one).__name__ in ("Py4JNetworkError", "ConnectionRefusedError") for one in chain):
        return MachineFaultError(
            "java: found that Spark's process ended, expected it to run until the end (killed by an operator, or for "
            "memory: see spark.driver.memory); what was published stands: run again"
        )
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
