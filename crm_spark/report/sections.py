"""The report's sections: for each, its words, charts and tables, or a friendly sentence where data are absent."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from crm_spark.marts.tables import NO_DEPARTMENT
from crm_spark.report import charts
from crm_spark.report.data import ReportData
from crm_spark.report.texts import Texts

CHURN = "churn"
_QUALITY_METRICS = ("auc", "average_precision", "accuracy", "top_decile_lift")


# A file in which so many rows would need another value to be like those before it is told of.
_DRIFT_SHOWN = 0.2


@dataclass(frozen=True)
class Cell:
    """A table's cell. `share` (0 to 1) draws a small bar beside the text."""

    text: str
    is_number: bool = True
    share: float | None = None
    is_best: bool = False


@dataclass(frozen=True)
class Table:
    headers: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class Chart:
    figure: go.Figure
    title: str


@dataclass(frozen=True)
class Section:
    """`finding` is the one sentence to remember, `note` what is missing, `charts` maps div ids to charts."""

    id: str
    title: str
    how_to_read: str
    finding: str = ""
    note: str = ""
    charts: Mapping[str, Chart] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Card:
    """One headline number with a line that puts it in relation."""

    label: str
    value: str
    detail: str


def build_cards(data: ReportData, texts: Texts) -> list[Card]:
    """The headline numbers."""
    top = data.headline
    active_share = _ratio(top.active_count_28d, top.customer_count)
    amount_per_active = _ratio(top.net_amount_28d, top.active_count_28d)
    amount_per_buyer = _ratio(top.net_amount, top.buyer_count)
    cards = [
        _card("customers", texts.number(top.customer_count), texts, buyers=texts.number(top.buyer_count)),
        _card("active", texts.number(top.active_count_28d), texts, share=texts.share(active_share)),
        _card("revenue_28d", texts.amount(top.net_amount_28d), texts, amount=texts.amount(amount_per_active, 2)),
        _card("revenue", texts.amount(top.net_amount), texts, amount=texts.amount(amount_per_buyer, 2)),
    ]
    if not top.scored_count:
        return [*cards, Card(texts.text("cards.at_risk"), texts.text("missing"), texts.text("cards.not_scored"))]
    at_risk_share = texts.share(_ratio(top.at_risk_count, top.scored_count))
    at_risk = _card("at_risk", texts.number(top.at_risk_count), texts, share=at_risk_share)
    if not _beats_rules_of_thumb(data.model_quality, CHURN):
        at_risk = replace(at_risk, detail=texts.text("cards.at_risk_unproven"))
    return [
        *cards,
        at_risk,
        _card(
            "at_risk_amount",
            texts.amount(top.at_risk_amount),
            texts,
            share=texts.share(_ratio(top.at_risk_amount, top.net_amount)),
        ),
    ]


def build_sections(data: ReportData, texts: Texts) -> list[Section]:
    """All sections in their order."""
    return [
        _segments(data, texts),
        _rfm(data, texts),
        _demographics(data, texts),
        _demand(data, texts),
        _churn(data, texts),
        _model_quality(data, texts),
        _rules(data, texts),
        _data_quality(data, texts),
    ]


def _segments(data: ReportData, texts: Texts) -> Section:
    profiles = data.segment_profiles
    if profiles.empty:
        return _section("segments", texts, note=texts.text("segments.empty"))
    rows = profiles.sort_values(["net_amount", "segment_name"], ascending=[False, True])
    table = _segment_table(rows, texts)
    if len(rows) == 1:
        return _section("segments", texts, note=texts.text("segments.single"), tables=(table,))
    first = rows.iloc[0]
    finding = texts.text(
        "segments.finding",
        segment=texts.name("segments", first["segment_name"]),
        customer_share=texts.share(first["customer_share"]),
        net_amount_share=texts.share(first["net_amount_share"]),
    )
    chart = Chart(charts.segment_shares(rows, texts), texts.text("segments.chart"))
    return _section("segments", texts, finding=finding, charts={"segment-shares": chart}, tables=(table,))


