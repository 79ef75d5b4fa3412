"""Pure twin of ``_codec.pyx`` and the text of their contract: layouts, records, frames.

The bytes are those of docs/protocol/wire-format.md#every-message.
A :class:`Layout` describes one message type: its type byte, its body fields in order, and how many zero bytes follow
them. A :class:`Record` is the base of all message classes: header fields and body fields as one immutable tuple,
checked when it is made. A :class:`Schema` holds the layouts by type byte and splits received bytes into a
:class:`Frame`, which shows the header and keeps the body to itself until the signature has been verified.

The twins agree on every value and on every exception, text included. Inputs are exactly ``bytes``.
"""

from collections.abc import Iterator
from struct import Struct
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Protocol, Self, dataclass_transform, overload

from .errors import DecodeError, EncodeError, SignatureError

if TYPE_CHECKING:
    from ._verify_py import Verifier

VERSION: Final = 5
MAX_MESSAGE_SIZE: Final = 0xFFFF

# Kinds of field. The numbers are the contract between the twins.
U8: Final = 0
U32: Final = 1
U64: Final = 2
BINARY: Final = 3
TEXT: Final = 4
TEXTZ: Final = 5

HEADER: Final = (("sequence_id", U64), ("sender_id", U64), ("token", BINARY))
"""The fields that every message has; they stand in front of the body's in a record."""

_GENERIC: Final = 0x00  # header and token only, without a signature; seen by peek, never decoded
_WIDTH: Final = {U8: 1, U32: 4, U64: 8}
_IDS: Final = Struct("<QQ")


class Header(NamedTuple):
    """What a peek tells: nothing here has been verified."""

    version: int
    type: int
    sequence_id: int
    sender_id: int
    token: bytes


class HasVerifier(Protocol):
    """What :meth:`Frame.verify` takes: an object with a ``verifier``."""

    @property
    def verifier(self) -> "Verifier": ...


class Layout:
    """One message type: ``type`` byte, ``name`` for error texts, body ``fields`` as (name, kind), ``padding`` in bytes.

    At most 8 body fields; ``padding`` zero bytes (0 to 8) close the body and are signed like it.
    """

    __slots__ = ("body", "fields", "name", "names", "padding", "type")

    def __init__(self, type: int, name: str, fields: tuple[tuple[str, int], ...], padding: int = 0) -> None:
        body = tuple(fields)
        if type not in range(1, 0x100) or padding not in range(9) or len(body) > 8:
            raise ValueError(f"{name}: type 1..255, padding 0..8 and at most 8 fields are possible")
        if any(kind not in range(TEXTZ + 1) for _, kind in body):
            raise ValueError(f"{name}: unknown kind of field")
        self.type = type
        self.name = name
        self.body = body
        self.fields = HEADER + self.body
        self.names = tuple(field for field, _ in self.fields)
        self.padding = padding


def _kind_name(value: object) -> str:
    return type(value).__name__


def _shown(value: int) -> str:
    """Return an integer for an error text; Python itself refuses to write out a very long one."""
    return str(value) if value.bit_length() <= 128 else f"an int of {value.bit_length()} bits"


def _check(name: str, kind: int, value: Any) -> Any:
    """Return ``value`` as it will be stored, or raise EncodeError."""
    if kind <= U64:
        if type(value) is not int:
            if not isinstance(value, int) or isinstance(value, bool):
                raise EncodeError(name, f"expected an int, not {_kind_name(value)}")
            value = int.__int__(value)
        bits = 8 * _WIDTH[kind]
        if not 0 <= value < 1 << bits:
            raise EncodeError(name, f"{_shown(value)} is outside 0..2**{bits}-1")
        return value
    if kind == BINARY:
        if type(value) is not bytes:
            raise EncodeError(name, f"expected bytes, not {_kind_name(value)}")
        size = len(value)
    else:
        if type(value) is not str:
            raise EncodeError(name, f"expected a str, not {_kind_name(value)}")
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise EncodeError(name, "a lone surrogate cannot be written as UTF-8") from None
        if kind == TEXTZ:
            if "\0" in value:
                raise EncodeError(name, "a NUL cannot stand inside this text")
            size += 1
    if size > 0xFFFF:
        raise EncodeError(name, f"{size} bytes are more than the 65535 that its length can say")
    return value


