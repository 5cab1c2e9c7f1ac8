"""Tables of the cleaning layer: the canonical entities, what was rejected of them, and the account of both."""

from crm_spark.checks import Check
from crm_spark.tables import Column, Table

MONEY = "decimal(18,4)"

# Columns that cleaning fills, whatever a source says.
OWN_COLUMNS = frozenset({"sequence_no", "source", "batch_id"})

_SOURCE = Column("source", "string", "The source that the row came from.", volatile=True)
_BATCH = Column("batch_id", "string", "The file that the row came in (see `ingest_ledger`).", volatile=True)
_SEQUENCE_NO = Column(
    "sequence_no",
    "decimal(38,6)",
    "Its place among versions of its key, times in microseconds; NULL: versions have no order.",
    nullable=True,
)
_KNOWN_AT = Column(
    "known_at",
    "timestamp",
    "When the company first learned of it, in any version (UTC); NULL: as soon as it happened.",
    nullable=True,
)


def _date_range(column: str) -> Check:
    """Years outside this range are typing errors, not history."""
    return Check(
        f"{column}_plausible",
        f"{column} IS NULL OR ({column} >= TIMESTAMP '1970-01-01 00:00:00' AND "
        f"{column} < TIMESTAMP '2100-01-01 00:00:00')",
    )


CLEAN_CUSTOMERS = Table(
    name="clean_customers",
    comment="One row per customer in the customer table.",
    key=("customer_id",),
    columns=(
        Column("customer_id", "string", "The customer."),
        Column("age_band", "string", "Age band as the source states it.", nullable=True, personal=True),
        Column("gender", "string", "Gender as the source states it.", nullable=True, personal=True),
        Column("city", "string", "City.", nullable=True, personal=True),
        Column("region", "string", "Region.", nullable=True),
        Column("income_band", "string", "Income band as the source states it.", nullable=True, personal=True),
        Column("household_size_band", "string", "Persons in the household.", nullable=True, personal=True),
        Column("household_kind", "string", "Adults and children in it.", nullable=True, personal=True),
        Column("home_ownership", "string", "Owner or renter.", nullable=True, personal=True),
        Column("marital_status", "string", "Marital status.", nullable=True, personal=True),
        Column("kids_band", "string", "Number of children.", nullable=True, personal=True),
        Column("signed_up_at", "timestamp", "When the customer signed up (UTC).", nullable=True),
        _KNOWN_AT,
        _SEQUENCE_NO,
        _SOURCE,
        _BATCH,
    ),
    checks=(_date_range("signed_up_at"),),
)

CLEAN_CUSTOMER_CONTACTS = Table(
    name="clean_customer_contacts",
    comment="One row per customer whose name or address is known: apart from all tables for analysis.",
    key=("customer_id",),
    columns=(
        Column("customer_id", "string", "The customer."),
        Column("name", "string", "Full name.", nullable=True, personal=True),
        Column("email", "string", "E-mail address.", nullable=True, personal=True),
        Column("phone", "string", "Telephone number.", nullable=True, personal=True),
        Column("address", "string", "Postal address.", nullable=True, personal=True),
        Column("birth_on", "date", "Date of birth.", nullable=True, personal=True),
        _SEQUENCE_NO,
        _SOURCE,
        _BATCH,
    ),
    checks=(
        Check(
            "birth_on_plausible",
            "birth_on IS NULL OR (birth_on >= DATE '1900-01-01' AND birth_on < DATE '2100-01-01')",
        ),
    ),
)

