"""A shop that never was: who its customers truly are, and what they did, each entity as its files tell of it.

What is true of a customer (kind, rate of purchases, day of leaving, ...) decides what they do, so that whoever finds
out about the customers from the files can be compared with the truth. Orders of a customer form a Poisson process from
the day they come until the day they leave, as in Schmittlein, Morrison and Colombo 1987.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from crm_spark.generator.draws import Draws, list_of
from crm_spark.generator.texts import CITIES, FEEDBACK, NAMES, REGIONS

# The day after the last one that files tell of.
END = date(2026, 1, 1)
CURRENCY = "EUR"
_DEPARTMENTS = ("grocery", "garden", "books", "toys", "fashion", "electronics", "sports", "beauty")
_CHANNELS = ("store", "web", "phone")
_CAMPAIGN_CHANNELS = ("email", "mail", "phone")
_CAMPAIGN_EVERY_DAYS = 14
# Of products, one in so many is on promotion in any week, another one each week.
_PROMOTED_IN = 7
_PRODUCTS = 2_100
_RETURNED_SHARE = 0.02
_DAY_SECONDS = 86_400
_SHOWN_AS = "yyyy-MM-dd HH:mm:ss"


@dataclass(frozen=True)
class Plan:
    """How much to generate: `lines` is how many order lines are expected, `dirt` the share of rows with an error."""

    customers: int
    lines: int
    days: int
    seed: int
    dirt: float

    @property
    def begins_on(self) -> date:
        return END - timedelta(days=self.days)


@dataclass(frozen=True)
class _Kind:
    """What customers of one segment have in common; rates are relative to each other."""

    share: float
    order_rate: float
    mean_stay_days: float
    order_lines: float
    price_sensitivity: float
    web_share: float
    satisfaction: float
    service_rate: float
    response_share: float


_KINDS = {
    "regular": _Kind(0.30, 3.0, 1500, 4, 0.25, 0.3, 0.80, 0.2, 0.10),
    "bargain hunter": _Kind(0.20, 1.5, 700, 5, 0.85, 0.6, 0.60, 0.4, 0.30),
    "stocker": _Kind(0.10, 1.0, 1200, 14, 0.45, 0.1, 0.75, 0.2, 0.12),
    "occasional": _Kind(0.25, 0.4, 900, 3, 0.30, 0.5, 0.65, 0.2, 0.06),
    "one-time": _Kind(0.15, 0.5, 60, 2, 0.55, 0.8, 0.40, 0.8, 0.03),
}


def build_customers(spark: SparkSession, plan: Plan) -> DataFrame:
    """Rows: one per customer, what is true of them. Days count from the first that files tell of, with fractions."""
    draws = Draws(plan.seed)
    drawn = spark.range(plan.customers).select(
        F.col("id").alias("customer_no"),
        F.format_string("C%08d", "id").alias("customer_id"),
        draws.weighted("kind", {name: kind.share for name, kind in _KINDS.items()}, "id").alias("kind"),
    )
    kind = F.element_at(
        F.create_map(
            *(part for name, kind in _KINDS.items() for part in (F.lit(name), F.struct(*_fields(kind)))),
        ),
        F.col("kind"),
    )
    who = drawn.withColumn("of_kind", kind)
    key = "customer_no"
    comes = F.when(draws.is_true("is old", 0.6, key), 0.0).otherwise(draws.uniform("comes", key) * plan.days)
    truth = who.select(
        "customer_no",
        "customer_id",
        "kind",
        comes.alias("comes_day"),
        (comes + draws.exponential("stays", F.col("of_kind.mean_stay_days"), key)).alias("leaves_day"),
        # A few buy many times as often as the others.
        (F.col("of_kind.order_rate") * F.exp(0.8 * draws.normal("rate", key))).alias("weight"),
        F.col("of_kind.order_lines").alias("mean_order_lines"),
        F.least(F.lit(1.0), F.col("of_kind.price_sensitivity") * (0.6 + 0.8 * draws.uniform("price", key))).alias(
            "price_sensitivity"
        ),
        F.when(draws.is_true("is web", F.col("of_kind.web_share"), key), "web")
        .when(draws.is_true("is phone", 0.1, key), "phone")
        .otherwise("store")
        .alias("preferred_channel"),
        draws.one_of("contact", _CAMPAIGN_CHANNELS, key).alias("preferred_contact"),
        draws.one_of("needs", _DEPARTMENTS, key).alias("preferred_department"),
        F.col("of_kind.satisfaction").alias("satisfaction"),
        F.col("of_kind.service_rate").alias("service_rate"),
        F.col("of_kind.response_share").alias("response_share"),
        F.when(draws.is_true("language", 0.2, key), "zh").otherwise("en").alias("language"),
    )
    stays = F.least(F.col("leaves_day"), F.lit(float(plan.days))) - F.col("comes_day")
    truth = truth.withColumn("stay_days", stays)
    # As exact numbers, so that the sum does not depend on the order of rows.
    of_customer = (F.col("weight") * F.col("stay_days") * F.col("mean_order_lines")).cast("decimal(28,9)")
    ((weight,),) = truth.agg(F.sum(of_customer)).collect()
    rate = F.col("weight") * (plan.lines / float(weight or 1))
    return truth.withColumn("orders_per_day", rate).drop("weight")


def build_orders(customers: DataFrame, plan: Plan) -> DataFrame:
    """Rows: one per order."""
    draws = Draws(plan.seed)
    count = draws.poisson("orders", F.col("orders_per_day") * F.col("stay_days"), "customer_no")
    numbered = customers.withColumn("order_no", F.explode(F.sequence(F.lit(1), count))).where(count > 0)
    key = ("customer_no", "order_no")
    day = F.floor(F.col("comes_day") + draws.uniform("order day", *key) * F.col("stay_days"))
    channel = F.when(draws.is_true("as preferred", 0.8, *key), F.col("preferred_channel"))
    orders = numbered.withColumns(
        {
            "day": day,
            "at": _instant(plan, day, draws, "order", *key),
            "channel": F.coalesce(channel, draws.one_of("order channel", _CHANNELS, *key)),
            "store": F.format_string("S%02d", draws.whole("store", 12, "customer_no")),
        }
    )
    # In the order of time, as tills count.
    number = F.format_string("%s-%d-%d", F.date_format("at", "yyyyMMdd"), "customer_no", "order_no")
    return orders.withColumn("order_id", number)


def build_lines(orders: DataFrame, plan: Plan) -> DataFrame:
    """Rows: one per order line and per returned one, as a till exports them."""
    draws = Draws(plan.seed)
    of_order = ("customer_no", "order_no")
    more = F.floor(draws.exponential("lines", F.col("mean_order_lines") - 0.5, *of_order))
    lines = orders.withColumn("line_no", F.explode(F.sequence(F.lit(1), F.least(1 + more, F.lit(60)).cast("int"))))
    key = (*of_order, "line_no")
    week = F.floor(F.col("day") / 7)
    popular = F.floor(F.pow(draws.uniform("product", *key), F.lit(2.5)) * (_PRODUCTS // len(_DEPARTMENTS)))
    needed = F.array_position(F.array(*map(F.lit, _DEPARTMENTS)), F.col("preferred_department")) - 1
    department = F.when(draws.is_true("is needed", 0.5, *key), needed).otherwise(
        draws.whole("department", len(_DEPARTMENTS), *key)
    )
    wished = popular * len(_DEPARTMENTS) + department
    # Who minds the price takes the neighbour that is on promotion.
    promoted = wished - wished % _PROMOTED_IN + week % _PROMOTED_IN
    takes_promoted = draws.is_true("promoted", 0.8 * F.col("price_sensitivity"), *key)
    product = F.when(takes_promoted & (promoted < _PRODUCTS), promoted).otherwise(wished)
    quantity = 1 + F.floor(draws.exponential("quantity", 0.6, *key))
    lines = lines.withColumns({"product_no": product.cast("bigint"), "quantity": quantity.cast("bigint")})
    price = _price_cents(draws)
    discount_share = F.when(
        F.col("product_no") % _PROMOTED_IN == week % _PROMOTED_IN, 0.1 + 0.1 * (F.col("product_no") % 4)
    ).otherwise(0.0)
    lines = lines.withColumn("list_cents", F.col("quantity") * price).withColumn(
        "discount_cents", F.round(F.col("list_cents") * discount_share).cast("bigint")
    )
    is_returned = draws.is_true("returned", _RETURNED_SHARE, *key)
    return_day = F.col("day") + 2 + draws.whole("return day", 20, *key)
    tellings = F.when(is_returned & (return_day < plan.days), list_of([False, True])).otherwise(list_of([False]))
    both = lines.withColumn("is_return", F.explode(tellings))
    day = F.when(F.col("is_return"), return_day).otherwise(F.col("day"))
    at = F.when(F.col("is_return"), _instant(plan, return_day, draws, "return", *key)).otherwise(F.col("at"))
    sign = F.when(F.col("is_return"), -1).otherwise(1)
    returned_id = F.format_string("%s-R%d-%d", F.date_format(at, "yyyyMMdd"), "customer_no", "order_no")
    return both.select(
        day.alias("day"),
        F.when(F.col("is_return"), returned_id).otherwise(F.col("order_id")).alias("receipt"),
        F.col("line_no").cast("string").alias("position"),
        F.col("customer_id").alias("card"),
        F.date_format(at, _SHOWN_AS).alias("sold_at"),
        _product_id().alias("article"),
        F.col("store").alias("store"),
        F.col("channel").alias("channel"),
        (sign * F.col("quantity")).cast("string").alias("units"),
        _money(sign * (F.col("list_cents") - F.col("discount_cents"))).alias("paid"),
        F.when(~F.col("is_return"), _money(F.col("discount_cents"))).alias("rebate"),
        F.lit(CURRENCY).alias("currency"),
        F.when(F.col("is_return"), F.col("order_id")).alias("return_of"),
    )


def build_customer_table(customers: DataFrame, plan: Plan) -> DataFrame:
    """Rows: one per version of a customer's record: new, moved, or gone."""
    draws = Draws(plan.seed)
    moves = draws.is_true("moves", 0.1, "customer_no")
    closes = draws.is_true("closes", 0.005, "customer_no")
    versions = F.array_compact(F.array(F.lit(0), F.when(moves, 1), F.when(closes, 2)))
    told = customers.withColumn("version", F.explode(versions))
    # Each later version comes in the days that are left.
    day = F.least(
        F.floor(F.col("comes_day") + (plan.days - F.col("comes_day")) * F.col("version") / 3), F.lit(plan.days - 1)
    )
    key = ("customer_no", "version")
    came_at = _instant(plan, F.floor("comes_day"), draws, "comes", "customer_no")
    changed_at = F.greatest(came_at, F.when(F.col("version") > 0, _instant(plan, day, draws, "change", *key)))
    age = F.floor(F.least(F.abs(draws.normal("age", "customer_no")) * 18 + 18, F.lit(94.0)) / 10) * 10
    return told.select(
        day.alias("day"),
        F.col("customer_id").alias("id"),
        F.format_string("%d-%d", age.cast("int"), (age + 9).cast("int")).alias("age"),
        draws.weighted("gender", {"f": 0.5, "m": 0.45, "x": 0.05}, "customer_no").alias("gender"),
        draws.one_of("city", CITIES, *key).alias("city"),
        draws.one_of("region", REGIONS, *key).alias("region"),
        F.date_format(came_at, _SHOWN_AS).alias("since"),
        F.date_format(changed_at, _SHOWN_AS).alias("changed_at"),
        F.when(F.col("version") == 2, "D").when(F.col("version") == 1, "U").otherwise("I").alias("operation"),
    )


