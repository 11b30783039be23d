"""``python -m widedeep``: the command line."""

import sys

from widedeep.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
