/* The JavaScript runtime of agents: QuickJS as a reactor that is started at build time and saved with the agent loaded.
 *
 * agentfactory_prepare  at build time: starts QuickJS and evaluates /lib/boot.js, which imports the agent
 * agentfactory_run      becomes _start: one execution, from stdin to stdout
 * agentfactory_stack    where the shadow stack begins, so that what a start left there is not saved */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "quickjs.h"

#define STACK_BYTES (512 * 1024)
#define FIRST_ANSWER_BYTES 4096
#define MAX_MODULE_BYTES (8 * 1024 * 1024)
enum { EXIT_FAILED = 1, EXIT_BROKEN = 70 };

__attribute__((import_module("agentfactory"), import_name("call")))
extern uint32_t host_call(const void *request, uint32_t size, void *answer, uint32_t capacity);
extern void __wasilibc_reset_preopens(void) __attribute__((weak));
extern void __wasilibc_initialize_environ(void) __attribute__((weak));
extern unsigned char __stack_low;

static JSRuntime *runtime;
static JSContext *context;
static JSValue run_function;

struct text {
    char *bytes;
    size_t size;
};

static _Noreturn void fail(int code) {
    fflush(NULL);
    _Exit(code);
}

/* The exception with the stack of the author's files. */
static _Noreturn void fail_with_exception(void) {
    JSValue exception = JS_GetException(context);
    const char *message = JS_ToCString(context, exception);
    JSValue stack = JS_GetPropertyStr(context, exception, "stack");
    const char *lines = JS_IsString(stack) ? JS_ToCString(context, stack) : NULL;
    if (lines && *lines) fputs(lines, stderr);
    fprintf(stderr, "%s\n", message ? message : "unknown exception");
    fail(EXIT_FAILED);
}

static struct text read_all(FILE *file, size_t bound) {
    size_t capacity = 65536;
    struct text text = {malloc(capacity + 1), 0};
    for (;;) {
        if (!text.bytes) {
            fputs("out of memory\n", stderr);
            fail(EXIT_FAILED);
        }
        size_t count = fread(text.bytes + text.size, 1, capacity - text.size, file);
        text.size += count;
        if (count == 0 || text.size > bound) break;
        if (text.size == capacity) text.bytes = realloc(text.bytes, (capacity *= 2) + 1);
    }
    text.bytes[text.size] = 0;
    return text;
}

/* __host.call(text): one host call, JSON both ways. */
static JSValue js_call(JSContext *js, JSValueConst self, int argc, JSValueConst *argv) {
    size_t size;
    const char *request = JS_ToCStringLen(js, &size, argv[0]);
    if (!request) return JS_EXCEPTION;
    uint32_t capacity = FIRST_ANSWER_BYTES;
    char *answer = malloc(capacity);
    uint32_t got = answer ? host_call(request, size, answer, capacity) : 0;
    if (answer && got > capacity) {
        free(answer);
        answer = malloc(capacity = got);
        /* The same request again: the host kept its answer, nothing is called twice. */
        got = answer ? host_call(request, size, answer, capacity) : 0;
    }
    JS_FreeCString(js, request);
    if (!answer) return JS_ThrowOutOfMemory(js);
    JSValue text = got > capacity ? JS_ThrowInternalError(js, "a host call's answer grew") : JS_NewStringLen(js, answer, got);
    free(answer);
    return text;
}

/* __host.write(text): a line of the log. */
static JSValue js_write(JSContext *js, JSValueConst self, int argc, JSValueConst *argv) {
    size_t size;
    const char *line = JS_ToCStringLen(js, &size, argv[0]);
    if (!line) return JS_EXCEPTION;
    fwrite(line, 1, size, stderr);
    fputc('\n', stderr);
    JS_FreeCString(js, line);
    return JS_UNDEFINED;
}

/* __host.environment(name) */
static JSValue js_environment(JSContext *js, JSValueConst self, int argc, JSValueConst *argv) {
    const char *name = JS_ToCString(js, argv[0]);
    if (!name) return JS_EXCEPTION;
    const char *value = getenv(name);
    JS_FreeCString(js, name);
    return value ? JS_NewString(js, value) : JS_UNDEFINED;
}

/* Math.random(): 53 bits of the host's own for each number. QuickJS's generator would be saved with its state. */
static JSValue js_random(JSContext *js, JSValueConst self, int argc, JSValueConst *argv) {
    uint64_t bits;
    if (getentropy(&bits, sizeof bits) != 0) return JS_ThrowInternalError(js, "no random numbers: %s", strerror(errno));
    return JS_NewFloat64(js, (double)(bits >> 11) * 0x1p-53);
}

