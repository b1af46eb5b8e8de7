/* What is signed and sent to NPI, and what its answers mean. */

#include "unit.h"

#include "worker/payout/npi_message.h"
#include "worker/payout/sign.h"

#include <openssl/evp.h>
#include <openssl/pkcs12.h>
#include <unistd.h>

static const struct npi_debtor debtor = {.bank = "1701",
    .branch = "1",
    .account = "0010017001018",
    .name = "Network \"N\"",
    .user = "SHOP@1701",
    .purpose = "CUST",
    .head_office = "7"};

static struct payout_item items[3];

static struct payout_batch
batch_of(size_t count)
{
    static const char *const instructions[] = {"AP10", "AP11", "AP12"};
    static const char *const banks[] = {"0401", "9935", "0402"};

    for (size_t i = 0; i < count; i++) {
        items[i] = (struct payout_item){.instruction = instructions[i],
            .bank = banks[i],
            .branch = i == 1 ? "81" : NULL,
            .account = "0190001750",
            .holder = "Größe \\ Rai",
            .amount_minor = i == 0 ? 20025 : 85000};
    }

    return (struct payout_batch){.reference = "P20261123-000001",
        .currency = "NPR",
        .decimals = 2,
        .sent = count,
        .count = count,
        .items = items};
}

static const char *
text_of(struct buffer *buffer)
{
    struct aff_slice whole;

    buffer_put(buffer, "", 1);
    assert_true(buffer_whole(buffer, &whole));
    return (const char *) whole.data;
}

static void
test_signed(void **state)
{
    struct payout_batch one = batch_of(1), two;
    struct buffer buffer;

    (void) state;
    buffer_open(&buffer, NPI_REQUEST_MAX, NULL);
    npi_signed_text(&debtor, &one, &buffer);
    assert_string_equal(text_of(&buffer), "P20261123-000001,1701,1,0010017001018,200.25,NPR,"
                                          "AP10,0401,7,0190001750,200.25,SHOP@1701");
    buffer_reset(&buffer);
    two = batch_of(2);
    npi_signed_text(&debtor, &two, &buffer);
    assert_string_equal(text_of(&buffer),
        "P20261123-000001,1701,1,0010017001018,1050.25,NPR,CUST,"
        "AP10,0401,7,0190001750,200.25,AP11,9935,81,0190001750,850.00,SHOP@1701");
    buffer_close(&buffer);
}

static void
test_request(void **state)
{
    struct payout_batch batch = batch_of(1);
    struct buffer buffer;

    (void) state;
    buffer_open(&buffer, NPI_REQUEST_MAX, NULL);
    npi_request(&debtor, &batch, "to/ken==", &buffer);
    assert_string_equal(text_of(&buffer),
        "{\"cipsBatchDetail\":{\"batchId\":\"P20261123-000001\",\"batchAmount\":200.25,"
        "\"batchCount\":1,\"batchCrncy\":\"NPR\",\"categoryPurpose\":\"ECPG\","
        "\"debtorAgent\":\"1701\",\"debtorBranch\":\"1\",\"debtorName\":\"Network \\\"N\\\"\","
        "\"debtorAccount\":\"0010017001018\"},\"cipsTransactionDetailList\":[{"
        "\"instructionId\":\"AP10\",\"endToEndId\":\"AP10\",\"amount\":200.25,"
        "\"creditorAgent\":\"0401\",\"creditorBranch\":\"7\","
        "\"creditorName\":\"Größe \\\\ Rai\",\"creditorAccount\":\"0190001750\"}],"
        "\"token\":\"to/ken==\"}");
    buffer_reset(&buffer);
    batch = batch_of(3);
    npi_request(&debtor, &batch, "t", &buffer);
    assert_non_null(strstr(text_of(&buffer),
        "{\"nchlIpsBatchDetail\":{\"batchId\":\"P20261123-000001\",\"batchAmount\":1900.25,"
        "\"batchCount\":3,\"batchCrncy\":\"NPR\",\"categoryPurpose\":\"CUST\""));
    buffer_close(&buffer);
}

