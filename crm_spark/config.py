"""The configuration of a run: typed, checked, and complete before any data is read.

`conf/base.toml` holds every default; a site's own file and then `--set key=value` replace single keys of it.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from crm_spark.errors import ConfigError


def _known_time_zone(name: str) -> str:
    if name not in available_timezones():
        raise ValueError("expected the name of a time zone, such as Europe/Berlin or UTC")
    return name


TimeZone = Annotated[str, AfterValidator(_known_time_zone)]
Entity = Literal[
    "customers", "customer_contacts", "orders", "service_events", "feedback", "visits",
    "campaigns", "contacts", "responses", "products",
]  # fmt: skip
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,40}$")]
Number = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
# Names in a database, as it stores them; they are quoted wherever they are used.
DatabaseColumn = Annotated[str, Field(pattern=r"^[\w$][\w$ -]{0,62}$")]
DatabaseTable = Annotated[str, Field(pattern=r"^[\w$][\w$ -]{0,62}([.][\w$][\w$ -]{0,62})?$")]
_OF_JDBC = frozenset(
    {"url", "table", "user_from", "password_from", "watermark", "overlap", "partition_by", "partitions"}
)
# The keys of a source that change nothing of a file's rows: whence and which files come, and whether they must.
OF_NO_ROW = {"path", "package", "other_columns", "leave_out", "required", *_OF_JDBC}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Source(_Section):
    """Where rows of one entity come from, and how the file's columns become the entity's columns."""

    entity: Entity
    format: Literal["parquet", "csv", "json", "delta", "jdbc"]
    path: str = ""
    # An installed Python package that ships the file; `path` is then relative to it.
    package: str | None = None
    # Of CSV files alone.
    delimiter: str = ","
    quote: str = '"'
    encoding: Literal["UTF-8", "ISO-8859-1", "US-ASCII", "UTF-16", "UTF-16BE", "UTF-16LE", "UTF-32"] = "UTF-8"
    # Of tables in PostgreSQL alone. The user and the password stand in environment variables of these names.
    url: str = ""
    table: DatabaseTable | None = None
    user_from: str | None = None
    password_from: str | None = None
    # A column that grows with every change (a time or a number), and how far before the last extract's end the next one
    # begins, in minutes or steps, as transactions commit late.
    watermark: DatabaseColumn | None = None
    overlap: Annotated[int, Field(ge=0)] = 60
    # A column (a time or a number) by whose values so many connections share the reading.
    partition_by: DatabaseColumn | None = None
    partitions: Annotated[int, Field(ge=1, le=64)] = 1
    columns: Mapping[str, str]
    # For rows without a key of their own: those columns of the entity's key that have no mapping are filled.
    key_from_content: bool = False
    # Whether files may have other columns than those before them, as long as they have those that are mapped.
    other_columns: Literal["stop", "allow"] = "stop"
    # Whether a run publishes only if there are rows of the last day before its as_of (`--allow-stale`: also without).
    required: bool = False
    # Names of landed files that shall not count.
    leave_out: tuple[str, ...] = Field((), strict=False)
    # For records that change: which of two with one key is newer (a time or a number), and which say that it is gone.
    sequence_by: str | None = None
    is_deletion: str | None = None

    @property
    def is_extracted(self) -> bool:
        """Whether Spark asks it for rows, as it has no files of its own to be kept."""
        return self.format in ("delta", "jdbc")

    @property
    def landed_format(self) -> str:
        """The format of its landed files: what is extracted lands as Parquet."""
        return "parquet" if self.is_extracted else self.format

    @model_validator(mode="before")
    @classmethod
    def _a_watermark_is_an_order(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("watermark") and "sequence_by" not in values:
            return values | {"sequence_by": f"`{values['watermark']}`"}
        return values

    @model_validator(mode="after")
    def _keys_fit_the_format(self) -> "Source":
        given = sorted(_OF_JDBC & self.model_fields_set)
        if self.format == "jdbc":
            _check_database(self)
        elif given:
            raise ValueError(f'expected {given[0]} beside format = "jdbc" alone')
        elif not self.path:
            raise ValueError(f'expected path beside format = "{self.format}"')
        elif self.format == "delta" and self.package is not None:
            raise ValueError('expected no package beside format = "delta"')
        return self

    @model_validator(mode="after")
    def _required_sources_tell_of_events(self) -> "Source":
        if self.required and self.entity in ("customers", "customer_contacts", "campaigns", "products"):
            raise ValueError(f"expected required only for entities of events: {self.entity} have no time")
        return self

    @model_validator(mode="after")
    def _deletions_have_an_order(self) -> "Source":
        if self.is_deletion and not self.sequence_by:
            raise ValueError("expected sequence_by beside is_deletion, to tell deletions from what came after them")
        return self


def _check_database(source: Source) -> None:
    """Errors tell no value: a secret may stand where none is expected."""
    if source.path or source.package:
        raise ValueError('expected no path or package beside format = "jdbc": url and table tell where its rows are')
    if not re.fullmatch(r"jdbc:postgresql://[^\s@?]+([?][^\s@?]+)?", source.url) or re.search(
        r"(user|password)[^&=]*=", source.url, re.IGNORECASE
    ):
        raise ValueError(
            'expected url such as "jdbc:postgresql://host:5432/shop", without a user or a password: '
            "user_from and password_from name the environment variables that have them"
        )
    if source.table is None or source.user_from is None:
        raise ValueError('expected table and user_from beside format = "jdbc"')
    for variable in filter(None, (source.user_from, source.password_from)):
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", variable):
            raise ValueError("expected names of environment variables, such as SHOP_USER, in user_from, password_from")
    if "overlap" in source.model_fields_set and source.watermark is None:
        raise ValueError("expected watermark beside overlap")
    if (source.partition_by is None) != (source.partitions == 1):
        raise ValueError("expected partition_by and partitions, 2 or more, beside each other")


class Rule(_Section):
    """A condition over the columns of `clean_<entity>` that each of its rows shall fulfil."""

    entity: Entity
    must_hold: str
    # What becomes of a row that does not: quarantine, or only a count in mart_data_quality.
    severity: Literal["reject", "warn"] = "reject"


class Features(_Section):
    windows_days: tuple[Annotated[int, Field(ge=1, le=3660)], ...] = Field(min_length=1, strict=False)

    @model_validator(mode="after")
    def _windows_rise(self) -> "Features":
        if list(self.windows_days) != sorted(set(self.windows_days)):
            raise ValueError("expected windows_days in rising order, each once")
        if 28 not in self.windows_days:
            raise ValueError("expected 28 among windows_days: the frequency baseline counts purchases in 28 days")
        return self


class Imputation(_Section):
    """What stands for a feature's missing values in the matrices of models."""

    by: Literal["constant", "median", "most_frequent", "forward_fill", "flag", "feature"]
    # The constant; of the other rules, what stands where they find nothing.
    value: Number | Text | None = None
    # The feature whose value it is, if by = "feature".
    feature: str | None = None

    @model_validator(mode="after")
    def _has_what_its_rule_needs(self) -> "Imputation":
        if self.by == "constant" and self.value is None:
            raise ValueError('expected a value beside by = "constant"')
        if (self.by == "feature") != (self.feature is not None):
            raise ValueError('expected feature beside by = "feature", and there alone')
        if self.by == "feature" and self.value is not None:
            raise ValueError('expected no value beside by = "feature": where that one is missing, its own rule holds')
        return self


