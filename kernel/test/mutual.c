// SPDX-License-Identifier: GPL-2.0-only
/* Locks of two address spaces, and what changes under a mirror by itself. */
#include "harness.h"

#include <pthread.h>
#include <sched.h>

static volatile uint64_t *counters;

struct churn {
	char *own;
	unsigned long size;
	uint64_t rounds;
};

/* Wants the mmap lock for writing, all the time. */
static void *churn(void *arg)
{
	struct churn *work = arg;
	uint64_t value;

	for (;;) {
		char *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		CHECK(at != MAP_FAILED);
		at[0] = 1;
		munmap(at, PAGE);
		madvise(work->own, work->size, MADV_DONTNEED);
		try_store(work->own, 1);
		try_load(work->own + PAGE, &value);
	}
	return NULL;
}

/*
 * T8: A mirrors B and B mirrors A, with the mirrors inside what is mirrored,
 * both fault, and both have threads that take their own lock for writing.
 */
TEST(mutual_mirrors)
{
	unsigned long size = 64 * PAGE;
	/* At the same address in both. */
	char *own = mmap(NULL, size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *place = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
			   -1, 0);
	pid_t pids[2];
	int ready[2], go[2];
	char byte;

	counters = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(!pipe(ready) && !pipe(go));
	for (int i = 0; i < 2; i++) {
		pids[i] = fork();
		if (!pids[i]) {
			struct churn work = { own, size, 0 };
			pthread_t thread;
			pid_t other;
			int access;

			CHECK(write(ready[1], "", 1) == 1);
			CHECK(read(go[0], &other, sizeof(other)) ==
			      sizeof(other));
			access = access_whole(other == getpid() ? 0 : other, RW);
			CHECK(mmap(place, size, PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_FIXED, access,
				   (unsigned long)own) == place);
			/* The other's mirror, too. */
			mirror(access, (unsigned long)place, size);
			CHECK(!pthread_create(&thread, NULL, churn, &work));
			for (unsigned long n = 0;; n += PAGE) {
				try_store(place + n % size, n);
				counters[i * 8]++;
			}
		}
	}
	for (int i = 0; i < 2; i++)
		CHECK(read(ready[0], &byte, 1) == 1);
	/* Whoever reads first gets the other's: they may swap, or be one. */
	CHECK(write(go[1], &pids[1], sizeof(pid_t)) == sizeof(pid_t));
	CHECK(write(go[1], &pids[0], sizeof(pid_t)) == sizeof(pid_t));
	for (int i = 0; i < 2; i++)
		while (counters[i * 8] < (uint64_t)rounds(20000))
			sched_yield();
	kill(pids[0], SIGKILL);
	CHECK(waitpid(pids[0], NULL, 0) == pids[0]);
	kill(pids[1], SIGKILL);
	CHECK(waitpid(pids[1], NULL, 0) == pids[1]);
}

/* A ring: each mirrors the next one's whole mirror as well. */
TEST(invalidation_does_not_recurse)
{
	unsigned long size = 16 * PAGE, at[3];
	struct actor actors[3];
	uint64_t value;

	for (int i = 0; i < 3; i++)
		actor_start(&actors[i]);
	for (int i = 0; i < 3; i++)
		at[i] = actor_map(&actors[i], 0, size, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE);
	for (int i = 0; i < 3; i++) {
		struct actor *next = &actors[(i + 1) % 3];
		int fd = actor_give_fd(&actors[i],
				       access_whole(next->pid, RW));

		/* Over the second half: a view of the next one's mirror. */
		CHECK(actor_sys(&actors[i], SYS_mmap, at[i] + size / 2,
				size / 2, PROT_READ | PROT_WRITE,
				MAP_SHARED | MAP_FIXED, fd,
				at[(i + 1) % 3] + size / 2) ==
		      (long)(at[i] + size / 2));
	}
	for (int round = 0; round < 10; round++) {
		for (int i = 0; i < 3; i++) {
			EQUAL(actor_load(&actors[i], at[i] + size / 2, &value),
			      SIGBUS);
			actor_sys(&actors[i], SYS_mprotect, at[i] + size / 2,
				  size / 2, PROT_READ);
			actor_sys(&actors[i], SYS_mprotect, at[i] + size / 2,
				  size / 2, PROT_READ | PROT_WRITE);
		}
	}
	for (int i = 0; i < 3; i++)
		actor_unmap(&actors[i], at[i], size);
}

