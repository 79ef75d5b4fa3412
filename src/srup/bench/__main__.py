"""What a benchmark starts: ``python -m srup.bench server ...`` or ``python -m srup.bench fleet ...``."""

import logging
import sys

from . import fleet, servers

if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    {"server": servers.main, "fleet": fleet.main}[sys.argv[1]](*sys.argv[2:])
