/*
 * harness.h: what the C tests share.
 *
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * A test program prints one line per check, "ok N - text", "not ok N - text" or "ok N - text # skip reason", and a last
 * line "1..N". Only the first process prints. Other processes are peers: they carry out requests that come over a
 * socket, so that a test reads from top to bottom in one place.
 */
#ifndef HARNESS_H
#define HARNESS_H

#include <xpmem.h>

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define UNUSED __attribute__((unused))

/* No program here needs more than a few seconds. */
#define TIME_LIMIT 60

/* Linked to device.c, not to the library. */
#ifndef ON_DEVICE
#define ON_DEVICE 0
#endif

/* What errno is set to before each call, to see whether the call leaves it alone. */
#define UNTOUCHED 7777

/* The last page of user addresses that every x86-64 and every AArch64 kernel has in common ends here. */
#define USER_END 0x7ffffffff000ULL

static int checks, failures;
static size_t page;

UNUSED static void check(int good, const char *file, int line, const char *format, ...)
{
	va_list args;

	checks++;
	failures += !good;
	printf("%sok %d - ", good ? "" : "not ", checks);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	if (!good)
		printf(" (%s:%d)", file, line);
	putchar('\n');
	fflush(stdout);
}

#define CHECK(condition, ...) check((condition), __FILE__, __LINE__, __VA_ARGS__)

UNUSED static void skip(const char *text, const char *reason)
{
	printf("ok %d - %s # skip %s\n", ++checks, text, reason);
	fflush(stdout);
}

UNUSED static void die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	_exit(99);
}

UNUSED static void begin(void)
{
	page = (size_t)sysconf(_SC_PAGESIZE);
	alarm(TIME_LIMIT);
}

UNUSED static int finish(void)
{
	printf("1..%d\n", checks);
	return failures != 0;
}

/* The result of a call, and errno after it. */
struct result {
	long long value;
	int error;
};

/* Makes a call with errno set to a value that no call sets. */
#define CALL(result, expression)                                                                                       \
	do {                                                                                                           \
		errno = UNTOUCHED;                                                                                     \
		(result).value = (long long)(expression);                                                              \
		(result).error = errno;                                                                                \
	} while (0)

UNUSED static const char *errno_name(int error)
{
	static char other[32];

	switch (error) {
	case UNTOUCHED:
		return "untouched";
	case EACCES:
		return "EACCES";
	case EBUSY:
		return "EBUSY";
	case EFAULT:
		return "EFAULT";
	case EINVAL:
		return "EINVAL";
	case ENOENT:
		return "ENOENT";
	case ENOMEM:
		return "ENOMEM";
	case ENOTTY:
		return "ENOTTY";
	case EPERM:
		return "EPERM";
	}
	snprintf(other, sizeof(other), "errno %d", error);
	return other;
}

UNUSED static void check_fails(struct result r, int error, const char *file, int line, const char *text)
{
	int good = r.value == -1 && r.error == error;

	if (good)
		check(1, file, line, "%s: %s", text, errno_name(error));
	else
		check(0, file, line, "%s: %s expected, returned %#llx with errno %d", text, errno_name(error),
		      (unsigned long long)r.value, r.error);
}

UNUSED static void check_works(struct result r, int positive, const char *file, int line, const char *text)
{
	int good = (positive ? r.value > 0 : r.value == 0) && r.error == UNTOUCHED;

	if (good)
		check(1, file, line, "%s: %s", text, positive ? "greater than 0" : "0");
	else
		check(0, file, line, "%s: %s expected, returned %#llx with errno %d", text,
		      positive ? "greater than 0" : "0", (unsigned long long)r.value, r.error);
}

