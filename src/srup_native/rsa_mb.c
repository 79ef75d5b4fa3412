/* Eight RSA-2048 verifications at once: one message per 64-bit lane of the 512-bit registers.
 *
 * What it computes: for each lane, m = s^65537 mod n, and whether m is the complete encoded message
 * 00 01 FF .. FF 00 DigestInfo(SHA-256) digest (RFC 8017, section 9.2). Public data only; no secret ever comes here, so
 * nothing needs to run in constant time.
 *
 * Why it is safe: the caller takes a lane for good only if the kernel accepts it, and gives every other lane to OpenSSL.
 * A lane is accepted only if all 2,080 bits of the result equal the one encoded message that the digest allows, and only
 * if s < n, so that s + n, which OpenSSL refuses, is not taken either. A fault in the arithmetic can make a genuine
 * message slow; to make a forged one pass it would have to produce exactly the encoded message.
 *
 * Numbers: RSA_MB_LIMBS = 40 limbs of 52 bits, least significant first, R = 2^(40*52) = 2^2080. `vec x[40]` holds
 * limb i of all eight numbers in x[i]. VPMADD52LUQ/HUQ multiply the low 52 bits of two lanes and add the low or high
 * 52 bits of the product to a 64-bit accumulator: no carries in the inner loops.
 *
 * Method: almost-Montgomery multiplication (S. Gueron, V. Krasnov: "Software implementation of modular exponentiation,
 * using advanced vector instructions architectures", 2012), by product scanning in blocks of 8 x 8 limbs, so that the
 * 16 columns of a block and the 8 limbs of one operand stay in registers.
 *
 * Bounds, which every function below relies on:
 *  (1) A column gets at most 2*40 products' halves from a*b and as many from q*n, each below 2^52, and a carry below
 *      2^12 from its neighbour: less than 160 * 2^52 + 2^12 < 2^60. Doubling half of them, as squaring does, gives no
 *      more terms than that. 64 bits never overflow.
 *  (2) Operands have limbs below 2^52: the carry pass at the end of each multiplication sees to it; VPMADD52 would
 *      silently drop higher bits.
 *  (3) With a, b < 2^2049 the result is (a*b + q*n)/R < 2^4098/2^2080 + n < 2^2018 + n < 2^2049: no subtraction of n
 *      is needed on the way, and the result fits the 2,080 bits.
 *  (4) The last multiplication has plain s < n as one operand: the result is s*x/R mod n, below n + 2^2018. Should it be
 *      n or more it is not the encoded message (which is below 2^2033 < n), is not accepted, and OpenSSL decides.
 */
#include "rsa_mb.h"

#include <string.h>

#include <openssl/bn.h>

#define LIMBS RSA_MB_LIMBS
#define BLOCK 8
#define BLOCKS (LIMBS / BLOCK)
#define LIMB_BITS 52
#define MASK ((UINT64_C(1) << LIMB_BITS) - 1)

/* --- Scalar parts --------------------------------------------------------------------------------------------- */

/* Split a big-endian number of RSA_MB_BYTES bytes into limbs. */
static void to_limbs(uint64_t limbs[LIMBS], const unsigned char bytes[RSA_MB_BYTES])
{
    uint64_t pending = 0; /* bits that have been read and belong to the next limbs: fewer than 60 */
    int have = 0, limb = 0;
    for (int i = RSA_MB_BYTES - 1; i >= 0; i--) {
        pending |= (uint64_t)bytes[i] << have;
        have += 8;
        if (have >= LIMB_BITS) {
            limbs[limb++] = pending & MASK;
            pending >>= LIMB_BITS;
            have -= LIMB_BITS;
        }
    }
    limbs[limb] = pending; /* 2048 = 39 * 52 + 20 */
}

