/* An agent that asks its node: each line of its input is a request, each line of its output the answer. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

__attribute__((import_module("agentfactory"), import_name("call")))
uint32_t host_call(const char *request, uint32_t request_len, char *response, uint32_t response_cap);

int main(void) {
    char *line = NULL, *answer = NULL;
    size_t room = 0, cap = 256;
    ssize_t size;
    if (!(answer = malloc(cap))) return 4;
    while ((size = getline(&line, &room, stdin)) > 0) {
        if (line[size - 1] == '\n') size--;
        uint32_t n = host_call(line, (uint32_t)size, answer, (uint32_t)cap);
        if (n > cap) { /* nothing was copied: the same request, asked with room for the answer */
            cap = n;
            if (!(answer = realloc(answer, cap))) return 4;
            if (host_call(line, (uint32_t)size, answer, (uint32_t)cap) != n) return 5;
        }
        fwrite(answer, 1, n, stdout);
        putchar('\n');
    }
    return 0;
}
