import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import product
from string import Formatter
from typing import Any

import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

from crm_spark.errors import ConfigError
from crm_spark.marts.tables import (
    MART_DATA_QUALITY,
    MART_DEMOGRAPHICS,
    MART_DEPARTMENT_WEEKS,
    MART_MODEL_DECILES,
    MART_MODEL_QUALITY,
    MART_MODEL_RULES,
    MART_RFM_CELLS,
    MART_SEGMENT_PROFILES,
)
from crm_spark.report.build import Headline, ReportData, render_report
from crm_spark.report.charts import (
    FEWEST_CUSTOMERS_SHOWN,
    TOP_DEPARTMENTS,
    department_demand,
    in_natural_order,
    rfm_heat_map,
    segment_shares,
    weekly_revenue,
)
from crm_spark.report.sections import Section, build_cards, build_sections
from crm_spark.report.texts import LANGUAGES, load_texts, read_catalogue
from crm_spark.tables import Table

HOSTILE = "</script><script>alert(1)</script>%{x}"
INCOMES = ("Under 15K", "15-24K", "25-34K", "35-49K", "50-74K", "75-99K", "100-124K", "125-149K", "250K+")
AGES = ("19-24", "25-34", "35-44", "45-54", "55-64", "65+")
MODELS = ("logistic_regression", "decision_tree", "baseline_recency", "baseline_frequency", "baseline_majority")


def a_report(**changes: Any) -> ReportData:
    """A report of realistic data; `changes` replace whole fields."""
    defaults = {
        "headline": a_headline(),
        "segment_profiles": segment_profiles(),
        "rfm_cells": rfm_cells(),
        "demographics": demographics(),
        "department_weeks": department_weeks(),
        "model_quality": model_quality(),
        "model_deciles": model_deciles(),
        "model_rules": model_rules(),
        "data_quality": data_quality(),
        "as_of": date(2017, 12, 31),
        "publication_no": 3,
        "publication_id": "9f2c" * 16,
        "published_at": datetime(2026, 11, 20, 8, 5, tzinfo=UTC),
        "crm_spark_version": "0.1.0",
        "currency": "USD",
    }
    return ReportData(**(defaults | changes))


def a_headline(**changes: Any) -> Headline:
    defaults = {
        "customer_count": 2469,
        "buyer_count": 2451,
        "active_count_28d": 2098,
        "net_amount_28d": 376_512.4,
        "net_amount": 4_593_012.75,
        "scored_count": 2451,
        "at_risk_count": 341,
        "at_risk_amount": 187_220.1,
    }
    return Headline(**(defaults | changes))


def frame_of(mart: Table, *rows: tuple[Any, ...]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=mart.column_names)


def segment_profiles(*names: str) -> pd.DataFrame:
    shares = {
        "Champions": (0.123, 0.462), "Loyal regulars": (0.201, 0.27), "Big-basket occasionals": (0.152, 0.14),
        "Occasional light buyers": (0.305, 0.081), "Once valuable, now rare": (0.114, 0.042),
        "Nearly lost": (0.098, 0.005), "No purchase yet": (0.007, 0.0),
    }  # fmt: skip
    rows = []
    for name in names or shares:
        customers, amounts = shares.get(name, (0.1, 0.1))
        has_bought = name != "No purchase yet"
        rows.append((
            name, round(2469 * customers), customers, 4_593_012.75 * amounts, amounts,
            10 / (amounts + 0.03) if has_bought else None, 400 * amounts, 1860 * amounts / customers,
            30.21 if has_bought else None, 0.153 if has_bought else None, 30.4 * amounts / customers,
            0.31 if has_bought else None,
        ))  # fmt: skip
    return frame_of(MART_SEGMENT_PROFILES, *rows)


def rfm_cells() -> pd.DataFrame:
    rows = [
        (r, f, 20 + 15 * r * f + 40 * (r == f), 1500.5 * r * f * f, 1 - r / 6)
        for r, f in product(range(1, 6), repeat=2)
        if (r, f) != (1, 5)
    ]
    return frame_of(MART_RFM_CELLS, *rows)


def demographics() -> pd.DataFrame:
    rows = [
        (age, income, (7 * i + 11 * j) % 30 + 1, 900 + 140.5 * i + 250 * (3 - abs(3 - j)))
        for (i, income), (j, age) in product(enumerate(INCOMES), enumerate(AGES))
        if (i + j) % 7
    ]
    return frame_of(MART_DEMOGRAPHICS, *rows)


