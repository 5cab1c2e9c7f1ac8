"""What is told of each customer at a cut-off. A new feature is a line here.

Kept from one slice to the next, so that a day's slice follows from the one before it, are sums of measures and of
squares of gaps, first and last days, the number of products, and lists of things with their counts. All other columns
are computed from those of their own row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from crm_spark.cleaning.tables import MONEY


@dataclass(frozen=True)
class Sum:
    """A measure of `fact_customer_days`, added up ever and by window; if `is_scaled`, of NAME_e4, in 1/10,000."""

    name: str
    meaning: str
    is_windowed: bool = True
    is_scaled: bool = False

    @property
    def measure(self) -> str:
        return f"{self.name}_e4" if self.is_scaled else self.name


@dataclass(frozen=True)
class Total:
    """A sum over some days: from `first` to `end` days before the cut-off, or ever if `first` is None."""

    name: str
    sum: Sum
    meaning: str
    first: int | None = None
    end: int = 0

    @property
    def type(self) -> str:
        return MONEY if self.sum.is_scaled else "bigint"


@dataclass(frozen=True)
class DaysOf:
    """The first and the last day on which a measure was above zero."""

    event: str
    measure: str


@dataclass(frozen=True)
class ThingList:
    """All things of a kind, those with most events first.

    `count` names the columns that count them, ever and by window: a thing counts in those that its last day lies in.
    `by_window` names a list of the things of each window, with their events in it.
    """

    name: str
    kind: str
    meaning: str
    count: str | None = None
    by_window: str | None = None


@dataclass(frozen=True)
class Derived:
    """A column computed from those of its row: `value` in SQL, in which {w} is _28d and the like, or nothing.

    `missing` tells when it is NULL; without it, it never is.
    """

    name: str
    type: str
    value: str
    meaning: str
    missing: str | None = None


SUMS = (
    Sum("order_count", "Orders"),
    Sum("active_day_count", "Days with an order"),  # no measure adds up to it: counted when days are complete
    Sum("line_count", "Purchased lines"),
    Sum("return_line_count", "Returned lines"),
    Sum("discounted_line_count", "Purchased lines with a discount"),
    Sum("net_amount", "Paid less returned", is_scaled=True),
    Sum("return_amount", "Returned (negative)", is_scaled=True),
    Sum("discount_amount", "Taken off prices", is_scaled=True),
    Sum("quantity", "Units of purchased lines", is_scaled=True, is_windowed=False),
    Sum("discounted_quantity", "Units of purchased lines with a discount", is_scaled=True, is_windowed=False),
    Sum("quantity_line_count", "Purchased lines that tell units", is_windowed=False),
    Sum("discounted_quantity_line_count", "Purchased lines with a discount that tell units", is_windowed=False),
    Sum("priced_amount", "Paid for units of products whose usual price is told", is_scaled=True, is_windowed=False),
    Sum("usual_amount", "What these units would have cost at that price", is_scaled=True, is_windowed=False),
    Sum("night_order_count", "Orders from 0 to 6 o'clock", is_windowed=False),
    Sum("morning_order_count", "Orders from 6 to 12 o'clock", is_windowed=False),
    Sum("afternoon_order_count", "Orders from 12 to 18 o'clock", is_windowed=False),
    Sum("evening_order_count", "Orders from 18 to 24 o'clock", is_windowed=False),
    Sum("weekend_order_count", "Orders on Saturday or Sunday", is_windowed=False),
    Sum("contact_count", "Marketing contacts received"),
    Sum("response_count", "Responses to marketing"),
    Sum("service_event_count", "Contacts with the service"),
    Sum("service_seconds", "Seconds spent with the service"),
    Sum("judged_service_event_count", "Contacts with the service that tell what came of them"),
    Sum("unresolved_service_event_count", "Contacts with the service that settled nothing"),
    Sum("feedback_count", "Ratings and comments given"),
    Sum("rated_feedback_count", "Ratings given"),
    Sum("rating_sum", "Sum of ratings", is_scaled=True),
    Sum("rated_day_sum", "Sum of the rated days' numbers, counted from 2000-01-01", is_windowed=False),
    Sum("rated_day_square_sum", "Sum of the squares of these numbers", is_windowed=False),
    Sum("rating_day_sum", "Sum of ratings times these numbers", is_windowed=False, is_scaled=True),
    Sum("texted_feedback_count", "Comments given", is_windowed=False),
    Sum("sentiment_sum", "Comments that praise less those that complain", is_windowed=False),
    Sum("session_count", "Sessions on a site or in an app"),
    Sum("page_view_count", "Page views"),
    Sum("cart_session_count", "Sessions in which something was put into the cart"),
    Sum("purchase_session_count", "Sessions in which something was bought"),
    Sum("bought_cart_session_count", "Sessions with a cart in which something was bought"),
)  # fmt: skip

# Windows of these have another one of the same length before them, to compare with.
PRIOR = ("order_count", "net_amount")

DAYS = (
    DaysOf("purchase", "order_count"),
    DaysOf("contact", "contact_count"),
    DaysOf("response", "response_count"),
    DaysOf("service", "service_event_count"),
    DaysOf("feedback", "feedback_count"),
    DaysOf("session", "session_count"),
)

THING_LISTS = (
    ThingList("categories", "category", "Product categories bought", count="category_count"),
    ThingList("stores", "store", "Stores bought in", count="store_count"),
    ThingList("channels", "channel", "Channels ordered through"),
    ThingList(
        "contact_channels",
        "contact_channel",
        "Channels of marketing contacts received",
        by_window="contact_channels_by_window",
    ),
    ThingList("response_channels", "response_channel", "Channels of the marketing responded to"),
    ThingList("response_hours", "response_hour", "Hours of the business's day in which they responded"),
    ThingList("response_weekdays", "response_weekday", "Days of the week on which they responded"),
    ThingList(
        "service_kinds", "service_kind", "Kinds of contacts with the service", by_window="service_kinds_by_window"
    ),
)

_SPAN = "cast(datediff(last_purchase_on, first_purchase_on) AS bigint)"
_GAP_COUNT = "nullif(active_day_count - 1, 0)"
_MEAN_GAP = f"(cast({_SPAN} AS double) / {_GAP_COUNT})"
# n * sum x^2 - (sum x)^2 is a whole number: nothing is rounded before the root.
_GAP_SPREAD = f"(sqrt(cast((active_day_count - 1) * gap_square_sum - {_SPAN} * {_SPAN} AS double)) / {_GAP_COUNT})"


def _less(left: tuple[str, str], right: tuple[str, str]) -> str:
    """One product of whole numbers less another: exact, though they may not fit 64 bits."""
    products = (" * ".join(f"cast({factor} AS decimal(18,0))" for factor in pair) for pair in (left, right))
    return f"cast({' - '.join(products)} AS double)"


def _days_since(day: str) -> str:
    return f"datediff(as_of, {day})"


def _share(part: str, whole: str) -> str:
    return f"cast({part} AS double) / nullif(cast({whole} AS double), 0)"


_RECENCY = _days_since("last_purchase_on")
_RATING_SLOPE_E4 = "{} / nullif({}, 0)".format(
    _less(("rated_feedback_count", "rating_day_sum * 10000"), ("rated_day_sum", "rating_sum * 10000")),
    _less(("rated_feedback_count", "rated_day_square_sum"), ("rated_day_sum", "rated_day_sum")),
)

_NO_ORDER = "no order"
_NO_PURCHASE = "no purchase"
_FEW_DAYS = "fewer than two days with an order"

DERIVED = (
    # Recency and rhythm.
    Derived("recency_days", "int", _RECENCY, "Days from the last purchase to as_of", _NO_PURCHASE),
    Derived(
        "tenure_days",
        "int",
        _days_since("first_purchase_on"),
        "Days from the first purchase to as_of",
        _NO_PURCHASE,
    ),
    Derived("mean_gap_days", "double", _MEAN_GAP, "Mean days between days with an order", _FEW_DAYS),
    Derived("gap_spread_days", "double", _GAP_SPREAD, "Standard deviation of these days", _FEW_DAYS),
    Derived(
        "gap_irregularity", "double", f"{_GAP_SPREAD} / {_MEAN_GAP}", "gap_spread_days over mean_gap_days", _FEW_DAYS
    ),
    Derived("overdue_ratio", "double", f"{_RECENCY} / {_MEAN_GAP}", "recency_days over mean_gap_days", _FEW_DAYS),
    Derived("overdue_days", "double", f"{_RECENCY} - {_MEAN_GAP}", "recency_days less mean_gap_days", _FEW_DAYS),
    # Baskets, prices and returns.
    Derived(
        "mean_order_amount{w}", "double", _share("net_amount{w}", "order_count{w}"), "Net amount an order", _NO_ORDER
    ),
    Derived(
        "mean_order_line_count{w}",
        "double",
        _share("line_count{w}", "order_count{w}"),
        "Purchased lines an order",
        _NO_ORDER,
    ),
    Derived(
        "discount_share{w}",
        "double",
        _share("discount_amount{w}", "discount_amount{w} + net_amount{w}"),
        "Discounts in net amounts before discounts",
        "no amount",
    ),
    Derived(
        "discounted_line_share{w}",
        "double",
        _share("discounted_line_count{w}", "line_count{w}"),
        "Purchased lines with a discount, in all",
        "no purchased line",
    ),
    Derived(
        "return_line_share{w}",
        "double",
        _share("return_line_count{w}", "line_count{w} + return_line_count{w}"),
        "Returned lines, in all",
        "no line",
    ),
    Derived(
        "discount_quantity_ratio",
        "double",
        f"{_share('discounted_quantity', 'discounted_quantity_line_count')} * "
        f"{_share('quantity_line_count - discounted_quantity_line_count', 'quantity - discounted_quantity')}",
        "Units a line with a discount over units a line without one",
        "no line of one of these kinds that tells units",
    ),
    Derived(
        "price_ratio",
        "double",
        _share("priced_amount", "usual_amount"),
        "Paid over what the same units would have cost at the products' usual prices",
        "no purchased unit of a product whose usual price is told",
    ),
    # When, where and what.
    *(
        Derived(
            f"{part}_order_share",
            "double",
            _share(f"{part}_order_count", "order_count"),
            f"Orders {when}, in all",
            _NO_ORDER,
        )
        for part, when in (
            ("night", "from 0 to 6 o'clock"),
            ("morning", "from 6 to 12 o'clock"),
            ("afternoon", "from 12 to 18 o'clock"),
            ("evening", "from 18 to 24 o'clock"),
            ("weekend", "on Saturday or Sunday"),
        )
    ),
    Derived("top_category", "string", "get(categories, 0).thing", "The category of most lines", "no category"),
    Derived(
        "top_category_share",
        "double",
        _share("get(categories, 0).event_count", "line_count"),
        "Purchased lines of top_category, in all",
        "no category",
    ),
    Derived("top_channel", "string", "get(channels, 0).thing", "The channel of most orders", "no channel"),
    Derived(
        "top_channel_share",
        "double",
        _share("get(channels, 0).event_count", "order_count"),
        "Orders through top_channel, in all",
        "no channel",
    ),
    # Marketing.
    Derived(
        "contact_recency_days",
        "int",
        _days_since("last_contact_on"),
        "Days from the last marketing contact to as_of",
        "no contact",
    ),
    Derived(
        "response_recency_days",
        "int",
        _days_since("last_response_on"),
        "Days from the last response to marketing to as_of",
        "no response",
    ),
    Derived(
        "response_ratio{w}",
        "double",
        _share("response_count{w}", "contact_count{w}"),
        "Responses a contact",
        "no contact",
    ),
    Derived(
        "best_response_channel",
        "string",
        "get(response_channels, 0).thing",
        "The channel of the marketing that they responded to most often",
        "no response to marketing of a known channel",
    ),
    Derived(
        "best_response_hour",
        "int",
        "cast(get(response_hours, 0).thing AS int)",
        "The hour of the business's day, 0 to 23, with most responses",
        "no response",
    ),
    Derived(
        "best_response_weekday",
        "string",
        "get(response_weekdays, 0).thing",
        "The day of the week, Mon to Sun, with most responses",
        "no response",
    ),
    # Service and feedback.
    Derived(
        "top_service_kind", "string", "get(service_kinds, 0).thing", "The most frequent kind of contact", "no kind"
    ),
    Derived(
        "service_recency_days",
        "int",
        _days_since("last_service_on"),
        "Days from the last contact with the service to as_of",
        "no such contact",
    ),
    Derived(
        "unresolved_service_event_share{w}",
        "double",
        _share("unresolved_service_event_count{w}", "judged_service_event_count{w}"),
        "Contacts with the service that settled nothing, in those that tell what came of them",
        "none that tells",
    ),
    Derived(
        "feedback_recency_days",
        "int",
        _days_since("last_feedback_on"),
        "Days from the last feedback to as_of",
        "no feedback",
    ),
    Derived("mean_rating{w}", "double", _share("rating_sum{w}", "rated_feedback_count{w}"), "Mean rating", "no rating"),
    Derived(
        "mean_sentiment",
        "double",
        _share("sentiment_sum", "texted_feedback_count"),
        "Mean of comments, each 1 if it praises, -1 if it complains, 0 if neither",
        "no comment",
    ),
    Derived(
        "rating_trend",
        "double",
        f"30 * {_RATING_SLOPE_E4} / 10000",
        "By how much ratings change in 30 days: the slope of the least-squares line",
        "no ratings of two days",
    ),
    # Visits.
    Derived(
        "session_recency_days",
        "int",
        _days_since("last_session_on"),
        "Days from the last session to as_of",
        "no session",
    ),
    Derived(
        "mean_session_page_view_count{w}",
        "double",
        _share("page_view_count{w}", "session_count{w}"),
        "Page views a session",
        "no session",
    ),
    Derived(
        "abandoned_cart_count{w}",
        "bigint",
        "cart_session_count{w} - bought_cart_session_count{w}",
        "Sessions with something in the cart and without a purchase",
    ),
    Derived(
        "conversion_share{w}",
        "double",
        _share("purchase_session_count{w}", "session_count{w}"),
        "Sessions in which something was bought, in all",
        "no session",
    ),
)


def spans(windows_days: Sequence[int]) -> Iterator[tuple[int | None, str, str]]:
    """All days before the cut-off, then each window; with them what names end with and how a meaning goes on."""
    yield None, "", "ever"
    for days in windows_days:
        yield days, f"_{days}d", f"in the {days} days before as_of"


def totals(windows_days: Sequence[int]) -> Iterator[Total]:
    """Every sum that is kept of a customer."""
    for sum_ in SUMS:
        for days, suffix, when in spans(windows_days if sum_.is_windowed else ()):
            yield Total(f"{sum_.name}{suffix}", sum_, f"{sum_.meaning} {when}", days)
    for sum_ in SUMS:
        for days in windows_days if sum_.name in PRIOR else ():
            before = f"in the {days} days before the last {days} days before as_of"
            yield Total(f"{sum_.name}_prior_{days}d", sum_, f"{sum_.meaning} {before}", 2 * days, days)
