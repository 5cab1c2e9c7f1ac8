"""Kill a pipeline of three tables at every step of each commit: nothing is lost, doubled or half published.

After each fault, readers see the publication before it, or the whole of the new one; one run more completes the night,
with the content hashes of a run that nothing disturbed. What was found is kept in the scratch folder, if one is named:
a second command goes on where the first one ended.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline import LEDGER, SALES, TABLES, TOTALS, sales_of

import crm_spark
from crm_spark.publications import Publication, PublishedLake

_HERE = Path(__file__).parent
_NIGHTS = (1, 2, 3)
_LONGEST_SECONDS = 300


class FaultError(Exception):
    """Something was lost, doubled, mixed, or not completed by the run after a fault."""


@dataclass(frozen=True)
class Undisturbed:
    """What an engine's nights leave when nothing happens: the lake after each, its content hashes, the steps taken."""

    lakes: Mapping[int, Path]
    hashes: Mapping[int, Mapping[str, str]]
    steps: Mapping[int, list[str]]
    seconds: float


def main() -> None:
    """Inject the faults, print a line each, and a sum at the end."""
    given = _arguments()
    with tempfile.TemporaryDirectory(prefix="crm_spark_faults_") as unnamed:
        scratch = given.scratch or Path(unnamed)
        scratch.mkdir(parents=True, exist_ok=True)
        results = _Results(scratch / f"results_{_code_hash()}.jsonl")
        for engine in given.engines.split(","):
            undisturbed = _run_undisturbed(engine, scratch)
            faults = _quick_faults(undisturbed, engine) if given.quick else _all_faults(undisturbed, engine, given.seed)
            for name, inject in faults:
                results.of(f"{engine}: {name}", partial(inject, _copy_maker(scratch, engine)))
        results.tell()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="some faults of each kind, in a few minutes")
    parser.add_argument("--engines", default="sail,spark", help="sail, spark or both (default)")
    parser.add_argument("--scratch", type=Path, help="where lakes and results are kept, to go on after an interruption")
    parser.add_argument("--seed", type=int, default=1, help="of the moments of random kills")
    return parser.parse_args()


class _Results:
    """What each fault led to, kept in a file a line each."""

    def __init__(self, file: Path) -> None:
        self._file = file
        lines = file.read_text().splitlines() if file.exists() else []
        self._known: dict[str, str | None] = {(one := json.loads(line))["fault"]: one["failure"] for line in lines}
        self._seen: list[str] = []

    def of(self, fault: str, inject: Callable[[], None]) -> None:
        self._seen.append(fault)
        if fault not in self._known:
            began = time.monotonic()
            try:
                inject()
                failure = None
            except FaultError as error:
                failure = str(error)
            self._known[fault] = failure
            with self._file.open("a") as results:
                results.write(json.dumps({"fault": fault, "failure": failure}) + "\n")
            say(f"{fault}: {failure or 'nothing lost'} ({time.monotonic() - began:.0f} s)")

    def tell(self) -> None:
        failed = [fault for fault in self._seen if self._known[fault]]
        for fault in failed:
            say(f"FAILED {fault}: {self._known[fault]}")
        say(f"{len(self._seen)} faults, {len(failed)} of them left something lost, doubled, mixed or undone")
        if failed:
            sys.exit(1)


Fault = tuple[str, Callable[[Callable[[Path | None], Path]], None]]


def _all_faults(undisturbed: Undisturbed, engine: str, seed: int) -> Iterator[Fault]:
    for night in _NIGHTS[:2]:
        for step in undisturbed.steps[night]:
            for when, kills in (("before", "group"), ("during", "group"), ("after", "group"), ("during", "python")):
                yield _killed_at(undisturbed, engine, night, f"{when} {step}", kills)
            if engine == "spark":
                yield _killed_at(undisturbed, engine, night, f"during {step}", "java")
    moments = random.Random(seed)
    for number in range(20):
        night, share = moments.choice(_NIGHTS), moments.random()
        yield f"night {night} killed at random, {number + 1}", partial(_kill_late, undisturbed, engine, night, share)
    yield from _other_faults(undisturbed, engine, commits=40)


