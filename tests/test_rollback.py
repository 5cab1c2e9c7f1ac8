"""A refresh after a rollback goes on from what was built last: no row is doubled, none is lost."""

from datetime import date
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from shop import RUN_AT, refreshed, write_shop
from test_nightly import FIRST, HEADER, SECOND

from crm_spark.publications import Publication, PublishedLake, roll_back
from crm_spark.refresh import STAGES

THIRD = date(2025, 10, 3)


def test_a_refresh_after_a_rollback_publishes_the_new_content_again_and_goes_on_from_it(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Later stages make their tables from these; ledgers alone grow by what is added to them.
    kept = ("sources", "cleaning", "facts")
    monkeypatch.setattr("crm_spark.refresh.STAGES", {name: STAGES[name] for name in kept})
    conf, lake = write_shop(tmp_path / "files"), PublishedLake(str(tmp_path / "lake"))
    shop = conf.read_text()

    def night(as_of: date, *lines: str) -> Publication:
        conf.write_text(shop.replace(f"as_of = {FIRST}", f"as_of = {as_of}"))
        if lines:
            (tmp_path / "files" / f"orders_{as_of}.csv").write_text(HEADER + "\n".join(lines) + "\n")
        done, _ = refreshed(spark, conf, Path(lake.uri), RUN_AT + (as_of - FIRST), last_stage="facts")
        assert done.publication is not None
        return done.publication

    def counted(publication: Publication) -> tuple[int, ...]:
        """Order lines, and those that the days and the products of customers tell of."""
        questions = {
            "fact_order_lines": "count(*)",
            "fact_customer_days": "sum(line_count) + sum(return_line_count)",
            "fact_customer_products": "sum(line_count)",
        }
        answers = (
            lake.query(f"SELECT {question} AS n FROM {name}", publication.tables[name])
            for name, question in questions.items()
        )
        return tuple(row["n"] for (row,) in answers)

    first = night(FIRST)
    second = night(SECOND, "n-1,1,c1,2025-10-01 12:00:00,p1,2,11.00", "n-1,2,c-new,2025-10-01 12:00:00,p2,1,7.00")
    line_count = counted(first)[0]
    assert (counted(first), counted(second)) == ((line_count,) * 3, (line_count + 2,) * 3)

    back = roll_back(lake, None, RUN_AT)
    assert (back.publication_no, back.publication_id, back.tables) == (3, first.publication_id, first.tables)

    again = night(SECOND)
    assert (again.publication_no, again.publication_id, again.tables) == (4, second.publication_id, second.tables)

    # Without a refresh between, as well.
    roll_back(lake, "1", RUN_AT)
    third = night(THIRD, "n-2,1,c1,2025-10-02 12:00:00,p1,1,5.00")
    assert third.publication_no == 6
    assert counted(third) == (line_count + 3,) * 3
