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
    index, threshold = node.split().featureIndex(), node.split().threshold()
    before = ranges.get(index, _Range())
    yield from _leaves(node.leftChild(), {**ranges, index: _Range(before.low, threshold)})
    yield from _leaves(node.rightChild(), {**ranges, index: _Range(threshold, before.high)})


def _condition(term: str, within: _Range) -> str:
    feature, is_category, category = term.partition("=")
    if is_category:
        return f"{feature} is {category}" if within.high is None else f"{feature} is not {category}"
    if within.low is None:
        return f"{feature} <= {within.high:.6g}"
    if within.high is None:
        return f"{feature} > {within.low:.6g}"
    return f"{within.low:.6g} < {feature} <= {within.high:.6g}"