def _quick_faults(undisturbed: Undisturbed, engine: str) -> Iterator[Fault]:
    chosen = [("after", "merge into mart_customers", "group"), ("during", "append to publications", "group")]
    if engine == "spark":
        chosen = [("during", "merge into mart_customers", "java"), ("after", "append of fact_sales", "python")]
    else:
        chosen += [("before", "note of mart_customers", "group"), ("before", "append to publications", "python")]
        chosen += [("during", "overwrite of clean_sales", "group")]
    for when, step, kills in chosen:
        yield _killed_at(undisturbed, engine, 2, f"{when} {step}", kills)
    if engine == "sail":
        yield from _other_faults(undisturbed, engine, commits=10)


def _other_faults(undisturbed: Undisturbed, engine: str, commits: int) -> Iterator[Fault]:
    yield "a night run again", partial(_replay, undisturbed, engine)
    yield f"two processes, {commits} commits each", partial(_two_writers, engine, commits)
    if _may_mount():
        yield "a full disk", partial(_fill_disk, undisturbed, engine)


def _killed_at(undisturbed: Undisturbed, engine: str, night: int, place: str, kills: str) -> Fault:
    def inject(copy: Callable[[Path | None], Path]) -> None:
        lake = copy(undisturbed.lakes.get(night - 1))
        done = _run(engine, lake, night, CRM_SPARK_FAILPOINT=place, CRM_SPARK_FAILPOINT_KILLS=kills)
        if kills == "java":
            _expect(done.returncode == 4 and "what was published stands" in done.stderr, f"ended with: {done.stderr}")
        else:
            # What takes less than a moment is over before the kill.
            over = place.startswith("during") and done.returncode == 0
            _expect(over or done.returncode == -signal.SIGKILL, f"was not killed: {done.returncode} {done.stderr}")
        _expect_whole(undisturbed, engine, lake, night)

    return f"night {night}, {kills} killed {place}", inject


def _kill_late(
    undisturbed: Undisturbed, engine: str, night: int, share: float, copy: Callable[[Path | None], Path]
) -> None:
    lake = copy(undisturbed.lakes.get(night - 1))
    with _start(engine, lake, night) as process:
        try:
            process.communicate(timeout=share * undisturbed.seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    _expect_whole(undisturbed, engine, lake, night)


def _replay(undisturbed: Undisturbed, engine: str, copy: Callable[[Path | None], Path]) -> None:
    lake = copy(undisturbed.lakes[2])
    before = _files(lake)
    for _ in range(2):
        _run_well(engine, lake, 2)
    _expect(_files(lake) == before, "a night that was run again wrote something")


def _two_writers(engine: str, commits: int, copy: Callable[[Path | None], Path]) -> None:
    lake = copy(None)
    command = [sys.executable, str(_HERE / "appender.py"), str(lake), engine, str(commits)]
    writers = [subprocess.Popen([*command, str(number)], stderr=subprocess.PIPE, text=True) for number in (0, 1)]
    for writer in writers:
        _, errors = writer.communicate(timeout=_LONGEST_SECONDS + 10 * commits)
        _expect(writer.returncode == 0, f"a writer ended with {writer.returncode}: {errors}")
    last = PublishedLake(str(lake)).require_publication()
    rows = _rows(PublishedLake(str(lake)), last, SALES.name)
    _expect(
        sorted(row["sale_id"] for row in rows) == list(range(2 * commits)), f"found {len(rows)} of {2 * commits} rows"
    )
    _expect(last.publication_no == 2 * commits, f"found {last.publication_no} publications of {2 * commits}")


def _fill_disk(undisturbed: Undisturbed, engine: str, copy: Callable[[Path | None], Path]) -> None:
    lake = copy(undisturbed.lakes[1])
    disk = lake.parent / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=True)
    try:
        shutil.copytree(lake, disk / "lake")
        filler = disk / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        done = _run(engine, disk / "lake", 2)
        _expect(done.returncode == 4, f"a full disk ended with {done.returncode}: {done.stderr}")
        _expect("disk: found no space left" in done.stderr, f"a full disk was told as: {done.stderr}")
        filler.unlink()
        _expect_whole(undisturbed, engine, disk / "lake", 2)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def _may_mount() -> bool:
    return os.geteuid() == 0 and shutil.which("mount") is not None


def _expect_whole(undisturbed: Undisturbed, engine: str, lake: Path, night: int) -> None:
    """Readers see the night before or the night; one run more completes it as if nothing had happened."""
    seen = state_of(lake)
    _expect(seen in (night - 1, night), f"readers saw night {seen}")
    _run_well(engine, lake, night)
    _expect(state_of(lake) == night, "the run after the fault did not complete the night")
    published = PublishedLake(str(lake)).publications()
    hashes = {name: pin.content_hash for name, pin in published[-1].tables.items()}
    _expect(hashes == undisturbed.hashes[night], f"contents differ: {hashes} instead of {undisturbed.hashes[night]}")
    _expect(len(published) == night, f"found {len(published)} publications after {night} nights")


