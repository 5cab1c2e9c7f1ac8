"""The only place that builds a SparkSession."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyspark.sql import SparkSession

from crm_spark.config import conf_dir
from crm_spark.doctor import prepare_environment
from crm_spark.errors import MachineError

# What the program depends on, wherever it runs; master, memory and parallelism are said by spark-submit and conf/.
SETTINGS = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.ansi.enabled": "true",
    "spark.sql.caseSensitive": "false",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.parquet.inferTimestampNTZ.enabled": "false",
    "spark.sql.files.ignoreCorruptFiles": "false",
    "spark.sql.files.ignoreMissingFiles": "false",
    "spark.sql.pyspark.jvmStacktrace.enabled": "false",
    # Notes the line of Python that made each expression, which takes longer than making it.
    "spark.python.sql.dataFrameDebugging.enabled": "false",
    # Spark would derive all conditions that follow from those on columns of other names: planning a slice of features
    # from the one before took more than eight minutes.
    "spark.sql.constraintPropagation.enabled": "false",
    # A version without rows is a version: it carries what it was made from.
    "spark.databricks.delta.skipRecordingEmptyCommits": "false",
}


def build_session(properties_file: Path | None = None) -> SparkSession:
    """A session with Delta; under spark-submit its settings hold, otherwise `properties_file` starts one here.

    Raises:
        MachineError: if the machine has no Java that Spark can use, or an archive of the program was to start Spark.
    """
    prepare_environment()
    under_spark_submit = "PYSPARK_GATEWAY_PORT" in os.environ
    if not under_spark_submit:
        conf = conf_dir()
        if not isinstance(conf, Path):
            raise MachineError(
                f"{conf}: found settings in an archive, where Spark cannot read them; expected spark-submit to start "
                "this, or crm_spark to be installed: pip install its wheel"
            )
        properties = properties_file or conf / "spark-local.conf"
        os.environ.setdefault("SPARK_CONF_DIR", str(conf))  # log4j2.properties
        os.environ["PYSPARK_SUBMIT_ARGS"] = f"--properties-file '{properties}' pyspark-shell"
    builder = SparkSession.builder.appName("crm_spark")
    for key, value in SETTINGS.items():
        builder = builder.config(key, value)
    spark: SparkSession = builder.getOrCreate()
    # Spark logs the values of rows that fail, which may be personal; the error itself reaches the caller.
    spark.sparkContext.setLogLevel("FATAL")
    for name in ("SQLQueryContextLogger", "DataFrameQueryContextLogger"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return spark


@contextmanager
def sail_session() -> Iterator[SparkSession]:
    """A session on Sail, a native engine that runs in this process and needs no Java; it speaks Spark Connect.

    A process has sessions on Sail or on Spark, not on both.

    Raises:
        MachineError: if Sail is not installed.
    """
    # It would log what it does, and with errors values of rows, which may be personal.
    os.environ["RUST_LOG"] = "off"
    try:
        from pysail.spark import SparkConnectServer
    except ImportError:
        raise MachineError("sail: found no such engine; install it with the extra sail: scripts/setup sail") from None
    server = SparkConnectServer("127.0.0.1", 0)
    server.start(background=True)
    try:
        _, port = server.listening_address
        builder = SparkSession.builder.remote(f"sc://127.0.0.1:{port}")
        for key in ("spark.sql.session.timeZone", "spark.sql.ansi.enabled", "spark.sql.caseSensitive"):
            builder = builder.config(key, SETTINGS[key])
        spark = builder.getOrCreate()
        try:
            yield spark
        finally:
            spark.stop()
    finally:
        server.stop()


def is_sail(spark: SparkSession) -> bool:
    """Whether a session is on Sail: one on Spark runs in this process's own Java."""
    return not isinstance(spark, SparkSession)


def fixed_plans(spark: SparkSession) -> SparkSession:
    """A session beside `spark` that neither merges nor splits partitions: fits see their rows as they are laid out."""
    session = spark.newSession()
    session.conf.set("spark.sql.adaptive.enabled", "false")
    return session
