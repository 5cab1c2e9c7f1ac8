"""What is counted of each event: signed whole numbers, which add up over days. A new measure is a line here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """A column of `fact_customer_days`: the sum of `counts`, SQL over a row of the fact table `event`, NULL as 0."""

    name: str
    event: str
    counts: str
    comment: str


def _order(name: str, counts: str, comment: str) -> Measure:
    return Measure(name, "fact_order_lines", counts, comment)


def _service(name: str, counts: str, comment: str) -> Measure:
    return Measure(name, "fact_service_events", counts, comment)


def _feedback(name: str, counts: str, comment: str) -> Measure:
    return Measure(name, "fact_feedback", counts, comment)


def _visit(name: str, counts: str, comment: str) -> Measure:
    return Measure(name, "fact_visits", counts, comment)


def _count(condition: str) -> str:
    return _whole("1", condition)


def _count_opening(condition: str) -> str:
    return _count(f"is_order_opening AND {condition}")


def _whole(number: str, condition: str) -> str:
    return f"CASE WHEN {condition} THEN {number} ELSE 0 END"


def _e4(number: str, condition: str = "TRUE") -> str:
    return _whole(f"{number} * 10000", condition)


_IS_DISCOUNTED = "NOT is_return AND discount_amount > 0"
_IS_PRICED = "NOT is_return AND quantity > 0 AND usual_price > 0"
# Days count from here in sums of days, so that they stay small.
_DAY_NO = "datediff(happened_on, DATE '2000-01-01')"

MEASURES = (
    _order("order_count", _count("is_order_opening"), "Orders with at least one line that is no return."),
    _order("line_count", _count("NOT is_return"), "Purchased lines."),
    _order("return_line_count", _count("is_return"), "Returned lines."),
    _order("discounted_line_count", _count(_IS_DISCOUNTED), "Purchased lines with a discount."),
    _order("net_amount_e4", _e4("amount"), "Paid less returned, in 1/10,000 of the currency."),
    _order("return_amount_e4", _e4("amount", "is_return"), "Returned (negative), in 1/10,000 of the currency."),
    _order("discount_amount_e4", _e4("discount_amount"), "Taken off prices, in 1/10,000 of the currency."),
    _order("quantity_e4", _e4("quantity", "NOT is_return"), "Units of purchased lines, in 1/10,000."),
    _order(
        "discounted_quantity_e4",
        _e4("quantity", _IS_DISCOUNTED),
        "Units of purchased lines with a discount, in 1/10,000.",
    ),
    _order("quantity_line_count", _count("NOT is_return AND quantity IS NOT NULL"), "Purchased lines that tell units."),
    _order(
        "discounted_quantity_line_count",
        _count(f"{_IS_DISCOUNTED} AND quantity IS NOT NULL"),
        "Purchased lines with a discount that tell units.",
    ),
    _order("priced_amount_e4", _e4("amount", _IS_PRICED), "Paid for units whose usual price is told, in 1/10,000."),
    _order(
        "usual_amount_e4",
        _whole("cast(quantity * usual_price AS decimal(18,4)) * 10000", _IS_PRICED),
        "What these units would have cost at that price, in 1/10,000.",
    ),
    _order("night_order_count", _count_opening("happened_hour < 6"), "Orders from 0 to 6 o'clock."),
    _order("morning_order_count", _count_opening("happened_hour BETWEEN 6 AND 11"), "Orders from 6 to 12 o'clock."),
    _order(
        "afternoon_order_count", _count_opening("happened_hour BETWEEN 12 AND 17"), "Orders from 12 to 18 o'clock."
    ),
    _order("evening_order_count", _count_opening("happened_hour >= 18"), "Orders from 18 to 24 o'clock."),
    _order("weekend_order_count", _count_opening("dayofweek(happened_on) IN (1, 7)"), "Orders on Saturday or Sunday."),
    Measure("contact_count", "fact_contacts", "1", "Marketing contacts received."),
    Measure("response_count", "fact_responses", "1", "Responses to marketing."),
    _service("service_event_count", "1", "Contacts with the service."),
    _service("service_seconds", "duration_seconds", "Seconds that they took."),
    _service("judged_service_event_count", _count("is_resolved IS NOT NULL"), "Of them, those that tell the outcome."),
    _service("unresolved_service_event_count", _count("NOT is_resolved"), "Of them, those that settled nothing."),
    _feedback("feedback_count", "1", "Ratings and comments given."),
    _feedback("rated_feedback_count", _count("rating IS NOT NULL"), "Of them, those with a rating."),
    _feedback("rating_sum_e4", _e4("rating", "rating IS NOT NULL"), "Sum of ratings, in 1/10,000."),
    _feedback("rated_day_sum", _whole(_DAY_NO, "rating IS NOT NULL"), "Sum of their days' numbers, from 2000 on."),
    _feedback(
        "rated_day_square_sum",
        _whole(f"{_DAY_NO} * {_DAY_NO}", "rating IS NOT NULL"),
        "Sum of the squares of these numbers.",
    ),
    _feedback(
        "rating_day_sum_e4",
        _e4(f"{_DAY_NO} * rating", "rating IS NOT NULL"),
        "Sum of ratings times these numbers, in 1/10,000.",
    ),
    _feedback("texted_feedback_count", _count("sentiment IS NOT NULL"), "Feedback with a text."),
    _feedback("sentiment_sum", "sentiment", "Texts that praise less those that complain."),
    _visit("session_count", _count("is_session_opening"), "Sessions on a site or in an app."),
    _visit("page_view_count", _count("action = 'view'"), "Page views."),
    _visit("cart_session_count", _count("is_first_cart"), "Sessions in which something was put into the cart."),
    _visit("purchase_session_count", _count("is_first_purchase"), "Sessions in which something was bought."),
    _visit("bought_cart_session_count", _count("is_cart_bought"), "Of those with a cart, the ones with a purchase."),
)  # fmt: skip


@dataclass(frozen=True)
class ThingKind:
    """A kind of thing that events of the fact table `event` are about, if `where` holds: `thing` in SQL names it.

    These events must count in some measure, as a customer is known by what was counted of them.
    """

    kind: str
    event: str
    thing: str
    where: str = "TRUE"


THING_KINDS = (
    ThingKind("category", "fact_order_lines", "category", "NOT is_return"),
    ThingKind("store", "fact_order_lines", "store_id", "NOT is_return"),
    ThingKind("channel", "fact_order_lines", "channel", "is_order_opening"),
    ThingKind("contact_channel", "fact_contacts", "channel"),
    ThingKind("response_channel", "fact_responses", "channel"),
    ThingKind("response_hour", "fact_responses", "lpad(cast(happened_hour AS string), 2, '0')"),
    ThingKind("response_weekday", "fact_responses", "date_format(happened_on, 'E')"),
    ThingKind("service_kind", "fact_service_events", "kind"),
)
