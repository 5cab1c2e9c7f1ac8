"""One function a chart: a mart's rows to a plotly figure.

Plotly reads names as a little HTML and templates as `%{...}`: names are escaped, and hover texts are written here.
"""

import re
from collections.abc import Sequence
from html import escape
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from crm_spark.report.texts import Texts

TOP_DEPARTMENTS = 6
# Means of fewer customers say little, and would tell what single persons spend.
FEWEST_CUSTOMERS_SHOWN = 5

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
_GREY = "#9AA3AD"
_INK = "#26323D"
_GRID = "#E6EAEE"
# Light enough at its end for dark numbers to stand on it.
_SCALE = ((0.0, "#F1F6FA"), (1.0, "#5BA3D0"))
_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif'
_DASHES = ("dot", "dash", "dashdot")
_BASELINE = "baseline_"


def segment_shares(profiles: pd.DataFrame, texts: Texts) -> go.Figure:
    """Two bars a segment: its share of customers and of revenue; the most revenue on top."""
    rows = profiles.sort_values(["net_amount", "segment_name"], ascending=[True, False])
    names = [texts.name("segments", name) for name in rows["segment_name"]]
    labels = ["<br>".join(escape(line) for line in wrap(name, 16)) for name in names]
    figure = go.Figure()
    for column, total, colour in (
        ("net_amount_share", [texts.amount(value) for value in rows["net_amount"]], _COLOURS[1]),
        ("customer_share", [texts.number(value) for value in rows["customer_count"]], _COLOURS[0]),
    ):
        title = texts.text(f"columns.{column}")
        share_texts = [texts.share(value) for value in rows[column]]
        figure.add_bar(
            x=_values(rows[column]),
            y=labels,
            orientation="h",
            name=title,
            marker={"color": colour},
            hoverinfo="text",
            hovertext=[
                _hover(name, f"{title}: {share}", amount)
                for name, share, amount in zip(names, share_texts, total, strict=True)
            ],
            text=share_texts,
            textposition="outside",
            cliponaxis=False,
        )
    _style(figure, height=110 + 54 * len(rows))
    figure.update_layout(bargap=0.3, legend_traceorder="reversed")
    # The text at the end of the longest bar needs room, most of all on a phone.
    shares = rows[["customer_share", "net_amount_share"]].to_numpy(dtype=float)
    ends = [1.3 * min(np.nanmin(shares), 0.0), 1.3 * np.nanmax(shares)]
    figure.update_xaxes(tickformat=".0%", range=ends)
    figure.update_yaxes(type="category", showgrid=False, ticklabelstandoff=6)
    return figure


def rfm_heat_map(cells: pd.DataFrame, texts: Texts) -> go.Figure:
    """Customers by recency score (up) and frequency score (right)."""
    scores = [1, 2, 3, 4, 5]
    shown = {
        (row.recency_score, row.frequency_score): (
            row.customer_count,
            texts.number(row.customer_count),
            _hover(
                texts.text("charts.rfm_cell", recency=row.recency_score, frequency=row.frequency_score),
                _labelled(texts, "customer_count", texts.number(row.customer_count)),
                _labelled(texts, "net_amount", texts.amount(row.net_amount)),
                _labelled(texts, "mean_churn_probability", texts.share(row.mean_churn_probability)),
            ),
        )
        for row in _rows(cells)
    }
    figure = _heat_map(shown, rows=scores, columns=scores)
    _style(figure, height=400)
    figure.update_xaxes(title_text=texts.text("charts.frequency_score"))
    figure.update_yaxes(title_text=texts.text("charts.recency_score"))
    return figure


def spend_heat_map(demographics: pd.DataFrame, texts: Texts) -> go.Figure:
    """Mean spend by age band (right) and income band (up), without groups of very few customers."""
    rows = large_groups(demographics)
    shown = {
        (row.income_band, row.age_band): (
            row.mean_net_amount,
            texts.number(row.mean_net_amount),
            _hover(
                _labelled(texts, "age_band", texts.name("bands", row.age_band)),
                _labelled(texts, "income_band", texts.name("bands", row.income_band)),
                _labelled(texts, "mean_net_amount", texts.amount(row.mean_net_amount)),
                _labelled(texts, "customer_count", texts.number(row.customer_count)),
            ),
        )
        for row in _rows(rows)
    }
    ages, incomes = in_natural_order(rows["age_band"]), in_natural_order(rows["income_band"])
    figure = _heat_map(shown, rows=incomes, columns=ages)
    _style(figure, height=120 + 34 * len(incomes))
    figure.update_xaxes(title_text=texts.text("columns.age_band"), **_ticks([texts.name("bands", age) for age in ages]))
    figure.update_yaxes(
        title_text=texts.text("columns.income_band"), **_ticks([texts.name("bands", income) for income in incomes])
    )
    return figure


