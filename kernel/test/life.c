// SPDX-License-Identifier: GPL-2.0-only
/* Ends: of the target, of the importer, of views in use. */
#include "harness.h"

#include <pthread.h>
#include <sched.h>
#include <sys/stat.h>

enum ending { EXIT, KILL };

/* Has the target end while this process is loading and storing. */
static void end_while_busy(enum ending ending)
{
	unsigned long a, size = 2 * HUGE;
	struct actor target;
	volatile char *m;
	uint64_t value;
	int access, signal = 0;
	pid_t pid;

	actor_start(&target);
	a = actor_map(&target, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	access = access_whole(target.pid, RW);
	m = mirror(access, a, size);
	store(m, 1);
	pid = fork();
	if (!pid) {
		switch (ending) {
		case KILL:
			kill(target.pid, SIGKILL);
			break;
		case EXIT:
			/* Does not answer; this process fails for it. */
			fclose(stderr);
			actor_sys(&target, SYS_exit_group, 0);
			break;
		}
		_exit(0);
	}
	for (unsigned long i = 0; !signal; i = (i + PAGE) % size) {
		signal = try_store(m + i, i);
		if (!signal)
			signal = try_load(m + (i * 5) % size, &value);
	}
	EQUAL(signal, SIGBUS);
	/* What is mapped goes a moment after nothing more can be. */
	while (!try_load(m, &value))
		;
	ERRNO(pread(access, &value, 8, a), EIO);
	/* And nothing of what has gone is mapped anew. */
	ERRNO((long)mmap(NULL, PAGE, PROT_READ, MAP_SHARED, access, a), ESRCH);
}

/* T5 */
TEST(target_exits)
{
	end_while_busy(EXIT);
}

TEST(target_is_killed)
{
	end_while_busy(KILL);
}

TEST(target_execs)
{
	struct actor target;
	unsigned long a, path, argv;
	volatile char *m;
	uint64_t value;
	char text[] = "/bin/sleep\0" "1000";

	actor_start(&target);
	a = actor_map(&target, 0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	m = mirror(access_whole(target.pid, RW), a, PAGE);
	/* Its arguments are put there through the mirror. */
	for (size_t i = 0; i < sizeof(text); i++)
		m[i] = text[i];
	path = a;
	argv = a + 64;
	store(m + 64, a);
	store(m + 72, a + 11);
	store(m + 80, 0);
	EQUAL(actor_get(&target, argv), path);
	{
		/* It does not answer any more, so nobody waits for it. */
		pid_t pid = fork();

		if (!pid) {
			fclose(stderr);
			actor_sys(&target, SYS_execve, path, argv, 0);
			_exit(0);
		}
	}
	while (!try_load(m, &value))
		;
	EQUAL(try_load(m, &value), SIGBUS);
	EQUAL(kill(target.pid, 0), 0);
}

/* No page of a target outlives it, whoever maps it. */
TEST(memory_is_freed_with_the_target)
{
	unsigned long a, size = 32 * HUGE, before, after;
	struct actor target;
	volatile char *m;

	actor_start(&target);
	a = actor_map(&target, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	m = mirror(access_whole(target.pid, RW), a, size);
	for (unsigned long i = 0; i < size; i += PAGE)
		store(m + i, 1);
	before = proc_number("/proc/meminfo", "AnonPages:");
	actor_kill(&target);
	/* Freed by the time that it is reaped. */
	after = proc_number("/proc/meminfo", "AnonPages:");
	CHECK(before - after > (size >> 10) * 3 / 4);
}

/* T5: by the OOM killer, in a memory cgroup. */
TEST(target_runs_out_of_memory)
{
	const char *group = "/sys/fs/cgroup/rmap-oom";
	struct actor target, hog;
	unsigned long a, b;
	volatile char *m;
	char text[64];
	uint64_t value;
	int access;

	if (geteuid())
		skip("only root makes cgroups");
	write_file("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	if (mkdirat(AT_FDCWD, group, 0755) && errno != EEXIST)
		skip("no cgroup2 here (%s)", strerror(errno));
	if (access_whole(0, RW) < 0 ||
	    !write_file("/sys/fs/cgroup/rmap-oom/memory.max", "33554432"))
		skip("no memory controller here");
	write_file("/sys/fs/cgroup/rmap-oom/memory.swap.max", "0");
	actor_start(&target);
	hog = target;
	snprintf(text, sizeof(text), "%d", target.pid);
	CHECK(write_file("/sys/fs/cgroup/rmap-oom/cgroup.procs", text));
	a = actor_map(&target, 0, 4 * HUGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE);
	b = actor_map(&target, 0, 64 * HUGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE);
	access = access_whole(target.pid, RW);
	m = mirror(access, a, 4 * HUGE);
	actor_fill(&target, a, 4 * HUGE, 0, PAGE);
	for (unsigned long i = 0; i < 4 * HUGE; i += PAGE)
		EQUAL(load(m + i), i);
	if (!fork()) {
		/* It is killed on the way and does not answer. */
		signal(SIGPIPE, SIG_IGN);
		fclose(stderr);
		for (unsigned long i = 0; i < 64 * HUGE; i += PAGE)
			actor_put(&hog, b + i, 1);
		_exit(0);
	}
	while (!try_load(m, &value))
		;
	for (unsigned long i = 0; i < 4 * HUGE; i += PAGE)
		EQUAL(try_load(m + i, &value), SIGBUS);
	CHECK(waitpid(target.pid, NULL, 0) == target.pid);
	/* Empty once its last process is reaped. */
	unlinkat(AT_FDCWD, group, AT_REMOVEDIR);
}

struct spin {
	volatile char *m;
	unsigned long size;
	int stop;
	unsigned long hits;
};

static void *spin(void *arg)
{
	struct spin *spin = arg;
	unsigned long i = 0;
	uint64_t value;

	while (!__atomic_load_n(&spin->stop, __ATOMIC_RELAXED)) {
		i = (i + 13 * PAGE) % spin->size;
		if (!try_store(spin->m + i, 0xdead))
			spin->hits++;
		if (!try_load(spin->m + i, &value))
			spin->hits++;
	}
	return NULL;
}

/*
 * T11: pages that a view showed are used for something else right after it is
 * taken away. A store that still reached them would be seen there.
 */
static void reuse_after(bool by_unmap)
{
	unsigned long a, b, size = 128 * PAGE;
	int control, access, zero;
	struct spin work = { .size = size };
	struct actor target;
	pthread_t threads[2];
	volatile char *check;
	uint64_t value;

	actor_start(&target);
	zero = actor_give_fd(&target, open("/dev/zero", O_RDONLY));
	a = actor_map(&target, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	b = actor_map(&target, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	/* Outside of the view that is written through. */
	check = mirror_read(access_whole(target.pid, RMAP_ACCESS_READ), b,
			    size);
	control = control_of(target.pid);
	access = rmap_access(control, RW);
	CHECK(!rmap_map(control, 0, a, 0, size));
	work.m = mirror(access, 0, size);
	for (int t = 0; t < 2; t++)
		CHECK(!pthread_create(&threads[t], NULL, spin, &work));
	for (int round = 0; round < rounds(200); round++) {
		if (by_unmap) {
			CHECK(!rmap_unmap(control, 0, size));
			for (unsigned long i = 0; i < size; i += PAGE)
				EQUAL(try_load(work.m + i, &value), SIGBUS);
			/* Same pages, other address. */
			CHECK(actor_sys(&target, SYS_mremap, a, size, size,
					MREMAP_MAYMOVE | MREMAP_FIXED, b) ==
			      (long)b);
		} else {
			actor_unmap(&target, a, size);
			actor_map(&target, b, size, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_FIXED);
		}
		/* Fills in what is missing, too. */
		EQUAL(actor_sys(&target, SYS_read, zero, b, size), size);
		for (int pass = 0; pass < 3; pass++)
			for (unsigned long i = 0; i < size; i += PAGE)
				EQUAL(load(check + i), 0);
		actor_map(&target, a, size, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_FIXED);
		if (by_unmap)
			CHECK(!rmap_map(control, 0, a, 0, size));
	}
	__atomic_store_n(&work.stop, 1, __ATOMIC_RELAXED);
	for (int t = 0; t < 2; t++)
		pthread_join(threads[t], NULL);
	CHECK(work.hits);
}

TEST(no_stale_page_after_unmap)
{
	reuse_after(true);
}

TEST(no_stale_page_after_munmap_of_the_target)
{
	reuse_after(false);
}

/* Files and mappings hold the module, whichever is left. */
TEST(module_in_use_is_not_unloaded)
{
	int control, access;
	volatile char *m;
	unsigned long a;

	if (geteuid())
		skip("only root unloads modules");
	control = control_of_self();
	ERRNO(syscall(SYS_delete_module, "rmap", O_NONBLOCK), EAGAIN);
	access = rmap_access(control, RW);
	close(control);
	ERRNO(syscall(SYS_delete_module, "rmap", O_NONBLOCK), EAGAIN);
	m = mirror(access, 0, PAGE);
	close(access);
	ERRNO(syscall(SYS_delete_module, "rmap", O_NONBLOCK), EAGAIN);
	EQUAL(try_load(m, &a), SIGBUS);
}

/* Views come and go, importers fault, map and end, targets end. */
TEST(everything_ends_at_once)
{
	for (int round = 0; round < 40; round++) {
		unsigned long a, size = 64 * PAGE;
		struct actor target;
		int control, access;
		pid_t importers[3];

		actor_start(&target);
		a = actor_map(&target, 0, size, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE);
		control = control_of(target.pid);
		access = rmap_access(control, RW);
		CHECK(!rmap_map(control, 0, a, 0, size));
		for (int i = 0; i < 3; i++) {
			importers[i] = fork();
			if (!importers[i]) {
				for (unsigned long n = 0;; n += PAGE) {
					char *m = mmap(NULL, size,
						       PROT_READ | PROT_WRITE,
						       MAP_SHARED, access, 0);

					/* The target has ended. */
					if (m == MAP_FAILED)
						pause();
					try_store(m + n % size, n);
					try_store(m + n * 3 % size, n);
					munmap(m, size);
				}
			}
		}
		for (int i = 0; i < 20; i++) {
			rmap_unmap(control, 0, size);
			rmap_map(control, 0, a, 0, size);
			actor_sys(&target, SYS_madvise, a, size, MADV_DONTNEED);
		}
		close(round & 1 ? control : access);
		kill(round & 2 ? target.pid : importers[0], SIGKILL);
		close(round & 1 ? access : control);
		kill(importers[0], SIGKILL);
		kill(importers[1], SIGKILL);
		kill(importers[2], SIGKILL);
		actor_kill(&target);
		for (int i = 0; i < 3; i++)
			CHECK(waitpid(importers[i], NULL, 0) == importers[i]);
	}
}