class Outlier(_Section):
    """Which of a feature's values count as outliers."""

    by: Literal["quantile", "robust_z"]
    low: Share | None = None
    high: Share | None = None
    above: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _has_what_its_rule_needs(self) -> "Outlier":
        shares = [share for share in (self.low, self.high) if share is not None]
        if self.by == "robust_z" and (self.above is None or shares):
            raise ValueError('expected above beside by = "robust_z", and neither low nor high')
        if self.by == "quantile" and (self.above is not None or not shares):
            raise ValueError('expected low, high or both beside by = "quantile", and no above')
        if shares != sorted(set(shares)):
            raise ValueError("expected low to be less than high")
        return self


Scores = Annotated[tuple[Annotated[int, Field(ge=1, le=5)], Annotated[int, Field(ge=1, le=5)]], Field(strict=False)]


class RfmSegment(_Section):
    """The lowest and the highest of each score that customers of an RFM segment have."""

    name: Text
    recency: Scores = (1, 5)
    frequency: Scores = (1, 5)
    monetary: Scores = (1, 5)

    @model_validator(mode="after")
    def _from_low_to_high(self) -> "RfmSegment":
        if any(low > high for low, high in (self.recency, self.frequency, self.monetary)):
            raise ValueError("expected the lowest score before the highest")
        return self

    def has(self, scores: tuple[int, ...]) -> bool:
        """Whether a recency, a frequency and a monetary score lie within it."""
        spans = (self.recency, self.frequency, self.monetary)
        return all(low <= score <= high for score, (low, high) in zip(scores, spans, strict=True))


