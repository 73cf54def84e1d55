#include "text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FIRST_ROOM = 4096, MAX_DEPTH = 32 };

void text_add(struct text *text, const char *data, size_t size) {
    if (text->room - text->size < size) {
        size_t room = text->room ? text->room : FIRST_ROOM;
        while (room - text->size < size) room *= 2;
        char *grown = realloc(text->data, room);
        if (!grown) {
            fputs("redact: out of memory\n", stderr);
            exit(3);
        }
        text->data = grown;
        text->room = room;
    }
    memcpy(text->data + text->size, data, size);
    text->size += size;
}

void text_add_string(struct text *text, const char *string) { text_add(text, string, strlen(string)); }

void text_clear(struct text *text) { text->size = 0; }

void text_add_quoted(struct text *text, const char *data, size_t size) {
    text_add(text, "\"", 1);
    for (size_t i = 0; i < size; i++) {
        unsigned char byte = (unsigned char)data[i];
        char escape[8];
        if (byte == '"' || byte == '\\') {
            escape[0] = '\\';
            escape[1] = (char)byte;
            text_add(text, escape, 2);
        } else if (byte == '\n') {
            text_add(text, "\\n", 2);
        } else if (byte < 0x20) {
            text_add(text, escape, (size_t)snprintf(escape, sizeof escape, "\\u%04x", byte));
        } else {
            text_add(text, data + i, 1);
        }
    }
    text_add(text, "\"", 1);
}

static void skip_space(struct json *json) {
    while (json->at < json->end && strchr(" \t\r\n", *json->at)) json->at++;
}

bool json_at_end(struct json *json) {
    skip_space(json);
    return json->at == json->end;
}

static bool read_hex4(struct json *json, unsigned *value) {
    if (json->end - json->at < 4) return false;
    *value = 0;
    for (int i = 0; i < 4; i++) {
        char c = *json->at++;
        unsigned digit;
        if (c >= '0' && c <= '9') digit = (unsigned)(c - '0');
        else if (c >= 'a' && c <= 'f') digit = (unsigned)(c - 'a' + 10);
        else if (c >= 'A' && c <= 'F') digit = (unsigned)(c - 'A' + 10);
        else return false;
        *value = *value * 16 + digit;
    }
    return true;
}

static void add_utf8(struct text *out, unsigned point) {
    char bytes[4];
    size_t size = 0;
    if (point < 0x80) {
        bytes[size++] = (char)point;
    } else if (point < 0x800) {
        bytes[size++] = (char)(0xc0 | point >> 6);
        bytes[size++] = (char)(0x80 | (point & 0x3f));
    } else if (point < 0x10000) {
        bytes[size++] = (char)(0xe0 | point >> 12);
        bytes[size++] = (char)(0x80 | (point >> 6 & 0x3f));
        bytes[size++] = (char)(0x80 | (point & 0x3f));
    } else {
        bytes[size++] = (char)(0xf0 | point >> 18);
        bytes[size++] = (char)(0x80 | (point >> 12 & 0x3f));
        bytes[size++] = (char)(0x80 | (point >> 6 & 0x3f));
        bytes[size++] = (char)(0x80 | (point & 0x3f));
    }
    text_add(out, bytes, size);
}

/* Reads \uXXXX, joining a surrogate pair; a lone surrogate is no character and is refused. */
static bool read_escaped_point(struct json *json, struct text *out) {
    unsigned point, low;
    if (!read_hex4(json, &point)) return false;
    if (point >= 0xdc00 && point <= 0xdfff) return false;
    if (point >= 0xd800 && point <= 0xdbff) {
        if (json->end - json->at < 2 || json->at[0] != '\\' || json->at[1] != 'u') return false;
        json->at += 2;
        if (!read_hex4(json, &low) || low < 0xdc00 || low > 0xdfff) return false;
        point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
    }
    add_utf8(out, point);
    return true;
}

/* Decodes the string that starts at the quote into `out`. */
static bool read_string(struct json *json, struct text *out) {
    static const char from[] = "\"\\/bfnrt";
    static const char to[] = "\"\\/\b\f\n\r\t";
    if (json->at == json->end || *json->at++ != '"') return false;
    while (json->at < json->end) {
        char c = *json->at++;
        if (c == '"') return true;
        if ((unsigned char)c < 0x20) return false;
        if (c != '\\') {
            text_add(out, &c, 1);
            continue;
        }
        if (json->at == json->end) return false;
        c = *json->at++;
        if (c == 'u') {
            if (!read_escaped_point(json, out)) return false;
            continue;
        }
        const char *known = strchr(from, c);
        if (!known || c == '\0') return false;
        text_add(out, &to[known - from], 1);
    }
    return false;
}

/* Numbers, true, false, null: copied as they stand; strict enough that the result is JSON when the input was. */
static bool copy_plain(struct json *json, struct text *out) {
    const char *start = json->at;
    while (json->at < json->end && strchr("+-.0123456789Eaeflnrstu", *json->at) && *json->at) json->at++;
    text_add(out, start, (size_t)(json->at - start));
    return json->at > start;
}

static bool copy(struct json *json, struct text *out, string_visitor *visit, void *state, int depth);

static bool copy_members(struct json *json, struct text *out, string_visitor *visit, void *state, int depth) {
    char close = *json->at == '{' ? '}' : ']';
    struct text key = {0};
    bool good = false;
    text_add(out, json->at++, 1);
    skip_space(json);
    if (json->at < json->end && *json->at == close) {
        text_add(out, json->at++, 1);
        return true;
    }
    while (true) {
        if (close == '}') {
            skip_space(json);
            text_clear(&key);
            if (!read_string(json, &key)) break;
            text_add_quoted(out, key.data ? key.data : "", key.size);
            skip_space(json);
            if (json->at == json->end || *json->at++ != ':') break;
            text_add(out, ":", 1);
        }
        if (!copy(json, out, visit, state, depth + 1)) break;
        skip_space(json);
        if (json->at == json->end) break;
        char c = *json->at++;
        if (c != ',' && c != close) break;
        text_add(out, &c, 1);
        if (c == close) {
            good = true;
            break;
        }
    }
    free(key.data);
    return good;
}

static bool copy(struct json *json, struct text *out, string_visitor *visit, void *state, int depth) {
    skip_space(json);
    if (json->at == json->end || depth > MAX_DEPTH) return false;
    if (*json->at == '{' || *json->at == '[') return copy_members(json, out, visit, state, depth);
    if (*json->at != '"') return copy_plain(json, out);
    struct text value = {0};
    bool good = read_string(json, &value);
    if (good) visit(out, value.data ? value.data : "", value.size, state);
    free(value.data);
    return good;
}

bool json_copy(struct json *json, struct text *out, string_visitor *visit, void *state) {
    return copy(json, out, visit, state, 0);
}
