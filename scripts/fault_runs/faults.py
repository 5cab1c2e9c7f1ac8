"""Kill a pipeline of three tables at every step of each commit: nothing is lost, doubled or half published.

So are maintenance, repairs and a rollback. After each fault, readers see the publication before it, or the whole of the
new one; one run more completes the work, with the publications and content hashes of a run that nothing disturbed.
What was found is kept in the scratch folder: a second start goes on where the first one ended.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path

from deltalake import DeltaTable
from pipeline import LEDGER, ROLLBACK_COUNT, SALES, TABLES, TOTALS, sales_of, serve

import crm_spark
from crm_spark.publications import PUBLICATIONS, Publication, PublishedLake

_HERE = Path(__file__).parent
_NIGHTS = (1, 2, 3)
_LONGEST_SECONDS = 300
_RANDOM_KILLS = 20


# A publication: its number, the night whose rows it shows, the content hashes of its tables.
Shown = dict[str, object]


class FaultError(Exception):
    """Something was lost, doubled, mixed, or not completed by the run after a fault."""


@dataclass(frozen=True)
class Work:
    """Something that is done to the lake that some nights left, and is cut off."""

    # As `pipeline.do` knows it.
    name: str
    nights_before: int
    # The nights that readers may see when it was cut off; none if they can see nothing until it is done.
    seen: Sequence[int]
    # What is run after it.
    then: Sequence[str] = ()
    # What befell the lake before it, and the name of that.
    damage: Callable[[Path], None] | None = None
    after: str = ""
    # Kills come at the steps that begin so.
    steps: str = ""

    def __str__(self) -> str:
        return f"{self.name} after {self.after}" if self.after else self.name


@dataclass(frozen=True)
class Undisturbed:
    """What a work begins with (None: no lake) and shows in the end when nothing happens, and how long it takes.

    Times are those of a process of its own, from when its session stands.
    """

    start: str | None
    shown: Sequence[Shown]
    seconds: float
    step_seconds: Mapping[str, float]


@dataclass(frozen=True)
class Fault:
    """A fault that can be injected, unless something is lacking here."""

    name: str
    inject: Callable[[], None]
    lacks: str | None = None


def _tear_last_commit(table: str, lake: Path) -> None:
    log = lake / table / "_delta_log"
    commit = max(log.glob("*.json"))
    commit.write_bytes(commit.read_bytes()[: commit.stat().st_size // 2])
    (log / f".{commit.name}.crc").unlink(missing_ok=True)


def _corrupt_checkpoint(table: str, lake: Path) -> None:
    DeltaTable(str(lake / table)).create_checkpoint()
    checkpoint = max((lake / table / "_delta_log").glob("*.checkpoint.parquet"))
    checkpoint.write_bytes(checkpoint.read_bytes()[:-50])


def _leave_half(table: str, lake: Path) -> None:
    """A commit that no run completed: it bears no run's note."""
    DeltaTable(str(lake / table)).delete("customer_id < 9")


def _damaged(table: str, damage: Callable[[str, Path], None], after: str, seen: Sequence[int] = ()) -> Work:
    return Work(f"repair {table}", 2, seen, ("night 3",), partial(damage, table), after)


_NIGHT_WORKS = [Work(f"night {night}", night - 1, (night - 1, night)) for night in _NIGHTS]
_MAINTENANCE = Work("maintenance", 2, (2,), ("night 3",))
_TORN_LEDGER = _damaged(LEDGER.name, _tear_last_commit, "its last commit was torn")
_OTHER_WORKS = [
    Work(
        "night 3",
        2,
        (2, 3),
        damage=partial(_leave_half, LEDGER.name),
        after=f"one that left half of {LEDGER.name}",
        steps="restoration",
    ),
    _MAINTENANCE,
    _TORN_LEDGER,
    _damaged(SALES.name, _corrupt_checkpoint, "its checkpoint was cut off"),
    _damaged(PUBLICATIONS.name, _tear_last_commit, "its last commit was torn"),
    Work("rollback", 2, (2, 1), ("night 3",)),
]


