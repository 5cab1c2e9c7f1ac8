"""Order lines from CSV to clean tables: crm_spark, DuckDB and pandas; and the next batch in a small and a large lake.

Each side is a process of its own. What crm_spark and DuckDB made is compared, by a hash of all rows, before any time is
told; pandas, which does the same in memory, is held against them by its number of rows.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import duckdb
from measuring import Measured, parser_of, run_side, say, tell

_NEXT_LINES = 100_000
_COLUMNS = {
    "order_id": "receipt",
    "line_no": "CAST(position AS BIGINT)",
    "customer_id": "card",
    "ordered_at": "CAST(sold_at AS TIMESTAMP)",
    "product_id": "article",
    "store_id": "store",
    "channel": "channel",
    "quantity": "CAST(units AS DECIMAL(18, 4))",
    "amount": "CAST(paid AS DECIMAL(18, 4))",
    "discount_amount": "CAST(rebate AS DECIMAL(18, 4))",
    "returned_order_id": "return_of",
    "currency": "currency",
}


def main() -> None:
    """Run all sides, compare, and print a line each."""
    given = parser_of(__doc__, lines=10_000_000).parse_args()
    if given.side:
        _SIDES[given.side](*given.paths)
        return
    with tempfile.TemporaryDirectory(prefix="crm_spark_bench_") as scratch:
        work = Path(scratch)
        files = _generated(given.data or work / "data", given.lines)
        small = work / "small"
        small.mkdir()
        for file in files[: max(1, len(files) // 10)]:
            (small / file.name).symlink_to(file)
        large = work / "large"
        large.mkdir()
        for file in files:
            (large / file.name).symlink_to(file)
        _compare_engines(large, work, given.rounds)
        _compare_lakes(small, large, work)


def _generated(folder: Path, lines: int) -> list[Path]:
    shop = folder / f"shop_{lines}"
    marker = folder / f"shop_{lines}.done"
    if not marker.exists():
        say(f"generating {lines:,} order lines (kept in {folder})")
        shutil.rmtree(shop, ignore_errors=True)
        command = [sys.executable, "-c", "from crm_spark.cli import main; main()", "generate"]
        options = {
            "--out": shop,
            "--lines": lines,
            "--customers": max(100, lines // 80),
            "--days": 365,
            "--seed": 1,
            "--dirt": 0,
        }
        for option, value in options.items():
            command += [option, str(value)]
        subprocess.run(command, check=True)
        marker.touch()
    return sorted((shop / "orders").glob("*.csv"))


def _compare_engines(files: Path, work: Path, rounds: int) -> None:
    best: dict[str, Measured] = {}
    for number in range(rounds):
        for side in _SIDES if number == 0 else ("crm_spark", "duckdb"):
            out = work / side
            shutil.rmtree(out, ignore_errors=True)
            measured = run_side(__file__, side, files, out)
            best[side] = min(measured, best.get(side, measured), key=lambda run: run.seconds["work"])
        if number == 0:
            say(f"\n{_compare(work):,} rows, equal in crm_spark and DuckDB; none rejected")
    say(f"{'side':<12}{'seconds':>9}{'start':>8}{'peak MiB':>10}{'ratio':>8}")
    for side, measured in best.items():
        work_seconds, start_seconds = measured.seconds["work"], measured.seconds["start"]
        ratio = work_seconds / best["duckdb"].seconds["work"]
        say(f"{side:<12}{work_seconds:>9.1f}{start_seconds:>8.1f}{measured.peak_mib:>10,.0f}{ratio:>8.2f}")
    ratio = best["crm_spark"].seconds["work"] / best["duckdb"].seconds["work"]
    say(f"crm_spark takes {ratio:.2f} times DuckDB's time")


def _compare_lakes(small: Path, large: Path, work: Path) -> None:
    """The same next batches, after a tenth of the lines and after all of them: of later days, and with random keys."""
    last = sorted(large.glob("*.csv"))[-1].resolve()
    with last.open() as lines:
        header, *rest = lines
    tail = rest[-_NEXT_LINES:]
    later = [line.replace("2025", "2026") for line in tail]
    batches = {"later days": later, "random keys": [hashlib.md5(line.encode()).hexdigest() + line for line in later]}
    seconds: dict[str, list[float]] = {kind: [] for kind in batches}
    for name, files in (("small", small), ("large", large)):
        lake = work / f"lake_{name}"
        run_side(__file__, "crm_spark", files, lake)
        for number, (kind, lines) in enumerate(batches.items()):
            (files / f"orders_next_{number}.csv").write_text(header + "".join(lines))
            seconds[kind].append(run_side(__file__, "crm_spark", files, lake).seconds["work"])
            say(f"next {len(lines):,} lines of {kind} in the {name} lake: {seconds[kind][-1]:.1f} s")
    for kind, (small_seconds, large_seconds) in seconds.items():
        ratio = large_seconds / small_seconds
        say(f"a batch of {kind} costs {ratio:.2f} times as much in the lake that holds ten times as much")


def _compare(work: Path) -> int:
    """The number of rows, if both sides made the same."""
    from deltalake import DeltaTable

    clean = DeltaTable(str(work / "crm_spark" / "clean_orders")).file_uris()
    rejected = DeltaTable(str(work / "crm_spark" / "rejected_orders")).file_uris()
    names = ", ".join(_COLUMNS)
    listed = ", ".join(f"'{path}'" for path in clean)
    without_zone = names.replace("ordered_at", "CAST(ordered_at AS TIMESTAMP) AS ordered_at")
    ours = f"(SELECT {without_zone} FROM read_parquet([{listed}]))"
    theirs = f"(SELECT {names} FROM read_parquet('{work}/duckdb/*.parquet'))"
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    hashes = [
        connection.execute(f"SELECT count(*), sum(hash({names})) FROM {side}").fetchone() for side in (ours, theirs)
    ]
    (pandas_count,) = connection.execute(f"SELECT count(*) FROM '{work}/pandas/clean.parquet'").fetchone()
    refused = sum(connection.execute(f"SELECT count(*) FROM '{path}'").fetchone()[0] for path in rejected)
    if hashes[0] != hashes[1] or pandas_count != hashes[0][0] or refused:
        sys.exit(
            f"results differ: crm_spark {hashes[0]}, DuckDB {hashes[1]}, pandas {pandas_count} rows, rejected {refused}"
        )
    return int(hashes[0][0])


def _by_crm_spark(files: str, out: str, told: str) -> None:
    from rich.console import Console

    from crm_spark.config import load_config
    from crm_spark.progress import RunProgress
    from crm_spark.refresh import refresh
    from crm_spark.session import build_session

    began = time.monotonic()
    spark = build_session()
    started = time.monotonic()
    conf = Path(f"{out}.toml")
    settings = (Path(files).resolve() / "orders_0000.csv").resolve().parent.parent / "shop.toml"
    text = settings.read_text()
    orders = text[text.index("[sources.orders]") :].partition("\n[sources.service_events]")[0]
    conf.write_text(f'as_of = 2027-01-01\ncurrency = "EUR"\n{orders}')
    config = load_config(conf, lake=out)
    moved = config.model_copy(
        update={"sources": {"orders": config.sources["orders"].model_copy(update={"path": files})}}
    )
    with RunProgress(Console(stderr=True)) as progress:
        refresh(spark, moved, datetime.now(UTC), progress, last_stage="cleaning")
    tell(told, work=time.monotonic() - started, start=started - began)
    spark.stop()


def _by_duckdb(files: str, out: str, told: str) -> None:
    Path(out).mkdir()
    began = time.monotonic()
    values = ", ".join(f"{expression} AS {name}" for name, expression in _COLUMNS.items())
    # The newest of each key, as cleaning settles: here all are of one time, so the greatest text.
    query = (
        f"SELECT * FROM (SELECT {values} FROM read_csv('{files}/*.csv', all_varchar = true, header = true)) "
        "QUALIFY row_number() OVER (PARTITION BY order_id, line_no ORDER BY amount DESC, ordered_at) = 1"
    )
    duckdb.connect().execute(f"COPY ({query}) TO '{out}/clean.parquet' (FORMAT parquet)")
    tell(told, work=time.monotonic() - began, start=0)


def _by_pandas(files: str, out: str, told: str) -> None:
    import pandas as pd

    Path(out).mkdir()
    began = time.monotonic()
    parts = (pd.read_csv(path, dtype="string[pyarrow]") for path in sorted(Path(files).glob("*.csv")))
    rows = pd.concat(parts, ignore_index=True)
    rows["position"] = rows["position"].astype("int64")
    rows["sold_at"] = pd.to_datetime(rows["sold_at"])
    for name in ("units", "paid", "rebate"):
        rows[name] = pd.to_numeric(rows[name])
    rows = rows.sort_values("paid").drop_duplicates(["receipt", "position"], keep="last")
    rows.to_parquet(f"{out}/clean.parquet", index=False)
    tell(told, work=time.monotonic() - began, start=0)


_SIDES = {"crm_spark": _by_crm_spark, "duckdb": _by_duckdb, "pandas": _by_pandas}

if __name__ == "__main__":
    main()
