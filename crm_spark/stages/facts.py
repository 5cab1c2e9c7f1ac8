"""The facts stage: events and who they happened to, brought up to date by what changed in the clean tables."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from crm_spark.cleaning.tables import CLEAN
from crm_spark.facts.customers import (
    build_customer_days,
    build_customer_products,
    build_customer_things,
    build_customers,
)
from crm_spark.facts.events import (
    add_sessions,
    build_contacts,
    build_feedback,
    build_order_lines,
    build_responses,
    build_service_events,
    build_visits,
)
from crm_spark.facts.tables import (
    DIM_CUSTOMERS,
    EVENTS,
    FACT_CONTACTS,
    FACT_CUSTOMER_DAYS,
    FACT_CUSTOMER_PRODUCTS,
    FACT_CUSTOMER_THINGS,
    FACT_FEEDBACK,
    FACT_ORDER_LINES,
    FACT_RESPONSES,
    FACT_SERVICE_EVENTS,
    FACT_VISITS,
)
from crm_spark.publications import Pin
from crm_spark.run import Run
from crm_spark.tables import Table, union_of


@dataclass(frozen=True)
class _Event:
    """A fact table of events: the entity it tells of, and those that it joins by their keys.

    A row depends on those rows of the entity that have the same `group`, and on no other; of joined rows, on what
    `joins` names in SQL. A column that is `frozen` keeps the first value that was told, as long as the column beside it
    says that the row is of the same thing.
    """

    table: Table
    build: Callable[..., DataFrame]
    entity: str
    group: tuple[str, ...]
    joins: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    frozen: Mapping[str, str] = field(default_factory=dict)

    @property
    def entities(self) -> tuple[str, ...]:
        return (self.entity, *self.joins)

    @property
    def reads(self) -> list[Table]:
        return [CLEAN[name] for name in self.entities]


_EVENTS = (
    _Event(
        FACT_ORDER_LINES,
        build_order_lines,
        "orders",
        ("order_id", "customer_id"),
        {"products": ("category", "department", "brand", "price IS NOT NULL AS has_price")},
        frozen={"usual_price": "product_id"},
    ),
    _Event(FACT_CONTACTS, build_contacts, "contacts", ("contact_id",), {"campaigns": ("kind", "starts_on")}),
    _Event(FACT_RESPONSES, build_responses, "responses", ("response_id",), {"campaigns": ("channel",)}),
    _Event(FACT_SERVICE_EVENTS, build_service_events, "service_events", ("event_id",)),
    _Event(FACT_FEEDBACK, build_feedback, "feedback", ("feedback_id",)),
    _Event(FACT_VISITS, build_visits, "visits", ("customer_id", "session_id")),
)


# Those that tell of events, or that events join.
ENTITIES = sorted({name for event in _EVENTS for name in event.entities})


def rules_of(run: Run, entities: Iterable[str]) -> object:
    """All that facts of some entities depend on beside their clean rows."""
    return [run.config.business_time_zone, {name: run.rules.get(name) for name in entities}]


def refresh_facts(run: Run) -> None:
    """Bring events, customers and their days up to date."""
    zone = run.config.business_time_zone
    run.side_by_side(*(partial(_update_events, run, event) for event in _EVENTS))
    # Where one is made anew, so are the others, also if the run ends between them.
    _update_ledger(run, FACT_CUSTOMER_PRODUCTS, build_customer_products)
    _update_ledger(run, FACT_CUSTOMER_THINGS, build_customer_things, after=[FACT_CUSTOMER_PRODUCTS])
    _update_ledger(run, FACT_CUSTOMER_DAYS, build_customer_days, after=[FACT_CUSTOMER_PRODUCTS, FACT_CUSTOMER_THINGS])
    run.lake.clear_cache()  # what was noted of changed groups
    run.update(DIM_CUSTOMERS, partial(build_customers, time_zone=zone), [CLEAN["customers"], FACT_CUSTOMER_DAYS], zone)


def _update_events(run: Run, event: _Event) -> None:
    zone = run.config.business_time_zone
    build = partial(event.build, time_zone=zone)

    def build_all(base: Pin | None) -> DataFrame:
        rows = build(*(run.read(table) for table in event.reads))
        return _keep_frozen(event, rows, run.lake.read(base)) if base else rows

    def change(base: Pin, before: Mapping[str, Pin]) -> tuple[DataFrame, DataFrame | None]:
        group, key = list(event.group), list(event.table.key)
        entity, *joined = (run.read(table) for table in event.reads)
        touched = _touched_groups(run, event, before).persist()
        first = group[0]
        # The range lets readers pass over files that hold none of them.
        (low, high) = touched.agg(F.min(first), F.max(first)).collect()[0]
        within = F.col(first).between(F.lit(low), F.lit(high))
        rows = build(_grouped(event, entity, zone).where(within).join(touched, group, "left_semi"), *joined)
        standing = run.lake.read(base).where(within).join(touched, group, "left_semi")
        if standing.isEmpty():
            return rows, None
        return _keep_frozen(event, rows, standing).persist(), standing.select(*key)

    run.grow(event.table, build_all, change, event.reads, rules_of(run, event.entities))


def _keep_frozen(event: _Event, rows: DataFrame, standing: DataFrame) -> DataFrame:
    """The same rows, with the frozen columns of those that stand."""
    for name, of_same in event.frozen.items():
        same = [*event.table.key, of_same]
        first = standing.select(*same, F.col(name).alias("first"))
        rows = rows.join(first, same, "left").withColumn(name, F.coalesce("first", name))
    return rows.select(*event.table.column_names)


def _touched_groups(run: Run, event: _Event, before: Mapping[str, Pin]) -> DataFrame:
    """The groups of an entity's rows that changed, or that join rows that did."""
    zone = run.config.business_time_zone

    def changes(table: Table) -> DataFrame | None:
        if table.name not in run.pins:
            return None
        old, new = before[table.name], run.pins[table.name]
        return run.lake.row_changes(table, old, new) if old.content_hash != new.content_hash else None

    entity, *_ = event.reads
    own = changes(entity)
    groups = [_grouped(event, own, zone)] if own is not None else []
    for name, taken in event.joins.items():
        joined = CLEAN[name]
        changed = changes(joined)
        if changed is not None:
            otherwise = (
                changed.groupBy(*joined.key, *map(F.expr, taken)).agg(F.sum("sign").alias("sign")).where("sign != 0")
            )
            groups.append(_grouped(event, run.read(entity), zone).join(otherwise, list(joined.key), "left_semi"))
    return union_of(rows.select(*event.group) for rows in groups).distinct()


def _grouped(event: _Event, rows: DataFrame, time_zone: str) -> DataFrame:
    return add_sessions(rows, time_zone) if event.table is FACT_VISITS else rows


def _update_ledger(run: Run, table: Table, build: Callable[..., DataFrame], after: Sequence[Table] = ()) -> None:
    def build_all(_: Pin | None) -> DataFrame:
        return build({event.name: run.read(event).withColumn("sign", F.lit(1)) for event in EVENTS}, {}, 1)

    def change(base: Pin, before: Mapping[str, Pin]) -> tuple[DataFrame, None]:
        (newest,) = run.lake.query(f"SELECT max(addition_no) AS addition_no FROM {table.name}", base)  # noqa: S608
        changed = {
            event.name: run.lake.row_changes(event, before[event.name], run.pins[event.name]) for event in EVENTS
        }
        return build(changed, run.slices, (newest["addition_no"] or 0) + 1), None

    run.grow(table, build_all, change, [*EVENTS, *after], rules_of(run, ENTITIES), is_ledger=True, ledgers=after)
