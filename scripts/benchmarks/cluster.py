"""One worker of one core against two on the same work, and how much data workers of 2 GiB process.

A standalone cluster is started on this machine for each number of workers, each with one core to itself, and the same
job is submitted to it, with conf/spark-cluster.conf but for the sizes: from order lines to ledgers and a slice of
features, then the slices that churn learns from, their labels, and its models. What both made is compared before any
time is told: tables and the tree to the bit, coefficients within 1e-9. Starting is left out of the times.

The largest data is what passes with --lines N --workers 2 --only features; generated lines take 24 MB a million, the
lake and Spark's scratch files far more, all under --scratch.
"""

import argparse
import io
import json
import math
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from measuring import memory_mib, processes_of, say, watched
from order_lines import customers_of, generated
from standalone import Cluster, Started, build_archives

_JOB = Path(__file__).with_name("cluster_job.py")
_STEPS = {"features": ("ledgers", "slice"), "training": ("slices and labels", "fits")}
_MEMORY = "2g"
_MIB = 2**20
_LINES_A_PARTITION = 1_000_000
_FEWEST_PARTITIONS = 8
_TOLERANCE = 1e-9


class Measured(NamedTuple):
    """What the job tells, the most memory in MiB of its driver and of an executor, and sums over all tasks."""

    cluster: str
    told: dict[str, Any]
    peaks: dict[str, float]
    tasks: Mapping[str, int]