/*
 * The target maps and unmaps without a pause, next to what is faulted in: that
 * must not keep the faults from ending.
 */
TEST(faults_beside_churn)
{
	unsigned long size = 8 * HUGE;
	char *own = mmap(NULL, size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	volatile char *m;
	pid_t pid;

	CHECK(own != MAP_FAILED);
	pid = fork();
	if (!pid) {
		struct churn work = { mmap(NULL, 4 * PAGE,
					   PROT_READ | PROT_WRITE,
					   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
				      4 * PAGE, 0 };

		for (unsigned long i = 0; i < size; i += PAGE)
			*(uint64_t *)(own + i) = i;
		raise(SIGSTOP);
		churn(&work);
	}
	CHECK(waitpid(pid, NULL, WUNTRACED) == pid);
	m = mirror(access_whole(pid, RW), (unsigned long)own, size);
	CHECK(!madvise((void *)m, size, MADV_RANDOM));
	CHECK(!kill(pid, SIGCONT));
	for (unsigned long i = 0; i < size; i += PAGE) {
		EQUAL(load(m + i), i);
		store(m + i, i + 1);
	}
	kill(pid, SIGKILL);
	CHECK(waitpid(pid, NULL, 0) == pid);
}

struct words {
	volatile char *at;
	unsigned long size;
	volatile bool *ended;
};

/* In each huge page, its own word: it may be lost with the page, no more. */
static void *store_and_load(void *arg)
{
	struct words *words = arg;

	for (uint64_t n = 1; !*words->ended; n++)
		for (unsigned long i = 0; i < words->size; i += HUGE) {
			uint64_t value;

			store(words->at + i, n);
			value = load(words->at + i);
			CHECK(!value || value == n);
		}
	return NULL;
}

/*
 * One process on both sides, whose threads fault, some with nothing locked but
 * the mapping, while huge pages go and its lock is wanted for writing.
 */
TEST(huge_pages_of_oneself)
{
	enum { THREADS = 3 };
	unsigned long size = 4 * HUGE;
	char *room = mmap(NULL, size + HUGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *own = (char *)(((unsigned long)room + HUGE - 1) & ~(HUGE - 1));
	pthread_t threads[THREADS];
	struct words words[THREADS];
	volatile bool ended = false;
	volatile char *m;

	CHECK(room != MAP_FAILED);
	madvise(own, size, MADV_HUGEPAGE);
	m = mirror(access_whole(0, RW), (unsigned long)own, size);
	for (int t = 0; t < THREADS; t++) {
		words[t] = (struct words){ m + (t + 1) * 64, size, &ended };
		CHECK(!pthread_create(&threads[t], NULL, store_and_load,
				      &words[t]));
	}
	for (int round = 1; round <= rounds(200); round++) {
		unsigned long at = round * 7 * PAGE % size;
		unsigned long start = at & ~(HUGE - 1);

		CHECK(!madvise(own + start, HUGE, MADV_DONTNEED));
		EQUAL(load(m + at), 0);
		store(own + at, round);
		EQUAL(load(m + at), (uint64_t)round);
		store(m + at, 0);
		EQUAL(load(own + at), 0);
	}
	ended = true;
	for (int t = 0; t < THREADS; t++)
		CHECK(!pthread_join(threads[t], NULL));
	for (unsigned long i = 0; i < size; i += PAGE) {
		store(own + i, i);
		EQUAL(load(m + i), i);
	}
}

/* Takes pages of a file away all the time, and looks at them again. */
__attribute__((noreturn)) static void punch(int fd, char *at,
					    unsigned long size)
{
	for (;;)
		for (unsigned long i = 0; i < size; i += PAGE) {
			CHECK(!fallocate(fd, FALLOC_FL_PUNCH_HOLE |
					     FALLOC_FL_KEEP_SIZE, i, PAGE));
			at[i] = 1;
		}
}

struct touched {
	volatile char *at;
	unsigned long size;
};

static void *touch(void *arg)
{
	struct touched *touched = arg;

	for (;;)
		for (unsigned long i = 0; i < touched->size; i += PAGE)
			load(touched->at + i);
	return NULL;
}

/*
 * An importer becomes a target. For the first notifier of a process the kernel
 * takes the locks of the files of all its mappings, in the order of their
 * addresses: here a mirror's first, and last that of the file which is
 * mirrored. The target's invalidations hold them the other way round.
 */
TEST(importers_become_targets)
{
	enum { OTHERS = 200 };
	unsigned long size = 64 * PAGE;
	int fd = memfd_create("test", MFD_CLOEXEC), others[OTHERS];
	char *own;
	pid_t pid;

	CHECK(fd >= 0 && !ftruncate(fd, size));
	for (int i = 0; i < OTHERS; i++) {
		others[i] = memfd_create("test", MFD_CLOEXEC);
		CHECK(others[i] >= 0 && !ftruncate(others[i], PAGE));
	}
	own = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(own != MAP_FAILED);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid)
		punch(fd, own, size);
	for (int round = 0; round < rounds(100); round++) {
		pid_t importer = fork();
		int status;

		CHECK(importer >= 0);
		if (!importer) {
			char *at = mmap(NULL, 2 * size + OTHERS * PAGE,
					PROT_NONE,
					MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			struct touched touched = { at, size };
			pthread_t thread;

			CHECK(at != MAP_FAILED);
			CHECK(mmap(at, size, PROT_READ, MAP_SHARED | MAP_FIXED,
				   access_whole(pid, RMAP_ACCESS_READ),
				   (unsigned long)own) == at);
			at += size;
			for (int i = 0; i < OTHERS; i++, at += PAGE)
				CHECK(mmap(at, PAGE, PROT_READ,
					   MAP_SHARED | MAP_FIXED, others[i],
					   0) == at);
			CHECK(mmap(at, size, PROT_READ, MAP_SHARED | MAP_FIXED,
				   fd, 0) == at);
			load(touched.at);
			CHECK(!pthread_create(&thread, NULL, touch, &touched));
			access_whole(0, RMAP_ACCESS_READ);
			_exit(0);
		}
		CHECK(waitpid(importer, &status, 0) == importer);
		EQUAL(status, 0);
	}
	kill(pid, SIGKILL);
	CHECK(waitpid(pid, NULL, 0) == pid);
}

static unsigned long swapped(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	return proc_number(path, "VmSwap:");
}

/* T12 */
static void swap_out_and_in(int advice)
{
	unsigned long a, size = 4 * HUGE;
	struct actor target;
	volatile char *m;
	int swaps = 0;

	if (!proc_number("/proc/meminfo", "SwapTotal:"))
		skip("no swap here");
	actor_start(&target);
	a = actor_map(&target, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	actor_sys(&target, SYS_madvise, a, size, advice);
	m = mirror(access_whole(target.pid, RW), a, size);
	for (unsigned long i = 0; i < size; i += PAGE)
		store(m + i, i + 1);
	for (int round = 0; round < 4; round++) {
		CHECK(!actor_sys(&target, SYS_madvise, a, size, MADV_PAGEOUT));
		swaps += swapped(target.pid) > 0;
		/* Loads first: swapped in clean, then dirtied by the mirror. */
		for (unsigned long i = 0; i < size; i += PAGE)
			EQUAL(load(m + i), i + 1 + round);
		for (unsigned long i = 0; i < size; i += PAGE)
			store(m + i, i + 2 + round);
	}
	CHECK(swaps);
	CHECK(!actor_sys(&target, SYS_madvise, a, size, MADV_PAGEOUT));
	actor_expect(&target, a, size, 5, PAGE);
}

TEST(swap_is_followed)
{
	swap_out_and_in(MADV_NOHUGEPAGE);
}

TEST(swap_of_huge_pages_is_followed)
{
	swap_out_and_in(MADV_HUGEPAGE);
}

/* MADV_FREE: what is written afterwards, by the mirror, must not be lost. */
TEST(lazily_freed_memory)
{
	unsigned long a, size = 2 * HUGE;
	struct actor target;
	volatile char *m;

	if (!proc_number("/proc/meminfo", "SwapTotal:"))
		skip("no swap here");
	actor_start(&target);
	a = actor_map(&target, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	/* A huge page is dirty as a whole. */
	actor_sys(&target, SYS_madvise, a, size, MADV_NOHUGEPAGE);
	m = mirror(access_whole(target.pid, RW), a, size);
	for (unsigned long i = 0; i < size; i += PAGE)
		store(m + i, 1);
	CHECK(!actor_sys(&target, SYS_madvise, a, size, MADV_FREE));
	/* One store makes its whole neighbourhood writable. */
	for (unsigned long i = 0; i < size; i += PAGE)
		store(m + i, i + 2);
	CHECK(!actor_sys(&target, SYS_madvise, a, size, MADV_PAGEOUT));
	actor_expect(&target, a, size, 2, PAGE);
}

/* T12: KSM, compaction and khugepaged while both sides write. */
TEST(pages_that_move)
{
	unsigned long a, at, size = 2 * HUGE;
	struct actor target;
	volatile char *m;
	unsigned long moved = 0;

	actor_start(&target);
	at = actor_map(&target, 0, size + HUGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE);
	a = (at + HUGE - 1) & ~(HUGE - 1);
	m = mirror(access_whole(target.pid, RW), a, size);
	for (unsigned long i = 0; i < size; i += PAGE)
		store(m + i, 7);
	actor_sys(&target, SYS_madvise, a, size, MADV_MERGEABLE);
	write_file("/sys/kernel/mm/ksm/pages_to_scan", "10000");
	write_file("/sys/kernel/mm/ksm/sleep_millisecs", "1");
	write_file("/sys/kernel/mm/ksm/run", "1");
	for (int round = 0; round < 8; round++) {
		unsigned long step = 5 * PAGE;

		write_file("/proc/sys/vm/compact_memory", "1");
		for (unsigned long i = round * PAGE; i < size; i += step) {
			store(m + i, 100 + round);
			EQUAL(actor_get(&target, a + i), 100 + round);
			actor_put(&target, a + i, 7);
			EQUAL(load(m + i), 7);
		}
		for (unsigned long i = 0; i < size; i += PAGE)
			EQUAL(load(m + i), 7);
		moved += proc_number("/sys/kernel/mm/ksm/pages_shared", "");
#ifdef MADV_COLLAPSE
		actor_sys(&target, SYS_madvise, a, size, MADV_COLLAPSE);
#endif
		actor_sys(&target, SYS_madvise, a + PAGE, PAGE, MADV_COLD);
	}
	write_file("/sys/kernel/mm/ksm/run", "2");
	if (!moved)
		skip("KSM did not merge anything; the rest has passed");
}

static int node_of(struct actor *target, unsigned long address)
{
	void *page = (void *)address;
	int node;

	do {
		/* Balancing may have taken it away for a moment. */
		actor_get(target, address);
		CHECK(!syscall(SYS_move_pages, target->pid, 1UL, &page, NULL,
			       &node, 0));
	} while (node == -ENOENT);
	return node;
}

/* T12: to another node, by request and by the kernel's own balancing. */
TEST(pages_that_change_nodes)
{
	/* At the same address in the target, which does the calls. */
	static unsigned long nodes[3] = { 1, 2, 1 };
	unsigned long a, size = 2 * HUGE, hints, pages = 0;
	struct actor target;
	volatile char *m;
	int moved = 0;

	if (access("/sys/devices/system/node/node1", F_OK))
		skip("one node only");
	actor_start(&target);
	a = actor_map(&target, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	actor_sys(&target, SYS_madvise, a, size, MADV_NOHUGEPAGE);
	m = mirror(access_whole(target.pid, RW), a, size);
	for (unsigned long i = 0; i < size; i += PAGE)
		store(m + i, i);
	for (int round = 0; round < 4; round++) {
		int from = node_of(&target, a);

		CHECK(from == 0 || from == 1);
		CHECK(actor_sys(&target, SYS_migrate_pages, 0, 64,
				(long)&nodes[from], (long)&nodes[from + 1]) >=
		      0);
		/* Balancing may bring it back. */
		moved += node_of(&target, a) == 1 - from;
		for (unsigned long i = 0; i < size; i += PAGE) {
			EQUAL(load(m + i), i + round);
			store(m + i, i + round + 1);
			EQUAL(actor_get(&target, a + i), i + round + 1);
		}
	}
	CHECK(moved);
	if (!proc_number("/proc/sys/kernel/numa_balancing", ""))
		return;
	/* Balancing takes pages away for a moment, to see who wants them. */
	hints = proc_number("/proc/vmstat", "numa_pte_updates");
	for (int round = 0; round < 40 && !pages; round++) {
		for (unsigned long i = 0; i < size; i += PAGE) {
			store(m + i, i + round);
			EQUAL(actor_get(&target, a + i), i + round);
		}
		pages = proc_number("/proc/vmstat", "numa_pte_updates") - hints;
	}
	if (!pages)
		skip("nothing was balanced; the rest has passed");
}
