/* Counts the words of the input, which is {"text": "…"}: what stands on stdin is in, what goes to stdout is out. */
#include <ctype.h>
#include <stdio.h>

#include "agentfactory.h"

int main(void) {
    int byte, inside = 0;
    unsigned long words = 0;
    while ((byte = getchar()) != EOF) {
        int is_part = isalnum(byte) || byte >= 0x80;
        if (is_part && !inside) words++;
        inside = is_part;
    }
    printf("{\"words\":%lu}\n", words ? words - 1 : 0); /* "text" is one of them */
    return 0;
}
