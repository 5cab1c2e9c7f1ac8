"""What stands for missing features: the declared rules beside pandas, and what is refused."""

from datetime import date

import numpy as np
import pandas as pd
import pytest
from builders import features_of
from pyspark.sql import SparkSession

from crm_spark.config import Imputation, conf_dir, load_config
from crm_spark.errors import ConfigError
from crm_spark.features.tables import feature_customers
from crm_spark.models.imputation import add_last_known, build_imputations, fit_fills
from crm_spark.models.matrix import matrix_features, matrix_rules
from crm_spark.tables import summarise

SHIPPED = conf_dir() / "complete_journey.toml"


def with_missing(random: np.random.Generator, values: np.ndarray) -> list[object]:
    """The values as objects, a third of them missing."""
    return [None if random.random() < 1 / 3 else value for value in values.tolist()]


@pytest.mark.parametrize("count", [60, 61])
def test_medians_and_most_frequent_values_are_those_of_pandas_however_rows_lie(spark: SparkSession, count: int) -> None:
    random = np.random.default_rng(count)
    frame = pd.DataFrame(
        {
            "customer_id": [f"c{number:03}" for number in range(count)],
            "overdue_ratio": with_missing(random, random.integers(-4, 5, count) / 4),
            "discount_share": with_missing(random, random.random(count)),
            "recency_days": with_missing(random, random.integers(1, 9, count)),
            "age_band": with_missing(random, random.choice(["b", "a", "ä", "Z"], count)),
            # As many of the one as of the other.
            "gender": ["y", "x", None] * (count // 3) + [None] * (count % 3),
        }
    )
    medians, modes = ("overdue_ratio", "discount_share"), ("recency_days", "age_band", "gender")
    rules = {name: Imputation(by="median", value=-1) for name in medians}
    rules |= {name: Imputation(by="most_frequent", value="-" if name != "recency_days" else -1) for name in modes}
    rows = features_of(spark, frame)
    fills = fit_fills(rows, rules)
    assert fills == {name: frame[name].median() for name in medians} | {name: frame[name].mode()[0] for name in modes}
    assert fills["gender"] == "x"
    assert fit_fills(rows.orderBy("gender", "overdue_ratio").repartition(5), rules) == fills


def test_where_nothing_is_known_the_rules_own_value_stands(spark: SparkSession) -> None:
    names = ["overdue_ratio", "age_band", "gender", "discount_share"]
    rows = features_of(spark, pd.DataFrame({"customer_id": ["c1"]} | dict.fromkeys(names)))
    declared = {
        "imputation.overdue_ratio": "{ by = 'median', value = 7 }",
        "imputation.age_band": "{ by = 'most_frequent' }",
        "imputation.gender": "{ by = 'most_frequent', value = 'not said' }",
        "imputation.discount_share": "{ by = 'median' }",
    }
    rules = matrix_rules(load_config(SHIPPED, [f"{name}={rule}" for name, rule in declared.items()])).imputation
    fills = fit_fills(rows, {name: rules[name] for name in names})
    assert fills == {"overdue_ratio": 7.0, "age_band": "unknown", "gender": "not said", "discount_share": 0.0}


def test_a_window_follows_the_rule_of_its_measure_unless_it_has_its_own() -> None:
    own = ["imputation.discount_share.by=median", "imputation.discount_share_28d.by=flag"]
    rules = matrix_rules(load_config(SHIPPED, own)).imputation
    of_windows = {name: rule.by for name, rule in rules.items() if name.startswith("discount_share")}
    others = {"discount_share": "median"} | {f"discount_share_{days}d": "median" for days in (7, 14, 56, 91, 182, 364)}
    assert of_windows == others | {"discount_share_28d": "flag"}
    may_miss = {column.name for column in feature_customers((7, 14, 28, 56, 91, 182, 364)).columns if column.nullable}
    assert set(matrix_features((7, 14, 28, 56, 91, 182, 364))) & may_miss <= set(rules) <= may_miss


def test_a_model_needs_a_rule_for_what_may_be_missing() -> None:
    config = load_config(SHIPPED)
    given = {name: rule for name, rule in config.imputation.items() if name != "overdue_ratio"}
    with pytest.raises(ConfigError, match="found no rule for overdue_ratio"):
        matrix_rules(config.model_copy(update={"imputation": given}))


def test_a_rule_of_a_site_takes_the_place_of_the_shipped_one_whole() -> None:
    config = load_config(SHIPPED, ["imputation.recency_days.by=median", "imputation.tenure_days.value=9"])
    assert config.imputation["recency_days"] == Imputation(by="median")
    assert config.imputation["tenure_days"] == Imputation(by="constant", value=9)
    assert config.imputation["mean_gap_days"] == load_config(SHIPPED).imputation["mean_gap_days"]


def test_filling_forward_takes_the_last_known_value_and_never_a_later_one(spark: SparkSession) -> None:
    random = np.random.default_rng(5)
    cutoffs = [date(2026, month, 1) for month in range(1, 7)]
    frame = pd.DataFrame(
        [{"customer_id": f"c{number:02}", "as_of": cutoff} for number in range(30) for cutoff in cutoffs]
    )
    frame["discount_share"] = with_missing(random, random.random(len(frame)))
    frame["age_band"] = with_missing(random, random.choice(["a", "b"], len(frame)))
    names = ["discount_share", "age_band"]
    # Rows come in no order; some customers are not there at all cut-offs.
    shuffled = features_of(spark, frame.sample(frac=0.9, random_state=1))
    rules = {name: Imputation(by="forward_fill") for name in names} | {"recency_days": Imputation(by="median")}
    seen = add_last_known(shuffled.repartition(4), rules)
    assert set(seen.columns) - set(shuffled.columns) == {f"last_known_{name}" for name in names}
    actual = seen.toPandas().sort_values(["customer_id", "as_of"], ignore_index=True)
    expected = actual.groupby("customer_id")[names].ffill()
    for name in names:
        found, wanted = (list(values.fillna("nothing")) for values in (actual[f"last_known_{name}"], expected[name]))
        assert found == wanted
    assert actual["last_known_age_band"].isna().any()
    # The features themselves stay as they are.
    table = feature_customers([28])
    assert summarise(seen.select(*table.column_names), table) == summarise(shuffled, table)


def test_the_table_tells_what_stands_for_what_and_how_often(spark: SparkSession) -> None:
    frame = pd.DataFrame(
        {
            "customer_id": ["a", "b", "c", "d"],
            "overdue_ratio": [None, 1.0, 2.0, 4.0],
            "gender": [None, None, None, "f"],
            "mean_gap_days": [None, None, 3.0, 3.0],
        }
    )
    rows = features_of(spark, frame).select("overdue_ratio", "gender", "mean_gap_days")
    rules = {
        "overdue_ratio": Imputation(by="median", value=0),
        "gender": Imputation(by="forward_fill", value="unknown"),
        "mean_gap_days": Imputation(by="feature", feature="tenure_days"),
        "recency_days": Imputation(by="constant", value=3650),
    }
    table = build_imputations({"segments": rows, "tasks.none": rows.limit(0)}, rules)
    assert {tuple(row) for row in table.collect()} == {
        ("segments", "overdue_ratio", "median", "2.0", 1, 4),
        ("segments", "gender", "forward_fill", "unknown", 3, 4),
        ("segments", "mean_gap_days", "feature tenure_days", None, 2, 4),
        ("tasks.none", "overdue_ratio", "median", "0.0", 0, 0),
        ("tasks.none", "gender", "forward_fill", "unknown", 0, 0),
        ("tasks.none", "mean_gap_days", "feature tenure_days", None, 0, 0),
    }


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("colour={ by = 'median' }", "imputation.colour: found no such feature, or one that is never missing; exp"),
        ("order_count={ by = 'median' }", "imputation.order_count: found no such feature, or one that is never m"),
        (
            "discount_share_13d={ by = 'median' }",
            "imputation.discount_share_13d: found no such feature, or one that is never missing; "
            "expected one such as discount_share_91d, discount_share_14d,",
        ),
        ("gender={ by = 'median' }", "imputation.gender.by: found 'median' for a text, expected constant,"),
        ("gender={ by = 'flag' }", "imputation.gender.by: found 'flag' for a text"),
        ("gender={ by = 'feature', feature = 'recency_days' }", "imputation.gender.by: found 'feature' for a text"),
        ("gender={ by = 'constant', value = 3 }", "imputation.gender.value: found 3.0, expected a text"),
        ("recency_days={ by = 'constant', value = 'never' }", "imputation.recency_days.value: found 'never', exp"),
        ("recency_days={ by = 'feature', feature = 'gender' }", "imputation.recency_days.feature: found 'gender'"),
        ("recency_days={ by = 'feature', feature = '' }", "imputation.recency_days.feature: found '', expected"),
        ("tenure_days={ by = 'feature', feature = 'mean_gap_days' }", "imputation.tenure_days.feature: found 'me"),
        (
            "discount_share={ by = 'feature', feature = 'discount_share_28d' }",
            "imputation.discount_share.feature: found 'discount_share_28d', expected a number of the matrix that",
        ),
    ],
)  # fmt: skip
def test_a_rule_for_no_such_feature_or_not_for_its_type_is_refused(setting: str, message: str) -> None:
    config = load_config(SHIPPED, [f"imputation.{setting}"])
    with pytest.raises(ConfigError) as caught:
        matrix_rules(config)
    assert str(caught.value).startswith(message)
