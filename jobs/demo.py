"""spark-submit entry point of the demo; the same flags as `crm-spark demo`."""

import sys

from crm_spark.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["demo"]
    main()
