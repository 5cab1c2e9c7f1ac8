"""Generated files: the same wherever they are made, as true as they say, and every planted error is found."""

import math
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from rich.console import Console

from crm_spark.cleaning.tables import CLEAN, CLEANING_ACCOUNT, REJECTED
from crm_spark.config import load_config
from crm_spark.errors import ConfigError
from crm_spark.generator.draws import Draws
from crm_spark.generator.generate import SETTINGS_FILE, generate
from crm_spark.generator.shop import Plan, build_customers, build_feedback, build_lines, build_orders
from crm_spark.lake import Lake
from crm_spark.progress import RunProgress
from crm_spark.refresh import refresh

PLAN = Plan(customers=150, lines=3_000, days=120, seed=5, dirt=0.08)

# By entity and planted error: the reasons for which cleaning must put the row aside.
REASONS: dict[str, dict[str, set[str]]] = {
    "customers": {"key_missing": {"customer_id_missing"}, "order_missing": {"sequence_missing"}},
    "customer_contacts": {"key_missing": {"customer_id_missing"}, "birth_in_antiquity": {"birth_on_plausible"}},
    "products": {"key_missing": {"product_id_missing"}},
    "orders": {
        "key_missing": {"order_id_missing"},
        "line_not_a_number": {"line_no_not_bigint"},
        "customer_missing": {"customer_id_missing"},
        "day_not_in_calendar": {"ordered_at_not_timestamp"},
        "year_implausible": {"ordered_at_plausible"},
        "amount_not_a_number": {"amount_not_decimal"},
        "amount_missing": {"amount_missing"},
        "foreign_currency": {"currency_not_reporting"},
        "two_errors": {"quantity_not_decimal", "amount_not_decimal"},
    },
    "service_events": {
        "customer_missing": {"customer_id_missing"},
        "day_not_in_calendar": {"started_at_not_timestamp"},
        "duration_negative": {"duration_not_negative"},
        "flag_unknown": {"is_resolved_not_boolean"},
    },
    "feedback": {
        "customer_missing": {"customer_id_missing"},
        "rating_out_of_range": {"rating_within_1_and_5"},
        "nothing_said": {"rating_or_text"},
    },
    "visits": {"key_missing": {"event_id_missing"}, "day_not_in_calendar": {"occurred_at_not_timestamp"}},
    "campaigns": {"day_missing": {"starts_on_missing"}, "ends_before_start": {"ends_after_start"}},
    "contacts": {
        "customer_missing": {"customer_id_missing"},
        "day_not_in_calendar": {"sent_at_not_timestamp"},
    },
    "responses": {"customer_missing": {"customer_id_missing"}, "day_missing": {"responded_at_missing"}},
}
OF_ALL = {"told_differently": {"key_with_other_content"}, "cut_short": {"row_not_readable"}}