static void
test_fits(void **state)
{
    char detail[PAYOUT_DETAIL_MAX];
    struct payout_batch batch = batch_of(2);

    (void) state;
    assert_true(npi_fits(&debtor, &batch, detail));
    items[1].bank = "1701";
    assert_false(npi_fits(&debtor, &batch, detail));
    assert_non_null(strstr(detail, "AP11"));
    batch = batch_of(1);
    items[0].amount_minor = NPI_OFF_US_MINOR;
    assert_true(npi_fits(&debtor, &batch, detail));
    items[0].amount_minor++;
    assert_false(npi_fits(&debtor, &batch, detail));
    items[0].bank = "1701";
    assert_true(npi_fits(&debtor, &batch, detail));
    items[0].amount_minor = NPI_ON_US_MINOR + 1;
    assert_false(npi_fits(&debtor, &batch, detail));
    batch.count = 0;
    assert_false(npi_fits(&debtor, &batch, detail));
    batch.count = PAYOUT_ITEMS_MAX + 1;
    assert_false(npi_fits(&debtor, &batch, detail));
}

/* --- signatures --- */

static void
pfx_write(const char *path, EVP_PKEY *key, const char *password)
{
    PKCS12 *pfx = PKCS12_create(password, "key", key, NULL, NULL, 0, 0, 0, 0, 0);
    FILE *file = fopen(path, "w");

    assert_non_null(pfx);
    assert_non_null(file);
    assert_int_equal(i2d_PKCS12_fp(file, pfx), 1);
    fclose(file);
    PKCS12_free(pfx);
}

static void
test_sign(void **state)
{
    char path[] = "/tmp/affiliated-pfx-XXXXXX", error[SIGN_ERROR_MAX], out[SIGN_BASE64_MAX];
    int fd = mkstemp(path);
    EVP_PKEY *key = EVP_RSA_gen(2048), *small = EVP_RSA_gen(1024), *curve = EVP_EC_gen("P-256");
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    uint8_t signature[SIGN_BASE64_MAX];
    struct sign_key *read;

    (void) state;
    assert_true(fd >= 0);
    close(fd);
    pfx_write(path, key, "secret");
    assert_null(sign_open(path, "another", error));
    assert_non_null(strstr(error, "its password is another"));
    assert_null(sign_open("/nowhere", "secret", error));
    read = sign_open(path, "secret", error);
    assert_non_null(read);
    assert_true(sign_text(read, aff_slice_of("a,b,c"), out));
    assert_int_equal(strlen(out), 344);
    assert_int_equal(EVP_DecodeBlock(signature, (const uint8_t *) out, 344), 258);
    assert_int_equal(EVP_DigestVerifyInit(context, NULL, EVP_sha256(), NULL, key), 1);
    assert_int_equal(EVP_DigestVerify(context, signature, 256, (const uint8_t *) "a,b,c", 5), 1);
    assert_int_not_equal(
        EVP_DigestVerify(context, signature, 256, (const uint8_t *) "a,b,d", 5), 1);
    sign_close(read);
    pfx_write(path, small, "secret");
    assert_null(sign_open(path, "secret", error));
    assert_non_null(strstr(error, "it has no RSA key"));
    pfx_write(path, curve, "secret");
    assert_null(sign_open(path, "secret", error));
    assert_non_null(strstr(error, "it has no RSA key"));
    assert_int_equal(truncate(path, 30), 0);
    assert_null(sign_open(path, "secret", error));
    assert_non_null(strstr(error, "it is no PFX file"));
    unlink(path);
    EVP_MD_CTX_free(context);
    EVP_PKEY_free(key);
    EVP_PKEY_free(small);
    EVP_PKEY_free(curve);
}

/* --- answers --- */

