#include "worker/mail/letter.h"

#include "worker/token.h"

#include <stdio.h>

#define FIELD_NAME_MAX   31
#define FIELD_CHARS      200 /* of a field in a text, in characters */
#define FIELD_LONG_CHARS 1000
#define SUBJECT_CHARS    60 /* of a field in a subject */
#define PARAGRAPH_MAX    (16 * 1024UL)
#define WRAP_COLUMNS     72

/* Fields besides those of the notice: site, link, person (the name of a person who has proven the
 * address), until. */
const struct letter letters[] = {
    {"verify_email", TOKEN_VERIFY, "/verify", "Confirm your e-mail address",
        "Somebody, probably you, gave this e-mail address at {site}. To confirm that it is yours, "
        "open this page:\n\n{link}\n\n"
        "The link works once, until {until}. If it was not you, do nothing: without the link, "
        "nobody can use your address."},
    {"password_reset", TOKEN_RESET, "/reset", "Set a new password",
        "?Hello {person},\n\n"
        "To set the password of your account at {site}, open this page:\n\n{link}\n\n"
        "The link works once, until {until}. If you did not ask for it, do nothing: your password "
        "stays as it is."},
    {"already_registered", NULL, NULL, "You have an account already",
        "?Hello {person},\n\n"
        "Somebody, probably you, gave your e-mail address at {site} to open an account or to "
        "change an address. There is an account with this address, and nothing was changed.\n\n"
        "If it was you: log in, or ask there for a new password. If it was not: do nothing."},
    {"password_changed", NULL, NULL, "Your password was changed",
        "?Hello {person},\n\n"
        "The password of your account at {site} was changed, and other sessions were ended.\n\n"
        "If it was not you, ask there for a new password at once."},
    {"email_changed", NULL, NULL, "Your e-mail address was changed",
        "?Hello {person},\n\n"
        "Your account at {site} now has the e-mail address {email}. Mails go there from now "
        "on.\n\n"
        "If it was not you, somebody else has your password: get in touch with us at once."},
    {"totp_on", NULL, NULL, "Two-factor authentication is on",
        "?Hello {person},\n\n"
        "Logging in to your account at {site} now takes a code of your authenticator app as "
        "well.\n\n"
        "If it was not you, ask there for a new password at once."},
    {"totp_off", NULL, NULL, "Two-factor authentication is off",
        "?Hello {person},\n\n"
        "Logging in to your account at {site} now takes the password alone.\n\n"
        "If it was not you, ask there for a new password at once."},
    {"recovery_code_used", NULL, NULL, "A recovery code was used",
        "?Hello {person},\n\n"
        "Somebody logged in to your account at {site} with one of your recovery codes, which does "
        "not work again.\n\n"
        "If it was not you, ask there for a new password at once, and make new recovery codes."},
    {"recovery_codes_renewed", NULL, NULL, "You have new recovery codes",
        "?Hello {person},\n\n"
        "New recovery codes were made for your account at {site}. The old ones do not work any "
        "more.\n\n"
        "If it was not you, ask there for a new password at once."},
    {"payout_method_changed", NULL, NULL, "A payout method was changed",
        "?Hello {person},\n\n"
        "A payout method of your account at {site} was added or changed:\n\n"
        "{kind}, {account}, {holder}\n\n"
        "If it was not you, set a new password at once and get in touch with us."},
    {"invitation", NULL, NULL, "You are invited to a merchant's account",
        "\"{name}\" invites this e-mail address to its account at {site}, with the role "
        "{role}.\n\n"
        "To accept, log in at {site}, or register there with this address. The invitation is "
        "open until {until}. If you do not know what it is about, do nothing."},
    {"merchant_approve", NULL, NULL, "{name} is approved",
        "?Hello {person},\n\n"
        "The merchant \"{name}\" is approved: campaigns may start at {site}.\n\n?{reason}"},
    {"merchant_reject", NULL, NULL, "{name} is not approved",
        "?Hello {person},\n\n"
        "The merchant \"{name}\" was not approved at {site}.\n\n?The reason: {reason}"},
    {"merchant_suspend", NULL, NULL, "{name} is suspended",
        "?Hello {person},\n\n"
        "The merchant \"{name}\" is suspended at {site}: its links and keys do not work for the "
        "time being.\n\n?The reason: {reason}"},
    {"merchant_activate", NULL, NULL, "{name} is active again",
        "?Hello {person},\n\n"
        "The merchant \"{name}\" is active again at {site}: its links and keys work.\n\n?{reason}"},
    {"affiliate_approve", NULL, NULL, "You are approved as an affiliate",
        "?Hello {person},\n\n"
        "\"{name}\" is approved as an affiliate at {site}: you may join campaigns and make "
        "links.\n\n?{reason}"},
    {"affiliate_reject", NULL, NULL, "You are not approved as an affiliate",
        "?Hello {person},\n\n"
        "\"{name}\" was not approved as an affiliate at {site}.\n\n?The reason: {reason}"},
    {"affiliate_suspend", NULL, NULL, "Your affiliate account is suspended",
        "?Hello {person},\n\n"
        "\"{name}\" is suspended as an affiliate at {site}: its links do not work, and nothing is "
        "paid out, for the time being.\n\n?The reason: {reason}"},
    {"affiliate_activate", NULL, NULL, "Your affiliate account is active again",
        "?Hello {person},\n\n"
        "\"{name}\" is active again as an affiliate at {site}: its links work.\n\n?{reason}"},
    {"site_verified", NULL, NULL, "{host} is verified",
        "?Hello {person},\n\n"
        "The site {host} is proven to be yours: links at {site} may lead there. What was put "
        "there for the proof may be taken away."},
    {"site_failed", NULL, NULL, "{host} could not be verified",
        "?Hello {person},\n\n"
        "For 14 days we looked at {host} for the proof that it is yours, and did not find it. Your "
        "merchant account at {site} shows what is missing; there you can start again."},
    {"membership_applied", NULL, NULL, "{affiliate_name} wants to join {campaign_name}",
        "?Hello {person},\n\n"
        "The affiliate \"{affiliate_name}\" asks to join your campaign \"{campaign_name}\". "
        "Approve or reject it at {site}."},
    {"membership_approved", NULL, NULL, "You have joined {campaign_name}",
        "?Hello {person},\n\n"
        "\"{merchant_name}\" has approved you for the campaign \"{campaign_name}\". You can make "
        "links for it at {site}.\n\n?{reason}"},
    {"membership_rejected", NULL, NULL, "You can't join {campaign_name}",
        "?Hello {person},\n\n"
        "\"{merchant_name}\" has not approved you for the campaign \"{campaign_name}\" at "
        "{site}.\n\n?The reason: {reason}"},
    {"membership_removed", NULL, NULL, "You are no longer in {campaign_name}",
        "?Hello {person},\n\n"
        "\"{merchant_name}\" has taken you out of the campaign \"{campaign_name}\" at {site}: your "
        "links for it do not work any more.\n\n?The reason: {reason}"},
    {"campaign_suspended", NULL, NULL, "The campaign {campaign_name} is suspended",
        "?Hello {person},\n\n"
        "The campaign \"{campaign_name}\" is suspended at {site}: its links do not work for the "
        "time being.\n\n?The reason: {reason}"},
    {"bill_issued", NULL, NULL, "Bill {number} of {amount} {currency}",
        "?Hello {person},\n\n"
        "The bill {number} of \"{name}\" over {amount} {currency} is at {site}, with every order "
        "of "
        "it. It is due on {due_on}."},
    {"bill_overdue", NULL, NULL, "Bill {number} is overdue",
        "?Hello {person},\n\n"
        "The bill {number} of \"{name}\" over {amount} {currency} was due on {due_on}, and is not "
        "wholly paid. What is open is shown at {site}."},
    {"payout_requested", NULL, NULL, "You asked for {amount} {currency}",
        "?Hello {person},\n\n"
        "A payout of {amount} {currency} to {kind} {account} was requested at {site}. People look "
        "at it before it is paid.\n\n"
        "If it was not you, cancel it, set a new password at once and get in touch with us."},
    {"payout_paid", NULL, NULL, "{net} {currency} were paid to you",
        "?Hello {person},\n\n"
        "Your payout {payout} was paid to {kind} {account}: {amount} {currency}, less {tax} of tax "
        "that was withheld, are {net} {currency}. The tax is shown in your payouts at {site}."},
    {"payout_failed", NULL, NULL, "Your payout of {amount} {currency} failed",
        "?Hello {person},\n\n"
        "Your payout {payout} to {kind} {account} could not be paid. The {amount} {currency} are "
        "payable again: look at the payout method at {site}, and ask for it once more.\n\n"
        "?The reason: {reason}"},
    {"payout_rejected", NULL, NULL, "Your payout of {amount} {currency} was rejected",
        "?Hello {person},\n\n"
        "Your payout {payout} to {kind} {account} was rejected at {site}. The {amount} {currency} "
        "are payable again.\n\n?The reason: {reason}"},
    {"payout_recalled", NULL, NULL, "Your payout of {amount} {currency} came back",
        "?Hello {person},\n\n"
        "Your payout {payout} to {kind} {account} was paid, but came back. The {amount} {currency} "
        "are payable again: look at the payout method at {site}, and ask for it once more.\n\n"
        "?The reason: {reason}"},
    {"webhook_disabled_gone", NULL, NULL, "An address is not told any more",
        "?Hello {person},\n\n"
        "{site} told a program of yours what happens, at this address:\n\n{url}\n\n"
        "It answered with the status 410, which means that it is gone, so nothing is sent there "
        "any more. If that was wrong, make the webhook or postback active again."},
    {"webhook_disabled_failing", NULL, NULL, "An address is not told any more",
        "?Hello {person},\n\n"
        "{site} told a program of yours what happens, at this address:\n\n{url}\n\n"
        "Nothing has arrived there for five days, so nothing is sent there any more. What each "
        "try came to stands with its deliveries. Once it works, make the webhook or postback "
        "active again."},
    {NULL, NULL, NULL, NULL, NULL},
};

