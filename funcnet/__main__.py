"""`python -m funcnet`: the command `funcnet`."""

import sys

from funcnet.check.command import main

sys.exit(main())
