/* An agent that counts its runs: the number lives in kv under "runs". Built by build.py.

   Its input is one word: "count" adds one and prints the new number, "peek" prints it, "fail" adds one and exits
   with 1, "forget" deletes it, "fill" puts as many values of 60,000 bytes as the number behind it says, each under
   a key that starts with the word behind that. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

__attribute__((import_module("agentfactory"), import_name("call")))
int agentfactory_call(const char *request, int request_len, char *response, int response_cap);

static const char BASE64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
static char request[90000], response[1024];

static void call(void) {
    int length = agentfactory_call(request, (int)strlen(request), response, (int)sizeof response - 1);
    if (length < 0 || length >= (int)sizeof response) exit(70);
    response[length] = 0;
    if (!strstr(response, "\"ok\"")) {
        fprintf(stderr, "%s\n", response);
        exit(3);
    }
}

static long decode(const char *text) {
    unsigned char bytes[32];
    size_t count = 0;
    unsigned bits = 0, held = 0;
    for (const char *place; *text && (place = strchr(BASE64, *text)) && count < sizeof bytes - 1; text++) {
        held = held << 6 | (unsigned)(place - BASE64);
        bits += 6;
        if (bits >= 8) bytes[count++] = (unsigned char)(held >> (bits -= 8));
    }
    bytes[count] = 0;
    return strtol((const char *)bytes, NULL, 10);
}

static void encode(long number, char *text) {
    char digits[32];
    int length = snprintf(digits, sizeof digits, "%ld", number);
    while (length % 3) digits[length++] = ' '; /* no padding needed then; strtol does not mind */
    for (int at = 0; at < length; at += 3) {
        unsigned group = (unsigned)digits[at] << 16 | (unsigned)digits[at + 1] << 8 | (unsigned)digits[at + 2];
        for (int shift = 18; shift >= 0; shift -= 6) *text++ = BASE64[group >> shift & 63];
    }
    *text = 0;
}

static long runs(void) {
    strcpy(request, "{\"method\":\"kv.get\",\"params\":{\"key\":\"runs\"}}");
    call();
    char *value = strstr(response, "\"value_base64\":\"");
    return value ? decode(value + strlen("\"value_base64\":\"")) : 0;
}

static void put(long number) {
    char encoded[64];
    encode(number, encoded);
    snprintf(request, sizeof request, "{\"method\":\"kv.put\",\"params\":{\"key\":\"runs\",\"value_base64\":\"%s\"}}", encoded);
    call();
}

static void fill(long count, const char *prefix) {
    for (long n = 0; n < count; n++) {
        int length = snprintf(
            request, sizeof request, "{\"method\":\"kv.put\",\"params\":{\"key\":\"%s%ld\",\"value_base64\":\"", prefix, n);
        memset(request + length, 'A', 80000);
        strcpy(request + length + 80000, "\"}}");
        call();
    }
}

int main(void) {
    char what[32] = "", prefix[32] = "";
    long number = 0;
    if (scanf("%31s %ld %31s", what, &number, prefix) < 1) return 64;
    if (!strcmp(what, "peek")) return printf("%ld", runs()) < 0;
    if (!strcmp(what, "forget")) {
        strcpy(request, "{\"method\":\"kv.put\",\"params\":{\"key\":\"runs\"}}");
        call();
        return 0;
    }
    if (!strcmp(what, "fill")) {
        fill(number, prefix);
        return 0;
    }
    long next = runs() + 1;
    put(next);
    if (runs() != next) return 4; /* a run reads its own writes */
    if (!strcmp(what, "fail")) return 1;
    return printf("%ld", next) < 0;
}
