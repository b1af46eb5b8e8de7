/*
 * What SQL can't do or must not see: passwords, codes, secrets and tokens in the plain. Before an
 * operation they become what is kept of them (fields that begin with '_'); after it, what was
 * sealed is opened for whom it belongs to.
 */

#include "worker/api/exchange.h"
#include "worker/api/password.h"
#include "worker/api/seal.h"
#include "worker/api/totp.h"
#include "worker/token.h"
#include "worker/webhook/sign.h"

#include <openssl/crypto.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <stdlib.h>
#include <time.h>

#define NATIVE_LOGIN_WINDOW_S        600
#define NATIVE_REGISTRATION_WINDOW_S 3600
#define NATIVE_EMAIL_MAX             254
#define NATIVE_ISSUER                "Affiliated"

/* A session's token and its CSRF token, new. */
struct native_session {
    char token[EXCHANGE_TOKEN + 1], csrf[EXCHANGE_TOKEN + 1];
    char token_hash[TEXT_SHA256_CHARS + 1], csrf_hash[TEXT_SHA256_CHARS + 1];
};

static bool
native_memory(struct exchange *x)
{
    return answer_unavailable(x, "There is no memory left.");
}

static bool
native_invalid(struct exchange *x, const char *field, const char *rule)
{
    char pointer[REQUEST_NAME_MAX + 2];

    snprintf(pointer, sizeof(pointer), "/%s", field);
    return answer_problem(x, 422, "invalid_field",
        json_pack("{s:[{s:s, s:s}]}", "errors", "pointer", pointer, "detail", rule), "%s: %s",
        field, rule);
}

/* Only fields of this list may be there; it ends with NULL. */
static bool
native_fields(struct exchange *x, const char *const *known)
{
    const char *name;
    json_t *value;

    json_object_foreach(x->fields, name, value)
    {
        bool found = false;

        for (unsigned i = 0; known[i] != NULL; i++) {
            found = found || strcmp(known[i], name) == 0;
        }

        if (!found) {
            return native_invalid(x, name, "is not a field of this command");
        }
    }

    return true;
}

/* A text of the request, at most `max` bytes; NULL after refusing it. */
static const char *
native_text(struct exchange *x, const char *field, size_t max)
{
    json_t *value = json_object_get(x->fields, field);

    if (value == NULL || json_is_null(value)) {
        native_invalid(x, field, "is required");
    } else if (!json_is_string(value)) {
        native_invalid(x, field, "must be a text");
    } else if (json_string_length(value) == 0 || json_string_length(value) > max) {
        native_invalid(x, field, "is empty or too long");
    } else {
        return json_string_value(value);
    }

    return NULL;
}

static bool
native_set(struct exchange *x, const char *field, const char *text)
{
    return json_object_set_new(x->fields, field, json_string(text)) == 0 || native_memory(x);
}

/* --- passwords ------------------------------------------------------------------------------- */

static bool
native_busy(struct exchange *x)
{
    return answer_problem(x, 503, "unavailable", json_pack("{s:i}", "retry_after", 2),
        "Too many passwords are being checked just now.");
}

static size_t
native_characters(const char *text)
{
    size_t n = 0;

    for (; *text != '\0'; text++) {
        n += ((unsigned char) *text & 0xc0) != 0x80;
    }

    return n;
}

/* `password` becomes `_password`, the form to keep. */
static bool
native_new_password(struct exchange *x)
{
    const char *password = native_text(x, "password", PASSWORD_MAX);
    const char *email = json_string_value(json_object_get(x->fields, "email"));
    char stored[PASSWORD_STORED_MAX];
    enum password_result result;

    if (password == NULL) {
        return false;
    }

    if (native_characters(password) < PASSWORD_MIN) {
        return native_invalid(x, "password", "must have at least 10 characters");
    }

    if (email != NULL && strcasecmp(email, password) == 0) {
        return native_invalid(x, "password", "must not be the e-mail address");
    }

    result = password_hash(aff_slice_of(password), stored);
    if (result != PASSWORD_RIGHT) {
        return result == PASSWORD_BUSY ? native_busy(x) : native_memory(x);
    }

    json_object_del(x->fields, "password");
    return native_set(x, "_password", stored);
}

