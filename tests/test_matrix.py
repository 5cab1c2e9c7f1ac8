"""What a model sees of its features, also once it is saved and loaded, and which rows that was fitted to."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import pytest
from builders import features_of
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.functions import vector_to_array
from pyspark.sql import DataFrame, SparkSession

import crm_spark.models.fit
from crm_spark.config import Outlier, Task, conf_dir, load_config
from crm_spark.features.tables import DEMOGRAPHICS
from crm_spark.models.fit import build_coefficients, build_registry, build_rules, fit_task, training_rows
from crm_spark.models.imputation import add_last_known, build_imputations
from crm_spark.models.matrix import MatrixRules, fit_preparation, matrix_rules, matrix_stages, matrix_terms
from crm_spark.models.outliers import build_outlier_limits
from crm_spark.models.score import build_scores
from crm_spark.session import fixed_plans

TRAIN, VALIDATION, TEST, AS_OF = (date(2026, 3, 9), date(2026, 4, 6), date(2026, 5, 4), date(2026, 6, 1))
FOLDS = {TRAIN: "train", VALIDATION: "validation", TEST: "test"}
CUSTOMERS = 60
TASK = Task(label="no_purchase", horizon_days=28, train_cutoffs=2, seed=1, cap_outliers=True)
# Texts come from data, and a model's stages are SQL.
HOSTILE = "it's \\ ${x} __THIS__ ä"


@pytest.fixture(scope="module")
def spark(spark: SparkSession) -> SparkSession:
    return fixed_plans(spark)


def rules_of(*settings: str, **outliers: Outlier) -> MatrixRules:
    """The shipped rules of imputation with some replaced, and no rules for outliers but these."""
    shipped = load_config(conf_dir() / "complete_journey.toml", ["features.windows_days=[28]", *settings])
    return replace(matrix_rules(shipped), outliers=outliers)


def seen_by(pipeline: PipelineModel, rows: DataFrame) -> list[dict[str, float]]:
    """The matrix's rows by term, in the order of customers."""
    made = pipeline.transform(rows)
    arrays = made.orderBy("customer_id").select(vector_to_array("matrix").alias("x")).collect()
    return [dict(zip(matrix_terms(made), row["x"], strict=True)) for row in arrays]


def nobody(spark: SparkSession, **known: Any) -> DataFrame:
    """A customer of whom nothing is known that may be missing."""
    missing = [name for name in rules_of().imputation if name not in known]
    return features_of(spark, pd.DataFrame({"customer_id": ["nobody"]} | dict.fromkeys(missing) | known))


def test_what_the_configuration_ships_fills_as_it_always_did(spark: SparkSession) -> None:
    rows = nobody(spark, tenure_days=40)
    pipeline = Pipeline(stages=matrix_stages([28], fit_preparation(rows, rules_of(), True), with_logs=False)).fit(rows)
    (seen,) = seen_by(pipeline, rows)
    assert {name: seen[name] for name in rules_of().imputation if name in seen} == {
        "recency_days": 3650,
        "contact_recency_days": 3650,
        "response_recency_days": 3650,
        "tenure_days": 40,
        "mean_gap_days": 40,
        "overdue_ratio": 1,
        "mean_order_amount": 0,
        "discount_share": 0,
        "discount_share_28d": 0,
        "gap_spread_days": 0,
    }
    assert all(seen[f"{name}=unknown"] == 1 for name in DEMOGRAPHICS)
    assert not any(term.endswith("=missing") for term in seen)


