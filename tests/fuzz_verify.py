"""Differential fuzzing of signature verification, as a program and for the tests.

    python tests/fuzz_verify.py --cases 100000 --seed 1

Every case is one message with a signature that is genuine, nearly genuine or hostile. These must agree about it:
``verify_many`` with all lanes that there are and without, ``Frame.verify``, ``cryptography``, for RSA a few lines of
arithmetic on Python integers, and the kernel on its own, which must accept exactly what those lines accept.
"""

import argparse
import ctypes
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property
from hashlib import sha256, sha512
from math import gcd, prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

import srup
import srup_native
from srup_native import _verify_py

SOURCE = Path(__file__).parent.parent / "src" / "srup_native" / "rsa_mb.c"
LIMB = 52  # bits of a limb of the kernel
SHA256_INFO = bytes.fromhex("3031300d060960864801650304020105000420")

# --- Keys ------------------------------------------------------------------------------------------------------------


def is_prime(number: int) -> bool:
    """Miller and Rabin's test; certain below 2**64, good enough for test keys above."""
    small = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if any(number % prime == 0 for prime in small):
        return number in small
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in small:
        power = pow(base, odd, number)
        if power not in (1, number - 1) and not any(
            (power := power * power % number) == number - 1 for _ in range(twos - 1)
        ):
            return False
    return True


def next_prime(number: int, exponent: int) -> int:
    """The first prime from ``number`` on that an RSA key with this exponent can have."""
    number |= 1
    while not (gcd(number - 1, exponent * 65537) == 1 and is_prime(number)):
        number += 2
    return number


