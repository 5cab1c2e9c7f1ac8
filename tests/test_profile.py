"""A site's own rules, and profiles of batches: what rows say as they came, counted by hand."""

import re
from collections import Counter
from pathlib import Path

import pytest
from builders import CURRENCY, ORDER_COLUMNS
from pyspark.sql import SparkSession
from test_cleaning import Shop, accepted, rejected

from crm_spark.checks import Check
from crm_spark.cleaning.rules import SiteRules, check_rules, site_rules
from crm_spark.config import load_config
from crm_spark.errors import ConfigError, ContractError

CONF = """
[sources.shop]
entity = "orders"
format = "csv"
path = "orders.csv"

[sources.shop.columns]
order_id = "order_id"

[rules.a_rule]
entity = "orders"
"""
FILE = """\
order_id,line_no,customer_id,ordered_at,amount,channel
o1,1,c1,2026-10-30 12:00:00,3.50,web
o2,1,c1,2026-10-31 12:00:00,37.50,web
o3,1,c2,2026-10-31 12:00:01,31,store
o4,1,c2,2026-11-01 01:00:00,-4821.99,
o5,1,c3,2026-10-31 18:00:00,0,phone
o6,1,c3,2026-10-31 18:00:00,7,pigeon
bad,1,c3,2020-10-31,much,web
"""


def test_rules_of_a_site_reject_or_warn_and_what_is_unknown_breaks_them(spark: SparkSession, tmp_path: Path) -> None:
    shop = Shop(spark, tmp_path)
    shop.rules = SiteRules(
        CURRENCY,
        reject=(Check("channel_known", "channel IN ('web', 'store', 'phone')"),),
        warn=(Check("amount_below_30", "amount < 30"), Check("is_bought", "amount > 0"), Check("never_broken", "TRUE")),
    )
    cleaned = shop.add({"a.csv": FILE}, columns=ORDER_COLUMNS | {"channel": "channel"}).clean()
    assert accepted(cleaned) == [("o1",), ("o2",), ("o3",), ("o5",)]
    assert sorted(rejected(cleaned).values()) == [
        ["amount_not_decimal"], ["channel_known"], ["channel_known"],
    ]  # fmt: skip
    (profile,) = cleaned.profiles.collect()
    assert [tuple(warning) for warning in profile["warnings"]] == [("amount_below_30", 2), ("is_bought", 1)]

    shop.rules = SiteRules(CURRENCY, reject=(Check("channel_low", "channel < 5"),))
    with pytest.raises(
        ContractError, match=r"clean_orders: CAST_INVALID_INPUT in some rows; where a mapping or a r\S+"
    ) as e:
        shop.clean()
    assert "web" not in str(e.value)


def test_a_profile_tells_what_the_good_rows_of_a_file_say_as_they_came(spark: SparkSession, tmp_path: Path) -> None:
    shop = Shop(spark, tmp_path)
    shop.rules = SiteRules(CURRENCY, arrival_hours=24)  # files are taken in at noon on 2026-11-01
    many = "".join(f"m{number},1,c1,2026-10-31 12:00:00,1,k{number % 60:02}\n" for number in range(90))
    header = FILE.splitlines(keepends=True)[0]
    more = "o1,1,c1,2026-10-30 12:00:00,3.50,web\no7,1,c3,2062-10-31 18:00:00,7,store\n"
    files = {"a.csv": FILE + more, "b.csv": header + many, "c.csv": header}
    cleaned = shop.add(files, columns=ORDER_COLUMNS | {"channel": "channel"}).clean()
    names = {file.batch_id: file.file_name for file in shop.landed}
    profiles = {names[row["batch_id"]]: row for row in cleaned.profiles.collect()}
    assert set(profiles) == {"a.csv", "b.csv"}

    first = profiles["a.csv"]
    # The row that came twice counts twice: it is the file that is told of, not what stands.
    assert (first["entity"], first["good_count"], first["late_count"]) == ("orders", 8, 2)
    # What is yet to happen does not make a file fresh.
    assert f"{first['first_happened_at']} {first['last_happened_at']}" == "2026-10-30 12:00:00 2026-11-01 01:00:00"
    values = Counter({(row["column"], row["value"]): row["row_count"] for row in first["values"]})
    assert values == {
        ("channel", "web"): 3, ("channel", "store"): 2, ("channel", "phone"): 1, ("channel", "pigeon"): 1,
        ("channel", "(none)"): 1,
        ("amount", "3"): 2, ("amount", "30"): 2, ("amount", "-4000"): 1, ("amount", "0"): 1, ("amount", "7"): 2,
        ("quantity", "(none)"): 8, ("discount_amount", "(none)"): 8,
    }  # fmt: skip

    # More than fifty are in buckets.
    of_second = {row["value"]: row["row_count"] for row in profiles["b.csv"]["values"] if row["column"] == "channel"}
    assert all(re.fullmatch("#[0-4][0-9]", value) for value in of_second)
    assert sum(of_second.values()) == 90


def test_a_rule_is_a_condition_over_the_columns_of_its_table(spark: SparkSession, tmp_path: Path) -> None:
    def load(rest: str) -> None:
        path = tmp_path / "site.toml"
        path.write_text(CONF + rest)
        check_rules(spark, load_config(path))

    load('must_hold = "amount < 10000 or customer_id = \'staff\'"\nseverity = "warn"')
    with pytest.raises(
        ConfigError, match=r"rules.a_rule.must_hold: found column 'price', expected one of the table's: "
    ):
        load('must_hold = "price > 0"')
    with pytest.raises(ConfigError, match=r"rules.a_rule.must_hold: found a decimal\S+, expected a condition such as"):
        load('must_hold = "amount"')
    with pytest.raises(ConfigError, match=r"rules.a_rule.must_hold: found a text where a number or a time is needed, "):
        load('must_hold = "channel is null or channel > 5"')
    load('must_hold = "cast(channel as int) > 5"')
    with pytest.raises(ConfigError, match=r"rules.a_rule.must_hold: found 'java_method', expected operators and"):
        load("must_hold = \"java_method('java.lang.System', 'exit', 1) is null\"")
    with pytest.raises(ConfigError, match=r"rules.a_rule.severity: found 'log', input should be 'reject' or 'warn'"):
        load('must_hold = "amount > 0"\nseverity = "log"')
    for taken in ("amount_missing", "ordered_at_plausible", "key_with_other_content"):
        (tmp_path / "other.toml").write_text(CONF.replace("a_rule", taken) + "must_hold = 'amount > 0'")
        with pytest.raises(ConfigError, match=f"rules.{taken}: found a name that a rule of clean_orders has, expected"):
            check_rules(spark, load_config(tmp_path / "other.toml"))
    rules = site_rules(load_config(tmp_path / "site.toml", ["rules.a_rule.severity=warn"]), "orders")
    assert [check.name for check in rules.warn] == ["a_rule"]