def _segment_table(rows: pd.DataFrame, texts: Texts) -> Table:
    columns = {
        "customer_count": texts.number,
        "customer_share": texts.share,
        "net_amount": texts.number,
        "net_amount_share": texts.share,
        "mean_net_amount": texts.number,
        "mean_order_count": lambda value: texts.number(value, 1),
        "mean_order_amount": lambda value: texts.number(value, 2),
        "mean_recency_days": lambda value: texts.number(value, 1),
        "mean_discount_share": texts.share,
        "mean_category_count": lambda value: texts.number(value, 1),
        "mean_churn_probability": texts.share,
    }
    body = (
        (
            Cell(texts.name("segments", row["segment_name"]), is_number=False),
            *(Cell(form(row[column])) for column, form in columns.items()),
        )
        for _, row in rows.iterrows()
    )
    caption = texts.text("segments.table", currency=texts.currency)
    return Table(_headers(texts, "segment_name", numbers=columns), tuple(body), caption)


def _rfm(data: ReportData, texts: Texts) -> Section:
    if data.rfm_cells.empty:
        return _section("rfm", texts, note=texts.text("rfm.empty"))
    chart = Chart(charts.rfm_heat_map(data.rfm_cells, texts), texts.text("rfm.chart"))
    return _section("rfm", texts, charts={"rfm-cells": chart})


def _demographics(data: ReportData, texts: Texts) -> Section:
    if data.demographics.empty:
        return _section("demographics", texts, note=texts.text("demographics.empty"))
    groups = charts.large_groups(data.demographics)
    fewest = charts.FEWEST_CUSTOMERS_SHOWN
    if groups.empty:
        return _section("demographics", texts, note=texts.text("demographics.too_small", fewest=fewest))
    best = groups.sort_values(["mean_net_amount", "age_band", "income_band"], ascending=[False, True, True]).iloc[0]
    finding = texts.text(
        "demographics.finding",
        age=texts.name("bands", best["age_band"]),
        income=texts.name("bands", best["income_band"]),
        amount=texts.amount(best["mean_net_amount"]),
        customers=texts.number(best["customer_count"]),
    )
    hidden = len(data.demographics) - len(groups)
    note = texts.text("demographics.hidden", groups=texts.number(hidden), fewest=fewest) if hidden else ""
    chart = Chart(charts.spend_heat_map(groups, texts), texts.text("demographics.chart", currency=texts.currency))
    return _section("demographics", texts, finding=finding, note=note, charts={"age-income-spend": chart})


def _demand(data: ReportData, texts: Texts) -> Section:
    weeks = charts.whole_weeks(data.department_weeks)
    if weeks["week_starts_on"].nunique() < 2:
        return _section("demand", texts, note=texts.text("demand.empty"))
    totals = weeks.groupby("department")["net_amount"].sum().sort_values(ascending=False, kind="stable")
    finding = ""
    if totals.index[0] != NO_DEPARTMENT:
        finding = texts.text(
            "demand.finding",
            department=texts.name("departments", totals.index[0]),
            share=texts.share(_ratio(totals.iloc[0], totals.sum())),
            weeks=texts.number(len(charts.weekly_revenue(weeks))),
        )
    chart = Chart(charts.department_demand(weeks, texts), texts.text("demand.chart", currency=texts.currency))
    return _section("demand", texts, finding=finding, charts={"department-demand": chart})


def _churn(data: ReportData, texts: Texts) -> Section:
    deciles = data.model_deciles
    deciles = deciles[(deciles["task"] == CHURN) & (deciles["fold"] == "test")]
    if deciles.empty:
        return _section("churn", texts, note=texts.text("churn.empty"))
    lift = Chart(charts.churn_lift(deciles, texts), texts.text("churn.lift_chart"))
    calibration = Chart(charts.churn_calibration(deciles, texts), texts.text("churn.calibration_chart"))
    return _section(
        "churn",
        texts,
        finding=_lift_finding(deciles, texts),
        note="" if _beats_rules_of_thumb(data.model_quality, CHURN) else texts.text("churn.unproven"),
        charts={"churn-lift": lift, "churn-calibration": calibration},
    )