def der(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes([size]) if size < 0x80 else b"\x82" + size.to_bytes(2, "big")
    return bytes([tag]) + length + content


def der_integer(number: int) -> bytes:
    return der(2, number.to_bytes(number.bit_length() // 8 + 1, "big"))


class RsaKey:
    """A key of many small primes, which is quickly made, in any shape, and quickly signs anything."""

    def __init__(self, n: int, e: int, primes: Sequence[int] = (), name: str = "") -> None:
        self.n, self.e, self.primes, self.name = n, e, primes, name
        self.size = (n.bit_length() + 7) // 8
        self.inverses = [
            (prime, pow(e, -1, prime - 1), n // prime * pow(n // prime, -1, prime) % n) for prime in primes
        ]

    def root(self, number: int) -> int:
        """The s with s**e = number (mod n)."""
        return sum(pow(number % prime, d, prime) * unit for prime, d, unit in self.inverses) % self.n

    def sign(self, encoded: bytes) -> bytes:
        return self.root(int.from_bytes(encoded, "big")).to_bytes(self.size, "big")

    @cached_property
    def der(self) -> bytes:
        """SubjectPublicKeyInfo, written by hand: no library has a say in which keys can be."""
        algorithm = der(0x30, bytes.fromhex("06092a864886f70d0101010500"))
        public = der(0x30, der_integer(self.n) + der_integer(self.e))
        return der(0x30, algorithm + der(3, b"\0" + public))

    def accepts(self, digest: bytes, signature: bytes) -> bool:
        """What RFC 8017, section 8.2.2 says, and that OpenSSL computes with odd moduli only."""
        s = int.from_bytes(signature, "big")
        if len(signature) != self.size or s >= self.n or self.n % 2 == 0:
            return False
        return pow(s, self.e, self.n).to_bytes(self.size, "big") == encode(digest, self.size)

    @cached_property
    def public(self) -> Any:
        return SimpleNamespace(verifier=srup_native.verifier("rsa", self.der))

    @cached_property
    def oracle(self) -> Any:
        """``cryptography``'s verifier, or None for a key that it does not load."""
        try:
            return _verify_py.verifier("rsa", self.der)
        except ValueError:
            return None


def rsa_key(rng: random.Random, target: int | None = None, e: int = 65537, name: str = "", last: int = 128) -> RsaKey:
    """A key whose modulus is at least ``target`` and close to it; the last of its primes has about ``last`` bits."""
    if target is None:
        target = rng.randrange(5 << 2045, 1 << 2048) if name != "3072" else rng.randrange(5 << 3069, 1 << 3072)
    primes: list[int] = []
    while target.bit_length() - prod(primes).bit_length() > last:
        prime = next_prime(rng.getrandbits(64) | 1 << 63, e)
        if prime not in primes:
            primes.append(prime)
    rest = prod(primes)
    primes.append(next_prime(-(-target // rest), e))
    return RsaKey(rest * primes[-1], e, primes, name)


@cache
def rsa_keys(seed: int, many: bool) -> list[RsaKey]:
    """Ordinary keys, and those at the edges of what the kernel takes or is not to take."""
    rng = random.Random(seed)
    last = 512 if many else 256
    ones = sum(0xF_FFFF_FFFF_FFFF << LIMB * limb for limb in range(1, 39)) | 1 << 2047
    keys = [rsa_key(rng, name=f"random {number}") for number in range(40 if many else 8)]
    keys += [
        # The last prime makes the modulus a little larger than the target: leave room below 2**2048.
        rsa_key(rng, 2**2048 - 2 ** (2048 - last + 80), name="just below 2**2048", last=last),
        rsa_key(rng, 2**2047, name="just above 2**2047", last=last),
        rsa_key(rng, ones, name="limbs of ones", last=last),
        rsa_key(rng, 2**2047 + 2 ** (LIMB * 38), name="a limb border", last=last),
        rsa_key(rng, 2**2047 - 2 ** (2047 - last + 80), name="2047 bits", last=last),
        rsa_key(rng, 2**2048, name="2049 bits", last=last),
        rsa_key(rng, 2**2040, name="2041 bits", last=last),
        rsa_key(rng, 2**2040 - 2 ** (2040 - last + 80), name="2040 bits", last=last),
        rsa_key(rng, name="3072"),
    ]
    keys += [rsa_key(rng, name=f"e = {e}", e=e) for e in (3, 17, 65539, 2**32 + 1)]
    for key, bits in zip(keys[-13:-5], (2048, 2048, 2048, 2048, 2047, 2049, 2041, 2040), strict=True):
        assert key.n.bit_length() == bits, key.name
    return keys


# --- Encoded messages ------------------------------------------------------------------------------------------------


def encode(digest: bytes, size: int, info: bytes = SHA256_INFO) -> bytes:
    tail = info + digest
    return b"\0\1" + b"\xff" * (size - 3 - len(tail)) + b"\0" + tail


def pss(digest: bytes, size: int, salt: bytes) -> bytes:
    """EMSA-PSS with SHA-256 for a modulus of 8 * size bits (RFC 8017, section 9.1.1)."""
    hashed = sha256(bytes(8) + digest + salt).digest()
    block = bytes(size - len(salt) - 34) + b"\1" + salt
    mask = b"".join(sha256(hashed + counter.to_bytes(4, "big")).digest() for counter in range(size // 32 + 1))
    masked = bytes(a ^ b for a, b in zip(block, mask, strict=False))
    return bytes([masked[0] & 0x7F]) + masked[1:] + hashed + b"\xbc"


def malformed(digest: bytes, size: int, rng: random.Random) -> dict[str, bytes]:
    """Encoded messages that a careless verifier takes for the one good one."""
    good, tail = encode(digest, size), SHA256_INFO + digest

    def around(info: bytes, value: bytes = digest) -> bytes:
        return encode(value, size, bytes.fromhex(info) if isinstance(info, str) else info)

    def filled(head: bytes, end: bytes = b"") -> bytes:
        return head + rng.randbytes(size - len(head) - len(end)) + end

    long_null = der(0x30, der(0x30, bytes.fromhex("0609608648016503040201") + b"\5\x81\0") + der(4, digest))
    longer = der(0x30, SHA256_INFO[2:17] + der(4, digest) + rng.randbytes(7))
    return {
        "no NULL": around("302f300b06096086480165030402010420"),
        "NULL of two bytes": encode(b"", size, long_null),
        "parameters with garbage": around(
            bytes.fromhex("3039301506096086480165030402010508") + rng.randbytes(8) + b"\4\x20"
        ),
        "SHA-1's name": around("302d300906052b0e03021a05000420"),
        "SHA-224's name": around("302d300d06096086480165030402040500041c", digest[:28]),
        "SHA-384's name": around("3031300d060960864801650304020205000420"),
        "SHA-512's name": around("3031300d060960864801650304020305000420"),
        "SHA3-256's name": around("3031300d060960864801650304020805000420"),
        "long form of the outer length": around(b"\x30\x81" + SHA256_INFO[1:]),
        "long form of an inner length": around("3032300d06096086480165030402010500048120"),
        "indefinite length": encode(b"", size, b"\x30\x80" + SHA256_INFO[2:] + digest + b"\0\0"),
        "outer length too small": around(b"\x30\x30" + SHA256_INFO[2:]),
        "wrong tag": around(b"\x31" + SHA256_INFO[1:]),
        "garbage inside": encode(b"", size, longer),
        "garbage behind": filled(b"\0\1" + b"\xff" * 8 + b"\0" + tail),
        "garbage of 11 bytes behind": b"\0\1" + b"\xff" * (size - 65) + b"\0" + tail + rng.randbytes(11),
        "zero behind": good[2:3].join([b"\0\1", good[4:]]) + b"\0",
        "no padding": filled(b"\0\1\0" + tail),
        "seven bytes of padding": filled(b"\0\1" + b"\xff" * 7 + b"\0" + tail),
        "type 2": b"\0\2" + good[2:],
        "type 2 with random padding": b"\0\2" + bytes(rng.randrange(1, 256) for _ in range(size - 54)) + b"\0" + tail,
        "type 0": b"\0\0" + good[2:],
        "type 0 with zeros": bytes(size - 51) + tail,
        "one byte too early": good[1:] + b"\0",
        "leading one": b"\1" + good[1:],
        "a hole in the padding": good[:40] + b"\xfe" + good[41:],
        "a zero in the padding": good[:20] + b"\0" + good[21:],
        "no separator": good[: size - 52] + b"\xff" + tail,
        "digest only": b"\0\1" + b"\xff" * (size - 35) + b"\0" + digest,
        "digest cut": around("3030300d06096086480165030402010500041f", digest[:31]),
        "digest and more": around("3032300d060960864801650304020105000421", digest + b"\0"),
        "digest backwards": around(SHA256_INFO, digest[::-1]),
        "hash of the digest": around(SHA256_INFO, sha256(digest).digest()),
        "PSS": pss(digest, size, rng.randbytes(32)),
        "PSS without salt": pss(digest, size, b""),
        "zero": bytes(size),
        "one": bytes(size - 1) + b"\1",
    }


# --- Cases -----------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    kind: str
    key: Any  # RsaKey or OtherKey
    wire: bytes
    digest: bytes
    signature: bytes

    @property
    def offset(self) -> int:
        return 22 + (self.wire[18] << 8 | self.wire[19])


def packed(rng: random.Random, sender: int) -> bytes:
    """The signed bytes of some message, of any length that a hash function may find awkward."""
    token = rng.randbytes(rng.randrange(1, 80))
    message = srup.Data(
        sequence_id=rng.getrandbits(64),
        sender_id=sender,
        token=token,
        data_id="x",
        data=rng.randbytes(rng.randrange(150)),
    )
    return srup_native.pack(message)


def case(kind: str, key: Any, signed: bytes, signature: bytes) -> Case:
    return Case(kind, key, srup_native.splice(signed, signature), sha256(signed).digest(), signature)


def special_numbers(n: int, rng: random.Random) -> Iterator[tuple[str, int]]:
    """Signatures, as numbers, at which arithmetic breaks."""
    border = LIMB * rng.randrange(1, n.bit_length() // LIMB + 1)
    yield from (("0", 0), ("1", 1), ("2", 2), ("n-1", n - 1), ("n", n), ("n+1", n + 1), ("n-2", n - 2))
    yield from ((f"2**{border}{delta:+}", 2**border + delta) for delta in (-1, 0, 1))
    yield "limbs of ones", sum(rng.choice((0, 2**LIMB - 1)) << at for at in range(0, n.bit_length(), LIMB))
    yield "ones", 2 ** (8 * ((n.bit_length() + 7) // 8)) - 1
    yield "n with its lowest limb changed", n ^ rng.getrandbits(LIMB)
    yield "n with its highest limb changed", n ^ rng.getrandbits(n.bit_length() - 39 * LIMB if n >> 2040 else 8) << 2028
    yield "any", rng.randrange(n)
    yield "any small", rng.getrandbits(rng.randrange(1, 2048))


def rsa_case(rng: random.Random, key: RsaKey, sender: int) -> Case:
    """One case for a key with known primes."""
    signed = packed(rng, sender)
    digest = sha256(signed).digest()
    good = encode(digest, key.size)
    kind = rng.choices(
        (
            "genuine",
            "bit of the encoding",
            "malformed",
            "number",
            "bit of the signature",
            "s + n",
            "length",
            "exponent",
            "mixed up",
        ),
        (30, 20, 20, 10, 10, 5, 5, 5, 5),
    )[0]
    match kind:
        case "genuine":
            return case(kind, key, signed, key.sign(good))
        case "bit of the encoding":
            flipped = int.from_bytes(good, "big") ^ 1 << rng.randrange(key.n.bit_length() - 1)
            return case(kind, key, signed, key.root(flipped).to_bytes(key.size, "big"))
        case "malformed":
            name, encoded = rng.choice(list(malformed(digest, key.size, rng).items()))
            return case(f"{kind}: {name}", key, signed, key.sign(encoded))
        case "number":
            name, number = rng.choice(list(special_numbers(key.n, rng)))
            size = max(key.size, (number.bit_length() + 7) // 8)
            return case(f"{kind}: {name}", key, signed, number.to_bytes(size, "big"))
        case "bit of the signature":
            flipped = int.from_bytes(key.sign(good), "big") ^ 1 << rng.randrange(8 * key.size)
            return case(kind, key, signed, flipped.to_bytes(key.size, "big"))
        case "s + n":
            number = key.root(int.from_bytes(good, "big")) + key.n * rng.choice((1, 1, 1, 2, 3))
            return case(kind, key, signed, number.to_bytes(max(key.size, (number.bit_length() + 7) // 8), "big"))
        case "length":
            # Now and then s has a leading zero by itself; without it the number is right and the length is not.
            for _ in range(16):
                signature = key.sign(encode(sha256(signed).digest(), key.size))
                if signature[0] == 0:
                    break
                signed = packed(rng, sender)
            changed = rng.choice(
                (b"", signature[1:], signature[:-1], b"\0" + signature, b"\0" * 8 + signature, signature + b"\0",
                 signature.lstrip(b"\0"), signature * 2, signature[:128], bytes(4000) + signature)
            )  # fmt: skip
            return case(kind, key, signed, changed)
        case "exponent" if key.e != 65537:
            return case(kind, key, signed, RsaKey(key.n, 65537, key.primes).sign(good))
        case _:
            return case(kind, key, packed(rng, sender), key.sign(good))


class OtherKey:
    """A key of another scheme; ``cryptography`` is the only oracle."""

    def __init__(self, algorithm: str, private: Any, public: Any = None, compressed: bool = False) -> None:
        self.algorithm, self.private = algorithm, private
        self.name = algorithm
        self.der = (public or private.public_key()).public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        if compressed:
            point = private.public_key().public_bytes(
                serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
            )
            self.der = der(0x30, bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107") + der(3, b"\0" + point))
        secret = private.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self.signer = srup_native.signer(algorithm, secret)
        self.public = SimpleNamespace(verifier=srup_native.verifier(algorithm, self.der))
        self.oracle = _verify_py.verifier(algorithm, self.der)

    def sign(self, signed: bytes, rng: random.Random) -> bytes:
        return self.signer.sign(signed)


P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
ED25519_PRIME = 2**255 - 19
ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493
SMALL_ORDER = (
    bytes(32),
    b"\1" + bytes(31),
    b"\1" + bytes(30) + b"\x80",
    b"\xec" + b"\xff" * 30 + b"\x7f",
    b"\xed" + b"\xff" * 30 + b"\x7f",
    b"\xee" + b"\xff" * 30 + b"\x7f",
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
)


class Point(NamedTuple):
    """A point of Ed25519's curve (RFC 8032, section 5.1.4): x = X / Z, y = Y / Z, x * y = T / Z."""

    X: int
    Y: int
    Z: int
    T: int

    @classmethod
    def at(cls, y: int, odd: int) -> "Point":
        """The point with this y whose x is odd, or even."""
        p = ED25519_PRIME
        square = (y * y - 1) * pow(CURVE_D * y * y + 1, -1, p) % p
        x = pow(square, (p + 3) // 8, p)
        if (x * x - square) % p:
            x = x * pow(2, (p - 1) // 4, p) % p
        assert (x * x - square) % p == 0
        x = x if x % 2 == odd else p - x
        return cls(x, y, 1, x * y % p)

    def plus(self, other: "Point") -> "Point":
        p = ED25519_PRIME
        a = (self.Y - self.X) * (other.Y - other.X) % p
        b = (self.Y + self.X) * (other.Y + other.X) % p
        c, d = 2 * CURVE_D * self.T * other.T % p, 2 * self.Z * other.Z % p
        e, f, g, h = b - a, d - c, d + c, b + a
        return Point(e * f % p, g * h % p, f * g % p, e * h % p)

    def times(self, number: int) -> "Point":
        result, power = Point(0, 1, 1, 0), self
        while number:
            if number & 1:
                result = result.plus(power)
            power, number = power.plus(power), number >> 1
        return result

    def encoded(self) -> bytes:
        inverse = pow(self.Z, -1, ED25519_PRIME)
        x, y = self.X * inverse % ED25519_PRIME, self.Y * inverse % ED25519_PRIME
        return (y | (x & 1) << 255).to_bytes(32, "little")


CURVE_D = -121665 * pow(121666, -1, ED25519_PRIME) % ED25519_PRIME
BASE = Point.at(4 * pow(5, -1, ED25519_PRIME) % ED25519_PRIME, 0)
OF_ORDER_8 = Point.at(int.from_bytes(SMALL_ORDER[-1], "little"), 0)


class MixedOrderKey(OtherKey):
    """An Ed25519 key that is not in the subgroup of the base point, and signatures that judges with and without the
    cofactor disagree about: one in eight is good without it."""

    def __init__(self, rng: random.Random, torsion: int) -> None:
        self.secret = rng.randrange(1, ED25519_ORDER)
        self.encoded = BASE.times(self.secret).plus(OF_ORDER_8.times(torsion)).encoded()
        super().__init__(
            "ed25519",
            ed25519.Ed25519PrivateKey.generate(),
            ed25519.Ed25519PublicKey.from_public_bytes(self.encoded),
        )
        self.name = f"ed25519 plus {torsion} T"

    def sign(self, signed: bytes, rng: random.Random) -> bytes:
        number = rng.randrange(1, ED25519_ORDER)
        r = BASE.times(number).plus(OF_ORDER_8.times(rng.randrange(8))).encoded()
        h = int.from_bytes(sha512(r + self.encoded + sha256(signed).digest()).digest(), "little")
        return r + ((number + h * self.secret) % ED25519_ORDER).to_bytes(32, "little")


@cache
def other_keys() -> list[OtherKey]:
    rng = random.Random(8)
    curve = ec.SECP256R1()
    weak = [ed25519.Ed25519PublicKey.from_public_bytes(SMALL_ORDER[which]) for which in (1, 3, 6)]
    return [
        *(OtherKey("ecdsa", ec.generate_private_key(curve), compressed=number % 2 == 1) for number in range(10)),
        *(OtherKey("ed25519", ed25519.Ed25519PrivateKey.generate()) for _ in range(10)),
        *(OtherKey("ed25519", ed25519.Ed25519PrivateKey.generate(), public) for public in weak),
        *(MixedOrderKey(rng, torsion) for torsion in (1, 2, 4, 7)),
    ]


def other_case(rng: random.Random, key: OtherKey, sender: int) -> Case:
    signed = packed(rng, sender)
    good = key.sign(signed, rng)
    flipped = bytearray(good)
    flipped[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
    choices = [good] * 12 + [bytes(flipped)] * 4 + [good[:-1], good + b"\0", b"", good * 2]
    if key.algorithm == "ecdsa":
        r, s = decode_dss_signature(good)
        pairs = [(r, P256_ORDER - s), (r + P256_ORDER, s), (r, s + P256_ORDER), (0, 0), (0, s), (r, 0), (1, 1)]
        pairs += [(P256_ORDER, s), (r, P256_ORDER), (P256_ORDER - r, s), (s, r), (r, 1), (2**256 - 1, s), (2**5000, s)]
        choices += [encode_dss_signature(*pair) for pair in pairs]
        choices += [b"\x30\x81" + good[1:], b"\x30\x80" + good[2:] + b"\0\0", b"\x31" + good[1:]]
        choices += [r.to_bytes(32, "big") + s.to_bytes(32, "big")]
    else:
        r, s = good[:32], int.from_bytes(good[32:], "little")
        numbers = (0, 1, ED25519_ORDER, ED25519_ORDER - s, s + ED25519_ORDER, s + 8 * ED25519_ORDER, 2**256 - 1)
        choices += [r + number.to_bytes(32, "little") for number in numbers]
        choices += [point + bytes(32) for point in SMALL_ORDER] + [point + good[32:] for point in SMALL_ORDER]
        y = int.from_bytes(r, "little") % 2**255
        choices += [(y + ED25519_PRIME).to_bytes(32, "little") + good[32:]] if y < 19 else []
    return case(key.algorithm, key, signed, rng.choice(choices))


def cases(
    rng: random.Random, count: int, seed: int = 0, many: bool = False, algorithm: str | None = None
) -> Iterator[Case]:
    """Yield cases; the sender id of a message is the position of its key, or of a key made for that case.

    By default most are RSA's; ``algorithm`` names the only one.
    """
    keys = rsa_keys(seed, many)
    others = other_keys()
    places = [place for place, key in enumerate(others) if algorithm in (None, key.algorithm)]
    share = {None: 0.08, "rsa": 0.0}.get(algorithm, 1.0)
    for number in range(count):
        draw = rng.random()
        if draw < share:
            place = rng.choice(places)
            yield other_case(rng, others[place], len(keys) + place)
        elif draw < share + 0.04:
            # A genuine signature, and a key of which one bit is wrong.
            key, sender = rng.choice(keys), 1000 + number
            signed = packed(rng, sender)
            signature = key.sign(encode(sha256(signed).digest(), key.size))
            near = RsaKey(key.n ^ 1 << rng.randrange(key.n.bit_length()), key.e, name=f"near {key.name}")
            yield case("bit of the modulus", near, signed, signature)
        else:
            place = rng.randrange(len(keys))
            yield rsa_case(rng, keys[place], place)


# --- Those who must agree --------------------------------------------------------------------------------------------


class Kernel:
    """rsa_mb.c on its own, compiled for the occasion."""

    KEY_SIZE = 8 * 81

    def __init__(self, flags: Sequence[str] = ("-O2",)) -> None:
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "rsa_mb.so"
            command = [
                os.environ.get("CC", "cc"),
                *flags,
                "-shared",
                "-fPIC",
                str(SOURCE),
                "-o",
                str(library),
                "-lcrypto",
            ]
            subprocess.run(command, check=True, capture_output=True)
            self.library = ctypes.CDLL(str(library))
        self.library.rsa_mb_accept.restype = ctypes.c_uint
        self.prepared: dict[int, Any] = {}

    @classmethod
    def if_possible(cls) -> "Kernel | None":
        """The kernel, where there are a source, a compiler and a CPU for it."""
        try:
            kernel = cls()
        except (OSError, subprocess.CalledProcessError):
            return None
        return kernel if kernel.library.rsa_mb_supported() else None

    def prepare(self, n: int) -> Any:
        """The constants of a modulus, or None where the kernel refuses it."""
        if n not in self.prepared:
            constants = ctypes.create_string_buffer(self.KEY_SIZE)
            done = self.library.rsa_mb_prepare(constants, n.to_bytes(256, "big"))
            self.prepared[n] = constants if done else None
        return self.prepared[n]

    def accept(self, jobs: Sequence[tuple[int, bytes, bytes]]) -> list[bool]:
        """Show (modulus, signature, digest) triples to the kernel, eight at a time."""
        accepted = []
        for first in range(0, len(jobs), 8):
            group = list(jobs[first : first + 8])
            size = len(group)
            group += [group[0]] * (8 - size)
            pointers: Any = (ctypes.c_void_p * 32)()
            for lane, (n, signature, digest) in enumerate(group):
                assert len(signature) == 256
                assert len(digest) == 32
                pointers[4 * lane] = ctypes.addressof(self.prepare(n))
                pointers[4 * lane + 1] = ctypes.cast(signature, ctypes.c_void_p)
                pointers[4 * lane + 2] = len(signature)
                pointers[4 * lane + 3] = ctypes.cast(digest, ctypes.c_void_p)
            mask = self.library.rsa_mb_accept(pointers)
            accepted += [bool(mask >> lane & 1) for lane in range(size)]
        return accepted


@cache
def kernel_alone() -> Kernel | None:
    return Kernel.if_possible()


def single(one: Case) -> bool:
    try:
        srup.decode(one.wire).verify(one.key.public)
    except srup.SignatureError:
        return False
    return True


def batch(several: Sequence[Case], threads: int) -> list[bool]:
    keyring = {srup.peek(one.wire).sender_id: one.key.public for one in several}
    verdicts = []
    for outcome in srup.verify_many([one.wire for one in several], keyring, threads):
        if not isinstance(outcome, srup.Message | srup.SignatureError):
            raise TypeError(f"a well-formed message of a known sender gave {outcome!r}")
        verdicts.append(isinstance(outcome, srup.Message))
    return verdicts


def switches() -> list[tuple[str, Callable[[bool], object]]]:
    """The ways to run verify_many: with the lanes and without, where there are any."""
    if srup_native.BACKEND != "native":
        return [("verify_many", lambda wanted: None)]
    return [
        ("verify_many, lanes on", lambda _: use_lanes(True)),
        ("verify_many, lanes off", lambda _: use_lanes(False)),
    ]


def use_lanes(wanted: bool | dict[str, bool]) -> dict[str, bool]:
    """Switch all kinds of lanes that verify, or each as it says; return which were active before."""
    if srup_native.BACKEND != "native":
        return {}
    from srup_native import _verify

    lanes = srup.backend_info().lanes
    before = {kind: lanes[kind].active for kind in VERIFYING}
    for kind in VERIFYING:
        _verify.use_lanes(kind, wanted[kind] if isinstance(wanted, dict) else wanted)
    return before


VERIFYING = [kind for kind in _verify_py.LANES if not kind.startswith("sign")]


def disagreements(several: Sequence[Case], threads: int = 1) -> list[str]:
    """Ask everyone about each case; a line for every case about which they differ."""
    verdicts: list[dict[str, bool]] = [{} for _ in several]
    before = use_lanes(True)
    try:
        for name, switch in switches():
            switch(True)
            for votes, verdict in zip(verdicts, batch(several, threads), strict=True):
                votes[name] = verdict
    finally:
        use_lanes(before)
    kernel = kernel_alone()
    fitting = []
    for votes, one in zip(verdicts, several, strict=True):
        votes["Frame.verify"] = single(one)
        if one.key.oracle is not None:
            votes["cryptography"] = one.key.oracle.verify(one.wire, one.offset, len(one.signature))
        if isinstance(one.key, RsaKey):
            votes["arithmetic"] = one.key.accepts(one.digest, one.signature)
            kernels = one.key.n.bit_length() == 2048 and one.key.e == 65537 and len(one.signature) == 256
            if kernel is not None and kernels and kernel.prepare(one.key.n) is not None:
                fitting.append((votes, (one.key.n, one.signature, one.digest)))
    if kernel is not None:
        for (votes, _), verdict in zip(fitting, kernel.accept([job for _, job in fitting]), strict=True):
            votes["kernel"] = verdict
    return [
        f"{one.kind} ({one.key.name}): {votes} {one.wire.hex()}"
        for votes, one in zip(verdicts, several, strict=True)
        if len(set(votes.values())) != 1
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Differential fuzzing of signature verification.")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=None, help="a number; another one each time if not given")
    parser.add_argument(
        "--algorithm", choices=("rsa", "ecdsa", "ed25519"), help="of all cases; mostly RSA if not given"
    )
    arguments = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if arguments.seed is None else arguments.seed
    rng = random.Random(seed)
    print(f"seed {seed}, {srup.backend_info()}, kernel alone: {'yes' if kernel_alone() else 'no'}", flush=True)
    began, done, kinds, wrong = time.monotonic(), 0, Counter[str](), 0
    while done < arguments.cases:
        size = min(rng.choice((1, 2, 3, 7, 8, 9, 16, 17, 64, 65, 200, 1000)), arguments.cases - done)
        several = list(cases(rng, size, seed, many=True, algorithm=arguments.algorithm))
        kinds.update(one.kind.partition(":")[0] for one in several)
        for line in disagreements(several, rng.choice((1, 1, 2, 3))):
            wrong += 1
            print(line)
        done += size
    print(", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
    print(f"seed {seed}: {done} cases, {wrong} disagreements, {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