def test_each_rule_reaches_the_matrix_and_only_what_is_known_is_capped(spark: SparkSession) -> None:
    rules = rules_of(
        "imputation.recency_days.value=77",
        "imputation.tenure_days={ by = 'median', value = 1 }",
        "imputation.overdue_ratio={ by = 'flag', value = 2.5 }",
        "imputation.discount_share={ by = 'forward_fill', value = 0.25 }",
        "imputation.gap_spread_days={ by = 'flag' }",
        "imputation.age_band.by=most_frequent",
        f"imputation.gender={{ by = 'constant', value = '''{HOSTILE}''' }}",
        recency_days=Outlier(by="quantile", high=0.5),
        tenure_days=Outlier(by="quantile", low=0.5),
    )
    frame = pd.DataFrame(
        {
            "customer_id": ["a", "b", "c", "d"],
            "recency_days": [4, 6, 8, None],
            "tenure_days": [100, 200, 500, None],
            "mean_gap_days": [3, None, 7, None],
            "overdue_ratio": [0.5, None, 0.7, None],
            "discount_share": [0.1, 0.2, None, None],
            "gap_spread_days": [1.0, 2.0, 3.0, 4.0],
            "age_band": [HOSTILE, HOSTILE, "old", None],
        }
    )
    rows = add_last_known(features_of(spark, frame), rules.imputation)
    for with_caps, recency, tenure in (
        (True, [4, 6, 6, 77], [200, 200, 500, 200]),
        (False, [4, 6, 8, 77], [100, 200, 500, 200]),
    ):
        preparation = fit_preparation(rows, rules, with_caps)
        seen = pd.DataFrame(seen_by(Pipeline(stages=matrix_stages([28], preparation, with_logs=False)).fit(rows), rows))
        assert seen["recency_days"].tolist() == recency
        assert seen["tenure_days"].tolist() == tenure
        assert seen["mean_gap_days"].tolist() == [3, 200, 7, 200]
        assert seen["overdue_ratio"].tolist() == [0.5, 2.5, 0.7, 2.5]
        assert seen["overdue_ratio=missing"].tolist() == [0, 1, 0, 1]
        assert seen["gap_spread_days=missing"].tolist() == [0, 0, 0, 0]
        assert seen["discount_share"].tolist() == [0.1, 0.2, 0.25, 0.25]
        assert seen[f"age_band={HOSTILE}"].tolist() == [1, 1, 0, 1]
        assert seen[f"gender={HOSTILE}"].tolist() == [1, 1, 1, 1]


@dataclass
class Fitted:
    """A task fitted with caps, and what was given to it."""

    frame: pd.DataFrame
    features: DataFrame
    labels: DataFrame
    rules: MatrixRules
    task: crm_spark.models.fit.FittedTask
    uri: str
    prepared_on: list[set[str]]

    def training(self) -> pd.DataFrame:
        return self.frame[self.frame["as_of"].isin([TRAIN, VALIDATION])]


@pytest.fixture(scope="module")
def fitted(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fitted]:
    """Ever later cut-offs have ever greater values: who looks at one too many shows it."""
    random = np.random.default_rng(29)
    frame = pd.DataFrame(
        [
            {
                "customer_id": f"c{number:02}",
                "as_of": cutoff,
                "net_amount": float(random.integers(1, 1000) * 10**later),
                "discount_share": None if random.random() < 0.4 else float(random.random() + later),
                "mean_gap_days": None if random.random() < 0.4 else float(random.integers(1, 9) + 100 * later),
                "age_band": str(random.choice(["a", "b"], p=[0.7, 0.3] if later < 2 else [0.0, 1.0])),
            }
            for later, cutoff in enumerate((TRAIN, VALIDATION, TEST, AS_OF))
            for number in range(CUSTOMERS)
        ]
    )
    labels = [
        ("churn", FOLDS[row["as_of"]], row["as_of"], row["customer_id"], int(random.random() < 0.5))
        for row in frame[frame["as_of"] < AS_OF].to_dict("records")
    ]
    labelled = spark.createDataFrame(labels, "task string, fold string, as_of date, customer_id string, label int")
    rules = rules_of(
        "imputation.discount_share.by=median",
        "imputation.mean_gap_days.by=forward_fill",
        "imputation.age_band.by=most_frequent",
        net_amount=Outlier(by="quantile", low=0.1, high=0.9),
        discount_share=Outlier(by="robust_z", above=1),
    )
    features = features_of(spark, frame).persist()
    uri, prepared_on = str(tmp_path_factory.mktemp("models")), []

    def recording(rows: DataFrame, *others: Any) -> Any:
        prepared_on.append({row["fold"] for row in rows.select("fold").distinct().collect()})
        return fit_preparation(rows, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crm_spark.models.fit, "fit_preparation", recording)
        # Less to fit.
        patch.setattr(crm_spark.models.fit, "_MAX_ITERATIONS", 5)
        task = fit_task("churn", TASK, features, labelled, AS_OF, rules, uri, "models")
    assert task is not None
    yield Fitted(frame, features, labelled, rules, task, uri, prepared_on)
    features.unpersist()


