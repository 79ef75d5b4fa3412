"""What _verify.pyx needs to see of _codec.pyx."""

from cpython.object cimport PyObject

from .capi cimport PyMemberDef

cdef enum:
    IN_HEADER = 3  # fields
    MAX_FIELDS = IN_HEADER + 8

cdef class Layout:
    cdef readonly int type
    cdef readonly str name
    cdef readonly tuple body
    cdef readonly tuple fields
    cdef readonly tuple names
    cdef readonly Py_ssize_t padding
    cdef int size  # fields
    cdef int kinds[MAX_FIELDS]
    cdef PyMemberDef members[MAX_FIELDS]

cdef class Record:
    cdef PyObject* values[MAX_FIELDS]  # owned, in the order of the layout, NULL behind the last

    cdef tuple tuple(self)

cdef class Frame:
    cdef bytes _wire
    cdef object _cls
    cdef Layout _layout
    cdef int _token_size
    cdef int _signature_size

    cdef const unsigned char* data(self) except NULL
    cdef object record(self)
    cdef object refusal(self)

cdef class Schema:
    cdef list _classes
    cdef list _layouts

    cpdef Frame decode(self, wire)
