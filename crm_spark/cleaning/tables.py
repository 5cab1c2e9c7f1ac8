"""Tables of the cleaning layer: the canonical entities, what was rejected of them, and the account of both."""

from crm_spark.checks import Check
from crm_spark.tables import Column, Table

MONEY = "decimal(18,4)"

_SOURCE = Column("source", "string", "The source that the row came from.", volatile=True)
_BATCH = Column("batch_id", "string", "The file that the row came in (see `ingest_ledger`).", volatile=True)
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
        _SOURCE,
        _BATCH,
    ),
    checks=(_date_range("signed_up_at"),),
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
        _SOURCE,
        _BATCH,
    ),
)

# Entity to its clean table.
CLEAN = {
    "customers": CLEAN_CUSTOMERS,
    "orders": CLEAN_ORDERS,
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

CLEANING_ACCOUNT = Table(
    name="cleaning_account",
    comment="One row per file: what became of its rows.",
    key=("source", "batch_id"),
    columns=(
        Column("source", "string", "The source's name in the configuration."),
        Column("entity", "string", "The entity that the source feeds."),
        Column("batch_id", "string", "The file (see `ingest_ledger`)."),
        Column("file_name", "string", "The file's name as it came."),
        Column("read_count", "bigint", "Rows read from the file."),
        Column("accepted_count", "bigint", "Rows that stand in the clean table."),
        Column("rejected_count", "bigint", "Rows in quarantine."),
        Column("duplicate_count", "bigint", "Rows left out because they repeat another row with their key."),
        Column("superseded_count", "bigint", "Rows left out because a newer row with their key has other content."),
        Column("deletion_count", "bigint", "Rows that say that their key is gone, and are the newest to tell of it."),
    ),
    checks=(
        Check(
            "every_row_accounted",
            "read_count = accepted_count + rejected_count + duplicate_count + superseded_count + deletion_count",
        ),
    ),
)

TABLES = (*CLEAN.values(), *REJECTED.values(), CLEANING_ACCOUNT)
