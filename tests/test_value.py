"""The value score: parts from 0 to 1 between fitted quantiles, and their weighted mean."""

import numpy as np
import pandas as pd
import pytest
from builders import features_of
from pyspark.sql import SparkSession

from crm_spark.config import ValuePart
from crm_spark.errors import ConfigError
from crm_spark.models.tables import MODEL_VALUE_LIMITS, SCORE_VALUE
from crm_spark.models.value import check_value_parts, fit_value_limits, score_value
from crm_spark.tables import summarise

PARTS = {
    "purchase": ValuePart(feature="net_amount", weight=3, missing=0),
    "service": ValuePart(feature="unresolved_service_event_share", weight=1, best="low", missing=0.8),
}


def test_the_score_is_the_weighted_mean_of_where_a_customer_stands(spark: SparkSession) -> None:
    random = np.random.default_rng(3)
    frame = pd.DataFrame(
        {
            "customer_id": [f"c{number:03}" for number in range(101)],
            "net_amount": [-50, *range(100)],
            "unresolved_service_event_share": [None if share < 0.3 else share for share in random.uniform(0, 1, 101)],
        }
    )
    customers = features_of(spark, frame)
    limits = fit_value_limits(customers, PARTS)
    assert summarise(limits, MODEL_VALUE_LIMITS).violations == ()
    scores = score_value(customers, limits, PARTS)
    assert summarise(scores, SCORE_VALUE).violations == ()
    found = scores.toPandas().sort_values("customer_id", ignore_index=True)

    def place(values: pd.Series) -> pd.Series:
        low, high = values.quantile([0.05, 0.95])
        return ((values - low) / (high - low)).clip(0, 1)

    purchase = place(frame["net_amount"])
    service = (1 - place(frame["unresolved_service_event_share"])).fillna(0.8)
    assert found["value_score"].to_numpy() == pytest.approx((3 * purchase + service) / 4)
    parts = found["parts"].map(lambda pairs: {pair["part"]: pair["score"] for pair in pairs})
    assert parts.map(lambda scores: scores["purchase"]).to_numpy() == pytest.approx(purchase)
    assert parts.map(lambda scores: scores["service"]).to_numpy() == pytest.approx(service)


def test_whoever_is_best_in_all_has_1_whatever_the_weights(spark: SparkSession) -> None:
    parts = {
        name: ValuePart(feature="net_amount", weight=weight)
        for name, weight in zip("abc", (0.1, 0.2, 0.3), strict=True)
    }
    customers = features_of(spark, pd.DataFrame({"customer_id": ["a", "b"], "net_amount": [0, 9]}))
    scores = score_value(customers, fit_value_limits(customers, parts), parts)
    assert summarise(scores, SCORE_VALUE).violations == ()
    assert {row["customer_id"]: row["value_score"] for row in scores.collect()} == {"a": 0.0, "b": 1.0}


def test_where_all_are_alike_or_nothing_is_known_the_score_is_in_between_or_what_is_declared(
    spark: SparkSession,
) -> None:
    frame = pd.DataFrame({"customer_id": ["a", "b"], "net_amount": 7})
    customers = features_of(spark, frame.assign(unresolved_service_event_share=None))
    limits = fit_value_limits(customers, PARTS)
    assert [row["part"] for row in limits.collect()] == ["purchase"]
    scores = score_value(customers, limits, PARTS).collect()
    assert [row["value_score"] for row in scores] == [pytest.approx((3 * 0.5 + 0.8) / 4)] * 2


@pytest.mark.parametrize("feature", ["net_amount_365d", "top_category", "categories", "as_of"])
def test_a_part_is_a_numeric_feature(feature: str) -> None:
    with pytest.raises(ConfigError, match=f"value.purchase.feature: found no such numeric feature as '{feature}', exp"):
        check_value_parts({"purchase": ValuePart(feature=feature, weight=1)}, [28])
