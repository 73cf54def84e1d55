/* Finds personal data in a piece of text. Pure: reads bytes, answers lengths. */
#ifndef DETECT_H
#define DETECT_H

#include <stddef.h>

enum kind { EMAIL, IBAN, CARD, IP, PHONE, KINDS };

extern const char *const KIND_NAMES[KINDS];

/*
 * Length of the `kind` that starts exactly at `at`, 0 when none does. `start` and `end` bound the text; a match begins
 * and ends at a word boundary. IBANs are checked by length and mod 97 (ISO 13616), cards by Luhn (ISO/IEC 7812).
 */
size_t detect(enum kind kind, const char *start, const char *at, const char *end);

#endif
