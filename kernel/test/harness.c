// SPDX-License-Identifier: GPL-2.0-only
#include "harness.h"

#include <linux/capability.h>
#include <setjmp.h>
#include <stdarg.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>

struct test *tests;

/* Seconds one test may take; the guest emulates its processor, and debugs. */
#define LIMIT 900
#define SKIPPED 77

void fail(const char *file, int line, const char *format, ...)
{
	va_list args;

	fprintf(stderr, "    %s:%d: ", file, line);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	_exit(1);
}

void skip(const char *why, ...)
{
	va_list args;

	fprintf(stderr, "    SKIPPED: ");
	va_start(args, why);
	vfprintf(stderr, why, args);
	va_end(args);
	fputc('\n', stderr);
	_exit(SKIPPED);
}

/* ---- faults ---- */

static __thread sigjmp_buf fault_jump;
static __thread volatile sig_atomic_t fault_expected;

static void on_fault(int signal)
{
	if (!fault_expected) {
		static const char text[] = "    unexpected fault\n";

		(void)!write(2, text, sizeof(text) - 1);
		_exit(3);
	}
	siglongjmp(fault_jump, signal);
}

static void catch_faults(void)
{
	struct sigaction action = { .sa_handler = on_fault,
				    .sa_flags = SA_NODEFER };

	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
}

int try_load(const volatile void *address, uint64_t *value)
{
	int signal = sigsetjmp(fault_jump, 0);

	if (!signal) {
		fault_expected = 1;
		*value = *(const volatile uint64_t *)address;
	}
	fault_expected = 0;
	return signal;
}

int try_store(volatile void *address, uint64_t value)
{
	int signal = sigsetjmp(fault_jump, 0);

	if (!signal) {
		fault_expected = 1;
		*(volatile uint64_t *)address = value;
	}
	fault_expected = 0;
	return signal;
}

uint64_t load(const volatile void *address)
{
	uint64_t value;
	int signal = try_load(address, &value);

	if (signal)
		fail(__FILE__, __LINE__, "load from %p: signal %d", address,
		     signal);
	return value;
}

void store(volatile void *address, uint64_t value)
{
	int signal = try_store(address, value);

	if (signal)
		fail(__FILE__, __LINE__, "store to %p: signal %d", address,
		     signal);
}

/* ---- actors ---- */

enum { CALL, LOAD, STORE, FILL, EXPECT, FORK, SEND_FD, RECEIVE_FD };

struct request {
	int what;
	long number;
	long args[7];
};

struct answer {
	long value;
	int error;
};

static void send_fd(int socket, int fd)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	struct iovec iov = { .iov_base = &(char){ 0 }, .iov_len = 1 };
	struct msghdr message = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &fd, sizeof(fd));
	CHECK(sendmsg(socket, &message, 0) == 1);
}

static int receive_fd(int socket)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	char byte;
	struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr message = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof(control),
	};
	int fd = -1;

	CHECK(recvmsg(socket, &message, 0) == 1);
	CHECK(CMSG_FIRSTHDR(&message));
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
	return fd;
}

/* Stops at the first page that fails, and says which. */
static struct answer each_page(const struct request *request)
{
	unsigned long address = request->args[0];
	struct answer answer = { 0, 0 };
	uint64_t value = request->args[2], found;

	for (; answer.value < request->args[1]; answer.value += PAGE) {
		volatile void *at = (void *)(address + answer.value);

		if (request->what == FILL) {
			answer.error = try_store(at, value);
		} else {
			answer.error = try_load(at, &found);
			if (!answer.error && found != value)
				answer.error = -1;
		}
		if (answer.error)
			break;
		value += request->args[3];
	}
	return answer;
}

