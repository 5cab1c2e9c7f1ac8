from datetime import date

import pytest
from builders import rows_of, utc
from chispa import assert_df_equality
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from crm_spark.checks import Check, broken_names, is_broken
from crm_spark.errors import ContractError
from crm_spark.tables import Column, Table, conform, data_dictionary, summarise

VISITS = Table(
    name="visits",
    comment="One row per visit.",
    key=("visit_id", "visited_on"),
    columns=(
        Column("visit_id", "string", "The visit."),
        Column("visited_on", "date", "Its day."),
        Column("page_count", "bigint", "Pages seen."),
        Column("spent_amount", "decimal(18,4)", "Money spent.", nullable=True),
        Column("email", "string", "Who.", nullable=True, personal=True),
        Column("ingested_at", "timestamp", "When taken in.", nullable=True, volatile=True),
    ),
    checks=(Check("pages_positive", "page_count > 0"), Check("spent_positive", "spent_amount > 0")),
)


def a_visit(number: int = 1, **values: object) -> dict[str, object]:
    return {
        "visit_id": f"v{number}",
        "visited_on": "2026-10-01",
        "page_count": number,
        "spent_amount": "1.50",
        "email": "a@example.org",
        "ingested_at": "2026-10-02 00:00:00",
    } | values


def test_conform_gives_the_declared_columns_in_the_declared_order(spark: SparkSession) -> None:
    visits = rows_of(spark, VISITS, a_visit())
    turned = visits.select(*reversed(VISITS.column_names))
    assert_df_equality(conform(turned, VISITS), visits)


def test_conform_lists_every_difference_at_once(spark: SparkSession) -> None:
    visits = (
        rows_of(spark, VISITS, a_visit())
        .drop("visited_on", "email")
        .withColumn("page_count", F.col("page_count").cast("int"))
        .withColumn("spent_amount", F.col("spent_amount").cast("decimal(18,2)"))
        .withColumn("colour", F.lit("red"))
    )
    with pytest.raises(ContractError) as caught:
        conform(visits, VISITS)
    assert str(caught.value) == (
        "visits: rows do not match the declared table: "
        "column visited_on is missing (expected date); "
        "column email is missing (expected string); "
        "column colour is not declared (found string); "
        "column page_count: found int, expected bigint; "
        "column spent_amount: found decimal(18,2), expected decimal(18,4)"
    )


def test_the_content_hash_depends_on_the_rows_and_not_on_their_order_or_partitions(spark: SparkSession) -> None:
    given = [a_visit(number) for number in range(1, 30)]
    summary = summarise(rows_of(spark, VISITS, *given), VISITS)
    shuffled = rows_of(spark, VISITS, *reversed(given)).repartition(5, "page_count")
    assert summarise(shuffled, VISITS) == summary
    assert summary.row_count == 29
    assert summary.violations == ()


@pytest.mark.parametrize(
    "change",
    [
        {"visit_id": "v2"},
        {"visited_on": "2026-10-02"},
        {"page_count": 2},
        {"spent_amount": "1.5001"},
        {"email": "A@example.org"},
        {"email": None},
    ],
)
def test_any_lasting_value_changes_the_content_hash(spark: SparkSession, change: dict[str, object]) -> None:
    before = summarise(rows_of(spark, VISITS, a_visit()), VISITS)
    after = summarise(rows_of(spark, VISITS, a_visit(**change)), VISITS)
    assert after.content_hash != before.content_hash


def test_a_value_that_moves_to_an_empty_column_changes_the_content_hash(spark: SparkSession) -> None:
    bands = tuple(Column(name, "string", "A band.", nullable=True) for name in ("age_band", "gender"))
    people = Table("people", "One row per person.", ("person_id",), (Column("person_id", "string", "Who."), *bands))
    rows = ({"person_id": "p1", "age_band": "35-54"}, {"person_id": "p1", "gender": "35-54"})
    wrong, right = (summarise(rows_of(spark, people, row), people).content_hash for row in rows)
    assert wrong != right


def test_a_volatile_value_does_not_change_the_content_hash(spark: SparkSession) -> None:
    before = summarise(rows_of(spark, VISITS, a_visit()), VISITS)
    after = summarise(rows_of(spark, VISITS, a_visit(ingested_at="2027-01-01 00:00:00")), VISITS)
    assert after == before


def test_a_row_that_stands_twice_changes_the_content_hash(spark: SparkSession) -> None:
    once = summarise(rows_of(spark, VISITS, a_visit()), VISITS)
    twice = summarise(rows_of(spark, VISITS, a_visit(), a_visit()), VISITS)
    assert twice.content_hash != once.content_hash
    assert twice.violations == ("1 keys (visit_id, visited_on) stand more than once",)


