# cython: language_level=3, boundscheck=False, wraparound=False, nonecheck=True, initializedcheck=False
"""Native twin of ``_codec_py``: the same names, values and exceptions; see there for the contract.

A frame keeps the received bytes and where its parts lie; decode checks the whole form without making Python objects,
and values are made when the signature has been verified. ``nonecheck`` stays on: ``Frame.__new__(Frame)`` is legal Python
and must end in an exception.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_Clear, PyErr_Occurred
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint64_t
from libc.string cimport memchr, memcpy, memset

from ._codec_py import BINARY, HEADER, MAX_MESSAGE_SIZE, TEXT, TEXTZ, U8, U32, U64, VERSION, Header
from .capi cimport *
from .errors import DecodeError, EncodeError, SignatureError

cdef enum:
    C_VERSION = 5
    C_MAX = 0xFFFF
    BLOCK_MAX = 0xFFFF
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


include "_record.pxi"


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
    """One well-formed message whose signature has not been verified: the header, and no way to the body but verify."""

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
        cdef Record record = _new(self._cls)
        _open_fields(record, self._layout, self.data(), self._token_size, self._signature_size)
        return record

    cdef object refusal(self):
        """Make the error for a signature that does not verify."""
        return SignatureError(
            f"{self._layout.name} {self.sequence_id} of sender {self.sender_id:x} is not signed by its key"
        )

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
        """Check the form of a whole message and return its frame. Raises DecodeError, and nothing else."""
        cdef int code = _open(wire), kind, index
        cdef const unsigned char* data = <const unsigned char*>PyBytes_AS_STRING(wire)
        cdef Py_ssize_t offset = 2, end = PyBytes_GET_SIZE(wire), size, token_size, signature_size
        cls = self._classes[code]
        if cls is None:
            raise DecodeError("type", 1, f"0x{code:02X} is not known")
        cdef Layout layout = self._layouts[code]
        token_size = _take_header(data, &offset, end)
        signature_size = _take_block("signature", data, &offset, end)
        for index in range(IN_HEADER, layout.size):
            kind = layout.kinds[index]
            if kind <= K_U64:
                if _width(kind) > end - offset:
                    raise _short(layout.names[index], offset, _width(kind), end - offset)
                offset += _width(kind)
                continue
            size = _take_block(layout.names[index], data, &offset, end)
            if kind != K_BINARY:
                _check_text(layout.names[index], kind, data, offset - size, size)
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