@pytest.fixture(scope="module")
def folder(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("generated") / "shop"
    generate(spark, PLAN, str(made), lambda text: None)
    return made


def test_every_planted_error_is_found_for_its_reason_and_nothing_else_is(
    spark: SparkSession, folder: Path, tmp_path: Path
) -> None:
    lake = Lake(spark, str(tmp_path / "lake"))
    config = load_config(folder / SETTINGS_FILE, lake=lake.uri)
    with RunProgress(Console(quiet=True)) as progress:
        refresh(spark, config, datetime(2026, 1, 2, tzinfo=UTC), progress, last_stage="cleaning")
    pins = lake.pins_beside(CLEANING_ACCOUNT)
    account_pin = lake.find(CLEANING_ACCOUNT)
    assert account_pin is not None
    account = lake.read(account_pin).collect()
    file_names = {(row["source"], row["batch_id"]): row["file_name"] for row in account}

    manifest = spark.read.parquet(str(folder / "manifest")).collect()
    planted: Counter[tuple[str, str, frozenset[str]]] = Counter()
    for row in manifest:
        if row["error"] != "told_twice":
            reasons = (REASONS[row["export"]] | OF_ALL)[row["error"]]
            planted[row["export"], row["file_name"], frozenset(reasons)] += 1
    found: Counter[tuple[str, str, frozenset[str]]] = Counter()
    for name in CLEAN:
        for row in lake.read(pins[REJECTED[name].name]).collect():
            file_name = file_names[row["source"], row["batch_id"]]
            found[row["source"], file_name, frozenset(row["reasons"])] += row["row_count"]
    assert found == planted
    # All errors were planted, or their being found would say nothing.
    errors: dict[str, Counter[str]] = {name: Counter() for name in REASONS}
    for row in manifest:
        errors[row["export"]][row["error"]] += 1
    assert errors["orders"].keys() == {*REASONS["orders"], *OF_ALL, "told_twice"}
    # Of few errors, one kind may be missing by chance.
    large = {name for name, counts in errors.items() if counts.total() > 10 * (len(REASONS[name]) + 3)}
    assert large >= {"orders", "visits"}
    assert [(name, REASONS[name].keys() - errors[name].keys()) for name in large] == [(name, set()) for name in large]

    told_twice = Counter(row["export"] for row in manifest if row["error"] == "told_twice" and row["twin_no"] == 1)
    duplicates = Counter({row["entity"]: 0 for row in account})
    for row in account:
        duplicates[row["entity"]] += row["duplicate_count"]
    assert +duplicates == told_twice
    with pytest.raises(ConfigError, match=r"--out: found files in .*, expected a new or empty folder"):
        generate(spark, PLAN, str(folder), lambda text: None)


def content(rows: DataFrame) -> object:
    return rows.agg(F.count("*"), F.sum(F.xxhash64(*rows.columns).cast("decimal(38,0)"))).collect()[0]


def test_what_is_generated_depends_on_the_seed_alone(spark: SparkSession) -> None:
    customers = build_customers(spark, PLAN)
    lines = build_lines(build_orders(customers, PLAN), PLAN)
    elsewhere = customers.repartition(5, "kind").sortWithinPartitions(F.desc("customer_no"))
    assert content(build_lines(build_orders(elsewhere, PLAN), PLAN)) == content(lines)
    other = Plan(**vars(PLAN) | {"seed": 6})
    assert content(build_lines(build_orders(build_customers(spark, other), other), other)) != content(lines)


def test_customers_do_what_is_true_of_them(spark: SparkSession) -> None:
    plan = Plan(customers=2_000, lines=40_000, days=365, seed=3, dirt=0)
    customers = build_customers(spark, plan).persist()
    orders = build_orders(customers, plan).persist()
    lines = build_lines(orders, plan).toPandas()
    sold = lines[lines["return_of"].isna()]
    assert len(sold) == pytest.approx(plan.lines, rel=0.05)
    assert len(lines) - len(sold) == pytest.approx(0.02 * plan.lines, rel=0.15)
    truth = customers.toPandas().set_index("customer_id")

    # A Poisson process has as much variance as mean, and comes neither before the customer nor after they leave.
    count = sold.groupby("card")["receipt"].nunique().reindex(truth.index, fill_value=0)
    mean = truth["orders_per_day"] * truth["stay_days"]
    assert count.sum() == pytest.approx(mean.sum(), rel=0.03)
    assert ((count - mean) ** 2 / mean).mean() == pytest.approx(1, abs=0.25)
    of_order = orders.select("customer_id", "day", "comes_day", "leaves_day").toPandas()
    assert (of_order["day"] >= np.floor(of_order["comes_day"])).all()
    assert (of_order["day"] <= of_order["leaves_day"]).all()

    # Those who mind the price buy more on promotion; a few products and customers bring much.
    sold = sold.join(truth[["price_sensitivity", "preferred_department"]], on="card")
    on_promotion = sold["rebate"].astype(float) > 0
    minds = sold["price_sensitivity"] > 0.5
    assert on_promotion[minds].mean() > 1.5 * on_promotion[~minds].mean()
    assert sold["article"].value_counts(normalize=True).head(210).sum() > 0.3
    assert count.sort_values(ascending=False).head(200).sum() > 0.3 * count.sum()

    feedback = build_feedback(orders, plan).toPandas()
    stars = feedback["stars"].astype(int).groupby(feedback["sentiment"]).mean()
    assert stars[-1] < 2.5 < 2.8 < stars[0] < 3.2 < 3.8 < stars[1]
    assert set(feedback["language"]) == {"en", "zh"}
    orders.unpersist()
    customers.unpersist()


def test_draws_have_the_distributions_they_are_named_for(spark: SparkSession) -> None:
    draws, number = Draws(11), 20_000
    rows = spark.range(number).select(
        draws.uniform("u", "id").alias("uniform"),
        draws.normal("n", "id").alias("normal"),
        draws.exponential("e", 3.0, "id").alias("exponential"),
        draws.poisson("few", F.lit(2.5), "id").alias("few"),
        draws.poisson("many", F.lit(80.0), "id").alias("many"),
        draws.weighted("w", {"a": 0.7, "b": 0.2, "c": 0.1}, "id").alias("weighted"),
        draws.one_of("o", ("x", "y"), "id").alias("one_of"),
    )
    found = rows.toPandas()
    moments = {"uniform": (0.5, 1 / 12), "normal": (0, 1), "exponential": (3, 9), "few": (2.5, 2.5), "many": (80, 80)}
    for name, (mean, variance) in moments.items():
        error = 4 * math.sqrt(variance / number)
        assert found[name].mean() == pytest.approx(mean, abs=error), name
        assert found[name].var() == pytest.approx(variance, rel=0.08), name
    assert (found["few"] == 0).mean() == pytest.approx(math.exp(-2.5), abs=0.01)
    shares = found["weighted"].value_counts(normalize=True)
    assert [shares[name] for name in "abc"] == pytest.approx([0.7, 0.2, 0.1], abs=0.015)
    assert (found["one_of"] == "x").mean() == pytest.approx(0.5, abs=0.015)
    # Another name for a draw makes another draw.
    assert abs(np.corrcoef(found["uniform"], found["normal"])[0, 1]) < 0.04
