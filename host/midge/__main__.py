"""`python -m midge` is the same as the `midge` command."""

import sys

from midge.cli import main

sys.exit(main())