def department_weeks(*names: str, weeks: int = 52) -> pd.DataFrame:
    monday = date(2016, 12, 26)
    rows = [
        (
            name,
            monday + timedelta(weeks=week),
            7 if 0 < week < weeks else 3,
            40_000 / (1 + rank) ** 1.3 * (1 + 0.15 * math.sin(week / 4 + rank)) * (1 if 0 < week < weeks else 0.4),
            900 // (1 + rank),
        )
        for rank, name in enumerate(
            names
            or (
                "GROCERY", "DRUG GM", "PRODUCE", "MEAT", "MEAT-PCKGD", "DELI", "PASTRY", "NUTRITION", "FUEL", "(none)",
            )
        )
        for week in range(weeks + 1)
    ]  # fmt: skip
    return frame_of(MART_DEPARTMENT_WEEKS, *rows)


def model_quality() -> pd.DataFrame:
    metrics = {
        "row_count": (2400.0,) * 5,
        "event_share": (0.139,) * 5,
        "auc": (0.871, 0.842, 0.815, 0.78, 0.5),
        "average_precision": (0.552, 0.5, 0.43, 0.401, 0.139),
        "accuracy": (0.893, 0.889, 0.861, 0.861, 0.861),
        "top_decile_lift": (5.021, 4.7, 3.9, 3.1, 1.0),
    }
    rows = [
        (task, model, fold, metric, value)
        for task, fold in product(("campaign_response", "churn"), ("train", "test"))
        for metric, values in metrics.items()
        for model, value in zip(MODELS, values, strict=True)
    ]
    return frame_of(MART_MODEL_QUALITY, *rows)


def model_deciles() -> pd.DataFrame:
    rows = []
    for strength, model in enumerate(reversed(MODELS)):
        for decile in range(1, 11) if strength else [1]:
            share = 0.139 * (1 + strength * 0.25 * (5.5 - decile) ** 3 / 22.8) if strength else 0.139
            share = min(max(share, 0.004), 0.95)
            count = 240 if strength else 2400
            rows.append(
                ("churn", model, "test", decile, count, round(count * share), share * 1.06, share, share / 0.139)
            )
    return frame_of(MART_MODEL_DECILES, *rows)


def model_rules() -> pd.DataFrame:
    rows = [
        (
            "churn",
            1,
            "recency_days is above 63 and order_count_91d is at most 1 and tenure_days is above 200",
            0.91,
            310,
        ),
        ("churn", 2, "recency_days is between 28 and 63 and net_amount_182d is at most 120.50", 0.62, 402),
        ("churn", 3, "recency_days is at most 28 and order_count_28d is at most 2", 0.21, 2010),
        ("churn", 4, "recency_days is at most 28 and order_count_28d is above 2", 0.02, 4521),
        ("campaign_response", 1, "response_count is above 0", 0.3, 90),
    ]
    return frame_of(MART_MODEL_RULES, *rows)


def data_quality(**changes: Any) -> pd.DataFrame:
    """Two files; `changes` are columns of the second, transactions."""
    transactions = {
        "source": "transactions",
        "entity": "orders",
        "batch_id": "b" * 64,
        "file_name": "transactions.parquet",
        "fault": None,
        "read_count": 1_469_307,
        "accepted_count": 1_469_270,
        "rejected_count": 25,
        "duplicate_count": 9,
        "superseded_count": 2,
        "deletion_count": 1,
        "reasons": [{"reason": "amount_missing", "row_count": 20}, {"reason": "my_own_check", "row_count": 7}],
        "late_count": 3,
        "first_happened_at": datetime(2017, 1, 1, tzinfo=UTC),
        "last_happened_at": datetime(2017, 12, 30, 23, 59, tzinfo=UTC),
        "freshness_hours": 2,
        "warnings": [
            {"rule": "my_own_rule", "row_count": 5}, {"rule": "product_id_not_in_products", "row_count": 1200},
        ],
        "drift": [{"column": "amount", "moved_share": 0.25}, {"column": "channel", "moved_share": 0.19}],
    }  # fmt: skip
    return frame_of(
        MART_DATA_QUALITY,
        (
            "households", "customers", "a" * 64, "demographics.parquet", None, 801, 801, 0, 0, 0, 0, [],
            0, None, None, None, [], [],
        ),
        tuple((transactions | changes).values()),
    )  # fmt: skip


def empty(mart: Table) -> pd.DataFrame:
    return frame_of(mart)


def own_part(html: str) -> str:
    """The page without plotly's program, which comes from a package."""
    assert html.count(get_plotlyjs()) <= 1
    return html.replace(get_plotlyjs(), "")


