# cython: language_level=3
"""Native twin of ``_verify_py``: libcrypto without the GIL; see there for the contract.

Every key prepares one context when it is loaded. An operation works on a copy of it, so that threads never share a
context in use. Schemes that libcrypto is not asked for (ML-DSA) go through the pure twin.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from . import _verify_py
from .libcrypto cimport *

cdef enum:
    RSA = 0
    ECDSA = 1
    ED25519 = 2

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
        EVP_MD_CTX_free(self.one_shot)
        EVP_PKEY_CTX_free(self.context)
        EVP_PKEY_free(self.key)

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


cdef class _Verifier(_Key):
    def __cinit__(self, int algorithm, public_der):
        _expect_bytes("a key comes as", public_der)
        cdef const unsigned char* der = <const unsigned char*>PyBytes_AS_STRING(public_der)
        cdef const unsigned char* end = der + PyBytes_GET_SIZE(public_der)
        self.key = d2i_PUBKEY(NULL, &der, <long>(end - der))
        self.prepare(algorithm, False, der == end)

    def verify(self, wire, Py_ssize_t offset, Py_ssize_t size):
        _expect_bytes("verify() takes", wire)
        cdef Py_ssize_t end = PyBytes_GET_SIZE(wire)
        cdef const unsigned char* data = <const unsigned char*>PyBytes_AS_STRING(wire)
        cdef int verdict
        if offset < 2 or size < 0 or offset > end or size > end - offset:
            raise ValueError("the signature must lie inside the message")
        with nogil:
            verdict = self.check(data, end, offset, size)
        if verdict < 0:
            raise MemoryError
        return verdict == 1

    cdef int check(
        self, const unsigned char* data, size_t end, size_t offset, size_t size
    ) noexcept nogil:
        """Return 1 for a good signature, 0 for a bad one, -1 when there was no memory."""
        cdef unsigned char digest[SHA256_DIGEST_LENGTH]
        cdef EVP_PKEY_CTX* context
        cdef EVP_MD_CTX* one_shot
        cdef int result
        _sha256(digest, data, offset - 2, data + offset + size, end - offset - size)
        if self.one_shot != NULL:
            one_shot = EVP_MD_CTX_new()
            if one_shot == NULL or EVP_MD_CTX_copy_ex(one_shot, self.one_shot) != 1:
                EVP_MD_CTX_free(one_shot)
                return -1
            result = EVP_DigestVerify(one_shot, data + offset, size, digest, SHA256_DIGEST_LENGTH)
            EVP_MD_CTX_free(one_shot)
        else:
            context = EVP_PKEY_CTX_dup(self.context)
            if context == NULL:
                return -1
            result = EVP_PKEY_verify(context, data + offset, size, digest, SHA256_DIGEST_LENGTH)
            EVP_PKEY_CTX_free(context)
        if result != 1:
            ERR_clear_error()
        return result == 1


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
    return _verify_py.signer(algorithm, private_der) if code is None else _Signer(code, private_der)
