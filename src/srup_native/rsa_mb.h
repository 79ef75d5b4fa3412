/* Verification of eight RSA-2048 signatures at once, with AVX512-IFMA; see rsa_mb.c for how and why it is safe.
 *
 * The kernel may only accept. A lane that it does not accept is undecided, and OpenSSL has the last word. */
#ifndef SRUP_RSA_MB_H
#define SRUP_RSA_MB_H

#include "lanes.h"

enum { RSA_MB_LIMBS = 40, RSA_MB_BYTES = 256 };

/* What the kernel needs of a public key with a modulus n of exactly 2048 bits and e = 65537. */
typedef struct {
    uint64_t n[RSA_MB_LIMBS];  /* the modulus, 52 bits a limb, least significant first */
    uint64_t rr[RSA_MB_LIMBS]; /* R^2 mod n, R = 2^2080 */
    uint64_t k0;               /* -1/n mod 2^52 */
} rsa_mb_key;

/* Whether this build has the kernel and this CPU can run it. */
int rsa_mb_supported(void);

/* Fill in `key` from a big-endian modulus and return 1; return 0 if it is even, not of 2048 bits, or memory is short. */
int rsa_mb_prepare(rsa_mb_key *key, const unsigned char modulus[RSA_MB_BYTES]);

/* Whether a signature may be shown to the kernel. */
int rsa_mb_fits(const lane_job *job);

/* Return a mask: bit i says that jobs[i] is a good PKCS #1 v1.5 signature over its SHA-256. Only if supported, and for
 * jobs that fit. */
unsigned rsa_mb_accept(const lane_job jobs[LANES]);

/* Write the encoded message of a digest (RFC 8017, section 9.2). */
void rsa_mb_encode(unsigned char message[RSA_MB_BYTES], const unsigned char digest[LANES_DIGEST]);

#endif
