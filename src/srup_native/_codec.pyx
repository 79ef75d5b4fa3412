# cython: language_level=3, boundscheck=False, wraparound=False, nonecheck=True, initializedcheck=False
"""Native twin of ``_codec_py``: the same names, values and exceptions; see there for the contract.

A frame keeps the received bytes and where its parts lie; decode checks the whole form without making Python objects,
and values are made when the signature has been verified. ``nonecheck`` stays on: ``Frame.__new__(Frame)`` is legal Python
and must end in an exception.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyTypeObject, PyObject
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint64_t
from libc.string cimport memchr, memcpy, memset

from ._codec_py import BINARY, HEADER, MAX_MESSAGE_SIZE, TEXT, TEXTZ, U8, U32, U64, VERSION, Header
from .errors import DecodeError, EncodeError, SignatureError

cdef extern from "Python.h":
    void PyObject_GC_UnTrack(PyObject* container)
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL

cdef enum:
    C_VERSION = 5
    C_MAX = 0xFFFF
    K_U8 = 0
    K_U32 = 1
    K_U64 = 2
    K_BINARY = 3
    K_TEXT = 4
    K_TEXTZ = 5

if (VERSION, MAX_MESSAGE_SIZE) != (C_VERSION, C_MAX):
    raise ImportError("the twins disagree about version or size")
if (U8, U32, U64, BINARY, TEXT, TEXTZ) != (K_U8, K_U32, K_U64, K_BINARY, K_TEXT, K_TEXTZ):
    raise ImportError("the twins disagree about the kinds of field")

cdef tuple _EMPTY = ()


cdef inline Py_ssize_t _width(int kind) noexcept:
    return 1 if kind == K_U8 else 4 if kind == K_U32 else 8


cdef inline uint64_t _read_le(const unsigned char* at, Py_ssize_t width) noexcept:
    cdef uint64_t value = 0
    cdef Py_ssize_t i
    for i in range(width):
        value |= <uint64_t>at[i] << (8 * i)
    return value


cdef inline unsigned char* _write_le(unsigned char* at, uint64_t value, Py_ssize_t width) noexcept:
    cdef Py_ssize_t i
    for i in range(width):
        at[i] = <unsigned char>(value >> (8 * i))
    return at + width


cdef inline unsigned char* _write_block(unsigned char* at, const char* content, Py_ssize_t size) noexcept:
    at[0] = <unsigned char>(size >> 8)
    at[1] = <unsigned char>size
    memcpy(at + 2, content, size)
    return at + 2 + size


@cython.final
@cython.auto_pickle(False)
cdef class Layout:
    # Not __init__, which could run again under records that were made after the old layout.
    def __cinit__(self, type, name, fields, padding=0):
        cdef tuple body = tuple(fields)
        if type not in range(1, 0x100) or padding not in range(9) or len(body) > MAX_BODY:
            raise ValueError(f"{name}: type 1..255, padding 0..8 and at most 8 fields are possible")
        if any([kind not in range(K_TEXTZ + 1) for _, kind in body]):
            raise ValueError(f"{name}: unknown kind of field")
        self.type = type
        self.name = name
        self.body = body
        self.fields = HEADER + self.body
        self.names = tuple([field for field, _ in self.fields])
        self.padding = padding
        self.size = <int>len(self.body)
        cdef int index
        for index in range(self.size):
            self.kinds[index] = self.body[index][1]


cdef str _kind_name(value):
    return type(value).__name__


cdef str _shown(value):
    return str(value) if value.bit_length() <= 128 else f"an int of {value.bit_length()} bits"


cdef object _check(str name, int kind, value):
    cdef Py_ssize_t size
    if kind <= K_U64:
        if type(value) is not int:
            if not isinstance(value, int) or isinstance(value, bool):
                raise EncodeError(name, f"expected an int, not {_kind_name(value)}")
            value = int.__int__(value)
        bits = 8 * _width(kind)
        if not 0 <= value < 1 << bits:
            raise EncodeError(name, f"{_shown(value)} is outside 0..2**{bits}-1")
        return value
    if kind == K_BINARY:
        if type(value) is not bytes:
            raise EncodeError(name, f"expected bytes, not {_kind_name(value)}")
        size = PyBytes_GET_SIZE(value)
    else:
        if type(value) is not str:
            raise EncodeError(name, f"expected a str, not {_kind_name(value)}")
        try:
            PyUnicode_AsUTF8AndSize(value, &size)
        except UnicodeEncodeError:
            raise EncodeError(name, "a lone surrogate cannot be written as UTF-8") from None
        if kind == K_TEXTZ:
            if "\0" in <str>value:
                raise EncodeError(name, "a NUL cannot stand inside this text")
            size += 1
    if size > 0xFFFF:
        raise EncodeError(name, f"{size} bytes are more than the 65535 that its length can say")
    return value


@cython.final
cdef class _Field:
    cdef Py_ssize_t index

    def __cinit__(self, Py_ssize_t index):
        self.index = index

    def __get__(self, instance, owner):
        if instance is None:
            return self
        cdef tuple values = (<Record?>instance)._values
        if values is None or not 0 <= self.index < len(values):
            raise AttributeError("the record has no values")
        return values[self.index]

    def __set__(self, instance, value):
        raise AttributeError("a record is immutable")


cdef class Record:
    @classmethod
    def bind(cls, layout):
        cls.layout = layout
        for index, name in enumerate(layout.names):
            setattr(cls, name, _Field(index))

    def __init__(self, **fields):
        cdef Layout layout = self.layout
        cdef int index, kind
        cdef list values = []
        if len(fields) == layout.size + 3:
            for name in layout.names:
                if name not in fields:
                    break
                values.append(fields[name])
            else:
                for index in range(layout.size + 3):
                    kind = layout.kinds[index - 3] if index >= 3 else K_BINARY if index == 2 else K_U64
                    values[index] = _check(layout.names[index], kind, values[index])
                if not values[2]:
                    raise EncodeError("token", "is empty")
                self._values = tuple(values)
                return
        missing = [name for name in layout.names if name not in fields]
        unknown = [name for name in fields if name not in layout.names]
        raise TypeError(f"{layout.name}: missing {missing}, unknown {unknown}")

    @classmethod
    def _restore(cls, values):
        return cls(**dict(zip(cls.layout.names, values, strict=True)))

    def __reduce__(self):
        return type(self)._restore, (self._values,)

    def __setattr__(self, name, value):
        raise AttributeError(f"{self.layout.name} is immutable: cannot set {name}")

    def __delattr__(self, name):
        raise AttributeError(f"{self.layout.name} is immutable: cannot delete {name}")

    def __iter__(self):
        return iter(zip(self.layout.names, self._values, strict=True))

    def __eq__(self, other):
        if type(other) is not type(self):
            return NotImplemented
        return self._values == (<Record>other)._values

    def __hash__(self):
        return hash((self.layout.type, self._values))

    def __repr__(self):
        return f"{self.layout.name}({', '.join([f'{name}={value!r}' for name, value in self])})"


def pack(record):
    if not isinstance(record, Record):
        raise TypeError(f"pack() takes a record, not {_kind_name(record)}")
    cdef Layout layout = record.layout
    cdef tuple values = (<Record>record)._values
    cdef Py_ssize_t size = 20 + layout.padding, length
    cdef int index, kind
    if values is None or len(values) != layout.size + 3:
        raise TypeError("the record has no values")
    cdef bytes token = values[2]
    size += PyBytes_GET_SIZE(token)
    for index in range(layout.size):
        kind = layout.kinds[index]
        value = values[index + 3]
        if kind <= K_U64:
            size += _width(kind)
        elif kind == K_BINARY:
            size += 2 + len(<bytes?>value)
        else:
            PyUnicode_AsUTF8AndSize(value, &length)
            size += 2 + length + (kind == K_TEXTZ)
    cdef bytes signed = PyBytes_FromStringAndSize(NULL, size)
    cdef unsigned char* at = <unsigned char*>PyBytes_AS_STRING(signed)
    at[0] = C_VERSION
    at[1] = <unsigned char>layout.type
    _write_le(at + 2, values[0], 8)
    _write_le(at + 10, values[1], 8)
    at = _write_block(at + 18, PyBytes_AS_STRING(token), PyBytes_GET_SIZE(token))
    cdef const char* text
    for index in range(layout.size):
        kind = layout.kinds[index]
        value = values[index + 3]
        if kind <= K_U64:
            at = _write_le(at, value, _width(kind))
        elif kind == K_BINARY:
            at = _write_block(at, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
        else:
            # CPython keeps a NUL behind the text, so one byte more is there to be copied.
            text = PyUnicode_AsUTF8AndSize(value, &length)
            at = _write_block(at, text, length + (kind == K_TEXTZ))
    memset(at, 0, layout.padding)
    return signed


def splice(object signed, signature):
    if type(signed) is not bytes or type(signature) is not bytes:
        raise TypeError(f"splice() takes bytes, not {_kind_name(signed)} and {_kind_name(signature)}")
    cdef Py_ssize_t length = PyBytes_GET_SIZE(signed), extra = PyBytes_GET_SIZE(signature)
    cdef Py_ssize_t size = length + 2 + extra
    if size > C_MAX:
        raise EncodeError("message", f"{size} bytes are more than the {C_MAX} that are possible")
    cdef const unsigned char* source = <const unsigned char*>PyBytes_AS_STRING(signed)
    cdef Py_ssize_t cut = 20 + (source[18] << 8 | source[19]) if length >= 20 else C_MAX
    if cut > length:
        raise ValueError("these are no signed bytes")
    cdef bytes wire = PyBytes_FromStringAndSize(NULL, size)
    cdef unsigned char* at = <unsigned char*>PyBytes_AS_STRING(wire)
    memcpy(at, source, cut)
    at = _write_block(at + cut, PyBytes_AS_STRING(signature), extra)
    memcpy(at, source + cut, length - cut)
    return wire


cdef object _short(str name, Py_ssize_t start, Py_ssize_t size, Py_ssize_t left):
    return DecodeError(name, start, f"{size} bytes expected, {left} left")


cdef inline int _take(str name, Py_ssize_t size, Py_ssize_t* offset, Py_ssize_t end) except -1:
    """Advance over ``size`` bytes of field ``name``."""
    if size > end - offset[0]:
        raise _short(name, offset[0], size, end - offset[0])
    offset[0] += size
    return 0


cdef inline Py_ssize_t _take_block(
    str name, const unsigned char* data, Py_ssize_t* offset, Py_ssize_t end
) except -1:
    """Advance over an LV and return the size of its content, which ends at the new offset."""
    _take(name, 2, offset, end)
    cdef Py_ssize_t size = data[offset[0] - 2] << 8 | data[offset[0] - 1]
    _take(name, size, offset, end)
    return size


cdef inline bint _is_ascii(const unsigned char* at, Py_ssize_t size) noexcept:
    cdef unsigned char high = 0
    cdef Py_ssize_t i
    for i in range(size):
        high |= at[i]
    return high < 0x80


cdef int _check_text(str name, int kind, const unsigned char* data, Py_ssize_t start, Py_ssize_t size) except -1:
    if kind == K_TEXTZ and size > 0:
        if data[start + size - 1] == 0:
            size -= 1
        if memchr(data + start, 0, size) != NULL:
            raise DecodeError(name, start, "a NUL inside the text")
    if not _is_ascii(data + start, size):
        try:
            PyUnicode_DecodeUTF8(<const char*>data + start, size, NULL)
        except UnicodeDecodeError:
            raise DecodeError(name, start, "not UTF-8") from None
    return 0


cdef int _open(wire) except -1:
    """Refuse what cannot be a message at all and return the type byte."""
    if type(wire) is not bytes:
        raise DecodeError("message", 0, f"expected bytes, not {_kind_name(wire)}")
    cdef Py_ssize_t end = PyBytes_GET_SIZE(wire)
    cdef const unsigned char* data = <const unsigned char*>PyBytes_AS_STRING(wire)
    if end > C_MAX:
        raise DecodeError("message", C_MAX, f"longer than {C_MAX} bytes")
    if end < 1:
        raise _short("version", 0, 1, 0)
    if data[0] != C_VERSION:
        raise DecodeError("version", 0, f"{data[0]}, expected {C_VERSION}")
    if end < 2:
        raise _short("type", 1, 1, 0)
    return data[1]


cdef Py_ssize_t _take_header(const unsigned char* data, Py_ssize_t* offset, Py_ssize_t end) except -1:
    """Advance over ids and token and return the size of the token."""
    _take("sequence_id", 8, offset, end)
    _take("sender_id", 8, offset, end)
    cdef Py_ssize_t size = _take_block("token", data, offset, end)
    if not size:
        raise DecodeError("token", offset[0], "is empty")
    return size


@cython.final
@cython.freelist(256)
@cython.no_gc  # bytes, a class and a layout: no cycle goes through one
@cython.auto_pickle(False)
cdef class Frame:
    def __init__(self):
        raise TypeError("frames are made by decode()")

    cdef const unsigned char* data(self) except NULL:
        if self._wire is None:
            raise TypeError("frames are made by decode()")
        return <const unsigned char*>PyBytes_AS_STRING(self._wire)

    @property
    def version(self):
        return C_VERSION

    @property
    def type(self):
        return self.data()[1]

    @property
    def sequence_id(self):
        return _read_le(self.data() + 2, 8)

    @property
    def sender_id(self):
        return _read_le(self.data() + 10, 8)

    @property
    def token(self):
        return PyBytes_FromStringAndSize(<const char*>self.data() + 20, self._token_size)

    def verify(self, key):
        self.data()
        verifier = getattr(key, "verifier", None)
        if verifier is None:
            raise TypeError(f"verify() takes a PublicKey, not {_kind_name(key)}")
        if not verifier.verify(self._wire, 22 + self._token_size, self._signature_size):
            raise self.refusal()
        return self.record()

    cdef object record(self):
        """Make the typed message; the signature has been verified."""
        record = (<PyTypeObject*>self._cls).tp_new(self._cls, <PyObject*>_EMPTY, NULL)
        (<Record?>record)._values = self.values(self.data())
        PyObject_GC_UnTrack(<PyObject*>record)  # numbers, bytes and text: there is nothing for the collector to find
        return record

    cdef object refusal(self):
        """Make the error for a signature that does not verify."""
        return SignatureError(
            f"{self._layout.name} {self.sequence_id} of sender {self.sender_id:x} is not signed by its key"
        )

    cdef tuple values(self, const unsigned char* data):
        """Make the values of a message whose form has been checked."""
        cdef Layout layout = self._layout
        cdef Py_ssize_t offset = 22 + self._token_size + self._signature_size, size
        cdef int index, kind
        cdef list values = [_read_le(data + 2, 8), _read_le(data + 10, 8), self.token]
        for index in range(layout.size):
            kind = layout.kinds[index]
            if kind <= K_U64:
                size = _width(kind)
                values.append(_read_le(data + offset, size))
            else:
                size = data[offset] << 8 | data[offset + 1]
                offset += 2
                if kind == K_BINARY:
                    values.append(PyBytes_FromStringAndSize(<const char*>data + offset, size))
                elif kind == K_TEXTZ and size > 0 and data[offset + size - 1] == 0:
                    values.append(PyUnicode_DecodeUTF8(<const char*>data + offset, size - 1, NULL))
                else:
                    values.append(PyUnicode_DecodeUTF8(<const char*>data + offset, size, NULL))
            offset += size
        cdef tuple made = tuple(values)
        PyObject_GC_UnTrack(<PyObject*>made)  # sooner or later the collector would do so itself
        return made

    def __reduce__(self):
        raise TypeError("a frame is not copied or pickled; decode its bytes again")

    def __repr__(self):
        self.data()
        return (
            f"<unverified {self._layout.name} sequence_id={self.sequence_id} "
            f"sender_id={self.sender_id:x} token={self.token!r}>"
        )


@cython.final
cdef class Schema:
    def __cinit__(self):
        self._classes = [None] * 256
        self._layouts = [None] * 256

    def add(self, cls):
        if not issubclass(cls, Record):
            raise TypeError(f"{cls!r} is no record class")
        cdef Layout layout = cls.layout
        if self._classes[layout.type] is not None:
            raise ValueError(f"type 0x{layout.type:02X} is taken")
        self._classes[layout.type] = cls
        self._layouts[layout.type] = layout

    def __getitem__(self, type):
        if isinstance(type, slice):
            return [cls for cls in self._classes if cls is not None][type]
        cls = self._classes[type] if 0 <= type <= 0xFF else None
        if cls is None:
            raise KeyError(type)
        return cls

    def peek(self, wire):
        cdef int code = _open(wire)
        cdef const unsigned char* data = <const unsigned char*>PyBytes_AS_STRING(wire)
        cdef Py_ssize_t offset = 2, end = PyBytes_GET_SIZE(wire), size
        if code != 0 and self._classes[code] is None:
            raise DecodeError("type", 1, f"0x{code:02X} is not known")
        size = _take_header(data, &offset, end)
        if code == 0 and offset != end:
            raise DecodeError("message", offset, f"{end - offset} bytes left over")
        token = PyBytes_FromStringAndSize(<const char*>data + 20, size)
        return Header(C_VERSION, code, _read_le(data + 2, 8), _read_le(data + 10, 8), token)

    cpdef Frame decode(self, wire):
        cdef int code = _open(wire), kind, index
        cdef const unsigned char* data = <const unsigned char*>PyBytes_AS_STRING(wire)
        cdef Py_ssize_t offset = 2, end = PyBytes_GET_SIZE(wire), size, token_size, signature_size
        cls = self._classes[code]
        if cls is None:
            raise DecodeError("type", 1, f"0x{code:02X} is not known")
        cdef Layout layout = self._layouts[code]
        token_size = _take_header(data, &offset, end)
        signature_size = _take_block("signature", data, &offset, end)
        for index in range(layout.size):
            kind = layout.kinds[index]
            if kind <= K_U64:
                if _width(kind) > end - offset:
                    raise _short(layout.names[index + 3], offset, _width(kind), end - offset)
                offset += _width(kind)
                continue
            size = _take_block(layout.names[index + 3], data, &offset, end)
            if kind != K_BINARY:
                _check_text(layout.names[index + 3], kind, data, offset - size, size)
        for index in range(<int>layout.padding):
            if index == 0:
                _take("padding", layout.padding, &offset, end)
            if data[offset - layout.padding + index] != 0:
                raise DecodeError("padding", offset - layout.padding, "is not zero")
        if offset != end:
            raise DecodeError("message", offset, f"{end - offset} bytes left over")
        cdef Frame frame = Frame.__new__(Frame)
        frame._wire = wire
        frame._cls = cls
        frame._layout = layout
        frame._token_size = <int>token_size
        frame._signature_size = <int>signature_size
        return frame
