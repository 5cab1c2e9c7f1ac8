"""A standalone cluster on this machine: a master and workers of one core each, as an operator would start them."""

import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyspark
from measuring import processes_of

from crm_spark.doctor import find_java_home

ROOT = Path(__file__).parent.parent.parent
_Found = TypeVar("_Found")
_SPARK = Path(pyspark.__file__).parent
# Named in PYTHONPATH to a Python that starts with -S, it gives the libraries, but no editable installation of this.
LIBRARIES = _SPARK.parent
_HANGS_AFTER_SECONDS = 900
_DRIVER_PYTHON = """\
#!/bin/sh
exec {python} -S "$@"
"""


@dataclass(frozen=True)
class Archives:
    """What scripts/build makes of this checkout."""

    wheel: Path
    zip: Path


def build_archives(folder: Path) -> Archives:
    """Build them into a folder, as scripts/build does once it has set up."""
    subprocess.run([sys.executable, ROOT / "scripts" / "packaging" / "build.py", folder], check=True)
    return Archives(next(folder.glob("*.whl")), next(folder.glob("*.zip")))


@dataclass(frozen=True)
class Started:
    """A process with a session of its own, and what it prints."""

    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """End it and all that it started: executors and their Python workers have groups of their own."""
        while left := processes_of(self.process.pid):
            for process in left:
                os.kill(process, signal.SIGKILL)
            self.process.wait()

    def output(self) -> str:
        """What it printed once it has ended well."""
        code = self.process.wait(timeout=_HANGS_AFTER_SECONDS)
        assert code == 0, self.log.read_text()
        return self.log.read_text()


class Cluster:
    """A master and workers under one folder; a secret that is in its settings alone.

    Each worker has room for one executor, of `executor_memory`; `settings` are those of jobs, beside
    conf/spark-cluster.conf.
    """

    def __init__(self, folder: Path, executor_memory: str, settings: Mapping[str, str]) -> None:
        self.folder = folder
        self.secret, self.hmac_key = secrets.token_hex(16), secrets.token_hex(16)
        self.events = folder / "events"
        self._settings = {
            **settings,
            "spark.executor.cores": "1",
            "spark.executor.memory": executor_memory,
            "spark.eventLog.dir": self.events.as_uri(),
        }
        self._started: list[Started] = []
        for name in ("conf", "events", "logs"):
            (folder / name).mkdir()
        defaults = folder / "conf" / "spark-defaults.conf"
        defaults.touch(mode=0o600)
        defaults.write_text(
            "spark.authenticate true\nspark.network.crypto.enabled true\n"
            "spark.network.crypto.cipher AES/GCM/NoPadding\n"
            f"spark.authenticate.secret {self.secret}\nspark.hadoop.hmac.key {self.hmac_key}\n"
        )
        python = folder / "python"
        python.write_text(_DRIVER_PYTHON.format(python=sys.executable))
        python.chmod(0o755)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYSPARK_", "SPARK_", "PYTHON"))}
        self._environment = inherited | {
            "JAVA_HOME": str(find_java_home()),
            "SPARK_HOME": str(_SPARK),
            "SPARK_CONF_DIR": str(folder / "conf"),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_LOCAL_DIRS": str(folder / "scratch"),
            "SPARK_DAEMON_MEMORY": "256m",
            "SPARK_DAEMON_JAVA_OPTS": "-Duser.timezone=UTC -XX:+UseSerialGC -XX:TieredStopAtLevel=1",
            "SPARK_MASTER_HOST": "127.0.0.1",
            "SPARK_MASTER_PORT": "0",
            "SPARK_MASTER_WEBUI_PORT": "0",
            "SPARK_WORKER_CORES": "1",
            "SPARK_WORKER_MEMORY": executor_memory,
            "SPARK_WORKER_DIR": str(folder / "work"),
            "SPARK_WORKER_WEBUI_PORT": "0",
            "PYSPARK_PYTHON": sys.executable,
            "PYSPARK_DRIVER_PYTHON": str(python),
            "PYTHONPATH": str(LIBRARIES),
        }
        self.workers: list[Started] = []

    def start(self, workers: int, cores: Sequence[int] = ()) -> None:
        """Start the master and workers, each of which has one of `cores` to itself; without them, any."""
        master = self._start("master", [_SPARK / "bin" / "spark-class", "org.apache.spark.deploy.master.Master"])
        self.url = until(lambda: re.search(r"Starting Spark master at (spark://\S+)", master.log.read_text()))[1]
        self.add_workers(workers, cores)

    def add_workers(self, count: int, cores: Sequence[int] = ()) -> None:
        """Start workers and wait until the master knows them."""
        command = [_SPARK / "bin" / "spark-class", "org.apache.spark.deploy.worker.Worker", self.url]
        new = [self._start("worker", command) for _ in range(count)]
        for worker, core in zip(new, cores, strict=False):
            os.sched_setaffinity(worker.process.pid, {core})  # what it starts has the same
        for worker in new:
            until(lambda worker=worker: "Successfully registered with master" in worker.log.read_text())
        self.workers += new

    @contextmanager
    def submitted(self, archive: Path, job: Path, *arguments: str) -> Iterator[Started]:
        """A job that runs with the package from an archive; it is ended when the block is left."""
        settings = [part for key, value in self._settings.items() for part in ("--conf", f"{key}={value}")]
        command = [_SPARK / "bin" / "spark-submit", "--master", self.url, "--load-spark-defaults"]
        command += ["--properties-file", ROOT / "conf" / "spark-cluster.conf", *settings]
        started = self._start("submit", [*command, "--py-files", archive, job, *arguments])
        try:
            yield started
        finally:
            started.kill()

    def command_lines(self) -> list[str]:
        """Those of all processes of the cluster and its jobs."""
        return [_command_line(process) for started in self._started for process in processes_of(started.process.pid)]

    def executors(self) -> list[int]:
        """The processes that workers run tasks in."""
        processes = [process for worker in self.workers for process in processes_of(worker.process.pid)]
        return [process for process in processes if "CoarseGrainedExecutorBackend" in _command_line(process)]

    def stop(self) -> None:
        for started in self._started:
            started.kill()

    def _start(self, name: str, command: list[str | Path]) -> Started:
        log = self.folder / "logs" / f"{len(self._started)}_{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._started.append(Started(process, log))
        return self._started[-1]


def _command_line(process: int) -> str:
    try:
        return Path("/proc", str(process), "cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):  # it has ended since
        return ""


def until(look: Callable[[], _Found], seconds: float = 300) -> _Found:
    """What is looked for, as soon as it is there."""
    ends_at = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < ends_at, f"not there after {seconds} s"
        time.sleep(0.05)
    return found
