"""Draws that follow from a seed and from whom they are for: the same in any partitioning, order and number of cores."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import Column
from pyspark.sql import functions as F

# Above this mean a Poisson number is as good as a rounded normal one, and cheaper.
_LARGE_MEAN = 30


@dataclass(frozen=True)
class Draws:
    """Random columns. `what` names a draw: another name is another draw for the same `keys`."""

    seed: int

    def uniform(self, what: str, *keys: str | Column) -> Column:
        """Between 0 and 1, both excluded."""
        hash_ = F.xxhash64(F.lit(self.seed), F.lit(what), *keys)
        return (F.shiftrightunsigned(hash_, 11).cast("double") + 0.5) * 2.0**-53

    def whole(self, what: str, count: int | Column, *keys: str | Column) -> Column:
        """A whole number from 0 to below `count`."""
        return F.floor(self.uniform(what, *keys) * count)

    def is_true(self, what: str, probability: float | Column, *keys: str | Column) -> Column:
        return self.uniform(what, *keys) < probability

    def exponential(self, what: str, mean: float | Column, *keys: str | Column) -> Column:
        return -F.log(self.uniform(what, *keys)) * mean

    def normal(self, what: str, *keys: str | Column) -> Column:
        """With mean 0 and spread 1 (Box and Muller 1958)."""
        length = F.sqrt(-2 * F.log(self.uniform(f"{what} length", *keys)))
        return length * F.cos(2 * math.pi * self.uniform(f"{what} angle", *keys))

    def poisson(self, what: str, mean: Column, *keys: str) -> Column:
        """A count of events: as many uniform draws as can be multiplied until the product falls to exp(-mean)."""
        most = (mean + 8 * F.sqrt(mean) + 10).cast("int")

        def multiply(state: Column, number: Column) -> Column:
            product = state["product"] * self.uniform(what, *keys, number)
            count = state["count"] + (product > F.exp(-mean)).cast("int")
            return F.struct(product.alias("product"), count.alias("count"))

        start = F.struct(F.lit(1.0).alias("product"), F.lit(0).alias("count"))
        few = F.aggregate(F.sequence(F.lit(1), most), start, multiply, lambda state: state["count"])
        many = F.round(mean + F.sqrt(mean) * self.normal(what, *keys)).cast("int")
        return F.when(mean < _LARGE_MEAN, few).otherwise(many)

    def one_of(self, what: str, values: Sequence[str], *keys: str | Column) -> Column:
        return F.element_at(list_of(values), (self.whole(what, len(values), *keys) + 1).cast("int"))

    def weighted(self, what: str, weights: Mapping[str, float], *keys: str | Column) -> Column:
        """One of the names, each as often as its weight says; the weights add up to 1."""
        draw, total = self.uniform(what, *keys), 0.0
        *names, last = weights
        picked = F.when(F.lit(False), F.lit(last))
        for name in names:
            total += weights[name]
            picked = picked.when(draw < total, F.lit(name))
        return picked.otherwise(F.lit(last))


def list_of(values: Sequence[object]) -> Column:
    """The same values in every row."""
    return F.array(*map(F.lit, values))
