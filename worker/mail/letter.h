/*
 * The texts of notices. A template is a subject and paragraphs with {fields}; what a field holds is
 * data: control characters and what turns the direction of a text become blanks, long ones are cut.
 */

#ifndef AFFILIATED_MAIL_LETTER_H
#define AFFILIATED_MAIL_LETTER_H

#include "worker/api/buffer.h"

#include <jansson.h>

#define LETTER_SUBJECT_MAX 200 /* bytes */

struct letter {
    const char *name;
    const char *purpose; /* of the token in its link, see token.h; NULL: none */
    const char *path;    /* of the link's page */
    const char *subject;
    const char *text; /* paragraphs; one that begins with ? is left out if a field of it is empty */
};

extern const struct letter letters[]; /* ended by a NULL name */

const struct letter *letter_find(const char *name);

/*
 * Fills in the fields, which are members of `fields`: texts and integers. Both results are
 * NUL-terminated; `text` is wrapped, and failed if it is too long. False if a field that is needed
 * is missing: its name is in `missing` (32 bytes).
 */
bool letter_render(const struct letter *letter, const json_t *fields,
    char subject[LETTER_SUBJECT_MAX + 1], struct buffer *text, char *missing);

#endif
