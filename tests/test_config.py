import re
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from crm_spark.config import Config, conf_dir, load_config, parse_date, parse_days, parse_instant
from crm_spark.errors import ConfigError

SITE = """\
[sources.orders]
entity = "orders"
format = "csv"
path = "orders.csv"
columns = { order_id = "id" }
"""


JDBC = "format = 'jdbc', url = 'jdbc:postgresql://h:5432/d', table = 'public.t', user_from = 'SHOP_USER'"


def a_source(settings: str) -> str:
    return f"sources.other = {{ entity = 'orders', columns = {{}}, {settings} }}"


def load(folder: Path, text: str = "", *settings: str, **options: object) -> Config:
    path = folder / "site.toml"
    # Keys of the top level stand before the first table.
    path.write_text(f"{text}\n{SITE}")
    return load_config(path, settings, **options)


def the_error(folder: Path, text: str = "", *settings: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_site_replaces_single_keys_of_the_base_settings(tmp_path: Path) -> None:
    config = load(tmp_path, 'currency = "EUR"\nsegments.starts = 2')
    assert config.currency == "EUR"
    assert config.segments.starts == 2
    base = load(tmp_path)
    assert config.segments.cluster_counts == base.segments.cluster_counts
    assert config.features == base.features


def test_settings_come_after_the_file_and_options_after_both(tmp_path: Path) -> None:
    config = load(tmp_path, 'lake = "a"\ncurrency = "EUR"', "lake=b", "currency=CHF", lake="c")
    assert (config.lake, config.currency) == ("c", "CHF")


def test_an_option_that_is_none_says_nothing(tmp_path: Path) -> None:
    assert load(tmp_path, "as_of = 2017-12-31", as_of=None).as_of == date(2017, 12, 31)


def test_a_date_in_toml_is_a_date(tmp_path: Path) -> None:
    assert load(tmp_path, "as_of = 2020-02-29").as_of == date(2020, 2, 29)
    assert load(tmp_path, "", "as_of=2020-02-29").as_of == date(2020, 2, 29)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("currency=EUR", "EUR"),
        ('currency="EUR"', "EUR"),
        ("currency = GBP", "GBP"),
    ],
)
def test_a_bare_word_of_a_setting_is_a_text(tmp_path: Path, setting: str, value: str) -> None:
    assert load(tmp_path, "", setting).currency == value


def test_a_setting_reaches_nested_keys_and_leaves_their_neighbours(tmp_path: Path) -> None:
    config = load(tmp_path, "", "segments.starts=3", "features.windows_days=[28, 56]", "tasks.churn.horizon_days=7")
    assert config.segments.starts == 3
    assert config.segments.seed == load(tmp_path).segments.seed
    assert config.features.windows_days == (28, 56)
    assert config.tasks["churn"].horizon_days == 7
    assert config.tasks["churn"].label == "no_purchase"


def test_a_setting_may_hold_an_equals_sign(tmp_path: Path) -> None:
    assert load(tmp_path, "", "lake=s3://bucket/a=b").lake == "s3://bucket/a=b"


