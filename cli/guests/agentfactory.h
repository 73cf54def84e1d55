/* What an agent in C may ask of its host. Requests and answers are JSON; docs/sandbox.md has the methods. */
#ifndef AGENTFACTORY_H
#define AGENTFACTORY_H

#include <stdint.h>
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

#endif
