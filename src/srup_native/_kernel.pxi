# The multi-buffer kernel's switch and self-test, and FIPS mode: a part of ``_verify.pyx``.

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
    cdef EVP_MD_CTX* context = EVP_MD_CTX_new()
    cdef bint hashed = _sha256(
        context, digests[0], <const unsigned char*>b"srup", 4, <const unsigned char*>b"", 0
    )
    EVP_MD_CTX_free(context)
    if not hashed:
        raise MemoryError
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


cdef bint _kernel = False
cdef str _reason


def use_kernel(wanted):
    """Switch the multi-buffer kernel on or off; return whether it is on. It stays off where it cannot run."""
    global _kernel, _reason
    if not wanted:
        _kernel, _reason = False, "switched off"
    elif _fips():
        _kernel, _reason = False, "libcrypto is in FIPS mode"
    elif not rsa_mb_supported():
        _kernel, _reason = False, "this CPU or build has no AVX512-IFMA"
    elif not _knows_the_answer():
        _kernel, _reason = False, "the self-test failed"
    else:
        _kernel, _reason = True, "AVX512-IFMA, 8 lanes"
    return _kernel


def info():
    return {
        "rsa_kernel": _kernel,
        "rsa_kernel_reason": _reason,
        "openssl": OpenSSL_version(0).decode(),
        "fips": _fips(),
    }


warn_unless_fips()
use_kernel(os.environ.get("SRUP_RSA_KERNEL", "") != "off")
