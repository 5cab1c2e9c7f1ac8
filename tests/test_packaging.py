"""What is built for a cluster and what a cluster is told: the zip is the whole program, the settings have reasons."""

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest
from pyspark.sql import SparkSession
from standalone import LIBRARIES, ROOT, Archives, build_archives

from crm_spark.cli import main
from crm_spark.run import LAYERS, code_version
from crm_spark.session import SETTINGS

_TOLD_FROM_THE_ZIP = """
import crm_spark
from crm_spark.config import conf_dir, load_config
from crm_spark.report.texts import load_texts
from crm_spark.run import LAYERS, code_version

print(crm_spark.__file__)
print(*map(code_version, LAYERS))
print(load_config(conf_dir() / "complete_journey.toml").currency, load_texts("zh", "EUR").currency)
"""
_COMMAND = "from crm_spark.cli import main; main()"


def run_from(archives: Archives, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program that has the libraries and the zip, and nothing of the checkout."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYSPARK_", "SPARK_"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(archives.zip), str(LIBRARIES)])
    return subprocess.run(
        [sys.executable, "-S", "-c", program, *arguments],
        env=environment,
        cwd=archives.zip.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_zip_is_the_package_of_the_wheel_with_the_settings_inside(archives: Archives) -> None:
    package = {path: path.relative_to(ROOT) for path in (ROOT / "crm_spark").rglob("*") if path.is_file()}
    settings = {path: Path("crm_spark", "conf", path.name) for path in (ROOT / "conf").iterdir()}
    expected = {
        str(name): path.read_bytes() for path, name in (package | settings).items() if "__pycache__" not in name.parts
    }
    with ZipFile(archives.zip) as zipped, ZipFile(archives.wheel) as wheel:
        assert zipped.namelist() == sorted(expected)
        assert {name: zipped.read(name) for name in zipped.namelist()} == expected
        assert {name for name in wheel.namelist() if ".dist-info/" not in name} == set(expected)


def test_equal_sources_are_built_into_equal_bytes(archives: Archives, tmp_path: Path) -> None:
    again = build_archives(tmp_path)
    for built, before in ((again.wheel, archives.wheel), (again.zip, archives.zip)):
        assert built.name == before.name
        assert built.read_bytes() == before.read_bytes()


def test_a_driver_with_the_zip_alone_has_the_same_code_version_settings_and_texts(archives: Archives) -> None:
    told = run_from(archives, _TOLD_FROM_THE_ZIP)
    assert told.stderr == ""
    place, versions, currencies = told.stdout.splitlines()
    assert Path(place) == archives.zip / "crm_spark" / "__init__.py"
    assert versions.split() == [code_version(layer) for layer in LAYERS]
    assert currencies == "USD EUR"


def test_the_zip_does_not_start_spark_by_itself_and_says_what_does(archives: Archives) -> None:
    refused = run_from(archives, _COMMAND, "generate", "--out", "never-written")
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "found settings in an archive" in line
    assert "expected spark-submit to start this" in line


@pytest.mark.parametrize("job", sorted((ROOT / "jobs").glob("*.py")), ids=lambda job: job.stem)
def test_a_job_has_the_flags_of_its_command(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def help_of(run: Callable[[], object], *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["crm-spark", *arguments, "--help"])
        with pytest.raises(SystemExit) as ended:
            run()
        assert ended.value.code == 0
        _, of_command, flags = capsys.readouterr().out.partition(f" {job.stem} [OPTIONS]")
        assert of_command
        return flags.lstrip()

    assert help_of(lambda: runpy.run_path(str(job), run_name="__main__")) == help_of(main, job.stem)


def read_settings(name: str) -> dict[str, str]:
    """The settings of a file of conf/, each of which stands under its reason."""
    settings: dict[str, str] = {}
    has_reason = False
    for line in (ROOT / "conf" / name).read_text().splitlines():
        if not line or line.startswith("#"):
            has_reason = bool(line)
            continue
        assert has_reason, f"{name}: {line} has no comment above it"
        key, value = line.split(maxsplit=1)
        assert key not in settings, f"{name}: {key} stands twice"
        settings[key] = value
    return settings


@pytest.mark.parametrize("name", ["spark-local.conf", "spark-cluster.conf"])
def test_settings_have_reasons_stand_once_and_do_not_speak_against_the_programs_own(name: str) -> None:
    settings = read_settings(name)
    assert {key: settings[key] for key in settings.keys() & SETTINGS} == {
        key: SETTINGS[key] for key in settings.keys() & SETTINGS
    }


def test_tables_are_written_alike_here_and_on_a_cluster() -> None:
    decides = re.compile(r"spark\.databricks\.delta\.properties\.|spark\.sql\.(extensions|catalog\.|session\.timeZone)")
    here, there = (
        {key: value for key, value in read_settings(name).items() if decides.match(key)}
        for name in ("spark-local.conf", "spark-cluster.conf")
    )
    assert here == there
    assert len(here) == 4


def test_the_cluster_settings_name_no_master_and_no_secret() -> None:
    settings = read_settings("spark-cluster.conf")
    assert not {"spark.master", "spark.authenticate.secret", "spark.eventLog.dir"} & settings.keys()


@pytest.mark.parametrize(
    ("name", "is_hidden"),
    [
        ("spark.hadoop.hmac.key", True),
        ("spark.authenticate.secret", True),
        ("spark.hadoop.fs.s3a.access.key", True),
        ("spark.hadoop.fs.azure.account.key.lake.dfs.core.windows.net", True),
        ("user", True),
        ("user_from", True),
        ("spark.executorEnv.SHOP_USER", True),
        ("spark.executorEnv.SHOP_PASSWORD", True),
        ("spark.driver.userClassPathFirst", False),
        ("spark.sql.shuffle.partitions", False),
        ("spark.executor.memory", False),
    ],
)
def test_settings_whose_names_tell_of_secrets_are_hidden(spark: SparkSession, name: str, is_hidden: bool) -> None:
    pattern = read_settings("spark-cluster.conf")["spark.redaction.regex"]
    assert spark._jvm.java.util.regex.Pattern.compile(pattern).matcher(name).find() == is_hidden


def test_spark_understands_what_it_is_told_of_encryption(spark: SparkSession) -> None:
    java = spark._jvm
    told = java.java.util.HashMap({k: v for k, v in read_settings("spark-cluster.conf").items() if "network" in k})
    transport = java.org.apache.spark.network.util.TransportConf(
        "rpc", java.org.apache.spark.network.util.MapConfigProvider(told)
    )
    assert transport.encryptionEnabled()
    assert transport.cipherTransformation() == "AES/GCM/NoPadding"
