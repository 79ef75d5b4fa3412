"""The codec: received bytes to a frame, a record to signed bytes, and what lies between, on both backends.

The native frame makes a message's values when it is verified, the pure one when it is decoded: ``decode`` alone is what
a message costs that is thrown away unverified, ``decode and open`` what every other one costs beside its signature.
"""

from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

pytestmark = [
    pytest.mark.table("codec", "ns", "python"),
    pytest.mark.parametrize("name", ["python", "native"]),
    pytest.mark.parametrize("identifier", ["open-0092", "open-0144", "open-0122"]),
]

CALLS = 500
TRUSTING = SimpleNamespace(verifier=SimpleNamespace(verify=lambda wire, offset, size: True))


class Sample:
    """One message of the tests as a record of the twin, as fields, and on the wire under an RSA-2048 signature."""

    def __init__(self, twin: Any, vectors: Any, identifier: str) -> None:
        code, self.fields = vectors.message(identifier)
        self.cls = twin.schema[code]
        self.record = self.cls(**self.fields)
        self.signed = twin.codec.pack(self.record)
        key = load_pem_private_key(vectors.private_pem(2048), None)
        der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        self.wire = twin.codec.splice(self.signed, twin.verify.signer("rsa", der).sign(self.signed))
        self.label = f"{self.cls.layout.name}, {len(self.wire)} bytes"


@pytest.fixture
def backend(twin: Any, name: str) -> Any:
    """Give the twin of this case."""
    return twin(name)


@pytest.fixture
def sample(backend: Any, vectors: Any, identifier: str) -> Sample:
    """Give the message of this case."""
    return Sample(backend, vectors, identifier)


def test_decode(backend: Any, sample: Sample, name: str, measure: Any) -> None:
    """Bytes to an unverified frame."""
    frame = measure(f"decode {sample.label}", name, backend.schema.decode, sample.wire, calls=CALLS)
    assert frame.token == sample.fields["token"]


def test_decode_and_open(backend: Any, sample: Sample, name: str, measure: Any) -> None:
    """Bytes to a message, with a verifier that accepts without looking."""
    decode = backend.schema.decode
    case = f"decode and open {sample.label}"
    assert measure(case, name, lambda wire: decode(wire).verify(TRUSTING), sample.wire, calls=CALLS) == sample.record


def test_construct(sample: Sample, name: str, measure: Any) -> None:
    """Values to a checked message."""
    cls, fields = sample.cls, sample.fields
    assert measure(f"construct {sample.label}", name, lambda: cls(**fields), calls=CALLS) == sample.record


def test_pack(backend: Any, sample: Sample, name: str, measure: Any) -> None:
    """A message to the bytes that are signed."""
    assert measure(f"pack {sample.label}", name, backend.codec.pack, sample.record, calls=CALLS) == sample.signed
