/* Amounts of money: decimal text <-> integer minor units, with ISO 4217's decimals for each
 * currency. */

#ifndef AFF_AMOUNT_H
#define AFF_AMOUNT_H

#include "slice.h"

#define AFF_AMOUNT_MINOR_MAX 99999999999999999LL /* 17 digits */
#define AFF_AMOUNT_TEXT_MAX  24

/* Decimals of an ISO 4217 currency ("NPR" 2, "JPY" 0, "KWD" 3); -1 if it is none (lower case is
 * none). */
int aff_currency_decimals(struct aff_slice code);

/*
 * "1250.50" with 2 decimals -> 125050. Only digits and one dot with digits on both sides: no sign,
 * comma, exponent, space or superfluous leading zero; at most `decimals` digits behind the dot. On
 * a refusal returns false and `*rule` (static text) names the rule that it breaks.
 */
bool aff_amount_parse(struct aff_slice text, int decimals, int64_t *minor, const char **rule);

/* 125050 with 2 decimals -> "1250.50". Negative amounts get a leading '-'. Returns the length;
 * NUL-terminated. */
size_t aff_amount_format(int64_t minor, int decimals, char out[AFF_AMOUNT_TEXT_MAX]);

#endif
