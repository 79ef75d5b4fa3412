"""Messages to bytes and back, beside msgspec, cbor2 and protobuf with the same fields.

What is measured are the public calls: ``srup.decode(wire)``; ``srup.decode(wire).verify(key)`` with a key that accepts
every signature without looking (decode and open); ``srup.Initiate(...)`` and its like (construct); and
``srup.encode(message, key)`` with a key whose signature is there already (encode). So no signature is in these figures,
but a call of Python code is in its place; the benchmark of signing has the real ones.

The others get what suits them best: msgspec a typed decoder for an array-like struct, cbor2 an array, protobuf its C
implementation. All of them carry the signature as a field. None of them chooses a message class by a type byte, as SRUP
does, and each makes all the values when it decodes. srup makes none of the body before the signature has been verified,
so ``decode and open`` is what compares with them; ``decode`` is what a message costs that is thrown away. Constructing,
srup checks every value; a msgspec struct and a dataclass check none.
"""

from collections.abc import Callable
from dataclasses import make_dataclass
from functools import cache, partial
from types import ModuleType, SimpleNamespace
from typing import Any

import cbor2
import msgspec
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.internal import api_implementation

import srup
import srup_native
from srup.messages import SCHEMA

from .conftest import PURE, SRUP, Aim

PROTOBUF = f"protobuf {api_implementation.Type()}"
pytestmark = [
    pytest.mark.table("codec", "ns", "msgspec"),
    pytest.mark.parametrize("identifier", ["open-0092", "open-0144", "open-0122"]),
]
codecs = pytest.mark.parametrize("contender", ["msgspec", "cbor2", PROTOBUF, SRUP, PURE])
constructors = pytest.mark.parametrize("contender", ["msgspec", "dataclass", PROTOBUF, SRUP, PURE])

CALLS = 500
TRUSTING = SimpleNamespace(verifier=SimpleNamespace(verify=lambda wire, offset, size: True))
AIMS = [
    Aim("decode", SRUP, "msgspec", 3),
    Aim("decode and open", SRUP, "msgspec"),
    Aim("construct", SRUP, "msgspec", 0.4),
    Aim("encode", SRUP, "msgspec"),
]

TYPES = {srup_native.U8: int, srup_native.U32: int, srup_native.U64: int, srup_native.BINARY: bytes}
PROTOBUF_TYPES = {
    srup_native.U8: "TYPE_UINT32",
    srup_native.U32: "TYPE_FIXED32",
    srup_native.U64: "TYPE_FIXED64",
    srup_native.BINARY: "TYPE_BYTES",
}


class Sample:
    """One message of the tests: its fields, and on the wire under an RSA-2048 signature."""

    def __init__(self, vectors: Any, identifier: str) -> None:
        code, self.fields = vectors.message(identifier)
        self.layout = SCHEMA[code].layout
        self.pem = vectors.private_pem(2048)
        key = srup.PrivateKey.from_pem(self.pem)
        self.signature = key.sign(b"")
        self.wire = srup.encode(self.make(srup), key)
        self.label = f"{self.layout.name} of {len(self.wire)} bytes"

    def make(self, api: ModuleType) -> Any:
        """Return it as a message of that srup."""
        return getattr(api, self.layout.name)(**self.fields)

    def ready_key(self, api: ModuleType) -> Any:
        """Return a key of that srup whose signature is there already."""
        key = api.PrivateKey.from_pem(self.pem)
        key._signer = SimpleNamespace(sign=lambda signed: self.signature)
        return key

    def typed(self, *, whole: bool) -> tuple[dict[str, int], dict[str, Any]]:
        """Return kinds and values of the fields; ``whole`` is with what the wire has besides them."""
        kinds, values = dict(self.layout.fields), dict(self.fields)
        if whole:
            kinds = {"version": srup_native.U8, "type": srup_native.U8, **kinds, "signature": srup_native.BINARY}
            values = {
                "version": srup_native.VERSION, "type": self.layout.type, **values, "signature": self.signature
            }  # fmt: skip
        return kinds, values


