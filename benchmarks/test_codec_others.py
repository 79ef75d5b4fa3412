"""The codec beside msgspec, cbor2 and protobuf, on a message of the same fields.

The others get what suits them best: msgspec a typed decoder for an array-like struct, cbor2 an array, protobuf its C
implementation. None of them chooses a message class by a type byte, as SRUP does; each of them makes all the values.
``decode`` of the native backend checks the form and makes none until the signature has been verified, hence the case
``decode and open``, which makes them all. Encoding is without the signature: the bytes that are signed.
"""

from types import SimpleNamespace
from typing import Any

import cbor2
import msgspec
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.internal import api_implementation

import srup_native

from .conftest import Aim
from .test_codec import Sample

pytestmark = [
    pytest.mark.table("codec beside others", "ns", "msgspec"),
    pytest.mark.parametrize("name", ["msgspec", "cbor2", f"protobuf {api_implementation.Type()}", "native", "python"]),
    pytest.mark.parametrize("identifier", ["open-0092", "open-0144", "open-0122"]),
]

CALLS = 500
TRUSTING = SimpleNamespace(verifier=SimpleNamespace(verify=lambda wire, offset, size: True))
AIMS = [Aim("decode", "native", "msgspec", 3.0), Aim("encode", "native", "msgspec", 1.3)]

TYPES = {srup_native.U8: int, srup_native.U32: int, srup_native.U64: int, srup_native.BINARY: bytes}
PROTOBUF_TYPES = {
    srup_native.U8: "TYPE_UINT32",
    srup_native.U32: "TYPE_FIXED32",
    srup_native.U64: "TYPE_FIXED64",
    srup_native.BINARY: "TYPE_BYTES",
}


class Codec:
    """One library's form of a message: ``encode()`` and ``decode(data)`` without and with its signature."""

    def __init__(self, name: str, sample: Sample) -> None:
        kinds = {"version": srup_native.U8, "type": srup_native.U8, **dict(sample.cls.layout.fields)}
        values = {"version": srup_native.VERSION, "type": sample.cls.layout.type, **sample.fields}
        unsigned = getattr(self, f"_{name.partition(' ')[0]}")(f"{sample.cls.layout.name}Unsigned", kinds, values)
        self.encode = unsigned[0]
        kinds["signature"], values["signature"] = srup_native.BINARY, sample.wire[-256:]
        encode, self.decode = getattr(self, f"_{name.partition(' ')[0]}")(sample.cls.layout.name, kinds, values)
        self.data = encode()

    @staticmethod
    def _msgspec(title: str, kinds: dict[str, int], values: dict[str, Any]) -> Any:
        fields = [(field, TYPES.get(kind, str)) for field, kind in kinds.items()]
        struct = msgspec.defstruct(title, fields, array_like=True, gc=False)
        encode, value = msgspec.msgpack.Encoder().encode, struct(**values)
        return lambda: encode(value), msgspec.msgpack.Decoder(struct).decode

    @staticmethod
    def _cbor2(title: str, kinds: dict[str, int], values: dict[str, Any]) -> Any:
        row, dumps = list(values.values()), cbor2.dumps
        return lambda: dumps(row), cbor2.loads

    @staticmethod
    def _protobuf(title: str, kinds: dict[str, int], values: dict[str, Any]) -> Any:
        file = descriptor_pb2.FileDescriptorProto(name=f"{title}.proto", package="srup", syntax="proto3")
        message = file.message_type.add(name=title)
        for place, (field, kind) in enumerate(kinds.items(), 1):
            type_name = PROTOBUF_TYPES.get(kind, "TYPE_STRING")
            kind_of = getattr(descriptor_pb2.FieldDescriptorProto, type_name)
            message.field.add(name=field, number=place, type=kind_of, label=1)
        pool = descriptor_pool.DescriptorPool()
        pool.Add(file)
        cls = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"srup.{title}"))
        return cls(**values).SerializeToString, cls.FromString


@pytest.fixture
def sample(twin: Any, vectors: Any, name: str, identifier: str) -> Sample:
    """Give the message of this case, of the backend that is measured."""
    return Sample(twin(name if name in ("native", "python") else "python"), vectors, identifier)


@pytest.fixture
def backend(twin: Any, name: str) -> Any:
    """Give the twin of this case, None for another library."""
    return twin(name) if name in ("native", "python") else None


def test_decode(backend: Any, sample: Sample, name: str, measure: Any) -> None:
    """Bytes with a signature to an object."""
    case = f"decode {sample.label}"
    if backend:
        measure(case, name, backend.schema.decode, sample.wire, calls=CALLS)
        return
    codec = Codec(name, sample)
    assert measure(case, name, codec.decode, codec.data, calls=CALLS)


def test_decode_and_open(backend: Any, sample: Sample, name: str, measure: Any) -> None:
    """Bytes with a signature to all values; the same as decode for the others."""
    case = f"decode and open {sample.label}"
    if backend:
        decode = backend.schema.decode
        measure(case, name, lambda wire: decode(wire).verify(TRUSTING), sample.wire, calls=CALLS)
        return
    codec = Codec(name, sample)
    assert measure(case, name, codec.decode, codec.data, calls=CALLS)


def test_encode(backend: Any, sample: Sample, name: str, measure: Any) -> None:
    """An object to bytes without a signature."""
    case = f"encode {sample.label}"
    if backend:
        measure(case, name, backend.codec.pack, sample.record, calls=CALLS)
        return
    assert measure(case, name, Codec(name, sample).encode, calls=CALLS)
