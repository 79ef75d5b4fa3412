"""Lanes for tests: those of this machine, and a crypto_mb that lies as it is told (faulty_crypto_mb.c)."""

import ctypes
import os
import subprocess
from pathlib import Path

import pytest

import srup
import srup_native
from srup_native import _multibuffer, _verify_py

NATIVE = srup_native.BACKEND == "native"
SOURCE = Path(__file__).with_name("faulty_crypto_mb.c")
FROM_LIBRARY = [kind for kind in _verify_py.LANES if kind != "rsa2048"]
HONEST, ACCEPTS, REFUSES, NONSENSE = range(4)
REAL = {
    "real_ed25519": "mbx_ed25519_verify_mb8",
    "real_p256": "mbx_nistp256_ecdsa_verify_mb8",
    "real_method": "mbx_RSA_private_crt_Method",
    "real_size": "mbx_RSA_Method_BufSize",
    "real_crt": "mbx_rsa_private_crt_mb8",
}


def need(kind: str) -> None:
    """Skip the test where these lanes cannot be used, and say what to install."""
    lanes = srup.backend_info().lanes[kind]
    if not (lanes.active or lanes.reason.startswith("ready")):
        if os.environ.get("SRUP_REQUIRE_LANES"):
            pytest.fail(f"SRUP_REQUIRE_LANES is set, and there are no lanes: {lanes.reason}")
        pytest.skip(f"no lanes for {kind}: {lanes.reason}")


def switch(wanted: bool) -> list[str]:
    """Switch all lanes that need crypto_mb; return which are on."""
    from srup_native import _verify

    return [kind for kind in FROM_LIBRARY if _verify.use_lanes(kind, wanted)]


def reasons() -> dict[str, str]:
    """Why each kind of lanes that needs crypto_mb is on or off."""
    return {kind: srup.backend_info().lanes[kind].reason for kind in FROM_LIBRARY}


def compiled(folder: Path, *flags: str) -> Path:
    """Return the path of a crypto_mb that lies, or skip where there is no compiler."""
    path = folder / f"libcrypto_mb{''.join(flags)}.so.13"
    command = [os.environ.get("CC", "cc"), "-O1", "-shared", "-fPIC", *flags, str(SOURCE), "-o", str(path)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no C compiler for a crypto_mb that lies: {error}")
    return path


class Faulty:
    """A crypto_mb that is honest at first, if the real one is installed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = ctypes.CDLL(str(path))
        try:
            *_, real = map(ctypes.CDLL, _multibuffer.multibuffer_paths())
        except (LookupError, OSError):
            return
        for variable, function in REAL.items():
            address = ctypes.cast(getattr(real, function), ctypes.c_void_p)
            ctypes.c_void_p.in_dll(self.library, variable).value = address.value

    def set(self, **values: int) -> None:
        """Set ``verifying``, ``signing`` or ``applicable``."""
        for name, value in values.items():
            ctypes.c_int.in_dll(self.library, name).value = value

    @property
    def passes(self) -> int:
        return ctypes.c_int.in_dll(self.library, "passes").value

    def open(self) -> dict[str, str]:
        """Let srup take it for crypto_mb, on whatever CPU this is; return what came of it."""
        from srup_native import _verify

        assert _verify.open_library([self.path]) == ""
        switch(True)
        return reasons()
