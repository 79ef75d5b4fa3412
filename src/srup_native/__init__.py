"""Bytes to values and back, hash, sign and verify: the mechanism under :mod:`srup`, which knows no message names.

Every module exists twice with one contract: ``_codec_py``, ``_verify_py`` and ``_cut_py`` hold the pure implementation
and the contract's text, ``_codec``, ``_verify`` and ``_cut`` are compiled from Cython. This module is the only place
that chooses: the extension where it was built, else the pure twin; the environment variable ``SRUP_BACKEND`` set to
``native`` or ``python`` forces one of them.

The build adds ``_built``, which imports the extension, to packages that have one. Where it is present, an extension
that is missing or does not load is an error, never a silent fallback.
"""

import os
from typing import TYPE_CHECKING, Final

__all__ = [
    "BACKEND",
    "BINARY",
    "MAX_MESSAGE_SIZE",
    "TEXT",
    "TEXTZ",
    "U8",
    "U32",
    "U64",
    "VERSION",
    "Frame",
    "Header",
    "Layout",
    "Record",
    "Schema",
    "Signer",
    "Verifier",
    "cut",
    "info",
    "pack",
    "sign_many",
    "signer",
    "splice",
    "verifier",
    "verify_many",
]

_demanded = os.environ.get("SRUP_BACKEND", "")
if _demanded not in ("", "native", "python"):
    raise ImportError(f"SRUP_BACKEND is {_demanded!r}; set it to 'native' or 'python', or leave it unset")

if not TYPE_CHECKING and _demanded != "python":
    try:
        from ._built import _codec, _cut, _verify
    except ModuleNotFoundError as error:
        if error.name in ("srup_native._codec", "srup_native._cut", "srup_native._verify"):
            raise ImportError(
                f"srup was installed with its native backend, but {error.name} is missing from {__path__[0]}. "
                "A zip archive cannot hold it: unpack the archive. A frozen program must include it: collect "
                "srup_native._codec, srup_native._cut and srup_native._verify. Another version of Python needs an "
                "installation of its own. Set SRUP_BACKEND=python to accept the slower pure-Python backend instead",
                name=error.name,
            ) from error
        if error.name != "srup_native._built":
            raise
        if _demanded == "native":
            raise ImportError(
                "SRUP_BACKEND is 'native', but srup was installed without its native backend. Install it again with "
                "SRUP_REQUIRE_NATIVE=1, which shows why the extension is not built",
                name=error.name,
            ) from error
        _demanded = "python"

if TYPE_CHECKING or _demanded == "python":
    from . import _codec_py as _codec
    from . import _cut_py as _cut
    from . import _verify_py as _verify

BACKEND: Final = "python" if _demanded == "python" else "native"

from ._codec_py import BINARY, MAX_MESSAGE_SIZE, TEXT, TEXTZ, U8, U32, U64, VERSION, Header  # noqa: E402
from ._verify_py import Signer, Verifier  # noqa: E402

Frame = _codec.Frame
Layout = _codec.Layout
Record = _codec.Record
Schema = _codec.Schema
pack = _codec.pack
splice = _codec.splice
cut = _cut.cut
sign_many = _verify.sign_many
signer = _verify.signer
verifier = _verify.verifier
verify_many = _verify.verify_many
info = _verify.info
