"""The report: one HTML file that needs nothing else, neither network nor fonts, to be read."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from crm_spark.publications import Publication, PublishedLake
from crm_spark.report.data import Headline, ReportData, read_report_data
from crm_spark.report.sections import Section, build_cards, build_sections
from crm_spark.report.texts import load_texts

__all__ = ["Headline", "ReportData", "read_report_data", "render_report", "write_report"]


def write_report(lake: PublishedLake, publication: Publication, path: Path, language: str) -> Path:
    """Write the report of a publication; returns its path.

    Raises:
        ConfigError: if there is no catalogue of texts in the language.
        LakeError: if the publication holds no marts.
    """
    # An unknown language shall fail before anything is read.
    load_texts(language, publication.currency)
    html = render_report(read_report_data(lake, publication), language)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    return path


def render_report(data: ReportData, language: str) -> str:
    """The whole report as HTML; equal data, equal text.

    Raises:
        ConfigError: if there is no catalogue of texts in the language.
    """
    texts = load_texts(language, data.currency)
    sections = build_sections(data, texts)
    # Jinja escapes whatever is not known to be safe.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_resource("template.html.j2")).render(
        data=data,
        texts=texts,
        cards=build_cards(data, texts),
        sections=sections,
        figures=_figures(sections),
        style=Markup(_resource("style.css")),  # noqa: S704
        plotly_js=Markup(get_plotlyjs()),  # noqa: S704
    )


def _figures(sections: list[Section]) -> dict[str, Any]:
    """Every chart by the id of its place in the page, as values that JSON can hold."""
    return {id_: json.loads(chart.figure.to_json()) for section in sections for id_, chart in section.charts.items()}


def _resource(name: str) -> str:
    return (files("crm_spark.report") / name).read_text(encoding="utf-8")