__attribute__((noreturn)) static void act(int socket)
{
	struct request request;
	int pair[2];

	for (;;) {
		struct answer answer = { 0, 0 };
		uint64_t value = 0;

		if (read(socket, &request, sizeof(request)) != sizeof(request))
			_exit(0);
		switch (request.what) {
		case CALL:
			errno = 0;
			answer.value = syscall(request.number, request.args[0],
					       request.args[1], request.args[2],
					       request.args[3], request.args[4],
					       request.args[5]);
			answer.error = errno;
			break;
		case LOAD:
			answer.error = try_load((void *)request.args[0],
						&value);
			answer.value = value;
			break;
		case STORE:
			answer.error = try_store((void *)request.args[0],
						 request.args[1]);
			break;
		case FILL:
		case EXPECT:
			answer = each_page(&request);
			break;
		case FORK:
			CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
			answer.value = fork();
			if (!answer.value) {
				prctl(PR_SET_PDEATHSIG, SIGKILL);
				close(socket);
				close(pair[0]);
				act(pair[1]);
			}
			close(pair[1]);
			send_fd(socket, pair[0]);
			close(pair[0]);
			break;
		case SEND_FD:
			send_fd(socket, request.args[0]);
			break;
		case RECEIVE_FD:
			answer.value = receive_fd(socket);
			break;
		}
		if (write(socket, &answer, sizeof(answer)) != sizeof(answer))
			_exit(0);
	}
}

void actor_start(struct actor *actor)
{
	int pair[2];

	CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair));
	actor->pid = fork();
	CHECK(actor->pid >= 0);
	if (!actor->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(pair[0]);
		act(pair[1]);
	}
	close(pair[1]);
	actor->socket = pair[0];
}

static void actor_ask(struct actor *actor, struct request *request)
{
	CHECK(write(actor->socket, request, sizeof(*request)) ==
	      sizeof(*request));
}

static struct answer actor_answer(struct actor *actor)
{
	struct answer answer;

	CHECK(read(actor->socket, &answer, sizeof(answer)) == sizeof(answer));
	return answer;
}

long actor_call(struct actor *actor, long number, ...)
{
	struct request request = { .what = CALL, .number = number };
	struct answer answer;
	va_list args;

	va_start(args, number);
	memcpy(request.args, va_arg(args, long *), sizeof(request.args));
	va_end(args);
	actor_ask(actor, &request);
	answer = actor_answer(actor);
	errno = answer.error;
	return answer.value;
}

int actor_load(struct actor *actor, unsigned long address, uint64_t *value)
{
	struct request request = { .what = LOAD, .args = { address } };
	struct answer answer;

	actor_ask(actor, &request);
	answer = actor_answer(actor);
	*value = answer.value;
	return answer.error;
}

int actor_store(struct actor *actor, unsigned long address, uint64_t value)
{
	struct request request = { .what = STORE, .args = { address, value } };

	actor_ask(actor, &request);
	return actor_answer(actor).error;
}

uint64_t actor_get(struct actor *actor, unsigned long address)
{
	uint64_t value;
	int signal = actor_load(actor, address, &value);

	if (signal)
		fail(__FILE__, __LINE__, "target's load from %#lx: signal %d",
		     address, signal);
	return value;
}

void actor_put(struct actor *actor, unsigned long address, uint64_t value)
{
	int signal = actor_store(actor, address, value);

	if (signal)
		fail(__FILE__, __LINE__, "target's store to %#lx: signal %d",
		     address, signal);
}

static void actor_each(struct actor *actor, const char *verb,
		       struct request request)
{
	struct answer answer;

	actor_ask(actor, &request);
	answer = actor_answer(actor);
	if (answer.error < 0)
		fail(__FILE__, __LINE__, "target has another value at %#lx",
		     request.args[0] + answer.value);
	if (answer.error)
		fail(__FILE__, __LINE__, "target's %s %#lx: signal %d", verb,
		     request.args[0] + answer.value, answer.error);
}

void actor_fill(struct actor *actor, unsigned long address, size_t length,
		uint64_t value, uint64_t step)
{
	actor_each(actor, "store to",
		   (struct request){ .what = FILL,
				     .args = { address, length, value, step } });
}

