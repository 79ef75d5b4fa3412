# cython: language_level=3
"""Native twin of ``_verify_py``: libcrypto without the GIL; see there for the contract.

Every key prepares one context when it is first used. An operation works on a copy of it, so that threads never share a
context in use. What libcrypto lacks (ML-DSA) or an old one does slowly goes through the pure twin, which asks
the libcrypto that comes with ``cryptography``.

RSA-2048 keys with e = 65537 have the constants of the multi-buffer kernel (rsa_mb.c) where the CPU can run it, and get
their context only when OpenSSL is asked. ``verify_many`` shows eight messages at a time to the kernel, which may only
accept; OpenSSL decides about everything that it does not accept.
"""

import os
from collections import deque

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport (
    NOWAIT_LOCK,
    WAIT_LOCK,
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_release_lock,
    PyThread_type_lock,
)
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from posix.unistd cimport getpid

from . import _verify_py
from ._codec cimport Frame, Schema
from .errors import SrupError
from .libcrypto cimport *

cdef extern from "Python.h":
    unsigned long PYTHREAD_INVALID_THREAD_ID
    unsigned long PyThread_start_new_thread(void (*function)(void*) noexcept nogil, void* argument)

cdef extern from "rsa_mb.h" nogil:
    enum:
        RSA_MB_LANES
        RSA_MB_BYTES
        RSA_MB_DIGEST
    ctypedef struct rsa_mb_key:
        pass
    ctypedef struct rsa_mb_job:
        const rsa_mb_key* key
        const unsigned char* signature
        const unsigned char* digest
    int rsa_mb_supported()
    int rsa_mb_prepare(rsa_mb_key* key, const unsigned char* modulus)
    void rsa_mb_prefetch(const rsa_mb_key* key)
    unsigned rsa_mb_accept(const rsa_mb_job* jobs)

cdef enum:
    RSA = 0
    ECDSA = 1
    ED25519 = 2

cdef enum:
    OPENSSL_4 = 0x40000000  # measured: RSA-3072 and 4096 signing takes less than half the time of OpenSSL 3.0, Ed25519 0.9

cdef dict _ALGORITHMS = {"rsa": RSA, "ecdsa": ECDSA, "ed25519": ED25519}


cdef void _sha256(
    unsigned char* digest, const unsigned char* first, size_t size, const unsigned char* second, size_t length
) noexcept nogil:
    cdef SHA256_CTX state
    SHA256_Init(&state)
    SHA256_Update(&state, first, size)
    SHA256_Update(&state, second, length)
    SHA256_Final(digest, &state)


cdef int _expect_bytes(str what, value) except -1:
    if type(value) is not bytes:
        raise TypeError(f"{what} bytes, not {type(value).__name__}")
    return 0


cdef class _Key:
    """A loaded key with its prepared context: ``context`` for RSA and ECDSA, ``one_shot`` for Ed25519."""

    cdef EVP_PKEY* key
    cdef EVP_PKEY_CTX* context
    cdef EVP_MD_CTX* one_shot

    def __dealloc__(self):
        self.unload()

    cdef void unload(self) noexcept:
        EVP_MD_CTX_free(self.one_shot)
        EVP_PKEY_CTX_free(self.context)
        EVP_PKEY_free(self.key)
        self.one_shot, self.context, self.key = NULL, NULL, NULL

    cdef int prepare(self, int algorithm, bint signs, bint whole) except -1:
        """Make the context; ``signs`` says for which operation, ``whole`` that the key took all of its bytes."""
        cdef bint ready
        if self.key == NULL or not whole:
            ERR_clear_error()
            raise ValueError("this is no key of the algorithm")
        if not EVP_PKEY_is_a(self.key, "RSA" if algorithm == RSA else "EC" if algorithm == ECDSA else "ED25519"):
            raise ValueError("this is no key of the algorithm")
        if algorithm == ED25519:
            self.one_shot = EVP_MD_CTX_new()
            if self.one_shot == NULL:
                raise MemoryError
            ready = 0 < (
                EVP_DigestSignInit(self.one_shot, NULL, NULL, NULL, self.key) if signs
                else EVP_DigestVerifyInit(self.one_shot, NULL, NULL, NULL, self.key)
            )
        else:
            self.context = EVP_PKEY_CTX_new(self.key, NULL)
            if self.context == NULL:
                raise MemoryError
            ready = (
                0 < (EVP_PKEY_sign_init(self.context) if signs else EVP_PKEY_verify_init(self.context))
                and (algorithm != RSA or 0 < EVP_PKEY_CTX_set_rsa_padding(self.context, RSA_PKCS1_PADDING))
                and 0 < EVP_PKEY_CTX_set_signature_md(self.context, EVP_sha256())
            )
        if not ready:
            ERR_clear_error()
            raise ValueError("this is no key of the algorithm")
        return 0


