"""What docker/ names is there: commands, flags, files, settings, variables, ports; and its scripts do as they say."""

import os
import re
import runpy
import shlex
import stat
import subprocess
import sys
import tomllib
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from zipfile import ZipFile

import pyspark
import pytest
import typer.main
import yaml
from pyspark.sql import SparkSession
from test_packaging import read_settings

from crm_spark.cli import app
from crm_spark.doctor import MINIMUM_JAVA
from crm_spark.errors import CrmSparkError, LakeBusyError

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SCHEDULED = yaml.safe_load((DOCKER / "kubernetes.yaml").read_text())["spec"]
APPLICATION = SCHEDULED["template"]

HOME = "/opt/crm_spark/"
ROLES = {"master", "worker", "history", "thrift", "submit", "driver", "executor"}
SECRET = "0123456789abcdef+/=_-0123456789ABCDEF"
# Ports that Spark's daemons listen on unless they are told otherwise.
PORTS = {"master": 8080, "worker": 8081, "history": 18080, "thrift": 10000}

_FAKE = """\
#!/usr/bin/env python
import os, sys
from pathlib import Path
conf = Path(os.environ.get("SPARK_CONF_DIR", "/none"), "spark-defaults.conf")
print(Path(sys.argv[0]).name, *sys.argv[1:], sep="\\n")
print("=", os.environ.get("CRM_SPARK_SECRET", "no secret"), os.environ.get("SPARK_HISTORY_OPTS", ""))
if conf.exists():
    print(oct(conf.stat().st_mode & 0o777), oct(conf.parent.stat().st_mode & 0o777))
    print(conf.read_text(), end="")
"""


