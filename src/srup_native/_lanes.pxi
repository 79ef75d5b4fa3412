# Lanes: eight signatures at a time. Which kinds there are, their switches and self-tests, and FIPS mode: a part of
# ``_verify.pyx``.

cdef struct _Lanes:
    bint asked  # whether it has been found out if they can be used
    bint on
    int least  # signatures for which a pass is quicker than OpenSSL
    size_t key_size
    void* (*prepare)(const EVP_PKEY* key) noexcept  # what the lanes need of a key, for free(); NULL: they do not take it
    int (*fits)(const lane_job* job) noexcept nogil
    unsigned (*accept)(const lane_job* jobs) noexcept nogil

cdef enum:
    SIGNING = 3  # RSA-2048; the other kinds verify and have the numbers of their algorithms
    KINDS = 4

cdef _Lanes _LANES[KINDS]
_LANES[RSA] = _Lanes(False, False, 2, sizeof(rsa_mb_key), _rsa_lanes, rsa_mb_fits, rsa_mb_accept)
_LANES[ECDSA] = _Lanes(
    False, False, 3, sizeof(crypto_mb_p256), _p256_lanes, crypto_mb_p256_fits, crypto_mb_p256_accept
)
_LANES[ED25519] = _Lanes(
    False, False, 2, sizeof(crypto_mb_ed25519), _ed25519_lanes, crypto_mb_ed25519_fits, crypto_mb_ed25519_accept
)
_LANES[SIGNING] = _Lanes(False, False, 3, 0, NULL, NULL, NULL)

cdef tuple _NAMES = _verify_py.LANES
cdef tuple _SWITCHES = ("SRUP_RSA_KERNEL", "SRUP_P256_LANES", "SRUP_ED25519_LANES", "SRUP_RSA_SIGNING")
cdef tuple _ACTIVE = ("AVX512-IFMA, 8 lanes", "crypto_mb, 8 lanes", "crypto_mb, 8 lanes", "crypto_mb, 8 lanes")
cdef list _reasons = [""] * KINDS
cdef str _library = None  # why crypto_mb cannot be used, "" if it can; None before anybody has asked for it
cdef long _remade = 0  # signatures of lanes that failed their check, and were made again by OpenSSL
_signs_by_default = os.environ.get("SRUP_RSA_SIGNING", "") == "lanes"


# --- What lanes need of a key -------------------------------------------------------------------------------------


cdef bint _number(const EVP_PKEY* key, const char* name, void* words, int size, int bits=0) noexcept:
    """Write a number of a key as ``size`` little-endian bytes; return whether it is there and has ``bits``, if given."""
    cdef BIGNUM* number = NULL
    cdef bint done = (
        EVP_PKEY_get_bn_param(key, name, &number) == 1
        and (bits == 0 or BN_num_bits(number) == bits)
        and BN_bn2lebinpad(number, <unsigned char*>words, size) == size
    )
    BN_clear_free(number)
    ERR_clear_error()
    return done


cdef void* _rsa_lanes(const EVP_PKEY* key) noexcept:
    """The kernel's constants, for the only kind of RSA key that it takes."""
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


cdef void* _p256_lanes(const EVP_PKEY* key) noexcept:
    """The coordinates of a point of P-256, which OpenSSL has found to be on the curve."""
    cdef char group[16]
    cdef size_t size = 0
    cdef crypto_mb_p256* lanes = NULL
    if EVP_PKEY_get_group_name(key, group, sizeof(group), &size) == 1 and strcmp(group, "prime256v1") == 0:
        lanes = <crypto_mb_p256*>malloc(sizeof(crypto_mb_p256))
        if lanes != NULL and not (_number(key, "qx", lanes.x, 32) and _number(key, "qy", lanes.y, 32)):
            free(lanes)
            lanes = NULL
    ERR_clear_error()
    return lanes


cdef void* _ed25519_lanes(const EVP_PKEY* key) noexcept:
    """The bytes of a key that is neither of small order nor oddly encoded."""
    cdef size_t size = sizeof(crypto_mb_ed25519)
    cdef crypto_mb_ed25519* lanes = <crypto_mb_ed25519*>malloc(size)
    if lanes != NULL and not (
        EVP_PKEY_get_raw_public_key(key, lanes.bytes, &size) == 1
        and size == sizeof(crypto_mb_ed25519)
        and crypto_mb_ed25519_takes(lanes.bytes)
    ):
        free(lanes)
        lanes = NULL
    ERR_clear_error()
    return lanes


# --- Self-tests ---------------------------------------------------------------------------------------------------

