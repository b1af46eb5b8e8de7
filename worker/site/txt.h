/* TXT records out of a DNS answer (RFC 1035, 3.3.14), whoever sent it. */

#ifndef AFFILIATED_SITE_TXT_H
#define AFFILIATED_SITE_TXT_H

#include "protocol/slice.h"

#define TXT_RECORDS_MAX 16  /* more are counted, not kept */
#define TXT_BYTES_MAX   512 /* of one, its strings joined; what is longer is cut */

struct txt_record {
    size_t len;
    uint8_t bytes[TXT_BYTES_MAX];
};

enum txt_answer {
    TXT_OK,      /* the name is there; maybe without any TXT record */
    TXT_NO_NAME, /* NXDOMAIN */
    TXT_FAILED,  /* SERVFAIL, REFUSED, … */
    TXT_GARBLED,
};

struct txt_records {
    unsigned found; /* all of them */
    unsigned count; /* kept */
    struct txt_record records[TXT_RECORDS_MAX];
};

enum txt_answer txt_parse(struct aff_slice answer, struct txt_records *records);

/* True if one of them is `wanted`, but for blanks around it. */
bool txt_has(const struct txt_records *records, struct aff_slice wanted);

/* Without blanks and line ends around it. */
struct aff_slice txt_trim(struct aff_slice text);

/* What was found, to be shown: printable ASCII, the rest as '?', at most `size` - 1 bytes. */
void txt_show(struct aff_slice text, char *out, size_t size);

#endif
