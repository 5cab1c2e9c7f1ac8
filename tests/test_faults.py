"""Faults in the midst of a run: kills, a full disk, two writers; and that what looks for losses finds them."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from py4j.protocol import Py4JNetworkError
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

import crm_spark.lake
import crm_spark.run
from crm_spark.errors import fault_of_machine
from crm_spark.lake import Lake
from crm_spark.publications import Publication

pytestmark = pytest.mark.beside
FAULT_RUNS = Path(__file__).parent.parent / "scripts" / "fault_runs"


def test_no_fault_of_a_few_of_each_kind_loses_doubles_or_mixes_anything(tmp_path: Path) -> None:
    command = [sys.executable, str(FAULT_RUNS / "faults.py"), "--quick", "--scratch", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    ran, rest = last.split(" faults, 0 of them left something lost, doubled, mixed or undone; ")
    not_run = int(rest.removesuffix(" not run"))
    assert int(ran) + not_run >= 12
    # All but what needs root.
    assert [line for line in done.stdout.splitlines() if line.startswith("not run: ")] == [
        "not run: sail: a full disk for the lake: needs root, to mount a small disk"
    ] * not_run


class Nights:
    """Two nights of the pipeline, and what a reader would make of their tables if they were published otherwise."""

    def __init__(self, spark: SparkSession, folder: Path) -> None:
        import pipeline

        for night in (1, 2):
            pipeline.run_night(spark, str(folder), night)
        self.lake, self.folder = Lake(spark, str(folder)), folder
        self.first, self.second = self.lake.publications()

    def state_with(self, **tables: Publication) -> int:
        import faults

        pins = dict(self.second.tables) | {name: publication.tables[name] for name, publication in tables.items()}
        self.lake.publish(
            replace(self.second, publication_no=self.lake.publications()[-1].publication_no + 1, tables=pins)
        )
        return faults.state_of(self.folder)


@pytest.fixture(scope="module")
def nights(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nights]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FAULT_RUNS)
        for module in (crm_spark.run, crm_spark.lake):  # which the pipeline sets
            patch.setattr(module, "SMALL_COUNT", 0)
        yield Nights(spark, tmp_path_factory.mktemp("nights") / "lake")


def test_a_whole_publication_is_known_for_its_night(nights: Nights) -> None:
    assert nights.state_with() == 2
    assert nights.state_with(**dict.fromkeys(nights.first.tables, nights.first)) == 1


@pytest.mark.parametrize("table", ["clean_sales", "fact_sales", "mart_customers"])
def test_a_mixed_publication_is_found(nights: Nights, table: str) -> None:
    from faults import FaultError

    with pytest.raises(FaultError):
        nights.state_with(**{table: nights.first})


def test_rows_that_came_twice_are_found(nights: Nights) -> None:
    from faults import FaultError
    from pipeline import LEDGER

    pin = nights.second.tables[LEDGER.name]
    twice = nights.lake.read(pin).limit(1).withColumn("night", F.expr("-night"))
    doubled = nights.lake.change(LEDGER, pin, twice, None, "twice")
    with pytest.raises(FaultError, match="does not add up"):
        nights.state_with(fact_sales=replace(nights.second, tables={LEDGER.name: doubled}))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), "disk: found no space left"),
        (RuntimeError("java.io.IOException: No space left on device"), "disk: found no space left"),
        (RuntimeError("Job aborted: ExecutorLostFailure (executor 1 exited)"), "cluster: found too many workers lost"),
        (Py4JNetworkError("Answer from Java side is empty"), "java: found that Spark's process ended"),
    ],
)
def test_what_failed_of_the_machine_is_told_in_one_line(error: Exception, told: str) -> None:
    wrapped = RuntimeError("while doing something else")
    wrapped.__context__ = error
    for raised in (error, wrapped):
        fault = fault_of_machine(raised)
        assert fault is not None
        assert str(fault).startswith(told)
        assert str(fault).endswith("run again")


def test_other_errors_keep_their_tracebacks() -> None:
    assert fault_of_machine(ZeroDivisionError("division by zero")) is None