/* The person whose session it is. The caller frees it; NULL: answered. */
static json_t *
native_person(struct exchange *x)
{
    char *credential = call_credential(x), *meta = call_meta(x);
    const char *values[] = {credential, meta};
    json_t *person = NULL;

    if (x->credential.kind != CREDENTIAL_SESSION) {
        answer_problem(x, 401, "unauthenticated", NULL, "This needs a session.");
    } else if (rate_limit(x, "login", x->config->api.rate_login, NATIVE_LOGIN_WINDOW_S,
                   aff_slice_of(x->credential.session))) {
        person =
            call_value(x, "select affiliate.login_person($1::jsonb, $2::jsonb)", 2, values, true);
    }

    free(credential);
    free(meta);
    return person;
}

/* `current_password` is the person's: it becomes `_current`, what is kept of it. */
static bool
native_current_password(struct exchange *x, const json_t *person)
{
    const char *password = native_text(x, "current_password", PASSWORD_MAX);
    const char *stored = json_string_value(json_object_get(person, "password"));
    bool outdated;

    if (password == NULL) {
        return false;
    }

    switch (password_verify(aff_slice_of(password), stored, &outdated)) {
    case PASSWORD_RIGHT:
        json_object_del(x->fields, "current_password");
        return native_set(x, "_current", stored);
    case PASSWORD_WRONG:
        return native_invalid(x, "current_password", "is not the password");
    case PASSWORD_BUSY:
        return native_busy(x);
    case PASSWORD_FAILED:
        break;
    }

    return native_memory(x);
}

static bool
native_confirmed(struct exchange *x)
{
    json_t *person = native_person(x);
    bool ok = person != NULL && native_current_password(x, person);

    json_decref(person);
    return ok;
}

/* --- sessions -------------------------------------------------------------------------------- */

/* The CSRF token follows from the session's own, so that it can be told again, and who lacks the
 * cookie can't know it. */
static bool
native_csrf(const char *token, char csrf[EXCHANGE_TOKEN + 1])
{
    uint8_t digest[EVP_MAX_MD_SIZE];
    unsigned len = 0;

    if (HMAC(EVP_sha256(), token, EXCHANGE_TOKEN, (const uint8_t *) "csrf", 4, digest, &len) ==
        NULL) {
        return false;
    }

    text_base64(aff_slice(digest, 32), true, csrf);
    return true;
}

static bool
native_session_make(struct native_session *session)
{
    uint8_t random[32];
    bool ok = RAND_bytes(random, sizeof(random)) == 1;

    text_base64(aff_slice(random, sizeof(random)), true, session->token);
    OPENSSL_cleanse(random, sizeof(random));
    ok = ok && native_csrf(session->token, session->csrf);
    text_sha256(aff_slice_of(session->token), session->token_hash);
    text_sha256(aff_slice_of(session->csrf), session->csrf_hash);
    return ok;
}

static void
native_cookie(struct exchange *x, const char *token)
{
    answer_header(x, "Set-Cookie", EXCHANGE_COOKIE "=%s; Path=/; Secure; HttpOnly; SameSite=Lax%s",
        token, token[0] == '\0' ? "; Max-Age=0" : "");
}

static bool
native_show_csrf(struct exchange *x, json_t *row)
{
    char csrf[EXCHANGE_TOKEN + 1];

    if (x->credential.kind != CREDENTIAL_SESSION) {
        return true;
    }

    return (native_csrf(x->credential.token, csrf) &&
               json_object_set_new(row, "csrf", json_string(csrf)) == 0) ||
           native_memory(x);
}

/* --- login ----------------------------------------------------------------------------------- */

struct login {
    const char *password, *code, *recovery;
    int64_t user_id, step; /* step of the code; -1: none */
    char recovery_hash[TEXT_SHA256_CHARS + 1];
    char rehash[PASSWORD_STORED_MAX];
    struct native_session session;
};

/* One answer for all that is wrong, so that it tells nothing. */
static bool
login_refused(struct exchange *x)
{
    return answer_problem(
        x, 401, "invalid_credentials", NULL, "The address, the password or the code is wrong.");
}

