"""Sentiment: what is told of hand-written sentences, and how often it is right."""

from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from crm_spark.facts.sentiment import parse_sentiment

pytestmark = pytest.mark.both_engines

# Written and labelled by hand by someone who did not know the lists of words. Those at even places were looked at when
# the lists were made, those at odd places were not.
SENTENCES = Path(__file__).parent / "sentences"


def told(spark: SparkSession, texts: list[str | None]) -> list[int | None]:
    rows = spark.createDataFrame(list(enumerate(texts)), "place int, text string")
    return [
        row["told"]
        for row in rows.select("place", parse_sentiment(F.col("text")).alias("told")).sort("place").collect()
    ]


def test_words_are_counted_and_negations_turn_them(spark: SparkSession) -> None:
    expected = {
        "Great, thanks!": 1,
        "It isn\u2019t good": -1,
        "Not at all a bad shop": 1,
        "Not cheap, but the best": 0,
        "Not the best but cheap. And good": 1,
        "It was never broken": 1,
        "good and bad": 0,
        "goodness": 0,
        "It came on Monday.": 0,
        "很好": 1,
        "不是很好": -1,
        "不错": 1,
        "没有问题": 1,
        "你好请问几点开门": 0,
        "👍": 1,
        "ok 👎": -1,
        "!?": 0,
        " ": None,
        None: None,
    }  # fmt: skip
    assert told(spark, list(expected)) == list(expected.values())


# The shares are those that were measured.
@pytest.mark.parametrize(("language", "right_share", "opposite_share"), [("en", 0.72, 0.08), ("zh", 0.73, 0.04)])
def test_accuracy_on_sentences_that_were_not_looked_at(
    spark: SparkSession, language: str, right_share: float, opposite_share: float
) -> None:
    lines = (SENTENCES / f"{language}.tsv").read_text(encoding="utf-8").splitlines()[1:]
    labels, texts = zip(*(line.split("\t") for line in lines[1::2]), strict=True)
    pairs = list(zip(map(int, labels), told(spark, list(texts)), strict=True))
    assert len(pairs) == 100
    assert sum(label == found for label, found in pairs) / len(pairs) >= right_share
    opinions = [(label, found) for label, found in pairs if label]
    assert sum(label == -found for label, found in opinions) / len(opinions) <= opposite_share
