"""Tables of the facts layer: events and who they happened to, joined once and for all."""

from crm_spark.checks import Check
from crm_spark.cleaning.tables import MONEY
from crm_spark.tables import Column, Table

_CUSTOMER = Column("customer_id", "string", "The customer.")
_HAPPENED_AT = Column("happened_at", "timestamp", "When (UTC).")
_HAPPENED_ON = Column("happened_on", "date", "On which business day.")
_KNOWN_AT = Column("known_at", "timestamp", "When the company learned of it (UTC).")

DIM_CUSTOMERS = Table(
    name="dim_customers",
    comment="One row per customer whom any entity names.",
    key=("customer_id",),
    columns=(
        _CUSTOMER,
        Column("is_registered", "boolean", "Stands in the customer table."),
        Column("registered_on", "date", "Business day of the registration.", nullable=True),
        Column("registration_known_at", "timestamp", "When the company learned of it (UTC).", nullable=True),
        Column("age_band", "string", "Age band.", nullable=True, personal=True),
        Column("gender", "string", "Gender.", nullable=True, personal=True),
        Column("income_band", "string", "Income band.", nullable=True, personal=True),
        Column("household_size_band", "string", "Persons in the household.", nullable=True, personal=True),
        Column("household_kind", "string", "Adults and children in it.", nullable=True, personal=True),
        Column("home_ownership", "string", "Owner or renter.", nullable=True, personal=True),
        Column("marital_status", "string", "Marital status.", nullable=True, personal=True),
        Column("kids_band", "string", "Number of children.", nullable=True, personal=True),
    ),
)

FACT_ORDER_LINES = Table(
    name="fact_order_lines",
    comment="One row per order line, with its product's groups.",
    key=("order_id", "line_no"),
    columns=(
        Column("order_id", "string", "The order (a basket)."),
        Column("line_no", "bigint", "The line within the order."),
        _CUSTOMER,
        _HAPPENED_AT,
        Column("happened_on", "date", "Business day: of the order's first line; of itself for a return."),
        _KNOWN_AT,
        Column("product_id", "string", "The product.", nullable=True),
        Column("category", "string", "The product's category.", nullable=True),
        Column("department", "string", "The product's department.", nullable=True),
        Column("brand", "string", "The product's brand.", nullable=True),
        Column("store_id", "string", "The store.", nullable=True),
        Column("channel", "string", "The channel.", nullable=True),
        Column("quantity", MONEY, "Units or measure; negative for a return.", nullable=True),
        Column("amount", MONEY, "What was paid; negative for a return."),
        Column("discount_amount", MONEY, "What was taken off the price; 0 where not stated."),
        Column("is_return", "boolean", "Goods came back: it counts in net amounts, never as a purchase."),
        Column("is_order_opening", "boolean", "True for one purchased line of every order: its first known."),
    ),
)

FACT_CONTACTS = Table(
    name="fact_contacts",
    comment="One row per marketing contact.",
    key=("contact_id",),
    columns=(
        Column("contact_id", "string", "The contact."),
        _CUSTOMER,
        _HAPPENED_AT,
        _HAPPENED_ON,
        _KNOWN_AT,
        Column("campaign_id", "string", "The campaign.", nullable=True),
        Column("campaign_kind", "string", "The campaign's kind.", nullable=True),
        Column("channel", "string", "The channel.", nullable=True),
    ),
)

FACT_RESPONSES = Table(
    name="fact_responses",
    comment="One row per response to marketing.",
    key=("response_id",),
    columns=(
        Column("response_id", "string", "The response."),
        _CUSTOMER,
        _HAPPENED_AT,
        _HAPPENED_ON,
        _KNOWN_AT,
        Column("campaign_id", "string", "The campaign.", nullable=True),
        Column("kind", "string", "How the customer responded.", nullable=True),
    ),
)

FACT_CUSTOMER_DAYS = Table(
    name="fact_customer_days",
    comment="One row per customer, business day and instant of learning: signed whole numbers that add up.",
    key=("customer_id", "happened_on", "known_at"),
    columns=(
        _CUSTOMER,
        _HAPPENED_ON,
        _KNOWN_AT,
        Column("order_count", "bigint", "Orders with at least one line that is no return."),
        Column("line_count", "bigint", "Purchased lines."),
        Column("return_line_count", "bigint", "Returned lines."),
        Column("net_amount_e4", "bigint", "Paid less returned, in 1/10,000 of the currency."),
        Column("return_amount_e4", "bigint", "Returned (negative), in 1/10,000 of the currency."),
        Column("discount_amount_e4", "bigint", "Taken off prices, in 1/10,000 of the currency."),
        Column("contact_count", "bigint", "Marketing contacts received."),
        Column("response_count", "bigint", "Responses to marketing."),
    ),
)

FACT_CUSTOMER_THINGS = Table(
    name="fact_customer_things",
    comment="One row per customer, thing bought (or store visited) and business day: for counts of distinct things.",
    key=("customer_id", "kind", "thing", "happened_on"),
    columns=(
        _CUSTOMER,
        Column("kind", "string", "What kind of thing: category or store."),
        Column("thing", "string", "The thing."),
        _HAPPENED_ON,
        _KNOWN_AT,
    ),
    checks=(Check("kind_listed", "kind IN ('category', 'store')"),),
)

TABLES = (
    DIM_CUSTOMERS,
    FACT_ORDER_LINES,
    FACT_CONTACTS,
    FACT_RESPONSES,
    FACT_CUSTOMER_DAYS,
    FACT_CUSTOMER_THINGS,
)