static bool
login_rates(struct exchange *x, const char *email)
{
    char account[TEXT_SHA256_CHARS + 1], lower[NATIVE_EMAIL_MAX + 1];
    size_t len = strlen(email);

    for (size_t i = 0; i <= len; i++) {
        lower[i] = (char) (email[i] >= 'A' && email[i] <= 'Z' ? email[i] | 0x20 : email[i]);
    }

    text_sha256(aff_slice(lower, len), account);
    return rate_limit(x, "login", x->config->api.rate_login, NATIVE_LOGIN_WINDOW_S, x->address) &&
           rate_limit(
               x, "login", x->config->api.rate_login, NATIVE_LOGIN_WINDOW_S, aff_slice_of(account));
}

static bool
login_password(struct exchange *x, const json_t *found, struct login *login)
{
    const char *stored = json_string_value(json_object_get(found, "password"));
    bool outdated;

    switch (password_verify(aff_slice_of(login->password), stored, &outdated)) {
    case PASSWORD_RIGHT:
        /* It matters little if that fails: the next login tries again. */
        if (outdated &&
            password_hash(aff_slice_of(login->password), login->rehash) != PASSWORD_RIGHT) {
            login->rehash[0] = '\0';
        }

        return true;
    case PASSWORD_WRONG:
        return login_refused(x);
    case PASSWORD_BUSY:
        return native_busy(x);
    case PASSWORD_FAILED:
        break;
    }

    return native_memory(x);
}

static bool
native_code_right(struct exchange *x, int64_t user_id, const char *sealed, const char *code,
    int64_t last, int64_t *step)
{
    uint8_t secret[SEAL_PLAIN_MAX];
    size_t len = 0;
    bool right;

    if (!seal_open(&x->lane->ring, "totp", user_id, aff_slice_of(sealed), secret, &len) ||
        len != TOTP_SECRET_BYTES) {
        log_error("request %s: the code's secret of person %lld does not open: is the master key "
                  "that sealed it still in the key file?",
            x->id, (long long) user_id);
        return false;
    }

    right = totp_check(secret, aff_slice_of(code), (int64_t) time(NULL), last, step);
    OPENSSL_cleanse(secret, sizeof(secret));
    return right;
}

/* The second factor, of who has one. */
static bool
login_factor(struct exchange *x, const json_t *found, struct login *login)
{
    const char *sealed = json_string_value(json_object_get(found, "totp"));
    json_t *last = json_object_get(found, "totp_step");

    if (sealed == NULL) {
        return true;
    }

    if (login->recovery != NULL) {
        return recovery_hash(aff_slice_of(login->recovery), login->recovery_hash) ||
               login_refused(x);
    }

    if (login->code == NULL) {
        return answer_problem(x, 401, "totp_required", NULL,
            "This account needs a code, too: totp or recovery_code.");
    }

    return native_code_right(x, login->user_id, sealed, login->code,
               json_is_integer(last) ? json_integer_value(last) : -1, &login->step) ||
           login_refused(x);
}

static json_t *
login_end_request(const struct login *login)
{
    json_t *request = json_pack("{s:I, s:s, s:s}", "user_id", (json_int_t) login->user_id, "token",
        login->session.token_hash, "csrf", login->session.csrf_hash);

    if (login->step >= 0) {
        json_object_set_new(request, "totp_step", json_integer(login->step));
    }

    if (login->recovery_hash[0] != '\0') {
        json_object_set_new(request, "recovery", json_string(login->recovery_hash));
    }

    if (login->rehash[0] != '\0') {
        json_object_set_new(request, "password", json_string(login->rehash));
    }

    return request;
}

/* Head, then the session, in one array: a login is never repeated by itself. */
static bool
login_end(struct exchange *x, struct login *login)
{
    json_t *request = login_end_request(login);
    char *text = json_dumps(request, JSON_COMPACT), *meta = call_meta(x);
    const char *values[] = {text, meta};
    json_t *rows = call_value(x,
        "select jsonb_agg(r order by n) "
        "from affiliate.login_end($1::jsonb, $2::jsonb) with ordinality t(r, n)",
        2, values, false);
    struct outcome outcome = {.row = json_incref(json_array_get(rows, 1))};
    bool ok = rows != NULL;

    ok = ok && call_head(x, json_array_get(rows, 0)) &&
         (outcome.row == NULL ||
             (json_object_set_new(outcome.row, "csrf", json_string(login->session.csrf)) == 0)) &&
         answer_row(x, &outcome);
    if (ok) {
        native_cookie(x, login->session.token);
        rate_known(aff_slice_of(login->session.token_hash));
        role_count(x->lane->role, COUNTER_LOGINS, 1);
    }

    outcome_free(&outcome);
    json_decref(rows);
    json_decref(request);
    free(text);
    free(meta);
    return ok;
}

