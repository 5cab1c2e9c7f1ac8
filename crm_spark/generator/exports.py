"""What the systems of the generated shop export: each entity in a form of its own, and the errors it may have."""

from collections.abc import Mapping
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from crm_spark.generator import shop
from crm_spark.generator.dirt import CUT_SHORT, Dirt
from crm_spark.generator.shop import CURRENCY, END, Plan

_NO_DAY, _ANCIENT, _NO_NUMBER = "2025-02-30 10:00:00", "0025-06-01 10:00:00", "12.5o"


@dataclass(frozen=True)
class Export:
    """The files of one entity. `rows` have the file's columns, all texts, and `day`, by which they come into files.

    `file_count` None: as many as there are files of order lines.
    """

    name: str
    rows: DataFrame
    dirt: Dirt
    suffix: str = "csv"
    delimiter: str = ","
    file_count: int | None = None

    @property
    def columns(self) -> list[str]:
        return [column for column in self.rows.columns if column != "day"]

    @property
    def header(self) -> str | None:
        return self.delimiter.join(self.columns) if self.suffix.startswith("csv") else None

    def line(self) -> Column:
        """A row as a line of its file; one that is cut short lacks its end."""
        if self.suffix == "jsonl":
            line = F.to_json(F.struct(*self.columns))
            cut = F.substring(line, F.lit(1), F.length(line) - 3)
        else:
            line = F.to_csv(F.struct(*self.columns), {"sep": self.delimiter, "escape": '"'})
            cut = F.substring_index(line, self.delimiter, len(self.columns) - 1)
        return F.when(F.col("error") == CUT_SHORT, cut).otherwise(line)


def build_exports(customers: DataFrame, orders: DataFrame, plan: Plan) -> list[Export]:
    """The exports of all entities."""
    spark = customers.sparkSession
    contacts = shop.build_contacts(customers, plan)
    responses = contacts.where("answered_at IS NOT NULL").select(
        F.col("response_day").alias("day"),
        F.concat(F.lit("R-"), "contact").alias("response"),
        "customer_id",
        "campaign",
        "answered_at",
        "answer",
    )
    return [
        Export(
            "customers",
            shop.build_customer_table(customers, plan),
            Dirt(
                key=("id", "changed_at"),
                values={"key_missing": {"id": None}, "order_missing": {"changed_at": "soon"}},
            ),
            file_count=3,
        ),
        Export(
            "customer_contacts",
            shop.build_customer_contacts(customers, plan),
            Dirt(
                key=("id",),
                values={"key_missing": {"id": None}, "birth_in_antiquity": {"born_on": "0085-01-01"}},
                told_differently={"phone": "+00 555 0"},
            ),
            file_count=1,
        ),
        Export(
            "products",
            shop.build_products(spark, plan),
            Dirt(("article",), {"key_missing": {"article": None}}, {"title": "Another article"}, may_be_cut=False),
            suffix="parquet",
            file_count=1,
        ),
        Export(
            "orders",
            shop.build_lines(orders, plan),
            Dirt(
                key=("receipt", "position"),
                values={
                    "key_missing": {"receipt": None},
                    "line_not_a_number": {"position": "first"},
                    "customer_missing": {"card": None},
                    "day_not_in_calendar": {"sold_at": _NO_DAY},
                    "year_implausible": {"sold_at": _ANCIENT},
                    "amount_not_a_number": {"paid": _NO_NUMBER},
                    "amount_missing": {"paid": None},
                    "foreign_currency": {"currency": "XAU"},
                    "two_errors": {"units": "many", "paid": "1e309"},
                },
                told_differently={"paid": "9999.99"},
            ),
        ),
        Export(
            "service_events",
            shop.build_service_events(customers, plan),
            Dirt(
                key=("ticket",),
                values={
                    "customer_missing": {"customer": None},
                    "day_not_in_calendar": {"opened_at": _NO_DAY},
                    "duration_negative": {"seconds": "-20"},
                    "flag_unknown": {"solved": "perhaps"},
                },
                told_differently={"agent": "A99"},
            ),
            delimiter=";",
        ),
        Export(
            "feedback",
            shop.build_feedback(orders, plan).drop("sentiment", "language"),
            Dirt(
                key=("id",),
                values={
                    "customer_missing": {"customer": None},
                    "rating_out_of_range": {"stars": "11"},
                    "nothing_said": {"stars": None, "comment": None},
                },
                told_differently={"stars": "3.5"},
            ),
            suffix="jsonl",
        ),
        Export(
            "visits",
            shop.build_visits(orders, plan),
            Dirt(
                key=("event",),
                values={"key_missing": {"event": None}, "day_not_in_calendar": {"at": "2025-02-30T10:00:00Z"}},
                told_differently={"action": "other"},
            ),
            suffix="jsonl",
        ),
        Export(
            "campaigns",
            shop.build_campaigns(spark, plan),
            Dirt(
                key=("campaign",),
                values={"day_missing": {"from_day": None}, "ends_before_start": {"to_day": "2000-01-01"}},
                told_differently={"kind": "other"},
            ),
            delimiter=";",
            file_count=1,
        ),
        Export(
            "contacts",
            contacts.drop("response_day", "answered_at", "answer"),
            Dirt(
                key=("contact",),
                values={"customer_missing": {"customer_id": None}, "day_not_in_calendar": {"sent_at": _NO_DAY}},
                told_differently={"channel": "pigeon"},
            ),
            suffix="csv.gz",
        ),
        Export(
            "responses",
            responses,
            Dirt(
                key=("response",),
                values={"customer_missing": {"customer_id": None}, "day_missing": {"answered_at": None}},
                told_differently={"answer": "other"},
                may_be_cut=False,
            ),
            suffix="parquet",
        ),
    ]


