/* A crypto_mb for tests: it passes what it is asked on to the real one, and lies about it as it is told. */
#include <stdint.h>
#include <string.h>

enum { HONEST, ACCEPTS, REFUSES, NONSENSE };

int verifying = HONEST, signing = HONEST, applicable = 1, passes = 0;
void *real_ed25519, *real_p256, *real_method, *real_size, *real_crt; /* may be missing where nobody is honest */

typedef const void *const *pointers;
typedef uint32_t ed25519_function(pointers, pointers, pointers, const uint32_t *, pointers);
typedef uint32_t p256_function(pointers, pointers, pointers, pointers, pointers, pointers, uint8_t *);
typedef const void *method_function(int);
typedef int size_function(const void *);
typedef uint32_t crt_function(pointers, uint8_t *const *, pointers, pointers, pointers, pointers, pointers, int,
                              const void *, uint8_t *);

static uint32_t answer(uint32_t honest)
{
    static uint32_t state = 1;
    passes++;
    state = state * 1664525 + 1013904223;
    return verifying == ACCEPTS ? 0 : verifying == REFUSES ? 0x11111111 : verifying == NONSENSE ? state : honest;
}

int mbx_is_crypto_mb_applicable(uint64_t features)
{
    (void)features;
    return applicable;
}

#ifndef OLD
uint32_t mbx_ed25519_verify_mb8(pointers r, pointers s, pointers messages, const uint32_t *sizes, pointers keys)
{
    return answer(verifying == HONEST ? ((ed25519_function *)real_ed25519)(r, s, messages, sizes, keys) : 0);
}
#endif

uint32_t mbx_nistp256_ecdsa_verify_mb8(pointers r, pointers s, pointers digests, pointers x, pointers y, pointers z,
                                       uint8_t *scratch)
{
    return answer(verifying == HONEST ? ((p256_function *)real_p256)(r, s, digests, x, y, z, scratch) : 0);
}

const void *mbx_RSA_private_crt_Method(int bits)
{
    return signing == NONSENSE ? "none" : ((method_function *)real_method)(bits);
}

int mbx_RSA_Method_BufSize(const void *method)
{
    return signing == NONSENSE ? 64 : ((size_function *)real_size)(method);
}

/* ACCEPTS: one bit of lane 2 is wrong, and it says that all is well. REFUSES: it says of itself that it failed. */
uint32_t mbx_rsa_private_crt_mb8(pointers from, uint8_t *const *to, pointers p, pointers q, pointers dp, pointers dq,
                                 pointers qinv, int bits, const void *method, uint8_t *scratch)
{
    passes++;
    if (signing == NONSENSE) {
        for (int lane = 0; lane < 8; lane++)
            memset(to[lane], 0x5a, 256);
        return 0;
    }
    const uint32_t status = ((crt_function *)real_crt)(from, to, p, q, dp, dq, qinv, bits, method, scratch);
    if (signing == ACCEPTS)
        to[2][100] ^= 4;
    return signing == REFUSES ? 0x22222222 : status;
}
