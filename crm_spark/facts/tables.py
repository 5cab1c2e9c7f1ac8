"""Tables of the facts layer: events and who they happened to, joined once and for all."""

from crm_spark.cleaning.tables import MONEY
from crm_spark.facts.measures import MEASURES, THING_KINDS
from crm_spark.tables import Column, Table

_CUSTOMER = Column("customer_id", "string", "The customer.")
_HAPPENED_AT = Column("happened_at", "timestamp", "When (UTC).")
_HAPPENED_ON = Column("happened_on", "date", "On which business day.")
_HAPPENED_HOUR = Column("happened_hour", "int", "In which hour of the business's day, 0 to 23.")
_KNOWN_AT = Column("known_at", "timestamp", "When the company learned of it (UTC).")

DIM_CUSTOMERS = Table(
    name="dim_customers",
    comment="One row per customer whom any entity names or has named.",
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
        Column("happened_hour", "int", "Hour of the business's day, 0 to 23, of the same."),
        _KNOWN_AT,
        Column("product_id", "string", "The product.", nullable=True),
        Column("category", "string", "The product's category.", nullable=True),
        Column("department", "string", "The product's department.", nullable=True),
        Column("brand", "string", "The product's brand.", nullable=True),
        Column("store_id", "string", "The store.", nullable=True),
        Column("channel", "string", "The channel.", nullable=True),
        Column("quantity", MONEY, "Units or measure; negative for a return.", nullable=True),
        Column("usual_price", MONEY, "The product's price, the first that was told.", nullable=True),
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
        _HAPPENED_HOUR,
        _KNOWN_AT,
        Column("campaign_id", "string", "The campaign.", nullable=True),
        Column("channel", "string", "The campaign's channel.", nullable=True),
        Column("kind", "string", "How the customer responded.", nullable=True),
    ),
)

FACT_SERVICE_EVENTS = Table(
    name="fact_service_events",
    comment="One row per contact with the service.",
    key=("event_id",),
    columns=(
        Column("event_id", "string", "The event."),
        _CUSTOMER,
        _HAPPENED_AT,
        _HAPPENED_ON,
        _KNOWN_AT,
        Column("kind", "string", "What about.", nullable=True),
        Column("channel", "string", "Through which channel.", nullable=True),
        Column("duration_seconds", "bigint", "How long it took.", nullable=True),
        Column("is_resolved", "boolean", "Whether it settled the matter.", nullable=True),
    ),
)

FACT_FEEDBACK = Table(
    name="fact_feedback",
    comment="One row per rating or comment.",
    key=("feedback_id",),
    columns=(
        Column("feedback_id", "string", "The feedback."),
        _CUSTOMER,
        _HAPPENED_AT,
        _HAPPENED_ON,
        _KNOWN_AT,
        Column("rating", MONEY, "From 1, the worst, to 5, the best.", nullable=True),
        Column("sentiment", "int", "1 if its text praises, -1 if it complains, 0 if neither.", nullable=True),
        Column("channel", "string", "Through which channel.", nullable=True),
        Column("product_id", "string", "About which product.", nullable=True),
    ),
)

FACT_VISITS = Table(
    name="fact_visits",
    comment="One row per page view or other action of a customer who was signed in.",
    key=("event_id",),
    columns=(
        Column("event_id", "string", "The view or action."),
        _CUSTOMER,
        _HAPPENED_AT,
        Column("happened_on", "date", "Business day: of the session's first action."),
        _KNOWN_AT,
        Column("session_id", "string", "The session; for an action without one, the customer's day."),
        Column("action", "string", "What was done, in lower case: view, cart and purchase are counted.", nullable=True),
        Column("is_session_opening", "boolean", "True for one action of every session: its first known."),
        Column("is_first_cart", "boolean", "True for the first known 'cart' of a session."),
        Column("is_first_purchase", "boolean", "True for the first known 'purchase' of a session."),
        Column("is_cart_bought", "boolean", "True for that of these two which was known last, if there are both."),
    ),
)

_LEARNED_AT = Column(
    "known_at",
    "timestamp",
    "From which instant on it counts: when it was learned, or the cut-off before was made (UTC).",
)
_ADDITION_NO = Column("addition_no", "bigint", "With which addition to the table it came, from 1; none goes.")

FACT_CUSTOMER_DAYS = Table(
    name="fact_customer_days",
    comment="One row per customer, business day, instant of learning, kind of event and addition: whole numbers that "
    "add up; what was corrected is taken back by a row with negative ones.",
    key=("customer_id", "happened_on", "known_at", "event", "addition_no"),
    columns=(
        _CUSTOMER,
        _HAPPENED_ON,
        _LEARNED_AT,
        _ADDITION_NO,
        Column("event", "string", "The fact table that is counted; the measures of others are 0."),
        *(Column(measure.name, "bigint", measure.comment) for measure in MEASURES),
    ),
)

FACT_CUSTOMER_THINGS = Table(
    name="fact_customer_things",
    comment="One row per customer, thing that events were about, business day, instant of learning and addition: "
    "numbers that add up; what was corrected is taken back by a row with a negative one.",
    key=("customer_id", "kind", "thing", "happened_on", "known_at", "addition_no"),
    columns=(
        _CUSTOMER,
        Column("kind", "string", f"What kind of thing: {', '.join(thing.kind for thing in THING_KINDS)}."),
        Column("thing", "string", "The thing."),
        _HAPPENED_ON,
        _LEARNED_AT,
        _ADDITION_NO,
        Column("event_count", "bigint", "Events about it."),
    ),
)

FACT_CUSTOMER_PRODUCTS = Table(
    name="fact_customer_products",
    comment="One row per customer, product bought, business day, instant of learning and addition: numbers that add "
    "up; what was corrected is taken back by a row with a negative one.",
    key=("customer_id", "product_id", "happened_on", "known_at", "addition_no"),
    columns=(
        _CUSTOMER,
        Column("product_id", "string", "The product."),
        _HAPPENED_ON,
        _LEARNED_AT,
        _ADDITION_NO,
        Column("line_count", "bigint", "Purchased lines of it."),
    ),
)

# What only grows, in the order of features.customers.Ledgers.
LEDGERS = (FACT_CUSTOMER_DAYS, FACT_CUSTOMER_THINGS, FACT_CUSTOMER_PRODUCTS)

# The tables of events, whose days are counted and whose things are told apart.
EVENTS = (FACT_ORDER_LINES, FACT_CONTACTS, FACT_RESPONSES, FACT_SERVICE_EVENTS, FACT_FEEDBACK, FACT_VISITS)

TABLES = (DIM_CUSTOMERS, *EVENTS, *LEDGERS)
