/* What every kind of lane is shown: eight signatures at a time, each with the key of its scheme.
 *
 * A lane may only accept. A signature that it does not accept is undecided, and OpenSSL has the last word. */
#ifndef SRUP_LANES_H
#define SRUP_LANES_H

#include <stddef.h>
#include <stdint.h>

enum { LANES = 8, LANES_DIGEST = 32 };

/* One signature to check: all pointers must be valid, also in lanes that repeat another one. */
typedef struct {
    const void *key;                /* what the scheme's lanes need of it: rsa_mb_key, crypto_mb_p256, crypto_mb_ed25519 */
    const unsigned char *signature; /* as it stands in the message */
    size_t size;                    /* of the signature, in bytes */
    const unsigned char *digest;    /* LANES_DIGEST bytes, the SHA-256 of what was signed */
} lane_job;

/* Ask for a key's memory ahead of its use. */
static inline void lane_prefetch(const void *key, size_t size)
{
#if defined(__GNUC__)
    for (size_t at = 0; at < size; at += 64)
        __builtin_prefetch((const char *)key + at);
#else
    (void)key;
    (void)size;
#endif
}

#endif