def figures_of(html: str) -> dict[str, Any]:
    found = re.search(r"const figures = (.*);\n", own_part(html))
    assert found is not None
    return dict(json.loads(found.group(1)))


def section(data: ReportData, id_: str, language: str = "en") -> Section:
    return next(part for part in build_sections(data, load_texts(language, data.currency)) if part.id == id_)


def flat(catalogue: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in catalogue.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def fields(text: Any) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name} if isinstance(text, str) else set()


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_section_and_chart_is_in_the_page(language):
    html = render_report(a_report(), language)
    texts = load_texts(language, "USD")
    for name in ("segments", "rfm", "demographics", "demand", "churn", "quality", "rules", "data"):
        assert f'<section id="{name}">\n<h2>{texts.text(f"{name}.title")}</h2>' in html
    assert list(figures_of(html)) == sorted(figures_of(html))
    assert set(re.findall(r'<div id="([^"]+)" class="chart"', html)) == set(figures_of(html))
    assert len(figures_of(html)) == 6
    assert html.count(get_plotlyjs()) == 1


def test_english_numbers_and_names():
    html = own_part(render_report(a_report(), "en"))
    assert "As of 31 December 2017" in html
    assert "2,469" in html
    assert "USD\u00a04,593,013" in html
    assert "Champions: 12.3% of customers bring 46.2% of revenue." in html
    assert "25 of 1,470,108 rows were rejected (&lt;0.1%)." in html
    assert "amount missing: 20; my_own_check: 7" in html
    assert "★ 0.871" in html
    assert "Publication 3 · 9f2c9f2c" in html
    assert "crm_spark 0.1.0" in html


def test_chinese_page_translates_known_names():
    html = own_part(render_report(a_report(), "zh"))
    assert '<html lang="zh-CN">' in html
    assert "截至 2017年12月31日" in html
    assert "12.3% 的客户贡献了 46.2% 的销售额" in html
    assert "缺少金额: 20\uff1bmy_own_check: 7" in html
    assert "Champions" not in html
    demand = figures_of(html)["department-demand"]["data"]
    assert [trace["name"] for trace in demand][:2] == ["食品杂货", "药品日用"]


def test_unknown_names_stand_for_themselves():
    html = render_report(a_report(segment_profiles=segment_profiles("Night owls", "Champions")), "zh")
    assert "Night owls" in own_part(html)


def test_catalogues_have_the_same_keys_and_fields():
    english, *others = (dict(flat(read_catalogue(language))) for language in LANGUAGES)
    for other in others:
        assert list(other) == list(english)
        assert {key: fields(text) for key, text in other.items()} == {
            key: fields(text) for key, text in english.items()
        }


def test_unknown_language_says_what_was_found_and_expected():
    with pytest.raises(ConfigError, match="found 'fr', expected one of en, zh"):
        render_report(a_report(), "fr")


@pytest.mark.parametrize("language", LANGUAGES)
def test_page_asks_no_network_for_anything(language):
    page = own_part(render_report(a_report(), language))
    assert 'src="http' not in page
    assert 'href="http' not in page
    assert "cdn" not in page
    assert "//" not in re.sub(r"\n *// [^\n]*", "", page)
    assert "<link" not in page
    assert "@import" not in page
    assert "content=\"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline';" in page


def test_same_data_same_page():
    shuffled = {name: getattr(a_report(), name).sample(frac=1, random_state=1) for name, _, _ in NOTHING.values()}
    assert render_report(a_report(**shuffled), "en") == render_report(a_report(), "en")


@pytest.mark.parametrize("language", LANGUAGES)
def test_hostile_names_are_shown_as_text(language):
    deciles = model_deciles().replace("decision_tree", HOSTILE)
    quality = model_quality().replace({"decision_tree": HOSTILE, "campaign_response": HOSTILE})
    data = a_report(
        segment_profiles=segment_profiles(HOSTILE, "Champions"),
        demographics=demographics().replace({"19-24": HOSTILE, "15-24K": HOSTILE}),
        department_weeks=department_weeks(HOSTILE, "GROCERY"),
        model_deciles=deciles,
        model_quality=quality,
        model_rules=model_rules().replace(regex={"rule": {".+": HOSTILE}}),
        data_quality=data_quality(file_name=HOSTILE, entity=HOSTILE, reasons=[{"reason": HOSTILE, "row_count": 25}]),
        publication_id=HOSTILE,
        currency=HOSTILE,
    )
    html = own_part(render_report(data, language))
    assert "<script>alert" not in html
    assert html.count("<script>") == html.count("</script>") == 2
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    for figure in figures_of(html).values():
        drawn = json.dumps([figure["data"], figure["layout"]["xaxis"], figure["layout"]["yaxis"]])
        assert "<script>" not in drawn
        assert "hovertemplate" not in drawn


