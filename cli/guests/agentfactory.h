/* What an agent in C may ask of its host. Requests and answers are JSON; docs/sandbox.md has the methods. */
#ifndef AGENTFACTORY_H
#define AGENTFACTORY_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Returns the answer's length n. When n is larger than the capacity nothing was copied: ask again with exactly the same
 * request and a larger buffer, the call is not repeated. A request has at most 512 KiB, an answer 768 KiB. */
__attribute__((import_module("agentfactory"), import_name("call")))
uint32_t agentfactory_call(const void *request, uint32_t request_size, void *answer, uint32_t answer_capacity);

/* The answer to a request, ended by a zero byte, to be freed; NULL when there is no memory left for it. */
static inline char *agentfactory_ask(const char *request) {
    uint32_t size = (uint32_t)strlen(request), capacity = 4096;
    for (;;) {
        char *answer = malloc((size_t)capacity + 1);
        if (!answer) return NULL;
        uint32_t got = agentfactory_call(request, size, answer, capacity);
        if (got <= capacity) {
            answer[got] = 0;
            return answer;
        }
        free(answer);
        capacity = got;
    }
}

/* The end of the JSON value that begins here; JSON of the host's is well formed. */
static inline const char *agentfactory_after(const char *at) {
    unsigned depth = 0;
    do {
        while (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t' || *at == ',' || *at == ':') at++;
        if (*at == '{' || *at == '[') depth++, at++;
        else if (*at == '}' || *at == ']') depth--, at++;
        else if (*at == '"') {
            for (at++; *at && *at != '"'; at++)
                if (*at == '\\' && at[1]) at++;
            if (*at) at++;
        } else
            while (*at && !strchr(",:]} \n\r\t", *at)) at++;
    } while (depth && *at);
    return at;
}

/* Where the value of an object's member begins; NULL where there is none, or no object. So calls can be nested:
 * agentfactory_member(agentfactory_member(answer, "ok"), "message"). */
static inline const char *agentfactory_member(const char *object, const char *name) {
    size_t size = strlen(name);
    if (!object) return NULL;
    const char *at = object + strspn(object, " \n\r\t");
    if (*at++ != '{') return NULL;
    for (;;) {
        at += strspn(at, ", \n\r\t");
        if (*at != '"') return NULL;
        int is_it = !strncmp(at + 1, name, size) && at[size + 1] == '"';
        at = agentfactory_after(at);
        at += strspn(at, ": \n\r\t");
        if (is_it) return at;
        at = agentfactory_after(at);
    }
}

static inline char *agentfactory_utf8(char *to, uint32_t code) {
    if (code < 0x80) return *to++ = (char)code, to;
    int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    *to++ = (char)((0xf0 << (3 - more) & 0xff) | code >> 6 * more);
    while (more--) *to++ = (char)(0x80 | (code >> 6 * more & 0x3f));
    return to;
}

static inline uint32_t agentfactory_hex4(const char *at) {
    char digits[5] = {0};
    return strlen(at) < 4 ? 0 : (memcpy(digits, at, 4), (uint32_t)strtoul(digits, NULL, 16));
}

/* A string of JSON as text, ended by a zero byte, to be freed; NULL where the value is no string. */
static inline char *agentfactory_text(const char *value) {
    if (!value || *value != '"') return NULL;
    const char *end = agentfactory_after(value) - 1, *at = value + 1;
    char *text = malloc((size_t)(end - value) + 1), *to = text;
    if (!text) return NULL;
    while (at < end) {
        if (*at != '\\') { *to++ = *at++; continue; }
        const char *plain = "\"\\/", *named = "bfnrt", *means = "\b\f\n\r\t";
        char kind = at[1];
        at += 2;
        if (strchr(plain, kind)) *to++ = kind;
        else if (strchr(named, kind)) *to++ = means[strchr(named, kind) - named];
        else if (kind == 'u') {
            uint32_t code = agentfactory_hex4(at);
            at += 4;
            if (code >= 0xd800 && code < 0xdc00 && at[0] == '\\' && at[1] == 'u') {
                code = 0x10000 + ((code - 0xd800) << 10) + (agentfactory_hex4(at + 2) - 0xdc00);
                at += 6;
            }
            to = agentfactory_utf8(to, code);
        }
    }
    *to = 0;
    return text;
}

/* A text as a string of JSON, to be freed. */
static inline char *agentfactory_quoted(const char *text) {
    char *quoted = malloc(6 * strlen(text) + 3), *to = quoted;
    if (!quoted) return NULL;
    *to++ = '"';
    for (; *text; text++) {
        if ((unsigned char)*text < 0x20) to += sprintf(to, "\\u%04x", (unsigned)*text);
        else {
            if (*text == '"' || *text == '\\') *to++ = '\\';
            *to++ = *text;
        }
    }
    *to++ = '"', *to = 0;
    return quoted;
}

/* Asks a language model, ENDPOINT/MODEL of llm in agent.toml; messages is a JSON list of them. The host's answer as
 * agentfactory_ask returns it: under "ok" "message" with its "content", "usage" and what is "left"; or under "error" a
 * "reason", such as BUDGET_EXHAUSTED. max_tokens bounds the answer. */
static inline char *agentfactory_llm_complete(const char *model, const char *messages, uint32_t max_tokens) {
    char *name = agentfactory_quoted(model);
    size_t size = name ? strlen(name) + strlen(messages) + 128 : 0;
    char *request = name ? malloc(size) : NULL, *answer = NULL;
    if (request) {
        snprintf(request, size, "{\"method\":\"llm.complete\",\"params\":{\"model\":%s,\"messages\":%s,\"max_tokens\":%lu}}", name,
                 messages, (unsigned long)max_tokens);
        answer = agentfactory_ask(request);
    }
    free(request);
    free(name);
    return answer;
}

#endif
