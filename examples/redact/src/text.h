/* A growing byte buffer and the JSON reader that copies values into it. Owns memory, knows nothing about tickets. */
#ifndef TEXT_H
#define TEXT_H

#include <stdbool.h>
#include <stddef.h>

struct text {
    char *data;
    size_t size;
    size_t room;
};

/* Append; on no memory the program ends with exit code 3: the sandbox bounds memory, the answer would be partial. */
void text_add(struct text *text, const char *data, size_t size);
void text_add_string(struct text *text, const char *string);
void text_add_quoted(struct text *text, const char *data, size_t size); /* as a JSON string, escaped */
void text_clear(struct text *text);

/* One line or file of JSON that is being read. */
struct json {
    const char *at;
    const char *end;
};

/* Called with each decoded string that is a value; appends what shall stand in its place, quoted. */
typedef void string_visitor(struct text *out, const char *data, size_t size, void *state);

/* Copy one JSON value (RFC 8259), its strings through `visit`. False: what is there is no JSON value. */
bool json_copy(struct json *json, struct text *out, string_visitor *visit, void *state);

/* True when only white space is left. */
bool json_at_end(struct json *json);

#endif