class Entrypoint:
    """The entrypoint in a place like the image's, where programs tell how they were started instead of doing it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "bin").mkdir()
        (home / "conf").symlink_to(ROOT / "conf")
        (home / "bin" / "entrypoint").write_bytes((DOCKER / "entrypoint").read_bytes())
        for name in ("spark-submit", "spark-class", "crm-spark", "java"):
            (home / "bin" / name).write_text(_FAKE.replace("/usr/bin/env python", sys.executable))
        (home / "bin" / "python").symlink_to(sys.executable)
        (home / "bin" / "find_spark_home.py").write_text("print('/spark')")
        for program in (home / "bin").iterdir():
            program.chmod(0o755)

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.home / "bin" / "entrypoint", *arguments],
            env={"PATH": os.environ["PATH"], "TMPDIR": str(self.home)} | variables,
            capture_output=True,
            text=True,
            check=False,
        )

    def started(self, *arguments: str, **variables: str) -> list[str]:
        """The program that it becomes, and its arguments."""
        done = self.run(*arguments, **variables)
        assert done.returncode == 0, done.stderr
        return done.stdout.partition("\n= ")[0].splitlines()


@pytest.fixture
def entrypoint(tmp_path: Path) -> Entrypoint:
    return Entrypoint(tmp_path)


@pytest.fixture(scope="module")
def submit_options() -> set[str]:
    """What spark-submit knows, as it tells itself."""
    spark_submit = Path(pyspark.__file__).parent / "bin" / "spark-submit"
    told = subprocess.run([spark_submit, "--help"], capture_output=True, text=True, check=False)
    return set(re.findall(r"^ +(?:-\w, )?(--[a-z-]+)", told.stdout + told.stderr, flags=re.MULTILINE))


def check_command(name: str, *arguments: str) -> None:
    """Fails unless crm-spark has such a command, and the command such flags."""
    group = typer.main.get_command(app)
    with group.make_context("crm-spark", [name, *arguments]) as context:
        command = group.get_command(context, name)
        assert command is not None, f"crm-spark has no command {name}"
        command.make_context(name, list(arguments), parent=context)


def check_submitted(words: list[str], options: set[str]) -> None:
    """Fails unless spark-submit has the options, and the job is there and has the flags."""
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    flags = {"--load-spark-defaults"}
    while words[0].startswith("--"):
        assert words[0] in options
        words = words[1 if words[0] in flags else 2 :]
    if words[0] != "spark-internal":
        job = Path(words[0].removeprefix("local://").removeprefix(HOME))
        assert (ROOT / job).is_file(), f"there is no {job}"
        check_command(job.stem, *words[1:])


def words_of(service: dict[str, Any]) -> list[str]:
    """What a container of a service runs, less the entrypoint."""
    words = [*service.get("entrypoint", []), *service["command"]]
    return words[1:] if words[0] == f"{HOME}bin/entrypoint" else words


@pytest.mark.parametrize("script", [DOCKER / "install", DOCKER / "entrypoint", ROOT / "scripts" / "prove-bare-debian"])
def test_scripts_are_programs_that_bash_can_read(script: Path) -> None:
    assert script.stat().st_mode & stat.S_IXUSR
    subprocess.run(["bash", "-n", script], check=True)


def test_without_a_role_the_arguments_are_those_of_the_command(entrypoint: Entrypoint) -> None:
    assert entrypoint.started("demo", "--lake", "/my lake") == ["crm-spark", "demo", "--lake", "/my lake"]
    assert entrypoint.started() == ["crm-spark"]
    assert ROLES.isdisjoint(typer.main.get_command(app).commands)
    assert set(re.findall(r"^    ([a-z]+)\)$", (DOCKER / "entrypoint").read_text(), flags=re.MULTILINE)) == ROLES


@pytest.mark.parametrize("role", ["master", "worker", "submit"])
@pytest.mark.parametrize("secret", ["", SECRET[:31], f"{SECRET} ", f"{SECRET}\nspark.authenticate false"])
def test_without_a_good_secret_no_part_of_a_cluster_starts(entrypoint: Entrypoint, role: str, secret: str) -> None:
    refused = entrypoint.run(role, CRM_SPARK_SECRET=secret)
    assert (refused.returncode, refused.stdout) == (2, "")
    (line,) = refused.stderr.splitlines()
    assert line.startswith("entrypoint: CRM_SPARK_SECRET: found none, or one that is too short")
    assert not secret or secret not in line


@pytest.mark.parametrize("role", ["master", "worker", "submit"])
def test_the_secret_stands_in_a_file_of_its_user_alone(entrypoint: Entrypoint, role: str) -> None:
    done = entrypoint.run(role, CRM_SPARK_SECRET=SECRET)
    command, _, rest = done.stdout.partition("\n= ")
    environment, modes, *settings = rest.splitlines()
    assert SECRET not in command
    assert environment.strip() == "no secret"
    assert modes == "0o600 0o700"
    told = dict(line.split(maxsplit=1) for line in settings)
    assert told.pop("spark.authenticate.secret") == SECRET
    assert set(told) == {"spark.authenticate", "spark.network.crypto.enabled", "spark.network.crypto.cipher"}
    assert told.items() <= read_settings("spark-cluster.conf").items()


def test_jobs_are_submitted_with_the_settings_of_a_cluster(entrypoint: Entrypoint, submit_options: set[str]) -> None:
    job = [f"{HOME}jobs/refresh.py", "--conf", "shop.toml"]
    started = entrypoint.started("submit", *job, CRM_SPARK_SECRET=SECRET, CRM_SPARK_MASTER="spark://here:1")
    assert started[:3] == ["spark-submit", "--master", "spark://here:1"]
    assert started[started.index("--properties-file") + 1] == str(entrypoint.home / "conf" / "spark-cluster.conf")
    assert "spark.eventLog.dir=file:///events" in started
    assert started[-3:] == job
    check_submitted(started[1:], submit_options)


def test_the_sql_server_starts_as_its_class_in_pysparks_jars(entrypoint: Entrypoint, submit_options: set[str]) -> None:
    started = entrypoint.started("thrift", "--driver-memory", "1g")
    check_submitted(started[1:], submit_options)
    (jar,) = (Path(pyspark.__file__).parent / "jars").glob("spark-hive-thriftserver_*.jar")
    assert f"{started[started.index('--class') + 1].replace('.', '/')}.class" in ZipFile(jar).namelist()


def test_daemons_are_classes_of_pysparks_jars(entrypoint: Entrypoint) -> None:
    (jar,) = (Path(pyspark.__file__).parent / "jars").glob("spark-core_*.jar")
    for role in ("master", "worker", "history"):
        program, name, *_ = entrypoint.started(role, CRM_SPARK_SECRET=SECRET)
        assert program == "spark-class"
        assert f"{name.replace('.', '/')}.class" in ZipFile(jar).namelist()


def test_pods_of_kubernetes_start_as_spark_names_what_they_need(
    entrypoint: Entrypoint, submit_options: set[str]
) -> None:
    driver = entrypoint.started(
        "driver", "--properties-file", "p", "local:///opt/crm_spark/jobs/refresh.py", "--conf", "c",
        SPARK_DRIVER_BIND_ADDRESS="10.0.0.1",
    )  # fmt: skip
    check_submitted(driver[1:], submit_options)
    text = (DOCKER / "entrypoint").read_text()
    needed = dict.fromkeys(re.findall(r"\$(SPARK_[A-Z_]+)", text.partition("executor)")[2]), "x")
    executor = entrypoint.started("executor", **needed, SPARK_JAVA_OPT_0="-Da=b c", SPARK_JAVA_OPT_1="-Dd=e")
    assert executor[:5] == ["java", "-Da=b c", "-Dd=e", "-Xmsx", "-Xmxx"]
    assert executor[6].endswith(":/spark/jars/*")


def test_spark_knows_the_variables_and_settings_that_it_is_told(spark: SparkSession) -> None:
    texts = [(DOCKER / name).read_text() for name in ("entrypoint", "compose.yaml")]
    variables = {name for text in texts for name in re.findall(r"(?<!CRM_)(?<!PY)\bSPARK_[A-Z_]+", text)}
    known = b"".join(
        jar.read(name)
        for pattern in ("spark-core_*", "spark-launcher_*", "spark-kubernetes_*")
        for jar in map(ZipFile, (Path(pyspark.__file__).parent / "jars").glob(f"{pattern}.jar"))
        for name in jar.namelist()
        if name.startswith(("org/apache/spark/deploy/", "org/apache/spark/launcher/"))
    )
    assert variables
    assert {name for name in variables if name.encode() not in known} == set()

    java = spark._jvm
    for declaring in ("Worker", "History"):
        java.java.lang.Class.forName(f"org.apache.spark.internal.config.{declaring}$")
    settings = {key for text in texts for key in re.findall(r"(?:(?<![\w./-])|-D)(spark(?:\.[a-zA-Z]+)+)[= ]", text)}
    settings = {key for key in settings if not key.startswith("spark.hadoop.")}
    assert len(settings) > 5
    find = java.org.apache.spark.internal.config.ConfigEntry.findEntry
    assert {key for key in settings if find(key) is None} == set()


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_runs_what_is_there(name: str, submit_options: set[str]) -> None:
    service = COMPOSE["services"][name]
    role, *arguments = words_of(service)
    if role in ROLES:
        assert name == role
        if role == "submit":
            check_submitted(arguments, submit_options)
        elif role == "thrift":
            check_submitted([*arguments, "spark-internal"], submit_options)
        else:
            assert arguments == []
    elif role == "bash":
        commands = [shlex.split(command) for command in arguments[-1].split("|")]
        assert [words[0] for words in commands] == ["crm-spark", "beeline"]
        check_command(*commands[0][1:])
    else:
        assert (Path(pyspark.__file__).parent / "bin" / role).is_file()


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_is_reached_from_this_machine_alone_at_the_port_it_listens_on(name: str) -> None:
    service = COMPOSE["services"][name]
    port = PORTS.get(name)
    assert service.get("ports", []) in ([], [f"127.0.0.1:{port}:{port}"])
    if port:
        assert service["healthcheck"]["test"][-1] == f"</dev/tcp/127.0.0.1/{port}"
    assert f"thrift:{PORTS['thrift']}" in " ".join(words_of(service)) or name not in ("register", "beeline")


def test_services_wait_for_services_that_tell_their_health_and_mount_volumes_that_are_made() -> None:
    made = re.search(r"install --directory [^/]*(/.*)", (DOCKER / "install").read_text())
    assert made
    for name, service in COMPOSE["services"].items():
        assert all("healthcheck" in COMPOSE["services"][other] for other in service.get("depends_on", {})), name
        for volume in service.get("volumes", []):
            source, target, *mode = volume.split(":")
            assert source in COMPOSE["volumes"]
            assert target in made[1].split(), "a volume's folder belongs to the image's user"
            assert mode == ["ro"] or (name, source) in {
                ("worker", "lake"), ("submit", "lake"), ("submit", "events"), ("thrift", "metastore")
            }  # fmt: skip


def test_each_part_of_the_cluster_gets_the_secret_or_compose_says_what_is_missing() -> None:
    environments = {name: service.get("environment", {}) for name, service in COMPOSE["services"].items()}
    given = {name: told["CRM_SPARK_SECRET"] for name, told in environments.items() if "CRM_SPARK_SECRET" in told}
    assert set(given) == {"master", "worker", "submit"}
    for value in given.values():
        assert re.fullmatch(r"\$\{CRM_SPARK_SECRET:\?expected .*openssl rand -hex 32\}", value)


def test_an_executor_fits_into_a_worker() -> None:
    worker = COMPOSE["services"]["worker"]["environment"]
    submitted = dict(word.split("=", 1) for word in words_of(COMPOSE["services"]["submit"]) if "=" in word)
    assert COMPOSE["services"]["worker"]["deploy"]["replicas"] == 2
    assert submitted["--executor-cores"] == worker["SPARK_WORKER_CORES"]
    assert submitted["--executor-memory"] == worker["SPARK_WORKER_MEMORY"]


def test_kubernetes_runs_the_refresh_with_the_settings_of_a_cluster(submit_options: set[str]) -> None:
    check_submitted([APPLICATION["mainApplicationFile"], *APPLICATION["arguments"]], submit_options)
    driver, executor = APPLICATION["driver"], APPLICATION["executor"]
    sizes = {
        "spark.driver.memory": driver["memory"],
        "spark.executor.memory": executor["memory"],
        "spark.executor.cores": str(executor["cores"]),
    }
    told = APPLICATION["sparkConf"] | sizes
    assert told.pop("spark.eventLog.dir") == "file:///events"
    assert told == read_settings("spark-cluster.conf")


def test_kubernetes_mounts_what_the_job_reads_and_writes() -> None:
    volumes = {volume["name"] for volume in APPLICATION["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in APPLICATION["driver"]["volumeMounts"]}
    assert set(mounts.values()) == volumes
    assert {mount["name"] for mount in APPLICATION["executor"]["volumeMounts"]} <= volumes
    flags = dict(zip(APPLICATION["arguments"][::2], APPLICATION["arguments"][1::2], strict=True))
    assert str(Path(flags["--conf"]).parent) in mounts
    assert flags["--lake"] in mounts
    assert SCHEDULED["concurrencyPolicy"] == "Forbid"
    assert APPLICATION["restartPolicy"]["type"] == "Never"


class _Task:
    """Stands for a task of Airflow, which is not installed here."""

    def __init__(self, task_id: str) -> None:
        self.task_id, self.followers = task_id, []

    def __rshift__(self, other: "_Task") -> "_Task":
        self.followers.append(other.task_id)
        return other


class _AirflowError(Exception):
    pass


class _AirflowFailError(_AirflowError):
    pass


@pytest.fixture
def dag(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What docker/airflow_dag.py declares, with stand-ins for what it takes of Airflow."""
    stands_for = {
        "pendulum": {"datetime": lambda *day, tz: (day, tz)},
        "airflow.sdk.exceptions": {"AirflowException": _AirflowError, "AirflowFailException": _AirflowFailError},
        "airflow.providers.standard.hooks.subprocess": {"SubprocessHook": SimpleNamespace},
        "airflow.sdk": {"DAG": lambda *_, **options: nullcontext(options), "BaseOperator": _Task},
    }
    for name, content in stands_for.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return runpy.run_path(str(DOCKER / "airflow_dag.py"))