static json_t *
login_begin(struct exchange *x, const char *email)
{
    json_t *request = json_pack("{s:s}", "email", email);
    char *text = json_dumps(request, JSON_COMPACT), *meta = call_meta(x);
    const char *values[] = {text, meta};
    json_t *found =
        call_value(x, "select affiliate.login_begin($1::jsonb, $2::jsonb)", 2, values, true);

    json_decref(request);
    free(text);
    free(meta);
    return found;
}

static bool
login_judge(struct exchange *x, const json_t *found, struct login *login)
{
    json_int_t locked = json_integer_value(json_object_get(found, "locked_for"));

    login->user_id = json_integer_value(json_object_get(found, "user_id"));
    login->step = -1;
    if (locked > 0) {
        return answer_problem(x, 429, "too_many_attempts",
            json_pack("{s:I}", "retry_after", locked),
            "Too many attempts for this address. Try again later.");
    }

    return login_password(x, found, login) && login_factor(x, found, login) &&
           (native_session_make(&login->session) || native_memory(x)) && login_end(x, login);
}

static bool
native_login(struct exchange *x)
{
    static const char *const known[] = {"email", "password", "totp", "recovery_code", NULL};
    struct login login = {.password = NULL};
    const char *email;
    json_t *found;
    bool ok;

    if (!native_fields(x, known) || (email = native_text(x, "email", NATIVE_EMAIL_MAX)) == NULL ||
        (login.password = native_text(x, "password", PASSWORD_MAX)) == NULL ||
        !login_rates(x, email)) {
        return false;
    }

    login.code = json_string_value(json_object_get(x->fields, "totp"));
    login.recovery = json_string_value(json_object_get(x->fields, "recovery_code"));
    found = login_begin(x, email);
    if (found == NULL) {
        return false;
    }

    ok = login_judge(x, found, &login);
    json_decref(found);
    OPENSSL_cleanse(&login, sizeof(login));
    return ok;
}

static bool
native_logout(struct exchange *x, json_t *row)
{
    (void) row;
    native_cookie(x, "");
    return true;
}

/* --- registration, mails --------------------------------------------------------------------- */

static bool
native_registration_rate(struct exchange *x)
{
    return rate_limit(x, "registration", x->config->api.rate_registration,
        NATIVE_REGISTRATION_WINDOW_S, x->address);
}

static bool
native_register(struct exchange *x)
{
    return native_registration_rate(x) && native_new_password(x);
}

/* `token` becomes `_user`, `_nonce`, `_expires`. */
static bool
native_token(struct exchange *x, const char *purpose)
{
    const char *text = native_text(x, "token", 4 * (size_t) TOKEN_CHARS);
    char nonce[2 * TOKEN_NONCE_BYTES + 1];
    struct token token;

    if (text == NULL) {
        return false;
    }

    if (!token_parse(&x->lane->ring, purpose, aff_slice_of(text), &token)) {
        return answer_problem(x, 404, "token_invalid", NULL,
            "This token is none of ours, too old, or was used before.");
    }

    text_hex(aff_slice(token.nonce, sizeof(token.nonce)), nonce);
    json_object_del(x->fields, "token");
    return (json_object_set_new(x->fields, "_user", json_integer(token.user_id)) == 0 &&
               json_object_set_new(x->fields, "_expires", json_integer(token.expires_s)) == 0 &&
               native_set(x, "_nonce", nonce)) ||
           native_memory(x);
}

static bool
native_verify_email(struct exchange *x)
{
    return native_registration_rate(x) && native_token(x, TOKEN_VERIFY);
}

