#include "worker/api/password.h"

#include "worker/api/text.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <openssl/rand.h>

#include <pthread.h>
#include <stdio.h>

#define PASSWORD_SALT_BYTES 16
#define PASSWORD_HASH_BYTES 32
#define PASSWORD_R          8
#define PASSWORD_P          3
#define PASSWORD_COST_MIN   4
#define PASSWORD_COST_MAX   20
#define PASSWORD_P_MAX      16

struct password_form {
    unsigned cost, r, p;
    uint8_t salt[PASSWORD_SALT_BYTES];
    uint8_t hash[PASSWORD_HASH_BYTES];
};

static pthread_mutex_t password_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t password_free = PTHREAD_COND_INITIALIZER;
static size_t password_memory = 64UL * 1024 * 1024;
static size_t password_used;
static unsigned password_threads = 4; /* that may hash, or wait for it */
static unsigned password_inside, password_running;
static unsigned password_cost = 15;

void
password_setup(size_t memory, unsigned cost, unsigned threads)
{
    pthread_mutex_lock(&password_lock);
    password_memory = memory;
    password_cost = cost;
    password_threads = threads;
    pthread_mutex_unlock(&password_lock);
}

/* Of the current cost; its salt and hash are zeros, and no password has that hash. */
static struct password_form
password_new(void)
{
    struct password_form form = {.r = PASSWORD_R, .p = PASSWORD_P};

    pthread_mutex_lock(&password_lock);
    form.cost = password_cost;
    pthread_mutex_unlock(&password_lock);
    return form;
}

/* 128 N r for the large table, 128 r p beside it. */
static size_t
password_bytes(const struct password_form *form)
{
    return 128UL * form->r * ((1UL << form->cost) + form->p + 2);
}

/* One hash always runs, however large; more of them as far as the memory goes. */
static bool
password_enter(size_t bytes)
{
    bool entered = false;

    pthread_mutex_lock(&password_lock);
    if (password_inside < password_threads) {
        password_inside++;
        while (password_running > 0 && password_used + bytes > password_memory) {
            pthread_cond_wait(&password_free, &password_lock);
        }
        password_running++;
        password_used += bytes;
        entered = true;
    }
    pthread_mutex_unlock(&password_lock);

    return entered;
}

static void
password_leave(size_t bytes)
{
    pthread_mutex_lock(&password_lock);
    password_inside--;
    password_running--;
    password_used -= bytes;
    pthread_cond_broadcast(&password_free);
    pthread_mutex_unlock(&password_lock);
}

static bool
password_scrypt(
    struct aff_slice password, const struct password_form *form, uint8_t hash[PASSWORD_HASH_BYTES])
{
    uint64_t n = 1ULL << form->cost, memory = 2 * password_bytes(form);
    uint32_t r = form->r, p = form->p;
    EVP_KDF *kdf;
    EVP_KDF_CTX *ctx = NULL;
    bool ok = false;

    /* OpenSSL takes its inputs as pointers to what is not const, and only reads them. */
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_octet_string(
            OSSL_KDF_PARAM_PASSWORD, (void *) password.data, password.len),
        OSSL_PARAM_construct_octet_string(
            OSSL_KDF_PARAM_SALT, (void *) form->salt, sizeof(form->salt)),
        OSSL_PARAM_construct_uint64(OSSL_KDF_PARAM_SCRYPT_N, &n),
        OSSL_PARAM_construct_uint32(OSSL_KDF_PARAM_SCRYPT_R, &r),
        OSSL_PARAM_construct_uint32(OSSL_KDF_PARAM_SCRYPT_P, &p),
        OSSL_PARAM_construct_uint64(OSSL_KDF_PARAM_SCRYPT_MAXMEM, &memory),
        OSSL_PARAM_construct_end(),
    };

    ERR_set_mark();
    kdf = EVP_KDF_fetch(NULL, "SCRYPT", NULL);
    if (kdf != NULL) {
        ctx = EVP_KDF_CTX_new(kdf);
    }

    if (ctx != NULL) {
        ok = EVP_KDF_derive(ctx, hash, PASSWORD_HASH_BYTES, params) > 0;
    }

    EVP_KDF_CTX_free(ctx);
    EVP_KDF_free(kdf);
    ERR_pop_to_mark();
    return ok;
}