cdef enum:
    MAX_LOADED = 16384  # contexts of keys that have the kernel too, so that forgeries cannot fill the memory (T9)

_loaded = deque()
"""The verifiers that have such a context, in the order of loading."""


cdef class _Verifier(_Key):
    cdef int algorithm
    cdef bytes der
    cdef rsa_mb_key* lanes  # NULL for a key, a CPU or a build without the kernel
    cdef int users  # that may be working with the context; only ever changed with the GIL

    def __cinit__(self, int algorithm, public_der):
        _expect_bytes("a key comes as", public_der)
        self.algorithm = algorithm
        self.der = public_der
        self.load()
        if algorithm == RSA and rsa_mb_supported():
            self.lanes = _lanes(self.key)
        if self.lanes != NULL:
            self.unload()  # most keys of a large fleet never need it

    def __dealloc__(self):
        free(self.lanes)

    cdef int load(self) except -1:
        """Make the context unless it is there. With the GIL, which makes it happen once."""
        if self.key != NULL:
            return 0
        cdef const unsigned char* der = <const unsigned char*>PyBytes_AS_STRING(self.der)
        cdef const unsigned char* end = der + PyBytes_GET_SIZE(self.der)
        self.key = d2i_PUBKEY(NULL, &der, <long>(end - der))
        try:
            self.prepare(self.algorithm, False, der == end)
        except:
            self.unload()  # a key without its context must not look loaded the next time
            raise
        if self.lanes != NULL and _kernel:
            _loaded.append(self)
            if len(_loaded) > MAX_LOADED:
                (<_Verifier>_loaded.popleft()).release()
        return 0

    cdef int release(self) except -1:
        """Give the context's memory back; it is made again when OpenSSL is asked the next time."""
        if self.users:
            _loaded.append(self)
        else:
            self.unload()
        return 0

    def verify(self, wire, Py_ssize_t offset, Py_ssize_t size):
        _expect_bytes("verify() takes", wire)
        cdef Py_ssize_t end = PyBytes_GET_SIZE(wire)
        cdef const unsigned char* data = <const unsigned char*>PyBytes_AS_STRING(wire)
        cdef unsigned char digest[SHA256_DIGEST_LENGTH]
        cdef int verdict
        if offset < 2 or size < 0 or offset > end or size > end - offset:
            raise ValueError("the signature must lie inside the message")
        self.load()
        self.users += 1
        with nogil:
            _sha256(digest, data, offset - 2, data + offset + size, end - offset - size)
            verdict = self.decide(data + offset, size, digest)
        self.users -= 1
        if verdict == NO_MEMORY:
            raise MemoryError
        return verdict == GOOD

    cdef int decide(self, const unsigned char* signature, size_t size, const unsigned char* digest) noexcept nogil:
        """Return GOOD, BAD or NO_MEMORY by OpenSSL; the key has been loaded."""
        cdef EVP_PKEY_CTX* context
        cdef EVP_MD_CTX* one_shot
        cdef int result
        if self.one_shot != NULL:
            one_shot = EVP_MD_CTX_new()
            if one_shot == NULL or EVP_MD_CTX_copy_ex(one_shot, self.one_shot) != 1:
                EVP_MD_CTX_free(one_shot)
                return NO_MEMORY
            result = EVP_DigestVerify(one_shot, signature, size, digest, SHA256_DIGEST_LENGTH)
            EVP_MD_CTX_free(one_shot)
        else:
            context = EVP_PKEY_CTX_dup(self.context)
            if context == NULL:
                return NO_MEMORY
            result = EVP_PKEY_verify(context, signature, size, digest, SHA256_DIGEST_LENGTH)
            EVP_PKEY_CTX_free(context)
        if result != 1:
            ERR_clear_error()
        return GOOD if result == 1 else BAD


