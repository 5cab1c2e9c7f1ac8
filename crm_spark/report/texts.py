"""Every text that a person sees: one catalogue a language, with names and numbers as that language writes them."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from typing import Any

import pandas as pd

from crm_spark.errors import ConfigError

LANGUAGES = ("en", "zh")
# Keeps a number and its unit on one line.
_NO_BREAK_SPACE = "\u00a0"


@dataclass(frozen=True)
class Texts:
    """A catalogue of texts, and the currency of all amounts."""

    catalogue: Mapping[str, Any]
    currency: str

    def text(self, key: str, **values: object) -> str:
        """The text at a dotted key, its `{names}` replaced by the values."""
        return str(self._find(key)).format(**values)

    def name(self, kind: str, name: str) -> str:
        """How the language calls a segment, department, metric ...; unknown names stand for themselves."""
        return str(self._find(f"names.{kind}").get(name, name))

    def number(self, value: float | None, decimals: int = 0) -> str:
        if value is None or pd.isna(value):
            return self.text("missing")
        # Adding zero turns -0.0 into 0.0.
        return f"{round(float(value), decimals) + 0.0:,.{decimals}f}"

    def amount(self, value: float | None, decimals: int = 0) -> str:
        if value is None or pd.isna(value):
            return self.text("missing")
        return f"{self.currency}{_NO_BREAK_SPACE}{self.number(value, decimals)}"

    def share(self, value: float | None) -> str:
        """A share of 1 in percent; what is not zero is never shown as zero."""
        if value is None or pd.isna(value):
            return self.text("missing")
        if 0 < value < 0.001:
            return "<0.1%"
        return f"{self.number(100 * value, 1)}%"

    def day(self, day: date) -> str:
        month = self._find("date.months")[day.month - 1]
        return self.text("date.form", day=day.day, month=month, year=day.year)

    def _find(self, key: str) -> Any:
        found: Any = self.catalogue
        for part in key.split("."):
            found = found[part]
        return found


def load_texts(language: str, currency: str) -> Texts:
    """The catalogue of a language.

    Raises:
        ConfigError: if there is none.
    """
    if language not in LANGUAGES:
        raise ConfigError(f"language: found {language!r}, expected one of {', '.join(LANGUAGES)}")
    return Texts(read_catalogue(language), currency)


def read_catalogue(language: str) -> dict[str, Any]:
    """The file of a language as it stands."""
    file = files("crm_spark.report") / "texts" / f"{language}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))