CLEAN_ORDERS = Table(
    name="clean_orders",
    comment="One row per order line.",
    key=("order_id", "line_no"),
    columns=(
        Column("order_id", "string", "The order (a basket)."),
        Column("line_no", "bigint", "The line within the order."),
        Column("customer_id", "string", "Who ordered."),
        Column("ordered_at", "timestamp", "When (UTC)."),
        Column("product_id", "string", "What.", nullable=True),
        Column("store_id", "string", "Where.", nullable=True),
        Column("channel", "string", "Through which channel.", nullable=True),
        Column("quantity", MONEY, "How many units or how much; negative for a return.", nullable=True),
        Column("amount", MONEY, "What the customer paid for the line; negative for a return."),
        Column("discount_amount", MONEY, "What was taken off the price.", nullable=True),
        Column("returned_order_id", "string", "The order that the line returns goods of.", nullable=True),
        Column("currency", "string", "Currency of the amounts.", nullable=True),
        _KNOWN_AT,
        _SEQUENCE_NO,
        _SOURCE,
        _BATCH,
    ),
    checks=(
        _date_range("ordered_at"),
        Check("discount_not_negative", "discount_amount IS NULL OR discount_amount >= 0 OR amount < 0"),
    ),
)

CLEAN_CAMPAIGNS = Table(
    name="clean_campaigns",
    comment="One row per marketing campaign.",
    key=("campaign_id",),
    columns=(
        Column("campaign_id", "string", "The campaign."),
        Column("name", "string", "Its name.", nullable=True),
        Column("kind", "string", "Its kind.", nullable=True),
        Column("channel", "string", "Its channel.", nullable=True),
        Column("starts_on", "date", "Its first day."),
        Column("ends_on", "date", "Its last day.", nullable=True),
        _SEQUENCE_NO,
        _SOURCE,
        _BATCH,
    ),
    checks=(Check("ends_after_start", "ends_on IS NULL OR ends_on >= starts_on"),),
)

CLEAN_CONTACTS = Table(
    name="clean_contacts",
    comment="One row per marketing contact sent to a customer.",
    key=("contact_id",),
    columns=(
        Column("contact_id", "string", "The contact."),
        Column("customer_id", "string", "To whom."),
        Column("campaign_id", "string", "For which campaign.", nullable=True),
        Column("channel", "string", "Through which channel.", nullable=True),
        Column("sent_at", "timestamp", "When (UTC); NULL: when its campaign started.", nullable=True),
        _KNOWN_AT,
        _SEQUENCE_NO,
        _SOURCE,
        _BATCH,
    ),
    checks=(
        _date_range("sent_at"),
        Check("sent_or_of_campaign", "sent_at IS NOT NULL OR campaign_id IS NOT NULL"),
    ),
)

CLEAN_RESPONSES = Table(
    name="clean_responses",
    comment="One row per response of a customer to marketing.",
    key=("response_id",),
    columns=(
        Column("response_id", "string", "The response."),
        Column("customer_id", "string", "Who responded."),
        Column("campaign_id", "string", "To which campaign.", nullable=True),
        Column("responded_at", "timestamp", "When (UTC)."),
        Column("kind", "string", "How.", nullable=True),
        _KNOWN_AT,
        _SEQUENCE_NO,
        _SOURCE,
        _BATCH,
    ),
    checks=(_date_range("responded_at"),),
)

CLEAN_PRODUCTS = Table(
    name="clean_products",
    comment="One row per product.",
    key=("product_id",),
    columns=(
        Column("product_id", "string", "The product."),
        Column("name", "string", "Its name or type.", nullable=True),
        Column("category", "string", "Its category.", nullable=True),
        Column("department", "string", "Its department.", nullable=True),
        Column("brand", "string", "Its brand.", nullable=True),
        Column("price", MONEY, "What a unit of it usually costs, in the reporting currency.", nullable=True),
        _SEQUENCE_NO,
        _SOURCE,
        _BATCH,
    ),
    checks=(Check("price_not_negative", "price IS NULL OR price >= 0"),),
)

CLEAN_SERVICE_EVENTS = Table(
    name="clean_service_events",
    comment="One row per call or other contact of a customer with the service.",
    key=("event_id",),
    columns=(
        Column("event_id", "string", "The event."),
        Column("customer_id", "string", "Who asked for service."),
        Column("started_at", "timestamp", "When (UTC)."),
        Column("kind", "string", "What about.", nullable=True),
        Column("channel", "string", "Through which channel.", nullable=True),
        Column("duration_seconds", "bigint", "How long it took.", nullable=True),
        Column("is_resolved", "boolean", "Whether it settled the matter.", nullable=True),
        Column("agent_id", "string", "Who served.", nullable=True),
        _KNOWN_AT,
        _SEQUENCE_NO,
        _SOURCE,
        _BATCH,
    ),
    checks=(
        _date_range("started_at"),
        Check("duration_not_negative", "duration_seconds IS NULL OR duration_seconds >= 0"),
    ),
)