def _beats_rules_of_thumb(quality: pd.DataFrame, task: str) -> bool:
    """Whether a model ranked the test's customers better than every baseline."""
    of_task = quality[(quality["task"] == task) & (quality["fold"] == "test") & (quality["metric"] == "auc")]
    is_baseline = of_task["model"].map(charts.is_baseline).astype(bool)
    return bool(of_task[~is_baseline]["value"].max() > of_task[is_baseline]["value"].max())


def _lift_finding(deciles: pd.DataFrame, texts: Texts) -> str:
    is_model = ~deciles["model"].map(charts.is_baseline).astype(bool)
    tops = deciles[is_model & (deciles["decile"] == 1) & deciles["lift"].notna()]
    if tops.empty:
        return ""
    best = tops.sort_values(["lift", "model"], ascending=[False, True]).iloc[0]
    return texts.text(
        "churn.finding",
        model=texts.name("models", best["model"]),
        share=texts.share(best["event_share"]),
        lift=texts.number(best["lift"], 1),
    )


def _model_quality(data: ReportData, texts: Texts) -> Section:
    quality = data.model_quality[data.model_quality["fold"] == "test"]
    if quality.empty:
        return _section("quality", texts, note=texts.text("quality.empty"))
    tasks = sorted(set(quality["task"]), key=lambda task: (task != CHURN, task))
    tables = (_quality_table(task, quality[quality["task"] == task], texts) for task in tasks)
    return _section("quality", texts, tables=tuple(tables))


def _quality_table(task: str, quality: pd.DataFrame, texts: Texts) -> Table:
    values = {(row["model"], row["metric"]): row["value"] for _, row in quality.iterrows()}
    models = sorted(set(quality["model"]), key=lambda model: (charts.is_baseline(model), model))
    shown = {
        metric: [_metric_text(metric, values.get((model, metric)), texts) for model in models]
        for metric in _QUALITY_METRICS
    }
    # What looks equal is marked alike: a difference beyond the digits shown is none.
    best = {metric: _best_text(metric, models, values, texts) for metric in _QUALITY_METRICS}
    body = (
        (
            Cell(texts.name("models", model), is_number=False),
            *(Cell(shown[metric][position], is_best=shown[metric][position] == best[metric]) for metric in shown),
        )
        for position, model in enumerate(models)
    )
    headers = (
        Cell(texts.text("columns.model"), is_number=False),
        *(Cell(texts.name("metrics", metric)) for metric in _QUALITY_METRICS),
    )
    return Table(headers, tuple(body), _quality_caption(task, models, values, texts))


def _quality_caption(task: str, models: list[str], values: Mapping[tuple[str, str], float], texts: Texts) -> str:
    """The task and the rows that it was tested on, which are the same for every model."""
    return texts.text(
        "quality.table",
        task=texts.name("tasks", task),
        customers=texts.number(values.get((models[0], "row_count"))),
        share=texts.share(values.get((models[0], "event_share"))),
    )


def _best_text(metric: str, models: list[str], values: Mapping[tuple[str, str], float], texts: Texts) -> str | None:
    known = [value for model in models if pd.notna(value := values.get((model, metric)))]
    return _metric_text(metric, max(known), texts) if known else None


def _metric_text(metric: str, value: float | None, texts: Texts) -> str:
    if metric == "accuracy":
        return texts.share(value)
    return texts.number(value, 2 if metric == "top_decile_lift" else 3)


def _rules(data: ReportData, texts: Texts) -> Section:
    rules = data.model_rules[data.model_rules["task"] == CHURN].sort_values("rule_no")
    if rules.empty:
        return _section("rules", texts, note=texts.text("rules.empty"))
    covered = rules["train_count"].sum()
    body = (
        (
            Cell(texts.number(row["rule_no"])),
            Cell(row["rule"], is_number=False),
            Cell(texts.share(row["probability"]), share=row["probability"]),
            Cell(texts.number(row["train_count"])),
            Cell(texts.share(_ratio(row["train_count"], covered))),
        )
        for _, row in rules.iterrows()
    )
    headers = (
        Cell(texts.text("columns.rule_no")),
        Cell(texts.text("columns.rule"), is_number=False),
        *(Cell(texts.text(f"columns.{column}")) for column in ("probability", "train_count", "train_share")),
    )
    return _section("rules", texts, tables=(Table(headers, tuple(body)),))