# Keys made for this purpose and their signatures over b"srup": the known answers.
_PRIMES = (
    bytes.fromhex(
        "d8b8e8f942834128cc6c20a124f6142acef03ecf41d78fb19cac9dbbcec737e50baa2dfdfe3e4e3cf1f16ed635dd8f7f"
        "3479562fb14e4535e34460cce6043d566b9a0cb2938c20a7c170bcf85582f4411764c981f9b31812fd528258a3f04573"
        "262288bc67ef3ada7eaaa70c59787537d9a15f7b75df3b4606114b085493060b"
    ),
    bytes.fromhex(
        "c2a74abca8d5207f101a2404f70c73416d28723a27865ee941569fbe2e3459d9579c81ba4dfac3bdb85ef3d13cca658c"
        "db8ed4b37fcff6792492e8b81ffd1e014402784d646f16cf650f70c2f563395e153c6f8d50b77422d4d5a3d1c0310129"
        "364452a2aa0874adc20c8d3791358ab80e97f7da5c3594690091799096689dd5"
    ),
)
_KNOWN = {
    "rsa2048": (
        bytes.fromhex("30820122300d06092a864886f70d01010105000382010f003082010a0282010100")
        + (int.from_bytes(_PRIMES[0], "big") * int.from_bytes(_PRIMES[1], "big")).to_bytes(256, "big")
        + bytes.fromhex("0203010001"),
        bytes.fromhex(
            "2da64ed8acbe715d4172d0d90792601335e0296c5c5660dc5e3a7bc685eea85a71bc3fa443e3c3b4295438193820bbd5"
            "8e2fb4483571cf3bd13d0ed33e6c521538a5f53596f34a389144fa91de654f63d9d0c96f7188e1dcde0e7535d63096c0"
            "e5a11afadd4b49fbf05efb817d6bb411c5698b28817c13ee66c33368d82d55ee66078b65c24344d20327f3221ec24164"
            "3554b1a6ce4dec253f8776c8098cb3b873d2612841aae8241422a2e73d0f724e2771043a76a255e16bf7860c3d0c609e"
            "bcb8113ffb059a38ee58eb74342be1d202a6386cfb604a2c3ace57d597b905a044332eea257e2a494ae68e306a6c0f18"
            "2ea9b6554e03dca34011d58b450087c7"
        ),
    ),
    "p256": (
        bytes.fromhex(
            "3059301306072a8648ce3d020106082a8648ce3d0301070342000492de8dee02dbce2fdf316cbb477b65076ae671b770"
            "cf84ea65c39d8029807b4cb3aecf43983e206d01b122e1778593babb76f6933095595ed3243470ddf2c03f"
        ),
        bytes.fromhex(
            "304502200fd279d32a26e5c53b4f8b9a4cf74323a4e8d8ac8d04b0d01a9a9f54a5b1387a0221009b8933530785c504ab"
            "4a651ae4cc2e0c2aee0ea409ae0ecfc619b54d4281ebe6"
        ),
    ),
    "ed25519": (
        bytes.fromhex("302a300506032b6570032100f636d12128f73c6f2e390a22e5fada9872db9ff01361a3a68175896807fef1a0"),
        bytes.fromhex(
            "13802df27f44bd2f3ec196a85f49daae682495c4c303edc1f50810c612188c3425138b6b65c3f561c6511461f82c1ed2"
            "e4947252e757d34506efdc13da5fd606"
        ),
    ),
}


cdef bint _knows_the_answer(int kind) except -1:
    """Return whether the lanes accept the known signature in every lane, and nothing else in any."""
    cdef lane_job jobs[LANES]
    cdef int lane, odd
    from hashlib import sha256

    der, signature = _KNOWN[_NAMES[kind]]
    digest = sha256(b"srup").digest()
    # The last bit but seven bytes: of the number s in each scheme, which stays in its range.
    cdef list signatures = [signature, signature[:-8] + bytes([signature[-8] ^ 1]) + signature[-7:]]
    cdef list digests = [digest, digest[:-1] + bytes([digest[-1] ^ 1])]
    cdef _Verifier verifier = _Verifier(kind, der)
    if not verifier.prepare_lanes():
        return False
    for odd in range(2):
        for lane in range(LANES):
            jobs[lane].key = verifier.lanes
            jobs[lane].digest = <const unsigned char*>PyBytes_AS_STRING(digests[lane % 4 == 2 * odd])
            jobs[lane].signature = <const unsigned char*>PyBytes_AS_STRING(signatures[lane % 4 == 2 * odd + 1])
            jobs[lane].size = <size_t>len(signature)
            if not _LANES[kind].fits(&jobs[lane]):
                return False
        if _LANES[kind].accept(jobs) != (0xCC if odd == 0 else 0x33):
            return False
    return True