class Rfm(_Section):
    """The RFM segments in order: a customer is of the first that has their scores, or of `otherwise`."""

    segments: tuple[RfmSegment, ...] = Field(strict=False)
    otherwise: Text

    @property
    def segment_by_scores(self) -> dict[tuple[int, ...], str]:
        """The one segment of every recency, frequency and monetary score."""
        return {
            scores: next((segment.name for segment in self.segments if segment.has(scores)), self.otherwise)
            for scores in product(range(1, 6), repeat=3)
        }

    @model_validator(mode="after")
    def _every_segment_is_reached(self) -> "Rfm":
        names = [segment.name for segment in self.segments]
        if len({*names, self.otherwise}) <= len(names):
            raise ValueError("expected each segment under a name of its own")
        reached = set(self.segment_by_scores.values())
        if missed := [name for name in names if name not in reached]:
            raise ValueError(
                f"expected scores of which {missed[0]!r} is the first segment: those before it have them all"
            )
        return self


class ValuePart(_Section):
    """What a feature of a customer says of their value, from 0 to 1."""

    feature: str
    # 0 takes a shipped part out.
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    # Which end of the feature's values is worth 1.
    best: Literal["high", "low"] = "high"
    # What a customer of whom it is missing gets.
    missing: Share = 0.5


class Segments(_Section):
    cluster_counts: tuple[Annotated[int, Field(ge=2, le=8)], ...] = Field(min_length=2, strict=False)
    starts: Annotated[int, Field(ge=1, le=100)]
    sample_customers: Annotated[int, Field(ge=100)]
    cap_outliers: bool = False
    seed: int


class Task(_Section):
    """A prediction task. `label` names what is predicted over the `horizon_days` from a cut-off."""

    label: Literal["no_purchase", "response_to_contact"]
    horizon_days: Annotated[int, Field(ge=1, le=366)]
    train_cutoffs: Annotated[int, Field(ge=2, le=60)]
    cap_outliers: bool = False
    seed: int


class Config(_Section):
    lake: str
    as_of: date | None = None
    business_time_zone: TimeZone
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    arrival_hours: Annotated[int, Field(ge=0, le=24 * 366)]
    features: Features
    # By feature; that there are such features is known to the models layer.
    imputation: Mapping[str, Imputation]
    outliers: Mapping[str, Outlier]
    rfm: Rfm
    # By part; that there are such features is known to the models layer.
    value: Mapping[Name, ValuePart]
    segments: Segments
    tasks: Mapping[Name, Task]
    sources: Mapping[Name, Source] = Field(min_length=1)
    rules: Mapping[Name, Rule] = Field({})

    @property
    def value_parts(self) -> dict[str, ValuePart]:
        """The parts that count."""
        return {name: part for name, part in self.value.items() if part.weight}

    @model_validator(mode="after")
    def _a_part_of_value_counts(self) -> "Config":
        if not self.value_parts:
            raise ValueError("expected a part of [value] with a weight above 0")
        return self

    @model_validator(mode="after")
    def _sources_of_an_entity_are_ordered_alike(self) -> "Config":
        for entity in {source.entity for source in self.sources.values()}:
            orders = {name: source.sequence_by for name, source in self.sources.items() if source.entity == entity}
            if None in orders.values() and set(orders.values()) != {None}:
                (name, *_) = sorted(name for name, order in orders.items() if order is None)
                raise ValueError(
                    f"expected sequence_by in sources.{name}, too, as other sources of {entity} have it or a watermark"
                )
        return self

    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.business_time_zone)