def main() -> None:
    """Inject the faults, print a line each, and a sum at the end."""
    given = _arguments()
    given.scratch.mkdir(parents=True, exist_ok=True)
    file = given.scratch / f"results_{_code_hash()}.jsonl"
    if given.fresh:
        file.unlink(missing_ok=True)
        for known in given.scratch.glob("undisturbed_*"):
            shutil.rmtree(known)
    faults = []
    try:
        for name in given.engines.split(","):
            say(f"{name}: what is left when nothing happens is found out")
            engine = Engine(name, given.scratch)
            of_engine = _quick_faults(engine) if given.quick else _all_faults(engine, given.seed)
            faults += [fault for fault in of_engine if given.only in fault.name]
    except FaultError as error:
        sys.exit(f"FAILED before any fault: {error}")
    if not faults:
        sys.exit(f"--only: found no fault whose name holds {given.only!r}")
    _Results(file, faults).complete()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="some faults of each kind, in a few minutes")
    parser.add_argument("--engines", default="sail,spark", help="sail, spark or both (default)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only faults whose names hold this text")
    parser.add_argument("--seed", type=int, default=1, help="of the moments of random kills")
    parser.add_argument("--fresh", action="store_true", help="begin anew, whatever was done before")
    parser.add_argument(
        "--scratch",
        type=Path,
        default=_HERE.parent.parent / "build" / "faults",
        metavar="DIR",
        help="where lakes and results are kept; results of the same code are not found anew (default: build/faults)",
    )
    return parser.parse_args()


class _Results:
    """What each fault led to, kept in a file a line each."""

    def __init__(self, file: Path, faults: Sequence[Fault]) -> None:
        self._file, self._faults = file, faults
        lines = file.read_text().splitlines() if file.exists() else []
        self._known: dict[str, str | None] = {(one := json.loads(line))["fault"]: one["failure"] for line in lines}

    def complete(self) -> None:
        """Inject what was not injected before or failed then, and tell of all; exit code 1 if something failed."""
        names = [fault.name for fault in self._faults]
        ready = [fault for fault in self._faults if not fault.lacks]
        left = [fault for fault in ready if self._known.get(fault.name, "unknown")]
        say(f"{len(ready)} faults, {len(ready) - len(left)} of them done before: {self._file}")
        began = time.monotonic()
        for done, fault in enumerate(left, 1):
            self._known[fault.name] = failure = _failure_after(fault)
            with self._file.open("a") as results:
                results.write(json.dumps({"fault": fault.name, "failure": failure}) + "\n")
            minutes = (time.monotonic() - began) / done * (len(left) - done) / 60
            position = f"{len(ready) - len(left) + done} of {len(ready)}"
            say(f"{position}, some {minutes:.0f} min left: {fault.name}: {failure or 'nothing lost'}")
        for fault in self._faults:
            if fault.lacks:
                say(f"not run: {fault.name}: {fault.lacks}")
        failed = [name for name in names if self._known.get(name)]
        for name in failed:
            say(f"FAILED {name}: {self._known[name]}")
        say(
            f"{len(ready)} faults, {len(failed)} of them left something lost, doubled, mixed or undone; "
            f"{len(self._faults) - len(ready)} not run"
        )
        if failed:
            sys.exit(1)


def _failure_after(fault: Fault) -> str | None:
    try:
        fault.inject()
    except Exception as error:  # noqa: BLE001 (a lake that cannot be read is a finding, too)
        return f"{type(error).__name__}: {error}"
    return None


