"""A DAG of Airflow 3: every night the refresh, then its report, then maintenance, one after the other.

It runs where docker/install ran, as its user `spark`, who may write the lake. CRM_SPARK_SECRET, CRM_SPARK_MASTER and
CRM_SPARK_EVENTS stand in the environment of Airflow's workers, as do users and passwords of databases;
docker/entrypoint tells what they mean.
"""

from datetime import timedelta
from typing import Any

import pendulum
from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.sdk import DAG, BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

HOME = "/opt/crm_spark"
LAKE = "/lake"
CONF = "/etc/crm_spark/shop.toml"
# The site's business_time_zone: a night is for the day that begins there, also when it is tried again a day later.
TIME_ZONE = "Europe/Berlin"
AS_OF = f"{{{{ data_interval_end.in_timezone('{TIME_ZONE}') | ds }}}}"

# A defect, or what someone has to mend first: another try would end alike.
EXITS_FOR_GOOD = (1, 2)


class CrmSpark(BaseOperator):
    """One command. Exit codes 1 and 2 fail for good; others are tried again, such as 3: another run writes the lake."""

    template_fields = ("arguments",)

    def __init__(self, arguments: list[str], **options: Any) -> None:
        super().__init__(**options)
        self.arguments = arguments
        self.hook = SubprocessHook()

    def execute(self, context: Any) -> None:  # noqa: ARG002 (Airflow calls it so)
        code = self.hook.run_command([f"{HOME}/bin/entrypoint", *self.arguments]).exit_code
        if code in EXITS_FOR_GOOD:
            raise AirflowFailException(f"crm-spark: exit code {code}, and its last lines tell what to mend")
        if code:
            raise AirflowException(f"crm-spark: exit code {code}")

    def on_kill(self) -> None:
        self.hook.send_sigterm()


with DAG(
    "crm_spark",
    schedule="30 3 * * *",
    start_date=pendulum.datetime(2026, 1, 1, tz=TIME_ZONE),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 6, "retry_delay": timedelta(minutes=10)},
):
    refresh = CrmSpark(
        task_id="refresh",
        arguments=["submit", f"{HOME}/jobs/refresh.py", "--conf", CONF, "--lake", LAKE, "--as-of", AS_OF],
    )
    # Without Spark, so without the cluster.
    report = CrmSpark(task_id="report", arguments=["report", "--lake", LAKE])
    maintain = CrmSpark(task_id="maintain", arguments=["submit", f"{HOME}/jobs/maintain.py", "--lake", LAKE])
    refresh >> report >> maintain
