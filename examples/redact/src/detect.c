#include "detect.h"

#include <ctype.h>
#include <stdbool.h>
#include <string.h>

const char *const KIND_NAMES[KINDS] = {"email", "iban", "card", "ip", "phone"};

static bool is_word(char c) { return isalnum((unsigned char)c) || (unsigned char)c >= 0x80; }

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static bool boundary(const char *at, const char *end) { return at == end || !is_word(*at); }

static size_t email(const char *at, const char *end) {
    const char *p = at;
    while (p < end && (isalnum((unsigned char)*p) || strchr("._%+-", *p)) && *p) p++;
    if (p == at || p == end || *p != '@') return 0;
    const char *label = ++p, *last_dot = NULL, *stop = NULL;
    for (; p < end && (isalnum((unsigned char)*p) || *p == '-' || *p == '.') && *p; p++) {
        if (*p != '.') continue;
        if (p == label) break;
        last_dot = p;
        label = p + 1;
    }
    /* The sentence may end with a dot of its own: the top-level domain ends where letters end. */
    if (!last_dot) return 0;
    if (label == p) {
        const char *q = last_dot;
        stop = last_dot;
        while (q > at && q[-1] != '.' && q[-1] != '@') q--;
        if (q[-1] != '.') return 0;
        label = q;
    } else {
        stop = p;
    }
    for (const char *q = label; q < stop; q++)
        if (!isalpha((unsigned char)*q)) return 0;
    return stop - label >= 2 ? (size_t)(stop - at) : 0;
}

/* Lengths by country from the SWIFT registry, for the countries a European support desk meets. */
static const struct {
    char country[3];
    unsigned char length;
} IBAN_LENGTHS[] = {
    {"AT", 20}, {"BE", 16}, {"BG", 22}, {"CH", 21}, {"CY", 28}, {"CZ", 24}, {"DE", 22}, {"DK", 18}, {"EE", 20}, {"ES", 24},
    {"FI", 18}, {"FR", 27}, {"GB", 22}, {"GR", 27}, {"HR", 21}, {"HU", 28}, {"IE", 22}, {"IS", 26}, {"IT", 27}, {"LI", 21},
    {"LT", 20}, {"LU", 20}, {"LV", 21}, {"MT", 31}, {"NL", 18}, {"NO", 15}, {"PL", 28}, {"PT", 25}, {"RO", 24}, {"SE", 24},
    {"SI", 19}, {"SK", 24},
};

static size_t iban(const char *at, const char *end) {
    enum { LONGEST = 34 };
    char compact[LONGEST];
    size_t want = 0, have = 0;
    if (end - at < 4 || !isdigit((unsigned char)at[2]) || !isdigit((unsigned char)at[3])) return 0;
    for (size_t i = 0; i < sizeof IBAN_LENGTHS / sizeof *IBAN_LENGTHS; i++)
        if (!memcmp(at, IBAN_LENGTHS[i].country, 2)) want = IBAN_LENGTHS[i].length;
    if (!want) return 0;
    const char *p = at;
    for (; p < end && have < want; p++) {
        if (*p == ' ' && p[-1] != ' ') continue;
        if (!isupper((unsigned char)*p) && !is_digit(*p)) return 0;
        compact[have++] = *p;
    }
    if (have < want || !boundary(p, end)) return 0;
    unsigned rest = 0;
    for (size_t i = 0; i < want; i++) {
        char c = compact[(i + 4) % want];
        rest = is_digit(c) ? (rest * 10 + (unsigned)(c - '0')) % 97 : (rest * 100 + (unsigned)(c - 'A' + 10)) % 97;
    }
    return rest == 1 ? (size_t)(p - at) : 0;
}

static bool luhn(const char *digits, size_t count) {
    unsigned sum = 0;
    for (size_t i = 0; i < count; i++) {
        unsigned digit = (unsigned)(digits[count - 1 - i] - '0');
        if (i % 2) digit = digit > 4 ? digit * 2 - 9 : digit * 2;
        sum += digit;
    }
    return sum % 10 == 0;
}

