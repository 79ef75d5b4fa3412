"""The message table: one class for each row of docs/protocol/wire-format.md#types. Only this module knows the types.

Every class takes keywords only: the header's ``sequence_id``, ``sender_id`` (0 to 2**64 - 1) and ``token`` (bytes, not
empty), then its own fields by the names of that table. Objects are immutable, comparable and hashable. A value of a
wrong type or range raises EncodeError naming the field. The byte layout is derived from the annotations, in order.
"""

import struct
from typing import Any, Final, Literal, get_args

import srup_native

from .errors import DecodeError, EncodeError
from .wire import U8, U32, U64, Binary, Text, TextZ

__all__ = [
    "SCHEMA",
    "Action",
    "Activate",
    "Data",
    "DataKind",
    "DeregisterCommand",
    "DeregisterRequest",
    "HumanJoinRequest",
    "HumanJoinResponse",
    "IdRequest",
    "Initiate",
    "JoinCommand",
    "JoinRequest",
    "Message",
    "ObservationRequest",
    "ObservedJoinRequest",
    "ObservedJoinResponse",
    "ResignRequest",
    "Response",
    "SyndicatedAction",
    "SyndicatedC2Request",
    "SyndicatedData",
    "SyndicatedDeviceCount",
    "SyndicatedDeviceList",
    "SyndicatedEndRequest",
    "SyndicatedIdRequest",
    "SyndicatedTerminate",
    "SyndicationInit",
    "SyndicationRequest",
    "TerminateCommand",
    "decode_data",
]

SCHEMA: Final = srup_native.Schema()
"""All message classes by type byte."""


class Message(srup_native.Record):
    """The base of all messages: what every one of them carries."""

    __slots__ = ()
    sequence_id: U64
    sender_id: U64
    token: Binary

    def __init_subclass__(cls, *, type: int, padding: int = 0) -> None:
        fields = tuple((name, hint.__metadata__[0]) for name, hint in cls.__annotations__.items())
        cls.bind(srup_native.Layout(type, cls.__name__, fields, padding))
        SCHEMA.add(cls)


DataKind = Literal[
    "bytes", "text", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float", "double"
]
"""How untyped ``data`` is to be read; sender and receiver agree on it by ``data_id`` (or ``req_id``)."""

_STRUCTS: Final = {
    "int8": struct.Struct("<b"),
    "int16": struct.Struct("<h"),
    "int32": struct.Struct("<i"),
    "int64": struct.Struct("<q"),
    "uint8": struct.Struct("<B"),
    "uint16": struct.Struct("<H"),
    "uint32": struct.Struct("<I"),
    "uint64": struct.Struct("<Q"),
    "float": struct.Struct("<f"),
    "double": struct.Struct("<d"),
}


def _encode_value(value: object, kind: DataKind | None, int_kind: DataKind) -> bytes:
    if kind is None:
        match value:
            case bool():
                raise EncodeError("data", "a bool has no form on the wire; send 0 or 1")
            case bytes():
                kind = "bytes"
            case str():
                kind = "text"
            case int():
                kind = int_kind
            case float():
                kind = "double"
            case _:
                raise EncodeError("data", f"expected bytes, str, int or float, not {type(value).__name__}")
    if kind not in get_args(DataKind):
        raise EncodeError("data", f"{kind!r} is no kind of data; the kinds are {', '.join(get_args(DataKind))}")
    wanted = {"bytes": bytes, "text": str, "float": (float, int), "double": (float, int)}.get(kind, int)
    if not isinstance(value, wanted) or isinstance(value, bool):  # type: ignore[arg-type]
        raise EncodeError("data", f"{type(value).__name__} cannot be sent as {kind}")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise EncodeError("data", "a lone surrogate cannot be written as UTF-8") from None
    try:
        return _STRUCTS[kind].pack(value)
    except (struct.error, OverflowError):
        raise EncodeError("data", f"the value does not fit {kind}") from None


def decode_data(data: bytes, kind: DataKind) -> Any:
    """Return untyped ``data`` read as ``kind``; raise DecodeError if it does not have that form, size included."""
    if kind == "bytes":
        return data
    if kind == "text":
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise DecodeError("data", error.start, "not UTF-8") from None
    if kind not in _STRUCTS:
        raise EncodeError("data", f"{kind!r} is no kind of data; the kinds are {', '.join(get_args(DataKind))}")
    layout = _STRUCTS[kind]
    if len(data) != layout.size:
        raise DecodeError("data", 0, f"{kind} takes {layout.size} bytes, not {len(data)}")
    return layout.unpack(data)[0]