cdef rsa_mb_key* _lanes(const EVP_PKEY* key) except? NULL:
    """Return the kernel's constants for a key, NULL if it is not of the only kind that the kernel takes."""
    cdef BIGNUM* n = NULL
    cdef BIGNUM* e = NULL
    cdef unsigned char modulus[RSA_MB_BYTES]
    cdef rsa_mb_key* lanes = NULL
    if (
        EVP_PKEY_get_bn_param(key, "n", &n) == 1
        and EVP_PKEY_get_bn_param(key, "e", &e) == 1
        and BN_num_bits(n) == 8 * RSA_MB_BYTES
        and BN_is_word(e, 65537)
        and BN_bn2binpad(n, modulus, RSA_MB_BYTES) == RSA_MB_BYTES
    ):
        lanes = <rsa_mb_key*>malloc(sizeof(rsa_mb_key))
        if lanes != NULL and not rsa_mb_prepare(lanes, modulus):
            free(lanes)
            lanes = NULL
    BN_free(n)
    BN_free(e)
    ERR_clear_error()
    return lanes


# --- Batches ---------------------------------------------------------------------------------------------------------

cdef enum:
    SHARE = 16  # messages that a thread takes at a time: two passes of the kernel
    WINDOW = 64  # shares on their way at a time: what bounds the memory of a batch
    LEFT = 4  # shares that are left to each helper while results are made, which for a window takes about as long

cdef enum _Verdict:
    BAD = 0
    GOOD = 1
    UNDECIDED = 2
    NO_MEMORY = 3

cdef struct _Job:
    const unsigned char* data
    size_t end
    size_t offset
    size_t size
    const rsa_mb_key* lanes
    bint loaded  # whether OpenSSL can be asked; only ever set with the GIL
    unsigned char digest[SHA256_DIGEST_LENGTH]
    int verdict


cdef void _hash_and_accept(_Job* jobs, int count) noexcept nogil:
    """Fill in the digests and accept what the kernel accepts; the rest stays UNDECIDED."""
    cdef rsa_mb_job group[RSA_MB_LANES]
    cdef _Job* members[RSA_MB_LANES]
    cdef _Job* job
    cdef int index, lane, filled = 0
    cdef unsigned accepted
    for index in range(count):
        job = &jobs[index]
        job.verdict = UNDECIDED
        if job.lanes != NULL:
            rsa_mb_prefetch(job.lanes)  # in a large fleet it is in no cache, and the hash gives the memory time
        _sha256(
            job.digest, job.data, job.offset - 2, job.data + job.offset + job.size, job.end - job.offset - job.size
        )
    for index in range(count + 1):
        if index < count:
            job = &jobs[index]
            if job.lanes == NULL or job.size != RSA_MB_BYTES:
                continue
            members[filled] = job
            group[filled].key = job.lanes
            group[filled].signature = job.data + job.offset
            group[filled].digest = job.digest
            filled += 1
        # A whole pass for a single message takes a sixth longer than OpenSSL, if that is ready for it.
        if filled == RSA_MB_LANES or (index == count and (filled > 1 or (filled == 1 and not members[0].loaded))):
            for lane in range(filled, RSA_MB_LANES):
                group[lane] = group[0]
            accepted = rsa_mb_accept(group)
            for lane in range(filled):
                if accepted >> lane & 1:
                    members[lane].verdict = GOOD
            filled = 0


