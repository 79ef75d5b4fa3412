/* Eight signatures at once by Intel's crypto_mb (the package ipp-crypto), which is loaded at run time.
 *
 * Why it is safe to verify with: the lanes may only accept, so a fault can make a genuine message slow and nothing else,
 * as long as they accept nothing that OpenSSL refuses. What the library leaves out is therefore checked before it:
 *
 *  Ed25519  s < L, which the library does not enforce. Encodings of points that are not canonical, and points of small
 *           order, go to OpenSSL, which has its own mind about them. Both compare the encoding of [s]B - [h]A with R
 *           byte by byte, without the cofactor, so they agree about keys of mixed order, too.
 *  P-256    The DER form as OpenSSL demands it, which is the one that it would write, and 0 < r, s < n. OpenSSL has
 *           checked that the key is a point of the curve when it loaded it.
 *
 * Before a kind of lane is used its self-test must succeed (_lanes.pxi).
 *
 * Signing: crypto_mb claims to run in constant time. Its scratch memory is ours, and is wiped. */
#include "crypto_mb.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include <openssl/crypto.h>

/* --- The library ------------------------------------------------------------------------------------------------- */

/* As Intel documents them. A status has four bits for each lane, which are zero if all went well. */
typedef int applicable_function(uint64_t features);
typedef uint32_t ed25519_function(const void *const r[LANES], const void *const s[LANES],
                                  const uint8_t *const messages[LANES], const uint32_t sizes[LANES],
                                  const void *const keys[LANES]);
typedef uint32_t p256_function(const uint8_t *const r[LANES], const uint8_t *const s[LANES],
                               const uint8_t *const digests[LANES], const uint64_t *const x[LANES],
                               const uint64_t *const y[LANES], const uint64_t *const z[LANES], uint8_t *scratch);
typedef const void *method_function(int bits);
typedef int scratch_function(const void *method);
typedef uint32_t crt_function(const uint8_t *const from[LANES], uint8_t *const to[LANES],
                              const uint64_t *const p[LANES], const uint64_t *const q[LANES],
                              const uint64_t *const dp[LANES], const uint64_t *const dq[LANES],
                              const uint64_t *const qinv[LANES], int bits, const void *method, uint8_t *scratch);

static struct {
    applicable_function *applicable;
    ed25519_function *ed25519_verify;
    p256_function *p256_verify;
    method_function *crt_method;
    scratch_function *scratch_size;
    crt_function *crt;
} library;

const char *crypto_mb_open(const char *const paths[], int count)
{
    static char reason[256];
    void *handle = NULL;
    for (int i = 0; i < count; i++) { /* they stay loaded: whoever has used a library may not lose it */
        handle = dlopen(paths[i], RTLD_NOW | RTLD_LOCAL);
        if (handle == NULL) {
            snprintf(reason, sizeof reason, "%s", dlerror());
            return reason;
        }
    }
    struct {
        const char *name;
        void *target;
    } wanted[] = {
        {"mbx_is_crypto_mb_applicable", &library.applicable}, {"mbx_ed25519_verify_mb8", &library.ed25519_verify},
        {"mbx_nistp256_ecdsa_verify_mb8", &library.p256_verify}, {"mbx_RSA_private_crt_Method", &library.crt_method},
        {"mbx_RSA_Method_BufSize", &library.scratch_size},       {"mbx_rsa_private_crt_mb8", &library.crt},
    };
    const size_t functions = sizeof wanted / sizeof *wanted;
    void *found[sizeof wanted / sizeof *wanted];
    for (size_t i = 0; i < functions; i++) {
        found[i] = handle ? dlsym(handle, wanted[i].name) : NULL;
        if (found[i] == NULL) {
            snprintf(reason, sizeof reason, "this crypto_mb has no %s: install another version", wanted[i].name);
            return reason;
        }
    }
    applicable_function *applicable;
    memcpy(&applicable, &found[0], sizeof applicable);
    if (!applicable(0)) /* without this question it would die of SIGILL */
        return "this CPU lacks the instructions that crypto_mb needs";
    for (size_t i = 0; i < functions; i++)
        memcpy(wanted[i].target, &found[i], sizeof found[i]);
    return NULL;
}

/* The lanes without a fault in a status. */
static unsigned faultless(uint32_t status)
{
    unsigned mask = 0;
    for (int lane = 0; lane < LANES; lane++)
        mask |= (unsigned)!(status >> 4 * lane & 15) << lane;
    return mask;
}

/* --- Ed25519 ----------------------------------------------------------------------------------------------------- */

/* The order L of the base point, and the y coordinates of the points of small order; little-endian. */
static const unsigned char ed25519_order[32] = {
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, [31] = 0x10};
static const unsigned char small_order[][32] = {
    {0},
    {1},
    {0xec, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
     0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f},
    {0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0,
     0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05},
    {0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f,
     0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a},
};
static const unsigned char ed25519_prime[32] = {
    0xed, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f};

/* Whether a < b; both little-endian. */
static int is_below(const unsigned char a[32], const unsigned char b[32])
{
    for (int i = 31; i >= 0; i--)
        if (a[i] != b[i])
            return a[i] < b[i];
    return 0;
}

