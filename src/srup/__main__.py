"""``python -m srup`` is the ``srup`` command."""

from .cli import main

main()