@pytest.mark.parametrize("row_count", [59, 10**9], ids=["in one task", "in many"])
def test_the_content_hash_is_the_exact_sum_of_the_rows_hashes(spark: SparkSession, row_count: int) -> None:
    visits = rows_of(spark, VISITS, *(a_visit(number) for number in range(1, 60))).repartition(3)
    lasting = [column for column in VISITS.columns if not column.volatile]
    values = [F.col(column.name) for column in lasting]
    is_null = [F.col(column.name).isNull() for column in lasting if column.nullable]
    hashes = [row[0] for row in visits.select(F.xxhash64(*values, *is_null)).collect()]
    assert min(hashes) < 0 < max(hashes)
    # More than 64 bits hold: Spark's own sum of these would overflow.
    assert sum(abs(value) for value in hashes) > 2**63
    assert summarise(visits, VISITS, row_count).content_hash == f"59:{sum(hashes)}"


@pytest.mark.parametrize("row_count", [11, 10**9], ids=["in one task", "in many"])
def test_every_violation_is_reported_with_its_number_of_rows(spark: SparkSession, row_count: int) -> None:
    visits = rows_of(
        spark,
        VISITS,
        a_visit(1),
        a_visit(2, visited_on=None),
        a_visit(3, page_count=None),
        a_visit(4, page_count=0, spent_amount="-1"),
        # Unknown is not good: nobody can say that the check holds.
        a_visit(5, spent_amount=None),
        a_visit(6),
        a_visit(6),
        a_visit(6, email=None),
        a_visit(7),
        a_visit(7),
        a_visit(7, visited_on="2026-10-02"),
    )
    assert summarise(visits, VISITS, row_count).violations == (
        "1 rows: visited_on is NULL",
        "1 rows: page_count is NULL",
        "2 rows: pages_positive is broken (page_count > 0)",
        "2 rows: spent_positive is broken (spent_amount > 0)",
        "2 keys (visit_id, visited_on) stand more than once",
    )


def test_no_rows_have_a_summary_too(spark: SparkSession) -> None:
    summary = summarise(rows_of(spark, VISITS), VISITS)
    assert (summary.row_count, summary.content_hash, summary.violations) == (0, "0:0", ())


def test_unknown_counts_as_broken_and_names_come_in_their_order(spark: SparkSession) -> None:
    rows = spark.createDataFrame([(1, 2), (0, -1), (None, 1), (None, None)], "a int, b int")
    checks = (Check("a_positive", "a > 0"), Check("b_positive", "b > 0"))
    actual = rows.select("a", "b", broken_names({check.name: is_broken(check) for check in checks}).alias("broken"))
    expected = spark.createDataFrame(
        [
            (1, 2, []),
            (0, -1, ["a_positive", "b_positive"]),
            (None, 1, ["a_positive"]),
            (None, None, ["a_positive", "b_positive"]),
        ],
        "a int, b int, broken array<string>",
    )
    assert_df_equality(actual, expected, ignore_row_order=True, ignore_nullable=True)


@pytest.mark.parametrize(
    "other",
    [
        Table("visits", "Other words.", VISITS.key, VISITS.columns, VISITS.checks),
        Table("visits", VISITS.comment, ("visit_id",), VISITS.columns, VISITS.checks),
        Table("visits", VISITS.comment, VISITS.key, VISITS.columns[::-1], VISITS.checks),
        Table("visits", VISITS.comment, VISITS.key, VISITS.columns, VISITS.checks[:1]),
    ],
)
def test_the_declaration_hash_follows_what_readers_rely_on(other: Table) -> None:
    same = Table("visits", VISITS.comment, VISITS.key, VISITS.columns, VISITS.checks)
    assert same.declaration_hash == VISITS.declaration_hash
    assert other.declaration_hash != VISITS.declaration_hash


def test_the_dictionary_tells_a_tables_columns_marks_and_checks() -> None:
    lines = data_dictionary([("visiting", [VISITS])]).splitlines()
    assert "## visiting" in lines
    assert "One row per visit. Key: visit_id, visited_on." in lines
    assert "| email | string | yes | Who. *Personal.* |" in lines
    assert "| page_count | bigint | no | Pages seen. |" in lines
    assert "| ingested_at | timestamp | yes | When taken in. *Volatile.* |" in lines
    assert "- `pages_positive`: `page_count > 0`" in lines


def test_builders_turn_texts_into_what_a_column_asks_for(spark: SparkSession) -> None:
    row = rows_of(spark, VISITS, a_visit()).select("visited_on", F.unix_timestamp("ingested_at")).first()
    assert row is not None
    assert tuple(row) == (date(2026, 10, 1), utc("2026-10-02 00:00:00").timestamp())