@pytest.mark.parametrize("setting", ["segments.starts", "=3", "", " =3"])
def test_a_setting_without_a_key_or_value_says_what_was_expected(tmp_path: Path, setting: str) -> None:
    assert the_error(tmp_path, "", setting) == (
        f"--set: found {setting!r}, expected key=value such as segments.starts=3"
    )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("curency = 'USD'", ("curency: found an unknown key", "expected")),
        ("segments.start = 3", ("segments.start: found an unknown key",)),
        ("segments.starts = 'three'", ("segments.starts: found 'three'", "valid integer")),
        ("segments.starts = true", ("segments.starts: found True", "valid integer")),
        ("segments.starts = 0", ("segments.starts: found 0", "greater than or equal to 1")),
        ("lake = 3", ("lake: found 3", "valid string")),
        ("currency = 'usd'", ("currency: found 'usd'", "pattern")),
        ("business_time_zone = 'Mars/Base'", ("business_time_zone: found 'Mars/Base', expected the name of",)),
        ("features.windows_days = [28, 7]", ("features: expected windows_days in rising order",)),
        ("features.windows_days = [28, 28]", ("features: expected windows_days in rising order",)),
        ("features.windows_days = [7, 14]", ("features: expected 28 among windows_days",)),
        ("features.windows_days = []", ("features.windows_days: found []", "at least 1 item")),
        ("features.windows_days = [0, 28]", ("features.windows_days.0: found 0", "greater than or equal to 1")),
        (
            "rfm.segments = [{name = 'A', recency = [5, 5]}, {name = 'B', recency = [5, 5], monetary = [2, 3]}]",
            ("rfm: expected scores of which 'B' is the first segment",),
        ),
        ("rfm.segments = [{name = 'A', recency = [4, 3]}]", ("expected the lowest score before the highest",)),
        (
            "value = {purchase = {weight = 0}, service = {weight = 0}, feedback = {weight = 0}}",
            ("expected a part of [value] with a weight above 0",),
        ),
        ("rfm.segments = [{name = 'Needs attention', recency = [5, 5]}]", ("rfm: expected each segment under a name",)),
        ("rfm.segments = [{name = 'A', recency = [0, 5]}]", ("rfm.segments.0.recency.0: found 0",)),
        ("as_of = '2017-12-31'", ("as_of: found '2017-12-31'", "valid date")),
        ("as_of = 2017-02-30", ("found 'as_of', expected a configuration in TOML",)),
        ("as_of = 2017-12-31T10:00:00", ("as_of: found", "valid date")),
        ("lake = ", ("expected a configuration in TOML",)),
        ("lake = 'a'\nlake = 'b'", ("expected a configuration in TOML",)),
        ("imputation.gender = { by = 'mean' }", ("imputation.gender.by: found 'mean', input should be 'constant',",)),
        ("imputation.gender.by = 'constant'", ("imputation.gender: expected a value beside by",)),
        ("imputation.gender = { by = 'constant', value = '' }", ("imputation.gender.value", "at least 1 character")),
        ("imputation.recency_days = { by = 'constant', value = nan }", ("imputation.recency_days.value", "finite")),
        ("imputation.recency_days = { by = 'constant', value = true }", ("imputation.recency_days.value",)),
        ("imputation.recency_days.by = 'feature'", ("imputation.recency_days: expected feature beside by",)),
        ("imputation.recency_days = { by = 'median', feature = 'a' }", ("expected feature beside by", "there alone")),
        ("imputation.recency_days = { by = 'feature', feature = 'a', value = 1 }", ("expected no value beside by",)),
        ("outliers.net_amount.low = 0.1", ("outliers.net_amount.by: found nothing",)),
        ("outliers.net_amount.by = 'quantile'", ("outliers.net_amount: expected low, high or both",)),
        ("outliers.net_amount = { by = 'quantile', low = 0.1, above = 3 }", ("low, high or both", "and no above")),
        ("outliers.net_amount = { by = 'quantile', low = 0.9, high = 0.1 }", ("expected low to be less than high",)),
        ("outliers.net_amount = { by = 'quantile', high = 1.1 }", ("net_amount.high: found 1.1", "less than or equal")),
        ("outliers.net_amount.by = 'robust_z'", ("outliers.net_amount: expected above beside by",)),
        ("outliers.net_amount = { by = 'robust_z', above = 3, low = 0.1 }", ("and neither low nor high",)),
        ("outliers.net_amount = { by = 'robust_z', above = 0 }", ("net_amount.above: found 0", "greater than 0")),
        ("tasks.churn.cap_outliers = 'yes'", ("tasks.churn.cap_outliers: found 'yes'", "valid boolean")),
        ("sources.other.entity = 'orders'", ("sources.other.format: found nothing, expected a value",)),
        (a_source("format = 'csv'"), ('sources.other: expected path beside format = "csv"',)),
        (a_source("format = 'csv', path = 'a', overlap = 3"), ('expected overlap beside format = "jdbc" alone',)),
        (a_source("format = 'delta', path = 'a', package = 'b'"), ('expected no package beside format = "delta"',)),
        (a_source(f"{JDBC}, path = 'a'"), ('sources.other: expected no path or package beside format = "jdbc"',)),
        (a_source("format = 'jdbc', url = 'jdbc:postgresql://h/d'"), ("sources.other: expected table and user_from",)),
        (a_source(f"{JDBC}, overlap = 3"), ("sources.other: expected watermark beside overlap",)),
        (a_source(f"{JDBC}, partitions = 3"), ("sources.other: expected partition_by and partitions, 2 or more",)),
        (a_source(f"{JDBC}, watermark = 'a\"b'"), ("sources.other.watermark: found", "match pattern")),
        (a_source(f"{JDBC}, watermark = 'at'"), ("expected sequence_by in sources.orders, too, as", "or a watermark")),
        (
            "sources.other = { entity = 'orders', format = 'csv', path = 'a', columns = {}, sequence_by = 'n' }",
            ("toml: expected sequence_by in sources.orders, too, as other sources of orders have it",),
        ),
    ],
)
def test_a_fault_names_the_key_what_was_found_and_what_was_expected(
    tmp_path: Path, text: str, parts: tuple[str, ...]
) -> None:
    message = the_error(tmp_path, text)
    assert str(tmp_path / "site.toml") in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "secret",
    [
        "url = 'jdbc:postgresql://me:s3cret@h/d'",
        "url = 'jdbc:postgresql://h/d?ssl=true&password=s3cret'",
        "url = 'jdbc:postgresql://h/d?USER=s3cret'",
        "url = 's3cret'",
        "user_from = 's3cret'",
        "password_from = 's3cret'",
        "password = 's3cret'",
    ],
)
def test_a_secret_in_a_configuration_is_refused_and_not_told(tmp_path: Path, secret: str) -> None:
    key = secret.partition(" =")[0]
    message = the_error(tmp_path, a_source(f"{re.sub(f'{key} = [^,]*, ', '', f'{JDBC}, ')}{secret}"))
    assert key in message
    assert "s3cret" not in message
    message = the_error(tmp_path, "password = s3cret")
    assert "found 'password', expected a configuration in TOML" in message
    assert "s3cret" not in message


