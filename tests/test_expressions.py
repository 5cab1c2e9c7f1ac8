import tomllib
from datetime import datetime
from decimal import Decimal

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from crm_spark.cleaning.expressions import parse_expression
from crm_spark.config import conf_dir
from crm_spark.errors import ConfigError

COLUMNS = ["id", "Amount", "note", "happened", "unit price", "comment", "show"]


def parse(text: str) -> str:
    return parse_expression(text, COLUMNS, "sources.shop.columns.amount")


@pytest.mark.parametrize(
    ("text", "sql"),
    [
        ("id", "`id`"),
        ("amount", "`Amount`"),
        ("`unit price`", "`unit price`"),
        # Words that begin a command, alone.
        ("comment", "`comment`"),
        ("show", "`show`"),
        ("'it''s'", r"'it\'s'"),
        ("cast(id as bigint)", "TRY_CAST(`id` AS BIGINT)"),
        ("try_cast(id as bigint)", "TRY_CAST(`id` AS BIGINT)"),
        ("id::decimal(18, 2)", "TRY_CAST(`id` AS DECIMAL(18, 2))"),
        ("amount + id * 2", "TRY_ADD(`Amount`, TRY_MULTIPLY(`id`, 2))"),
        ("amount / id", "TRY_DIVIDE(`Amount`, `id`)"),
        ("-amount", "TRY_SUBTRACT(0, `Amount`)"),
        ("case when note = 'x' then 1 end", "CASE WHEN `note` = 'x' THEN 1 END"),
    ],
)
def test_an_expression_is_written_anew_with_quoted_columns_and_lenient_operators(text: str, sql: str) -> None:
    assert parse(text) == sql


@pytest.mark.parametrize(
    "text",
    [
        "upper(trim(note))", "coalesce(note, 'none')", "concat(id, '-', note)", "concat_ws('-', id, note)",
        "if(amount > 0, 'plus', 'minus')", "nullif(note, '')", "amount between 1 and 2", "note in ('a', 'b')",
        "note like 'a%'", "not (amount is null)", "id <=> note", "greatest(id, amount)", "round(amount, 2)",
        "substring(note, 1, 3)", "split_part(note, '-', 1)", "regexp_replace(note, '[0-9]', '')",
        "regexp_extract(note, '([a-z]+)', 1)", "lpad(id, 5, '0')", "md5(note)", "sha2(note, 256)",
        "date_trunc('DAY', happened)", "to_utc_timestamp(happened, 'America/New_York')", "timestamp_millis(id)",
        "try_to_timestamp(note, 'yyyy-MM-dd')", "timestamp '2017-01-01 00:00:00'", "cast(null as timestamp)",
        "length(note) + abs(amount)", "try_divide(amount, 2)", "initcap(lower(note))", "id % 2", "id div 2",
        "date_add(happened, 1)",
    ],
)  # fmt: skip
def test_listed_functions_and_operators_run_in_spark(spark: SparkSession, text: str) -> None:
    rows = spark.createDataFrame(
        [(1, Decimal("2.50"), "a-b", datetime(2026, 1, 1), 1)],  # noqa: DTZ001
        "id bigint, Amount decimal(9,2), note string, happened timestamp, `unit price` bigint",
    )
    # Analysis alone tells whether Spark knows what was written; it costs no job.
    assert len(rows.select(F.expr(parse(text))).columns) == 1


@pytest.mark.parametrize(
    "text",
    [
        "java_method('java.lang.System', 'exit', 1)",
        "reflect('java.lang.Runtime', 'getRuntime')",
        "try_reflect('java.lang.Runtime', 'getRuntime')",
        "`reflect`('java.lang.Runtime', 'getRuntime')",
        "upper(reflect('java.lang.System', 'getenv', 'PATH'))",
        "rand()", "randn(1)", "random()", "uuid()", "shuffle(array(1, 2))",
        "current_date", "current_date()", "current_timestamp()", "now()", "localtimestamp()", "unix_timestamp()",
        "current_user()", "current_catalog()", "input_file_name()", "monotonically_increasing_id()",
        "spark_partition_id()", "version()",
        "raise_error('x')", "assert_true(false)", "sleep(1)",
        "(select 1)", "exists (select 1)", "id in (select 1)", "(select max(id) from orders)",
        "with x as (select 1) select * from x", "select id", "drop table orders",
        "sum(amount)", "count(*)", "row_number() over (order by id)", "max(id) over ()", "explode(array(1))", "*",
        "transform(array(id), x -> x + 1)", "aggregate(array(id), 0, (acc, x) -> acc + x)", "x -> x",
        "id; id", "id; drop table orders", "", "   ", "id id2 id3", "cast(id as", "id as other",
        "from_json(note, 'a int')", "array(id)", "map('a', id)", "struct(id)", "note[0]", "id.field",
        "interval 1 day", "$1", ":name", "?", "@variable", "{{ id }}",
        "ai_query('m', note)", "http_get('http://example.org')",
    ],
)  # fmt: skip
def test_what_is_not_listed_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    message = str(caught.value)
    assert message.startswith("sources.shop.columns.amount: found ")
    assert "expected" in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["price", "orders.id", "catalog.orders.id", "`i``d`"])
