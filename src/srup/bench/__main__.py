"""What a benchmark starts: ``python -m srup.bench server ...`` or ``python -m srup.bench fleet ...``."""

import logging
import sys
from collections.abc import Callable
from typing import Final

from . import fleet, servers

_PARTS: Final[dict[str, Callable[..., None]]] = {"server": servers.main, "fleet": fleet.main}

if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    _PARTS[sys.argv[1]](*sys.argv[2:])