static JSModuleDef *load_module(JSContext *js, const char *name, void *opaque) {
    char path[512];
    const char *folder = strcmp(name, "boot.js") == 0 ? "/lib" : "/agent";
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path) {
        JS_ThrowReferenceError(js, "module name is too long");
        return NULL;
    }
    FILE *file = fopen(path, "r");
    if (!file) {
        JS_ThrowReferenceError(js, "cannot find module '%s': only files of the agent's folder can be imported", name);
        return NULL;
    }
    struct text source = read_all(file, MAX_MODULE_BYTES);
    fclose(file);
    JSValue compiled = JS_Eval(js, source.bytes, source.size, name, JS_EVAL_TYPE_MODULE | JS_EVAL_FLAG_COMPILE_ONLY);
    free(source.bytes);
    if (JS_IsException(compiled)) return NULL;
    JSModuleDef *module = JS_VALUE_GET_PTR(compiled);
    JS_FreeValue(js, compiled);
    return module;
}

static void run_jobs(void) {
    JSContext *js;
    int answer;
    while ((answer = JS_ExecutePendingJob(runtime, &js)) > 0) continue;
    if (answer < 0) fail_with_exception();
}

/* The value that a promise has by now; what still waits then waits for nothing. */
static JSValue settled(JSValue value) {
    run_jobs();
    switch (JS_PromiseState(context, value)) {
    case JS_PROMISE_FULFILLED:
        return JS_PromiseResult(context, value);
    case JS_PROMISE_REJECTED:
        JS_Throw(context, JS_PromiseResult(context, value));
        fail_with_exception();
    case JS_PROMISE_PENDING:
        fputs("a promise is never settled: there is nothing that it could wait for\n", stderr);
        fail(EXIT_FAILED);
    default:
        return value;
    }
}

static void define(JSValue object, const char *name, JSCFunction *function, int arguments) {
    JS_SetPropertyStr(context, object, name, JS_NewCFunction(context, function, name, arguments));
}

__attribute__((export_name("agentfactory_prepare"))) void agentfactory_prepare(void) {
    runtime = JS_NewRuntime();
    context = runtime ? JS_NewContext(runtime) : NULL;
    if (!context) fail(EXIT_BROKEN);
    JS_SetMaxStackSize(runtime, STACK_BYTES);
    JS_UpdateStackTop(runtime);
    JS_SetModuleLoaderFunc(runtime, NULL, load_module, NULL);
    JSValue global = JS_GetGlobalObject(context), host = JS_NewObject(context);
    define(host, "call", js_call, 1);
    define(host, "write", js_write, 1);
    define(host, "environment", js_environment, 1);
    define(host, "random", js_random, 0);
    JS_SetPropertyStr(context, global, "__host", host);
    static const char start[] = "import 'boot.js';";
    JSValue done = JS_Eval(context, start, sizeof start - 1, "<start>", JS_EVAL_TYPE_MODULE);
    if (JS_IsException(done)) fail_with_exception();
    settled(done);
    run_function = JS_GetPropertyStr(context, global, "__run");
    JSAtom atom = JS_NewAtom(context, "__run");
    JS_DeleteProperty(context, global, atom, 0);
    JS_FreeAtom(context, atom);
    JS_FreeValue(context, global);
    if (!JS_IsFunction(context, run_function)) fail(EXIT_BROKEN);
    JS_RunGC(runtime);
    fflush(NULL);
}

__attribute__((export_name("agentfactory_run"))) void agentfactory_run(void) {
    if (__wasilibc_reset_preopens) __wasilibc_reset_preopens();
    if (__wasilibc_initialize_environ) __wasilibc_initialize_environ();
    JS_UpdateStackTop(runtime);
    struct text input = read_all(stdin, SIZE_MAX / 4);
    JSValue argument = JS_NewStringLen(context, input.bytes, input.size);
    free(input.bytes);
    JSValue result = JS_Call(context, run_function, JS_UNDEFINED, 1, &argument);
    if (JS_IsException(result)) fail_with_exception();
    result = settled(result);
    size_t size;
    const char *output = JS_ToCStringLen(context, &size, result);
    if (!output) fail_with_exception();
    fwrite(output, 1, size, stdout);
    fputc('\n', stdout);
    fflush(NULL);
}

__attribute__((export_name("agentfactory_stack"))) uint32_t agentfactory_stack(void) { return (uint32_t)(uintptr_t)&__stack_low; }
