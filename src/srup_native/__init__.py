"""Bytes to values and back, hash, sign and verify: the mechanism under :mod:`srup`, which knows no message names.

Every module exists twice with one contract: ``_codec_py`` and ``_verify_py`` hold the pure implementation and the
contract's text, ``_codec`` and ``_verify`` are compiled from Cython. This module is the only place that chooses:
the extension where it was built, else the pure twin; the environment variable ``SRUP_BACKEND`` set to ``native`` or
``python`` demands one of them. A built extension that does not load is an error, never a silent fallback.
"""

import os
from importlib import import_module
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
    "info",
    "pack",
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
        _codec, _verify = import_module("srup_native._codec"), import_module("srup_native._verify")
    except ModuleNotFoundError as error:
        # Only the absence of a twin means that it was not built; anything else that is missing is a broken build.
        if _demanded == "native" or error.name not in ("srup_native._codec", "srup_native._verify"):
            raise
        _demanded = "python"

if TYPE_CHECKING or _demanded == "python":
    from . import _codec_py as _codec
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
signer = _verify.signer
verifier = _verify.verifier
verify_many = _verify.verify_many
info = _verify.info