@cython.final
@cython.internal
cdef class _Share:
    """Some messages of a batch, which one thread at a time works on."""

    cdef list frames
    cdef list verifiers
    cdef int count
    cdef bint hashed
    cdef bint done  # guarded by the queue
    cdef Py_ssize_t places[SHARE]
    cdef void* borrowed[SHARE]  # the verifiers, for work without the GIL
    cdef _Job jobs[SHARE]

    def __cinit__(self):
        self.frames = []
        self.verifiers = []

    def __dealloc__(self):
        cdef int index
        for index in range(self.count):
            (<_Verifier>self.borrowed[index]).users -= 1

    cdef int add(self, Py_ssize_t place, Frame frame, _Verifier verifier, bint kernel, bint alone) except -1:
        cdef _Job* job = &self.jobs[self.count]
        if not kernel or (alone and len(_loaded) < MAX_LOADED):
            verifier.load()
        verifier.users += 1
        job.data = frame.data()
        job.end = PyBytes_GET_SIZE(frame._wire)
        job.offset = 22 + frame._token_size
        job.size = frame._signature_size
        job.lanes = verifier.lanes if kernel else NULL
        job.loaded = verifier.key != NULL
        self.frames.append(frame)
        self.verifiers.append(verifier)
        self.places[self.count] = place
        self.borrowed[self.count] = <void*>verifier
        self.count += 1
        return 0

    cdef void work(self) noexcept nogil:
        cdef _Job* job
        cdef int index
        if not self.hashed:
            _hash_and_accept(self.jobs, self.count)
            self.hashed = True
        for index in range(self.count):
            job = &self.jobs[index]
            if job.verdict == UNDECIDED and job.loaded:
                job.verdict = (<_Verifier>self.borrowed[index]).decide(job.data + job.offset, job.size, job.digest)

    cdef bint finish(self, list results) except -1:
        """Put the results where they belong; return False if there is more work to be done before."""
        cdef bint decided = True
        cdef int index
        for index in range(self.count):
            if self.jobs[index].verdict == NO_MEMORY:
                raise MemoryError
            if self.jobs[index].verdict == UNDECIDED:
                (<_Verifier>self.verifiers[index]).load()
                self.jobs[index].loaded = True
                decided = False
        if decided:
            for index in range(self.count):
                frame = <Frame>self.frames[index]
                results[self.places[index]] = frame.record() if self.jobs[index].verdict == GOOD else frame.refusal()
        return decided


cdef struct _Queue:
    PyThread_type_lock lock
    void* shares[WINDOW]  # a ring; _Batch.open keeps them alive
    int first
    int waiting


cdef void _work(_Queue* queue, int leave) noexcept nogil:
    """Work on shares until no more than ``leave`` are waiting."""
    cdef void* share = NULL
    while True:
        PyThread_acquire_lock(queue.lock, WAIT_LOCK)
        if share != NULL:
            (<_Share>share).done = True
        if queue.waiting <= leave:
            PyThread_release_lock(queue.lock)
            return
        share = queue.shares[queue.first]
        queue.first = (queue.first + 1) % WINDOW
        queue.waiting -= 1
        PyThread_release_lock(queue.lock)
        (<_Share>share).work()


cdef struct _Helper:
    _Queue* queue
    PyThread_type_lock busy  # held while the thread lives


cdef void _help(void* argument) noexcept nogil:
    """Be a thread: it never touches a Python object's references, and ends when no share is waiting."""
    cdef _Helper* helper = <_Helper*>argument
    _work(helper.queue, 0)
    OPENSSL_thread_stop()  # here, because a fork after the batch must not find this thread holding OpenSSL's locks
    PyThread_release_lock(helper.busy)