const struct letter *
letter_find(const char *name)
{
    for (const struct letter *letter = letters; letter->name != NULL; letter++) {
        if (strcmp(letter->name, name) == 0) {
            return letter;
        }
    }

    return NULL;
}

/* --- fields --- */

/* The length of a character of valid UTF-8. */
static size_t
letter_char(const char *text)
{
    unsigned char c = (unsigned char) *text;

    return c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
}

/* Controls, line and paragraph separators, marks that turn or isolate directions: U+0000–1F,
 * U+007F–9F, U+200E–F, U+2028–2E, U+2066–9. */
static bool
letter_control(const char *text, size_t len)
{
    const unsigned char *c = (const unsigned char *) text;

    switch (len) {
    case 1:
        return c[0] < 0x20 || c[0] == 0x7f;
    case 2:
        return c[0] == 0xc2 && c[1] < 0xa0;
    case 3:
        return c[0] == 0xe2 && ((c[1] == 0x80 && (c[2] == 0x8e || c[2] == 0x8f ||
                                                     (c[2] >= 0xa8 && c[2] <= 0xae))) ||
                                   (c[1] == 0x81 && c[2] >= 0xa6 && c[2] <= 0xa9));
    default:
        return false;
    }
}

/* Appends at most `max` characters of data. */
static void
letter_data(struct buffer *out, const char *text, size_t max)
{
    while (*text != '\0' && max > 0) {
        size_t len = letter_char(text);

        if (strnlen(text, len) < len) {
            return;
        }

        if (letter_control(text, len)) {
            buffer_puts(out, " ");
        } else {
            buffer_put(out, text, len);
        }

        text += len;
        max--;
    }

    buffer_puts(out, *text != '\0' ? "..." : "");
}

