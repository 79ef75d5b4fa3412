/* Verification of eight RSA-2048 signatures at once, with AVX512-IFMA; see rsa_mb.c for how and why it is safe.
 *
 * The kernel may only accept. A lane that it does not accept is undecided, and OpenSSL has the last word. */
#ifndef SRUP_RSA_MB_H
#define SRUP_RSA_MB_H

#include <stdint.h>

enum { RSA_MB_LANES = 8, RSA_MB_LIMBS = 40, RSA_MB_BYTES = 256, RSA_MB_DIGEST = 32 };

/* What the kernel needs of a public key with a modulus n of exactly 2048 bits and e = 65537. */
typedef struct {
    uint64_t n[RSA_MB_LIMBS];  /* the modulus, 52 bits a limb, least significant first */
    uint64_t rr[RSA_MB_LIMBS]; /* R^2 mod n, R = 2^2080 */
    uint64_t k0;               /* -1/n mod 2^52 */
} rsa_mb_key;

/* One signature to check: all pointers must be valid, also in lanes that repeat another one. */
typedef struct {
    const rsa_mb_key *key;
    const unsigned char *signature; /* RSA_MB_BYTES, big-endian */
    const unsigned char *digest;    /* RSA_MB_DIGEST, the SHA-256 of what was signed */
} rsa_mb_job;

/* Whether this build has the kernel and this CPU can run it. */
int rsa_mb_supported(void);

/* Fill in `key` from a big-endian modulus and return 1; return 0 if it is even, not of 2048 bits, or memory is short. */
int rsa_mb_prepare(rsa_mb_key *key, const unsigned char modulus[RSA_MB_BYTES]);

/* Ask for the key's memory ahead of its use. */
static inline void rsa_mb_prefetch(const rsa_mb_key *key)
{
#if defined(__GNUC__)
    for (unsigned at = 0; at < sizeof *key; at += 64)
        __builtin_prefetch((const char *)key + at);
#else
    (void)key;
#endif
}

/* Return a mask: bit i says that jobs[i] is a good PKCS #1 v1.5 signature over its SHA-256. Only if supported. */
unsigned rsa_mb_accept(const rsa_mb_job jobs[RSA_MB_LANES]);

#endif
