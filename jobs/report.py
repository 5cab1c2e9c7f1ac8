"""spark-submit entry point that writes the report of the last publication; the same flags as `crm-spark report`."""

import sys

from crm_spark.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["report"]
    main()