def test_a_night_is_a_refresh_then_its_report_then_maintenance(dag: dict[str, Any], submit_options: set[str]) -> None:
    assert dag["refresh"].followers == ["report"]
    assert dag["report"].followers == ["maintain"]
    for name in ("refresh", "report", "maintain"):
        role, *arguments = dag[name].arguments
        if role == "submit":
            check_submitted(arguments, submit_options)
        else:
            check_command(role, *arguments)


@pytest.mark.parametrize(
    ("code", "raised"),
    [
        (CrmSparkError.exit_code, _AirflowFailError),
        (LakeBusyError.exit_code, _AirflowError),
        (1, _AirflowFailError),
        (-9, _AirflowError),
    ],
)
def test_what_may_succeed_later_is_tried_again_and_what_needs_mending_is_not(
    dag: dict[str, Any], code: int, raised: type[Exception]
) -> None:
    commands = []
    dag["refresh"].hook.run_command = lambda command: commands.append(command) or SimpleNamespace(exit_code=code)
    with pytest.raises(_AirflowError) as told:
        dag["refresh"].execute({})
    assert type(told.value) is raised
    assert commands == [[f"{HOME}bin/entrypoint", *dag["refresh"].arguments]]
    dag["report"].hook.run_command = lambda command: SimpleNamespace(exit_code=0)
    dag["report"].execute({})