NOTHING: dict[str, tuple[str, Table, str]] = {
    "segments": ("segment_profiles", MART_SEGMENT_PROFILES, "There are no segments yet."),
    "rfm": ("rfm_cells", MART_RFM_CELLS, "Nobody has bought anything"),
    "demographics": ("demographics", MART_DEMOGRAPHICS, "No customers have told us"),
    "demand": ("department_weeks", MART_DEPARTMENT_WEEKS, "fewer than two whole weeks"),
    "churn": ("model_deciles", MART_MODEL_DECILES, "No model of churn has been tested yet"),
    "quality": ("model_quality", MART_MODEL_QUALITY, "No model has been tested yet"),
    "rules": ("model_rules", MART_MODEL_RULES, "There is no decision tree for churn yet"),
    "data": ("data_quality", MART_DATA_QUALITY, "No files have been taken in yet"),
}


@pytest.mark.parametrize("name", NOTHING)
def test_absent_data_give_a_sentence_instead_of_a_chart(name):
    field, mart, sentence = NOTHING[name]
    shown = section(a_report(**{field: empty(mart)}), name)
    assert sentence in shown.note
    assert not shown.charts
    assert not shown.tables


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_report_of_nothing_renders(language):
    nobody = Headline(0, 0, 0, 0.0, 0.0, 0, 0, 0.0)
    html = render_report(
        a_report(headline=nobody, **{field: empty(mart) for field, mart, _ in NOTHING.values()}), language
    )
    assert html.count('<p class="note">') == len(NOTHING) + 1  # and one for browsers without scripts
    assert "Plotly" not in html


def test_one_segment_has_a_table_but_nothing_to_compare():
    shown = section(a_report(segment_profiles=segment_profiles("Champions")), "segments")
    assert "one segment so far" in shown.note
    assert not shown.charts
    assert len(shown.tables[0].rows) == 1


def test_no_rejected_rows_is_good_news():
    shown = section(a_report(data_quality=data_quality(rejected_count=0, reasons=[])), "data")
    assert shown.note == "All is well: none of the 1,470,108 rows was rejected."
    assert not shown.finding


def test_the_most_frequent_reason_comes_first():
    reasons = [{"reason": "order_id_missing", "row_count": 3}, {"reason": "amount_missing", "row_count": 25}]
    shown = section(a_report(data_quality=data_quality(reasons=reasons)), "data")
    assert shown.tables[0].rows[1][-1].text == "amount missing: 25; order missing: 3"


def test_late_rows_warnings_and_drift_stand_in_a_table_of_their_own():
    shown = section(a_report(), "data")
    (notices,) = shown.tables[1:]
    assert [[cell.text for cell in row] for row in notices.rows] == [
        [
            "transactions.parquet", "Orders", "30 December 2017", "3",
            "my_own_rule: 5; product not in the product table: 1,200; amount is distributed differently: 25.0%",
        ],
    ]  # fmt: skip
    nothing = data_quality(late_count=0, warnings=[], drift=[{"column": "amount", "moved_share": 0.1}])
    assert len(section(a_report(data_quality=nothing), "data").tables) == 1


def test_a_damaged_file_is_called_so():
    shown = section(a_report(data_quality=data_quality(fault="compressed_file_damaged", reasons=[])), "data")
    assert shown.tables[0].rows[1][-1].text == "damaged file: no row of it counts"


def test_customers_without_scores_are_not_called_safe():
    headline = a_headline(scored_count=0, at_risk_count=0, at_risk_amount=0.0)
    assert "No model of churn has scored customers yet" in render_report(a_report(headline=headline), "en")


def test_bands_stand_in_natural_order():
    assert in_natural_order(pd.Series(reversed(INCOMES))) == list(INCOMES)
    assert in_natural_order(pd.Series(["65+", "100 to 120", "unknown", "19-24", "Under 19"])) == [
        "Under 19", "19-24", "65+", "100 to 120", "unknown",
    ]  # fmt: skip


def test_small_groups_of_people_are_left_blank():
    rows = [("19-24", "15-24K", FEWEST_CUSTOMERS_SHOWN - 1, 99_999.0), ("25-34", "15-24K", 40, 1000.0)]
    data = a_report(demographics=frame_of(MART_DEMOGRAPHICS, *rows))
    shown = section(data, "demographics")
    assert "fewer than 5 customers are left blank (1 here)" in shown.note
    assert "99,999" not in render_report(data, "en")
    only_small = replace(data, demographics=data.demographics.iloc[:1])
    assert not section(only_small, "demographics").charts