def test_an_unknown_or_qualified_column_is_named_with_those_the_file_has(text: str) -> None:
    with pytest.raises(
        ConfigError, match="expected one of the file's: Amount, comment, happened, id, note, show, unit price"
    ):
        parse(text)


@pytest.mark.parametrize("text", ["id /* reflect('a') */", "id -- note", "/*+ BROADCAST(t) */ id"])
def test_comments_and_hints_do_not_reach_spark(text: str) -> None:
    assert parse(text) == "`id`"


def test_bad_values_give_null_and_not_the_end_of_the_job(spark: SparkSession) -> None:
    texts = {
        "division": "id / zero",
        "whole_division": "id div zero",
        "remainder": "id % zero",
        "sum": "big + 1",
        "difference": "-big - 2",
        "product": "big * 2",
        "negation": "-small",
        "number": "cast(note as int)",
        "day": "cast(note as date)",
        "money": "cast(nan as decimal(18, 2))",
        "narrow": "cast(big as int)",
        "instant": "try_to_timestamp(note, 'yyyy-MM-dd')",
    }
    rows = spark.createDataFrame(
        [(7, 0, 2**63 - 1, -(2**63), "2017-02-30", float("nan"))],
        "id bigint, zero bigint, big bigint, small bigint, note string, nan double",
    )
    parsed = {name: parse_expression(text, rows.columns, "here") for name, text in texts.items()}
    row = rows.select(*(F.expr(sql).alias(name) for name, sql in parsed.items())).first()
    assert row is not None
    assert row.asDict() == dict.fromkeys(texts)


def test_good_values_are_computed_as_written(spark: SparkSession) -> None:
    texts = {
        "order_of_operators": "(id + 1) * 2 - 3",
        "whole_division": "-id div (1 + 1)",
        "remainder": "id % 4",
        "negation": "-id + 1",
        "text": "concat_ws('-', cast(id as string), note, 'it''s')",
        "choice": "case when id > 5 and not note is null then 'big' else 'small' end",
        "backslash": r"concat(note, '\\')",
    }
    rows = spark.createDataFrame([(7, "n")], "id bigint, note string")
    parsed = {name: parse_expression(text, rows.columns, "here") for name, text in texts.items()}
    row = rows.select(*(F.expr(sql).alias(name) for name, sql in parsed.items())).first()
    assert row is not None
    assert row.asDict() == {
        "order_of_operators": 13,
        "whole_division": -3,
        "remainder": 3,
        "negation": -6,
        "text": "7-n-it's",
        "choice": "big",
        "backslash": "n\\",
    }


def shipped_mappings() -> list[tuple[str, str]]:
    conf = tomllib.loads((conf_dir() / "complete_journey.toml").read_text())
    return [
        (f"sources.{name}.columns.{column}", text)
        for name, source in conf["sources"].items()
        for column, text in source["columns"].items()
    ]


FILE_COLUMNS = [
    "household_id", "age", "income", "household_size", "household_comp", "home_ownership", "marital_status",
    "kids_count", "basket_id", "product_id", "transaction_timestamp", "store_id", "quantity", "sales_value",
    "retail_disc", "coupon_disc", "coupon_match_disc", "campaign_id", "campaign_type", "start_date", "end_date",
    "coupon_upc", "redemption_date", "product_type", "product_category", "department", "brand",
]  # fmt: skip


@pytest.mark.parametrize(("where", "text"), shipped_mappings())
def test_every_shipped_mapping_is_allowed(where: str, text: str) -> None:
    sql = parse_expression(text, FILE_COLUMNS, where)
    assert " CAST(" not in f" {sql}".replace("(CAST(", " CAST(")