class _TypedData:
    """The typed forms of an untyped ``data`` field (docs/protocol/wire-format.md#data)."""

    __slots__ = ()
    _int_kind: DataKind = "int32"
    data: bytes

    @classmethod
    def encode_value(cls, value: bytes | str | int | float, kind: DataKind | None = None) -> bytes:
        """Return ``value`` as bytes for ``data``; without a ``kind`` as peers do: UTF-8, double, raw bytes, and int32.

        Peers send an ``int`` in a SyndicatedC2Request as int16. Raises EncodeError for a type without a form or a
        value out of range.
        """
        return _encode_value(value, kind, cls._int_kind)

    def decode_value(self, kind: DataKind) -> Any:
        """Return ``data`` read as ``kind``; raise DecodeError if it does not have that form, size included."""
        return decode_data(self.data, kind)


class Initiate(Message, type=0x01):
    """Server to device: fetch the firmware at ``url`` whose SHA-256 is ``digest`` (lower-case hex)."""

    __slots__ = ()
    url: TextZ
    digest: TextZ


class Response(Message, type=0x02):
    """The answer to the message whose token it repeats; ``status`` is one of :class:`srup.Status`."""

    __slots__ = ()
    status: U8


class Activate(Message, type=0x03):
    """Server to device: activate the firmware that was fetched under this token."""

    __slots__ = ()


class Action(Message, type=0x04):
    """Do what both ends know by the number ``action_id``."""

    __slots__ = ()
    action_id: U8


class Data(Message, _TypedData, type=0x05):
    """A value named ``data_id``."""

    __slots__ = ()
    data_id: Text
    data: Binary


class IdRequest(Message, type=0x06):
    """Server to device: say what you are; answered by a Data message named IDENTIFICATION_RESPONSE."""

    __slots__ = ()


class JoinRequest(Message, type=0x09):
    """Device to server: a simple join."""

    __slots__ = ()


class JoinCommand(Message, type=0x0A):
    """Server to device: join me."""

    __slots__ = ()
    device_id: U64


class HumanJoinRequest(Message, type=0x0B):
    """Device to server: a join that a person moderates."""

    __slots__ = ()


class HumanJoinResponse(Message, type=0x0C):
    """Server to device: the value to show, sealed to the device."""

    __slots__ = ()
    sealed: Binary


class ObservedJoinRequest(Message, type=0x0D):
    """Device to server: a join that the machine ``observer_id`` observes."""

    __slots__ = ()
    observer_id: U64


class ObservedJoinResponse(Message, type=0x0E):
    """Server to device: the value to show, sealed to the device."""

    __slots__ = ()
    sealed: Binary


class ObservationRequest(Message, type=0x0F):
    """Server to observer: compare what ``joining_device_id`` shows with this value, sealed to the observer."""

    __slots__ = ()
    joining_device_id: U64
    sealed: Binary


class ResignRequest(Message, type=0x10):
    """Device to server: I leave."""

    __slots__ = ()


class TerminateCommand(Message, type=0x11):
    """Server to device: you are out."""

    __slots__ = ()


class DeregisterRequest(Message, type=0x12):
    """Device to server: I leave, and my key is to be dropped."""

    __slots__ = ()


class DeregisterCommand(Message, type=0x13):
    """Server to device: you are out, and your key is dropped."""

    __slots__ = ()


class SyndicationInit(Message, type=0x21):
    """Home server to its syndication device: register at the key service ``url``; a value sealed to the device."""

    __slots__ = ()
    url: TextZ
    sealed: Binary


class SyndicatedAction(Message, type=0x24):
    """Home to away server: let ``target_id`` do ``action_id``."""

    __slots__ = ()
    action_id: U8
    target_id: U64


class SyndicatedData(Message, _TypedData, type=0x25):
    """Away to home server: a value named ``data_id`` of the device ``source_id``."""

    __slots__ = ()
    data_id: Text
    data: Binary
    source_id: U64


class SyndicatedIdRequest(Message, type=0x26):
    """Home to away server: let ``target_id`` say what it is."""

    __slots__ = ()
    target_id: U64


class SyndicatedDeviceCount(Message, type=0x27):
    """Away to home server: so many devices are shared."""

    __slots__ = ()
    count: U32


class SyndicatedDeviceList(Message, type=0x28):
    """Away to home server: shared device number ``device_sequence`` is ``device_id``."""

    __slots__ = ()
    device_sequence: U32
    device_id: U64


class SyndicationRequest(Message, type=0x29):
    """Syndication device to away server: begin; the home server's value sealed to the away server."""

    __slots__ = ()
    sealed: Binary


class SyndicatedC2Request(Message, _TypedData, type=0x2C, padding=2):
    """Home to away server: a request number ``req_id`` with free ``data``; two zero bytes close it and are signed."""

    __slots__ = ()
    data: Binary
    req_id: U8
    _int_kind = "int16"


class SyndicatedEndRequest(Message, type=0x2E):
    """Home to away server: the syndication ends."""

    __slots__ = ()


class SyndicatedTerminate(Message, type=0x2F):
    """Away to home server: the syndication ends."""

    __slots__ = ()
