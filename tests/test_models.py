"""Labels, RFM scores, segments, classifiers and their measures, each against something planted or an oracle."""

import itertools
from collections.abc import Iterator
from datetime import UTC, date, datetime

import numpy as np
import pandas as pd
import pytest
from builders import features_of
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from crm_spark.config import Segments, Task, conf_dir, load_config
from crm_spark.errors import ModelError
from crm_spark.models.fit import build_coefficients, build_registry, build_rules, fit_tasks
from crm_spark.models.labels import build_labels, task_cutoffs
from crm_spark.models.matrix import matrix_rules
from crm_spark.models.quality import measure_deciles, measure_quality
from crm_spark.models.rfm import fit_rfm_cut_points, score_rfm
from crm_spark.models.score import build_scores
from crm_spark.models.segments import ARCHETYPES, assign_segments, build_candidates, fit_segments, name_profiles
from crm_spark.models.tables import MODEL_RFM_CUT_POINTS, MODEL_SCORES
from crm_spark.session import fixed_plans
from crm_spark.tables import declared_rows

AS_OF = date(2026, 6, 1)
RFM = load_config(conf_dir() / "complete_journey.toml").rfm
RULES = matrix_rules(load_config(conf_dir() / "complete_journey.toml", ["features.windows_days=[28]"]))
CHURN = Task(label="no_purchase", horizon_days=28, train_cutoffs=2, seed=1)


@pytest.fixture(scope="module")
def spark(spark: SparkSession) -> SparkSession:
    """Fits see their rows as they are laid out."""
    return fixed_plans(spark)


def test_cutoffs_reach_back_from_as_of_by_the_horizon() -> None:
    assert task_cutoffs([CHURN], AS_OF) == [date(2026, 3, 9), date(2026, 4, 6), date(2026, 5, 4), AS_OF]


def test_labels_look_from_the_cutoff_up_to_the_end_of_the_horizon(spark: SparkSession) -> None:
    cutoff = date(2026, 5, 4)
    features = features_of(
        spark,
        pd.DataFrame(
            {"customer_id": ["on_the_day", "last_day", "day_after", "learned_late", "no_order_yet"], "as_of": cutoff}
        ).assign(order_count=[1, 1, 1, 1, 0]),
    )
    known, late = datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 7, 1, tzinfo=UTC)
    days = spark.createDataFrame(
        [
            ("on_the_day", date(2026, 5, 4), known, 1),
            ("last_day", date(2026, 5, 31), known, 1),
            ("day_after", AS_OF, known, 1),
            ("learned_late", date(2026, 5, 5), late, 1),
        ],
        "customer_id string, happened_on date, known_at timestamp, order_count bigint",
    )
    events = spark.createDataFrame([], "customer_id string, campaign_id string, happened_on date, known_at timestamp")
    labels = build_labels(
        features, days, events, events, {"churn": CHURN}, AS_OF, datetime(2026, 6, 2, tzinfo=UTC)
    ).collect()
    assert {row["customer_id"]: (row["fold"], row["label"]) for row in labels} == {
        "on_the_day": ("test", 0),
        "last_day": ("test", 0),
        "day_after": ("test", 1),
        "learned_late": ("test", 1),
    }


def test_a_response_counts_only_to_a_campaign_that_contacted_the_customer(spark: SparkSession) -> None:
    task = Task(label="response_to_contact", horizon_days=28, train_cutoffs=2, seed=1)
    cutoff = date(2026, 5, 4)
    features = features_of(
        spark, pd.DataFrame({"customer_id": ["yes", "other", "never", "uncontacted"], "as_of": cutoff})
    )
    schema = "customer_id string, campaign_id string, happened_on date, known_at timestamp"
    known = datetime(2026, 5, 1, tzinfo=UTC)
    contacts = spark.createDataFrame(
        [(customer, "spring", date(2026, 5, 10), known) for customer in ("yes", "other", "never")], schema
    )
    responses = spark.createDataFrame(
        [
            ("yes", "spring", date(2026, 5, 12), known),
            ("other", "winter", date(2026, 5, 12), known),
            ("uncontacted", "spring", date(2026, 5, 12), known),
        ],
        schema,
    )
    days = spark.createDataFrame([], "customer_id string, happened_on date, known_at timestamp, order_count bigint")
    labels = build_labels(
        features, days, contacts, responses, {"r": task}, AS_OF, datetime(2026, 6, 2, tzinfo=UTC)
    ).collect()
    assert {row["customer_id"]: row["label"] for row in labels} == {"yes": 1, "other": 0, "never": 0}