/* Appends a field; false if it is empty. */
static bool
letter_field(struct buffer *out, const char *name, const json_t *fields, size_t max)
{
    const json_t *value = json_object_get(fields, name);

    if (json_is_integer(value)) {
        buffer_printf(out, "%lld", (long long) json_integer_value(value));
        return true;
    }

    if (!json_is_string(value) || json_string_length(value) == 0) {
        return false;
    }

    letter_data(out, json_string_value(value), strcmp(name, "link") == 0 ? SIZE_MAX : max);
    return true;
}

/* Appends `len` bytes of a template with its fields; false if one is empty, which `missing` then
 * names. */
static bool
letter_fill(struct buffer *out, const char *text, size_t len, const json_t *fields, size_t max,
    char *missing)
{
    const char *end = text + len;

    while (text < end) {
        const char *open = memchr(text, '{', (size_t) (end - text));
        const char *close = open == NULL ? NULL : memchr(open, '}', (size_t) (end - open));

        if (close == NULL) {
            buffer_put(out, text, (size_t) (end - text));
            return true;
        }

        buffer_put(out, text, (size_t) (open - text));
        snprintf(missing, FIELD_NAME_MAX + 1, "%.*s", (int) (close - open - 1), open + 1);
        if (!letter_field(
                out, missing, fields, strcmp(missing, "reason") == 0 ? FIELD_LONG_CHARS : max)) {
            return false;
        }

        text = close + 1;
    }

    return true;
}

