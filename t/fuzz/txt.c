/* Any answer of a name server is read within its bounds, and shown as clean text. */

#include "fuzz.h"

#include "worker/site/txt.h"

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct txt_records records;
    enum txt_answer answer = txt_parse(aff_slice(data, size), &records);

    require(records.count <= TXT_RECORDS_MAX && records.count <= records.found);
    require(answer == TXT_OK || answer == TXT_GARBLED || records.found == 0);
    for (unsigned i = 0; i < records.count; i++) {
        const struct txt_record *record = &records.records[i];
        struct aff_slice text = aff_slice(record->bytes, record->len);
        char shown[100];

        require(record->len <= TXT_BYTES_MAX);
        require(within(txt_trim(text), text));
        require(txt_has(&records, txt_trim(text)));
        txt_show(text, shown, sizeof(shown));
        require(strlen(shown) == (text.len < sizeof(shown) ? text.len : sizeof(shown) - 1));
        for (const char *c = shown; *c != '\0'; c++) {
            require(*c >= 0x20 && *c < 0x7f);
        }
    }

    return 0;
}
