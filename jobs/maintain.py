"""spark-submit entry point of maintenance; the same flags as `crm-spark maintain`."""

import sys

from crm_spark.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["maintain"]
    main()