def settings(folder: str) -> str:
    """The configuration by which crm_spark takes the files below a folder in."""
    parts = [f'as_of = {END}\ncurrency = "{CURRENCY}"\n']
    for name, (options, columns) in _SOURCES.items():
        parts += [
            f'\n[sources.{name}]\nentity = "{name}"\npath = "{folder}/{name}"\n{options}\n\n[sources.{name}.columns]'
        ]
        parts += [f'{column} = "{expression}"' for column, expression in columns.items()]
    return "\n".join(parts) + "\n"


_SOURCES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "customers": (
        'format = "csv"\nsequence_by = "cast(changed_at as timestamp)"\nis_deletion = "operation = \'D\'"',
        {
            "customer_id": "id",
            "age_band": "age",
            "gender": "gender",
            "city": "city",
            "region": "region",
            "signed_up_at": "since",
            "known_at": "cast(since as timestamp)",
        },
    ),
    "customer_contacts": (
        'format = "csv"',
        {
            "customer_id": "id",
            "name": "name",
            "email": "email",
            "phone": "phone",
            "address": "address",
            "birth_on": "born_on",
        },
    ),
    "products": (
        'format = "parquet"',
        {
            "product_id": "article",
            "name": "title",
            "category": "category",
            "department": "department",
            "brand": "brand",
            "price": "price",
        },
    ),
    "orders": (
        'format = "csv"',
        {
            "order_id": "receipt",
            "line_no": "position",
            "customer_id": "card",
            "ordered_at": "sold_at",
            "product_id": "article",
            "store_id": "store",
            "channel": "channel",
            "quantity": "units",
            "amount": "paid",
            "discount_amount": "rebate",
            "returned_order_id": "return_of",
            "currency": "currency",
            "known_at": "cast(sold_at as timestamp)",
        },
    ),
    "service_events": (
        'format = "csv"\ndelimiter = ";"',
        {
            "event_id": "ticket",
            "customer_id": "customer",
            "started_at": "opened_at",
            "kind": "topic",
            "channel": "channel",
            "duration_seconds": "seconds",
            "is_resolved": "solved",
            "agent_id": "agent",
            "known_at": "cast(opened_at as timestamp)",
        },
    ),
    "feedback": (
        'format = "json"',
        {
            "feedback_id": "id",
            "customer_id": "customer",
            "given_at": "given_at",
            "rating": "stars",
            "text": "comment",
            "channel": "via",
            "known_at": "cast(given_at as timestamp)",
        },
    ),
    "visits": (
        'format = "json"',
        {
            "event_id": "event",
            "customer_id": "user",
            "session_id": "session",
            "occurred_at": "at",
            "page": "page",
            "product_id": "article",
            "action": "action",
            "known_at": "cast(at as timestamp)",
        },
    ),
    "campaigns": (
        'format = "csv"\ndelimiter = ";"',
        {
            "campaign_id": "campaign",
            "name": "title",
            "kind": "kind",
            "channel": "channel",
            "starts_on": "from_day",
            "ends_on": "to_day",
        },
    ),
    "contacts": (
        'format = "csv"',
        {
            "contact_id": "contact",
            "customer_id": "customer_id",
            "campaign_id": "campaign",
            "channel": "channel",
            "sent_at": "sent_at",
            "known_at": "cast(sent_at as timestamp)",
        },
    ),
    "responses": (
        'format = "parquet"',
        {
            "response_id": "response",
            "customer_id": "customer_id",
            "campaign_id": "campaign",
            "responded_at": "answered_at",
            "kind": "answer",
            "known_at": "cast(answered_at as timestamp)",
        },
    ),
}