/* R^2 mod n = 2^4160 mod n as limbs, by OpenSSL. */
static int r_squared(uint64_t limbs[LIMBS], const unsigned char modulus[RSA_MB_BYTES])
{
    unsigned char bytes[RSA_MB_BYTES];
    BN_CTX *context = BN_CTX_new();
    BIGNUM *n = BN_bin2bn(modulus, RSA_MB_BYTES, NULL), *power = BN_new();
    int done = context && n && power && BN_set_bit(power, 2 * LIMBS * LIMB_BITS) && BN_mod(power, power, n, context)
               && BN_bn2binpad(power, bytes, RSA_MB_BYTES) == RSA_MB_BYTES;
    if (done)
        to_limbs(limbs, bytes);
    BN_free(power);
    BN_free(n);
    BN_CTX_free(context);
    return done;
}

int rsa_mb_prepare(rsa_mb_key *key, const unsigned char modulus[RSA_MB_BYTES])
{
    if (!(modulus[0] & 0x80) || !(modulus[RSA_MB_BYTES - 1] & 1) || !r_squared(key->rr, modulus))
        return 0;
    to_limbs(key->n, modulus);
    /* Newton's iteration for 1/n mod 2^64: an odd n is its own inverse mod 8, and each step doubles the good bits. */
    uint64_t inverse = key->n[0] | key->n[1] << LIMB_BITS, n = inverse;
    for (int good = 3; good < 64; good *= 2)
        inverse *= 2 - n * inverse;
    key->k0 = -inverse & MASK;
    return 1;
}

/* 00 01 FF .. FF 00, then DigestInfo of SHA-256 (RFC 8017, section 9.2, note 1); the digest goes behind it. */
static const unsigned char digest_info[19] = {0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01,
                                              0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20};

void rsa_mb_encode(unsigned char message[RSA_MB_BYTES], const unsigned char digest[LANES_DIGEST])
{
    const int tail = sizeof digest_info + LANES_DIGEST;
    memset(message, 0xff, RSA_MB_BYTES);
    message[0] = 0x00;
    message[1] = 0x01;
    message[RSA_MB_BYTES - tail - 1] = 0x00;
    memcpy(message + RSA_MB_BYTES - tail, digest_info, sizeof digest_info);
    memcpy(message + RSA_MB_BYTES - LANES_DIGEST, digest, LANES_DIGEST);
}

int rsa_mb_fits(const lane_job *job)
{
    return job->size == RSA_MB_BYTES; /* rsa_mb_accept sees to s < n */
}

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#define KERNEL __attribute__((target("avx512f,avx512ifma")))
#define INLINE KERNEL static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef __m512i vec;

/* Whether a < b; both with limbs below 2^52. */
static int is_less(const uint64_t a[LIMBS], const uint64_t b[LIMBS])
{
    for (int i = LIMBS - 1; i >= 0; i--)
        if (a[i] != b[i])
            return a[i] < b[i];
    return 0;
}

int rsa_mb_supported(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512ifma");
}

/* --- Blocks of 8 x 8 limbs: columns 0 to 15 of the product are added to c[0..15] ------------------------------- */

INLINE void add_product(vec c[2 * BLOCK], const vec *a, const vec *b)
{
    vec x[BLOCK];
    UNROLL for (int i = 0; i < BLOCK; i++) x[i] = a[i];
    UNROLL for (int j = 0; j < BLOCK; j++)
    {
        const vec y = b[j];
        UNROLL for (int i = 0; i < BLOCK; i++) c[i + j] = _mm512_madd52lo_epu64(c[i + j], x[i], y);
        UNROLL for (int i = 0; i < BLOCK; i++) c[i + j + 1] = _mm512_madd52hi_epu64(c[i + j + 1], x[i], y);
    }
}

/* The products a[i]*a[j] with i < j only; to be doubled. */
INLINE void add_triangle(vec c[2 * BLOCK], const vec *a)
{
    vec x[BLOCK];
    UNROLL for (int i = 0; i < BLOCK; i++) x[i] = a[i];
    UNROLL for (int j = 1; j < BLOCK; j++)
    {
        UNROLL for (int i = 0; i < j; i++) c[i + j] = _mm512_madd52lo_epu64(c[i + j], x[i], x[j]);
        UNROLL for (int i = 0; i < j; i++) c[i + j + 1] = _mm512_madd52hi_epu64(c[i + j + 1], x[i], x[j]);
    }
}