static void
test_verdicts(void **state)
{
    static const struct {
        bool real_time;
        const char *debit, *credit, *reversal;
        enum payout_verdict verdict;
    } cases[] = {
        {true, "000", "000", "", PAYOUT_SETTLED},
        {true, "000", "ACSC", "", PAYOUT_SETTLED},
        {false, "000", "ACSC", "", PAYOUT_SETTLED},
        {false, "000", "000", "", PAYOUT_UNKNOWN}, /* not a word of the deferred way */
        {false, "000", "RJCT", "", PAYOUT_REJECTED},
        {true, "000", "RJCT", "", PAYOUT_REJECTED},
        {true, "000", "DEFER", "", PAYOUT_PENDING},
        {true, "000", "", "", PAYOUT_PENDING},
        {false, "000", "ENTR", "", PAYOUT_PENDING},
        {false, "000", "GEN", "", PAYOUT_PENDING},
        {false, "000", "SENT", "", PAYOUT_PENDING},
        {false, "000", "ACTC", "", PAYOUT_PENDING},
        {false, "000", "ACSP", "", PAYOUT_PENDING},
        {true, "000", "999", "", PAYOUT_UNKNOWN},
        {true, "000", "999", "000", PAYOUT_UNKNOWN},
        {true, "000", "E021", "000", PAYOUT_UNKNOWN},
        {true, "000", "114", "", PAYOUT_UNKNOWN},
        {true, "000", "114", "999", PAYOUT_UNKNOWN},
        {true, "000", "114", "000", PAYOUT_REJECTED},
        {true, "000", "-01", "", PAYOUT_UNKNOWN},
        {true, "000", "1000", "", PAYOUT_UNKNOWN},
        {true, "907", "1000", "", PAYOUT_REJECTED},
        {true, "1001", "", "", PAYOUT_REJECTED},
        {false, "-01", "1000", "", PAYOUT_REJECTED},
        {true, "999", "000", "", PAYOUT_UNKNOWN},
        {true, "E021", "", "", PAYOUT_UNKNOWN},
        {true, "E999", "", "", PAYOUT_UNKNOWN},
        {true, "ENTR", "ENTR", "", PAYOUT_PENDING},
        {true, "", "000", "", PAYOUT_PENDING},
    };

    (void) state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        if (npi_verdict(cases[i].real_time, cases[i].debit, cases[i].credit, cases[i].reversal) !=
            cases[i].verdict) {
            fail_msg("%s %s %s", cases[i].debit, cases[i].credit, cases[i].reversal);
        }
    }
}

static void
test_token(void **state)
{
    static struct npi_token token;
    char *large = malloc(NPI_TOKEN_MAX + 64);

    (void) state;
    assert_true(npi_token_parse(
        aff_slice_of("{\"access_token\":\"a\",\"refresh_token\":\" r\",\"expires_in\":120}"),
        &token));
    assert_string_equal(token.access, "a");
    assert_string_equal(token.refresh, "r");
    assert_int_equal(token.expires_s, 120);
    assert_true(
        npi_token_parse(aff_slice_of("{\"access_token\":\"a\",\"expires_in\":99999}"), &token));
    assert_string_equal(token.refresh, "");
    assert_int_equal(token.expires_s, NPI_ACCESS_S);
    assert_false(npi_token_parse(aff_slice_of("{\"access_token\":\"\"}"), &token));
    assert_false(npi_token_parse(aff_slice_of("{\"access_token\":\"a\\r\\nX: y\"}"), &token));
    assert_false(npi_token_parse(aff_slice_of("{\"access_token\":null}"), &token));
    assert_false(npi_token_parse(aff_slice_of(""), &token));
    assert_non_null(large);
    memset(large, 'x', NPI_TOKEN_MAX + 32);
    memcpy(large, "{\"access_token\":\"", 17);
    memcpy(large + NPI_TOKEN_MAX + 30, "\"}", 3);
    assert_false(npi_token_parse(aff_slice_of(large), &token));
    free(large);
}

static enum payout_outcome
validated(long status, const char *answer, enum payout_verdict *verdict, char *detail)
{
    enum payout_outcome outcome;

    batch_of(1);
    items[0].verdict = PAYOUT_PENDING;
    outcome = npi_validated(status, aff_slice_of(answer), &items[0], detail);
    *verdict = items[0].verdict;
    return outcome;
}