void actor_expect(struct actor *actor, unsigned long address, size_t length,
		  uint64_t value, uint64_t step)
{
	actor_each(actor, "load from",
		   (struct request){ .what = EXPECT,
				     .args = { address, length, value, step } });
}

void actor_fork(struct actor *actor, struct actor *child)
{
	struct request request = { .what = FORK };

	actor_ask(actor, &request);
	child->socket = receive_fd(actor->socket);
	child->pid = actor_answer(actor).value;
	CHECK(child->pid > 0);
}

int actor_take_fd(struct actor *actor, int fd)
{
	struct request request = { .what = SEND_FD, .args = { fd } };
	int mine;

	actor_ask(actor, &request);
	mine = receive_fd(actor->socket);
	actor_answer(actor);
	return mine;
}

int actor_give_fd(struct actor *actor, int fd)
{
	struct request request = { .what = RECEIVE_FD };

	actor_ask(actor, &request);
	send_fd(actor->socket, fd);
	return actor_answer(actor).value;
}

void actor_kill(struct actor *actor)
{
	int status;

	kill(actor->pid, SIGKILL);
	/* A grandchild is reaped by its own parent. */
	waitpid(actor->pid, &status, 0);
	close(actor->socket);
}

unsigned long actor_map(struct actor *actor, unsigned long address,
			size_t length, int prot, int flags)
{
	long at = actor_sys(actor, SYS_mmap, address, length, prot,
			    flags | MAP_ANONYMOUS, -1, 0);

	CHECK(at != -1);
	return at;
}

void actor_unmap(struct actor *actor, unsigned long address, size_t length)
{
	CHECK(!actor_sys(actor, SYS_munmap, address, length));
}

/* ---- the device ---- */

int control_open(void)
{
	int control = open(RMAP_DEVICE, O_RDWR | O_CLOEXEC);

	CHECK(control >= 0);
	return control;
}

int rmap_bind(int control, uint64_t flags, int64_t target)
{
	struct rmap_bind arg = { sizeof(arg), flags, target };

	return ioctl(control, RMAP_IOC_BIND, &arg);
}

int rmap_access(int control, uint64_t flags)
{
	struct rmap_access arg = { sizeof(arg), flags };

	return ioctl(control, RMAP_IOC_ACCESS, &arg);
}

int rmap_map(int control, uint64_t flags, uint64_t address, uint64_t offset,
	     uint64_t length)
{
	struct rmap_map arg = { sizeof(arg), flags, address, offset, length };

	return ioctl(control, RMAP_IOC_MAP, &arg);
}

int rmap_unmap(int control, uint64_t offset, uint64_t length)
{
	struct rmap_unmap arg = { sizeof(arg), 0, offset, length };

	return ioctl(control, RMAP_IOC_UNMAP, &arg);
}

int rmap_lock(int control)
{
	struct rmap_lock arg = { sizeof(arg), 0 };

	return ioctl(control, RMAP_IOC_LOCK, &arg);
}

int rmap_revoke(int control)
{
	struct rmap_revoke arg = { sizeof(arg), 0 };

	return ioctl(control, RMAP_IOC_REVOKE, &arg);
}

static struct rmap_info rmap_info(int control)
{
	struct rmap_info info = { .size = sizeof(info) };

	CHECK(!ioctl(control, RMAP_IOC_INFO, &info));
	EQUAL(info.size, sizeof(info));
	EQUAL(info.version, RMAP_API_VERSION);
	return info;
}

uint64_t rmap_state(int control)
{
	return rmap_info(control).state;
}

uint64_t rmap_address_end(int control)
{
	return rmap_info(control).address_end;
}

int control_of(pid_t pid)
{
	int control = control_open();
	char path[64];
	int mem;

	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	mem = open(path, O_RDWR | O_CLOEXEC);
	CHECK(mem >= 0);
	CHECK(!rmap_bind(control, RMAP_BIND_MEM, mem));
	close(mem);
	return control;
}

