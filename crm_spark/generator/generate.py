"""Generated files: what a shop's systems might export, the settings to take it in, and the truth to compare with."""

import math
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from pyarrow import fs
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from crm_spark.errors import ConfigError
from crm_spark.generator.dirt import TWIN, plant_errors
from crm_spark.generator.draws import Draws
from crm_spark.generator.exports import Export, build_exports, settings
from crm_spark.generator.shop import Plan, build_customers, build_feedback, build_orders

SETTINGS_FILE = "shop.toml"
_LINES_A_FILE = 400_000


def generate(spark: SparkSession, plan: Plan, out: str, say: Callable[[str], None]) -> None:
    """Write the files of all entities below `out`, and beside them how to take them in and what is true of them.

    `shop.toml` is the configuration, `truth` has a row per customer and one per comment (what they truly are), and
    `manifest` a row per row with a planted error: export, file_name, error, twin_no and the row's key before it.

    Raises:
        ConfigError: if there is something at `out` already.
    """
    file_system, folder = fs.FileSystem.from_uri(out if "://" in out else str(Path(out).absolute()))
    if file_system.get_file_info(fs.FileSelector(folder, allow_not_found=True)):
        raise ConfigError(f"--out: found files in {out}, expected a new or empty folder")
    place = out.rstrip("/") if "://" in out else folder
    lines_file_count = max(2, math.ceil(plan.lines / _LINES_A_FILE))
    customers = build_customers(spark, plan).persist()
    orders = build_orders(customers, plan).persist()
    for export in build_exports(customers, orders, plan):
        file_count = export.file_count or lines_file_count
        rows = plant_errors(export.rows, export.dirt, export.name, plan.dirt, Draws(plan.seed))
        # A second telling comes in the next file; after the last, in the first.
        own = F.floor(F.col("day") * file_count / plan.days)
        rows = rows.withColumn("file_no", ((own + F.col(TWIN)) % file_count).cast("int"))
        _write_files(export, rows, file_count, f"{place}/.writing")
        _name_files(file_system, f"{folder}/.writing", f"{folder}/{export.name}", export)
        _write_manifest(export, rows, f"{place}/manifest")
        say(f"{export.name}: {file_count} {'file' if file_count == 1 else 'files'}")
    customers.drop("service_rate", "response_share").write.parquet(f"{place}/truth/customers")
    build_feedback(orders, plan).select("id", "sentiment", "language").write.parquet(f"{place}/truth/feedback")
    with file_system.open_output_stream(f"{folder}/{SETTINGS_FILE}") as stream:
        stream.write(settings(place).encode())
    for rows in (orders, customers):
        rows.unpersist()


def _write_files(export: Export, rows: DataFrame, file_count: int, staging: str) -> None:
    """Write one file a `file_no`, rows in the order of their days and keys."""
    if export.suffix == "parquet":
        columns, write = export.columns, "parquet"
    else:
        columns, write = ["value"], "text"
        rows = rows.withColumns({"value": export.line(), "is_header": F.lit(False)})
        if export.header:
            headers = rows.sparkSession.range(file_count).select(
                F.col("id").cast("int").alias("file_no"),
                F.lit(export.header).alias("value"),
                F.lit(True).alias("is_header"),
            )
            rows = rows.unionByName(headers, allowMissingColumns=True)
    order = [F.desc("is_header")] if write == "text" else []
    laid_out = rows.repartition(file_count, "file_no").sortWithinPartitions("file_no", *order, "day", "key", TWIN)
    compression = {"compression": "gzip"} if export.suffix.endswith(".gz") else {}
    writer = laid_out.select(*columns, "file_no").write.partitionBy("file_no").options(**compression)
    writer.format(write).save(staging)


def _name_files(file_system: fs.FileSystem, staging: str, folder: str, export: Export) -> None:
    file_system.create_dir(folder)
    for info in file_system.get_file_info(fs.FileSelector(staging, recursive=True)):
        path = PurePosixPath(info.path)
        if info.is_file and path.name.startswith("part-"):
            number = int(path.parent.name.removeprefix("file_no="))
            file_system.move(info.path, f"{folder}/{export.name}_{number:04}.{export.suffix}")
    file_system.delete_dir(staging)


def _write_manifest(export: Export, rows: DataFrame, path: str) -> None:
    file_name = F.format_string(f"{export.name}_%04d.{export.suffix}", "file_no")
    planted = rows.where("error IS NOT NULL").select(
        F.lit(export.name).alias("export"), file_name.alias("file_name"), "error", TWIN, "key"
    )
    planted.coalesce(1).write.mode("append").parquet(path)