def build_customer_contacts(customers: DataFrame, plan: Plan) -> DataFrame:
    """Rows: one per customer: name, addresses and date of birth."""
    draws = Draws(plan.seed)
    names = {
        language: (draws.one_of("first", first, "customer_no"), draws.one_of("last", last, "customer_no"))
        for language, (first, last) in NAMES.items()
    }
    is_chinese = F.col("language") == "zh"
    name = F.when(is_chinese, F.concat(*names["zh"])).otherwise(F.concat_ws(" ", *names["en"]))
    born = F.date_sub(F.lit(END), (18 * 365 + draws.whole("born", 60 * 365, "customer_no")).cast("int"))
    return customers.select(
        F.lit(0).alias("day"),
        F.col("customer_id").alias("id"),
        name.alias("name"),
        F.concat(F.lower("customer_id"), F.lit("@example.org")).alias("email"),
        F.format_string("+00 555 %07d", draws.whole("phone", 10_000_000, "customer_no")).alias("phone"),
        F.format_string("%d High Street", 1 + draws.whole("house", 300, "customer_no")).alias("address"),
        F.date_format(born, "yyyy-MM-dd").alias("born_on"),
    )


def build_products(spark: SparkSession, plan: Plan) -> DataFrame:
    """Rows: one per product."""
    draws = Draws(plan.seed)
    department = F.element_at(list_of(_DEPARTMENTS), (F.col("product_no") % len(_DEPARTMENTS) + 1).cast("int"))
    products = spark.range(_PRODUCTS).withColumnRenamed("id", "product_no").withColumn("department", department)
    category = F.concat_ws(" ", "department", (F.floor(F.col("product_no") / 64) % 6).cast("string"))
    return products.select(
        F.lit(0).alias("day"),
        _product_id().alias("article"),
        F.format_string("Article %d", "product_no").alias("title"),
        category.alias("category"),
        "department",
        draws.one_of("brand", ("Alder", "Birch", "Cedar", "Elm", "Fir"), "product_no").alias("brand"),
        _money(_price_cents(draws)).alias("price"),
    )


