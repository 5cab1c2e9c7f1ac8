"""A decision tree in words."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.ml.classification import DecisionTreeClassificationModel


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


def tree_rules(tree: DecisionTreeClassificationModel, terms: Sequence[str]) -> list[Rule]:
    """The leaves of a tree over a matrix whose columns are called `terms`, numbered as `leafCol` numbers them."""
    leaves = _leaves(tree._call_java("rootNode"), {})
    return [
        Rule(
            leaf_no,
            tuple(_condition(terms[index], within) for index, within in ranges.items()),
            probability=counts[1] / sum(counts),
            train_count=round(sum(counts)),
        )
        for leaf_no, (ranges, counts) in enumerate(leaves)
    ]


def _leaves(node: Any, ranges: Mapping[int, _Range]) -> Iterator[tuple[Mapping[int, _Range], list[float]]]:
    if node.subtreeDepth() == 0:
        yield ranges, list(node.impurityStats().stats())
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