CLEAN_FEEDBACK = Table(
    name="clean_feedback",
    comment="One row per rating or comment given by a customer.",
    key=("feedback_id",),
    columns=(
        Column("feedback_id", "string", "The feedback."),
        Column("customer_id", "string", "Who gave it."),
        Column("given_at", "timestamp", "When (UTC)."),
        Column("rating", MONEY, "From 1, the worst, to 5, the best.", nullable=True),
        Column("text", "string", "What was written.", nullable=True, personal=True),
        Column("channel", "string", "Through which channel.", nullable=True),
        Column("product_id", "string", "About which product.", nullable=True),
        _KNOWN_AT,
        _SEQUENCE_NO,
        _SOURCE,
        _BATCH,
    ),
    checks=(
        _date_range("given_at"),
        Check("rating_within_1_and_5", "rating IS NULL OR rating BETWEEN 1 AND 5"),
        Check("rating_or_text", "rating IS NOT NULL OR text IS NOT NULL"),
    ),
)

CLEAN_VISITS = Table(
    name="clean_visits",
    comment="One row per page view or other action on a site or in an app.",
    key=("event_id",),
    columns=(
        Column("event_id", "string", "The view or action."),
        Column("customer_id", "string", "Who; NULL: not signed in.", nullable=True),
        Column("session_id", "string", "Within which session.", nullable=True),
        Column("occurred_at", "timestamp", "When (UTC)."),
        Column("page", "string", "On which page.", nullable=True),
        Column("product_id", "string", "About which product.", nullable=True),
        Column("category", "string", "About which category.", nullable=True),
        Column("action", "string", "What was done: view, cart and purchase become features.", nullable=True),
        _KNOWN_AT,
        _SEQUENCE_NO,
        _SOURCE,
        _BATCH,
    ),
    checks=(_date_range("occurred_at"),),
)

# Entity to its clean table.
CLEAN = {
    "customers": CLEAN_CUSTOMERS,
    "customer_contacts": CLEAN_CUSTOMER_CONTACTS,
    "orders": CLEAN_ORDERS,
    "service_events": CLEAN_SERVICE_EVENTS,
    "feedback": CLEAN_FEEDBACK,
    "visits": CLEAN_VISITS,
    "campaigns": CLEAN_CAMPAIGNS,
    "contacts": CLEAN_CONTACTS,
    "responses": CLEAN_RESPONSES,
    "products": CLEAN_PRODUCTS,
}


def _rejected(entity: str) -> Table:
    return Table(
        name=f"rejected_{entity}",
        comment=f"One row per source row of {entity} that was rejected, equal rows of one file counted.",
        key=("source", "batch_id", "row_text"),
        columns=(
            Column("source", "string", "The source's name in the configuration."),
            Column("batch_id", "string", "The file that the row came in (see `ingest_ledger`)."),
            Column("reasons", "array<string>", "Every rule that the row breaks."),
            Column("row_text", "string", "The row as it came, as JSON.", personal=True),
            Column("row_count", "bigint", "How often it stands in the file."),
        ),
        checks=(Check("has_reason", "size(reasons) > 0"),),
    )


# Entity to the table of its rejected rows.
REJECTED = {entity: _rejected(entity) for entity in CLEAN}

WITHHELD_KEYS = Table(
    name="withheld_keys",
    comment="One row per key that good rows came with and that no clean row has: deleted, or told of differently.",
    key=("entity", "key"),
    columns=(
        Column("entity", "string", "The entity."),
        Column("key", "string", "The key's columns and their values, as JSON."),
        Column("kind", "string", "deleted: the newest version is a deletion; conflicting: nothing says which is true."),
        Column("sequence_no", "decimal(38,6)", "The deletion's place among versions of the key.", nullable=True),
        Column("known_at", "timestamp", "When the company first learned of it, in any version (UTC).", nullable=True),
        _SOURCE,
        _BATCH,
    ),
    checks=(Check("kind_listed", "kind IN ('deleted', 'conflicting')"),),
)

