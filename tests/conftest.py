from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from crm_spark.lake import Lake
from crm_spark.session import build_session

# Thresholds as in conf/spark-local.conf: what runs once is not worth compiling well.
_JAVA_OPTIONS = (
    "-XX:+UseSerialGC -XX:Tier4InvocationThreshold=50000 -XX:Tier4MinInvocationThreshold=6000 "
    "-XX:Tier4CompileThreshold=150000 -XX:Tier4BackEdgeThreshold=400000"
)
_PROPERTIES = f"""\
spark.master local[2]
spark.driver.memory 2g
spark.driver.extraJavaOptions {_JAVA_OPTIONS}
spark.ui.enabled false
spark.ui.showConsoleProgress false
spark.driver.bindAddress 127.0.0.1
spark.driver.host 127.0.0.1
spark.sql.shuffle.partitions 2
spark.databricks.delta.snapshotPartitions 1
"""


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """One small session for all tests, started by the first that asks for it."""
    folder = tmp_path_factory.mktemp("spark")
    properties = folder / "spark-test.conf"
    places = f"spark.sql.warehouse.dir {folder / 'warehouse'}\nspark.local.dir {folder / 'scratch'}\n"
    properties.write_text(_PROPERTIES + places)
    session = build_session(properties)
    yield session
    session.stop()


@pytest.fixture
def lake(spark: SparkSession, tmp_path: Path) -> Lake:
    return Lake(spark, str(tmp_path / "lake"))
