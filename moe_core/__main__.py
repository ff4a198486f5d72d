"""`python -m moe_core`: the command line without a script of its own; the dashboard starts trainings so."""

import sys

from moe_core.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