static size_t card(const char *at, const char *end) {
    enum { SHORTEST = 13, LONGEST = 19 };
    char digits[LONGEST];
    size_t count = 0;
    const char *p = at;
    if (p == end || !strchr("23456", *p) || !*p) return 0;
    for (; p < end; p++) {
        if (is_digit(*p)) {
            if (count == LONGEST) return 0;
            digits[count++] = *p;
        } else if (!((*p == ' ' || *p == '-') && p + 1 < end && is_digit(p[1]))) {
            break;
        }
    }
    if (count < SHORTEST || !boundary(p, end)) return 0;
    return luhn(digits, count) ? (size_t)(p - at) : 0;
}

static size_t ipv4(const char *at, const char *end) {
    const char *p = at;
    for (int part = 0; part < 4; part++) {
        unsigned value = 0, digits = 0;
        for (; p < end && is_digit(*p) && digits < 4; p++, digits++) value = value * 10 + (unsigned)(*p - '0');
        if (!digits || digits > 3 || value > 255) return 0;
        if (part == 3) break;
        if (p == end || *p++ != '.') return 0;
    }
    /* 1.2.3.4.5 is a version, not an address. */
    if (p + 1 < end && *p == '.' && is_digit(p[1])) return 0;
    return boundary(p, end) ? (size_t)(p - at) : 0;
}

static size_t ipv6(const char *at, const char *end) {
    const char *p = at;
    int groups = 0, gaps = 0;
    while (p < end) {
        int digits = 0;
        while (p < end && isxdigit((unsigned char)*p) && digits < 5) p++, digits++;
        if (digits > 4) return 0;
        if (digits) groups++;
        if (p == end || *p != ':') break;
        if (!digits && p != at) return 0;
        if (p + 1 < end && p[1] == ':') {
            gaps++;
            p += 2;
            if (p == end || !isxdigit((unsigned char)*p)) break;
        } else if (p + 1 < end && isxdigit((unsigned char)p[1])) {
            p++;
        } else {
            break; /* a colon of the sentence */
        }
    }
    bool whole = (gaps == 0 && groups == 8) || (gaps == 1 && groups >= 2 && groups < 8);
    return whole && boundary(p, end) ? (size_t)(p - at) : 0;
}

static size_t ip(const char *start, const char *at, const char *end) {
    size_t size = ipv4(at, end);
    if (!size && (at == start || at[-1] != ':')) size = ipv6(at, end);
    return size;
}

/* +CC…, 0… or (area) …: 9 to 15 digits, groups split by single separators (ITU-T E.123). */
static size_t phone(const char *at, const char *end) {
    enum { FEWEST = 9, MOST = 15 };
    size_t count = 0;
    const char *p = at, *last = at;
    if (p == end || (*p != '+' && *p != '(' && *p != '0')) return 0;
    bool open = false, separated = *p != '0';
    if (end - p >= 3 && !memcmp(p, "000", 3)) return 0; /* no country's prefix: a padded number */
    if (*p == '+') p++;
    for (; p < end; p++) {
        if (is_digit(*p)) {
            count++;
            last = p + 1;
        } else if (*p == '(' && !open) {
            open = separated = true;
        } else if (*p == ')' && open) {
            open = false;
        } else if ((*p == ' ' || *p == '-' || *p == '/' || *p == '.') && p + 1 < end &&
                   (is_digit(p[1]) || p[1] == '(') && p > at) {
            separated = true;
        } else {
            break;
        }
    }
    /* A bare run of digits that starts with 0 is an article or order number more often than a telephone. */
    if (!separated || open || count < FEWEST || count > MOST || !boundary(last, end)) return 0;
    return (size_t)(last - at);
}

size_t detect(enum kind kind, const char *start, const char *at, const char *end) {
    /* Inside a word, a number or an order id nothing begins; an address may follow the slashes of a URL. */
    const char *glue = kind == IP ? "._-" : "._%+-#/";
    if (at > start && (is_word(at[-1]) || (at[-1] && strchr(glue, at[-1])))) return 0;
    switch (kind) {
        case EMAIL: return email(at, end);
        case IBAN: return iban(at, end);
        case CARD: return card(at, end);
        case IP: return ip(start, at, end);
        case PHONE: return phone(at, end);
        default: return 0;
    }
}
