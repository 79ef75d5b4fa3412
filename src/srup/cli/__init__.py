"""The ``srup`` command."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    try:
        from .app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f"the srup command needs {error.name}: pip install 'srup[cli]'")
    except KeyboardInterrupt:
        sys.exit(130)
    app()
