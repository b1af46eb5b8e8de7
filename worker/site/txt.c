#include "worker/site/txt.h"

#include <arpa/nameser.h>

/* The length-prefixed strings of one record, joined. */
static void
txt_join(struct aff_slice data, struct txt_record *record)
{
    record->len = 0;
    while (data.len > 0) {
        size_t len = data.data[0];
        size_t room = sizeof(record->bytes) - record->len;

        data = aff_slice(data.data + 1, data.len - 1);
        len = len < data.len ? len : data.len;
        memcpy(record->bytes + record->len, data.data, len < room ? len : room);
        record->len += len < room ? len : room;
        data = aff_slice(data.data + len, data.len - len);
    }
}

enum txt_answer
txt_parse(struct aff_slice answer, struct txt_records *records)
{
    ns_msg message;

    records->found = records->count = 0;
    if (answer.len > UINT16_MAX || ns_initparse(answer.data, (int) answer.len, &message) != 0 ||
        ns_msg_getflag(message, ns_f_qr) == 0) {
        return TXT_GARBLED;
    }

    switch (ns_msg_getflag(message, ns_f_rcode)) {
    case ns_r_noerror:
        break;
    case ns_r_nxdomain:
        return TXT_NO_NAME;
    default:
        return TXT_FAILED;
    }

    for (int i = 0; i < ns_msg_count(message, ns_s_an); i++) {
        ns_rr record;

        if (ns_parserr(&message, ns_s_an, i, &record) != 0) {
            return TXT_GARBLED;
        }

        if (ns_rr_type(record) != ns_t_txt || ns_rr_class(record) != ns_c_in) {
            continue;
        }

        records->found++;
        if (records->count < TXT_RECORDS_MAX) {
            txt_join(aff_slice(ns_rr_rdata(record), ns_rr_rdlen(record)),
                &records->records[records->count++]);
        }
    }

    return TXT_OK;
}

static bool
txt_blank(uint8_t c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

struct aff_slice
txt_trim(struct aff_slice text)
{
    while (text.len > 0 && txt_blank(text.data[0])) {
        text = aff_slice(text.data + 1, text.len - 1);
    }

    while (text.len > 0 && txt_blank(text.data[text.len - 1])) {
        text.len--;
    }

    return text;
}

bool
txt_has(const struct txt_records *records, struct aff_slice wanted)
{
    for (unsigned i = 0; i < records->count; i++) {
        const struct txt_record *record = &records->records[i];

        if (aff_slice_equal(txt_trim(aff_slice(record->bytes, record->len)), wanted)) {
            return true;
        }
    }

    return false;
}

void
txt_show(struct aff_slice text, char *out, size_t size)
{
    size_t len = text.len < size - 1 ? text.len : size - 1;

    for (size_t i = 0; i < len; i++) {
        out[i] = (char) (text.data[i] >= 0x20 && text.data[i] < 0x7f ? text.data[i] : '?');
    }

    out[len] = '\0';
    if (len < text.len && len >= 3) {
        memcpy(out + len - 3, "...", 3);
    }
}
