"""The facts stage: events and who they happened to."""

from functools import partial

from pyspark.sql import DataFrame

from crm_spark.cleaning.tables import CLEAN
from crm_spark.facts.customers import build_customer_days, build_customer_things, build_customers
from crm_spark.facts.events import (
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
    FACT_CUSTOMER_THINGS,
    FACT_FEEDBACK,
    FACT_ORDER_LINES,
    FACT_RESPONSES,
    FACT_SERVICE_EVENTS,
    FACT_VISITS,
)
from crm_spark.run import Run

_BUILT_FROM = (
    (FACT_ORDER_LINES, build_order_lines, ("orders", "products")),
    (FACT_CONTACTS, build_contacts, ("contacts", "campaigns")),
    (FACT_RESPONSES, build_responses, ("responses", "campaigns")),
    (FACT_SERVICE_EVENTS, build_service_events, ("service_events",)),
    (FACT_FEEDBACK, build_feedback, ("feedback",)),
    (FACT_VISITS, build_visits, ("visits",)),
)


def refresh_facts(run: Run) -> None:
    """Bring events, customers and their days up to date."""
    zone = run.config.business_time_zone
    run.side_by_side(
        *(
            partial(run.update, table, partial(build, time_zone=zone), [CLEAN[name] for name in entities], zone)
            for table, build, entities in _BUILT_FROM
        )
    )

    def by_name(*events: DataFrame) -> dict[str, DataFrame]:
        return {table.name: rows for table, rows in zip(EVENTS, events, strict=True)}

    run.side_by_side(
        lambda: run.update(
            DIM_CUSTOMERS,
            lambda customers, *events: build_customers(customers, events, zone),
            [CLEAN["customers"], *EVENTS],
            zone,
        ),
        lambda: run.update(FACT_CUSTOMER_DAYS, lambda *events: build_customer_days(by_name(*events)), EVENTS),
        lambda: run.update(FACT_CUSTOMER_THINGS, lambda *events: build_customer_things(by_name(*events)), EVENTS),
    )