def _data_quality(data: ReportData, texts: Texts) -> Section:
    files = data.data_quality
    if files.empty:
        return _section("data", texts, note=texts.text("data.empty"))
    counts = tuple(f"{what}_count" for what in ("read", "accepted", "rejected", "duplicate", "superseded", "deletion"))
    body = (
        (
            Cell(row["file_name"], is_number=False),
            Cell(texts.name("entities", row["entity"]), is_number=False),
            *(Cell(texts.number(row[count])) for count in counts),
            Cell(_reasons_text(row["reasons"], row["fault"], texts), is_number=False),
        )
        for _, row in files.sort_values(["entity", "file_name", "source", "batch_id"]).iterrows()
    )
    headers = (
        *_headers(texts, "file_name", "entity", numbers=counts),
        Cell(texts.text("columns.reasons"), is_number=False),
    )
    read, rejected = files["read_count"].sum(), files["rejected_count"].sum()
    share = texts.share(_ratio(rejected, read))
    finding = texts.text("data.finding", read=texts.number(read), rejected=texts.number(rejected), share=share)
    note = "" if rejected else texts.text("data.no_rejected", read=texts.number(read))
    tables = (Table(headers, tuple(body)), *_notices(files, texts))
    return _section("data", texts, finding=finding if rejected else "", note=note, tables=tables)


def _notices(files: pd.DataFrame, texts: Texts) -> list[Table]:
    """What is worth a look in files whose rows count: rows that came late, warnings, and values unlike before."""
    rows = []
    for _, row in files.sort_values(["entity", "file_name", "source", "batch_id"]).iterrows():
        broken = {warning["rule"]: texts.number(warning["row_count"]) for warning in row["warnings"]}
        moved = {
            texts.text("data.drift", column=drift["column"]): texts.share(float(drift["moved_share"]))
            for drift in row["drift"]
            if drift["moved_share"] >= _DRIFT_SHOWN
        }
        notices = [f"{texts.name('warnings', name)}: {count}" for name, count in (broken | moved).items()]
        if notices or row["late_count"]:
            last = row["last_happened_at"]
            rows.append(
                (
                    Cell(row["file_name"], is_number=False),
                    Cell(texts.name("entities", row["entity"]), is_number=False),
                    Cell(texts.text("missing") if pd.isna(last) else texts.day(last.date()), is_number=False),
                    Cell(texts.number(row["late_count"])),
                    Cell(texts.text("data.reason_separator").join(notices), is_number=False),
                )
            )
    headers = (
        *_headers(texts, "file_name", "entity", "last_happened_at", numbers=("late_count",)),
        Cell(texts.text("columns.warnings"), is_number=False),
    )
    return [Table(headers, tuple(rows), texts.text("data.notices"))] if rows else []


def _reasons_text(reasons: Any, fault: str | None, texts: Texts) -> str:
    """The most frequent reason first; of a file that cannot be read, why."""
    if fault:
        return texts.name("reasons", fault)
    counts = sorted(reasons, key=lambda reason: (-reason["row_count"], reason["reason"]))
    named = (f"{texts.name('reasons', count['reason'])}: {texts.number(count['row_count'])}" for count in counts)
    return texts.text("data.reason_separator").join(named) or texts.text("missing")


def _section(id_: str, texts: Texts, **parts: Any) -> Section:
    return Section(id_, texts.text(f"{id_}.title"), texts.text(f"{id_}.how_to_read"), **parts)


def _card(key: str, value: str, texts: Texts, **details: str) -> Card:
    return Card(texts.text(f"cards.{key}"), value, texts.text(f"cards.{key}_detail", **details))


def _headers(texts: Texts, *names: str, numbers: Any) -> tuple[Cell, ...]:
    return (
        *(Cell(texts.text(f"columns.{name}"), is_number=False) for name in names),
        *(Cell(texts.text(f"columns.{name}")) for name in numbers),
    )


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
