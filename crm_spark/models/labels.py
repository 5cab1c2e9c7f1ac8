"""Labels: the only module that looks past a cut-off."""

from collections.abc import Iterable
from datetime import date, timedelta

from crm_spark.config import Task


def task_cutoffs(tasks: Iterable[Task], as_of: date) -> list[date]:
    """Every cut-off that tasks need features at, from the earliest to `as_of` itself."""
    needed = {as_of}
    for task in tasks:
        needed |= {as_of - timedelta(days=task.horizon_days * back) for back in range(1, task.train_cutoffs + 2)}
    return sorted(needed)
