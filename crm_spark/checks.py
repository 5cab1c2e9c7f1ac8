"""Checks are data: a name and a condition in SQL that every good row fulfils."""

from collections.abc import Mapping
from dataclasses import dataclass

from pyspark.sql import Column
from pyspark.sql import functions as F


@dataclass(frozen=True)
class Check:
    """A rule for one row by itself. `must_hold` is SQL text; unknown (NULL) counts as broken."""

    name: str
    must_hold: str


def is_broken(check: Check) -> Column:
    """Whether a row breaks the check; never NULL."""
    return ~F.coalesce(F.expr(check.must_hold), F.lit(False))


def broken_names(broken: Mapping[str, Column]) -> Column:
    """The names of those conditions (none of them NULL) that a row fulfils, in the order given."""
    names = [F.when(condition, name).otherwise("") for name, condition in broken.items()]
    return F.array_remove(F.array(*names).cast("array<string>"), "")
