# Layouts, records, and records to bytes: a part of ``_codec.pyx``.

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
        if type not in range(1, 0x100) or padding not in range(9) or len(body) > MAX_FIELDS - IN_HEADER:
            raise ValueError(f"{name}: type 1..255, padding 0..8 and at most 8 fields are possible")
        if any([kind not in range(K_TEXTZ + 1) for _, kind in body]):
            raise ValueError(f"{name}: unknown kind of field")
        self.type = type
        self.name = name
        self.body = body
        self.fields = HEADER + self.body
        self.names = tuple([field for field, _ in self.fields])
        self.padding = padding
        self.size = <int>len(self.fields)
        cdef int index
        for index in range(self.size):
            self.kinds[index] = self.fields[index][1]


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


cdef bint _fits(int kind, PyObject* value) noexcept:
    """Return whether a value can be kept as it is; what cannot may still be one that ``_check`` takes."""
    cdef uint64_t number
    cdef Py_ssize_t size
    if kind <= K_U64:
        if not PyLong_CheckExact(value):
            return False
        number = PyLong_AsUnsignedLongLong(value)
        if number == U64_MAX and PyErr_Occurred():
            PyErr_Clear()
            return False
        return kind == K_U64 or number >> (8 * _width(kind)) == 0
    if kind == K_BINARY:
        return PyBytes_CheckExact(<object>value) and PyBytes_GET_SIZE(<object>value) <= BLOCK_MAX
    if not PyUnicode_CheckExact(value) or not PyUnicode_IS_COMPACT_ASCII(value):
        return False
    size = PyUnicode_GET_LENGTH(value)
    return size < BLOCK_MAX and (kind == K_TEXT or memchr(PyUnicode_DATA(value), 0, size) == NULL)


cdef Record _new(cls):
    """Make an empty record, hidden from the collector: it holds numbers, bytes and text, unless its class adds more."""
    cdef PyTypeObject* type = <PyTypeObject*>cls
    record = type.tp_new(cls, <PyObject*>_EMPTY, NULL)
    if not isinstance(record, Record):
        raise TypeError(f"{cls.__name__}.__new__ makes no record")
    if type.tp_dictoffset == 0 and type.tp_basicsize == (<PyTypeObject*>Record).tp_basicsize and PyObject_IS_GC(record):
        PyObject_GC_UnTrack(record)
    return <Record>record


cdef inline void _put(Record record, int index, value) noexcept:
    cdef PyObject* old = record.values[index]
    Py_INCREF(value)
    record.values[index] = <PyObject*>value
    Py_XDECREF(old)


cdef inline void _end(Record record, int size) noexcept:
    """Drop what a record that is filled again had behind ``size`` values."""
    cdef PyObject* old
    while size < MAX_FIELDS and record.values[size] != NULL:
        old, record.values[size] = record.values[size], NULL
        Py_XDECREF(old)
        size += 1


cdef int _fill(Record record, Layout layout, PyObject** values) except -1:
    """Check the values, which the caller owns, and put them into the record."""
    cdef list made = None  # keeps alive what a check puts in the place of a value
    cdef int index
    for index in range(layout.size):
        if not _fits(layout.kinds[index], values[index]):
            if made is None:
                made = []
            value = _check(layout.names[index], layout.kinds[index], <object>values[index])
            made.append(value)
            values[index] = <PyObject*>value
    if not PyBytes_GET_SIZE(<object>values[2]):
        raise EncodeError("token", "is empty")
    for index in range(layout.size):
        _put(record, index, <object>values[index])
    _end(record, layout.size)
    return 0


cdef object _unnamed(Py_ssize_t count):
    return TypeError(f"Record.__init__() takes 1 positional argument but {count + 1} were given")


cdef object _misnamed(Layout layout, given):
    missing = [name for name in layout.names if name not in given]
    unknown = [name for name in given if name not in layout.names]
    return TypeError(f"{layout.name}: missing {missing}, unknown {unknown}")


cdef object _construct(PyObject* cls, PyObject** arguments, size_t count, PyObject* keywords):
    """Make a record as ``cls(**fields)`` does, without a dictionary of the fields."""
    cdef Layout layout = <Layout?>(<object>cls).layout
    cdef Py_ssize_t given = PyTuple_GET_SIZE(keywords) if keywords != NULL else 0, at
    cdef PyObject* values[MAX_FIELDS]
    cdef int index
    if PyVectorcall_NARGS(count):
        raise _unnamed(PyVectorcall_NARGS(count))
    if given != layout.size:
        raise _misnamed(layout, <object>keywords if keywords != NULL else _EMPTY)
    for index in range(layout.size):
        name = layout.names[index]
        at = index
        if PyTuple_GET_ITEM(keywords, at) != <PyObject*>name:
            for at in range(given):
                if <object>PyTuple_GET_ITEM(keywords, at) == name:
                    break
            else:
                raise _misnamed(layout, <object>keywords)
        values[index] = arguments[at]
    cdef Record record = _new(<object>cls)
    _fill(record, layout, values)
    return record