static bool
native_reset_password(struct exchange *x)
{
    return rate_limit(x, "login", x->config->api.rate_login, NATIVE_LOGIN_WINDOW_S, x->address) &&
           native_token(x, TOKEN_RESET) && native_new_password(x);
}

/* --- me -------------------------------------------------------------------------------------- */

/* The session goes on under a new token. */
static bool
native_change_password(struct exchange *x)
{
    struct native_session session;

    if (!native_confirmed(x) || !native_new_password(x)) {
        return false;
    }

    if (!native_session_make(&session)) {
        return native_memory(x);
    }

    memcpy(x->credential.next, session.token, sizeof(x->credential.next));
    OPENSSL_cleanse(session.token, sizeof(session.token));
    return native_set(x, "_token", session.token_hash) && native_set(x, "_csrf", session.csrf_hash);
}

static bool
native_changed_password(struct exchange *x, json_t *row)
{
    memcpy(x->credential.token, x->credential.next, sizeof(x->credential.token));
    native_cookie(x, x->credential.token);
    return native_show_csrf(x, row);
}

static int64_t
native_user(const json_t *person)
{
    return json_integer_value(json_object_get(person, "user_id"));
}

static bool
native_totp_create(struct exchange *x)
{
    json_t *person = native_person(x);
    uint8_t secret[TOTP_SECRET_BYTES];
    char sealed[SEAL_TEXT_MAX];
    bool ok = person != NULL && native_current_password(x, person);

    if (ok) {
        ok = (RAND_bytes(secret, sizeof(secret)) == 1 &&
                 seal_close(&x->lane->ring, "totp", native_user(person),
                     aff_slice(secret, sizeof(secret)), sealed)) ||
             native_memory(x);
        x->user_id = native_user(person);
        ok = ok && native_set(x, "_secret", sealed);
    }

    OPENSSL_cleanse(secret, sizeof(secret));
    json_decref(person);
    return ok;
}

/* The sealed text in `member` of a row, opened. */
static bool
native_opened(struct exchange *x, const char *purpose, const json_t *row, const char *member,
    uint8_t plain[SEAL_PLAIN_MAX], size_t *len)
{
    const char *sealed = json_string_value(json_object_get(row, member));
    return (sealed != NULL &&
               seal_open(&x->lane->ring, purpose, x->user_id, aff_slice_of(sealed), plain, len)) ||
           answer_unavailable(x, "What was sealed can't be opened just now.");
}

static bool
native_totp_created(struct exchange *x, json_t *row)
{
    uint8_t secret[SEAL_PLAIN_MAX];
    char text[TEXT_BASE32_CHARS(TOTP_SECRET_BYTES) + 1], uri[256];
    size_t len = 0;
    bool ok;

    if (!native_opened(x, "totp", row, "_secret", secret, &len)) {
        return false;
    }

    text_base32(aff_slice(secret, TOTP_SECRET_BYTES), text);
    snprintf(
        uri, sizeof(uri), "otpauth://totp/" NATIVE_ISSUER "?secret=%s&issuer=" NATIVE_ISSUER, text);
    ok = (json_object_set_new(row, "secret", json_string(text)) == 0 &&
             json_object_set_new(row, "uri", json_string(uri)) == 0) ||
         native_memory(x);
    OPENSSL_cleanse(secret, sizeof(secret));
    OPENSSL_cleanse(text, sizeof(text));
    OPENSSL_cleanse(uri, sizeof(uri));
    return ok;
}

/* New recovery codes: `_codes`, what is kept of them, and `_recovery`, themselves, sealed. */
static bool
native_recovery(struct exchange *x, int64_t user)
{
    char codes[RECOVERY_CODES][RECOVERY_CHARS + 1];
    char hashes[RECOVERY_CODES][TEXT_SHA256_CHARS + 1];
    char sealed[SEAL_TEXT_MAX];
    json_t *list = json_array();
    bool ok = recovery_make(codes, hashes) && seal_close(&x->lane->ring, "recovery", user,
                                                  aff_slice(&codes[0][0], sizeof(codes)), sealed);

    for (unsigned i = 0; ok && i < RECOVERY_CODES; i++) {
        ok = json_array_append_new(list, json_string(hashes[i])) == 0;
    }

    OPENSSL_cleanse(codes, sizeof(codes));
    ok = ok && json_object_set(x->fields, "_codes", list) == 0;
    x->user_id = user;
    json_decref(list);
    return (ok || native_memory(x)) && native_set(x, "_recovery", sealed);
}

