"""The whole job on a small shop that has orders alone: stopped and taken up, on one core and two."""

import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from rich.console import Console
from shop import LATER, refreshed

from crm_spark.cleaning.tables import CLEAN, REJECTED
from crm_spark.cli import main
from crm_spark.errors import ConfigError, LakeError, SourceError
from crm_spark.lake import Lake
from crm_spark.marts.tables import MART_CUSTOMER_360, MART_MODEL_QUALITY
from crm_spark.progress import RunProgress
from crm_spark.publications import Publication, PublishedLake
from crm_spark.refresh import STAGES
from crm_spark.report.build import write_report
from crm_spark.session import build_session

pytestmark = pytest.mark.beside


@pytest.fixture(scope="session")
def publication(spark: SparkSession, lake_path: Path) -> Publication:
    return Lake(spark, str(lake_path)).require_publication()


def test_a_refresh_that_was_stopped_is_taken_up_and_publishes_all_tables(publication: Publication) -> None:
    assert publication.publication_no == 1
    assert publication.currency == "EUR"
    # The shop has orders alone: there are no clean tables of what it has no source for.
    of_entities = {table.name for table in (*CLEAN.values(), *REJECTED.values())}
    every = {table.name for stage in STAGES.values() for table in stage.tables}
    assert set(publication.tables) == every - of_entities | {"clean_orders", "rejected_orders"}


def test_each_kind_of_row_is_accounted_for(spark: SparkSession, lake_path: Path, publication: Publication) -> None:
    account = Lake(spark, str(lake_path)).read(publication.tables["cleaning_account"])
    (orders,) = (
        account.where("entity = 'orders'")
        .selectExpr(
            "sum(read_count) - sum(accepted_count) - sum(rejected_count) - sum(duplicate_count) AS missing",
            "sum(rejected_count) AS rejected",
            "sum(duplicate_count) AS duplicates",
        )
        .collect()
    )
    assert orders.asDict() == {"missing": 0, "rejected": 2, "duplicates": 1}


def test_there_are_churn_models_and_baselines_and_none_for_responses(
    spark: SparkSession, lake_path: Path, publication: Publication
) -> None:
    quality = Lake(spark, str(lake_path)).read(publication.tables[MART_MODEL_QUALITY.name]).toPandas()
    tested = quality[(quality["fold"] == "test") & (quality["metric"] == "auc")]
    assert tested.groupby("task")["model"].nunique().to_dict() == {"churn": 5}


def test_customers_have_segments_churn_and_a_report(
    spark: SparkSession, lake_path: Path, publication: Publication, tmp_path: Path
) -> None:
    customers = Lake(spark, str(lake_path)).read(publication.tables[MART_CUSTOMER_360.name]).toPandas()
    assert customers["segment_name"].nunique() >= 2
    assert customers["churn_probability"].between(0, 1).all()
    assert customers["response_probability"].isna().all()
    without_spark = PublishedLake(str(lake_path))
    assert "EUR" in write_report(without_spark, publication, tmp_path / "report.html", "en").read_text()


def test_the_same_run_again_builds_nothing(spark: SparkSession, shop: Path, lake_path: Path) -> None:
    again, log = refreshed(spark, shop, lake_path, LATER)
    assert not again.is_new
    assert all(": 0 tables written" in line for line in log)