class _Field:
    """Read access to one value of a record; a data descriptor, so that no instance dictionary can hide the value."""

    __slots__ = ("_index",)

    def __init__(self, index: int) -> None:
        self._index = index

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else instance._values[self._index]

    def __set__(self, instance: Any, value: object) -> None:
        raise AttributeError("a record is immutable")


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Record:
    """An immutable tuple of named, checked values; the base of the message classes.

    A subclass calls :meth:`bind` with its layout. Construction takes keywords only and raises EncodeError for a value
    of a wrong type or range (``bool`` is no integer here, ``1.0`` is not 1), TypeError for a missing or unknown name.
    """

    __slots__ = ("_values",)
    layout: ClassVar[Layout]
    _values: tuple[Any, ...]

    @classmethod
    def bind(cls, layout: Layout) -> None:
        """Give the class its layout and a read-only attribute for each field."""
        cls.layout = layout
        for index, name in enumerate(layout.names):
            setattr(cls, name, _Field(index))

    def __init__(self, /, **fields: Any) -> None:
        layout = self.layout
        if len(fields) != len(layout.fields) or any(name not in fields for name in layout.names):
            missing = [name for name in layout.names if name not in fields]
            unknown = [name for name in fields if name not in layout.names]
            raise TypeError(f"{layout.name}: missing {missing}, unknown {unknown}")
        values = tuple([_check(name, kind, fields[name]) for name, kind in layout.fields])
        if not values[2]:
            raise EncodeError("token", "is empty")
        object.__setattr__(self, "_values", values)

    @classmethod
    def _restore(cls, values: tuple[Any, ...]) -> Self:
        return cls(**dict(zip(cls.layout.names, values, strict=True)))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self)._restore, (self._values,)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{self.layout.name} is immutable: cannot set {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{self.layout.name} is immutable: cannot delete {name}")

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(zip(self.layout.names, self._values, strict=True))

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values == other._values

    def __hash__(self) -> int:
        return hash((self.layout.type, self._values))

    def __repr__(self) -> str:
        return f"{self.layout.name}({', '.join(f'{name}={value!r}' for name, value in self)})"


def pack(record: Record) -> bytes:
    """Return the signed bytes of a record: header, token and body as they stand on the wire, without a signature."""
    if not isinstance(record, Record):
        raise TypeError(f"pack() takes a record, not {_kind_name(record)}")
    layout = record.layout
    values = getattr(record, "_values", None)
    if values is None or len(values) != len(layout.fields):
        raise TypeError("the record has no values")
    sequence_id, sender_id, token, *body = values
    parts = [
        bytes((VERSION, layout.type)),
        sequence_id.to_bytes(8, "little"),
        sender_id.to_bytes(8, "little"),
        len(token).to_bytes(2, "big"),
        token,
    ]
    for (_, kind), value in zip(layout.body, body, strict=True):
        if kind <= U64:
            parts.append(value.to_bytes(_WIDTH[kind], "little"))
            continue
        if kind != BINARY:
            value = value.encode() + (b"\0" if kind == TEXTZ else b"")
        parts += (len(value).to_bytes(2, "big"), value)
    parts.append(bytes(layout.padding))
    return b"".join(parts)


def splice(signed: bytes, signature: bytes) -> bytes:
    """Put a signature (at most 65,535 bytes) into signed bytes as :func:`pack` makes them, after the token.

    Raises EncodeError when the message would be longer than 65,535 bytes, ValueError for what pack cannot have made,
    TypeError for anything but bytes.
    """
    if type(signed) is not bytes or type(signature) is not bytes:
        raise TypeError(f"splice() takes bytes, not {_kind_name(signed)} and {_kind_name(signature)}")
    size = len(signed) + 2 + len(signature)
    if size > MAX_MESSAGE_SIZE:
        raise EncodeError("message", f"{size} bytes are more than the {MAX_MESSAGE_SIZE} that are possible")
    cut = 20 + (signed[18] << 8 | signed[19]) if len(signed) >= 20 else MAX_MESSAGE_SIZE
    if cut > len(signed):
        raise ValueError("these are no signed bytes")
    return b"".join((signed[:cut], len(signature).to_bytes(2, "big"), signature, signed[cut:]))


class _Reader:
    """A cursor over the input that names the field it fails on."""

    __slots__ = ("end", "offset", "wire")

    def __init__(self, wire: bytes) -> None:
        if type(wire) is not bytes:
            raise DecodeError("message", 0, f"expected bytes, not {_kind_name(wire)}")
        if len(wire) > MAX_MESSAGE_SIZE:
            raise DecodeError("message", MAX_MESSAGE_SIZE, f"longer than {MAX_MESSAGE_SIZE} bytes")
        self.wire = wire
        self.end = len(wire)
        self.offset = 0

    def take(self, name: str, size: int) -> int:
        """Advance over ``size`` bytes of field ``name`` and return where they began."""
        start = self.offset
        if size > self.end - start:
            raise DecodeError(name, start, f"{size} bytes expected, {self.end - start} left")
        self.offset = start + size
        return start

    def integer(self, name: str, width: int) -> int:
        start = self.take(name, width)
        return int.from_bytes(self.wire[start : start + width], "little")

    def block(self, name: str) -> tuple[int, int]:
        """Advance over an LV and return the offset and size of its content."""
        start = self.take(name, 2)
        size = self.wire[start] << 8 | self.wire[start + 1]
        return self.take(name, size), size

    def text(self, name: str, kind: int) -> str:
        start, size = self.block(name)
        content = self.wire[start : start + size]
        if kind == TEXTZ:
            if content.endswith(b"\0"):
                content = content[:-1]
            if b"\0" in content:
                raise DecodeError(name, start, "a NUL inside the text")
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise DecodeError(name, start, "not UTF-8") from None

    def value(self, name: str, kind: int) -> Any:
        if kind <= U64:
            return self.integer(name, _WIDTH[kind])
        if kind == BINARY:
            start, size = self.block(name)
            return self.wire[start : start + size]
        return self.text(name, kind)

    def type(self) -> int:
        """Read the version and the type byte."""
        self.take("version", 1)
        if self.wire[0] != VERSION:
            raise DecodeError("version", 0, f"{self.wire[0]}, expected {VERSION}")
        self.take("type", 1)
        return self.wire[1]

    def header(self) -> tuple[int, int, bytes]:
        ids = self.take("sequence_id", 8)
        self.take("sender_id", 8)
        start, size = self.block("token")
        if not size:
            raise DecodeError("token", start, "is empty")
        return *_IDS.unpack_from(self.wire, ids), self.wire[start : start + size]

    def finish(self) -> None:
        if self.offset != self.end:
            raise DecodeError("message", self.offset, f"{self.end - self.offset} bytes left over")


class Frame:
    """One well-formed message whose signature has not been verified: the header, and no way to the body but verify."""

    __slots__ = ("_cls", "_contents", "_signature", "_wire")

    # Not _values: the field descriptors of a record must find nothing in an unverified frame.
    _cls: type[Record]
    _contents: tuple[Any, ...]
    _wire: bytes
    _signature: tuple[int, int]

    def __init__(self) -> None:
        raise TypeError("frames are made by decode()")

    @property
    def version(self) -> int:
        """Always 5."""
        return VERSION

    @property
    def type(self) -> int:
        """The type byte (docs/protocol/wire-format.md#types)."""
        return self._cls.layout.type

    @property
    def sequence_id(self) -> int:
        """0 to 2**64 - 1, as the message claims."""
        return self._contents[0]  # type: ignore[no-any-return]

    @property
    def sender_id(self) -> int:
        """0 to 2**64 - 1, as the message claims."""
        return self._contents[1]  # type: ignore[no-any-return]

    @property
    def token(self) -> bytes:
        """At least one byte, as the message claims."""
        return self._contents[2]  # type: ignore[no-any-return]

    def verify(self, key: HasVerifier) -> Any:
        """Return the typed message if ``key`` signed it; raise SignatureError if it did not."""
        verifier = getattr(key, "verifier", None)
        if verifier is None:
            raise TypeError(f"verify() takes a PublicKey, not {_kind_name(key)}")
        if not verifier.verify(self._wire, *self._signature):
            raise SignatureError(
                f"{self._cls.layout.name} {self.sequence_id} of sender {self.sender_id:x} is not signed by its key"
            )
        record = self._cls.__new__(self._cls)
        object.__setattr__(record, "_values", self._contents)
        return record

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a frame is not copied or pickled; decode its bytes again")

    def __repr__(self) -> str:
        return (
            f"<unverified {self._cls.layout.name} sequence_id={self.sequence_id} "
            f"sender_id={self.sender_id:x} token={self.token!r}>"
        )


class Schema:
    """The record classes by type byte. ``add`` is for building the table; decode and peek are what it is for."""

    __slots__ = ("_classes",)

    def __init__(self) -> None:
        self._classes: list[type[Record] | None] = [None] * 256

    def add(self, cls: type[Record]) -> None:
        """Take in a class that has been bound to its layout; a type byte can be taken once."""
        if not issubclass(cls, Record):
            raise TypeError(f"{cls!r} is no record class")
        if self._classes[cls.layout.type] is not None:
            raise ValueError(f"type 0x{cls.layout.type:02X} is taken")
        self._classes[cls.layout.type] = cls

    @overload
    def __getitem__(self, type: int) -> type[Record]: ...
    @overload
    def __getitem__(self, type: slice) -> list[type[Record]]: ...
    def __getitem__(self, type: Any) -> Any:
        """Return the class for a type byte, KeyError without one; ``[:]`` lists all."""
        if isinstance(type, slice):
            return [cls for cls in self._classes if cls is not None][type]
        cls = self._classes[type] if 0 <= type <= 0xFF else None
        if cls is None:
            raise KeyError(type)
        return cls

    def peek(self, wire: bytes) -> Header:
        """Read version, type, sequence id, sender and token of any message, type 0x00 (Generic) included.

        What follows the token is not looked at, except that nothing may follow it in a Generic. Raises DecodeError.
        """
        reader = _Reader(wire)
        code = reader.type()
        if code != _GENERIC and self._classes[code] is None:
            raise DecodeError("type", 1, f"0x{code:02X} is not known")
        header = Header(VERSION, code, *reader.header())
        if code == _GENERIC:
            reader.finish()
        return header

    def decode(self, wire: bytes) -> Frame:
        """Check the form of a whole message and return its frame. Raises DecodeError, and nothing else."""
        reader = _Reader(wire)
        code = reader.type()
        cls = self._classes[code]
        if cls is None:
            raise DecodeError("type", 1, f"0x{code:02X} is not known")
        layout = cls.layout
        header = reader.header()
        signature = reader.block("signature")
        body = [reader.value(name, kind) for name, kind in layout.body]
        if layout.padding:
            start = reader.take("padding", layout.padding)
            if any(wire[start : start + layout.padding]):
                raise DecodeError("padding", start, "is not zero")
        reader.finish()
        frame = Frame.__new__(Frame)
        frame._cls = cls
        frame._contents = (*header, *body)
        frame._wire = wire
        frame._signature = signature
        return frame
