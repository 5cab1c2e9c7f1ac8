"""Limits and flags beside numpy; capping where a model asks for it, and there alone."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from builders import features_of
from pyspark.sql import SparkSession

from crm_spark.config import Outlier, Segments, conf_dir, load_config
from crm_spark.errors import ConfigError
from crm_spark.marts.customers import build_outliers
from crm_spark.models.matrix import matrix_rules
from crm_spark.models.outliers import Limits, build_outlier_limits, capped, fit_limits
from crm_spark.models.rfm import fit_rfm_cut_points, score_rfm
from crm_spark.models.segments import assign_segments, build_candidates, fit_segments
from crm_spark.session import fixed_plans

SHIPPED = conf_dir() / "complete_journey.toml"
COUNT = 120
RULES = {
    "net_amount": Outlier(by="quantile", low=0.03, high=0.9),
    "order_count": Outlier(by="quantile", high=0.95),
    "mean_gap_days": Outlier(by="robust_z", above=3.5),
    "overdue_ratio": Outlier(by="robust_z", above=1),
}


@pytest.fixture(scope="module")
def customers() -> pd.DataFrame:
    """Skewed numbers, some missing, many equal."""
    random = np.random.default_rng(17)
    gaps = np.round(random.lognormal(2, 1, COUNT), 1)
    return pd.DataFrame(
        {
            "customer_id": [f"c{number:03}" for number in range(COUNT)],
            "net_amount": np.round(random.normal(100, 200, COUNT), 2),
            "order_count": random.geometric(0.4, COUNT),
            "mean_gap_days": [None if random.random() < 0.3 else gap for gap in gaps.tolist()],
            "overdue_ratio": [None if random.random() < 0.3 else number / 2 for number in random.integers(0, 9, COUNT)],
        }
    )


def oracle(values: pd.Series, rule: Outlier) -> tuple[float, float, pd.Series]:
    """The limits and which values are outliers, a robust z-score being computed for each value by itself."""
    known = values.dropna().to_numpy(dtype=float)
    if rule.by == "quantile":
        low = -np.inf if rule.low is None else np.quantile(known, rule.low)
        high = np.inf if rule.high is None else np.quantile(known, rule.high)
        return low, high, (values < low) | (values > high)
    median = np.median(known)
    mad = np.median(np.abs(known - median))
    reach = rule.above * mad / 0.6745
    return median - reach, median + reach, (0.6745 * (values - median) / mad).abs() > rule.above


def test_limits_and_flags_are_those_of_numpy_however_rows_lie(spark: SparkSession, customers: pd.DataFrame) -> None:
    rows = features_of(spark, customers)
    limits = build_outlier_limits({"mart_outliers": rows, "segments": rows.limit(0)}, RULES, ["segments"])
    found = limits.toPandas().set_index(["used_by", "feature"])
    flagged = build_outliers(rows, limits, RULES).toPandas()
    for name, rule in RULES.items():
        low, high, is_outlier = oracle(customers[name], rule)
        row = found.loc["mart_outliers", name]
        assert [-np.inf if pd.isna(row["low"]) else row["low"], np.inf if pd.isna(row["high"]) else row["high"]] == (
            pytest.approx([low, high], rel=1e-12)
        )
        assert is_outlier.any()
        assert (row["flagged_count"], row["row_count"]) == (is_outlier.sum(), customers[name].notna().sum())
        own = flagged[flagged["feature"] == name].set_index("customer_id")["value"].sort_index()
        expected = customers[is_outlier].set_index("customer_id")[name].astype(float)
        pd.testing.assert_series_equal(own, expected, check_names=False)
    assert set(flagged["rule"]) == {
        "quantile, low = 0.03, high = 0.9", "quantile, high = 0.95", "robust_z, above = 3.5", "robust_z, above = 1",
    }  # fmt: skip
    assert found.loc["segments"]["row_count"].sum() == 0
    assert found.loc["segments"][["low", "high"]].isna().all(axis=None)
    assert found.loc["segments"]["is_capped"].all()
    assert not found.loc["mart_outliers"]["is_capped"].any()
    assert fit_limits(rows.orderBy("net_amount").repartition(5), RULES) == fit_limits(rows, RULES)


def test_without_a_spread_or_without_values_nothing_is_an_outlier(spark: SparkSession) -> None:
    frame = pd.DataFrame({"customer_id": list("abcde"), "order_count": [1, 1, 1, 1, 999], "overdue_ratio": None})
    rules = {
        "order_count": Outlier(by="robust_z", above=3.5),
        "overdue_ratio": Outlier(by="quantile", low=0.1, high=0.9),
    }
    rows = features_of(spark, frame)
    assert fit_limits(rows, rules) == dict.fromkeys(rules, Limits(None, None))
    limits = build_outlier_limits({"mart_outliers": rows}, rules, [])
    assert build_outliers(rows, limits, rules).isEmpty()


def test_without_rules_there_are_no_outliers(spark: SparkSession, customers: pd.DataFrame) -> None:
    rows = features_of(spark, customers)
    limits = build_outlier_limits({"mart_outliers": rows}, {}, [])
    assert limits.isEmpty()
    assert build_outliers(rows, limits, {}).isEmpty()


def test_capping_moves_what_is_beyond_and_leaves_what_is_missing(spark: SparkSession) -> None:
    values = spark.createDataFrame([(-5.0,), (-1.5,), (0.0,), (2.0,), (9.0,), (None,)], "x double")
    for limits, expected in (
        (Limits(-1.5, 2.0), [-1.5, -1.5, 0.0, 2.0, 2.0, None]),
        (Limits(None, 2.0), [-5.0, -1.5, 0.0, 2.0, 2.0, None]),
        (Limits(-1.5, None), [-1.5, -1.5, 0.0, 2.0, 9.0, None]),
        (Limits(None, None), [-5.0, -1.5, 0.0, 2.0, 9.0, None]),
        (None, [-5.0, -1.5, 0.0, 2.0, 9.0, None]),
    ):
        assert [row[0] for row in values.selectExpr(capped("x", limits)).collect()] == expected


def test_a_few_whose_returns_exceed_their_purchases_are_a_segment_unless_capped(
    spark: SparkSession, tmp_path_factory: pytest.TempPathFactory
) -> None:
    random = np.random.default_rng(23)
    groups = {"much": (3, 80, 4000.0), "little": (90, 3, 60.0)}
    rows = [
        {
            "customer_id": f"{name}{number:02}",
            "recency_days": int(recency + random.integers(0, 5)),
            "order_count": int(orders + random.integers(0, 3)),
            "net_amount": amount + float(random.integers(0, 20)),
            "mean_order_amount": amount / orders,
        }
        for name, (recency, orders, amount) in groups.items()
        for number in range(60)
    ]
    for row in rows[-2:]:
        row |= {"net_amount": -900.0, "mean_order_amount": -300.0}
    buyers = features_of(fixed_plans(spark), pd.DataFrame(rows))
    rfm = score_rfm(buyers, fit_rfm_cut_points(buyers), load_config(SHIPPED).rfm)
    rule = Outlier(by="quantile", low=0.02)
    rules = replace(matrix_rules(load_config(SHIPPED)), outliers={"net_amount": rule, "mean_order_amount": rule})
    smallest = {}
    for cap_outliers in (False, True):
        settings = Segments(cluster_counts=(2, 3), starts=1, sample_customers=1000, seed=5, cap_outliers=cap_outliers)
        uri = str(tmp_path_factory.mktemp("segments"))
        candidates = build_candidates(fit_segments(buyers, rfm, settings, rules, uri, "segments"), buyers)
        sizes = assign_segments(buyers, candidates, uri).groupBy("segment_name").count().toPandas()["count"]
        smallest[cap_outliers] = sizes.min()
    assert smallest == {False: 2, True: 60}


@pytest.mark.parametrize("name", ["colour", "age_band", "as_of", "net_amount_13d"])
def test_a_rule_for_no_numeric_feature_is_refused(name: str) -> None:
    config = load_config(SHIPPED, [f"outliers.{name}={{ by = 'robust_z', above = 3.5 }}"])
    with pytest.raises(ConfigError, match=f"^outliers.{name}: found no such numeric feature, expected one such as "):
        matrix_rules(config)
