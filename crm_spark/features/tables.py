"""Tables of the features layer. Windowed columns follow the windows of the configuration."""

from collections.abc import Sequence

from crm_spark.checks import Check
from crm_spark.tables import Column, Table

AMOUNT = "decimal(22,4)"
# Written into the data dictionary; a run declares the windows of its configuration.
DEFAULT_WINDOWS_DAYS = (7, 14, 28, 56, 91, 182)

DEMOGRAPHICS = (
    "age_band", "gender", "income_band", "household_size_band", "household_kind", "home_ownership",
    "marital_status", "kids_band",
)  # fmt: skip


def feature_customers(windows_days: Sequence[int]) -> Table:
    """The declaration of `feature_customers` with a set of columns for each window."""
    return Table(
        name="feature_customers",
        comment="One row per customer known before the cut-off and cut-off: what was known of the days before it.",
        key=("customer_id", "as_of"),
        columns=(
            Column("customer_id", "string", "The customer."),
            Column("as_of", "date", "The cut-off: nothing that happened on or after it is looked at."),
            Column("known_until", "timestamp", "Nothing learned at or after it is looked at (UTC)."),
            Column("recency_days", "int", "Days from the last purchase to as_of.", nullable=True),
            Column("tenure_days", "int", "Days from the first purchase to as_of.", nullable=True),
            Column("order_count", "bigint", "Orders ever."),
            Column("active_day_count", "bigint", "Days with an order, ever."),
            Column("net_amount", AMOUNT, "Paid less returned, ever."),
            Column("return_amount", AMOUNT, "Returned, ever (negative)."),
            Column("discount_amount", AMOUNT, "Taken off prices, ever."),
            Column("mean_order_amount", "double", "Net amount an order.", nullable=True),
            Column("discount_share", "double", "Discounts in amounts before discounts.", nullable=True),
            Column("mean_gap_days", "double", "Mean days between active days.", nullable=True),
            Column("gap_spread_days", "double", "Standard deviation of these gaps.", nullable=True),
            Column("overdue_ratio", "double", "recency_days over mean_gap_days.", nullable=True),
            Column("category_count", "bigint", "Distinct product categories bought, ever."),
            Column("store_count", "bigint", "Distinct stores visited, ever."),
            Column("contact_count", "bigint", "Marketing contacts received, ever."),
            Column("contact_recency_days", "int", "Days from the last of them to as_of.", nullable=True),
            Column("response_count", "bigint", "Responses to marketing, ever."),
            Column("response_recency_days", "int", "Days from the last of them to as_of.", nullable=True),
            *(column for days in windows_days for column in _window_columns(days)),
            *(
                Column(name, "string", f"{name.replace('_', ' ').capitalize()}.", nullable=True, personal=True)
                for name in DEMOGRAPHICS
            ),
        ),
        checks=(
            Check("recency_positive", "recency_days IS NULL OR recency_days >= 1"),
            Check("recency_within_tenure", "recency_days IS NULL OR recency_days <= tenure_days"),
            Check("recency_if_ordered", "(recency_days IS NULL) = (order_count = 0)"),
        ),
    )


def _window_columns(days: int) -> tuple[Column, ...]:
    within = f"in the {days} days before as_of"
    return (
        Column(f"order_count_{days}d", "bigint", f"Orders {within}."),
        Column(f"active_day_count_{days}d", "bigint", f"Days with an order {within}."),
        Column(f"net_amount_{days}d", AMOUNT, f"Paid less returned {within}."),
        Column(f"discount_share_{days}d", "double", f"Discounts in amounts before them {within}.", nullable=True),
        Column(f"category_count_{days}d", "bigint", f"Distinct product categories bought {within}."),
        Column(f"store_count_{days}d", "bigint", f"Distinct stores visited {within}."),
        Column(f"contact_count_{days}d", "bigint", f"Marketing contacts received {within}."),
        Column(f"response_count_{days}d", "bigint", f"Responses to marketing {within}."),
    )


TABLES = (feature_customers(DEFAULT_WINDOWS_DAYS),)