def test_a_required_source_without_rows_of_the_last_day_stops_publishing_unless_that_is_allowed(
    spark: SparkSession, shop: Path, lake_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "required.toml"
    conf.write_text(shop.read_text().replace('format = "csv"', 'format = "csv"\nrequired = true'))
    fresh, _ = refreshed(spark, conf, lake_path, LATER)
    assert not fresh.is_new

    conf.write_text(conf.read_text().replace("as_of = 2025-10-01", "as_of = 2025-10-29"))
    # It has rows up to 2025-10-27, but has come before.
    missing = "sources.shop: found newest rows of 2025-09-30, expected some of 2025-10-28, the day before as_of; --al"
    with pytest.raises(SourceError, match=missing):
        refreshed(spark, conf, lake_path, LATER)
    # What is not published may be old.
    refreshed(spark, conf, lake_path, LATER, last_stage="cleaning")
    published: list[Publication] = []
    monkeypatch.setattr("crm_spark.refresh.STAGES", {name: STAGES[name] for name in ("sources", "cleaning")})
    monkeypatch.setattr(Lake, "publish", lambda self, publication: published.append(publication))
    refreshed(spark, conf, lake_path, LATER, last_stage="cleaning", allow_stale=True)
    assert len(published) == 1


@pytest.mark.parametrize(
    ("settings", "table"),
    [
        # The first that must be made anew of, in this order, classifiers, segments and what tells of their rows.
        (["imputation.recency_days.value=99"], "model_registry"),
        (["outliers.net_amount={ by = 'quantile', low = 0.02 }", "segments.cap_outliers=true"], "segment_candidates"),
        (["outliers.net_amount={ by = 'quantile', low = 0.02 }"], "model_outlier_limits"),
    ],
)
def test_a_changed_rule_fits_anew_what_asks_for_it_and_nothing_else(
    spark: SparkSession, shop: Path, lake_path: Path, publication: Publication, settings: list[str], table: str
) -> None:
    with pytest.raises(LakeError, match=f"^{table}: found no version for these inputs"):
        refreshed(spark, shop, lake_path, LATER, settings, first_stage="marts")


def test_later_stages_alone_need_earlier_ones(spark: SparkSession, shop: Path, tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="ingest_ledger: found no version; run a whole refresh first"):
        refreshed(spark, shop, tmp_path / "lake", first_stage="facts")


def test_stages_are_named_and_in_order(spark: SparkSession, shop: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found a later stage than --to facts"):
        refreshed(spark, shop, tmp_path / "lake", first_stage="marts", last_stage="facts")
    with pytest.raises(ConfigError, match="found stage 'fact', expected one of: sources, cleaning"):
        refreshed(spark, shop, tmp_path / "lake", first_stage="fact")


@pytest.fixture
def one_core_elsewhere(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> Iterator[SparkSession]:
    """A session on one core, with other partitions, of a host in New York; it takes the place of the shared one."""
    spark.stop()
    java = spark.sparkContext._jvm.java
    other = {
        "spark.master": "local[1]",
        "spark.sql.shuffle.partitions": "3",
        "user.timezone": "America/New_York",
        # Elsewhere than in UTC, Delta reads its log again after each commit: long, and not what is tested.
        "spark.databricks.delta.allFilesInCrc.verificationMode.forceOnNonUTC.enabled": "false",
    }
    usual = {key: java.lang.System.setProperty(key, value) for key, value in other.items()}
    try:
        java.util.TimeZone.setDefault(None)  # to be read again
        monkeypatch.setenv("TZ", "America/New_York")
        time.tzset()
        session = build_session()
        yield session
        session.stop()
    finally:
        for key, value in usual.items():
            java.lang.System.setProperty(key, value) if value else java.lang.System.clearProperty(key)
        java.util.TimeZone.setDefault(None)
        monkeypatch.undo()
        time.tzset()


@pytest.mark.ends_spark
def test_one_core_and_two_publish_the_same(
    publication: Publication, shop: Path, one_core_elsewhere: SparkSession, tmp_path: Path
) -> None:
    assert one_core_elsewhere.sparkContext.defaultParallelism == 1
    assert one_core_elsewhere._jvm.java.util.TimeZone.getDefault().getID() == "America/New_York"
    other = refreshed(one_core_elsewhere, shop, tmp_path / "lake")[0].publication
    assert other is not None
    contents, expected = (
        {name: pin.content_hash for name, pin in tables.items()} for tables in (other.tables, publication.tables)
    )
    assert contents == expected
    assert other.publication_id == publication.publication_id


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "segments.start=3"], "segments.start: found an unknown key"),
        (["--set", "segments.starts=many"], "segments.starts: found 'many'"),
        (["--as-of", "2025-02-30"], "--as-of: found '2025-02-30', expected a date"),
    ],
)
def test_a_configuration_that_cannot_be_is_one_line_and_exit_code_2(
    shop: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["crm-spark", "refresh", "--conf", str(shop), *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_rule_for_no_feature_stops_the_run_before_it_writes(spark: SparkSession, shop: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"imputation\.colour: found no such feature"):
        refreshed(spark, shop, tmp_path / "lake", settings=["imputation.colour.by=median"])
    assert not (tmp_path / "lake").exists()


def test_a_terminal_shows_each_stage_how_far_it_is_and_on_what() -> None:
    screen = io.StringIO()
    with RunProgress(Console(file=screen, force_terminal=True, width=120)) as progress:
        with progress.stage("facts", step_count=2) as stage:
            stage.end(changed=True)
            stage.begin("fact_contacts")
            drawn_by = time.monotonic() + 10
            while "fact_contacts" not in screen.getvalue() and time.monotonic() < drawn_by:
                time.sleep(0.05)
            shown = screen.getvalue().rsplit("facts", 1)[1]
        with progress.stage("features", step_count=1) as stage:
            stage.begin("feature_customers")
            stage.end(changed=False)
    assert "1/2" in shown
    assert "fact_contacts" in shown
    final = screen.getvalue().rsplit("facts", 1)[1]
    assert "1/1" in final
    assert "0 tables written, 1 unchanged" in final
