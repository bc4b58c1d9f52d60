"""Run the command `fedexit` as `python -m fedexit`."""

import sys

from fedexit.cli import main

sys.exit(main())
