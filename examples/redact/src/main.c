/*
 * redact: takes personal data out of a support-ticket export and counts what it found.
 *
 * Input (stdin): JSON lines, one object a ticket. Output (stdout): {"tickets", "found", "redacted"}.
 * Parameters (environment AGENTFACTORY_PARAMETERS): {"kinds": ["email", "phone", "iban", "card", "ip"]}; absent: all.
 * Exit code 0; 2 when the input is not JSON lines. What it does is logged on stderr, never what it found.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "detect.h"
#include "text.h"

struct job {
    bool wanted[KINDS];
    unsigned long found[KINDS];
};

static void choose(struct text *out, const char *data, size_t size, void *state) {
    struct job *job = state;
    (void)out;
    for (int kind = 0; kind < KINDS; kind++)
        if (strlen(KIND_NAMES[kind]) == size && !memcmp(KIND_NAMES[kind], data, size)) job->wanted[kind] = true;
}

/* The control plane has checked the parameters against parameters.schema.json: every string in them is a kind. */
static void read_parameters(struct job *job) {
    const char *parameters = getenv("AGENTFACTORY_PARAMETERS");
    struct text ignored = {0};
    bool named = false;
    if (parameters) {
        struct json json = {parameters, parameters + strlen(parameters)};
        json_copy(&json, &ignored, choose, job);
        free(ignored.data);
    }
    for (int kind = 0; kind < KINDS; kind++) named |= job->wanted[kind];
    for (int kind = 0; kind < KINDS; kind++) job->wanted[kind] |= !named;
}

static void redact(struct text *out, const char *data, size_t size, void *state) {
    struct job *job = state;
    struct text clean = {0};
    const char *at = data, *end = data + size;
    while (at < end) {
        size_t length = 0;
        for (int kind = 0; kind < KINDS && !length; kind++) {
            if (!job->wanted[kind]) continue;
            length = detect((enum kind)kind, data, at, end);
            if (!length) continue;
            job->found[kind]++;
            text_add(&clean, "[", 1);
            text_add_string(&clean, KIND_NAMES[kind]);
            text_add(&clean, "]", 1);
        }
        if (!length) text_add(&clean, at, 1);
        at += length ? length : 1;
    }
    text_add_quoted(out, clean.data ? clean.data : "", clean.size);
    free(clean.data);
}

static void read_all(struct text *input) {
    char chunk[16384];
    size_t size;
    while ((size = fread(chunk, 1, sizeof chunk, stdin)) > 0) text_add(input, chunk, size);
}

/* One ticket a line into `out`, separated by commas. Returns how many, or -1 after naming the bad line. */
static long redact_lines(const struct text *input, struct text *out, struct job *job) {
    const char *at = input->data, *end = input->data + input->size;
    long tickets = 0;
    for (long number = 1; at < end; number++) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        if (!stop) stop = end;
        struct json line = {at, stop};
        at = stop + (stop < end);
        if (json_at_end(&line)) continue;
        if (tickets) text_add(out, ",\n", 2);
        if (*line.at != '{' || !json_copy(&line, out, redact, job) || !json_at_end(&line)) {
            fprintf(stderr, "redact: line %ld is not a JSON object\n", number);
            return -1;
        }
        tickets++;
    }
    return tickets;
}

int main(void) {
    struct job job = {0};
    struct text input = {0}, redacted = {0};
    read_parameters(&job);
    read_all(&input);
    long tickets = redact_lines(&input, &redacted, &job);
    if (tickets < 0) return 2;
    printf("{\"tickets\":%ld,\"found\":{", tickets);
    for (int kind = 0, shown = 0; kind < KINDS; kind++)
        if (job.wanted[kind]) printf("%s\"%s\":%lu", shown++ ? "," : "", KIND_NAMES[kind], job.found[kind]);
    fputs("},\"redacted\":[", stdout);
    if (redacted.size) fwrite(redacted.data, 1, redacted.size, stdout);
    fputs("]}\n", stdout);
    fprintf(stderr, "redact: %ld tickets read, %zu bytes in, %zu bytes redacted\n", tickets, input.size, redacted.size);
    return fflush(stdout) ? 3 : 0;
}