@cython.final
@cython.internal
cdef class _Batch:
    """Messages that are verified together: this thread makes the Python objects, helpers share the rest with it."""

    cdef list results
    cdef list open  # shares that have not finished
    cdef _Queue queue
    cdef _Helper* helpers
    cdef int size  # of helpers
    cdef int process

    def __cinit__(self, list wires not None, threads):
        self.process = getpid()
        self.results = [None] * len(wires)
        self.open = []
        # To start a thread takes as long as two shares.
        cdef Py_ssize_t wanted = min(threads, WINDOW, len(wires) // (2 * SHARE)) - 1
        self.queue.lock = PyThread_allocate_lock()
        if wanted > 0:
            self.helpers = <_Helper*>malloc(wanted * sizeof(_Helper))
        if self.queue.lock == NULL or (wanted > 0 and self.helpers == NULL):
            raise MemoryError
        for _ in range(wanted):
            self.helpers[self.size].queue = &self.queue
            self.helpers[self.size].busy = PyThread_allocate_lock()
            if self.helpers[self.size].busy == NULL:
                raise MemoryError
            self.size += 1

    def __dealloc__(self):
        cdef int index
        for index in range(self.size):
            PyThread_free_lock(self.helpers[index].busy)
        free(self.helpers)
        if self.queue.lock != NULL:
            PyThread_free_lock(self.queue.lock)

    cdef list verify(self, Schema schema, list wires, find, unknown):
        cdef Py_ssize_t place = 0
        cdef bint fresh = True  # whether shares were put into the queue; if not, all that are open get done in this turn
        try:
            while fresh or self.open:
                PyErr_CheckSignals()  # Ctrl-C ends a long batch
                self.check_process()
                fresh = self.finish()
                while place < len(wires) and len(self.open) < WINDOW:
                    place = self.prepare(schema, wires, place, find, unknown)
                    fresh = True
                with nogil:
                    _work(&self.queue, LEFT * self.size if fresh else 0)
                    if not fresh:
                        self.join()
        finally:
            if getpid() == self.process:
                with nogil:
                    PyThread_acquire_lock(self.queue.lock, WAIT_LOCK)
                    self.queue.waiting = 0
                    PyThread_release_lock(self.queue.lock)
                    self.join()
        return self.results

    cdef Py_ssize_t prepare(self, Schema schema, list wires, Py_ssize_t place, find, unknown) except -1:
        """Decode a share of messages and find their keys; return the place of the next."""
        cdef Py_ssize_t end = min(place + SHARE, len(wires))
        cdef _Share share = _Share.__new__(_Share)
        cdef Frame frame
        for place in range(place, end):
            try:
                frame = schema.decode(wires[place])
                key = find(frame.sender_id)
                verifier = getattr(key, "verifier", None)
                if key is None:
                    self.results[place] = unknown(frame.sender_id)
                elif type(verifier) is _Verifier:
                    share.add(place, frame, verifier, _kernel, len(wires) == 1)
                else:
                    self.results[place] = frame.verify(key)
            except SrupError as error:
                # Without the frames of this batch, which it would keep alive.
                error.__traceback__ = error.__context__ = None
                self.results[place] = error
        self.check_process()
        if share.count:
            self.open.append(share)
            self.enqueue(share)
        return end

    cdef int check_process(self) except -1:
        """Raise RuntimeError in a process that was forked in the middle: there are no helpers in it."""
        if getpid() != self.process:
            raise RuntimeError("the process was forked in the middle of verify_many: verify the batch again")
        return 0

    cdef void enqueue(self, _Share share) noexcept:
        cdef int index
        share.done = False
        PyThread_acquire_lock(self.queue.lock, WAIT_LOCK)
        self.queue.shares[(self.queue.first + self.queue.waiting) % WINDOW] = <void*>share
        self.queue.waiting += 1
        PyThread_release_lock(self.queue.lock)
        for index in range(self.size):
            if PyThread_acquire_lock(self.helpers[index].busy, NOWAIT_LOCK):
                if PyThread_start_new_thread(_help, &self.helpers[index]) == PYTHREAD_INVALID_THREAD_ID:
                    PyThread_release_lock(self.helpers[index].busy)  # then it goes without
                return

    cdef bint finish(self) except -1:
        """Make the results of the shares that are done; return whether some went back into the queue."""
        cdef list open = []
        cdef bint again = False, done
        cdef _Share share
        for share in self.open:
            PyThread_acquire_lock(self.queue.lock, WAIT_LOCK)
            done = share.done
            PyThread_release_lock(self.queue.lock)
            if not done:
                open.append(share)
            elif not share.finish(self.results):
                open.append(share)
                self.enqueue(share)
                again = True
        self.open = open
        return again

    cdef void join(self) noexcept nogil:
        """Wait until all helpers have ended."""
        cdef int index
        for index in range(self.size):
            PyThread_acquire_lock(self.helpers[index].busy, WAIT_LOCK)
            PyThread_release_lock(self.helpers[index].busy)


def verify_many(schema, wires, find, threads, unknown):
    cdef list batch = list(wires)
    return (<_Batch>_Batch.__new__(_Batch, batch, threads)).verify(schema, batch, find, unknown)


cdef class _Signer(_Key):
    def __cinit__(self, int algorithm, private_der):
        _expect_bytes("a key comes as", private_der)
        cdef const unsigned char* der = <const unsigned char*>PyBytes_AS_STRING(private_der)
        cdef const unsigned char* end = der + PyBytes_GET_SIZE(private_der)
        self.key = d2i_AutoPrivateKey(NULL, &der, <long>(end - der))
        self.prepare(algorithm, True, der == end)

    def sign(self, object signed):
        _expect_bytes("sign() takes", signed)
        cdef size_t size = <size_t>EVP_PKEY_get_size(self.key)
        cdef bytes signature = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
        cdef unsigned char* target = <unsigned char*>PyBytes_AS_STRING(signature)
        cdef const unsigned char* data = <const unsigned char*>PyBytes_AS_STRING(signed)
        cdef size_t length = <size_t>PyBytes_GET_SIZE(signed)
        cdef int done
        with nogil:
            done = self.make(target, &size, data, length)
        if not done:
            raise RuntimeError("libcrypto could not sign")
        return signature[:<Py_ssize_t>size]

    cdef int make(self, unsigned char* target, size_t* size, const unsigned char* data, size_t length) noexcept nogil:
        """Sign into ``target`` and set ``size``; return 1 when it worked."""
        cdef unsigned char digest[SHA256_DIGEST_LENGTH]
        cdef EVP_PKEY_CTX* context
        cdef EVP_MD_CTX* one_shot
        cdef int result = 0
        _sha256(digest, data, length, data, 0)
        if self.one_shot != NULL:
            one_shot = EVP_MD_CTX_new()
            if one_shot != NULL and EVP_MD_CTX_copy_ex(one_shot, self.one_shot) == 1:
                result = EVP_DigestSign(one_shot, target, size, digest, SHA256_DIGEST_LENGTH)
            EVP_MD_CTX_free(one_shot)
        else:
            context = EVP_PKEY_CTX_dup(self.context)
            if context != NULL:
                result = EVP_PKEY_sign(context, target, size, digest, SHA256_DIGEST_LENGTH)
            EVP_PKEY_CTX_free(context)
        if result != 1:
            ERR_clear_error()
        return result == 1


def verifier(algorithm, public_der):
    code = _ALGORITHMS.get(algorithm)
    return _verify_py.verifier(algorithm, public_der) if code is None else _Verifier(code, public_der)


def signer(algorithm, private_der):
    code = _ALGORITHMS.get(algorithm)
    if code is None:
        return _verify_py.signer(algorithm, private_der)
    cdef _Signer signer = _Signer(code, private_der)
    slow = code == ED25519 or (code == RSA and EVP_PKEY_get_size(signer.key) > RSA_MB_BYTES)
    return _verify_py.signer(algorithm, private_der) if slow and OpenSSL_version_num() < OPENSSL_4 else signer


# --- The kernel's switch ---------------------------------------------------------------------------------------------

# A key made for this purpose and its signature over b"srup": the known answer that the kernel must get right.
_MODULUS = bytes.fromhex(
    "c83bc0160f496f7ee741531c64c2cf6cfd2b8bd1a04003b33373a58f0a90acbaeeaf3bc7a779a503bd8fc6f93c32da95"
    "31d6bdf47b29dda6e2c0117733ceecbe4d11272de87ad30cb980481ef4e62bbb51a2f2cc7621845a8d4fff688a42e075"
    "a875bcf759da2aa3c1c788e9d2b8923f04127b5cef23310ad75897ed955ce590e19cd991bf367a9394a5124abf5d15b9"
    "4f828f201aa0ed618b4f2f13d3f216239988080d0f22f1d922eb9dfd35d2351360b15bbca086adcd26dbf1b1363c19e7"
    "42b5b9085dba0842bf536811dd0eae5f8939347ea8a40d998315e22dd580963b8f29bfc4d649a86d6f62ad92cb047061"
    "d0c27cace2df0d094f271f7dfbaa30c5"
)
_SIGNATURE = bytes.fromhex(
    "41cdae4958a68ede01e9726e1efeb989676dce157a9dd8da671a01a5ee6d64ca8a5ad83ddae61dc6d6d79fc7cdb7d139"
    "81b0468eec39e6e19bb7da02553006e0eb3706c0531511203bfcde5448a2776ac66a6c1827bd2f3374dc3cd653842027"
    "6e89bb380f9987bd04689061eed5388e3ac8c06c0d88562636fe691a4c83c1c0e455439e99cf3159d49a2f82c7d1f84e"
    "68e3d23a402397b6438128a3d8470aa0454c142e76e0cfb97c90252f847c22a8cb0ad8fbb8cb2899e4099bf615d66770"
    "c5209fb9dacfb7834aa0cad2fea2c0f4b947c9118f93076497efcc0503627dcb61d548a4035e50e6abd6edf3de221c28"
    "81cb24e6fb5bc593e6047e9bc1ec2dd4"
)


cdef bint _knows_the_answer() except -1:
    """Tell whether the kernel accepts the known signature in every lane, and nothing else in any."""
    cdef rsa_mb_key key
    cdef rsa_mb_job jobs[RSA_MB_LANES]
    cdef unsigned char digests[2][RSA_MB_DIGEST]
    cdef unsigned char signatures[2][RSA_MB_BYTES]
    cdef int lane, odd
    if not rsa_mb_prepare(&key, <const unsigned char*>PyBytes_AS_STRING(_MODULUS)):
        return False
    _sha256(digests[0], <const unsigned char*>b"srup", 4, <const unsigned char*>b"", 0)
    memcpy(digests[1], digests[0], RSA_MB_DIGEST)
    digests[1][RSA_MB_DIGEST - 1] ^= 1
    memcpy(signatures[0], PyBytes_AS_STRING(_SIGNATURE), RSA_MB_BYTES)
    memcpy(signatures[1], signatures[0], RSA_MB_BYTES)
    signatures[1][0] ^= 1
    for odd in range(2):
        for lane in range(RSA_MB_LANES):
            jobs[lane].key = &key
            jobs[lane].digest = digests[lane % 4 == 2 * odd]
            jobs[lane].signature = signatures[lane % 4 == 2 * odd + 1]
        if rsa_mb_accept(jobs) != (0xCC if odd == 0 else 0x33):
            return False
    return True


cdef bint _kernel = False
cdef str _reason


def use_kernel(wanted):
    """Switch the multi-buffer kernel on or off; return whether it is on. It stays off where it cannot run."""
    global _kernel, _reason
    if not wanted:
        _kernel, _reason = False, "switched off"
    elif not rsa_mb_supported():
        _kernel, _reason = False, "this CPU or build has no AVX512-IFMA"
    elif not _knows_the_answer():
        _kernel, _reason = False, "the self-test failed"
    else:
        _kernel, _reason = True, "AVX512-IFMA, 8 lanes"
    return _kernel


def info():
    return {"rsa_kernel": _kernel, "rsa_kernel_reason": _reason, "openssl": OpenSSL_version(0).decode()}


use_kernel(os.environ.get("SRUP_RSA_KERNEL", "") != "off")