def test_equal_customers_have_equal_rfm_scores_however_many_they_are(spark: SparkSession) -> None:
    counts = [1] * 40 + list(range(2, 62))
    buyers = features_of(
        spark,
        pd.DataFrame({"customer_id": [f"c{i:03}" for i in range(100)], "order_count": counts, "net_amount": counts}),
    )
    scores = score_rfm(buyers, fit_rfm_cut_points(buyers), RFM).toPandas()
    merged = scores.merge(buyers.select("customer_id", "order_count").toPandas())
    assert len(merged[["order_count", "frequency_score"]].drop_duplicates()) == len(set(counts))
    oracle = 1 + sum(merged["order_count"] > np.quantile(counts, q) for q in (0.2, 0.4, 0.6, 0.8))
    assert (merged["frequency_score"] == oracle).all()


def test_forty_in_a_hundred_who_are_alike_have_one_score(spark: SparkSession) -> None:
    buyers = features_of(
        spark, pd.DataFrame({"customer_id": [f"c{i:03}" for i in range(100)], "order_count": [3] * 40 + [9] * 60})
    )
    scores = score_rfm(buyers, fit_rfm_cut_points(buyers), RFM).toPandas().sort_values("customer_id")["frequency_score"]
    assert list(scores) == [1] * 40 + [3] * 60


def test_every_score_triple_has_one_rfm_segment_the_first_that_has_it(spark: SparkSession) -> None:
    triples = list(itertools.product(range(1, 6), repeat=3))
    # Cut points at 1 to 4, so that a value is its score; of recency, less is better.
    buyers = features_of(
        spark,
        pd.DataFrame(
            [
                {"customer_id": f"{r}{f}{m}", "recency_days": 6 - r, "order_count": f, "net_amount": m}
                for r, f, m in triples
            ]
        ),
    )
    cut_points = declared_rows(
        spark,
        MODEL_RFM_CUT_POINTS,
        [(name, [1.0, 2.0, 3.0, 4.0]) for name in ("recency_days", "order_count", "net_amount")],
    )
    scored = score_rfm(buyers, cut_points, RFM).collect()
    found = {row["customer_id"]: row["rfm_segment"] for row in scored}
    assert [f"{row['recency_score']}{row['frequency_score']}{row['monetary_score']}" for row in scored] == list(found)

    def by_hand(r: int, f: int, m: int) -> str:
        if r >= 3:
            if f >= 4:
                return "Champions" if r >= 4 and m >= 4 else "Loyal"
            if m >= 4:
                return "Big spenders"
            if r == 3:
                return "Needs attention"
            return "New" if f == 1 else "Promising"
        if f >= 3:
            return "Not to be lost" if f >= 4 and m >= 4 else "At risk"
        return "Lost" if r == 1 else "Dormant"

    assert found == {f"{r}{f}{m}": by_hand(r, f, m) for r, f, m in triples}
    assert set(found.values()) == {*(segment.name for segment in RFM.segments), RFM.otherwise}


def test_a_recent_purchase_has_the_high_recency_score(spark: SparkSession) -> None:
    buyers = features_of(
        spark, pd.DataFrame({"customer_id": list("abcde"), "recency_days": [1, 10, 50, 100, 300], "tenure_days": 400})
    )
    scores = score_rfm(buyers, fit_rfm_cut_points(buyers), RFM).toPandas().sort_values("customer_id")
    assert list(scores["recency_score"]) == [5, 4, 3, 2, 1]


