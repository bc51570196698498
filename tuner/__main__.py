"""`python -m tuner`: the `tuner` command, without installing it."""

import sys

from tuner.cli import main

sys.exit(main())