def test_choices_are_prepared_by_training_rows_and_models_never_by_those_of_the_test(fitted: Fitted) -> None:
    assert fitted.prepared_on == [{"train"}, {"train", "validation"}]


def test_a_saved_model_fills_and_caps_by_its_training_rows(spark: SparkSession, fitted: Fitted) -> None:
    training = fitted.training()
    low, high = np.quantile(training["net_amount"], [0.1, 0.9])
    median = training["discount_share"].median()
    reach = np.median((training["discount_share"].dropna() - median).abs()) / 0.6745
    customers = pd.DataFrame(
        {
            "customer_id": ["a", "b"],
            "net_amount": [-1e6, 1e9],
            "discount_share": [None, 1e3],
            "mean_gap_days": None,
            "age_band": None,
        }
    )
    rows = add_last_known(features_of(spark, customers), fitted.rules.imputation)
    for _, model, path, *_ in fitted.task.registry:
        stages = PipelineModel.load(f"{fitted.uri}/{path}").stages[:5]
        seen = pd.DataFrame(seen_by(PipelineModel(stages), rows))
        if model == "logistic_regression":
            numbers = ["net_amount", "discount_share", "mean_gap_days"]
            seen[numbers] = np.sign(seen[numbers]) * np.expm1(seen[numbers].abs())
        assert seen["net_amount"].tolist() == pytest.approx([low, high], rel=1e-9)
        assert seen["discount_share"].tolist() == pytest.approx([median, median + reach], rel=1e-9)
        assert seen["mean_gap_days"].tolist() == [0, 0]
        assert seen["age_band=a"].tolist() == [1, 1]


def test_the_tables_tell_what_the_models_use(fitted: Fitted) -> None:
    rows = {"tasks.churn": training_rows(fitted.features, fitted.labels, "churn", fitted.rules)}
    limits = build_outlier_limits(rows, fitted.rules.outliers, ["tasks.churn"]).toPandas().set_index("feature")
    imputations = build_imputations(rows, fitted.rules.imputation).toPandas().set_index("feature")
    training = fitted.training()
    known = training["net_amount"]
    low, high = np.quantile(known, [0.1, 0.9])
    assert limits.loc["net_amount", ["low", "high"]].tolist() == pytest.approx([low, high], rel=1e-12)
    assert limits.loc["net_amount", "flagged_count"] == ((known < low) | (known > high)).sum()
    assert limits["is_capped"].all()
    assert float(imputations.loc["discount_share", "value"]) == training["discount_share"].median()
    assert imputations.loc["discount_share", "missing_count"] == training["discount_share"].isna().sum()
    assert imputations.loc["age_band", "value"] == "a"
    assert set(imputations["row_count"]) == {2 * CUSTOMERS}


def test_scoring_takes_what_was_last_known_up_to_each_cutoff_and_reads_features_as_they_are(fitted: Fitted) -> None:
    registry = build_registry([fitted.task], fitted.features).where("model = 'logistic_regression'")
    arguments = (
        fitted.labels,
        registry,
        build_rules([fitted.task], fitted.features),
        build_coefficients([fitted.task], fitted.features),
        {"churn": TASK},
        fitted.rules.imputation,
        AS_OF,
        fitted.uri,
    )

    def score(features: DataFrame) -> pd.Series:
        scores = build_scores(features, *arguments).where("model = 'logistic_regression'").toPandas()
        return scores.set_index(["as_of", "customer_id"])["probability"].sort_index()

    # The same customers, with what they were last known to have written into their rows.
    filled = fitted.frame.copy()
    filled["mean_gap_days"] = filled.groupby("customer_id")["mean_gap_days"].ffill()
    expected = score(features_of(fitted.features.sparkSession, filled))
    assert len(expected) == 4 * CUSTOMERS
    pd.testing.assert_series_equal(score(fitted.features), expected, rtol=0, atol=1e-12)