def test_a_watermark_is_the_order_of_versions_unless_another_is_given(tmp_path: Path) -> None:
    watermark = f"{JDBC}, watermark = 'changed at'".replace("d', table", "d?sslmode=require', table")
    first = load(tmp_path, a_source(watermark), "sources.orders.sequence_by=id").sources["other"]
    assert (first.sequence_by, first.overlap, first.landed_format) == ("`changed at`", 60, "parquet")
    given = load(tmp_path, a_source(f"{watermark}, sequence_by = 'no'"), "sources.orders.sequence_by=id")
    assert given.sources["other"].sequence_by == "no"


def test_a_setting_with_an_impossible_date_names_its_key(tmp_path: Path) -> None:
    assert "as_of: found '2017-02-30', input should be a valid date" in the_error(tmp_path, "", "as_of=2017-02-30")


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    message = the_error(tmp_path, "lake = 3\nsegments.starts = 0\ncolour = 'red'")
    assert all(key in message for key in ("lake: found 3", "segments.starts: found 0", "colour: found an unknown key"))


def test_a_table_in_the_place_of_a_value_is_named(tmp_path: Path) -> None:
    assert "lake: input should be a valid string" in the_error(tmp_path, "", "lake.name=x").lower()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "absent.toml"
    with pytest.raises(ConfigError, match=r"absent.toml: found no such file, expected a configuration in TOML"):
        load_config(path)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_bytes(b"lake = '\xff'")
    with pytest.raises(ConfigError, match=r"site.toml: expected a configuration in TOML"):
        load_config(path)


def test_a_configuration_without_sources_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text("")
    with pytest.raises(ConfigError, match=r"sources: found nothing, expected a value"):
        load_config(path)


def test_the_shipped_configuration_loads() -> None:
    config = load_config(conf_dir() / "complete_journey.toml")
    assert config.as_of == date(2017, 12, 31)
    assert {source.entity for source in config.sources.values()} == {
        "customers", "orders", "campaigns", "contacts", "responses", "products",
    }  # fmt: skip


def test_a_configuration_cannot_be_changed(tmp_path: Path) -> None:
    config = load(tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        config.lake = "elsewhere"


def test_a_date_of_the_calendar_is_read() -> None:
    assert parse_date("2020-02-29", "--as-of") == date(2020, 2, 29)


@pytest.mark.parametrize("text", ["2017-02-30", "2019-02-29", "31.12.2017", "yesterday", "", "2017-12-31T00:00"])
def test_an_impossible_date_names_its_option_and_what_was_found(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_date(text, "--as-of")
    assert str(caught.value) == f"--as-of: found {text!r}, expected a date such as 2017-12-31"


def test_an_instant_says_how_far_from_utc_it_is() -> None:
    assert parse_instant("2026-03-01T06:00:00+01:00", "--known-as-of") == datetime(2026, 3, 1, 5, tzinfo=UTC)
    assert parse_instant("2026-03-01T06:00Z", "--known-as-of") == datetime(2026, 3, 1, 6, tzinfo=UTC)
    for text in ("2026-03-01T06:00:00", "2026-03-01", "yesterday"):
        with pytest.raises(ConfigError, match=rf"^--known-as-of: found '{text}', expected an instant such as"):
            parse_instant(text, "--known-as-of")


def test_cut_offs_lie_so_many_days_apart() -> None:
    first = date(2026, 2, 20)
    assert parse_days(first, date(2026, 3, 7), "7d") == [first, date(2026, 2, 27), date(2026, 3, 6)]
    assert parse_days(first, first, "1d") == [first]
    with pytest.raises(ConfigError, match=r"^--to: found 2026-02-19, expected a date from 2026-02-20 on"):
        parse_days(first, date(2026, 2, 19), "7d")
    for every in ("7", "0d", "d", "-7d", "7 days"):
        with pytest.raises(ConfigError, match=rf"^--every: found '{every}', expected a number of days"):
            parse_days(first, first, every)
