"""A random business, and what its customers' features are by plain Python over the events themselves."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from builders import ledgers_of, rows_of
from pyspark.sql import DataFrame, SparkSession

from crm_spark.cleaning.tables import (
    CLEAN_CAMPAIGNS,
    CLEAN_CONTACTS,
    CLEAN_CUSTOMERS,
    CLEAN_FEEDBACK,
    CLEAN_ORDERS,
    CLEAN_PRODUCTS,
    CLEAN_RESPONSES,
    CLEAN_SERVICE_EVENTS,
    CLEAN_VISITS,
)
from crm_spark.facts.customers import build_customers
from crm_spark.facts.events import (
    build_contacts,
    build_feedback,
    build_order_lines,
    build_responses,
    build_service_events,
    build_visits,
)
from crm_spark.facts.tables import (
    FACT_CONTACTS,
    FACT_FEEDBACK,
    FACT_ORDER_LINES,
    FACT_RESPONSES,
    FACT_SERVICE_EVENTS,
    FACT_VISITS,
)
from crm_spark.features.customers import Ledgers

NEW_YORK = "America/New_York"
_OPENED = datetime(2026, 5, 15, tzinfo=UTC)
_LATE = (timedelta(0), timedelta(minutes=1), timedelta(days=1), timedelta(days=20))
_PRICES = (None, Decimal(0), Decimal("0.3333"), *(Decimal(n) for n in range(3, 8)))
_TEXTS = {None: None, "It is great, thank you!": 1, "不好很失望": -1, "It came on Monday.": 0}
Row = dict[str, Any]


@dataclass
class Business:
    """Half a year of some hundred customers; rows of the clean tables."""

    customers: list[Row] = field(default_factory=list)
    orders: list[Row] = field(default_factory=list)
    contacts: list[Row] = field(default_factory=list)
    responses: list[Row] = field(default_factory=list)
    service_events: list[Row] = field(default_factory=list)
    feedback: list[Row] = field(default_factory=list)
    visits: list[Row] = field(default_factory=list)
    products: list[Row] = field(
        default_factory=lambda: [
            {"product_id": f"k{n}", "category": f"k{n // 2}" if n else None, "price": _PRICES[n]} for n in range(8)
        ]
    )
    campaigns: list[Row] = field(
        default_factory=lambda: [{"campaign_id": "k1", "channel": "email"}, {"campaign_id": "k2", "channel": "mail"}]
    )


def random_business(seed: int) -> Business:
    rng = np.random.default_rng(seed)
    business = Business()

    def instant() -> datetime:
        return _OPENED + timedelta(seconds=int(rng.integers(0, 185 * 86400)))

    def someone() -> str:
        # Few buy much, many little, and some nothing.
        return f"c{min(199, int(rng.exponential(40)))}"

    def known(row: Row, happened_at: datetime) -> Row:
        late = _LATE[int(rng.integers(len(_LATE)))]
        # What is known as soon as it happens need not say so.
        return row | ({"known_at": happened_at + late} if late or rng.random() < 0.5 else {})

    def one_of(*values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    for number in range(200):
        if number % 3:
            at = instant()
            row = {"customer_id": f"c{number}", "signed_up_at": at, "gender": one_of(None, "f", "m")}
            business.customers.append(known(row, at))
    for order_no in range(900):
        customer, opened_at, store, channel = (
            someone(),
            instant(),
            one_of(None, "s1", "s2"),
            one_of(None, "web", "shop"),
        )
        for line_no in range(int(rng.integers(1, 4))):
            # Lines of an order lie hours apart, many over midnight.
            at = opened_at + timedelta(seconds=int(rng.integers(0, 6 * 3600)))
            amount = Decimal(int(rng.integers(-20_000, 300_000))).scaleb(-4)
            row = {
                "order_id": f"o{order_no}", "line_no": line_no, "customer_id": customer, "ordered_at": at,
                "product_id": one_of(None, *(f"k{n}" for n in range(8))), "store_id": store, "channel": channel,
                "amount": amount,
                "quantity": one_of(None, Decimal(1), Decimal("2.5")) if amount >= 0 else None,
                "discount_amount": one_of(None, Decimal(0), Decimal(int(rng.integers(0, 40_000))).scaleb(-4)),
            }  # fmt: skip
            business.orders.append(known(row, at))
    for number in range(500):
        at, campaign = instant(), one_of("k1", "k2", "k3")
        row = {"contact_id": f"t{number}", "customer_id": someone(), "campaign_id": campaign, "sent_at": at}
        row["channel"] = one_of(None, "email", "mail")
        business.contacts.append(known(row, at))
    for number in range(500):
        at, campaign = instant(), one_of("k1", "k2", "k3")
        row = {"response_id": f"r{number}", "customer_id": someone(), "campaign_id": campaign, "responded_at": at}
        business.responses.append(known(row, at))
    for number in range(200):
        at = instant()
        row = {
            "event_id": f"s{number}", "customer_id": someone(), "started_at": at,
            "kind": one_of(None, "complaint", "question"),
            "duration_seconds": one_of(None, 0, 90), "is_resolved": one_of(None, True, False),
        }  # fmt: skip
        business.service_events.append(known(row, at))
    for number in range(250):
        at, rating = instant(), one_of(None, Decimal(1), Decimal("3.5"), Decimal(5))
        text = one_of(*_TEXTS)
        row = {"feedback_id": f"f{number}", "customer_id": someone(), "given_at": at, "rating": rating, "text": text}
        business.feedback.append(known(row, at))
    for session_no in range(200):
        customer, began_at = someone(), instant()
        session = one_of(f"v{session_no}", None)
        for step in range(int(rng.integers(1, 7))):
            at = began_at + timedelta(minutes=90 * step)
            row = {
                "event_id": f"a{session_no:03}-{step}", "customer_id": customer, "session_id": session,
                "occurred_at": at, "action": one_of("view", "View", "cart", "purchase", None),
            }  # fmt: skip
            business.visits.append(known(row, at))
    return business


def facts_of(spark: SparkSession, business: Business) -> tuple[DataFrame, Ledgers]:
    """The customers and their ledgers as the facts layer makes them."""
    products = rows_of(spark, CLEAN_PRODUCTS, *business.products)
    campaigns = rows_of(spark, CLEAN_CAMPAIGNS, *business.campaigns)
    events = {
        FACT_ORDER_LINES.name: build_order_lines(rows_of(spark, CLEAN_ORDERS, *business.orders), products, NEW_YORK),
        FACT_CONTACTS.name: build_contacts(rows_of(spark, CLEAN_CONTACTS, *business.contacts), campaigns, NEW_YORK),
        FACT_RESPONSES.name: build_responses(rows_of(spark, CLEAN_RESPONSES, *business.responses), campaigns, NEW_YORK),
        FACT_SERVICE_EVENTS.name: build_service_events(
            rows_of(spark, CLEAN_SERVICE_EVENTS, *business.service_events), NEW_YORK
        ),
        FACT_FEEDBACK.name: build_feedback(rows_of(spark, CLEAN_FEEDBACK, *business.feedback), NEW_YORK),
        FACT_VISITS.name: build_visits(rows_of(spark, CLEAN_VISITS, *business.visits), NEW_YORK),
    }
    ledgers = ledgers_of(events)
    return build_customers(rows_of(spark, CLEAN_CUSTOMERS, *business.customers), ledgers.days, NEW_YORK), ledgers


def expected_features(
    business: Business, as_of: date, known_until: datetime, windows_days: Sequence[int]
) -> dict[str, Row]:
    """The features of every customer known at the cut-off, by customer."""
    seen = _Seen(business, as_of, known_until)
    return {customer: _features_of(seen, customer, windows_days) for customer in seen.customers()}


def _local(instant: datetime) -> datetime:
    return instant.astimezone(ZoneInfo(NEW_YORK))


class _Seen:
    """What had happened and was known at a cut-off."""

    def __init__(self, business: Business, as_of: date, known_until: datetime) -> None:
        self.as_of, self.known_until = as_of, known_until
        self.category_of = {row["product_id"]: row["category"] for row in business.products}
        self.price_of = {row["product_id"]: row.get("price") for row in business.products}
        self.channel_of = {row["campaign_id"]: row["channel"] for row in business.campaigns}
        self.registered = {
            row["customer_id"]: row
            for row in self._visible(business.customers, "signed_up_at", _own_day("signed_up_at"))
        }
        purchases = [row for row in business.orders if row["amount"] >= 0]
        opened_at: dict[str, datetime] = {}
        for row in purchases:
            opened_at[row["order_id"]] = min(opened_at.get(row["order_id"], row["ordered_at"]), row["ordered_at"])
        order_day = _day_of_first(purchases, "order_id", "ordered_at")
        opening = _first_known(purchases, lambda row: row["order_id"], "ordered_at", "line_no")
        self.purchases = self._visible(
            [
                row | {"opens": row is opening[row["order_id"]], "opened_at": opened_at[row["order_id"]]}
                for row in purchases
            ],
            "ordered_at",
            order_day,
        )
        returns = [row for row in business.orders if row["amount"] < 0]
        self.returns = self._visible(returns, "ordered_at", _own_day("ordered_at"))
        self.contacts = self._visible(business.contacts, "sent_at", _own_day("sent_at"))
        self.responses = self._visible(business.responses, "responded_at", _own_day("responded_at"))
        self.service = self._visible(business.service_events, "started_at", _own_day("started_at"))
        self.feedback = self._visible(business.feedback, "given_at", _own_day("given_at"))
        visits = [
            row | {"session": (row["customer_id"], row["session_id"] or str(_local(row["occurred_at"]).date()))}
            for row in business.visits
        ]
        self.visits = self._visible(visits, "occurred_at", _day_of_first(visits, "session", "occurred_at"))

    def _visible(self, rows: Iterable[Row], happened_at: str, day: Callable[[Row], date]) -> list[Row]:
        return [
            row | {"day": day(row), "at": row[happened_at]}
            for row in rows
            if day(row) < self.as_of and row.get("known_at", row[happened_at]) < self.known_until
        ]

    def customers(self) -> set[str]:
        events = (self.purchases, self.returns, self.contacts, self.responses, self.service, self.feedback, self.visits)
        return set(self.registered) | {row["customer_id"] for rows in events for row in rows}


def _own_day(happened_at: str) -> Callable[[Row], date]:
    return lambda row: _local(row[happened_at]).date()


def _day_of_first(rows: Iterable[Row], of: str, happened_at: str) -> Callable[[Row], date]:
    first: dict[Any, datetime] = {}
    for row in rows:
        first[row[of]] = min(first.get(row[of], row[happened_at]), row[happened_at])
    return lambda row: _local(first[row[of]]).date()


def _first_known(rows: Iterable[Row], of: Callable[[Row], Any], happened_at: str, then: str) -> dict[Any, Row]:
    first: dict[Any, Row] = {}
    for row in sorted(rows, key=lambda row: (row.get("known_at", row[happened_at]), row[then])):
        first.setdefault(of(row), row)
    return first


def _ratio(part: float | Decimal, whole: float | Decimal) -> float | None:
    return float(part) / float(whole) if whole else None


def _by_window(seen: "_Seen", rows: Iterable[Row], name: str, windows_days: Sequence[int]) -> list[Row]:
    listed = []
    for days in sorted(windows_days):
        within = [row for row in rows if row["day"] >= seen.as_of - timedelta(days=days)]
        for entry in _listed(within, lambda row: row.get(name)):
            listed.append({"window_days": days, "thing": entry["thing"], "event_count": entry["event_count"]})
    return listed


def _listed(rows: Iterable[Row], value: Callable[[Row], Any]) -> list[Row]:
    named = [(value(row), row["day"]) for row in rows if value(row) is not None]
    counts = Counter(name for name, _ in named)
    return [
        {"thing": name, "event_count": count, "last_on": max(day for other, day in named if other == name)}
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def _features_of(seen: _Seen, customer: str, windows_days: Sequence[int]) -> Row:
    def own(rows: Iterable[Row]) -> list[Row]:
        return [row for row in rows if row["customer_id"] == customer]

    purchases, orders = own(seen.purchases), [row for row in own(seen.purchases) if row["opens"]]
    rated = [row for row in own(seen.feedback) if row["rating"] is not None]
    moods = [_TEXTS[row["text"]] for row in own(seen.feedback) if row["text"] is not None]
    priced = [row for row in purchases if row["quantity"] and seen.price_of.get(row["product_id"])]
    days = sorted({row["day"] for row in orders})
    gaps = [(after - before).days for before, after in pairwise(days)]
    mean_gap = sum(gaps) / len(gaps) if gaps else None
    spread = math.sqrt(sum((gap - mean_gap) ** 2 for gap in gaps) / len(gaps)) if mean_gap is not None else None

    def recency(rows: Sequence[Row]) -> int | None:
        return (seen.as_of - max(row["day"] for row in rows)).days if rows else None

    def part_of_day(first: int, last: int) -> int:
        return sum(first <= _local(row["opened_at"]).hour <= last for row in orders)

    told = [row for row in purchases if row["quantity"] is not None]
    discounted = [row for row in told if row["discount_amount"] and row["discount_amount"] > 0]
    plain = [row for row in told if row not in discounted]

    def usually(line: Row) -> Decimal:
        exact: Decimal = line["quantity"] * seen.price_of[line["product_id"]]
        return exact.quantize(Decimal("0.0001"), ROUND_HALF_UP)

    def units(lines: Sequence[Row]) -> Decimal:
        return sum((row["quantity"] for row in lines), Decimal(0))

    features: Row = {"gender": seen.registered[customer]["gender"] if customer in seen.registered else None}
    features |= {
        "recency_days": recency(orders),
        "tenure_days": (seen.as_of - days[0]).days if days else None,
        "mean_gap_days": mean_gap,
        "gap_spread_days": spread,
        "gap_irregularity": spread / mean_gap if mean_gap is not None and spread is not None else None,
        "overdue_ratio": (recency(orders) or 0) / mean_gap if mean_gap is not None else None,
        "overdue_days": (recency(orders) or 0) - mean_gap if mean_gap is not None else None,
        "gap_square_sum": sum(gap * gap for gap in gaps),
        "quantity": units(told),
        "quantity_line_count": len(told),
        "discounted_quantity_line_count": len(discounted),
        "discounted_quantity": units(discounted),
        "discount_quantity_ratio": (
            _ratio(float(units(discounted)) / len(discounted) * len(plain), units(plain)) if discounted else None
        ),
        "priced_amount": sum((row["amount"] for row in priced), Decimal(0)),
        "usual_amount": sum((usually(row) for row in priced), Decimal(0)),
        "price_ratio": _ratio(sum(row["amount"] for row in priced), sum(map(usually, priced))),
        "product_count": len({row["product_id"] for row in purchases} - {None}),
        "texted_feedback_count": len(moods),
        "sentiment_sum": sum(moods),
        "mean_sentiment": _ratio(sum(moods), len(moods)),
        "contact_channels_by_window": _by_window(seen, own(seen.contacts), "channel", windows_days),
        "service_kinds_by_window": _by_window(seen, own(seen.service), "kind", windows_days),
        "night_order_count": part_of_day(0, 5),
        "morning_order_count": part_of_day(6, 11),
        "afternoon_order_count": part_of_day(12, 17),
        "evening_order_count": part_of_day(18, 23),
        "weekend_order_count": sum(row["day"].weekday() >= 5 for row in orders),
        "contact_recency_days": recency(own(seen.contacts)),
        "response_recency_days": recency(own(seen.responses)),
        "service_recency_days": recency(own(seen.service)),
        "feedback_recency_days": recency(own(seen.feedback)),
        "session_recency_days": recency(own(seen.visits)),
        "rated_day_sum": sum(_day_no(row) for row in rated),
        "rated_day_square_sum": sum(_day_no(row) ** 2 for row in rated),
        "rating_day_sum": sum((_day_no(row) * row["rating"] for row in rated), Decimal(0)),
        "rating_trend": _slope([(_day_no(row), float(row["rating"])) for row in rated]),
        "categories": _listed(purchases, lambda row: seen.category_of.get(row["product_id"])),
        "stores": _listed(purchases, lambda row: row["store_id"]),
        "channels": _listed(orders, lambda row: row["channel"]),
        "contact_channels": _listed(own(seen.contacts), lambda row: row["channel"]),
        "response_channels": _listed(own(seen.responses), lambda row: seen.channel_of.get(row["campaign_id"])),
        "service_kinds": _listed(own(seen.service), lambda row: row["kind"]),
        "response_hours": _listed(own(seen.responses), lambda row: f"{_local(row['at']):%H}"),
        "response_weekdays": _listed(own(seen.responses), lambda row: f"{row['day']:%a}"),
    }
    for part in ("night", "morning", "afternoon", "evening", "weekend"):
        features[f"{part}_order_share"] = _ratio(features[f"{part}_order_count"], len(orders))
    for name, whole in (("category", purchases), ("channel", orders)):
        top = next(iter(features["categories" if name == "category" else "channels"]), None)
        features[f"top_{name}"] = top and top["thing"]
        features[f"top_{name}_share"] = _ratio(top["event_count"], len(whole)) if top else None
    hour, weekday = (next(iter(features[name]), None) for name in ("response_hours", "response_weekdays"))
    features["best_response_hour"] = int(hour["thing"]) if hour else None
    features["best_response_weekday"] = weekday and weekday["thing"]
    for top, listed in (("best_response_channel", "response_channels"), ("top_service_kind", "service_kinds")):
        features[top] = next((entry["thing"] for entry in features[listed]), None)
    of_days = {
        "purchase": orders, "contact": own(seen.contacts), "response": own(seen.responses),
        "service": own(seen.service), "feedback": own(seen.feedback), "session": own(seen.visits),
    }  # fmt: skip
    for event, rows in of_days.items():
        features[f"first_{event}_on"] = min((row["day"] for row in rows), default=None)
        features[f"last_{event}_on"] = max((row["day"] for row in rows), default=None)
    spans = {"": (date.min, seen.as_of)}
    spans |= {f"_{days}d": (seen.as_of - timedelta(days=days), seen.as_of) for days in windows_days}
    for suffix, (first, end) in spans.items():
        features |= _windowed(seen, own, first, end, suffix)
    for days in windows_days:
        end = seen.as_of - timedelta(days=days)
        prior = _windowed(seen, own, end - timedelta(days=days), end, "")
        for name in ("order_count", "net_amount"):
            features[f"{name}_prior_{days}d"] = prior[name]
            features[f"{name}_change_{days}d"] = features[f"{name}_{days}d"] - prior[name]
    return features


def _windowed(
    seen: _Seen, own: Callable[[Iterable[Row]], list[Row]], first: date, end: date, suffix: str
) -> Mapping[str, Any]:
    def within(rows: Iterable[Row]) -> list[Row]:
        return [row for row in own(rows) if first <= row["day"] < end]

    def total(rows: Iterable[Row], name: str) -> Decimal:
        return sum((row[name] or Decimal(0) for row in rows), Decimal(0))

    purchases, returns = within(seen.purchases), within(seen.returns)
    orders = [row for row in purchases if row["opens"]]
    discounted = [row for row in purchases if row["discount_amount"] and row["discount_amount"] > 0]
    net = total(purchases, "amount") + total(returns, "amount")
    discount = total([*purchases, *returns], "discount_amount")
    contacts, responses, service = within(seen.contacts), within(seen.responses), within(seen.service)
    feedback, visits = within(seen.feedback), within(seen.visits)
    unresolved = [row for row in service if row["is_resolved"] is False]
    judged = [row for row in service if row["is_resolved"] is not None]
    rated = [row for row in feedback if row["rating"] is not None]
    sessions: dict[Any, set[str]] = {}
    for row in visits:
        sessions.setdefault(row["session"], set()).add((row["action"] or "").lower())
    carts = [actions for actions in sessions.values() if "cart" in actions]
    bought = [actions for actions in sessions.values() if "purchase" in actions]
    bought_carts = [actions for actions in carts if "purchase" in actions]
    views = sum((row["action"] or "").lower() == "view" for row in visits)
    found = {
        "order_count": len(orders),
        "active_day_count": len({row["day"] for row in orders}),
        "line_count": len(purchases),
        "return_line_count": len(returns),
        "discounted_line_count": len(discounted),
        "net_amount": net,
        "return_amount": total(returns, "amount"),
        "discount_amount": discount,
        "mean_order_amount": _ratio(net, len(orders)),
        "mean_order_line_count": _ratio(len(purchases), len(orders)),
        "discount_share": _ratio(discount, discount + net),
        "discounted_line_share": _ratio(len(discounted), len(purchases)),
        "return_line_share": _ratio(len(returns), len(purchases) + len(returns)),
        "category_count": len({seen.category_of.get(row["product_id"]) for row in purchases} - {None}),
        "store_count": len({row["store_id"] for row in purchases} - {None}),
        "contact_count": len(contacts),
        "response_count": len(responses),
        "response_ratio": _ratio(len(responses), len(contacts)),
        "service_event_count": len(service),
        "service_seconds": sum(row["duration_seconds"] or 0 for row in service),
        "unresolved_service_event_count": len(unresolved),
        "unresolved_service_event_share": _ratio(len(unresolved), len(judged)),
        "judged_service_event_count": len(judged),
        "feedback_count": len(feedback),
        "rated_feedback_count": len(rated),
        "rating_sum": total(rated, "rating"),
        "mean_rating": _ratio(total(rated, "rating"), len(rated)),
        "session_count": len(sessions),
        "page_view_count": views,
        "mean_session_page_view_count": _ratio(views, len(sessions)),
        "cart_session_count": len(carts),
        "purchase_session_count": len(bought),
        "bought_cart_session_count": len(bought_carts),
        "abandoned_cart_count": len(carts) - len(bought_carts),
        "conversion_share": _ratio(len(bought), len(sessions)),
    }
    return {f"{name}{suffix}": value for name, value in found.items()}


def _day_no(row: Row) -> int:
    return (row["day"] - date(2000, 1, 1)).days


def _slope(points: Sequence[tuple[int, float]]) -> float | None:
    """By how much y changes in 30 days, by numpy's least squares."""
    if len({x for x, _ in points}) < 2:
        return None
    first = min(x for x, _ in points)
    return 30 * float(np.polyfit([x - first for x, _ in points], [y for _, y in points], 1)[0])