def state_of(lake: Path) -> int:
    """The night that readers see, 0 if none.

    Raises:
        FaultError: if what they see is of no one night: sales lost, doubled or mixed.
    """
    stored = PublishedLake(str(lake))
    last = stored.last_publication()
    if last is None:
        return 0
    rows = {table.name: _rows(stored, last, table.name) for table in TABLES}
    sales = Counter((row["sale_id"], row["customer_id"], row["amount"]) for row in rows[SALES.name])
    nights = [night for night in _NIGHTS if Counter(sales_of(night)) == sales]
    _expect(bool(nights), f"{SALES.name} holds what no night left")
    net: Counter[tuple[int, int, int]] = Counter()
    for row in rows[LEDGER.name]:
        net[row["sale_id"], row["customer_id"], row["amount"]] += row["sign"]
    _expect({sale: n for sale, n in net.items() if n} == dict(sales), f"{LEDGER.name} does not add up to the sales")
    totals: dict[int, list[int]] = {}
    for _, customer, amount in sales:
        count_and_amount = totals.setdefault(customer, [0, 0])
        count_and_amount[0] += 1
        count_and_amount[1] += amount
    found = sorted((row["customer_id"], row["sale_count"], row["amount"]) for row in rows[TOTALS.name])
    _expect(found == sorted((who, *both) for who, both in totals.items()), f"{TOTALS.name} is not of these sales")
    return nights[0]


def _rows(lake: PublishedLake, publication: Publication, name: str) -> list[dict[str, int]]:
    return lake.query(f"SELECT * FROM {name}", publication.tables[name])


def _run_undisturbed(engine: str, scratch: Path) -> Undisturbed:
    lakes, hashes, steps = {}, {}, {}
    lake, began = scratch / f"undisturbed_{engine}" / "lake", time.monotonic()
    shutil.rmtree(lake.parent, ignore_errors=True)
    lake.mkdir(parents=True)
    for night in _NIGHTS:
        log = lake.parent / f"steps_{night}"
        _run_well(engine, lake, night, CRM_SPARK_FAILPOINT_LOG=str(log))
        _expect(state_of(lake) == night, f"night {night} is not what it must be, without any fault")
        places = log.read_text().splitlines()
        steps[night] = [place.removeprefix("before ") for place in places if place.startswith("before ")]
        hashes[night] = {
            name: pin.content_hash for name, pin in PublishedLake(str(lake)).require_publication().tables.items()
        }
        lakes[night] = shutil.copytree(lake, lake.parent / f"lake_{night}")
    return Undisturbed(lakes, hashes, steps, (time.monotonic() - began) / len(_NIGHTS))


def _copy_maker(scratch: Path, engine: str) -> Callable[[Path | None], Path]:
    def copy(lake: Path | None) -> Path:
        target = scratch / f"disturbed_{engine}" / "lake"
        shutil.rmtree(target.parent, ignore_errors=True)
        target.parent.mkdir(parents=True)
        if lake is not None:
            shutil.copytree(lake, target)
        return target

    return copy


def _start(engine: str, lake: Path, night: int, **environment: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(_HERE / "pipeline.py"), str(lake), str(night), engine]
    # A session of its own: what kills its group kills neither this process nor what started it.
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, **environment}
    )


def _run(engine: str, lake: Path, night: int, **environment: str) -> "subprocess.CompletedProcess[str]":
    with _start(engine, lake, night, **environment) as process:
        try:
            _, errors = process.communicate(timeout=_LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise FaultError(f"the run did not end within {_LONGEST_SECONDS} s") from None
    return subprocess.CompletedProcess(process.args, process.returncode, stderr=errors)


def _run_well(engine: str, lake: Path, night: int, **environment: str) -> None:
    done = _run(engine, lake, night, **environment)
    _expect(done.returncode == 0, f"a run that nothing disturbed ended with {done.returncode}: {done.stderr}")


def _expect(is_so: bool, failure: str) -> None:
    if not is_so:
        raise FaultError(failure)


def _files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def _code_hash() -> str:
    digest = hashlib.sha256()
    for folder in (Path(crm_spark.__file__).parent, _HERE):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def say(text: str) -> None:
    """Print at once, also into a file."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
