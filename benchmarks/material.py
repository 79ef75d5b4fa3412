"""What the benchmarks work on: many different RSA keys, and messages signed by them.

Generating a thousand keys takes a minute or so, therefore they are kept in a folder of the user's below the system's
temporary folder. They protect nothing.
"""

import fcntl
import getpass
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

import srup_native
from srup import Data, PublicKey
from srup.tokens import bind

_END: Final = b"-----END PRIVATE KEY-----\n"
_SERVER: Final = 0x5E
_EXPIRY: Final = 1_900_000_000
_PKCS1: Final = (PKCS1v15(), SHA256())


def _generate(_: int) -> bytes:
    key = generate_private_key(65537, 2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@contextmanager
def _cache() -> Iterator[Path]:
    """Give the file of the keys to one process at a time: two that filled it would go on with different keys."""
    folder = Path(tempfile.gettempdir()) / f"srup-benchmarks-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        raise SystemExit(f"{folder} must belong to you alone")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder / "rsa2048.pem"


@cache
def rsa_keys(count: int) -> list[RSAPrivateKey]:
    """Return so many different RSA-2048 keys, from the cache as far as it goes."""
    with _cache() as path:
        pems = [pem + _END for pem in path.read_bytes().split(_END)[:-1]] if path.exists() else []
        if len(pems) < count:
            with ProcessPoolExecutor() as processes:
                pems += processes.map(_generate, range(len(pems), count), chunksize=8)
            fresh = path.with_suffix(f".{os.getpid()}")
            fresh.touch(mode=0o600)
            fresh.write_bytes(b"".join(pems))
            fresh.replace(path)
    keys = [load_pem_private_key(pem, None, unsafe_skip_rsa_key_validation=True) for pem in pems[:count]]
    return [key for key in keys if isinstance(key, RSAPrivateKey)]


def public_key(key: RSAPrivateKey) -> PublicKey:
    """Return a new PublicKey whose memory no other one shares."""
    public = PublicKey(key.public_key(), None, "rsa2048", "rsa")
    public._der = bytes(bytearray(public._der))
    return public


def signed_wires(senders: Iterable[int], keys: Sequence[RSAPrivateKey]) -> list[bytes]:
    """Return one Data message of every sender, 345 to 350 bytes; sender n signs with key n modulo their number."""
    wires = []
    for number, sender in enumerate(senders):
        token = bind(sender, _SERVER, _EXPIRY, number.to_bytes(16, "big"))
        value = Data.encode_value(20.0 + number % 10)
        message = Data(sequence_id=1 + number, sender_id=sender, token=token, data_id="temperature", data=value)
        signed = srup_native.pack(message)
        wires.append(srup_native.splice(signed, keys[sender % len(keys)].sign(signed, *_PKCS1)))
    return wires
