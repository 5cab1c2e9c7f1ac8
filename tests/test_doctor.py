import hashlib
import os
import subprocess
import tomllib
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from crm_spark import doctor
from crm_spark.errors import MachineError

JAR = next(iter(doctor.JARS))


def a_java(home: Path, version: str) -> Path:
    """A Java of which only the answer to -version is real."""
    return a_program(home / "bin" / "java", f"""echo 'openjdk version "{version}" 2025-01-01' >&2""").parent.parent


def a_program(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No Java, no jars, and a Maven repository that is an empty folder."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(doctor, "PROVIDED_JAVA_HOME", tmp_path / "provided")
    monkeypatch.setattr(doctor, "MAVEN", (tmp_path / "maven").as_uri())
    monkeypatch.setattr(doctor, "_jars_folder", lambda: tmp_path / "jars")
    environment = dict(os.environ)
    yield tmp_path
    os.environ.clear()
    os.environ.update(environment)


def publish(machine: Path, path: str, content: bytes) -> None:
    file = machine / "maven" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def finding(name: str) -> doctor.Finding:
    return next(finding for finding in doctor.diagnose() if finding.name == name)


@pytest.mark.parametrize("version", ["1.8.0_402", "11.0.22", "16.0.2"])
def test_an_old_java_is_refused(bare_machine, monkeypatch, version):
    monkeypatch.setenv("JAVA_HOME", str(a_java(bare_machine / "old", version)))
    assert doctor.find_java_home() is None
    assert str(bare_machine / "old") in finding("Java").found


@pytest.mark.parametrize("version", ["17.0.15", "21", "25.0.2", "26-ea"])
def test_a_new_java_is_taken(bare_machine, monkeypatch, version):
    home = a_java(bare_machine / "new", version)
    monkeypatch.setenv("JAVA_HOME", str(home))
    assert doctor.find_java_home() == home
    assert finding("Java").ok


def test_a_java_that_does_not_start_as_spark_starts_it_is_refused(bare_machine, monkeypatch):
    trimmed = a_program(bare_machine / "trimmed/bin/java", f'case "$*" in *{doctor.VECTOR_MODULE}*) exit 1; esac')
    monkeypatch.setenv("JAVA_HOME", str(trimmed.parent.parent))
    assert doctor.find_java_home() is None


def test_java_home_goes_before_the_path_and_the_path_before_ours(bare_machine, monkeypatch):
    ours = a_java(bare_machine / "provided", "25.0.2")
    assert doctor.find_java_home() == ours

    on_path = a_java(bare_machine / "jvm", "17.0.15")
    (bare_machine / "path").mkdir()
    (bare_machine / "path" / "java").symlink_to(on_path / "bin" / "java")
    assert doctor.find_java_home() == on_path

    named = a_java(bare_machine / "named", "21.0.1")
    monkeypatch.setenv("JAVA_HOME", str(named))
    assert doctor.find_java_home() == named


def test_a_java_home_that_is_too_old_yields_to_a_newer_java(bare_machine, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", str(a_java(bare_machine / "old", "11.0.22")))
    ours = a_java(bare_machine / "provided", "25.0.2")
    doctor.prepare_environment()
    assert os.environ["JAVA_HOME"] == str(ours)


def test_the_environment_names_a_worker_python_only_when_none_is_named(bare_machine, monkeypatch):
    a_java(bare_machine / "provided", "25.0.2")
    monkeypatch.setenv("PYSPARK_PYTHON", "/opt/cluster/python")
    doctor.prepare_environment()
    assert os.environ["PYSPARK_PYTHON"] == "/opt/cluster/python"


def test_another_spark_does_not_take_the_place_of_pysparks_own(bare_machine, monkeypatch):
    a_java(bare_machine / "provided", "25.0.2")
    monkeypatch.setenv("SPARK_HOME", "/opt/spark-3.5")
    doctor.prepare_environment()
    assert os.environ["SPARK_HOME"].endswith("pyspark")


def test_under_spark_submit_the_environment_is_left_alone(bare_machine, monkeypatch):
    monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "4040")
    monkeypatch.delenv("PYSPARK_PYTHON", raising=False)
    doctor.prepare_environment()
    assert "JAVA_HOME" not in os.environ
    assert "PYSPARK_PYTHON" not in os.environ


def test_without_java_the_error_says_what_to_do(bare_machine):
    with pytest.raises(MachineError, match=r"no Java; expected Java 17 or newer: crm-spark doctor --fix") as error:
        doctor.prepare_environment()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "passed_on"),
    [
        ([f"--add-modules={doctor.VECTOR_MODULE}", "-version"], ["-version"]),
        (["--add-modules", doctor.VECTOR_MODULE, "-version"], ["-version"]),
        (["--add-opens=java.base/sun.security.action=ALL-UNNAMED", "-version"], ["-version"]),
        (["--add-modules", "java.sql", "-version"], ["--add-modules", "java.sql", "-version"]),
        (["-cp", "a b/*", "", "$HOME", "it's"], ["-cp", "a b/*", "", "$HOME", "it's"]),
        (["--add-modules"], ["--add-modules"]),
        ([], []),
    ],
)
def test_the_shim_drops_what_this_java_lacks_and_passes_on_the_rest(tmp_path, given, passed_on):
    java = a_program(tmp_path / "a folder" / "java", """printf '%s\\n' $# "$@" """)
    shim = tmp_path / "shim"
    doctor._write_java_shim(shim, java)
    answer = subprocess.run([shim, *given], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == [str(len(passed_on)), *passed_on]
    assert answer.stderr == ""


def test_a_jar_that_is_not_the_pinned_one_is_refused_and_leaves_no_file(bare_machine):
    publish(bare_machine, JAR, b"something else")
    with pytest.raises(MachineError, match="SHA-256"):
        doctor._provide_jar(JAR)
    assert not (bare_machine / "jars").exists()


def test_a_repository_without_the_jar_is_named_with_the_remedy(bare_machine):
    with pytest.raises(MachineError, match=r"could not download file:.*CRM_SPARK_MAVEN"):
        doctor._provide_jar(JAR)


def test_fix_fetches_what_is_missing_replaces_what_is_damaged_and_is_then_silent(bare_machine, monkeypatch):
    monkeypatch.setattr(doctor, "JARS", {"a/1/a-1.jar": sha256(b"a"), "b/1/b-1.jar": sha256(b"b")})
    a_java(bare_machine / "provided", "25.0.2")
    publish(bare_machine, "a/1/a-1.jar", b"a")
    publish(bare_machine, "b/1/b-1.jar", b"b")
    (bare_machine / "jars").mkdir()
    (bare_machine / "jars" / "a-1.jar").write_bytes(b"half of")
    assert finding("a-1.jar").found == "damaged"

    said: list[str] = []
    doctor.fix(said.append)
    assert said == ["downloading a-1.jar", "downloading b-1.jar"]
    assert {file.name: file.read_bytes() for file in (bare_machine / "jars").iterdir()} == {
        "a-1.jar": b"a",
        "b-1.jar": b"b",
    }
    assert finding("a-1.jar").ok

    doctor.fix(said.append)
    assert len(said) == 2


def test_the_jdbc_driver_is_fetched_when_it_is_needed_and_not_under_spark_submit(bare_machine, monkeypatch):
    publish(bare_machine, doctor.JDBC_DRIVER, b"a driver")
    monkeypatch.setattr(doctor, "JDBC_DRIVER_SHA256", sha256(b"a driver"))
    said: list[str] = []
    monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "4040")
    doctor.provide_jdbc_driver(said.append)
    assert said == []
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT")
    doctor.provide_jdbc_driver(said.append)
    doctor.provide_jdbc_driver(said.append)
    assert said == ["downloading postgresql-42.7.4.jar"]
    assert (bare_machine / "jars" / "postgresql-42.7.4.jar").read_bytes() == b"a driver"