def main() -> None:
    """Run the job on each cluster, compare, and print a table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # and with it the cluster
    cores = sorted(os.sched_getaffinity(0))
    given = _given(len(cores))
    lines, customers = given.lines, given.customers or customers_of(given.lines)
    if given.scratch:
        given.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="crm_spark_bench_", dir=given.scratch) as scratch:
        work = Path(scratch)
        order_lines = generated((given.data or work / "data").absolute(), lines, customers)
        archive = build_archives(work / "dist").zip
        partitions = given.partitions or max(_FEWEST_PARTITIONS, math.ceil(lines / _LINES_A_PARTITION))
        settings = {
            "spark.driver.memory": _MEMORY,
            "spark.sql.shuffle.partitions": str(partitions),
            # Else as many as there are cores: other work on each cluster, and a core with one more is waited for.
            "spark.sql.adaptive.coalescePartitions.minPartitionNum": str(partitions),
        }
        measured = []
        for workers in given.workers:
            with tempfile.TemporaryDirectory(dir=work) as folder:
                measured.append(_run(Path(folder), settings, cores[:workers], archive, order_lines, given.only))
    check_equal(measured)
    if len(measured) > 1:
        say("all clusters made the same")
    say("")
    _print(f"{lines:,} lines, {customers:,} customers, {partitions} partitions", measured)


def _given(cores: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=5_000_000, help="how many order lines")
    parser.add_argument("--customers", type=int, help="how many customers; by default one for 80 lines")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1, 2], metavar="N", help="how many, one after another"
    )
    parser.add_argument("--only", choices=["features"], help="do not train")
    parser.add_argument("--partitions", type=int, help="of shuffles; by default one for a million lines, at least 8")
    parser.add_argument("--scratch", type=Path, help="a folder with much room (default: the system's for such files)")
    parser.add_argument("--data", type=Path, help="where generated data are kept, and found again")
    given = parser.parse_args()
    if not all(1 <= workers <= cores for workers in given.workers):
        parser.error(f"--workers: found {given.workers}, expected from 1 to {cores}, the number of cores here")
    return given


def _run(
    folder: Path, settings: dict[str, str], cores: Sequence[int], archive: Path, order_lines: Path, only: str | None
) -> Measured:
    # All workers are there when the job begins.
    sizes = {"spark.cores.max": str(len(cores)), "spark.scheduler.minRegisteredResourcesRatio": "1"}
    cluster = Cluster(folder, _MEMORY, settings | sizes)
    name = f"{len(cores)} worker{'s' if len(cores) > 1 else ''}"
    say(f"running on {name}")
    told = folder / "told.json"
    further = [] if only else ["training"]
    try:
        cluster.start(len(cores), cores)
        with (
            cluster.submitted(archive, _JOB, str(order_lines), str(folder / "lake"), str(told), *further) as job,
            watched(lambda: _memory(cluster, job), every_seconds=1) as peaks,
        ):
            if code := job.process.wait():
                sys.exit(f"the job ended with {code}:\n{job.log.read_text()}")
    finally:
        cluster.stop()
    return Measured(name, json.loads(told.read_text()), peaks, _count_tasks(cluster.events))


def _memory(cluster: Cluster, job: Started) -> dict[str, float]:
    """What the driver has, Java and Python, and the largest of the executors."""
    executors = [memory_mib([process]) for process in cluster.executors()]
    return {"driver": memory_mib(processes_of(job.process.pid)), "executor": max(executors, default=0.0)}


def _count_tasks(events: Path) -> Counter[str]:
    """Sums over all tasks, from the event log."""
    sums: Counter[str] = Counter()
    spans = []
    for file in events.glob("*/events_*"):
        with io.BufferedReader(pa.input_stream(file, compression="zstd")) as stream:
            for event in map(json.loads, stream):
                if event["Event"] == "SparkListenerTaskEnd":
                    spans.append((event["Task Info"]["Launch Time"], event["Task Info"]["Finish Time"]))
                    sums["failed"] += event["Task End Reason"]["Reason"] != "Success"
                    metrics = event.get("Task Metrics") or {}
                    sums["spilled"] += metrics.get("Disk Bytes Spilled", 0)
                    sums["shuffled"] += metrics.get("Shuffle Write Metrics", {}).get("Shuffle Bytes Written", 0)
                    sums["run"] += metrics.get("Executor Run Time", 0)
                    sums["gc"] += metrics.get("JVM GC Time", 0)
    sums["idle"] = idle_time(spans)
    return sums


def idle_time(spans: Sequence[tuple[int, int]]) -> int:
    """How long none of the spans was, between the first beginning and the last end."""
    idle, ended = 0, min(spans)[0]
    for began, end in sorted(spans):
        idle += max(0, began - ended)
        ended = max(ended, end)
    return idle


def check_equal(measured: Sequence[Measured]) -> None:
    """End the program if clusters made other things."""
    first, *others = (result.told for result in measured)
    for other in others:
        differing = [name for name, made in first["exact"].items() if other["exact"].get(name) != made]
        differing += [
            name
            for name, value in first["coefficients"].items()
            if not math.isclose(
                value, other["coefficients"].get(name, math.nan), rel_tol=_TOLERANCE, abs_tol=_TOLERANCE
            )
        ]
        if differing:
            sys.exit(f"results differ: {', '.join(differing)}")


def _print(title: str, measured: Sequence[Measured]) -> None:
    """A table in Markdown: a column for each cluster and, of times, the last one's by the first one's."""
    _print_row(title, [*(result.cluster for result in measured), "ratio"])
    _print_row("---", ["---"] * (len(measured) + 1))
    for step, parts in _STEPS.items():
        if parts[0] in measured[0].told["seconds"]:
            _print_seconds(step, measured, parts)
            for part in parts:
                _print_seconds(f"of it, {part}", measured, [part])
    rest = {
        "of all, no task ran, s": lambda result: result.tasks["idle"] / 1000,
        "peak memory of an executor, MiB": lambda result: result.peaks["executor"],
        "peak memory of the driver, MiB": lambda result: result.peaks["driver"],
        "written by shuffles, MiB": lambda result: result.tasks["shuffled"] / _MIB,
        "spilled to disk, MiB": lambda result: result.tasks["spilled"] / _MIB,
        "tasks' time for collecting garbage, %": lambda result: 100 * result.tasks["gc"] / result.tasks["run"],
        "tasks that failed": lambda result: result.tasks["failed"],
    }
    for name, value in rest.items():
        _print_row(name, [*(f"{value(result):,.0f}" for result in measured), ""])


def _print_seconds(name: str, measured: Sequence[Measured], parts: Sequence[str]) -> None:
    seconds = [sum(result.told["seconds"][part] for part in parts) for result in measured]
    ratio = f"{seconds[-1] / seconds[0]:.2f}" if len(seconds) > 1 else ""
    _print_row(f"{name}, s", [*(f"{value:,.1f}" for value in seconds), ratio])


def _print_row(name: str, cells: Sequence[str]) -> None:
    say(f"| {' | '.join([name, *cells])} |")


if __name__ == "__main__":
    main()