cdef bint _signs_as_known() except -1:
    """Return whether each lane makes the known signature."""
    cdef crypto_mb_rsa key
    cdef unsigned char message[RSA_MB_BYTES]
    cdef unsigned char made[LANES][RSA_MB_BYTES]
    cdef const unsigned char* messages[LANES]
    cdef unsigned char* signatures[LANES]
    cdef int lane
    from hashlib import sha256

    cdef bytes known = _KNOWN["rsa2048"][1]
    p, q = (int.from_bytes(prime, "big") for prime in _PRIMES)
    d = pow(65537, -1, (p - 1) * (q - 1))
    cdef list numbers = [
        number.to_bytes(CRYPTO_MB_PRIME_BYTES, "little") for number in (p, q, d % (p - 1), d % (q - 1), pow(q, -1, p))
    ]
    for lane, target in enumerate((<size_t>key.p, <size_t>key.q, <size_t>key.dp, <size_t>key.dq, <size_t>key.qinv)):
        memcpy(<void*><size_t>target, PyBytes_AS_STRING(numbers[lane]), CRYPTO_MB_PRIME_BYTES)
    rsa_mb_encode(message, sha256(b"srup").digest())
    for lane in range(LANES):
        messages[lane], signatures[lane] = message, made[lane]
    if crypto_mb_rsa_sign(signatures, messages, &key) != 0xFF:
        return False
    return all(made[lane][:RSA_MB_BYTES] == known for lane in range(LANES))


# --- Switches -----------------------------------------------------------------------------------------------------


def open_library(paths=None):
    """Load crypto_mb from ``paths``, by default the installed one; return why it cannot be used, "" if it can."""
    global _library
    cdef const char* names[8]
    cdef const char* reason
    cdef int index
    try:
        from . import _multibuffer

        encoded = [os.fsencode(path) for path in (_multibuffer.multibuffer_paths() if paths is None else paths)]
    except (ImportError, LookupError) as error:  # ImportError: a program in one piece left that module out
        _library = str(error)
        return _library
    for index in range(len(encoded)):
        names[index] = PyBytes_AS_STRING(encoded[index])
    reason = crypto_mb_open(names, <int>len(encoded))
    _library = "" if reason == NULL else reason.decode(errors="replace")
    return _library


cdef str _why_not(int kind):
    """Return why lanes cannot be used, "" if they can."""
    if _fips():
        return "libcrypto is in FIPS mode"
    if kind == RSA:
        if not rsa_mb_supported():
            return "this CPU or build has no AVX512-IFMA"
    elif _library is None:
        open_library()
    if kind != RSA and _library:
        return _library
    if kind == SIGNING and not _is_on(RSA):
        return "the lanes of rsa2048, which check each signature, are off"
    return "" if (_signs_as_known() if kind == SIGNING else _knows_the_answer(kind)) else "the self-test failed"


def use_lanes(name, wanted):
    """Switch a kind of lanes on or off; return whether they are on. They stay off where they cannot be used."""
    cdef int kind = _NAMES.index(name)
    _LANES[kind].on = False
    cdef str reason = _why_not(kind) if wanted else "switched off"
    _LANES[kind].on = not reason
    _reasons[kind] = reason or _ACTIVE[kind]
    _LANES[kind].asked = True  # not before: Ctrl-C may end this
    return _LANES[kind].on


def use_kernel(wanted):
    """The same for RSA-2048."""
    return use_lanes("rsa2048", wanted)


cdef bint _is_on(int kind) except -1:
    """Return whether lanes are on; the first time they are looked for. Only with the GIL."""
    if not _LANES[kind].asked:
        use_lanes(_NAMES[kind], os.environ.get(_SWITCHES[kind], "") != "off")
    return _LANES[kind].on


cdef bint _fips():
    """Return whether libcrypto must take its algorithms from a FIPS provider."""
    return EVP_default_properties_is_fips_enabled(NULL) == 1


def warn_unless_fips(path="/proc/sys/crypto/fips_enabled"):
    """Warn when the system is in FIPS mode and this libcrypto is not: its own provider would be bypassed silently."""
    try:
        with open(path) as file:
            demanded = file.read().strip() == "1"
    except OSError:
        demanded = False
    if demanded and not _fips():
        warnings.warn(
            f"this system is in FIPS mode, but {OpenSSL_version(0).decode()}, with which srup verifies and signs, is not: "
            "build srup from source against the system's OpenSSL (docs/wheels.md)",
            RuntimeWarning,
            stacklevel=2,
        )


def info():
    cdef int kind
    lanes = {_NAMES[kind]: (bool(_is_on(kind)), _reasons[kind]) for kind in range(KINDS)}
    if _LANES[SIGNING].on and not _signs_by_default:
        lanes[_NAMES[SIGNING]] = False, "ready: SRUP_RSA_SIGNING=lanes or sign_many(..., lanes=True) makes use of it"
    return {
        "rsa_kernel": lanes["rsa2048"][0],
        "rsa_kernel_reason": lanes["rsa2048"][1],
        "openssl": OpenSSL_version(0).decode(),
        "fips": _fips(),
        "lanes": lanes,
        "signatures_remade": _remade,
    }


warn_unless_fips()