load = cache(Sample)


def msgspec_struct(title: str, kinds: dict[str, int]) -> Any:
    """Return the class of a message for msgspec."""
    return msgspec.defstruct(
        title, [(field, TYPES.get(kind, str)) for field, kind in kinds.items()], array_like=True, gc=False
    )


def protobuf_class(title: str, kinds: dict[str, int]) -> Any:
    """Return the class of a message for protobuf."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{title}.proto", package="srup", syntax="proto3")
    message = file.message_type.add(name=title)
    for place, (field, kind) in enumerate(kinds.items(), 1):
        kind_of = getattr(descriptor_pb2.FieldDescriptorProto, PROTOBUF_TYPES.get(kind, "TYPE_STRING"))
        message.field.add(name=field, number=place, type=kind_of, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"srup.{title}"))


def other_class(contender: str, sample: Sample, *, whole: bool) -> Any:
    """Return another library's class of the message."""
    title, (kinds, _) = sample.layout.name, sample.typed(whole=whole)
    if contender == "dataclass":
        return make_dataclass(title, kinds, frozen=True, slots=True)
    return msgspec_struct(title, kinds) if contender == "msgspec" else protobuf_class(title, kinds)


def other_codec(contender: str, sample: Sample) -> tuple[Callable[[], bytes], Callable[[bytes], Any]]:
    """Return another library's way to encode the message, and to decode it."""
    _, values = sample.typed(whole=True)
    if contender == "cbor2":
        return partial(cbor2.dumps, list(values.values())), cbor2.loads
    cls = other_class(contender, sample, whole=True)
    value = cls(**values)
    if contender == "msgspec":
        return partial(msgspec.msgpack.Encoder().encode, value), msgspec.msgpack.Decoder(cls).decode
    return value.SerializeToString, cls.FromString


@pytest.fixture
def sample(vectors: Any, identifier: str) -> Sample:
    """Give the message of this case."""
    return load(vectors, identifier)


@codecs
def test_decode(api: Any, sample: Sample, contender: str, measure: Any) -> None:
    """Bytes to an object."""
    case = f"decode, {sample.label}"
    if api:
        frame = measure(case, contender, api.decode, sample.wire, calls=CALLS)
        assert frame.token == sample.fields["token"]
        return
    encode, decode = other_codec(contender, sample)
    assert measure(case, contender, decode, encode(), calls=CALLS)


@codecs
def test_decode_and_open(api: Any, sample: Sample, contender: str, measure: Any) -> None:
    """Bytes to all values; the same as decode for the others."""
    case = f"decode and open, {sample.label}"
    if api:
        decode = api.decode
        message = measure(case, contender, lambda wire: decode(wire).verify(TRUSTING), sample.wire, calls=CALLS)
        assert message == sample.make(api)
        return
    encode, decode = other_codec(contender, sample)
    assert measure(case, contender, decode, encode(), calls=CALLS)


@constructors
def test_construct(api: Any, sample: Sample, contender: str, measure: Any) -> None:
    """Values to an object, by keywords."""
    cls = getattr(api, sample.layout.name) if api else other_class(contender, sample, whole=False)
    fields = sample.fields
    made = measure(f"construct, {sample.label}", contender, lambda: cls(**fields), calls=CALLS)
    assert made == cls(**fields)


@codecs
def test_encode(api: Any, sample: Sample, contender: str, measure: Any) -> None:
    """An object to bytes."""
    case = f"encode, {sample.label}"
    if api:
        wire = measure(case, contender, api.encode, sample.make(api), sample.ready_key(api), calls=CALLS)
        assert len(wire) == len(sample.wire)
        return
    assert measure(case, contender, other_codec(contender, sample)[0], calls=CALLS)