cdef class Record:
    def __dealloc__(self):
        cdef int index
        for index in range(MAX_FIELDS):
            Py_XDECREF(self.values[index])

    @classmethod
    def bind(cls, Layout layout not None):
        cdef Record probe = Record.__new__(Record)
        cdef int index
        cls.layout = layout
        Py_INCREF(layout)  # the attributes point into it, and whoever has one may keep it
        for index in range(layout.size):
            layout.members[index].name = PyUnicode_AsUTF8AndSize(layout.names[index], NULL)
            layout.members[index].type = T_OBJECT_EX
            layout.members[index].flags = READONLY
            layout.members[index].offset = <char*>&probe.values[index] - <char*><PyObject*>probe
            setattr(cls, layout.names[index], PyDescr_NewMember(<PyTypeObject*>cls, &layout.members[index]))
        if cls.__init__ is Record.__init__ and cls.__new__ is Record.__new__:
            set_vectorcall(cls, <void*>_construct)

    def __init__(self, /, *unnamed, **fields):
        cdef Layout layout = self.layout
        cdef PyObject* values[MAX_FIELDS]
        cdef int index
        if unnamed:
            raise _unnamed(len(unnamed))
        if len(fields) != layout.size:
            raise _misnamed(layout, fields)
        for index in range(layout.size):
            if layout.names[index] not in fields:
                raise _misnamed(layout, fields)
            values[index] = <PyObject*>fields[layout.names[index]]
        _fill(self, layout, values)

    cdef tuple tuple(self):
        """Return the values; AttributeError for a record that was never filled."""
        cdef int index, size = 0
        while size < MAX_FIELDS and self.values[size] != NULL:
            size += 1
        if not size:
            raise AttributeError("the record has no values")
        return tuple([<object>self.values[index] for index in range(size)])

    @classmethod
    def _restore(cls, values):
        return cls(**dict(zip(cls.layout.names, values, strict=True)))

    def __reduce__(self):
        return type(self)._restore, (self.tuple(),)

    def __setattr__(self, name, value):
        raise AttributeError(f"{self.layout.name} is immutable: cannot set {name}")

    def __delattr__(self, name):
        raise AttributeError(f"{self.layout.name} is immutable: cannot delete {name}")

    def __iter__(self):
        return iter(zip(self.layout.names, self.tuple(), strict=True))

    def __eq__(self, other):
        if type(other) is not type(self):
            return NotImplemented
        return self.tuple() == (<Record>other).tuple()

    def __hash__(self):
        return hash((self.layout.type, self.tuple()))

    def __repr__(self):
        return f"{self.layout.name}({', '.join([f'{name}={value!r}' for name, value in self])})"


cdef inline bint _is_ascii(const unsigned char* at, Py_ssize_t size) noexcept:
    cdef unsigned char high = 0
    cdef Py_ssize_t i
    for i in range(size):
        high |= at[i]
    return high < 0x80


cdef object _text(const unsigned char* at, Py_ssize_t size):
    if not _is_ascii(at, size):
        return PyUnicode_DecodeUTF8(<const char*>at, size, NULL)
    text = PyUnicode_New(size, 0x7F)
    memcpy(<void*>PyUnicode_DATA(<PyObject*>text), at, size)
    return text


cdef int _open_fields(
    Record record, Layout layout, const unsigned char* data, Py_ssize_t token_size, Py_ssize_t signature_size
) except -1:
    """Fill a new record with the values of a message whose form has been checked."""
    cdef Py_ssize_t offset = 22 + token_size + signature_size, size
    cdef int index, kind
    for index in range(layout.size):
        kind = layout.kinds[index]
        if index < 2:
            value = _read_le(data + 2 + 8 * index, 8)
        elif index == 2:
            value = PyBytes_FromStringAndSize(<const char*>data + 20, token_size)
        elif kind <= K_U64:
            value = _read_le(data + offset, _width(kind))
            offset += _width(kind)
        else:
            size = data[offset] << 8 | data[offset + 1]
            offset += 2
            if kind == K_BINARY:
                value = PyBytes_FromStringAndSize(<const char*>data + offset, size)
            else:
                value = _text(data + offset, size - (kind == K_TEXTZ and size > 0 and data[offset + size - 1] == 0))
            offset += size
        _put(record, index, value)
    _end(record, layout.size)
    return 0


def pack(record):
    if not isinstance(record, Record):
        raise TypeError(f"pack() takes a record, not {_kind_name(record)}")
    cdef Layout layout = record.layout
    cdef PyObject** values = (<Record>record).values
    cdef Py_ssize_t size = 20 + layout.padding, length
    cdef int index, kind
    for index in range(MAX_FIELDS):
        if (values[index] == NULL) == (index < layout.size):
            raise TypeError("the record has no values")
    cdef bytes token = <bytes?><object>values[2]
    size += PyBytes_GET_SIZE(token)
    for index in range(IN_HEADER, layout.size):
        kind = layout.kinds[index]
        if kind <= K_U64:
            size += _width(kind)
        elif kind == K_BINARY:
            size += 2 + len(<bytes?><object>values[index])
        else:
            PyUnicode_AsUTF8AndSize(<object>values[index], &length)
            size += 2 + length + (kind == K_TEXTZ)
    cdef bytes signed = PyBytes_FromStringAndSize(NULL, size)
    cdef unsigned char* at = <unsigned char*>PyBytes_AS_STRING(signed)
    at[0] = C_VERSION
    at[1] = <unsigned char>layout.type
    _write_le(at + 2, <object>values[0], 8)
    _write_le(at + 10, <object>values[1], 8)
    at = _write_block(at + 18, PyBytes_AS_STRING(token), PyBytes_GET_SIZE(token))
    cdef const char* text
    for index in range(IN_HEADER, layout.size):
        kind = layout.kinds[index]
        value = <object>values[index]
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
