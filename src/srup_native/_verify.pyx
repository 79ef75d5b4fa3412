# cython: language_level=3
"""Native twin of ``_verify_py``: libcrypto without the GIL; see there for the contract.

Every key prepares one context when it is first used. An operation works on a copy of it, so that threads never share a
context in use. What libcrypto lacks (ML-DSA) or an old one does slowly goes through the pure twin, which asks
the libcrypto that comes with ``cryptography``.

``verify_many`` shows eight messages of one scheme at a time to that scheme's lanes, which may only accept; OpenSSL
decides about everything that they do not accept. RSA-2048 has a kernel of its own (rsa_mb.c) where the CPU can run it;
keys with e = 65537 then get their context only when OpenSSL is asked. P-256 and Ed25519 have lanes, and RSA-2048 can be
signed with, where Intel's crypto_mb is installed (crypto_mb.c).
"""

import os
import warnings
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
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, strcmp
from posix.unistd cimport getpid

from . import _verify_py
from ._codec cimport Frame, Schema
from .errors import SrupError
from .libcrypto cimport *

cdef extern from "Python.h":
    unsigned long PYTHREAD_INVALID_THREAD_ID
    unsigned long PyThread_start_new_thread(void (*function)(void*) noexcept nogil, void* argument)

cdef extern from "lanes.h" nogil:
    enum:
        LANES
    ctypedef struct lane_job:
        const void* key
        const unsigned char* signature
        size_t size
        const unsigned char* digest
    void lane_prefetch(const void* key, size_t size)

cdef extern from "rsa_mb.h" nogil:
    enum:
        RSA_MB_BYTES
    ctypedef struct rsa_mb_key:
        pass
    int rsa_mb_supported()
    int rsa_mb_prepare(rsa_mb_key* key, const unsigned char* modulus)
    int rsa_mb_fits(const lane_job* job)
    unsigned rsa_mb_accept(const lane_job* jobs)
    void rsa_mb_encode(unsigned char* message, const unsigned char* digest)

cdef extern from "crypto_mb.h" nogil:
    enum:
        CRYPTO_MB_PRIME_BYTES
    ctypedef struct crypto_mb_p256:
        uint64_t* x
        uint64_t* y
    ctypedef struct crypto_mb_ed25519:
        unsigned char* bytes
    ctypedef struct crypto_mb_rsa:
        uint64_t* p
        uint64_t* q
        uint64_t* dp
        uint64_t* dq
        uint64_t* qinv
    const char* crypto_mb_open(const char** paths, int count)
    int crypto_mb_ed25519_takes(const unsigned char* key)
    int crypto_mb_ed25519_fits(const lane_job* job)
    int crypto_mb_p256_fits(const lane_job* job)
    unsigned crypto_mb_ed25519_accept(const lane_job* jobs)
    unsigned crypto_mb_p256_accept(const lane_job* jobs)
    unsigned crypto_mb_rsa_sign(
        unsigned char** signatures, const unsigned char** messages, const crypto_mb_rsa* key
    )

cdef enum:
    RSA = 0
    ECDSA = 1
    ED25519 = 2

cdef enum:
    OPENSSL_4 = 0x40000000  # measured: RSA-3072 and 4096 signing takes less than half the time of OpenSSL 3.0, Ed25519 0.9

cdef dict _ALGORITHMS = {"rsa": RSA, "ecdsa": ECDSA, "ed25519": ED25519}


# Fetched once: under the properties that libcrypto was configured with, such as fips=yes.
cdef EVP_MD* _SHA256 = EVP_MD_fetch(NULL, "SHA256", NULL)
if _SHA256 == NULL:
    ERR_clear_error()
    raise ImportError(
        f"{OpenSSL_version(0).decode()} gives no SHA-256: a configuration that demands fips=yes needs a FIPS provider that "
        "loads"
    )


cdef bint _sha256(
    EVP_MD_CTX* context,
    unsigned char* digest,
    const unsigned char* first,
    size_t size,
    const unsigned char* second,
    size_t length,
) noexcept nogil:
    """Hash two stretches of bytes; return whether it worked. A ``context`` may be used many times; NULL fails."""
    if (
        context != NULL
        and EVP_DigestInit_ex(context, _SHA256, NULL) == 1
        and EVP_DigestUpdate(context, first, size) == 1
        and EVP_DigestUpdate(context, second, length) == 1
        and EVP_DigestFinal_ex(context, digest, NULL) == 1
    ):
        return True
    ERR_clear_error()
    return False


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
    MAX_LOADED = 16384  # contexts of keys of the RSA kernel, so that forgeries cannot fill the memory (T9)

_loaded = deque()
"""The verifiers that have such a context, in the order of loading."""


cdef class _Verifier(_Key):
    cdef int algorithm
    cdef bytes der
    cdef void* lanes  # what the scheme's lanes need of the key; NULL before they do, and for a key that they do not take
    cdef bint asked  # whether the lanes have been asked if they take it
    cdef int users  # that may be working with the context; only ever changed with the GIL

    def __cinit__(self, int algorithm, public_der):
        _expect_bytes("a key comes as", public_der)
        self.algorithm = algorithm
        self.der = public_der
        self.load()
        if algorithm == RSA and rsa_mb_supported() and self.prepare_lanes():
            self.unload()  # most keys of a large fleet never need it

    def __dealloc__(self):
        free(self.lanes)

    cdef bint prepare_lanes(self) noexcept:
        """Return whether the lanes take this key, which is loaded when they are asked. Only with the GIL."""
        if not self.asked:
            self.lanes = _LANES[self.algorithm].prepare(self.key)
            self.asked = True
        return self.lanes != NULL

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
        if self.algorithm == RSA and self.lanes != NULL and _is_on(RSA):
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
        cdef EVP_MD_CTX* context
        cdef int verdict = NO_MEMORY
        if offset < 2 or size < 0 or offset > end or size > end - offset:
            raise ValueError("the signature must lie inside the message")
        self.load()
        self.users += 1
        with nogil:
            context = EVP_MD_CTX_new()
            if _sha256(context, digest, data, offset - 2, data + offset + size, end - offset - size):
                verdict = self.decide(data + offset, size, digest)
            EVP_MD_CTX_free(context)
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
        cdef EVP_MD_CTX* hashing = EVP_MD_CTX_new()
        cdef bint hashed = _sha256(hashing, digest, data, length, data, 0)
        EVP_MD_CTX_free(hashing)
        return hashed and self.make_of(target, size, digest)

    cdef int make_of(self, unsigned char* target, size_t* size, const unsigned char* digest) noexcept nogil:
        """The same for a digest."""
        cdef EVP_PKEY_CTX* context
        cdef EVP_MD_CTX* one_shot
        cdef int result = 0
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
    elsewhere = slow and OpenSSL_version_num() < OPENSSL_4 and not _fips()
    return _verify_py.signer(algorithm, private_der) if elsewhere else signer


include "_lanes.pxi"
include "_batch.pxi"
include "_signing.pxi"
