/* CRC-32C (Castagnoli, RFC 3720 appendix B.4): by the processor where it can, else by eight tables.
 */

#ifndef AFF_CRC32C_H
#define AFF_CRC32C_H

#include "slice.h"

/* Continues `crc` (0 to begin) over `len` bytes. */
uint32_t aff_crc32c(uint32_t crc, const void *data, size_t len);

/* The same by the tables alone, on any processor. For the one that lacks the instruction, and for
 * tests. */
uint32_t aff_crc32c_tables(uint32_t crc, const void *data, size_t len);

#endif
