"""PyInstaller finds its hooks for srup here, by the entry point ``pyinstaller40``."""

from collections.abc import Mapping
from pathlib import Path


def hook_dirs() -> list[str]:
    """Return the folder that holds the hooks."""
    return [str(Path(__file__).parent)]


def at_first_use(package: str, homes: Mapping[str, str]) -> list[str]:
    """Return the modules of a package that :func:`srup.extras.at_first_use` imports."""
    return sorted({f"{package}.{module or name}" for name, module in homes.items()})
