"""What is used of CPython's C API beyond Cython's own declarations. See its manual for each."""

from cpython.object cimport PyObject, PyTypeObject
from libc.stdint cimport uint64_t

cdef extern from "Python.h":
    """
    #include <structmember.h>
    #define set_vectorcall(cls, function) ((void)(((PyTypeObject *)(cls))->tp_vectorcall = (vectorcallfunc)(function)))
    """
    void set_vectorcall(object cls, void* function)  # how the class itself is called
    Py_ssize_t PyVectorcall_NARGS(size_t count)

    bint PyObject_IS_GC(object value)
    void PyObject_GC_UnTrack(object value)

    Py_ssize_t PyTuple_GET_SIZE(PyObject* items)
    PyObject* PyTuple_GET_ITEM(PyObject* items, Py_ssize_t index)  # borrowed

    enum: U64_MAX "UINT64_MAX"
    uint64_t PyLong_AsUnsignedLongLong(PyObject* number) noexcept  # U64_MAX: ask PyErr_Occurred()
    bint PyLong_CheckExact(PyObject* value)

    bint PyUnicode_CheckExact(PyObject* value)
    bint PyUnicode_IS_COMPACT_ASCII(PyObject* text)
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject* text)
    const void* PyUnicode_DATA(PyObject* text)
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    object PyUnicode_New(Py_ssize_t size, Py_UCS4 highest)

    ctypedef struct PyMemberDef:
        const char* name
        int type
        Py_ssize_t offset
        int flags
    int T_OBJECT_EX
    int READONLY
    object PyDescr_NewMember(PyTypeObject* cls, PyMemberDef* member)
