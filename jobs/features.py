"""spark-submit entry point that makes features for past cut-offs; the same flags as `crm-spark features`."""

import sys

from crm_spark.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["features"]
    main()