def test_versions_are_told_once() -> None:
    install = (DOCKER / "install").read_text()
    assert re.findall(r"openjdk-(\d+)", install) == [str(MINIMUM_JAVA)]
    texts = {path.name: path.read_text() for path in DOCKER.iterdir() if path.is_file()}
    assert {name for name, text in texts.items() if "openjdk" in text} == {"install"}
    (pinned,) = (need.removeprefix("pyspark==") for need in PROJECT["dependencies"] if need.startswith("pyspark=="))
    assert APPLICATION["sparkVersion"] == pinned
    assert {name for name, text in texts.items() if pinned in text} == {"kubernetes.yaml"}
    assert {tag for text in texts.values() for tag in re.findall(r"crm-spark:(\d\S*)", text)} == {PROJECT["version"]}


def test_pods_run_as_the_images_user() -> None:
    install, dockerfile = (DOCKER / "install").read_text(), (DOCKER / "Dockerfile").read_text()
    (number,) = re.findall(r"--uid (\d+) .* spark$", install, flags=re.MULTILINE)
    assert "USER spark" in dockerfile.splitlines()
    for pod in (APPLICATION["driver"], APPLICATION["executor"]):
        assert pod["podSecurityContext"]["runAsUser"] == pod["podSecurityContext"]["fsGroup"] == int(number)


def test_the_image_is_built_from_all_that_install_takes_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert all((ROOT / name).exists() for name in sent)
    taken = set(re.findall(r"\$root\"?/(\w+)", (DOCKER / "install").read_text()))
    assert taken | {"crm_spark", "pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]} == sent