/* The call fails with this errno. */
#define FAILS(expression, error)                                                                                       \
	do {                                                                                                           \
		struct result r_;                                                                                      \
		CALL(r_, expression);                                                                                  \
		check_fails(r_, error, __FILE__, __LINE__, #expression);                                               \
	} while (0)

/* The call returns 0 and leaves errno alone. */
#define ZERO(expression)                                                                                               \
	do {                                                                                                           \
		struct result r_;                                                                                      \
		CALL(r_, expression);                                                                                  \
		check_works(r_, 0, __FILE__, __LINE__, #expression);                                                   \
	} while (0)

/* The call returns an id or an address, which goes to `variable`, and leaves errno alone. */
#define GIVES(variable, type, expression)                                                                              \
	do {                                                                                                           \
		struct result r_;                                                                                      \
		CALL(r_, expression);                                                                                  \
		check_works(r_, 1, __FILE__, __LINE__, #variable " = " #expression);                                   \
		(variable) = (type)r_.value;                                                                           \
	} while (0)

/* ---- the API in a form that is easy to call ---- */

#define MODE(bits) ((void *)(uintptr_t)(bits))

UNUSED static xpmem_segid_t make(const void *vaddr, size_t size, unsigned mode)
{
	return xpmem_make((void *)(uintptr_t)vaddr, size, XPMEM_PERMIT_MODE, MODE(mode));
}

UNUSED static xpmem_segid_t make_all(unsigned mode)
{
	return make(NULL, XPMEM_MAXADDR_SIZE, mode);
}

UNUSED static xpmem_apid_t get(xpmem_segid_t segid, int flags)
{
	return xpmem_get(segid, flags, XPMEM_PERMIT_MODE, NULL);
}

UNUSED static void *attach(xpmem_apid_t apid, off_t offset, size_t size, uintptr_t vaddr)
{
	struct xpmem_addr addr;

	addr.apid = apid;
	addr.offset = offset;
	return xpmem_attach(addr, size, (void *)vaddr);
}

/* ---- memory ---- */

UNUSED static void *map_pages(size_t pages)
{
	void *at = mmap(NULL, pages * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		die("mmap");
	return at;
}

/*
 * Memory at an address where the system, left to itself, puts nothing: when it is unmapped, nobody else takes the place.
 */
UNUSED static void *map_apart(size_t pages)
{
	static uintptr_t next = 0x200000000000;
	void *at = mmap((void *)next, pages * page, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (at == MAP_FAILED)
		die("mmap");
	next += 0x10000000;
	return at;
}

/* An address range where nothing is mapped. */
UNUSED static void *free_range(size_t pages)
{
	void *at = map_apart(pages);

	if (munmap(at, pages * page) != 0)
		die("munmap");
	return at;
}

UNUSED static int is_mapped(const void *at)
{
	unsigned char unused;

	return mincore((void *)((uintptr_t)at & ~(page - 1)), 1, &unused) == 0 || errno != ENOMEM;
}

/* What an access does: 0, or the signal it raises. */
struct outcome {
	int signal;
	int code;
	uintptr_t address;
};

static sigjmp_buf probe_return;
static volatile struct outcome probe_outcome;

UNUSED static void probe_handler(int signal, siginfo_t *info, void *context)
{
	(void)context;
	probe_outcome.signal = signal;
	probe_outcome.code = info->si_code;
	probe_outcome.address = (uintptr_t)info->si_addr;
	siglongjmp(probe_return, 1);
}

UNUSED static struct outcome probe(volatile long long *at, int store, long long *value)
{
	struct sigaction action, old_bus, old_segv;
	struct outcome result;

	memset(&action, 0, sizeof(action));
	action.sa_sigaction = probe_handler;
	action.sa_flags = SA_SIGINFO;
	sigaction(SIGBUS, &action, &old_bus);
	sigaction(SIGSEGV, &action, &old_segv);
	probe_outcome.signal = 0;
	probe_outcome.code = 0;
	probe_outcome.address = 0;
	if (sigsetjmp(probe_return, 1) == 0) {
		if (store)
			*at = *value;
		else
			*value = *at;
	}
	sigaction(SIGBUS, &old_bus, NULL);
	sigaction(SIGSEGV, &old_segv, NULL);
	result.signal = probe_outcome.signal;
	result.code = probe_outcome.code;
	result.address = probe_outcome.address;
	return result;
}

UNUSED static struct outcome probe_load(const void *at, long long *value)
{
	return probe((volatile long long *)(uintptr_t)at, 0, value);
}

UNUSED static struct outcome probe_store(void *at, long long value)
{
	return probe((volatile long long *)at, 1, &value);
}

UNUSED static void check_loads(const void *at, long long want, const char *file, int line, const char *text)
{
	long long value = 0;
	struct outcome o = probe_load(at, &value);

	check(o.signal == 0 && value == want, file, line, "%s: reads %lld (signal %d, value %lld)", text, want,
	      o.signal, value);
}

UNUSED static void check_stores(void *at, long long value, const char *file, int line, const char *text)
{
	struct outcome o = probe_store(at, value);

	check(o.signal == 0, file, line, "%s: takes %lld (signal %d)", text, value, o.signal);
}

UNUSED static void check_signal(struct outcome o, int signal, const void *at, const char *file, int line,
				const char *text)
{
	int good = o.signal == signal && o.address == (uintptr_t)at;

	if (signal == SIGBUS)
		good = good && o.code == BUS_ADRERR;
	check(good, file, line, "%s: signal %d (signal %d, code %d, address off by %lld)", text, signal, o.signal,
	      o.code, o.signal ? (long long)(o.address - (uintptr_t)at) : 0LL);
}

#define LOADS(at, want) check_loads(at, want, __FILE__, __LINE__, #at)
#define STORES(at, value) check_stores(at, value, __FILE__, __LINE__, #at)
#define LOAD_RAISES(at, sig)                                                                                           \
	do {                                                                                                           \
		long long v_ = 0;                                                                                      \
		check_signal(probe_load(at, &v_), sig, at, __FILE__, __LINE__, "a load from " #at);                    \
	} while (0)
#define STORE_RAISES(at, sig) check_signal(probe_store(at, 1), sig, at, __FILE__, __LINE__, "a store to " #at)

/* ---- peers ---- */

enum {
	PEER_VERSION,
	PEER_MAKE,    /* vaddr, size, mode */
	PEER_REMOVE,  /* segid */
	PEER_GET,     /* segid, flags */
	PEER_RELEASE, /* apid */
	PEER_ATTACH,  /* apid, offset, size, vaddr */
	PEER_DETACH,  /* vaddr */
	PEER_MAP,     /* pages */
	PEER_UNMAP,   /* vaddr, pages */
	PEER_LOAD,    /* vaddr: value, or minus the signal in `error` */
	PEER_STORE,   /* vaddr, value: 0, or the signal in `error` */
	PEER_FORK     /* the child serves the other socket of the peer */
};

struct request {
	int op;
	long long a, b, c, d;
};

struct peer {
	pid_t pid;
	int socket;
	int child_socket; /* reaches the child that PEER_FORK makes */
};

UNUSED static int transfer(int (*step)(int, void *, size_t), int fd, void *data, size_t size)
{
	char *at = (char *)data;

	while (size > 0) {
		int n = step(fd, at, size);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return 0;
		at += n;
		size -= (size_t)n;
	}
	return 1;
}

UNUSED static int read_step(int fd, void *data, size_t size)
{
	return (int)read(fd, data, size);
}

UNUSED static int write_step(int fd, void *data, size_t size)
{
	return (int)send(fd, data, size, MSG_NOSIGNAL);
}

UNUSED static void serve(int fd, int child_fd)
{
	struct request q;
	struct result r;
	struct outcome o;
	long long value;
	pid_t child;

	while (transfer(read_step, fd, &q, sizeof(q))) {
		r.value = 0;
		r.error = 0;
		switch (q.op) {
		case PEER_VERSION:
			CALL(r, xpmem_version());
			break;
		case PEER_MAKE:
			CALL(r, make((void *)(uintptr_t)q.a, (size_t)q.b, (unsigned)q.c));
			break;
		case PEER_REMOVE:
			CALL(r, xpmem_remove(q.a));
			break;
		case PEER_GET:
			CALL(r, get(q.a, (int)q.b));
			break;
		case PEER_RELEASE:
			CALL(r, xpmem_release(q.a));
			break;
		case PEER_ATTACH:
			CALL(r, attach(q.a, q.b, (size_t)q.c, (uintptr_t)q.d));
			break;
		case PEER_DETACH:
			CALL(r, xpmem_detach((void *)(uintptr_t)q.a));
			break;
		case PEER_MAP:
			CALL(r, map_pages((size_t)q.a));
			break;
		case PEER_UNMAP:
			CALL(r, munmap((void *)(uintptr_t)q.a, (size_t)q.b * page));
			break;
		case PEER_LOAD:
			value = 0;
			o = probe_load((void *)(uintptr_t)q.a, &value);
			r.value = value;
			r.error = o.signal;
			break;
		case PEER_STORE:
			o = probe_store((void *)(uintptr_t)q.a, q.b);
			r.value = -(o.signal != 0);
			r.error = o.signal;
			break;
		case PEER_FORK:
			child = fork();
			if (child == 0) {
				prctl(PR_SET_PDEATHSIG, 0);
				alarm(TIME_LIMIT);
				close(fd);
				serve(child_fd, -1);
				_exit(0);
			}
			close(child_fd);
			r.value = child;
			break;
		}
		if (!transfer(write_step, fd, &r, sizeof(r)))
			break;
	}
}

/*
 * Starts a peer. It is forked, and runs the program again with the arguments "--peer FD FD": with a uid, as that user with
 * the supplementary group `group` (or none, if that is -1); with `setting`, with that in its environment.
 */
UNUSED static struct peer start_peer_as(int uid, int group, const char *setting)
{
	struct peer p;
	int main_pair[2], child_pair[2];
	char first[16], second[16];
	gid_t groups[1];
	pid_t parent = getpid();

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, main_pair) || socketpair(AF_UNIX, SOCK_STREAM, 0, child_pair))
		die("socketpair");
	fcntl(main_pair[0], F_SETFD, FD_CLOEXEC);
	fcntl(child_pair[0], F_SETFD, FD_CLOEXEC);
	p.pid = fork();
	if (p.pid < 0)
		die("fork");
	if (p.pid == 0) {
		if (uid >= 0) {
			groups[0] = (gid_t)group;
			if (setgroups(group >= 0, groups) || setgid((gid_t)uid) || setuid((uid_t)uid))
				die("setuid");
		}
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(0);
		if (setting)
			putenv((char *)(uintptr_t)setting);
		snprintf(first, sizeof(first), "%d", main_pair[1]);
		snprintf(second, sizeof(second), "%d", child_pair[1]);
		execl("/proc/self/exe", "peer", "--peer", first, second, (char *)NULL);
		die("exec");
	}
	close(main_pair[1]);
	close(child_pair[1]);
	p.socket = main_pair[0];
	p.child_socket = child_pair[0];
	return p;
}

UNUSED static struct peer start_peer(void)
{
	return start_peer_as(-1, -1, NULL);
}

/* The first thing in main(): does not return in a peer. */
UNUSED static void serve_if_peer(int argc, char **argv)
{
	if (argc == 4 && strcmp(argv[1], "--peer") == 0) {
		begin();
		serve(atoi(argv[2]), atoi(argv[3]));
		_exit(0);
	}
}

UNUSED static struct result ask_at(int fd, int op, long long a, long long b, long long c, long long d)
{
	struct request q;
	struct result r;

	memset(&q, 0, sizeof(q));
	q.op = op;
	q.a = a;
	q.b = b;
	q.c = c;
	q.d = d;
	r.value = -1;
	r.error = EPIPE;
	if (transfer(write_step, fd, &q, sizeof(q)))
		transfer(read_step, fd, &r, sizeof(r));
	return r;
}

UNUSED static struct result ask(struct peer p, int op, long long a, long long b, long long c, long long d)
{
	return ask_at(p.socket, op, a, b, c, d);
}

/* For requests that prepare a test: they must work. */
UNUSED static long long must(struct result r, const char *what)
{
	if (r.value == -1) {
		fprintf(stderr, "%s: errno %d\n", what, r.error);
		_exit(99);
	}
	return r.value;
}

/* Kills a peer; when this returns, it is gone. */
UNUSED static void end_peer(struct peer p)
{
	int status;

	kill(p.pid, SIGKILL);
	waitpid(p.pid, &status, 0);
	close(p.socket);
	close(p.child_socket);
}

/* ---- capabilities ---- */

#define CAP_IPC_OWNER_BIT 15
#define CAP_SYS_RAWIO_BIT 17

UNUSED static int has_capability(int bit)
{
	unsigned long long effective = 0;
	char line[256];
	FILE *status = fopen("/proc/self/status", "r");

	if (!status)
		die("/proc/self/status");
	while (fgets(line, sizeof(line), status))
		if (strncmp(line, "CapEff:", 7) == 0)
			effective = strtoull(line + 7, NULL, 16);
	fclose(status);
	return effective >> bit & 1;
}

#endif
