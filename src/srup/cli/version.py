"""What is installed, in one line."""

import srup

__all__ = ["installed", "version_line"]


def installed() -> dict[str, str]:
    """Return the version of srup and the backend in use, by name."""
    return {"version": srup.__version__, "backend": srup.BACKEND}


def version_line() -> str:
    """Return the version of srup and the backend in use."""
    return f"srup {srup.__version__} ({srup.BACKEND} backend)"
