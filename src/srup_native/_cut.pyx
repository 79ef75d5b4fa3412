# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""Native twin of ``_cut_py``: the same values and exceptions; see there for the contract."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.string cimport memcpy

__all__ = ["cut"]

cdef enum:
    LONGEST_HEADER = 5
    PUBLISH = 3
    QOS = 0x06
    QOS_1 = 0x02
    ACKNOWLEDGEMENT = 4  # bytes of a PUBACK
    GATHERED = 256  # acknowledgements that are put together at a time

cdef struct Packet:
    Py_ssize_t begin
    Py_ssize_t end  # where it begins if it is not whole
    Py_ssize_t body
    Py_ssize_t topic  # where each part begins
    Py_ssize_t topic_end
    Py_ssize_t payload
    const char* fault


def cut(bytes received not None, Py_ssize_t begin, bint is_5, Py_ssize_t limit, Py_ssize_t most):
    cdef const unsigned char* data = <const unsigned char*>PyBytes_AS_STRING(received)
    cdef Py_ssize_t there = PyBytes_GET_SIZE(received)
    cdef unsigned char gathered[GATHERED * ACKNOWLEDGEMENT]
    cdef int filled = 0, first = -1
    cdef bint odd = False
    cdef list topics = [], payloads = []
    cdef bytes acknowledgements = b""
    cdef Packet packet
    cdef Py_ssize_t end = begin
    if not 0 <= begin <= there:
        raise IndexError(f"{begin} lies outside of the {there} bytes that were received")
    while len(topics) < most and not odd:
        packet.fault = NULL
        packet.begin = packet.end = end
        _find_end(&packet, data, there, limit)
        if packet.fault == NULL:
            if packet.end == end or (first >= 0 and (data[end] ^ first) & (0xF0 | QOS)):
                break
            if data[end] >> 4 != PUBLISH:
                return packet.end, [], [], b""
            _open(&packet, data, is_5)
        if packet.fault != NULL:
            if topics:
                break
            if packet.end - packet.begin > limit:
                raise ValueError(f"a packet of {packet.end - packet.begin} bytes, although {limit} is our limit")
            raise ValueError(packet.fault.decode("ascii"))
        try:
            topic = PyUnicode_DecodeUTF8(<const char*>data + packet.topic, packet.topic_end - packet.topic, NULL)
        except UnicodeDecodeError:
            if topics:
                break
            topic = PyBytes_FromStringAndSize(<const char*>data + packet.topic, packet.topic_end - packet.topic)
            odd = True
        topics.append(topic)
        payloads.append(PyBytes_FromStringAndSize(<const char*>data + packet.payload, packet.end - packet.payload))
        first, end = data[end], packet.end
        if first & QOS:
            if filled == GATHERED:
                acknowledgements += PyBytes_FromStringAndSize(<const char*>gathered, filled * ACKNOWLEDGEMENT)
                filled = 0
            gathered[filled * ACKNOWLEDGEMENT] = 0x40
            gathered[filled * ACKNOWLEDGEMENT + 1] = 2
            memcpy(&gathered[filled * ACKNOWLEDGEMENT + 2], data + packet.topic_end, 2)
            filled += 1
    return end, topics, payloads, acknowledgements + PyBytes_FromStringAndSize(
        <const char*>gathered, filled * ACKNOWLEDGEMENT
    )


cdef void _find_end(Packet* packet, const unsigned char* data, Py_ssize_t there, Py_ssize_t limit) noexcept nogil:
    """Find where a packet ends, of which ``there`` bytes may belong to it."""
    cdef Py_ssize_t size = 0
    packet.body = _variable(data, packet.begin + 1, there, &size)
    if packet.body == 0:
        if there - packet.begin >= LONGEST_HEADER:
            packet.fault = "a packet without a valid length"
    elif packet.body + size - packet.begin > limit:
        packet.end = packet.body + size
        packet.fault = "a packet that is too long"
    elif packet.body + size <= there:
        packet.end = packet.body + size


cdef void _open(Packet* packet, const unsigned char* data, bint is_5) noexcept nogil:
    """Find the parts of a whole PUBLISH packet."""
    cdef unsigned char quality = data[packet.begin] & QOS
    cdef Py_ssize_t properties = 0
    cdef Py_ssize_t at = packet.body + 2
    if quality != 0 and quality != QOS_1:
        packet.fault = "a message with QoS 2, which nobody subscribed with"
        return
    packet.fault = "a damaged message"
    if at > packet.end:
        return
    packet.topic = at
    packet.topic_end = at = at + (data[at - 2] << 8 | data[at - 1])
    if packet.topic_end == packet.topic:
        return
    if quality:
        at += 2
        if at > packet.end or not (data[at - 2] or data[at - 1]):
            return
    if is_5:
        at = _variable(data, at, packet.end, &properties)
        if at == 0:
            return
        at += properties
    if at > packet.end:
        return
    packet.payload = at
    packet.fault = NULL


cdef Py_ssize_t _variable(
    const unsigned char* data, Py_ssize_t at, Py_ssize_t end, Py_ssize_t* value
) noexcept nogil:
    """Read a variable byte integer; return where it ends, 0 if it does not."""
    cdef int shift = 0
    value[0] = 0
    while at < end and shift < 28:
        value[0] |= <Py_ssize_t>(data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return at
        shift += 7
    return 0