static bool
password_parse(const char *stored, struct password_form *form)
{
    const size_t salt_chars = TEXT_BASE64_CHARS(PASSWORD_SALT_BYTES);
    const size_t hash_chars = TEXT_BASE64_CHARS(PASSWORD_HASH_BYTES);
    int end = 0;

    /* NOLINTNEXTLINE(cert-err34-c): bounded widths, and the bounds are checked below */
    if (sscanf(stored, "$scrypt$ln=%2u,r=%2u,p=%2u$%n", &form->cost, &form->r, &form->p, &end) !=
            3 ||
        end == 0 || strlen(stored + end) != salt_chars + 1 + hash_chars ||
        stored[(size_t) end + salt_chars] != '$') {
        return false;
    }

    return form->cost >= PASSWORD_COST_MIN && form->cost <= PASSWORD_COST_MAX &&
           form->r == PASSWORD_R && form->p >= 1 && form->p <= PASSWORD_P_MAX &&
           text_from_base64(
               aff_slice(stored + end, salt_chars), false, form->salt, sizeof(form->salt)) &&
           text_from_base64(aff_slice(stored + end + salt_chars + 1, hash_chars), false, form->hash,
               sizeof(form->hash));
}

enum password_result
password_hash(struct aff_slice password, char stored[PASSWORD_STORED_MAX])
{
    struct password_form form = password_new();
    char salt[TEXT_BASE64_CHARS(PASSWORD_SALT_BYTES) + 1];
    char hash[TEXT_BASE64_CHARS(PASSWORD_HASH_BYTES) + 1];
    bool ok;

    if (RAND_bytes(form.salt, sizeof(form.salt)) != 1) {
        return PASSWORD_FAILED;
    }

    if (!password_enter(password_bytes(&form))) {
        return PASSWORD_BUSY;
    }

    ok = password_scrypt(password, &form, form.hash);
    password_leave(password_bytes(&form));

    text_base64(aff_slice(form.salt, sizeof(form.salt)), false, salt);
    text_base64(aff_slice(form.hash, sizeof(form.hash)), false, hash);
    snprintf(stored, PASSWORD_STORED_MAX, "$scrypt$ln=%u,r=%u,p=%u$%s$%s", form.cost, form.r,
        form.p, salt, hash);
    OPENSSL_cleanse(&form, sizeof(form));
    OPENSSL_cleanse(hash, sizeof(hash));
    return ok ? PASSWORD_RIGHT : PASSWORD_FAILED;
}

enum password_result
password_verify(struct aff_slice password, const char *stored, bool *outdated)
{
    const struct password_form current = password_new();
    struct password_form form = current;
    uint8_t hash[PASSWORD_HASH_BYTES];
    enum password_result result = PASSWORD_FAILED;
    bool same;

    *outdated = false;
    if (stored != NULL && !password_parse(stored, &form)) {
        return PASSWORD_FAILED;
    }

    if (!password_enter(password_bytes(&form))) {
        return PASSWORD_BUSY;
    }

    if (password_scrypt(password, &form, hash)) {
        same = CRYPTO_memcmp(hash, form.hash, sizeof(hash)) == 0;
        result = same && stored != NULL ? PASSWORD_RIGHT : PASSWORD_WRONG;
        *outdated = form.cost != current.cost || form.p != current.p;
    }

    password_leave(password_bytes(&form));
    OPENSSL_cleanse(hash, sizeof(hash));
    OPENSSL_cleanse(&form, sizeof(form));
    return result;
}