/* --- texts --- */

/* Columns of a word, counted in characters. */
static size_t
letter_columns(const char *word, size_t len)
{
    size_t columns = 0;

    for (size_t i = 0; i < len; i++) {
        columns += ((unsigned char) word[i] & 0xc0) != 0x80;
    }

    return columns;
}

/* Lines end at blanks; a word that is longer than a line, such as a link, stays whole. */
static void
letter_wrap(struct buffer *out, const char *text)
{
    size_t column = 0;

    while (*(text += strspn(text, " ")) != '\0') {
        size_t len = strcspn(text, " ");
        size_t columns = letter_columns(text, len);

        if (column > 0) {
            bool fits = column + 1 + columns <= WRAP_COLUMNS;

            buffer_puts(out, fits ? " " : "\n");
            column = fits ? column + 1 : 0;
        }

        buffer_put(out, text, len);
        column += columns;
        text += len;
    }

    buffer_puts(out, "\n");
}

static bool
letter_paragraph(
    struct buffer *text, const char *paragraph, size_t len, const json_t *fields, char *missing)
{
    bool optional = paragraph[0] == '?';
    struct buffer filled;
    struct aff_slice whole;
    bool ok;

    buffer_open(&filled, PARAGRAPH_MAX, NULL);
    ok = letter_fill(&filled, paragraph + optional, len - optional, fields, FIELD_CHARS, missing);
    buffer_put(&filled, "", 1);
    if (ok && buffer_whole(&filled, &whole)) {
        buffer_puts(text, buffer_total(text) == 0 ? "" : "\n");
        letter_wrap(text, (const char *) whole.data);
    }

    ok = ok ? !filled.failed : optional;
    buffer_close(&filled);
    return ok;
}

static bool
letter_subject(const struct letter *letter, const json_t *fields,
    char subject[LETTER_SUBJECT_MAX + 1], char *missing)
{
    struct buffer filled;
    struct aff_slice whole;
    bool ok;

    buffer_open(&filled, PARAGRAPH_MAX, NULL);
    ok = letter_fill(
        &filled, letter->subject, strlen(letter->subject), fields, SUBJECT_CHARS, missing);
    ok = ok && buffer_whole(&filled, &whole);
    if (ok) {
        size_t len = whole.len < LETTER_SUBJECT_MAX ? whole.len : LETTER_SUBJECT_MAX;

        while (len > 0 && len < whole.len && (whole.data[len] & 0xc0) == 0x80) {
            len--;
        }

        memcpy(subject, whole.data, len);
        subject[len] = '\0';
    }

    buffer_close(&filled);
    return ok;
}

bool
letter_render(const struct letter *letter, const json_t *fields,
    char subject[LETTER_SUBJECT_MAX + 1], struct buffer *text, char *missing)
{
    const char *at = letter->text;

    missing[0] = '\0';
    if (!letter_subject(letter, fields, subject, missing)) {
        return false;
    }

    for (;;) {
        const char *end = strstr(at, "\n\n");
        size_t len = end == NULL ? strlen(at) : (size_t) (end - at);

        if (!letter_paragraph(text, at, len, fields, missing)) {
            return false;
        }

        if (end == NULL) {
            break;
        }

        at = end + 2;
    }

    buffer_put(text, "", 1);
    return !text->failed;
}
