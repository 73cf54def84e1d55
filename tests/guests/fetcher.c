/* An agent that fetches with a secret and keeps what came. Built by build.py.

   Each line of its input is a URL: it is fetched with the secret "api-token" in a header, the body is put into kv under
   "last", and the answer is printed as a line. What is denied is only printed. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

__attribute__((import_module("agentfactory"), import_name("call")))
uint32_t agentfactory_call(const char *request, uint32_t request_len, char *response, uint32_t response_cap);

static char request[16384], response[16384], handle[64], value[8192];

static void call(void) {
    uint32_t length = agentfactory_call(request, (uint32_t)strlen(request), response, sizeof response - 1);
    if (length >= sizeof response) exit(70);
    response[length] = 0;
}

/* Copies the string of a field of the answer; says whether it has one. */
static int take(const char *field, char *to, size_t room) {
    char *at = strstr(response, field);
    if (!at) return 0;
    at += strlen(field);
    size_t length = strcspn(at, "\"");
    if (length >= room) exit(71);
    memcpy(to, at, length);
    to[length] = 0;
    return 1;
}

int main(void) {
    char line[4096];
    strcpy(request, "{\"method\":\"secret.ref\",\"params\":{\"name\":\"api-token\"}}");
    call();
    if (!take("\"handle\":\"", handle, sizeof handle)) {
        puts(response);
        return 3;
    }
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        snprintf(request, sizeof request,
                 "{\"method\":\"http.fetch\",\"params\":{\"method\":\"GET\",\"url\":\"%s\",\"headers\":"
                 "{\"authorization\":{\"secret\":\"%s\",\"prefix\":\"Bearer \"}}}}",
                 line, handle);
        call();
        puts(response);
        if (!take("\"body_base64\":\"", value, sizeof value)) continue;
        snprintf(request, sizeof request,
                 "{\"method\":\"kv.put\",\"params\":{\"key\":\"last\",\"value_base64\":\"%s\"}}", value);
        call();
        if (!strstr(response, "\"ok\"")) {
            puts(response);
            return 4;
        }
    }
    return 0;
}