def test_weeks_that_the_data_do_not_cover_are_left_out():
    table = weekly_revenue(department_weeks("GROCERY", weeks=4))
    assert [day.date() for day in table.index] == [date(2017, 1, 2), date(2017, 1, 9), date(2017, 1, 16)]


def test_small_departments_are_summed():
    weeks = department_weeks()
    table = weekly_revenue(weeks)
    assert table.shape[1] == TOP_DEPARTMENTS + 1
    whole = weeks[weeks["day_count"] == 7]
    assert table.to_numpy().sum() == pytest.approx(whole["net_amount"].sum())
    traces = department_demand(weeks, load_texts("en", "USD")).data
    assert [traces[0].name, traces[-1].name] == ["Grocery", "All others"]


def test_a_week_without_sales_of_a_department_is_zero():
    weeks = department_weeks("GROCERY", "DELI")
    without = weeks[(weeks["department"] != "DELI") | (weeks["week_starts_on"] != date(2017, 1, 9))]
    assert weekly_revenue(without).loc["2017-01-09", "DELI"] == 0.0
    closed = weeks[weeks["week_starts_on"] != date(2017, 1, 9)]
    assert not weekly_revenue(closed).loc["2017-01-09"].any()
    assert len(weekly_revenue(closed)) == len(weekly_revenue(weeks))


def test_that_most_is_of_no_department_is_no_finding():
    data = a_report()
    unknown = replace(data, department_weeks=department_weeks("(none)"))
    assert section(data, "demand").finding
    assert not section(unknown, "demand").finding


def test_rfm_cells_lie_at_their_scores():
    heat_map = rfm_heat_map(rfm_cells(), load_texts("en", "USD")).data[0]
    assert heat_map.text[4][3] == "320"  # recency 5, frequency 4
    assert heat_map.z[0][4] is None
    assert "Recency 5, frequency 4" in heat_map.hovertext[4][3]
    assert "USD\u00a0120,040" in heat_map.hovertext[4][3]


def test_segments_without_revenue_leave_a_gap():
    profiles = segment_profiles("Champions", "No purchase yet").assign(net_amount_share=None)
    revenue, customers = segment_shares(profiles, load_texts("en", "USD")).data
    assert list(revenue.x) == [None, None]
    assert list(customers.x) == [0.007, 0.123]


def test_best_value_of_each_metric_is_marked_even_for_a_baseline():
    quality = model_quality()
    is_baseline_accuracy = (quality["model"] == "baseline_majority") & (quality["metric"] == "accuracy")
    quality.loc[is_baseline_accuracy, "value"] = 0.95
    shown = section(a_report(model_quality=quality), "quality")
    assert [table.caption.partition(":")[0] for table in shown.tables] == ["Churn", "Response to a campaign"]
    assert [[cell.is_best for cell in row[1:]] for row in shown.tables[0].rows] == [
        [False] * 4,
        [True, True, False, True],
        [False] * 4,
        [False, False, True, False],
        [False] * 4,
    ]


def test_a_model_that_a_rule_of_thumb_beats_is_not_to_be_acted_on():
    quality = model_quality()
    is_recency = (quality["model"] == "baseline_recency") & (quality["metric"] == "auc") & (quality["fold"] == "test")
    texts = load_texts("en", "USD")
    for auc, is_warned in ((0.870, False), (0.871, True)):
        quality.loc[is_recency & (quality["task"] == "churn"), "value"] = auc
        report = a_report(model_quality=quality)
        assert ("Do not act on this" in build_cards(report, texts)[4].detail) == is_warned
        assert bool(section(report, "churn").note) == is_warned


def test_rules_are_those_of_churn_from_the_riskiest():
    rows = section(a_report(), "rules").tables[0].rows
    assert [row[2].text for row in rows] == ["91.0%", "62.0%", "21.0%", "2.0%"]
    assert rows[0][4].text == "4.3%"


def test_numbers_never_hide_what_is_missing_or_tiny():
    texts = load_texts("en", "EUR")
    assert texts.number(None) == texts.share(float("nan")) == texts.amount(None) == "\u2013"
    assert texts.share(0.0004) == "<0.1%"
    assert texts.share(0.0) == "0.0%"
    assert texts.number(-0.2) == "0"
    assert texts.amount(1234567.891, 2) == "EUR\u00a01,234,567.89"
