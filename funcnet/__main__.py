"""`python -m funcnet`: the command `funcnet`."""

import sys

from funcnet.command.check import main

sys.exit(main())