def test_fix_removes_the_jars_of_another_delta(bare_machine, monkeypatch):
    monkeypatch.setattr(doctor, "JARS", {})
    a_java(bare_machine / "provided", "25.0.2")
    (bare_machine / "jars").mkdir()
    (bare_machine / "jars" / "delta-spark_2.13-4.0.0.jar").touch()
    (bare_machine / "jars" / "spark-core_2.13-4.2.0.jar").touch()
    doctor.fix(lambda _: None)
    assert [file.name for file in (bare_machine / "jars").iterdir()] == ["spark-core_2.13-4.2.0.jar"]


def test_what_is_missing_is_printed_with_its_remedy(bare_machine):
    console = Console(width=200, file=StringIO())
    doctor.print_findings(doctor.diagnose(), console)
    printed = console.file.getvalue()
    assert "missing  Java" in printed
    assert "Java: crm-spark doctor --fix, or set JAVA_HOME" in printed
    assert "delta-storage-4.4.0.jar: crm-spark doctor --fix" in printed


@pytest.mark.parametrize("requirement", ["no-such-package", "no-such-package==1.0", "pytest==0.*"])
def test_a_missing_or_wrong_package_is_found_with_its_remedy(requirement):
    found = doctor._check_package(requirement)
    assert not found.ok
    assert found.remedy == f"pip install '{requirement}'"


def test_a_small_container_is_a_warning_not_an_obstacle(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    limit.write_text(f"{2**30}\n")
    monkeypatch.setattr(doctor, "MEMORY_LIMIT_FILE", limit)
    memory = finding("memory")
    assert (memory.ok, memory.required, memory.found) == (False, False, "1.0 GiB")


def test_the_doctor_expects_what_the_project_installs():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert doctor.JAVA_PACKAGE in project["optional-dependencies"]["java"]
    assert {package for package in doctor.PACKAGES if "==" in package and "*" not in package} <= set(
        project["dependencies"]
    )
    delta = next(package for package in project["dependencies"] if package.startswith("delta-spark=="))
    assert {path.split("/")[-2] for path in doctor.JARS} == {delta.removeprefix("delta-spark==")}