int control_of_self(void)
{
	int control = control_open();

	CHECK(!rmap_bind(control, RMAP_BIND_SELF, 0));
	return control;
}

int access_whole(pid_t pid, uint64_t flags)
{
	int control = pid ? control_of(pid) : control_of_self();
	int access = rmap_access(control, flags);

	CHECK(access >= 0);
	CHECK(!rmap_map(control, 0, 0, 0, rmap_address_end(control)));
	close(control);
	return access;
}

volatile char *mirror(int access, unsigned long address, size_t length)
{
	void *at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED,
			access, address);

	CHECK(at != MAP_FAILED);
	return at;
}

volatile char *mirror_read(int access, unsigned long address, size_t length)
{
	void *at = mmap(NULL, length, PROT_READ, MAP_SHARED, access, address);

	CHECK(at != MAP_FAILED);
	return at;
}

int rounds(int often)
{
	return access("/proc/lockdep_stats", F_OK) ? often : often / 10;
}

bool has_cap(int cap)
{
	return prctl(PR_CAPBSET_READ, cap) == 1 && !geteuid();
}

unsigned long proc_number(const char *path, const char *field)
{
	FILE *file = fopen(path, "r");
	unsigned long value = 0;
	char line[512];

	CHECK(file);
	while (fgets(line, sizeof(line), file))
		if (!strncmp(line, field, strlen(field))) {
			value = strtoul(line + strlen(field), NULL, 10);
			break;
		}
	fclose(file);
	return value;
}

long status_kb(const char *field)
{
	return proc_number("/proc/self/status", field);
}

bool write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	bool done = fd >= 0 && write(fd, text, strlen(text)) ==
				       (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return done;
}

/* ---- running ---- */

static int run_one(struct test *test)
{
	sigset_t child;
	struct timespec limit = { .tv_sec = LIMIT };
	int status;
	pid_t pid;

	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		sigprocmask(SIG_UNBLOCK, &child, NULL);
		setpgid(0, 0);
		test->run();
		_exit(0);
	}
	setpgid(pid, pid);
	if (sigtimedwait(&child, NULL, &limit) < 0)
		fprintf(stderr, "    no end after %d s\n", LIMIT);
	/* The test itself too, if it is still there, and its actors. */
	if (waitpid(pid, &status, WNOHANG) != pid) {
		kill(-pid, SIGKILL);
		waitpid(pid, &status, 0);
	}
	kill(-pid, SIGKILL);
	while (waitpid(-1, NULL, 0) > 0)
		;
	while (sigtimedwait(&child, NULL, &(struct timespec){ 0 }) > 0)
		;
	if (WIFEXITED(status))
		return WEXITSTATUS(status);
	fprintf(stderr, "    signal %d\n", WTERMSIG(status));
	return 1;
}

int main(int argc, char **argv)
{
	int failed = 0, skipped = 0, passed = 0;
	struct test *test, *next, *sorted = NULL;

	setvbuf(stdout, NULL, _IOLBF, 0);
	catch_faults();
	/* Actors whose parent has ended are reaped here. */
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	/* The order of the files. */
	for (test = tests; test; test = next) {
		next = test->next;
		test->next = sorted;
		sorted = test;
	}
	for (test = sorted; test; test = test->next) {
		bool wanted = argc < 2;
		time_t start;
		int i;

		for (i = 1; i < argc; i++)
			wanted |= !!strstr(test->name, argv[i]);
		if (!wanted)
			continue;
		printf("%s\n", test->name);
		fflush(NULL);
		start = time(NULL);
		switch (run_one(test)) {
		case 0:
			passed++;
			break;
		case SKIPPED:
			skipped++;
			break;
		default:
			printf("FAILED: %s\n", test->name);
			failed++;
		}
		if (time(NULL) - start > 2)
			printf("    %ld s\n", (long)(time(NULL) - start));
	}
	printf("%d passed, %d skipped, %d failed\n", passed, skipped, failed);
	return failed || !passed;
}