def build_campaigns(spark: SparkSession, plan: Plan) -> DataFrame:
    """Rows: one per campaign, one every two weeks."""
    first = F.col("campaign_no") * _CAMPAIGN_EVERY_DAYS
    starts_on = F.date_add(F.lit(plan.begins_on), first.cast("int"))
    return _campaigns(spark, plan).select(
        first.alias("day"),
        _campaign_id().alias("campaign"),
        F.concat_ws(" ", F.lit("Offer"), F.col("campaign_no").cast("string")).alias("title"),
        F.when(F.col("campaign_no") % 2 == 0, "seasonal").otherwise("loyalty").alias("kind"),
        _campaign_channel().alias("channel"),
        F.date_format(starts_on, "yyyy-MM-dd").alias("from_day"),
        F.date_format(F.date_add(starts_on, _CAMPAIGN_EVERY_DAYS - 1), "yyyy-MM-dd").alias("to_day"),
    )


def build_contacts(customers: DataFrame, plan: Plan) -> DataFrame:
    """Rows: one per customer and campaign that reached out to them, and what they did about it.

    Whoever is reached by the channel that they prefer answers three times as often.
    """
    draws = Draws(plan.seed)
    reached = customers.crossJoin(F.broadcast(_campaigns(customers.sparkSession, plan)))
    key = ("customer_no", "campaign_no")
    day = F.col("campaign_no") * _CAMPAIGN_EVERY_DAYS + draws.whole("contact day", 3, *key)
    reached = reached.where((F.col("comes_day") < day) & draws.is_true("reached", 0.3, *key) & (day < plan.days))
    fits = F.col("preferred_contact") == _campaign_channel()
    is_there = F.col("leaves_day") > day
    probability = F.col("response_share") * F.when(fits, 1.5).otherwise(0.5) * F.when(is_there, 1.0).otherwise(0.05)
    response_day = day + draws.whole("response day", 12, *key)
    answers = draws.is_true("answers", probability, *key) & (response_day < plan.days)
    at = _instant(plan, day, draws, "contact", *key)
    answered_at = _instant(plan, response_day, draws, "response", *key)
    return reached.select(
        day.alias("day"),
        F.concat_ws("-", _campaign_id(), F.col("customer_no").cast("string")).alias("contact"),
        "customer_id",
        _campaign_id().alias("campaign"),
        _campaign_channel().alias("channel"),
        F.date_format(at, _SHOWN_AS).alias("sent_at"),
        F.when(answers, response_day).alias("response_day"),
        F.when(answers, F.date_format(F.greatest(answered_at, at), _SHOWN_AS)).alias("answered_at"),
        draws.weighted("answer", {"click": 0.7, "coupon": 0.2, "call": 0.1}, *key).alias("answer"),
    )