static void
test_validated(void **state)
{
    static const struct {
        long status;
        const char *answer;
        enum payout_outcome outcome;
        enum payout_verdict verdict;
    } cases[] = {
        {200, "{\"responseCode\":\"000\"}", PAYOUT_SUBMITTED, PAYOUT_ACCEPTED},
        {200, "{\"responseCode\":\"999\",\"matchPercentate\":81}", PAYOUT_SUBMITTED,
            PAYOUT_ACCEPTED},
        {200, "{\"responseCode\":\"999\",\"matchPercentage\":94}", PAYOUT_SUBMITTED,
            PAYOUT_ACCEPTED},
        {200, "{\"responseCode\":\"999\",\"matchPercentage\":null,\"matchPercentate\":94}",
            PAYOUT_SUBMITTED, PAYOUT_ACCEPTED},
        {200, "{\"responseCode\":\"999\",\"matchPercentate\":80}", PAYOUT_SUBMITTED,
            PAYOUT_REJECTED},
        {200, "{\"responseCode\":\"999\",\"matchPercentate\":\"94\"}", PAYOUT_SUBMITTED,
            PAYOUT_REJECTED},
        {200, "{\"responseCode\":\"999\"}", PAYOUT_SUBMITTED, PAYOUT_REJECTED},
        {200, "{\"responseCode\":\"523\",\"matchPercentate\":100}", PAYOUT_SUBMITTED,
            PAYOUT_REJECTED},
        {400, "{\"responseCode\":\"E004\"}", PAYOUT_SUBMITTED, PAYOUT_REJECTED},
        {400, "{\"responseCode\":\"E007\"}", PAYOUT_HELD, PAYOUT_PENDING},
        {400, "", PAYOUT_HELD, PAYOUT_PENDING},
        {200, "{\"responseCode\":\"E021\"}", PAYOUT_AWAY, PAYOUT_PENDING},
        {200, "{}", PAYOUT_AWAY, PAYOUT_PENDING},
        {200, "<html>", PAYOUT_AWAY, PAYOUT_PENDING},
        {403, "{\"responseCode\":\"E001\"}", PAYOUT_AWAY, PAYOUT_PENDING},
        {500, "{\"responseCode\":\"000\"}", PAYOUT_AWAY, PAYOUT_PENDING},
    };

    (void) state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        enum payout_verdict verdict;
        char detail[PAYOUT_DETAIL_MAX];

        if (validated(cases[i].status, cases[i].answer, &verdict, detail) != cases[i].outcome ||
            verdict != cases[i].verdict) {
            fail_msg("%ld %s", cases[i].status, cases[i].answer);
        }
    }
}

#define FINE(debit, credit)                                                                        \
    "{\"cipsBatchResponse\":{\"batchId\":\" P20261123-000001\",\"debitStatus\":\"" debit           \
    "\",\"responseMessage\":\"SAID\"},\"cipsTxnResponseList\":[{\"instructionId\":\"AP10\","       \
    "\"creditStatus\":\"" credit "\",\"id\":36}]}"

static void
test_submitted(void **state)
{
    static const struct {
        long status;
        const char *answer;
        enum payout_outcome outcome;
        enum payout_verdict verdict;
    } cases[] = {
        {200, FINE("000", "000"), PAYOUT_SUBMITTED, PAYOUT_SETTLED},
        {200, FINE("000", "ENTR"), PAYOUT_SUBMITTED, PAYOUT_PENDING},
        {200, FINE("ENTR", ""), PAYOUT_SUBMITTED, PAYOUT_PENDING},
        {200, FINE("000", "999"), PAYOUT_SUBMITTED, PAYOUT_UNKNOWN},
        {200, FINE("999", ""), PAYOUT_IN_DOUBT, PAYOUT_UNKNOWN},
        {200, FINE("114", "1000"), PAYOUT_REFUSED, PAYOUT_REJECTED},
        {500, FINE("114", "1000"), PAYOUT_IN_DOUBT, PAYOUT_UNKNOWN},
        {200, "{\"cipsBatchResponse\":{\"batchId\":\"X\",\"debitStatus\":\"114\"}}",
            PAYOUT_IN_DOUBT, PAYOUT_UNKNOWN},
        {200,
            "{\"cipsBatchResponse\":{\"batchId\":\"P20261123-000001\",\"debitStatus\":\"114\","
            "\"debitStatus\":\"000\"}}",
            PAYOUT_IN_DOUBT, PAYOUT_UNKNOWN},
        {200, "{\"responseCode\":\"E021\"}", PAYOUT_IN_DOUBT, PAYOUT_UNKNOWN},
        {200, "null", PAYOUT_IN_DOUBT, PAYOUT_UNKNOWN},
        {200, "", PAYOUT_IN_DOUBT, PAYOUT_UNKNOWN},
        {400, "{\"responseCode\":\"99\"}", PAYOUT_SUBMITTED, PAYOUT_PENDING},
        {400, "{\"responseCode\":99}", PAYOUT_SUBMITTED, PAYOUT_PENDING},
        {400, "{\"responseCode\":\"E007\"}", PAYOUT_HELD, PAYOUT_UNKNOWN},
        {400, "{\"responseCode\":\"E003\"}", PAYOUT_AWAY, PAYOUT_UNKNOWN},
        {400, "{\"responseCode\":\"E555\"}", PAYOUT_IN_DOUBT, PAYOUT_UNKNOWN},
        {400, "", PAYOUT_IN_DOUBT, PAYOUT_UNKNOWN},
        {403, "", PAYOUT_AWAY, PAYOUT_UNKNOWN},
        {401, "", PAYOUT_AWAY, PAYOUT_UNKNOWN},
        {404, "", PAYOUT_IN_DOUBT, PAYOUT_UNKNOWN},
        {502, "", PAYOUT_IN_DOUBT, PAYOUT_UNKNOWN},
    };

    (void) state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        char detail[PAYOUT_DETAIL_MAX];
        struct payout_batch batch = batch_of(1);

        items[0].verdict = PAYOUT_UNKNOWN;
        if (npi_submitted(cases[i].status, aff_slice_of(cases[i].answer), &batch, detail) !=
                cases[i].outcome ||
            items[0].verdict != cases[i].verdict) {
            fail_msg("%ld %s", cases[i].status, cases[i].answer);
        }
    }
}

