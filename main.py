"""Moescope's command line from a checkout: `python main.py --help`. Installed, the same is called `moescope`."""

import sys

from moe_core.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
