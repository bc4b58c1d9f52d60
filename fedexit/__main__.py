"""`python -m fedexit` is the command `fedexit`."""

import sys

from fedexit.cli import main

sys.exit(main())
