/* A postback's URL: a template whose macros, {name}, stand for values that strangers chose. */

#ifndef AFFILIATED_WEBHOOK_MACROS_H
#define AFFILIATED_WEBHOOK_MACROS_H

#include "worker/api/buffer.h"

#include <jansson.h>

#define MACROS_URL_MAX (16 * 1024UL)

/* The URL, NUL-terminated, into `out`. A value is percent-encoded but for RFC 3986's unreserved
 * characters; one that is not there, or null, is empty. What is no macro stays as it is. */
void macros_expand(const char *template, const json_t *values, struct buffer *out);

#endif
