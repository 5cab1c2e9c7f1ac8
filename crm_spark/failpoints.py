"""Failpoints: steps at which tests make the program die, as a power cut or an operator's kill would.

Nothing happens here unless the environment says so:

- CRM_SPARK_FAILPOINT names a step and when, such as `before append of fact_visits`; `during ...` is a moment later, of
  CRM_SPARK_FAILPOINT_SECONDS (0.2 by default).
- CRM_SPARK_FAILPOINT_KILLS says what dies: `group` (this process and all of its group, the default), `python` (this
  process alone: Java may still commit) or `java`.
- CRM_SPARK_FAILPOINT_LOG names a file to which every step is written as it is reached, with the seconds of some clock.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_MOMENT_SECONDS = "0.2"


@contextmanager
def step(name: str) -> Iterator[None]:
    """Something that is done or not done; a failpoint stands before it, in its midst and after it."""
    _reach(f"before {name}")
    if _is_set(f"during {name}"):
        threading.Timer(float(os.environ.get("CRM_SPARK_FAILPOINT_SECONDS", _MOMENT_SECONDS)), _kill).start()
    yield
    _reach(f"after {name}")


def _reach(place: str) -> None:
    if log := os.environ.get("CRM_SPARK_FAILPOINT_LOG"):
        with Path(log).open("a") as places:
            places.write(f"{time.monotonic():.3f} {place}\n")
    if _is_set(place):
        _kill()


def _is_set(place: str) -> bool:
    return os.environ.get("CRM_SPARK_FAILPOINT") == place


def _kill() -> None:
    _KILLS[os.environ.get("CRM_SPARK_FAILPOINT_KILLS", "group")]()


def _kill_java() -> None:
    from pyspark import SparkContext

    gateway: Any = SparkContext._gateway  # who else knows its process
    os.kill(gateway.proc.pid, signal.SIGKILL)


_KILLS: dict[str, Callable[[], None]] = {
    "group": lambda: os.killpg(os.getpgrp(), signal.SIGKILL),
    "python": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "java": _kill_java,
}