/* A point's encoding is its y, below the prime, and the sign of x as the highest bit. */
int crypto_mb_ed25519_takes(const unsigned char key[32])
{
    unsigned char y[32];
    memcpy(y, key, sizeof y);
    y[31] &= 0x7f;
    for (size_t i = 0; i < sizeof small_order / sizeof *small_order; i++)
        if (memcmp(y, small_order[i], sizeof y) == 0)
            return 0;
    return is_below(y, ed25519_prime);
}

int crypto_mb_ed25519_fits(const lane_job *job)
{
    return job->size == 64 && is_below(job->signature + 32, ed25519_order) && crypto_mb_ed25519_takes(job->signature);
}

unsigned crypto_mb_ed25519_accept(const lane_job jobs[LANES])
{
    const void *r[LANES], *s[LANES], *keys[LANES];
    const uint8_t *messages[LANES];
    uint32_t sizes[LANES];
    for (int lane = 0; lane < LANES; lane++) {
        r[lane] = jobs[lane].signature;
        s[lane] = jobs[lane].signature + 32;
        keys[lane] = ((const crypto_mb_ed25519 *)jobs[lane].key)->bytes;
        messages[lane] = jobs[lane].digest; /* the digest is the message */
        sizes[lane] = LANES_DIGEST;
    }
    return faultless(library.ed25519_verify(r, s, messages, sizes, keys));
}

/* --- P-256 ------------------------------------------------------------------------------------------------------- */

/* The order n of the base point; big-endian. */
static const unsigned char p256_order[32] = {
    0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    0xbc, 0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51};

/* Read a DER INTEGER between 0 and n into 32 big-endian bytes; return how long it is, 0 if it is anything else. */
static size_t read_scalar(unsigned char scalar[32], const unsigned char *der, size_t left)
{
    static const unsigned char zero[32];
    if (left < 3 || der[0] != 0x02 || der[1] < 1 || der[1] > 33 || der[1] > left - 2)
        return 0;
    const size_t size = der[1];
    const unsigned char *value = der + 2;
    if (value[0] & 0x80) /* negative */
        return 0;
    if (value[0] == 0 && size > 1 && !(value[1] & 0x80)) /* longer than need be */
        return 0;
    if (value[0] != 0 && size == 33)
        return 0;
    const size_t digits = size == 33 ? 32 : size;
    memset(scalar, 0, 32);
    memcpy(scalar + 32 - digits, value + size - digits, digits);
    if (memcmp(scalar, zero, 32) == 0 || memcmp(scalar, p256_order, 32) >= 0)
        return 0;
    return size + 2;
}

/* Read SEQUENCE { r INTEGER, s INTEGER } (RFC 3279, section 2.2.3), and nothing behind it; return whether it is that. */
static int read_signature(unsigned char r[32], unsigned char s[32], const unsigned char *der, size_t size)
{
    if (size < 8 || size > 72 || der[0] != 0x30 || der[1] != size - 2)
        return 0;
    const size_t first = read_scalar(r, der + 2, size - 2);
    const size_t second = first ? read_scalar(s, der + 2 + first, size - 2 - first) : 0;
    return second && first + second == size - 2;
}

int crypto_mb_p256_fits(const lane_job *job)
{
    unsigned char r[32], s[32];
    return read_signature(r, s, job->signature, job->size);
}

unsigned crypto_mb_p256_accept(const lane_job jobs[LANES])
{
    unsigned char r[LANES][32] = {{0}}, s[LANES][32] = {{0}};
    const uint8_t *rs[LANES], *ss[LANES], *digests[LANES];
    const uint64_t *x[LANES], *y[LANES];
    unsigned fitting = 0;
    for (int lane = 0; lane < LANES; lane++) {
        const crypto_mb_p256 *key = jobs[lane].key;
        fitting |= (unsigned)read_signature(r[lane], s[lane], jobs[lane].signature, jobs[lane].size) << lane;
        rs[lane] = r[lane];
        ss[lane] = s[lane];
        digests[lane] = jobs[lane].digest;
        x[lane] = key->x;
        y[lane] = key->y;
    }
    return fitting & faultless(library.p256_verify(rs, ss, digests, x, y, NULL, NULL));
}

/* --- Signing with RSA -------------------------------------------------------------------------------------------- */

unsigned crypto_mb_rsa_sign(
    unsigned char *const signatures[LANES], const unsigned char *const messages[LANES], const crypto_mb_rsa *key)
{
    const uint64_t *p[LANES], *q[LANES], *dp[LANES], *dq[LANES], *qinv[LANES];
    const void *method = library.crt_method(8 * CRYPTO_MB_RSA_BYTES);
    const int size = method ? library.scratch_size(method) : 0;
    unsigned char *scratch = size > 0 ? OPENSSL_malloc((size_t)size) : NULL;
    if (scratch == NULL)
        return 0;
    for (int lane = 0; lane < LANES; lane++) {
        p[lane] = key->p;
        q[lane] = key->q;
        dp[lane] = key->dp;
        dq[lane] = key->dq;
        qinv[lane] = key->qinv;
    }
    const uint32_t status =
        library.crt(messages, signatures, p, q, dp, dq, qinv, 8 * CRYPTO_MB_RSA_BYTES, method, scratch);
    OPENSSL_clear_free(scratch, (size_t)size);
    return faultless(status);
}
