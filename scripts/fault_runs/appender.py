"""One of several processes that write one lake: it adds a row and publishes, so many times.

`appender.py LAKE ENGINE COMMITS NUMBER`; each number adds other rows.
"""

import sys
from dataclasses import replace
from datetime import UTC, datetime

from pipeline import SALES, session_on

import crm_spark.lake
from crm_spark.endings import one_line_errors
from crm_spark.lake import Lake
from crm_spark.publications import Publication
from crm_spark.tables import declared_rows

_AT = datetime(2026, 10, 1, tzinfo=UTC)
_NOTHING = Publication(0, "", _AT, _AT.date(), _AT, "EUR", "1", {})


def main(folder: str, engine: str, commits: int, number: int) -> None:
    """Add rows that no other process adds."""
    crm_spark.lake.SMALL_COUNT = 0
    with session_on(engine) as spark:
        lake = Lake(spark, folder)
        for sale in range(number * commits, (number + 1) * commits):
            rows = declared_rows(spark, SALES, [(sale, sale, sale)])
            with lake.locked(wait_seconds=600):
                last = lake.last_publication() or _NOTHING
                base = last.tables.get(SALES.name)
                pin = lake.change(SALES, base, rows, None, str(sale)) if base else lake.write(SALES, rows, str(sale))
                number_now = last.publication_no + 1
                lake.publish(
                    replace(last, publication_no=number_now, publication_id=str(sale), tables={SALES.name: pin})
                )


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