/* The squares a[i]*a[i]. */
INLINE void add_squares(vec c[2 * BLOCK], const vec *a)
{
    UNROLL for (int i = 0; i < BLOCK; i++)
    {
        c[2 * i] = _mm512_madd52lo_epu64(c[2 * i], a[i], a[i]);
        c[2 * i + 1] = _mm512_madd52hi_epu64(c[2 * i + 1], a[i], a[i]);
    }
}

/* Choose eight quotient digits q so that the low eight columns of c + q*n become multiples of 2^52, add q times the
 * lowest block of n, and carry what is left of them upwards. */
INLINE void reduce_low(vec c[2 * BLOCK], vec q[BLOCK], const vec *n, vec k0)
{
    const vec zero = _mm512_setzero_si512();
    UNROLL for (int k = 0; k < BLOCK; k++)
    {
        const vec digit = _mm512_madd52lo_epu64(zero, c[k], k0);
        q[k] = digit;
        UNROLL for (int i = 0; i < BLOCK; i++) c[k + i] = _mm512_madd52lo_epu64(c[k + i], digit, n[i]);
        c[k + 1] = _mm512_add_epi64(c[k + 1], _mm512_srli_epi64(c[k], LIMB_BITS));
        UNROLL for (int i = 0; i < BLOCK; i++) c[k + i + 1] = _mm512_madd52hi_epu64(c[k + i + 1], digit, n[i]);
    }
}

/* The low half of the columns is done with; the high half is the low one of the next block. */
INLINE void move_on(vec c[2 * BLOCK])
{
    UNROLL for (int i = 0; i < BLOCK; i++)
    {
        c[i] = c[i + BLOCK];
        c[i + BLOCK] = _mm512_setzero_si512();
    }
}

/* Bring limbs back below 2^52; the value is below 2^2080, so nothing is carried out at the top. */
INLINE void carry(vec r[LIMBS])
{
    const vec mask = _mm512_set1_epi64(MASK);
    vec over = _mm512_setzero_si512();
    for (int i = 0; i < LIMBS; i++) {
        const vec limb = _mm512_add_epi64(r[i], over);
        over = _mm512_srli_epi64(limb, LIMB_BITS);
        r[i] = _mm512_and_epi64(limb, mask);
    }
}

/* --- Montgomery arithmetic ------------------------------------------------------------------------------------- */

/* r = a*b/R mod n (not quite reduced, bound 3). r may be a or b. */
KERNEL static void multiply(vec r[LIMBS], const vec a[LIMBS], const vec b[LIMBS], const vec n[LIMBS], vec k0)
{
    vec q[LIMBS], high[LIMBS], c[2 * BLOCK];
    UNROLL for (int i = 0; i < 2 * BLOCK; i++) c[i] = _mm512_setzero_si512();
    for (int column = 0; column < 2 * BLOCKS - 1; column++) {
        const int first = column < BLOCKS ? 0 : column - BLOCKS + 1;
        const int last = column < BLOCKS ? column : BLOCKS - 1;
        for (int i = first; i <= last; i++) add_product(c, a + BLOCK * i, b + BLOCK * (column - i));
        for (int i = first; i <= last && i < column; i++) add_product(c, q + BLOCK * i, n + BLOCK * (column - i));
        if (column < BLOCKS)
            reduce_low(c, q + BLOCK * column, n, k0);
        else
            UNROLL for (int i = 0; i < BLOCK; i++) high[BLOCK * (column - BLOCKS) + i] = c[i];
        move_on(c);
    }
    UNROLL for (int i = 0; i < BLOCK; i++) high[LIMBS - BLOCK + i] = c[i];
    carry(high);
    memcpy(r, high, sizeof high);
}