#define ONE(credit, more)                                                                          \
    "{\"instructionId\":\"AP10\",\"creditStatus\":\"" credit "\",\"amount\":200.25" more "}"
#define BATCH "\"batchId\":\"P20261123-000001\",\"debitStatus\":\"000\""

static void
test_reported(void **state)
{
    static const struct {
        const char *answer;
        enum payout_outcome outcome;
        enum payout_verdict verdict;
    } cases[] = {
        {"{" BATCH ",\"cipsTransactionDetailList\":[" ONE("000", "") "]}", PAYOUT_SUBMITTED,
            PAYOUT_SETTLED},
        {"[{\"cipsBatchDetail\":{" BATCH "},\"cipsTransactionDetailList\":[" ONE("000", "") "]}]",
            PAYOUT_SUBMITTED, PAYOUT_SETTLED},
        {ONE("000", ",\"batchId\":89,\"cipsBatchDetail\":{" BATCH "}"), PAYOUT_SUBMITTED,
            PAYOUT_SETTLED},
        {"{" BATCH ",\"cipsTransactionDetailList\":[" ONE("000", "") "," ONE("999", "") "]}",
            PAYOUT_SUBMITTED, PAYOUT_UNKNOWN},
        {"{" BATCH ",\"cipsTransactionDetailList\":[" ONE("000", "") "," ONE("000", "") "]}",
            PAYOUT_SUBMITTED, PAYOUT_SETTLED},
        {"{" BATCH ",\"cipsTransactionDetailList\":[]}", PAYOUT_SUBMITTED, PAYOUT_PENDING},
        {"{" BATCH ",\"cipsTransactionDetailList\":[{\"instructionId\":\"AP10\","
         "\"creditStatus\":\"000\",\"amount\":\"200.25\",\"creditorAccount\":\"01***750\"}]}",
            PAYOUT_SUBMITTED, PAYOUT_SETTLED},
        {"{" BATCH ",\"cipsTransactionDetailList\":[{\"instructionId\":\"AP10\","
         "\"creditStatus\":\"000\",\"amount\":200.26}]}",
            PAYOUT_SUBMITTED, PAYOUT_UNKNOWN},
        {"{" BATCH ",\"cipsTransactionDetailList\":[{\"instructionId\":\"AP10\","
         "\"creditStatus\":\"RJCT\",\"creditorAccount\":\"1\"}]}",
            PAYOUT_SUBMITTED, PAYOUT_UNKNOWN},
        {"{\"batchId\":\"P20261123-000001\",\"debitStatus\":\"907\"}", PAYOUT_SUBMITTED,
            PAYOUT_REJECTED},
        {"{\"batchId\":\"P20261123-000001\"}", PAYOUT_SUBMITTED, PAYOUT_PENDING},
        {"{\"batchId\":\"P20261123-00000\",\"debitStatus\":\"907\"}", PAYOUT_IN_DOUBT,
            PAYOUT_UNKNOWN},
        {"{\"responseCode\":\"E010\"}", PAYOUT_IN_DOUBT, PAYOUT_UNKNOWN},
        {"[]", PAYOUT_IN_DOUBT, PAYOUT_UNKNOWN},
        {"[null,1,[]]", PAYOUT_IN_DOUBT, PAYOUT_UNKNOWN},
        {"null", PAYOUT_IN_DOUBT, PAYOUT_UNKNOWN},
        {"", PAYOUT_IN_DOUBT, PAYOUT_UNKNOWN},
        {"\"P20261123-000001\"", PAYOUT_IN_DOUBT, PAYOUT_UNKNOWN},
    };

    (void) state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        char detail[PAYOUT_DETAIL_MAX];
        struct payout_batch batch = batch_of(1);

        if (npi_reported(200, aff_slice_of(cases[i].answer), &batch, detail) != cases[i].outcome ||
            items[0].verdict != cases[i].verdict) {
            fail_msg("%s: %d", cases[i].answer, (int) items[0].verdict);
        }
    }
}

