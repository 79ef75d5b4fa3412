/* Eight signatures at once by Intel's crypto_mb, which is loaded at run time; see crypto_mb.c for what is checked first. */
#ifndef SRUP_CRYPTO_MB_H
#define SRUP_CRYPTO_MB_H

#include "lanes.h"

enum { CRYPTO_MB_RSA_BYTES = 256, CRYPTO_MB_PRIME_BYTES = CRYPTO_MB_RSA_BYTES / 2 };

/* A point of P-256 that has been checked to be on the curve; little-endian words. */
typedef struct {
    uint64_t x[4], y[4];
} crypto_mb_p256;

/* An Ed25519 public key as it is encoded, which crypto_mb_ed25519_takes. */
typedef struct {
    unsigned char bytes[32];
} crypto_mb_ed25519;

/* A private RSA-2048 key (RFC 8017, section 3.2) with two primes of 1024 bits; little-endian words. A secret. */
typedef struct {
    uint64_t p[CRYPTO_MB_PRIME_BYTES / 8], q[CRYPTO_MB_PRIME_BYTES / 8];
    uint64_t dp[CRYPTO_MB_PRIME_BYTES / 8], dq[CRYPTO_MB_PRIME_BYTES / 8], qinv[CRYPTO_MB_PRIME_BYTES / 8];
} crypto_mb_rsa;

/* Load the library, the last of `count` paths, after those that it needs. Return NULL, or why it cannot be used, in words
 * that are valid until the next call. Nothing below may be called before it has returned NULL once. */
const char *crypto_mb_open(const char *const paths[], int count);

/* Whether the lanes take a public key: 32 bytes, canonical, not of small order. */
int crypto_mb_ed25519_takes(const unsigned char key[32]);

/* Whether a signature may be shown to the lanes: its form and its ranges are what OpenSSL accepts, and nothing special. */
int crypto_mb_ed25519_fits(const lane_job *job);
int crypto_mb_p256_fits(const lane_job *job);

/* Return a mask: bit i says that jobs[i] has a good signature. Only for jobs that fit. */
unsigned crypto_mb_ed25519_accept(const lane_job jobs[LANES]);
unsigned crypto_mb_p256_accept(const lane_job jobs[LANES]);

/* Raise eight encoded messages of CRYPTO_MB_RSA_BYTES to the private exponent. Return a mask: bit i says that the library
 * reports no fault in lane i. The caller must verify what comes out: a faulty signature gives the key away. */
unsigned crypto_mb_rsa_sign(
    unsigned char *const signatures[LANES], const unsigned char *const messages[LANES], const crypto_mb_rsa *key);

#endif