/* r = a*a/R mod n: the products above the diagonal once and doubled, then the squares. r may be a. */
KERNEL static void square(vec r[LIMBS], const vec a[LIMBS], const vec n[LIMBS], vec k0)
{
    vec q[LIMBS], high[LIMBS], c[2 * BLOCK];
    UNROLL for (int i = 0; i < 2 * BLOCK; i++) c[i] = _mm512_setzero_si512();
    for (int column = 0; column < 2 * BLOCKS - 1; column++) {
        const int first = column < BLOCKS ? 0 : column - BLOCKS + 1;
        const int last = column < BLOCKS ? column : BLOCKS - 1;
        vec d[2 * BLOCK];
        UNROLL for (int i = 0; i < 2 * BLOCK; i++) d[i] = _mm512_setzero_si512();
        for (int i = first; 2 * i < column; i++) add_product(d, a + BLOCK * i, a + BLOCK * (column - i));
        if (column % 2 == 0)
            add_triangle(d, a + BLOCK * (column / 2));
        UNROLL for (int i = 0; i < 2 * BLOCK; i++) c[i] = _mm512_add_epi64(c[i], _mm512_add_epi64(d[i], d[i]));
        if (column % 2 == 0)
            add_squares(c, a + BLOCK * (column / 2));
        for (int i = first; i <= last && i < column; i++) add_product(c, q + BLOCK * i, n + BLOCK * (column - i));
        if (column < BLOCKS)
            reduce_low(c, q + BLOCK * column, n, k0);
        else
            UNROLL for (int i = 0; i < BLOCK; i++) high[BLOCK * (column - BLOCKS) + i] = c[i];
        move_on(c);
    }
    UNROLL for (int i = 0; i < BLOCK; i++) high[LIMBS - BLOCK + i] = c[i];
    carry(high);
    memcpy(r, high, sizeof high);
}

/* --- Lanes ------------------------------------------------------------------------------------------------------- */

/* x[i] = limb i of eight numbers that lie at the addresses in `at`. */
INLINE void gather(vec x[LIMBS], vec at)
{
    for (int i = 0; i < LIMBS; i++)
        x[i] = _mm512_i64gather_epi64(_mm512_add_epi64(at, _mm512_set1_epi64(8 * i)), NULL, 1);
}

KERNEL unsigned rsa_mb_accept(const lane_job jobs[LANES])
{
    uint64_t signature[LANES][LIMBS], expected[LANES][LIMBS];
    uint64_t n_at[LANES], rr_at[LANES], signature_at[LANES], expected_at[LANES], k0s[LANES];
    unsigned accepted = 0;
    for (int lane = 0; lane < LANES; lane++) {
        unsigned char message[RSA_MB_BYTES];
        const rsa_mb_key *key = jobs[lane].key;
        rsa_mb_encode(message, jobs[lane].digest);
        to_limbs(expected[lane], message);
        to_limbs(signature[lane], jobs[lane].signature);
        accepted |= (unsigned)is_less(signature[lane], key->n) << lane;
        n_at[lane] = (uint64_t)(uintptr_t)key->n;
        rr_at[lane] = (uint64_t)(uintptr_t)key->rr;
        signature_at[lane] = (uint64_t)(uintptr_t)signature[lane];
        expected_at[lane] = (uint64_t)(uintptr_t)expected[lane];
        k0s[lane] = key->k0;
    }
    vec n[LIMBS], s[LIMBS], x[LIMBS];
    const vec k0 = _mm512_loadu_si512(k0s);
    gather(n, _mm512_loadu_si512(n_at));
    gather(s, _mm512_loadu_si512(signature_at));
    gather(x, _mm512_loadu_si512(rr_at));
    multiply(x, x, s, n, k0); /* s*R, the Montgomery form */
    for (int i = 0; i < 16; i++)
        square(x, x, n, k0); /* s^65536 * R */
    multiply(x, x, s, n, k0); /* times plain s, which leaves the Montgomery form: s^65537 */
    gather(s, _mm512_loadu_si512(expected_at));
    for (int i = 0; i < LIMBS; i++)
        accepted &= _mm512_cmpeq_epi64_mask(x[i], s[i]);
    return accepted;
}

#else

int rsa_mb_supported(void)
{
    return 0;
}

unsigned rsa_mb_accept(const lane_job jobs[LANES])
{
    (void)jobs;
    return 0;
}

#endif
