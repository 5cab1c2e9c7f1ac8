"""spark-submit entry point of the report; the same flags as `crm-spark report`."""

import sys

from crm_spark.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["report"]
    main()
