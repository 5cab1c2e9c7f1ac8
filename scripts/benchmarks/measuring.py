"""What benchmarks share: a side runs in a process of its own, which tells its times, and its memory is watched."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

_CORES = 2
_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20


class Measured(NamedTuple):
    """Seconds of each step that a side tells, and the most memory of all its processes."""

    seconds: dict[str, float]
    peak_mib: float


def parser_of(doc: str | None, lines: int) -> argparse.ArgumentParser:
    """The options of every benchmark, and those by which it runs a side in a process of its own."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=lines, help="about how many order lines")
    parser.add_argument(
        "--rounds", type=int, default=2, help="how often sides run (Polars and pandas once); the best counts"
    )
    parser.add_argument("--data", type=Path, help="where generated data are kept, and found again")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("paths", nargs="*", help=argparse.SUPPRESS)
    return parser


def run_side(script: str, side: str, *paths: Path) -> Measured:
    """Run `script --side SIDE PATH... TOLD` on two cores; it writes its steps' seconds to the file TOLD by `tell`."""
    with tempfile.NamedTemporaryFile() as told:
        command = [sys.executable, script, "--side", side, *map(str, paths), told.name]
        process = subprocess.Popen(command, start_new_session=True)
        os.sched_setaffinity(process.pid, sorted(os.sched_getaffinity(0))[:_CORES])
        with watched(lambda: {side: memory_mib(processes_of(process.pid))}) as peaks:
            try:
                code = process.wait()
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
        if code:
            sys.exit(f"{side} ended with {code}")
        return Measured(json.loads(Path(told.name).read_text()), peaks.get(side, 0.0))


def tell(told: str, **seconds: float) -> None:
    """Hand the steps' seconds to the process that started this one."""
    Path(told).write_text(json.dumps(seconds))


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@contextmanager
def watched(look: Callable[[], Mapping[str, float]], every_seconds: float = 0.2) -> Iterator[dict[str, float]]:
    """The greatest number of each name that `look` has told, complete once the block is left."""
    peaks: dict[str, float] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every_seconds):
            for name, number in look().items():
                peaks[name] = max(peaks.get(name, 0.0), number)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        ended.set()
        watcher.join()


def processes_of(session: int) -> list[int]:
    """The processes of a session that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it may have ended since
            state, _, _, of_session, *_ = stat.read_text().rpartition(")")[2].split()
            if int(of_session) == session and state not in "ZX":
                found.append(int(stat.parent.name))
    return found


def memory_mib(processes: Iterable[int]) -> float:
    """What processes hold in memory, all together."""
    pages = 0
    for process in processes:
        with suppress(FileNotFoundError, ProcessLookupError):
            pages += int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * _PAGE_MIB