class Engine:
    """An engine, and what it leaves of each work when nothing happens.

    That is found out when it is asked for, and kept in the scratch folder.
    """

    def __init__(self, name: str, scratch: Path) -> None:
        self.name = name
        self._scratch = scratch
        self._warm = _WarmProcess(name)
        self._home = scratch / f"undisturbed_{name}_{_code_hash()}"
        self._home.mkdir(exist_ok=True)

    def undisturbed(self, work: Work) -> Undisturbed:
        """What a work begins with, leaves, and takes."""
        file = self._home / f"{work}.json"
        if not file.exists():
            part = file.with_suffix(".part")
            part.write_text(json.dumps(asdict(self._run_undisturbed(work))))
            part.replace(file)
        return Undisturbed(**json.loads(file.read_text()))

    def after_nights(self, count: int) -> Path:
        """The lake that so many nights leave; not to be changed."""
        kept = self._home / f"night_{count}"
        if not kept.exists():
            with self.lake(self.after_nights(count - 1) if count > 1 else None) as lake:
                self.rerun(lake, f"night {count}")
                lake.replace(kept)
        return kept

    def rerun(self, lake: Path, *works: str) -> None:
        """Do works in a process that stands ready.

        Raises:
            FaultError: if one of them fails, or takes too long.
        """
        self._warm.run(lake, works)

    @contextmanager
    def lake(self, start: Path | str | None) -> Iterator[Path]:
        """A lake of its own, a copy of another if one is named; it stays if what is done with it fails."""
        # Spark remembers what it read of a path.
        folder = Path(tempfile.mkdtemp(prefix=f"{self.name}_", dir=self._scratch))
        lake = folder / "lake"
        if start is not None:
            shutil.copytree(start, lake)
        try:
            yield lake
        except Exception as error:
            raise FaultError(f"{type(error).__name__}: {error}; the lake stays at {lake}") from error
        shutil.rmtree(folder)

    @contextmanager
    def start(self, lake: Path, work: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
        """A process that begins a work; it is no more in the end."""
        process = subprocess.Popen(
            [sys.executable, str(_HERE / "pipeline.py"), str(lake), work, self.name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A session of its own: what kills its group kills neither this process nor what started it.
            start_new_session=True,
            env={**os.environ, **environment},
        )
        with process:
            try:
                assert process.stdout is not None
                process.stdout.readline()  # until its session stands
                yield process
            except subprocess.TimeoutExpired:
                raise FaultError(f"{work} did not end within {_LONGEST_SECONDS} s") from None
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def run(self, lake: Path, work: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Do a work in a process of its own, to its end or to its death, Java's included."""
        with self.start(lake, work, **environment) as process:
            _, errors = process.communicate(timeout=_LONGEST_SECONDS)
        return subprocess.CompletedProcess(process.args, process.returncode, stderr=errors)

    def _run_undisturbed(self, work: Work) -> Undisturbed:
        folder = Path(tempfile.mkdtemp(dir=self._home))
        start, log = folder / "start" if work.nights_before else None, folder / "steps"
        if start:
            shutil.copytree(self.after_nights(work.nights_before), start)
            if work.damage:
                work.damage(start)
        with self.lake(start) as lake:
            # As what is killed: a session that has stood for long is quicker.
            with self.start(lake, work.name, CRM_SPARK_FAILPOINT_LOG=str(log)) as process:
                began = time.monotonic()
                _, errors = process.communicate(timeout=_LONGEST_SECONDS)
                seconds = time.monotonic() - began
            _expect(process.returncode == 0, f"{work} failed without a fault: {errors}")
            self.rerun(lake, *work.then)
            return Undisturbed(str(start) if start else None, shown_in(lake), seconds, _step_seconds(log))


class _WarmProcess:
    """A process on an engine that does what runs after faults do, one after another: to start one takes longer."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._requests: Connection | None = None

    def run(self, lake: Path, works: Sequence[str]) -> None:
        if self._requests is None:
            self._start()
        requests = self._requests
        assert requests is not None
        try:
            requests.send((str(lake), works))
            failure = requests.recv() if requests.poll(_LONGEST_SECONDS) else f"did not end in {_LONGEST_SECONDS} s"
        except (EOFError, OSError):
            failure = "ended"
        if failure:
            self._process.kill()
            self._requests = None
            raise FaultError(f"a run that nothing disturbed ({', '.join(works)}) failed: {failure}")

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._requests, answers = context.Pipe()
        self._process = context.Process(target=serve, args=(self._engine, answers), daemon=True)
        self._process.start()
        answers.close()


def _step_seconds(log: Path) -> dict[str, float]:
    """How long each step took, by its name."""
    places = [line.split(" ", 2) for line in log.read_text().splitlines()]
    began = {step: float(clock) for clock, when, step in reversed(places) if when == "before"}
    return {step: float(clock) - began[step] for clock, when, step in reversed(places) if when == "after"}


def _all_faults(engine: Engine, seed: int) -> Iterator[Fault]:
    for work in [*_NIGHT_WORKS[:2], *_OTHER_WORKS]:
        steps = [step for step in engine.undisturbed(work).step_seconds if step.startswith(work.steps)]
        _expect(bool(steps), f"{work} takes no step at which it could be killed")
        for step in steps:
            for when in ("before", "during", "after"):
                yield _killed_at(engine, work, when, step, "group")
            # On Sail, Python is all; what operators do, delta-rs does in Python's process.
            if engine.name == "spark" and work in _NIGHT_WORKS:
                yield _killed_at(engine, work, "during", step, "python")
                yield _killed_at(engine, work, "during", step, "java")
    moments = random.Random(seed)
    for number in range(_RANDOM_KILLS):
        work, share = moments.choice([*_NIGHT_WORKS, _MAINTENANCE]), round(moments.random(), 3)
        name = f"{engine.name}: {work}, group killed after {share:.3f} of its time (seed {seed}, kill {number + 1})"
        yield Fault(name, partial(_kill_late, engine, work, share))
    yield from _other_faults(engine, commits=40)
    if engine.name == "spark":
        yield _full_disk(engine, "Spark's scratch")


def _quick_faults(engine: Engine) -> Iterator[Fault]:
    second = _NIGHT_WORKS[1]
    if engine.name == "spark":
        yield _killed_at(engine, second, "during", f"merge into {TOTALS.name}", "java")
        yield _killed_at(engine, second, "after", f"append of {LEDGER.name}", "python")
        return
    for work, when, step in (
        (second, "during", f"overwrite of {SALES.name}"),
        (second, "before", f"note of {TOTALS.name}"),
        (second, "during", "append to publications"),
        (_MAINTENANCE, "during", f"clearing of {SALES.name}"),
        (_MAINTENANCE, "after", f"compaction of {LEDGER.name}"),
        (_TORN_LEDGER, "before", "withdrawal from publications"),
    ):
        yield _killed_at(engine, work, when, step, "group")
    yield from _other_faults(engine, commits=10)


def _other_faults(engine: Engine, commits: int) -> Iterator[Fault]:
    yield Fault(f"{engine.name}: a night run again", partial(_replay, engine))
    yield Fault(f"{engine.name}: two processes, {commits} commits each", partial(_two_writers, engine, commits))
    yield Fault(f"{engine.name}: a reader beside {ROLLBACK_COUNT} publishes", partial(_read_beside, engine))
    yield _full_disk(engine, "the lake")


def _killed_at(engine: Engine, work: Work, when: str, step: str, kills: str) -> Fault:
    def inject() -> None:
        undisturbed = engine.undisturbed(work)
        _expect(step in undisturbed.step_seconds, f"the work has no such step, but {list(undisturbed.step_seconds)}")
        failpoint = {
            "CRM_SPARK_FAILPOINT": f"{when} {step}",
            "CRM_SPARK_FAILPOINT_KILLS": kills,
            "CRM_SPARK_FAILPOINT_SECONDS": str(undisturbed.step_seconds[step] / 2),
        }
        with engine.lake(undisturbed.start) as lake:
            done = engine.run(lake, work.name, **failpoint)
            # What takes less than a moment, or less than before, is over before the kill.
            over = when == "during" and done.returncode == 0
            if kills == "java":
                told = done.returncode == 4 and "what was published stands" in done.stderr
                _expect(over or told, f"ended: {done.stderr}")
            else:
                _expect(over or done.returncode == -signal.SIGKILL, f"not killed: {done.returncode} {done.stderr}")
            _expect_recovery(engine, work, lake)

    return Fault(f"{engine.name}: {work}, {kills} killed {when} {step}", inject)


def _kill_late(engine: Engine, work: Work, share: float) -> None:
    undisturbed = engine.undisturbed(work)
    with engine.lake(undisturbed.start) as lake:
        with engine.start(lake, work.name) as process, suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=share * undisturbed.seconds)
        _expect_recovery(engine, work, lake)


def _replay(engine: Engine) -> None:
    with engine.lake(engine.after_nights(2)) as lake:
        before = _files(lake)
        engine.rerun(lake, "night 2", "night 2")
        _expect(_files(lake) == before, "a night that was run again wrote something")


def _two_writers(engine: Engine, commits: int) -> None:
    with engine.lake(None) as lake:
        command = [sys.executable, str(_HERE / "appender.py"), str(lake), engine.name, str(commits)]
        writers = [subprocess.Popen([*command, str(number)], stderr=subprocess.PIPE, text=True) for number in (0, 1)]
        try:
            for writer in writers:
                _, errors = writer.communicate(timeout=_LONGEST_SECONDS + 10 * commits)
                _expect(writer.returncode == 0, f"a writer ended with {writer.returncode}: {errors}")
        finally:
            for writer in writers:
                writer.kill()
        stored = PublishedLake(str(lake))
        last = stored.require_publication()
        found = sorted(row["sale_id"] for row in _rows(stored, last, SALES.name))
        _expect(found == list(range(2 * commits)), f"found {len(found)} of {2 * commits} rows")
        _expect(last.publication_no == 2 * commits, f"found {last.publication_no} publications of {2 * commits}")


def _read_beside(engine: Engine) -> None:
    """Readers see the one or the other of two publications, whole, however often they change."""
    with engine.lake(engine.after_nights(2)) as lake:
        seen = []
        with engine.start(lake, "rollbacks") as process:
            while process.poll() is None:
                seen.append(state_of(lake))
        _expect(process.returncode == 0, f"rollbacks ended with {process.returncode}")
        _expect(set(seen) == {1, 2}, f"in {len(seen)} looks, a reader saw nights {sorted(set(seen))}")
        count = len(PublishedLake(str(lake)).publications())
        _expect(count == 2 + ROLLBACK_COUNT, f"found {count} publications of {2 + ROLLBACK_COUNT}")


def _full_disk(engine: Engine, what: str) -> Fault:
    may_mount = os.geteuid() == 0 and shutil.which("mount") is not None
    lacks = None if may_mount else "needs root, to mount a small disk"
    return Fault(f"{engine.name}: a full disk for {what}", partial(_fill_disk, engine, what), lacks)


def _fill_disk(engine: Engine, what: str) -> None:
    second = _NIGHT_WORKS[1]
    with engine.lake(engine.undisturbed(second).start) as lake, _small_disk(lake.parent / "disk") as disk:
        environment = {}
        if what == "the lake":
            lake = shutil.copytree(lake, disk / "lake")
        else:
            environment["SPARK_LOCAL_DIRS"] = str(disk)
        filler = disk / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        done = engine.run(lake, second.name, **environment)
        _expect(done.returncode == 4, f"a full disk ended with {done.returncode}: {done.stderr}")
        _expect("disk: found no space left" in done.stderr, f"a full disk was told as: {done.stderr}")
        filler.unlink()
        _expect_recovery(engine, second, lake)


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _expect_recovery(engine: Engine, work: Work, lake: Path) -> None:
    """Readers see what was before the work or the whole of it; one run more leaves what an undisturbed one leaves."""
    if work.seen:
        seen = state_of(lake)
        _expect(seen in work.seen, f"readers saw night {seen}")
    engine.rerun(lake, work.name, *work.then)
    shown, expected = shown_in(lake), engine.undisturbed(work).shown
    _expect(shown == expected, f"{shown} is published instead of {expected}")


def shown_in(lake: Path) -> list[Shown]:
    """All publications, the oldest first, each of which can be read.

    Raises:
        FaultError: if what one shows is of no one night.
    """
    stored = PublishedLake(str(lake))
    return [
        {
            "number": publication.publication_no,
            "night": _night_of(stored, publication),
            "hashes": {name: pin.content_hash for name, pin in publication.tables.items()},
        }
        for publication in stored.publications()
    ]


def state_of(lake: Path) -> int:
    """The night that readers see, 0 if none.

    Raises:
        FaultError: if what they see is of no one night: sales lost, doubled or mixed.
    """
    stored = PublishedLake(str(lake))
    last = stored.last_publication()
    return _night_of(stored, last) if last else 0


def _night_of(stored: PublishedLake, publication: Publication) -> int:
    rows = {table.name: _rows(stored, publication, table.name) for table in TABLES}
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


def _expect(is_so: bool, failure: str) -> None:
    if not is_so:
        raise FaultError(failure)


def _files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@cache
def _code_hash() -> str:
    """Taken at the start: who changes the code meanwhile changes no name of what is kept."""
    digest = hashlib.sha256()
    for folder in (Path(crm_spark.__file__).parent, _HERE):
        for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".conf")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def say(text: str) -> None:
    """Print at once, also into a file."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
