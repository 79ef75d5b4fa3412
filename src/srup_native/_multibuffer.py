"""Where Intel's crypto_mb is installed: the packages of the extra ``multibuffer``, for the native backend alone."""

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Final

__all__ = ["multibuffer_paths"]

_LIBRARIES: Final = {
    "intel-cmplr-lib-rt": ("libintlc.so.5", "libimf.so", "libirng.so", "libsvml.so"),
    "ipp-crypto": ("libcrypto_mb.so.13",),  # 13 is the version of its binary interface
}
"""The libraries by distribution, each after those that it needs: their folder is in no search path of the loader."""


def multibuffer_paths() -> list[str]:
    """Return the full path of each library, crypto_mb's last; LookupError says what to install.

    A library that has lost its end would kill the process when it is loaded, so its size must be the recorded one.
    """
    found = []
    for distribution, names in _LIBRARIES.items():
        try:
            installed = {path.name: path for path in files(distribution) or ()}
        except PackageNotFoundError:
            raise LookupError(f"{distribution} is not installed: pip install 'srup[multibuffer]'") from None
        for name in names:
            path = installed.get(name)
            where = None if path is None else Path(str(path.locate()))
            if path is None or where is None or not where.is_file():
                raise LookupError(f"the installed {distribution} has no {name}: pip install -U 'srup[multibuffer]'")
            if path.size is not None and where.stat().st_size != path.size:
                raise LookupError(f"{where} is damaged: pip install --force-reinstall {distribution}")
            found.append(str(where))
    return found