/* A report that is refused is no reason to believe anything; nor is NPI away, if only for this
 * batch. */
static void
test_report_refused(void **state)
{
    char detail[PAYOUT_DETAIL_MAX];
    struct payout_batch batch = batch_of(2);
    struct aff_slice settled =
        aff_slice_of("{" BATCH ",\"nchlIpsTransactionDetailList\":[" ONE("ACSC", "") "]}");

    (void) state;
    assert_int_equal(npi_reported(400, settled, &batch, detail), PAYOUT_IN_DOUBT);
    assert_int_equal(items[0].verdict, PAYOUT_UNKNOWN);
    assert_int_equal(
        npi_reported(404, aff_slice_of("{\"responseCode\":\"E010\",\"responseMessage\":\"NO\"}"),
            &batch, detail),
        PAYOUT_IN_DOUBT);
    assert_string_equal(items[1].detail, "NPI answers E010 NO");
    assert_int_equal(npi_reported(500, settled, &batch, detail), PAYOUT_AWAY);
    assert_int_equal(npi_reported(403, settled, &batch, detail), PAYOUT_AWAY);
    assert_int_equal(npi_reported(200, settled, &batch, detail), PAYOUT_SUBMITTED);
    assert_int_equal(items[0].verdict, PAYOUT_SETTLED);
    assert_int_equal(items[1].verdict, PAYOUT_PENDING);
}

/* What a bank says gets into notices and logs. */
static void
test_clean(void **state)
{
    char detail[PAYOUT_DETAIL_MAX];
    struct payout_batch batch = batch_of(2);

    (void) state;
    assert_int_equal(npi_reported(200,
                         aff_slice_of("{" BATCH ",\"nchlIpsTransactionDetailList\":[{"
                                      "\"instructionId\":\" AP11 \",\"creditStatus\":\"RJCT\","
                                      "\"txnResponse\":\"FT\\u00e9\\n7\",\"reasonDesc\":"
                                      "\"  Account\\u202e not\\r\\nBcc: found \"}]}"),
                         &batch, detail),
        PAYOUT_SUBMITTED);
    assert_int_equal(items[0].verdict, PAYOUT_PENDING);
    assert_int_equal(items[1].verdict, PAYOUT_REJECTED);
    assert_string_equal(items[1].detail, "The credit: RJCT Account??? not??Bcc: found");
    assert_string_equal(items[1].reference, "FT???7");
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_signed),
        cmocka_unit_test(test_request),
        cmocka_unit_test(test_fits),
        cmocka_unit_test(test_sign),
        cmocka_unit_test(test_verdicts),
        cmocka_unit_test(test_token),
        cmocka_unit_test(test_validated),
        cmocka_unit_test(test_submitted),
        cmocka_unit_test(test_reported),
        cmocka_unit_test(test_report_refused),
        cmocka_unit_test(test_clean),
    };

    return RUN(tests);
}
