"""A preview shows what a mapping would do, without landing or writing anything, and no personal value."""

import sys
from pathlib import Path

import pytest
from builders import CURRENCY, a_source
from pyspark.sql import SparkSession

from crm_spark.checks import Check
from crm_spark.cleaning.preview import PERSONAL, FileColumn, Rejection, preview_source
from crm_spark.cleaning.rules import SiteRules
from crm_spark.cli import main
from crm_spark.errors import ConfigError

FEEDBACK = {
    "feedback_id": "id", "customer_id": "cust", "given_at": "day", "rating": "stars", "text": "comment",
    "channel": "cast(cast(page as date) as string)",
}  # fmt: skip
FILE = """\
id,cust,day,stars,comment,page
f1,c1,2026-10-02,5,so good,1
f2,c1,2026-10-03,9,so bad,2
f3,,2026-10-04,4,,
f4,c2,2026-10-05,four,,
f5,c2,2026-10-06,,,
"""


@pytest.fixture
def feedback(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "day1.csv").write_text(FILE)
    (folder / "day2.csv").write_text(FILE)
    return folder


def test_it_tells_what_came_what_it_becomes_and_what_is_rejected(spark: SparkSession, feedback: Path) -> None:
    source = a_source(feedback, entity="feedback", columns=FEEDBACK)
    rules = SiteRules(CURRENCY, warn=(Check("is_happy", "rating > 5"), Check("says_much", "text IS NOT NULL")))
    preview = preview_source(spark, "survey", source, rules)
    assert (preview.file_name, preview.file_count, preview.row_count, preview.good_count) == ("day1.csv", 2, 5, 1)
    assert (preview.warnings, preview.lacks_known_at) == ({"is_happy": 1}, True)
    assert preview.columns == [
        FileColumn("id", "string", 1.0, ["feedback_id"]),
        FileColumn("cust", "string", 0.8, ["customer_id"]),
        FileColumn("day", "date", 1.0, ["given_at"]),
        FileColumn("stars", "string", 0.8, ["rating"]),
        FileColumn("comment", "string", 0.4, ["text"]),
        FileColumn("page", "bigint", 0.4, ["channel"]),
    ]
    assert preview.shown == {
        "feedback_id": ["f1"], "customer_id": ["c1"], "given_at": ["2026-10-02 00:00:00"], "rating": ["5.0000"],
        "text": [PERSONAL], "channel": ["None"],
    }  # fmt: skip
    # A cast within a mapping gives NULL for what it cannot read: that is told.
    assert preview.lost_counts == {"channel": 1}
    assert preview.rejections == [
        Rejection("rating_or_text", 2, "four"),
        Rejection("customer_id_missing", 1, None),
        Rejection("rating_not_decimal", 1, "four"),
        Rejection("rating_within_1_and_5", 1, "9"),
    ]
    assert "so bad" not in str(preview)
    assert sorted(path.name for path in feedback.parent.rglob("*")) == ["day1.csv", "day2.csv", "in"]


def test_of_a_long_file_the_first_lines_are_looked_at(spark: SparkSession, tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("id,cust,day,stars,comment,page\n" + "f,c1,2026-10-02,5,,\n" * 300_000)
    preview = preview_source(spark, "survey", a_source(path, entity="feedback", columns=FEEDBACK), SiteRules(CURRENCY))
    assert (preview.row_count, preview.good_count, preview.rejections) == (1000, 1000, [])


def test_a_mapping_that_cannot_be_is_named(spark: SparkSession, feedback: Path) -> None:
    source = a_source(feedback, entity="feedback", columns=FEEDBACK | {"rating": "rating"})
    with pytest.raises(ConfigError, match=r"sources.survey.columns.rating: found column 'rating', expected one of"):
        preview_source(spark, "survey", source, SiteRules(CURRENCY))


def test_an_unknown_source_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = tmp_path / "site.toml"
    conf.write_text('[sources.shop]\nentity = "orders"\nformat = "csv"\npath = "a.csv"\ncolumns = {}\n')
    monkeypatch.setattr(sys, "argv", ["crm-spark", "check-source", "--conf", str(conf), "--source", "shops"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--source: found 'shops', expected one of: shop" in capsys.readouterr().err
