# Many messages signed with one key: a part of ``_verify.pyx``.

cdef enum:
    SIGNED = 16  # messages that a thread takes at a time: two passes of the lanes


@cython.final
@cython.internal
cdef class _Signing:
    """How one batch is signed: by OpenSSL, or in lanes with the numbers of the key, which are wiped after it."""

    cdef _Signer signer
    cdef crypto_mb_rsa* secret  # NULL: OpenSSL alone
    cdef rsa_mb_key* public  # what checks each signature

    def __cinit__(self, _Signer signer not None, bint lanes):
        self.signer = signer
        if not (lanes and EVP_PKEY_is_a(signer.key, "RSA") and _is_on(SIGNING) and _is_on(RSA)):
            return
        self.public = <rsa_mb_key*>_rsa_lanes(signer.key)
        if self.public == NULL:
            return  # a key of another size or exponent
        self.secret = <crypto_mb_rsa*>OPENSSL_zalloc(sizeof(crypto_mb_rsa))
        if self.secret == NULL:
            raise MemoryError
        if not (
            _number(signer.key, "rsa-factor1", self.secret.p, CRYPTO_MB_PRIME_BYTES, 8 * CRYPTO_MB_PRIME_BYTES)
            and _number(signer.key, "rsa-factor2", self.secret.q, CRYPTO_MB_PRIME_BYTES, 8 * CRYPTO_MB_PRIME_BYTES)
            and _number(signer.key, "rsa-exponent1", self.secret.dp, CRYPTO_MB_PRIME_BYTES)
            and _number(signer.key, "rsa-exponent2", self.secret.dq, CRYPTO_MB_PRIME_BYTES)
            and _number(signer.key, "rsa-coefficient1", self.secret.qinv, CRYPTO_MB_PRIME_BYTES)
        ):
            self.wipe()

    def __dealloc__(self):
        self.wipe()
        free(self.public)

    cdef void wipe(self) noexcept:
        OPENSSL_clear_free(self.secret, sizeof(crypto_mb_rsa))
        self.secret = NULL

    def sign(self, list signeds not None, bint ends):
        """Return the signatures over up to SIGNED messages; ``ends`` says that this thread may do nothing after it."""
        global _remade
        cdef const unsigned char* data[SIGNED]
        cdef size_t lengths[SIGNED]
        cdef unsigned char* targets[SIGNED]
        cdef size_t sizes[SIGNED]
        cdef int index, failed = 0, count = <int>len(signeds)
        cdef size_t size = <size_t>EVP_PKEY_get_size(self.signer.key)
        cdef list signatures = []
        cdef bint done
        if count > SIGNED:
            raise ValueError(f"{count} messages are more than {SIGNED}")
        for index in range(count):
            _expect_bytes("sign_many() takes", signeds[index])
            signatures.append(PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size))
            data[index] = <const unsigned char*>PyBytes_AS_STRING(signeds[index])
            lengths[index] = <size_t>PyBytes_GET_SIZE(signeds[index])
            targets[index] = <unsigned char*>PyBytes_AS_STRING(signatures[index])
            sizes[index] = size
        with nogil:
            done = self.work(data, lengths, targets, sizes, count, &failed)
            if ends:
                OPENSSL_thread_stop()  # here, because a fork after the batch must not find this thread at it
        _remade += failed
        if not done:
            raise RuntimeError("libcrypto could not sign")
        return [signatures[index][:<Py_ssize_t>sizes[index]] for index in range(count)]

    cdef bint work(
        self, const unsigned char** data, size_t* lengths, unsigned char** targets, size_t* sizes, int count, int* failed
    ) noexcept nogil:
        """Sign; count in ``failed`` what lanes got wrong. Return whether it worked."""
        cdef unsigned char digests[SIGNED][SHA256_DIGEST_LENGTH]
        cdef EVP_MD_CTX* context = EVP_MD_CTX_new()
        cdef bint hashed = True
        cdef int index, size, first = 0
        cdef unsigned good = 0  # of the SIGNED
        for index in range(count):
            hashed = hashed and _sha256(context, digests[index], data[index], lengths[index], data[index], 0)
        EVP_MD_CTX_free(context)
        if not hashed:
            return False
        if self.secret != NULL:
            while count - first >= _LANES[SIGNING].least:
                size = min(LANES, count - first)
                good |= self.make_in_lanes(&targets[first], &digests[first], size) << first
                for index in range(first, first + size):
                    failed[0] += not good >> index & 1
                first += size
        for index in range(count):
            if not good >> index & 1 and not self.signer.make_of(targets[index], &sizes[index], digests[index]):
                return False
        return True

    cdef unsigned make_in_lanes(
        self, unsigned char** targets, unsigned char (*digests)[SHA256_DIGEST_LENGTH], int count
    ) noexcept nogil:
        """Sign up to LANES digests and check what comes out; return the mask of the good ones, and wipe the others."""
        cdef unsigned char encoded[LANES][RSA_MB_BYTES]
        cdef unsigned char spare[LANES][RSA_MB_BYTES]
        cdef const unsigned char* messages[LANES]
        cdef unsigned char* signatures[LANES]
        cdef lane_job checks[LANES]
        cdef unsigned good
        cdef int lane
        for lane in range(LANES):
            rsa_mb_encode(encoded[lane], digests[lane if lane < count else 0])
            messages[lane] = encoded[lane]
            signatures[lane] = spare[lane]
            checks[lane].key = self.public
            checks[lane].signature = spare[lane]
            checks[lane].size = RSA_MB_BYTES
            checks[lane].digest = digests[lane if lane < count else 0]
        good = crypto_mb_rsa_sign(signatures, messages, self.secret)
        if good:
            good &= rsa_mb_accept(checks)
        for lane in range(count):
            if good >> lane & 1:
                memcpy(targets[lane], spare[lane], RSA_MB_BYTES)
        OPENSSL_cleanse(spare, sizeof(spare))  # a faulty signature gives the key away
        return good


def sign_many(signer, signeds, threads, lanes):
    if type(signer) is not _Signer:
        return _verify_py.sign_many(signer, signeds, threads, lanes)
    cdef list batch = list(signeds)
    cdef _Signing signing = _Signing(signer, _signs_by_default if lanes is None else lanes)
    shares = [batch[first : first + SIGNED] for first in range(0, len(batch), SIGNED)]
    signed = None
    if threads > 1 and len(shares) > 1:
        from concurrent.futures import ThreadPoolExecutor
        from contextlib import suppress

        with suppress(RuntimeError), ThreadPoolExecutor(min(threads, len(shares))) as pool:  # without, if there is none
            signed = list(pool.map(signing.sign, shares, [True] * len(shares)))
    if signed is None:
        signed = [signing.sign(share, False) for share in shares]
    return [signature for share in signed for signature in share]
