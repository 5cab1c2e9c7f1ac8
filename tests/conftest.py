from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from readme import ReadmeRun
from shop import LATER, refreshed, write_shop
from standalone import Archives, build_archives

from crm_spark.doctor import provide_jdbc_driver
from crm_spark.lake import Lake
from crm_spark.refresh import STAGES, Refreshed
from crm_spark.session import build_session, sail_session

# Nearly all queries run once or twice here: Spark generates no code for them, plans once and describes no plan. What
# it generates and adapts is run by the README's commands and on the cluster, whose tables are compared with those made
# here. Planning itself runs for many minutes: Java compiles that well, as with conf/spark-local.conf.
_JAVA_OPTIONS = (
    "-Duser.timezone=UTC -XX:+UseSerialGC -XX:Tier4InvocationThreshold=50000 -XX:Tier4MinInvocationThreshold=6000 "
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
spark.sql.adaptive.enabled false
spark.sql.debug.maxToStringFields 1
spark.sql.ui.explainMode simple
spark.sql.codegen.wholeStage false
spark.sql.codegen.factoryMode NO_CODEGEN
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engine", choices=("spark", "sail"), default="spark", help="sail: only tests of code that runs on both"
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Late come what ends the shared session and, last, what waits for the README's commands; also with --ff."""
    yield
    if config.getoption("engine") == "sail":
        items[:] = [item for item in items if item.get_closest_marker("both_engines")]
    items.sort(key=lambda item: [item.get_closest_marker(name) is not None for name in ("demo", "ends_spark")])


@pytest.fixture(scope="session", autouse=True)
def readme_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReadmeRun | None]:
    """Started before the first test if any will ask for it: the commands leave cores idle, and so do the tests."""
    if not any(item.get_closest_marker("demo") for item in request.session.items):
        yield None
        return
    run = ReadmeRun(tmp_path_factory.mktemp("readme"))
    yield run
    run.stop()


@pytest.fixture(scope="session")
def spark(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """One small session for all tests, started by the first that asks for it."""
    if request.config.getoption("engine") == "sail":
        with sail_session() as session:
            yield session
        return
    if any("postgres" in getattr(item, "fixturenames", ()) for item in request.session.items):
        provide_jdbc_driver(print)
    folder = tmp_path_factory.mktemp("spark")
    properties = folder / "spark-test.conf"
    places = f"spark.sql.warehouse.dir {folder / 'warehouse'}\nspark.local.dir {folder / 'scratch'}\n"
    properties.write_text(_PROPERTIES + places)
    session = build_session(properties)
    yield session
    session.stop()


@pytest.fixture
def late_spark(spark: SparkSession) -> SparkSession:
    """The shared session, or one like it if a test has ended that."""
    return build_session()


@pytest.fixture
def lake(spark: SparkSession, tmp_path: Path) -> Lake:
    return Lake(spark, str(tmp_path / "lake"))


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Archives:
    return build_archives(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shop(tmp_path_factory.mktemp("shop") / "files")


@pytest.fixture(scope="session")
def lake_path(spark: SparkSession, shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake whose refresh was stopped after features and taken up an hour later, before anything was published."""
    path = tmp_path_factory.mktemp("stopped") / "lake"
    stopped, log = refreshed(spark, shop, path, last_stage="features")
    assert stopped == Refreshed(None, is_new=False)
    assert log[-1] == "stopped after features; nothing is published before a refresh runs to the end"
    taken_up, log = refreshed(spark, shop, path, LATER, first_stage="features")
    assert taken_up.is_new
    assert [line.split(":")[0] for line in log] == list(STAGES)
    assert "sources: 0 tables written, 1 unchanged" in log[0]
    assert "cleaning: 0 tables written, 5 unchanged" in log[1]
    assert "facts: 0 tables written, 10 unchanged" in log[2]
    assert "features: 0 tables written, 1 unchanged" in log[3]
    assert "models: 13 tables written, 0 unchanged" in log[4]
    return path