@pytest.fixture(scope="module")
def planted(spark: SparkSession) -> Iterator[DataFrame]:
    """Three groups far apart in recency, orders and amounts."""
    random = np.random.default_rng(7)
    groups = {"best": (3, 80, 4000), "middle": (30, 20, 600), "lost": (200, 2, 30)}
    rows = [
        {
            "customer_id": f"{name}{i:03}",
            "recency_days": int(recency + random.integers(0, 3)),
            "order_count": int(orders + random.integers(0, 3)),
            "net_amount": float(amount + random.integers(0, 20)),
            "mean_order_amount": amount / orders,
            "discount_share": 0.1,
            "category_count": orders,
        }
        for name, (recency, orders, amount) in groups.items()
        for i in range(60)
    ]
    return features_of(spark, pd.DataFrame(rows)).persist()


def test_segments_recover_planted_groups_and_name_them_by_profile(
    spark: SparkSession, planted: DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = Segments(cluster_counts=(2, 3), starts=2, sample_customers=1000, seed=5)
    uri = str(tmp_path_factory.mktemp("models"))
    rfm = score_rfm(planted, fit_rfm_cut_points(planted), RFM)
    fitted = fit_segments(planted, rfm, settings, RULES, uri, "segments")
    candidates = build_candidates(fitted, planted)
    chosen = [row["cluster_count"] for row in candidates.collect() if row["is_chosen"]]
    assert chosen == [3]
    assigned = assign_segments(planted, candidates, uri).toPandas()
    names = assigned.groupby(assigned["customer_id"].str[:-3])["segment_name"].unique().map(list).to_dict()
    assert names["best"] == ["Champions"]
    assert names["lost"] == ["Nearly lost"]
    assert len({tuple(value) for value in names.values()}) == 3
    shuffled = planted.repartition(7, "net_amount")
    again = fit_segments(shuffled, rfm, settings, RULES, uri, "segments")
    assert again == fitted


def test_one_customer_alone_is_still_a_segment(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> None:
    one = features_of(spark, pd.DataFrame({"customer_id": ["only"], "order_count": [3]}))
    settings = Segments(cluster_counts=(2, 3), starts=2, sample_customers=1000, seed=5)
    uri = str(tmp_path_factory.mktemp("models"))
    rfm = score_rfm(one, fit_rfm_cut_points(one), RFM)
    candidates = build_candidates(fit_segments(one, rfm, settings, RULES, uri, "segments"), one)
    assert [row["segment_name"] for row in assign_segments(one, candidates, uri).collect()] == ["All customers"]


def test_names_follow_profiles_not_their_order() -> None:
    profiles = [list(ARCHETYPES[name]) for name in ("Champions", "Slipping away", "Nearly lost")]
    for order in itertools.permutations(range(3)):
        names = name_profiles([profiles[i] for i in order])
        assert names == [["Champions", "Slipping away", "Nearly lost"][i] for i in order]


def scores_of(spark: SparkSession, probabilities: np.ndarray, labels: np.ndarray) -> DataFrame:
    rows = [
        ("churn", "m", "test", AS_OF, f"c{i}", float(p), int(y), [])
        for i, (p, y) in enumerate(zip(probabilities, labels, strict=True))
    ]
    return declared_rows(spark, MODEL_SCORES, rows)


def test_quality_equals_scikit_learns_with_ties(spark: SparkSession) -> None:
    random = np.random.default_rng(3)
    probabilities = random.integers(1, 20, 500) / 20
    labels = (random.random(500) < probabilities).astype(int)
    quality = measure_quality(scores_of(spark, probabilities, labels).repartition(5)).toPandas()
    actual = dict(zip(quality["metric"], quality["value"], strict=True))
    expected = {
        "row_count": 500,
        "event_share": labels.mean(),
        "accuracy": ((probabilities >= 0.5) == labels).mean(),
        "auc": roc_auc_score(labels, probabilities),
        "average_precision": average_precision_score(labels, probabilities),
        "log_loss": log_loss(labels, probabilities),
        "brier": brier_score_loss(labels, probabilities),
    }
    for metric, value in expected.items():
        assert actual[metric] == pytest.approx(value, abs=1e-12), metric


def test_deciles_hold_every_customer_and_equal_scores_share_one(spark: SparkSession) -> None:
    probabilities = np.repeat([0.9, 0.5, 0.1], [5, 40, 55])
    labels = np.concatenate([np.ones(5), np.tile([1, 0], 20), np.zeros(55)]).astype(int)
    deciles = measure_deciles(scores_of(spark, probabilities, labels)).toPandas().set_index("decile")
    assert list(deciles.sort_index()["customer_count"]) == [5, 40, 55]
    assert deciles.loc[1, "lift"] == pytest.approx(1 / 0.25)
    assert deciles["event_count"].sum() == labels.sum()


def test_one_class_alone_has_no_auc(spark: SparkSession) -> None:
    quality = measure_quality(scores_of(spark, np.array([0.2, 0.8]), np.array([0, 0]))).toPandas()
    assert "auc" not in set(quality["metric"])


@pytest.fixture(scope="module")
def fitted_task(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """A task in which recency alone decides: over 50 days means churn, with 5% of labels turned round."""
    random = np.random.default_rng(11)
    cutoffs = task_cutoffs([CHURN], AS_OF)
    rows = [
        {"customer_id": f"c{i:03}", "as_of": cutoff, "recency_days": int(random.integers(1, 100)), "tenure_days": 400}
        for cutoff in cutoffs
        for i in range(300)
    ]
    folds = dict(zip(cutoffs, ("train", "validation", "test"), strict=False))
    labels = [
        (
            "churn",
            folds[row["as_of"]],
            row["as_of"],
            row["customer_id"],
            int((row["recency_days"] > 50) != (random.random() < 0.05)),
        )
        for row in rows
        if row["as_of"] in folds
    ]
    features = features_of(spark, pd.DataFrame(rows)).persist()
    labelled = spark.createDataFrame(labels, "task string, fold string, as_of date, customer_id string, label int")
    uri = str(tmp_path_factory.mktemp("models"))
    fitted = fit_tasks({"churn": CHURN}, features, labelled, AS_OF, RULES, uri, "models")
    return {"features": features, "labels": labelled, "uri": uri, "fitted": fitted}


def _scores(task: dict[str, object], features: DataFrame, settings: Task = CHURN) -> DataFrame:
    return build_scores(
        features,
        task["labels"],
        build_registry(task["fitted"], features),
        build_rules(task["fitted"], features),
        build_coefficients(task["fitted"], features),
        {"churn": settings},
        RULES.imputation,
        AS_OF,
        task["uri"],
    )


def test_models_find_the_planted_rule_and_put_it_in_words(fitted_task: dict[str, object]) -> None:
    (fitted,) = fitted_task["fitted"]
    first = {rule.conditions[0].replace("<=", ">").split(" > ")[0] for rule in fitted.rules}
    assert any("recency_days" in condition for condition in first)
    assert sum(rule.train_count for rule in fitted.rules) == 600
    largest = max(
        (c for c in fitted.coefficients if c.model == "logistic_regression" and c.term != "intercept"),
        key=lambda c: abs(c.coefficient),
    )
    assert largest.term in ("recency_days", "overdue_ratio")
    assert largest.coefficient > 0


def test_saved_models_score_again_with_reasons_also_whoever_never_bought(
    spark: SparkSession, fitted_task: dict[str, object]
) -> None:
    unknown = ("recency_days", "tenure_days", "mean_gap_days", "gap_spread_days", "overdue_ratio", "mean_order_amount")
    nobody = features_of(spark, pd.DataFrame({"customer_id": ["nobody"], "order_count": [0]}))
    nobody = nobody.withColumns({name: F.lit(None).cast(nobody.schema[name].dataType) for name in unknown})
    task = CHURN.model_copy(update={"label": "response_to_contact"})
    scores = _scores(fitted_task, fitted_task["features"].unionByName(nobody), task).persist()
    quality = measure_quality(scores.where("fold = 'test'")).toPandas()
    auc = quality.query("metric == 'auc'").set_index("model")["value"]
    assert auc["logistic_regression"] > 0.9
    assert auc["decision_tree"] > 0.9
    assert auc["baseline_majority"] == 0.5
    current = scores.where("fold = 'current'").toPandas()
    assert current.groupby("customer_id").size().unique().tolist() == [5]
    assert current["customer_id"].nunique() == 301
    assert current.query("customer_id == 'nobody'")["probability"].between(0, 1).all()
    risky = current.query("model == 'logistic_regression' and customer_id != 'nobody' and probability > 0.6")
    assert len(risky) > 50
    assert risky["reasons"].map(lambda reasons: "recency_days is high" in list(reasons)).all()


def test_churn_is_scored_for_those_alone_who_bought(spark: SparkSession, fitted_task: dict[str, object]) -> None:
    nobody = features_of(spark, pd.DataFrame({"customer_id": ["nobody"], "order_count": [0]}))
    scores = _scores(fitted_task, nobody)
    assert scores.isEmpty()


def test_fits_do_not_depend_on_the_order_of_rows(fitted_task: dict[str, object]) -> None:
    features = fitted_task["features"].repartition(5, "recency_days")
    again = fit_tasks({"churn": CHURN}, features, fitted_task["labels"], AS_OF, RULES, fitted_task["uri"], "models")
    assert again == fitted_task["fitted"]


def test_a_model_whose_features_are_gone_is_refused(fitted_task: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="order_count_28d"):
        _scores(fitted_task, fitted_task["features"].drop("order_count_28d"))


def test_a_task_with_one_class_is_left_out(spark: SparkSession, fitted_task: dict[str, object]) -> None:
    none = fitted_task["labels"].withColumn("label", F.lit(0))
    assert fit_tasks({"churn": CHURN}, fitted_task["features"], none, AS_OF, RULES, fitted_task["uri"], "none") == []


def test_a_tree_that_splits_on_a_category_says_which(
    spark: SparkSession, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cutoffs = task_cutoffs([CHURN], AS_OF)
    folds = dict(zip(cutoffs, ("train", "validation", "test"), strict=False))
    rows = [
        {"customer_id": f"c{i:03}", "as_of": cutoff, "age_band": "65+" if i % 2 else "19-24"}
        for cutoff in folds
        for i in range(120)
    ]
    labels = [
        ("churn", folds[row["as_of"]], row["as_of"], row["customer_id"], int(row["age_band"] == "65+" and i % 10 != 1))
        for i, row in enumerate(rows)
    ]
    labelled = spark.createDataFrame(labels, "task string, fold string, as_of date, customer_id string, label int")
    uri = str(tmp_path_factory.mktemp("models"))
    features = features_of(spark, pd.DataFrame(rows))
    (fitted,) = fit_tasks({"churn": CHURN}, features, labelled, AS_OF, RULES, uri, "models")
    # Both models rank as well: still, one of them is shown.
    registry = build_registry([fitted], features).toPandas()
    assert len(set(registry["validation_auc"])) == 1
    assert registry["is_champion"].sum() == 1
    probabilities = {rule.conditions: rule.probability for rule in fitted.rules}
    assert set(probabilities) in (
        {("age_band is 65+",), ("age_band is not 65+",)},
        {("age_band is 19-24",), ("age_band is not 19-24",)},
    )
    old = next(
        conditions for conditions in probabilities if conditions[0] in ("age_band is 65+", "age_band is not 19-24")
    )
    assert probabilities[old] == pytest.approx(0.8)
    assert min(probabilities.values()) == 0