CLEANING_ACCOUNT = Table(
    name="cleaning_account",
    comment="One row per file: what became of its rows.",
    key=("source", "batch_id"),
    columns=(
        Column("source", "string", "The source's name in the configuration."),
        Column("entity", "string", "The entity that the source feeds."),
        Column("batch_id", "string", "The file (see `ingest_ledger`)."),
        Column("file_name", "string", "The file's name as it came."),
        Column("fault", "string", "Why the file cannot be read; no row of it counts.", nullable=True),
        Column("read_count", "bigint", "Rows read from the file."),
        Column("accepted_count", "bigint", "Rows that stand in the clean table."),
        Column("rejected_count", "bigint", "Rows in quarantine."),
        Column(
            "duplicate_count",
            "bigint",
            "Rows left out because they repeat the newest row that had come with their key.",
        ),
        Column("superseded_count", "bigint", "Rows left out for a newer one with their key and other content."),
        Column("deletion_count", "bigint", "Rows that say that their key is gone, and are the newest to tell of it."),
    ),
    checks=(
        Check(
            "every_row_accounted",
            "read_count = accepted_count + rejected_count + duplicate_count + superseded_count + deletion_count",
        ),
    ),
)

# Of events: when they happened.
HAPPENED_AT = {
    "orders": "ordered_at",
    "contacts": "sent_at",
    "responses": "responded_at",
    "service_events": "started_at",
    "feedback": "given_at",
    "visits": "occurred_at",
}

# The columns by which files of an entity are compared: none that names somebody or something.
PROFILED: dict[str, tuple[str, ...]] = {
    "customers": ("region",),
    "customer_contacts": (),
    "orders": ("channel", "quantity", "amount", "discount_amount"),
    "service_events": ("kind", "channel", "duration_seconds", "is_resolved"),
    "feedback": ("rating", "channel"),
    "visits": ("action",),
    "campaigns": ("kind", "channel"),
    "contacts": ("channel",),
    "responses": ("kind",),
    "products": ("department", "brand"),
}

# Columns that name a row of another entity.
REFERENCES = {
    "orders": {"customer_id": "customers", "product_id": "products", "returned_order_id": "orders"},
    "service_events": {"customer_id": "customers"},
    "feedback": {"customer_id": "customers", "product_id": "products"},
    "visits": {"customer_id": "customers", "product_id": "products"},
    "contacts": {"customer_id": "customers", "campaign_id": "campaigns"},
    "responses": {"customer_id": "customers", "campaign_id": "campaigns"},
}

BATCH_PROFILES = Table(
    name="batch_profiles",
    comment="One row per file with a good row: what its good rows say as they came.",
    key=("source", "batch_id"),
    columns=(
        Column("source", "string", "The source's name in the configuration."),
        Column("entity", "string", "The entity that the source feeds."),
        Column("batch_id", "string", "The file (see `ingest_ledger`)."),
        Column("good_count", "bigint", "Good rows, deletions left out, whatever became of them."),
        Column("late_count", "bigint", "Those known more than `arrival_hours` after they happened."),
        Column(
            "first_happened_at", "timestamp", "The earliest event (UTC); NULL: it tells of no events.", nullable=True
        ),
        Column(
            "last_happened_at",
            "timestamp",
            "The latest event (UTC) up to when the file came; NULL: it tells of none.",
            nullable=True,
        ),
        Column("warnings", "array<struct<rule:string,row_count:bigint>>", "Good rows that break a rule that warns."),
        Column(
            "values",
            "array<struct<column:string,value:string,row_count:bigint>>",
            "How often key columns have which values, numbers by their first digit; of over 50, buckets (#07).",
        ),
    ),
)

TABLES = (*CLEAN.values(), *REJECTED.values(), WITHHELD_KEYS, BATCH_PROFILES, CLEANING_ACCOUNT)
