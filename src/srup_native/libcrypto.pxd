"""The declarations of OpenSSL 3 that are used. See the manual pages of each function."""

cdef extern from "openssl/crypto.h" nogil:
    const char* OpenSSL_version(int what)
    unsigned long OpenSSL_version_num()
    void OPENSSL_thread_stop()
    void* OPENSSL_zalloc(size_t size)
    void OPENSSL_clear_free(void* memory, size_t size)
    void OPENSSL_cleanse(void* memory, size_t size)

cdef extern from "openssl/bn.h" nogil:
    ctypedef struct BIGNUM
    void BN_free(BIGNUM* number)
    void BN_clear_free(BIGNUM* number)
    int BN_num_bits(const BIGNUM* number)
    int BN_is_word(const BIGNUM* number, unsigned long word)
    int BN_bn2binpad(const BIGNUM* number, unsigned char* target, int size)
    int BN_bn2lebinpad(const BIGNUM* number, unsigned char* target, int size)

cdef extern from "openssl/evp.h" nogil:
    ctypedef struct EVP_PKEY
    ctypedef struct EVP_PKEY_CTX
    ctypedef struct EVP_MD
    ctypedef struct EVP_MD_CTX
    ctypedef struct ENGINE
    ctypedef struct OSSL_LIB_CTX

    void EVP_PKEY_free(EVP_PKEY* key)
    int EVP_PKEY_is_a(const EVP_PKEY* key, const char* name)
    int EVP_PKEY_get_size(const EVP_PKEY* key)
    int EVP_PKEY_get_bn_param(const EVP_PKEY* key, const char* name, BIGNUM** number)
    int EVP_PKEY_get_group_name(const EVP_PKEY* key, char* name, size_t size, size_t* length)
    int EVP_PKEY_get_raw_public_key(const EVP_PKEY* key, unsigned char* target, size_t* size)
    EVP_PKEY_CTX* EVP_PKEY_CTX_new(EVP_PKEY* key, ENGINE* engine)
    EVP_PKEY_CTX* EVP_PKEY_CTX_dup(const EVP_PKEY_CTX* context)
    void EVP_PKEY_CTX_free(EVP_PKEY_CTX* context)
    int EVP_PKEY_CTX_set_signature_md(EVP_PKEY_CTX* context, const EVP_MD* md)
    int EVP_PKEY_verify_init(EVP_PKEY_CTX* context)
    int EVP_PKEY_verify(
        EVP_PKEY_CTX* context, const unsigned char* signature, size_t size, const unsigned char* digest, size_t length
    )
    int EVP_PKEY_sign_init(EVP_PKEY_CTX* context)
    int EVP_PKEY_sign(
        EVP_PKEY_CTX* context, unsigned char* signature, size_t* size, const unsigned char* digest, size_t length
    )
    int EVP_default_properties_is_fips_enabled(OSSL_LIB_CTX* library)
    const EVP_MD* EVP_sha256()
    EVP_MD* EVP_MD_fetch(OSSL_LIB_CTX* library, const char* algorithm, const char* properties)
    EVP_MD_CTX* EVP_MD_CTX_new()
    void EVP_MD_CTX_free(EVP_MD_CTX* context)
    int EVP_DigestInit_ex(EVP_MD_CTX* context, const EVP_MD* md, ENGINE* engine)
    int EVP_DigestUpdate(EVP_MD_CTX* context, const void* data, size_t size)
    int EVP_DigestFinal_ex(EVP_MD_CTX* context, unsigned char* digest, unsigned int* size)
    int EVP_MD_CTX_copy_ex(EVP_MD_CTX* target, const EVP_MD_CTX* source)
    int EVP_DigestVerifyInit(
        EVP_MD_CTX* context, EVP_PKEY_CTX** inner, const EVP_MD* md, ENGINE* engine, EVP_PKEY* key
    )
    int EVP_DigestVerify(
        EVP_MD_CTX* context, const unsigned char* signature, size_t size, const unsigned char* data, size_t length
    )
    int EVP_DigestSignInit(EVP_MD_CTX* context, EVP_PKEY_CTX** inner, const EVP_MD* md, ENGINE* engine, EVP_PKEY* key)
    int EVP_DigestSign(
        EVP_MD_CTX* context, unsigned char* signature, size_t* size, const unsigned char* data, size_t length
    )

cdef extern from "openssl/rsa.h" nogil:
    enum: RSA_PKCS1_PADDING
    int EVP_PKEY_CTX_set_rsa_padding(EVP_PKEY_CTX* context, int padding)

cdef extern from "openssl/x509.h" nogil:
    EVP_PKEY* d2i_PUBKEY(EVP_PKEY** key, const unsigned char** der, long size)
    EVP_PKEY* d2i_AutoPrivateKey(EVP_PKEY** key, const unsigned char** der, long size)

cdef extern from "openssl/sha.h" nogil:
    enum: SHA256_DIGEST_LENGTH

cdef extern from "openssl/err.h" nogil:
    void ERR_clear_error()
