"""Given to spark-submit: from order lines to features of customers, and from these to models of churn.

`cluster_job.py LINES LAKE TOLD [training]` writes how long each part took and what it made to the file TOLD. Tables are
made by the functions of the job and written as it does: declared, checked, hashed and committed.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from feature_sides import AS_OF
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from crm_spark.config import Config, conf_dir, load_config
from crm_spark.facts.customers import build_customer_days, build_customer_products, build_customer_things
from crm_spark.facts.tables import (
    DIM_CUSTOMERS,
    FACT_CONTACTS,
    FACT_CUSTOMER_DAYS,
    FACT_CUSTOMER_PRODUCTS,
    FACT_CUSTOMER_THINGS,
    FACT_ORDER_LINES,
    FACT_RESPONSES,
)
from crm_spark.features.customers import Cutoff, Ledgers, build_feature_customers
from crm_spark.features.tables import feature_customers
from crm_spark.lake import Lake
from crm_spark.models.fit import fit_task
from crm_spark.models.labels import build_labels, train_cutoffs
from crm_spark.models.matrix import matrix_rules
from crm_spark.models.tables import MODEL_LABELS
from crm_spark.publications import Pin
from crm_spark.session import build_session, fixed_plans
from crm_spark.tables import declared_rows

_LEDGERS = {
    FACT_CUSTOMER_DAYS: build_customer_days,
    FACT_CUSTOMER_THINGS: build_customer_things,
    FACT_CUSTOMER_PRODUCTS: build_customer_products,
}
_TASK = "churn"


@dataclass
class Told:
    """Seconds of each part; tables by their content hashes and the tree, all exact; coefficients, nearly so."""

    seconds: dict[str, float] = field(default_factory=dict)
    exact: dict[str, Any] = field(default_factory=dict)
    coefficients: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Tell how long the block took."""
        began = time.monotonic()
        yield
        self.seconds[part] = time.monotonic() - began


def main(lines: str, lake_uri: str, told_path: str, *further: str) -> None:
    """Make features and, if asked, train."""
    spark = build_session()
    spark.range(1).count()
    lake, config, told = Lake(spark, lake_uri), load_config(conf_dir() / "complete_journey.toml"), Told()
    pins = _make_features(lake, config, lines, told)
    if "training" in further:
        pins |= _train(lake, config, pins, told)
    told.exact |= {name: pin.content_hash for name, pin in pins.items()}
    Path(told_path).write_text(json.dumps(asdict(told)))
    spark.stop()


def _make_features(lake: Lake, config: Config, lines: str, told: Told) -> dict[str, Pin]:
    """The ledgers, and from them the slice of one day."""
    events = {FACT_ORDER_LINES.name: lake.spark.read.parquet(lines).withColumn("sign", F.lit(1))}
    table = feature_customers(config.features.windows_days)
    with told.timed("ledgers"):
        pins = {ledger.name: lake.write(ledger, build(events, {}, 1), "") for ledger, build in _LEDGERS.items()}
    with told.timed("slice"):
        return pins | {table.name: lake.write(table, _slices(lake, config, pins, [AS_OF]), "")}


def _train(lake: Lake, config: Config, pins: dict[str, Pin], told: Told) -> dict[str, Pin]:
    """The slices of the days that the task learns from, their labels, and the models."""
    task, table = config.tasks[_TASK], feature_customers(config.features.windows_days)
    days = train_cutoffs(task, AS_OF)
    with told.timed("slices and labels"):
        features = lake.change(table, pins[table.name], _slices(lake, config, pins, days), None, "trained on")
        rows = build_labels(
            lake.read(features),
            lake.read(pins[FACT_CUSTOMER_DAYS.name]),
            declared_rows(lake.spark, FACT_CONTACTS, []),
            declared_rows(lake.spark, FACT_RESPONSES, []),
            {_TASK: task},
            AS_OF,
            _cutoff(AS_OF).known_until,
        )
        labels = lake.write(MODEL_LABELS, rows, "")
    with told.timed("fits"):
        fits = Lake(fixed_plans(lake.spark), lake.uri)
        rows = fits.read(features).where(F.col("as_of").isin(days))
        rules = matrix_rules(config)
        fitted = fit_task(_TASK, task, rows, fits.read(labels), AS_OF, rules, lake.uri, "models")
    if fitted is None:
        sys.exit("churn: found labels of one class alone; expected more lines")
    told.exact["tree"] = [asdict(rule) for rule in fitted.rules]
    told.coefficients = {f"{found.model} {found.term}": found.coefficient for found in fitted.coefficients}
    return {table.name: features, labels.name: labels}


def _slices(lake: Lake, config: Config, pins: dict[str, Pin], days: Sequence[date]) -> DataFrame:
    customer_days, things, products = (lake.read(pins[ledger.name]) for ledger in _LEDGERS)
    ledgers = Ledgers(customer_days, things, products, {FACT_ORDER_LINES.name})
    nobody = declared_rows(lake.spark, DIM_CUSTOMERS, [])
    return build_feature_customers(nobody, ledgers, [_cutoff(day) for day in days], config.features.windows_days)


def _cutoff(day: date) -> Cutoff:
    """Nothing of what happened before the day is late."""
    return Cutoff(day, datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(hours=4))


if __name__ == "__main__":
    main(*sys.argv[1:])
