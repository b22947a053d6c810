"""``python -m pyro_gebm`` is ``pyro-gebm``."""

import sys

from pyro_gebm.cli import main

sys.exit(main())
