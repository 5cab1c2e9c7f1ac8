"""The one family of errors that a run reports in one line; anything else is a programming error."""


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