def build_service_events(customers: DataFrame, plan: Plan) -> DataFrame:
    """Rows: one per call; those of the last weeks before a customer leaves are seldom resolved."""
    draws = Draws(plan.seed)
    mean = F.col("service_rate") * F.col("stay_days") / 120
    count = draws.poisson("calls", mean, "customer_no")
    calls = customers.withColumn("call_no", F.explode(F.sequence(F.lit(1), count))).where(count > 0)
    key = ("customer_no", "call_no")
    day = F.floor(F.col("comes_day") + draws.uniform("call day", *key) * F.col("stay_days"))
    is_late = F.col("leaves_day") - day < 30
    return calls.select(
        day.alias("day"),
        F.format_string("T%d-%d", "customer_no", "call_no").alias("ticket"),
        F.col("customer_id").alias("customer"),
        F.date_format(_instant(plan, day, draws, "call", *key), _SHOWN_AS).alias("opened_at"),
        draws.weighted("topic", {"delivery": 0.4, "complaint": 0.3, "question": 0.3}, *key).alias("topic"),
        draws.weighted("line", {"phone": 0.6, "email": 0.25, "chat": 0.15}, *key).alias("channel"),
        (30 + F.floor(draws.exponential("seconds", 300, *key))).cast("string").alias("seconds"),
        F.when(draws.is_true("resolved", F.when(is_late, 0.35).otherwise(0.85), *key), "yes")
        .otherwise("no")
        .alias("solved"),
        F.format_string("A%02d", draws.whole("agent", 25, *key)).alias("agent"),
    )