def department_demand(weeks: pd.DataFrame, texts: Texts) -> go.Figure:
    """Revenue a week, the largest departments and all others stacked, whole weeks only."""
    table = weekly_revenue(weeks)
    days = [week.strftime("%Y-%m-%d") for week in table.index]
    labels = [texts.name("departments", name) for name in table.columns[:-1]] + [texts.text("charts.other")]
    figure = go.Figure()
    for position, label in enumerate(labels):
        amounts = table.iloc[:, position]
        if not amounts.any():
            continue
        figure.add_scatter(
            x=days,
            y=_values(amounts),
            name=escape(label),
            mode="lines",
            stackgroup="departments",
            line={"width": 1, "color": (*_COLOURS, _GREY)[position]},
            hoverinfo="x+text",
            hovertext=[escape(f"{label}: {texts.amount(amount)}") for amount in amounts],
        )
    _style(figure, height=460)
    figure.update_layout(hovermode="x unified", legend_traceorder="normal")
    figure.update_xaxes(type="date", tickformat="%Y-%m", hoverformat="%Y-%m-%d", nticks=5)
    figure.update_yaxes(tickformat=",.0f")
    return figure


def churn_lift(deciles: pd.DataFrame, texts: Texts) -> go.Figure:
    """Lift by decile of the predicted probability, a line a model; 1 is as good as chance."""
    figure = go.Figure()
    _add_reference(figure, [1, 10], [1, 1], texts.text("charts.chance"))
    for model, rows in _by_model(deciles):
        hover = [
            _hover(
                texts.name("models", model),
                texts.text("charts.decile_no", decile=row.decile),
                _labelled(texts, "lift", texts.number(row.lift, 2)),
                _events(row, texts),
            )
            for row in _rows(rows)
        ]
        figure.add_scatter(
            x=_values(rows["decile"]), y=_values(rows["lift"]), **_model_trace(model, deciles, hover, texts)
        )
    _style(figure, height=460)
    figure.update_layout(legend_traceorder="reversed")
    figure.update_xaxes(title_text=texts.text("charts.decile"), tickvals=list(range(1, 11)))
    figure.update_yaxes(title_text=texts.text("columns.lift"), rangemode="tozero", tickformat=".1f")
    return figure


def churn_calibration(deciles: pd.DataFrame, texts: Texts) -> go.Figure:
    """What was predicted against what happened, a line a model; the diagonal is perfect."""
    figure = go.Figure()
    _add_reference(figure, [0, 1], [0, 1], texts.text("charts.diagonal"))
    for model, rows in _by_model(deciles):
        rows = rows.sort_values(["mean_probability", "decile"])
        hover = [
            _hover(
                texts.name("models", model),
                _labelled(texts, "mean_probability", texts.share(row.mean_probability)),
                _labelled(texts, "event_share", texts.share(row.event_share)),
                _events(row, texts),
            )
            for row in _rows(rows)
        ]
        figure.add_scatter(
            x=_values(rows["mean_probability"]),
            y=_values(rows["event_share"]),
            **_model_trace(model, deciles, hover, texts),
        )
    _style(figure, height=460)
    figure.update_layout(legend_traceorder="reversed")
    figure.update_xaxes(title_text=texts.text("columns.mean_probability"), tickformat=".0%", range=[-0.03, 1.03])
    figure.update_yaxes(title_text=texts.text("columns.event_share"), tickformat=".0%", range=[-0.03, 1.05])
    return figure


def in_natural_order(bands: pd.Series) -> list[str]:
    """Distinct bands from low to high: 'Under 15K' before '15-24K' before '250K+'; without a number last."""
    return sorted(set(bands), key=_band_order)


def _band_order(band: str) -> tuple[float, bool, str]:
    first_number = re.search(r"\d+(?:\.\d+)?", band)
    is_open_below = re.match(r"\s*(under|below|less|<)", band, re.IGNORECASE) is not None
    return (float(first_number.group()) if first_number else float("inf"), not is_open_below, band)


def large_groups(demographics: pd.DataFrame) -> pd.DataFrame:
    """The groups of enough customers to be shown."""
    return demographics[demographics["customer_count"] >= FEWEST_CUSTOMERS_SHOWN]


def whole_weeks(weeks: pd.DataFrame) -> pd.DataFrame:
    """Weeks that the data cover on all seven days; the others would look like drops in demand."""
    return weeks[weeks["day_count"] >= 7]


