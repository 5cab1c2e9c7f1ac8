"""Given to spark-submit: jobs/refresh.py as it is, but at an instant that is told before its own arguments."""

import runpy
import sys
from datetime import datetime, tzinfo
from pathlib import Path
from unittest.mock import patch

JOB = Path(__file__).parent.parent / "jobs" / "refresh.py"


class ToldClock(datetime):
    """Of the instant that the first argument names."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        return datetime.fromisoformat(told).astimezone(tz)


if __name__ == "__main__":
    told = sys.argv.pop(1)
    with patch("crm_spark.cli.datetime", ToldClock):
        runpy.run_path(str(JOB), run_name="__main__")