def build_feedback(orders: DataFrame, plan: Plan) -> DataFrame:
    """Rows: one per comment on an order, and the sentiment it was written with: -1, 0 or 1."""
    draws = Draws(plan.seed)
    key = ("customer_no", "order_no")
    given = orders.where(draws.is_true("comments", 0.05, *key) & (F.col("day") + 3 < plan.days))
    mood = draws.uniform("mood", *key)
    sentiment = F.when(mood < 0.8 * F.col("satisfaction"), 1).when(mood < 0.2 + 0.8 * F.col("satisfaction"), 0)
    given = given.withColumns({"sentiment": sentiment.otherwise(-1), "given_day": F.col("day") + 2})
    text = F.lit(None).cast("string")
    for (language, feeling), (openings, verdicts) in FEEDBACK.items():
        parts = [draws.one_of("opening", openings, *key), draws.one_of("verdict", verdicts, *key)]
        comma, stop = ("\N{FULLWIDTH COMMA}", "\N{IDEOGRAPHIC FULL STOP}") if language == "zh" else (", ", ".")
        written = F.concat(F.concat_ws(comma, *parts), F.lit(stop))
        text = F.when((F.col("language") == language) & (F.col("sentiment") == feeling), written).otherwise(text)
    rating = F.least(F.greatest(3 + 1.5 * F.col("sentiment") + 0.6 * draws.normal("stars", *key), F.lit(1)), F.lit(5))
    return given.select(
        F.col("given_day").alias("day"),
        F.concat(F.lit("F"), F.col("order_id")).alias("id"),
        F.col("customer_id").alias("customer"),
        F.date_format(_instant(plan, F.col("given_day"), draws, "feedback", *key), _SHOWN_AS).alias("given_at"),
        F.round(rating).cast("int").cast("string").alias("stars"),
        text.alias("comment"),
        F.col("channel").alias("via"),
        "sentiment",
        "language",
    )