def weekly_revenue(weeks: pd.DataFrame) -> pd.DataFrame:
    """One row per whole week, one column per large department, largest first, and the sum of the others last.

    A week between others in which nothing was sold is one, too.
    """
    table = whole_weeks(weeks).pivot_table(
        index="week_starts_on", columns="department", values="net_amount", aggfunc="sum", fill_value=0.0
    )
    ranked = sorted(table.columns, key=lambda name: (-table[name].sum(), name))
    top, others = ranked[:TOP_DEPARTMENTS], ranked[TOP_DEPARTMENTS:]
    result = table[top].copy()
    result.insert(len(top), "", table[others].sum(axis=1).astype(float), allow_duplicates=True)
    result.index = pd.to_datetime(result.index)
    return result.sort_index().asfreq("7D", fill_value=0.0)


def is_baseline(model: str) -> bool:
    """Whether a model is a rule of thumb that the others must beat."""
    return model.startswith(_BASELINE)


def _by_model(deciles: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Rows of each model in the order of deciles; baselines first, so that models are drawn over them."""
    models = sorted(set(deciles["model"]), key=lambda model: (not is_baseline(model), model))
    return [(model, deciles[deciles["model"] == model].sort_values("decile")) for model in models]


def _model_trace(model: str, deciles: pd.DataFrame, hover: Sequence[str], texts: Texts) -> dict[str, Any]:
    peers = sorted({other for other in deciles["model"] if is_baseline(other) == is_baseline(model)})
    position = peers.index(model)
    if is_baseline(model):
        line = {"color": _GREY, "width": 1.5, "dash": _DASHES[position % len(_DASHES)]}
    else:
        line = {"color": (_COLOURS[0], _COLOURS[3], *_COLOURS[1:3])[position % 4], "width": 3}
    return {
        "name": escape(texts.name("models", model)),
        "mode": "lines+markers",
        "line": line,
        "marker": {"size": 6 if is_baseline(model) else 8},
        "hoverinfo": "text",
        "hovertext": list(hover),
    }


def _add_reference(figure: go.Figure, x: Sequence[float], y: Sequence[float], name: str) -> None:
    figure.add_scatter(
        x=list(x),
        y=list(y),
        name=name,
        mode="lines",
        hoverinfo="skip",
        line={"color": _INK, "width": 1, "dash": "dash"},
    )


def _heat_map(
    shown: dict[tuple[Any, Any], tuple[float, str, str]], rows: Sequence[Any], columns: Sequence[Any]
) -> go.Figure:
    """Coloured cells with their value and hover text; combinations that nobody has stay blank."""
    grid = [[shown.get((row, column)) for column in columns] for row in rows]
    figure = go.Figure(
        go.Heatmap(
            x=list(range(len(columns))),
            y=list(range(len(rows))),
            z=[[cell and float(cell[0]) for cell in line] for line in grid],
            text=[[cell[1] if cell else "" for cell in line] for line in grid],
            hovertext=[[cell[2] if cell else "" for cell in line] for line in grid],
            texttemplate="%{text}",
            textfont={"color": _INK},
            hoverinfo="text",
            hoverongaps=False,
            colorscale=_SCALE,
            showscale=False,
            xgap=3,
            ygap=3,
        )
    )
    figure.update_xaxes(**_ticks(columns), showgrid=False, ticks="")
    figure.update_yaxes(**_ticks(rows), showgrid=False, ticks="")
    return figure


def _ticks(labels: Sequence[object]) -> dict[str, list[Any]]:
    return {"tickvals": list(range(len(labels))), "ticktext": [escape(str(label)) for label in labels]}


def _style(figure: go.Figure, height: int) -> None:
    figure.update_layout(
        template="none",
        height=height,
        autosize=True,
        dragmode=False,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": _FONT, "size": 13, "color": _INK},
        margin={"l": 8, "r": 16, "t": 8, "b": 8},
        hoverlabel={"bgcolor": "#FFFFFF", "bordercolor": "#C5CDD5", "font": {"color": _INK}, "align": "left"},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
    )
    for axes in (figure.update_xaxes, figure.update_yaxes):
        axes(
            automargin=True,
            fixedrange=True,
            gridcolor=_GRID,
            linecolor=_GRID,
            zeroline=False,
            title_font={"size": 13},
            title_standoff=8,
        )


def _rows(frame: pd.DataFrame) -> list[Any]:
    """Rows with their columns as attributes."""
    return list(frame.itertuples(index=False))


def _values(column: pd.Series) -> list[float | None]:
    """Plain numbers, which plotly writes as text; NULL becomes a gap."""
    return [None if pd.isna(value) else float(value) for value in column]


def _labelled(texts: Texts, column: str, value: str) -> str:
    return f"{texts.text(f'columns.{column}')}: {value}"


def _events(row: Any, texts: Texts) -> str:
    return texts.text("charts.events", events=texts.number(row.event_count), customers=texts.number(row.customer_count))


def _hover(title: str, *lines: str) -> str:
    return "<br>".join([f"<b>{escape(title)}</b>", *(escape(line) for line in lines)])
