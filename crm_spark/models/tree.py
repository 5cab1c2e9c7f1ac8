"""A decision tree in words."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.ml.regression import DecisionTreeRegressionModel


@dataclass(frozen=True)
class Rule:
    """A leaf: its number in order from the left, the conditions that lead to it, and what it predicts."""

    leaf_no: int
    conditions: tuple[str, ...]
    probability: float
    train_count: int


@dataclass(frozen=True)
class _Range:
    """Values above `low` and up to `high`."""

    low: float | None = None
    high: float | None = None


def tree_rules(tree: DecisionTreeRegressionModel, terms: Sequence[str]) -> list[Rule]:
    """The leaves of a tree over a matrix whose columns are called `terms`, numbered as `leafCol` numbers them."""
    leaves = _leaves(tree._call_java("rootNode"), {})
    return [
        Rule(
            leaf_no,
            tuple(_condition(terms[index], within) for index, within in ranges.items()),
            probability=event_count / row_count,
            train_count=round(row_count),
        )
        for leaf_no, (ranges, row_count, event_count) in enumerate(leaves)
    ]


def _leaves(node: Any, ranges: Mapping[int, _Range]) -> Iterator[tuple[Mapping[int, _Range], float, float]]:
    """Each leaf's ranges, its rows and how many of them have label 1."""
    if node.subtreeDepth() == 0:
        row_count, event_count, _ = node.impurityStats().stats()
        yield ranges, row_count, event_count
        return
    index = node.split().featureIndex()
    before = ranges.get(index, _Range())
    threshold, is_swapped = _threshold(node.split())
    below, above = _Range(before.low, threshold), _Range(threshold, before.high)
    left, right = (above, below) if is_swapped else (below, above)
    yield from _leaves(node.leftChild(), {**ranges, index: left})
    yield from _leaves(node.rightChild(), {**ranges, index: right})


def _threshold(split: Any) -> tuple[float, bool]:
    """Where a split parts the values, and whether its left side is the upper one.

    A category's column holds 0 or 1; MLlib splits it by listing which of the two go left.
    """
    if split.getClass().getSimpleName() == "CategoricalSplit":
        return 0.5, 1.0 in list(split.leftCategories())
    return split.threshold(), False


def _condition(term: str, within: _Range) -> str:
    feature, is_category, category = term.partition("=")
    if is_category:
        return f"{feature} is {category}" if within.high is None else f"{feature} is not {category}"
    if within.low is None:
        return f"{feature} <= {within.high:.6g}"
    if within.high is None:
        return f"{feature} > {within.low:.6g}"
    return f"{within.low:.6g} < {feature} <= {within.high:.6g}"
