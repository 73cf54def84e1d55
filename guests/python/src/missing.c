/* Declared by zig's headers and absent from WASI preview 1, which has no resolver and no users. CPython links against
 * them; what an agent can import never calls them. */
#include <errno.h>
#include <stddef.h>

static int resolver_error;

void *getservbyport(int port, const char *protocol) { errno = ENOSYS; return NULL; }
void *getservbyname(const char *name, const char *protocol) { errno = ENOSYS; return NULL; }
void *getprotobyname(const char *name) { errno = ENOSYS; return NULL; }
void *gethostbyaddr(const void *address, unsigned length, int kind) { errno = ENOSYS; return NULL; }
void *gethostbyname(const char *name) { errno = ENOSYS; return NULL; }
int *__h_errno_location(void) { return &resolver_error; }
const char *hstrerror(int error) { return "no resolver"; }
int setgroups(size_t count, const void *groups) { errno = ENOSYS; return -1; }
