"""What is written about the code follows from it."""

import re
import subprocess
import sys
from datetime import date
from pathlib import Path

from builders import rows_of, utc
from pyspark.sql import SparkSession

from crm_spark.lake import Lake
from crm_spark.marts.tables import MART_CUSTOMER_360
from crm_spark.publications import Publication
from crm_spark.refresh import LAYER_TABLES
from crm_spark.tables import data_dictionary

ROOT = Path(__file__).parent.parent
# pyarrow's threads over delta-rs now and then abort a process that ends by itself.
_END = "import os, sys; sys.stdout.flush(); os._exit(0)"


def test_the_data_dictionary_is_that_of_the_declarations() -> None:
    written = (ROOT / "docs" / "data-dictionary.md").read_text()
    assert written == data_dictionary(LAYER_TABLES), "run: crm-spark dictionary > docs/data-dictionary.md"


def test_every_column_says_what_it_means() -> None:
    columns = [column for _, tables in LAYER_TABLES for table in tables for column in table.columns]
    assert all(column.comment.endswith((".", ")")) for column in columns)


def test_the_tests_that_the_table_of_faults_names_are_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "faults.md").read_text()))
    defined = {
        name for path in (ROOT / "tests").glob("*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert named
    assert named <= defined


def test_table_names_are_unique() -> None:
    names = [table.name for _, tables in LAYER_TABLES for table in tables]
    assert len(names) == len(set(names))


def test_the_recipes_for_readers_read_what_is_published(spark: SparkSession, lake: Lake) -> None:
    customer = {"as_of": "2026-11-01", "segment_name": "Some", "net_amount": 1, "order_count_28d": 0}
    customer |= {"net_amount_28d": 0, "value_score": 0.5}
    customers = [customer | {"customer_id": f"c{count}", "order_count": count} for count in (3, 4)]
    pin = lake.write(MART_CUSTOMER_360, rows_of(spark, MART_CUSTOMER_360, *customers), "f1")
    at = utc("2026-11-01")
    for number in (9, 10):
        lake.publish(Publication(number, f"{number}", at, date(2026, 11, number), at, "EUR", "0", {pin.name: pin}))
    # Of a run that is not done.
    lake.write(MART_CUSTOMER_360, rows_of(spark, MART_CUSTOMER_360), "f2")

    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "reading.md").read_text(), flags=re.DOTALL)
    command = [sys.executable, "-c", "\n".join([*blocks, _END])]
    done = subprocess.run(command, cwd=Path(lake.uri).parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["10 2026-11-10", "2 7", "(2, 7)", "(2, 7)"]
