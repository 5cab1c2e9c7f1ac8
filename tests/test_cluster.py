"""The job on a standalone cluster, as an operator runs it: the same tables as here, also if workers are lost."""

import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import cluster_changes
import cluster_refresh
import pyarrow as pa
import pytest
from builders import read_by_delta_rs
from cluster_changes import COUNT, NUMBERS
from shop import RUN_AT, SMALLER
from standalone import ROOT, Archives, Cluster, until

from crm_spark.publications import PublishedLake
from crm_spark.refresh import LAYER_TABLES
from crm_spark.tables import Table

# Nearly all code runs once or twice: Java compiles it quickly or not at all.
JAVA_OPTIONS = "-Duser.timezone=UTC -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=256m"
SMALL = {
    "spark.driver.memory": "1g",
    "spark.driver.extraJavaOptions": JAVA_OPTIONS,
    "spark.executor.extraJavaOptions": (
        f"{JAVA_OPTIONS} -Dlog4j2.configurationFile={(ROOT / 'conf' / 'log4j2.properties').as_uri()}"
    ),
    "spark.sql.shuffle.partitions": "2",
    "spark.databricks.delta.snapshotPartitions": "1",
}
pytestmark = pytest.mark.beside
TABLES = {table.name: table for _, tables in LAYER_TABLES for table in tables}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), "768m", SMALL)
    try:
        cluster.start(workers=2)
        yield cluster
    finally:
        cluster.stop()


def test_a_cluster_publishes_what_one_machine_does_and_tells_no_secret(
    cluster: Cluster, archives: Archives, shop: Path, lake_path: Path, tmp_path: Path
) -> None:
    settings = chain.from_iterable(("--set", setting) for setting in SMALLER)
    options = ("--conf", str(shop), "--lake", str(tmp_path / "lake"), *settings)
    with cluster.submitted(archives.zip, Path(cluster_refresh.__file__), RUN_AT.isoformat(), *options) as job:
        until(lambda: any("CoarseGrainedExecutorBackend" in line for line in cluster.command_lines()))
        seen = cluster.command_lines()
        assert "marts: 10 tables written" in job.output()
    assert_same_tables(PublishedLake(str(tmp_path / "lake")), PublishedLake(str(lake_path)))

    written = [path for path in cluster.folder.rglob("*") if path.is_file() and path.parent.name != "conf"]
    (events,) = (path for path in written if path.name.startswith("events_"))
    texts = [path.read_bytes() for path in written]
    texts += [pa.input_stream(events, compression="zstd").read(), "\n".join(seen).encode()]
    assert b"spark.authenticate.secret" in texts[-2]
    for secret in (cluster.secret, cluster.hmac_key):
        assert not any(secret.encode() in text for text in texts)
    executors_say = b"".join(path.read_bytes() for path in written if path.name == "stderr")
    assert any("CoarseGrainedExecutorBackend" in line and "-Dspark.authenticate=true" in line for line in seen)
    assert b"Spark Executor Command" in executors_say
    assert b"Running task" not in executors_say, "what tasks log may be personal: docs/cluster.md has the option"


def test_workers_killed_in_a_shuffle_and_in_a_merge_cost_no_row_and_double_none(
    cluster: Cluster, archives: Archives, tmp_path: Path
) -> None:
    lake = tmp_path / "lake"
    gates = [tmp_path / name for name in ("write", "merge")]
    for gate in gates:
        gate.mkdir()
    with cluster.submitted(archives.zip, Path(cluster_changes.__file__), str(lake), str(tmp_path)) as job:
        for gate in gates:
            # A task on each of the two workers; the older one has more to lose.
            until(lambda gate=gate: len(list(gate.glob("task-*"))) == 2 or job.process.poll() is not None)
            assert job.process.poll() is None, job.log.read_text()
            cluster.workers.pop(0).kill()
            cluster.add_workers(1)
            (gate / "open").touch()
        job.output()
    assert all(len(list(gate.glob("task-*"))) > 2 for gate in gates), "tasks of a lost worker run again"
    rows = read_by_delta_rs(lake / NUMBERS.name).to_pydict()
    told = {number: "again" if number >= COUNT // 2 else "first" for number in range(1000, COUNT // 2 * 3)}
    assert len(rows["number"]) == len(told)
    assert dict(zip(rows["number"], rows["told"], strict=True)) == told


def assert_same_tables(lake: PublishedLake, expected: PublishedLake) -> None:
    """Both published the same tables with the same values; floating ones, which meet in any order, within 1e-9."""
    pins, expected_pins = (opened.require_publication().tables for opened in (lake, expected))
    assert pins.keys() == expected_pins.keys()
    for name, pin in pins.items():
        table = TABLES[name]
        rows = lasting_rows(lake.path(name), table, pin.version)
        expected_rows = lasting_rows(expected.path(name), table, expected_pins[name].version)
        assert rows.keys() == expected_rows.keys(), name
        differ = {
            (key, column): (value, expected_rows[key][column])
            for key, row in rows.items()
            for column, value in row.items()
            if not is_same(value, expected_rows[key][column])
        }
        assert not differ, (name, dict(list(differ.items())[:5]))


def lasting_rows(path: str, table: Table, version: int) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows of a version by their keys, without what differs between equal runs."""
    volatile = {column.name for column in table.columns if column.volatile}
    rows = read_by_delta_rs(path, version).drop_columns(sorted(volatile)).to_pylist()
    by_key = {tuple(row[name] for name in table.key): row for row in rows}
    assert len(by_key) == len(rows), table.name
    return by_key


def is_same(value: object, expected: object) -> bool:
    if isinstance(value, float) and isinstance(expected, float):
        return math.isclose(value, expected, rel_tol=0, abs_tol=1e-9) or (math.isnan(value) and math.isnan(expected))
    if isinstance(value, list) and isinstance(expected, list):
        return len(value) == len(expected) and all(map(is_same, value, expected))
    if isinstance(value, dict) and isinstance(expected, dict):
        return value.keys() == expected.keys() and all(is_same(value[key], expected[key]) for key in value)
    return value == expected