def build_visits(orders: DataFrame, plan: Plan) -> DataFrame:
    """Rows: one per page view or action: a session before each order on the web, and two that came to nothing."""
    draws = Draws(plan.seed)
    of_order = ("customer_no", "order_no")
    sessions = orders.where("channel = 'web'").withColumn("session_no", F.explode(F.array(*map(F.lit, range(3)))))
    key = (*of_order, "session_no")
    day = F.greatest(F.col("day") - draws.whole("visited before", 10, *key) * F.col("session_no"), F.lit(0))
    views = 2 + F.floor(draws.exponential("views", 3, *key))
    ends = F.when(F.col("session_no") == 0, F.array(F.lit("cart"), F.lit("purchase"))).when(
        F.col("session_no") == 1, F.array(F.lit("cart"))
    )
    actions = F.concat(
        F.array_repeat(F.lit("view"), F.least(views, F.lit(20)).cast("int")),
        F.coalesce(ends, F.array().cast("array<string>")),
    )
    begins_at = F.when(F.col("session_no") == 0, F.unix_seconds("at") - 900).otherwise(
        F.unix_seconds(_instant(plan, day, draws, "visit", *key))
    )
    started = sessions.withColumns({"visit_day": day, "begins_at": begins_at})
    events = started.select("*", F.posexplode(actions).alias("event_no", "action"))
    product = draws.whole("viewed", _PRODUCTS, *key, "event_no").alias("product_no")
    at = F.timestamp_seconds(F.col("begins_at") + 40 * F.col("event_no"))
    session = F.format_string("%d-%d-%d", *key)
    return events.select(
        F.col("visit_day").alias("day"),
        F.format_string("%s-%d", session, "event_no").alias("event"),
        F.col("customer_id").alias("user"),
        session.alias("session"),
        F.date_format(at, "yyyy-MM-dd'T'HH:mm:ss'Z'").alias("at"),
        F.when(F.col("action") == "view", "product").otherwise("checkout").alias("page"),
        F.format_string("P%05d", product).alias("article"),
        "action",
    )


def _campaigns(spark: SparkSession, plan: Plan) -> DataFrame:
    return spark.range(-(-plan.days // _CAMPAIGN_EVERY_DAYS)).withColumnRenamed("id", "campaign_no")


def _campaign_id() -> Column:
    return F.format_string("K%04d", "campaign_no")


def _campaign_channel() -> Column:
    return F.element_at(list_of(_CAMPAIGN_CHANNELS), (F.col("campaign_no") % len(_CAMPAIGN_CHANNELS) + 1).cast("int"))


def _product_id() -> Column:
    return F.format_string("P%05d", "product_no")


def _price_cents(draws: Draws) -> Column:
    return F.round(100 + 400 * F.exp(draws.normal("list price", "product_no"))).cast("bigint")


def _money(cents: Column) -> Column:
    return (cents.cast("decimal(18, 0)") / 100).cast("decimal(18, 2)").cast("string")


def _instant(plan: Plan, day: Column, draws: Draws, what: str, *key: str) -> Column:
    """A time of that day, most of them in the afternoon."""
    hours = 8 + 7 * (draws.uniform(f"{what} hour", *key) + draws.uniform(f"{what} later", *key))
    midnight = F.unix_seconds(F.lit(plan.begins_on).cast("timestamp")) + day.cast("bigint") * _DAY_SECONDS
    return F.timestamp_seconds(midnight + (hours * 3600).cast("bigint"))


def _fields(kind: _Kind) -> list[Column]:
    values: Mapping[str, float] = {name: float(value) for name, value in vars(kind).items()}
    return [F.lit(value).alias(name) for name, value in values.items()]
