"""spark-submit entry point of the main job; the same flags as `crm-spark refresh`."""

import sys

from crm_spark.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["refresh"]
    main()
