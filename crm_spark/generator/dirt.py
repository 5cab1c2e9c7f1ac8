"""Errors, planted into rows that were right: what kinds there are, and which rows have which."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from crm_spark.generator.draws import Draws

# Of a row that is told a second time, the telling that comes later.
TWIN = "twin_no"
CUT_SHORT = "cut_short"
TOLD_TWICE = "told_twice"


@dataclass(frozen=True)
class Dirt:
    """The errors that rows of one export may have.

    `values` are, by the error's name, what it puts into which columns. `told_differently` is the column in which
    a second telling differs; None: the export has several versions of a key anyway.
    """

    key: Sequence[str]
    values: Mapping[str, Mapping[str, str | None]]
    told_differently: Mapping[str, str] = field(default_factory=dict)
    may_be_cut: bool = True

    @property
    def errors(self) -> list[str]:
        twins = [TOLD_TWICE, *(["told_differently"] if self.told_differently else [])]
        return [*self.values, *twins, *([CUT_SHORT] if self.may_be_cut else [])]


def plant_errors(rows: DataFrame, dirt: Dirt, export: str, share: float, draws: Draws) -> DataFrame:
    """The rows with `error` (NULL for most), `key` as it was before, and `twin_no`: 1 for a second telling, else 0."""
    key = [F.lit(export), *map(F.col, dirt.key)]
    is_dirty = draws.is_true("is dirty", share, *key)
    with_error = rows.withColumns(
        {
            "error": F.when(is_dirty, draws.one_of("error", dirt.errors, *key)),
            "key": F.to_json(F.struct(*dirt.key)),
        }
    )
    has_twin = F.col("error").isin(TOLD_TWICE, "told_differently")
    twins = F.when(has_twin, F.array(F.lit(0), F.lit(1))).otherwise(F.array(F.lit(0)))
    told = with_error.withColumn(TWIN, F.explode(twins))
    return told.withColumns({column: _damaged(column, dirt) for column in _touched(dirt)})


def _touched(dirt: Dirt) -> list[str]:
    changed = [dirt.told_differently, *dirt.values.values()]
    return sorted({column for values in changed for column in values})


def _damaged(column: str, dirt: Dirt) -> Column:
    value = F.col(column)
    for error, values in dirt.values.items():
        if column in values:
            value = F.when(F.col("error") == error, F.lit(values[column])).otherwise(value)
    if column in dirt.told_differently:
        is_other = (F.col("error") == "told_differently") & (F.col(TWIN) == 1)
        value = F.when(is_other, F.lit(dirt.told_differently[column])).otherwise(value)
    return value