static bool
native_recovery_shown(struct exchange *x, json_t *row)
{
    uint8_t plain[SEAL_PLAIN_MAX];
    json_t *list = json_array();
    size_t len = 0;
    bool ok = true;

    if (!native_opened(x, "recovery", row, "_recovery", plain, &len)) {
        json_decref(list);
        return false;
    }

    for (size_t at = 0; ok && at + RECOVERY_CHARS < len; at += RECOVERY_CHARS + 1) {
        ok = json_array_append_new(list, json_stringn((const char *) plain + at, RECOVERY_CHARS)) ==
             0;
    }

    OPENSSL_cleanse(plain, sizeof(plain));
    ok = ok && json_object_set(row, "recovery_codes", list) == 0;
    json_decref(list);
    return ok || native_memory(x);
}

/* A code of the secret that waits to be confirmed. */
static bool
native_totp_confirm(struct exchange *x)
{
    json_t *person = native_person(x);
    const char *code = person == NULL ? NULL : native_text(x, "code", TOTP_DIGITS);
    const char *sealed = json_string_value(json_object_get(person, "totp_pending"));
    int64_t step = -1;
    bool ok = code != NULL;

    if (ok && sealed == NULL) {
        ok = answer_problem(x, 409, "state", NULL, "No code's secret waits to be confirmed.");
    } else if (ok) {
        ok = native_code_right(x, native_user(person), sealed, code, -1, &step) ||
             native_invalid(x, "code", "is not the code of this moment");
    }

    if (ok) {
        json_object_del(x->fields, "code");
        ok = (json_object_set_new(x->fields, "_step", json_integer(step)) == 0 ||
                 native_memory(x)) &&
             native_recovery(x, native_user(person));
    }

    json_decref(person);
    return ok;
}

static bool
native_recovery_create(struct exchange *x)
{
    json_t *person = native_person(x);
    bool ok = person != NULL && native_current_password(x, person) &&
              native_recovery(x, native_user(person));

    json_decref(person);
    return ok;
}

/* --- keys ------------------------------------------------------------------------------------ */

static bool
native_key_create(struct exchange *x)
{
    json_t *livemode = json_object_get(x->fields, "livemode");
    uint8_t random[AFF_API_KEY_RANDOM_BYTES];
    char id[AFF_API_KEY_ID_CHARS + 1];

    if (!json_is_boolean(livemode)) {
        return native_invalid(
            x, "livemode", livemode == NULL ? "is required" : "must be true or false");
    }

    if (RAND_bytes(random, sizeof(random)) != 1) {
        return native_memory(x);
    }

    aff_api_key_make(json_is_true(livemode), random, id);
    OPENSSL_cleanse(random, sizeof(random));
    return native_set(x, "_key_id", id) && native_set(x, "_master_id", x->lane->ring.keys[0].id);
}

/* The same for a repeated request: it is derived. */
static bool
native_key_created(struct exchange *x, json_t *row)
{
    const char *id = json_string_value(json_object_get(row, "key"));
    const char *master_id = json_string_value(json_object_get(row, "_master_id"));
    const struct aff_master_key *master =
        master_id == NULL ? &x->lane->ring.keys[0]
                          : aff_keyring_find(&x->lane->ring, aff_slice_of(master_id));
    char secret[AFF_API_KEY_SECRET_CHARS + 1];
    bool ok = id != NULL && master != NULL &&
              aff_api_key_secret(master, aff_slice_of(id), secret) &&
              json_object_set_new(row, "secret", json_string(secret)) == 0;

    OPENSSL_cleanse(secret, sizeof(secret));
    return ok || answer_unavailable(x, "The key exists, but its secret can't be told: revoke it.");
}

/* --- webhooks -------------------------------------------------------------------------------- */