def conf_dir() -> Traversable:
    """The folder of shipped settings: inside the package, installed or in an archive, or beside it in a source tree."""
    packed = resources.files("crm_spark") / "conf"
    return packed if packed.is_dir() else Path(__file__).parent.parent / "conf"


def load_config(path: Traversable, settings: Iterable[str] = (), **options: object) -> Config:
    """The base settings, overlaid by the file, by `key=value` settings and by the options that are not None.

    Raises:
        ConfigError: for a missing file, an unknown key, a wrong type or an impossible value.
    """
    values = _overlay(_read_toml(conf_dir() / "base.toml"), _read_toml(path))
    for setting in settings:
        values = _overlay(values, _parse_setting(setting))
    values |= {key: value for key, value in options.items() if value is not None}
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_explain(error)}") from None


def parse_date(text: str, name: str) -> date:
    """Raises: ConfigError: if the text is no date of the calendar."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{name}: found {text!r}, expected a date such as 2017-12-31") from None


def parse_instant(text: str, name: str) -> datetime:
    """Raises: ConfigError: if the text is no instant with its distance from UTC."""
    with suppress(ValueError):
        instant = datetime.fromisoformat(text)
        if instant.tzinfo is not None:
            return instant.astimezone(UTC)
    raise ConfigError(f"{name}: found {text!r}, expected an instant such as 2017-12-31T06:00:00Z or one with +01:00")


def parse_days(first: date, last: date, every: str) -> list[date]:
    """The days from `first` to `last` that lie so many days apart.

    Raises:
        ConfigError: if the distance is no number of days, or there is no such day.
    """
    step = re.fullmatch(r"([1-9]\d{0,3})d", every)
    if step is None:
        raise ConfigError(f"--every: found {every!r}, expected a number of days such as 7d")
    if last < first:
        raise ConfigError(f"--to: found {last}, expected a date from {first} on, as --from says")
    return [first + timedelta(days=days) for days in range(0, (last - first).days + 1, int(step[1]))]


def _read_toml(path: Traversable) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: found no such file, expected a configuration in TOML") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {_quote_line(path, error)}expected a configuration in TOML: {error}") from None
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: expected a configuration in TOML: {error}") from None


def _quote_line(path: Traversable, error: tomllib.TOMLDecodeError) -> str:
    """The key of the line that TOML could not read; not its value, which may be a secret."""
    place = re.search(r"at line (\d+)", str(error))
    lines = path.read_text(encoding="utf-8").splitlines()
    if place is None or int(place[1]) > len(lines):
        return ""
    return f"found {lines[int(place[1]) - 1].partition('=')[0].strip()!r}, "


def _parse_setting(setting: str) -> dict[str, Any]:
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set: found {setting!r}, expected key=value such as segments.starts=3")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is itself, so that --set currency=EUR needs no quotes
    nested: Any = value
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return dict(nested)


def _overlay(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        # A rule says what it does by `by`, a part of value by `feature`: another one takes its place whole.
        both_tables = (
            isinstance(value, dict) and isinstance(merged.get(key), dict) and not {"by", "feature"} & set(value)
        )
        merged[key] = _overlay(merged[key], value) if both_tables else value
    return merged


def _explain(error: ValidationError) -> str:
    """Every fault of a configuration in one line: the key, what was found, what was expected."""
    faults = []
    for fault in error.errors(include_url=False):
        key = ".".join(str(part) for part in fault["loc"])
        expected = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            faults.append(f"{key}: found an unknown key, expected one that conf/base.toml or the README names")
        elif fault["type"] == "missing":
            faults.append(f"{key}: found nothing, expected a value")
        elif isinstance(fault["input"], dict):
            faults.append(f"{key}: {expected}" if key else expected)
        else:
            faults.append(f"{key}: found {fault['input']!r}, {expected[:1].lower()}{expected[1:]}")
    return "; ".join(faults)
