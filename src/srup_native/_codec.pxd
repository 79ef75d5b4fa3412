"""What _verify.pyx needs to see of _codec.pyx."""

cdef enum:
    MAX_BODY = 8

cdef class Layout:
    cdef readonly int type
    cdef readonly str name
    cdef readonly tuple body
    cdef readonly tuple fields
    cdef readonly tuple names
    cdef readonly Py_ssize_t padding
    cdef int size  # body fields
    cdef int kinds[MAX_BODY]

cdef class Record:
    cdef tuple _values

cdef class Frame:
    cdef bytes _wire
    cdef object _cls
    cdef Layout _layout
    cdef int _token_size
    cdef int _signature_size

    cdef const unsigned char* data(self) except NULL
    cdef object record(self)
    cdef object refusal(self)
    cdef tuple values(self, const unsigned char* data)

cdef class Schema:
    cdef list _classes
    cdef list _layouts

    cpdef Frame decode(self, wire)