/* A new secret, sealed for the merchant. */
static bool
native_webhook_secret(struct exchange *x)
{
    const char *merchant = json_string_value(json_object_get(x->fields, "merchant"));
    uint8_t secret[SIGN_SECRET_BYTES];
    char sealed[SEAL_TEXT_MAX];
    bool ok;

    x->user_id = merchant == NULL ? 0 : strtoll(merchant, NULL, 10);
    ok = RAND_bytes(secret, sizeof(secret)) == 1 &&
         seal_close(&x->lane->ring, SIGN_SEAL_PURPOSE, x->user_id,
             aff_slice(secret, sizeof(secret)), sealed);
    OPENSSL_cleanse(secret, sizeof(secret));
    return ok ? native_set(x, "_secret", sealed) : native_memory(x);
}

static bool
native_webhook_shown(struct exchange *x, json_t *row)
{
    uint8_t secret[SEAL_PLAIN_MAX];
    char text[SIGN_SECRET_CHARS + 1];
    size_t len = 0;
    bool ok;

    if (!native_opened(x, SIGN_SEAL_PURPOSE, row, "_secret", secret, &len)) {
        return false;
    }

    sign_secret_text(secret, text);
    ok = json_object_set_new(row, "secret", json_string(text)) == 0 || native_memory(x);
    OPENSSL_cleanse(secret, sizeof(secret));
    OPENSSL_cleanse(text, sizeof(text));
    return ok;
}

/* --- what needs no SQL ----------------------------------------------------------------------- */

static bool
native_answer(struct exchange *x, json_t *row)
{
    struct outcome outcome = {.row = row};
    bool ok;

    x->status = 200;
    ok = row == NULL ? native_memory(x) : answer_row(x, &outcome);
    outcome_free(&outcome);
    return ok;
}

static bool
native_time(struct exchange *x)
{
    char text[32];
    time_t now = time(NULL);
    struct tm tm;

    gmtime_r(&now, &tm);
    strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &tm);
    return native_answer(x, json_pack("{s:s, s:I}", "time", text, "unix", (json_int_t) now));
}

/* Asks PostgreSQL, which is all that a request needs. */
static bool
native_health(struct exchange *x)
{
    json_t *there = call_value(x, "select to_jsonb(true)", 0, NULL, true);
    bool ok = there != NULL;

    json_decref(there);
    return ok && native_answer(x, json_pack("{s:s}", "status", "ok"));
}

/* Its row is a file, which is answered as it is. */
static bool
native_file(struct exchange *x, json_t *row)
{
    (void) x;
    (void) row;
    return true;
}

const struct native *
native_find(const char *operation)
{
    static const struct native natives[] = {
        {"bill_print", NULL, NULL, native_file},
        {"dry_run_create", NULL, sandbox_dry_run, NULL},
        {"email_verification_create", NULL, native_verify_email, NULL},
        {"health_show", native_health, NULL, NULL},
        {"key_create", NULL, native_key_create, native_key_created},
        {"me_email_update", NULL, native_confirmed, NULL},
        {"me_password_update", NULL, native_change_password, native_changed_password},
        {"me_recovery_codes_create", NULL, native_recovery_create, native_recovery_shown},
        {"me_totp_create", NULL, native_totp_create, native_totp_created},
        {"me_totp_delete", NULL, native_confirmed, NULL},
        {"me_totp_update", NULL, native_totp_confirm, native_recovery_shown},
        {"payout_batch_file", NULL, NULL, native_file},
        {"password_reset_create", NULL, native_registration_rate, NULL},
        {"password_reset_update", NULL, native_reset_password, NULL},
        {"registration_affiliate_create", NULL, native_register, NULL},
        {"registration_merchant_create", NULL, native_register, NULL},
        {"registration_person_create", NULL, native_register, NULL},
        {"session_create", native_login, NULL, NULL},
        {"session_delete", NULL, NULL, native_logout},
        {"session_show", NULL, NULL, native_show_csrf},
        {"signature_check", NULL, sandbox_signature_check, NULL},
        {"time_show", native_time, NULL, NULL},
        {"webhook_create", NULL, native_webhook_secret, native_webhook_shown},
        {"webhook_rotate", NULL, native_webhook_secret, native_webhook_shown},
    };

    for (size_t i = 0; i < sizeof(natives) / sizeof(natives[0]); i++) {
        if (strcmp(natives[i].operation, operation) == 0) {
            return &natives[i];
        }
    }

    return NULL;
}
