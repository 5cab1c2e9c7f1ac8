"""The facts stage: events and who they happened to."""

from functools import partial

from crm_spark.cleaning.tables import CLEAN
from crm_spark.facts.customers import build_customer_days, build_customer_things, build_customers
from crm_spark.facts.events import build_contacts, build_order_lines, build_responses
from crm_spark.facts.tables import (
    DIM_CUSTOMERS,
    FACT_CONTACTS,
    FACT_CUSTOMER_DAYS,
    FACT_CUSTOMER_THINGS,
    FACT_ORDER_LINES,
    FACT_RESPONSES,
)
from crm_spark.run import Run


def refresh_facts(run: Run) -> None:
    """Bring events, customers and their days up to date."""
    zone = run.config.business_time_zone
    run.side_by_side(
        lambda: run.update(
            FACT_ORDER_LINES,
            partial(build_order_lines, time_zone=zone),
            [CLEAN["orders"], CLEAN["products"]],
            zone,
        ),
        lambda: run.update(
            FACT_CONTACTS,
            partial(build_contacts, time_zone=zone),
            [CLEAN["contacts"], CLEAN["campaigns"]],
            zone,
        ),
        lambda: run.update(FACT_RESPONSES, partial(build_responses, time_zone=zone), [CLEAN["responses"]], zone),
    )
    events = [FACT_ORDER_LINES, FACT_CONTACTS, FACT_RESPONSES]
    run.side_by_side(
        lambda: run.update(
            DIM_CUSTOMERS,
            partial(build_customers, time_zone=zone),
            [CLEAN["customers"], *events],
            zone,
        ),
        lambda: run.update(FACT_CUSTOMER_DAYS, build_customer_days, events),
        lambda: run.update(FACT_CUSTOMER_THINGS, build_customer_things, [FACT_ORDER_LINES]),
    )
