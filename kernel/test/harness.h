/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Each test is a process with a time limit. It is the importer; the target is
 * an actor: a child that does system calls, loads and stores on request, so
 * that a test reads from top to bottom.
 */
#ifndef HARNESS_H
#define HARNESS_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux-rmap/rmap.h>

#define PAGE 4096UL
#define HUGE (2UL << 20)

struct test {
	const char *name;
	void (*run)(void);
	struct test *next;
};

extern struct test *tests;

#define TEST(id)							\
	static void id(void);						\
	static struct test test_##id = { #id, id, NULL };		\
	__attribute__((constructor)) static void register_##id(void)	\
	{								\
		test_##id.next = tests;					\
		tests = &test_##id;					\
	}								\
	static void id(void)

__attribute__((noreturn, format(printf, 3, 4)))
void fail(const char *file, int line, const char *format, ...);
__attribute__((noreturn, format(printf, 1, 2)))
void skip(const char *why, ...);

#define CHECK(condition) do {						\
	if (!(condition))						\
		fail(__FILE__, __LINE__, "%s (errno %d, %s)",		\
		     #condition, errno, strerror(errno));		\
} while (0)

#define EQUAL(got, want) do {						\
	unsigned long long got_ = (unsigned long long)(got);		\
	unsigned long long want_ = (unsigned long long)(want);		\
	if (got_ != want_)						\
		fail(__FILE__, __LINE__, "%s is %#llx, not %#llx "	\
		     "(errno %d)", #got, got_, want_, errno);		\
} while (0)

/* A call that must fail with an errno. */
#define ERRNO(call, number) do {					\
	errno = 0;							\
	long ret_ = (long)(call);					\
	if (ret_ != -1 || errno != (number))				\
		fail(__FILE__, __LINE__, "%s: %ld, errno %d, not %d",	\
		     #call, ret_, errno, number);			\
} while (0)

/* ---- actors ---- */

struct actor {
	pid_t pid;
	int socket;
};

void actor_start(struct actor *actor);
/* As syscall(2) in the actor: -1 and errno on failure. */
long actor_call(struct actor *actor, long number, ...);
#define actor_sys(actor, number, ...)					\
	actor_call(actor, number, (long[7]){ __VA_ARGS__ })
/* Loads and stores of the actor; 0 or the signal that it got. */
int actor_load(struct actor *actor, unsigned long address, uint64_t *value);
int actor_store(struct actor *actor, unsigned long address, uint64_t value);
uint64_t actor_get(struct actor *actor, unsigned long address);
void actor_put(struct actor *actor, unsigned long address, uint64_t value);
/* A word of each page: @value in the first, @step more in each that follows. */
void actor_fill(struct actor *actor, unsigned long address, size_t length,
		uint64_t value, uint64_t step);
void actor_expect(struct actor *actor, unsigned long address, size_t length,
		  uint64_t value, uint64_t step);
/* Has it fork a child, which is an actor too. */
void actor_fork(struct actor *actor, struct actor *child);
/* Brings over a descriptor that it has. */
int actor_take_fd(struct actor *actor, int fd);
/* Gives it one; returns its number there. */
int actor_give_fd(struct actor *actor, int fd);
void actor_kill(struct actor *actor);
unsigned long actor_map(struct actor *actor, unsigned long address,
			size_t length, int prot, int flags);
void actor_unmap(struct actor *actor, unsigned long address, size_t length);

/* ---- this process ---- */

/* 0 or the signal that the access got. */
int try_load(const volatile void *address, uint64_t *value);
int try_store(volatile void *address, uint64_t value);
uint64_t load(const volatile void *address);
void store(volatile void *address, uint64_t value);

/* ---- the device ---- */

int control_open(void);
int control_of(pid_t pid);		/* bound by /proc/PID/mem */
int control_of_self(void);
int rmap_bind(int control, uint64_t flags, int64_t target);
int rmap_access(int control, uint64_t flags);
int rmap_map(int control, uint64_t flags, uint64_t address, uint64_t offset,
	     uint64_t length);
int rmap_unmap(int control, uint64_t offset, uint64_t length);
int rmap_lock(int control);
int rmap_revoke(int control);
uint64_t rmap_state(int control);
uint64_t rmap_address_end(int control);

#define RW (RMAP_ACCESS_READ | RMAP_ACCESS_WRITE)

/* The whole address space, offsets equal to addresses; control is closed. */
int access_whole(pid_t pid, uint64_t flags);
/* Maps the target's range, writable as far as the descriptor is. */
volatile char *mirror(int access, unsigned long address, size_t length);
volatile char *mirror_read(int access, unsigned long address, size_t length);

/*
 * How often something is done that might go wrong once: less on a kernel that
 * looks at what might go wrong, and takes fifty times as long.
 */
int rounds(int often);
bool has_cap(int cap);
long status_kb(const char *field);
unsigned long proc_number(const char *path, const char *field);
bool write_file(const char *path, const char *text);

#endif
