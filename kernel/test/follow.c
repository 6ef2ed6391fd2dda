// SPDX-License-Identifier: GPL-2.0-only
/* What a mirror shows: what is at the target's addresses now. */
#include "harness.h"

#include <linux/userfaultfd.h>
#include <sys/resource.h>

TEST(loads_and_stores_go_both_ways)
{
	struct actor target;
	volatile char *m;
	unsigned long a;
	int access;

	actor_start(&target);
	a = actor_map(&target, 0, 64 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE);
	for (int i = 0; i < 64; i++)
		actor_put(&target, a + i * PAGE, 1000 + i);
	access = access_whole(target.pid, RW);
	m = mirror(access, a, 64 * PAGE);
	for (int i = 0; i < 64; i++) {
		EQUAL(load(m + i * PAGE), 1000 + i);
		store(m + i * PAGE + 8, 2000 + i);
		EQUAL(actor_get(&target, a + i * PAGE + 8), 2000 + i);
		actor_put(&target, a + i * PAGE, 3000 + i);
		EQUAL(load(m + i * PAGE), 3000 + i);
	}
}

TEST(store_comes_first)
{
	struct actor target;
	volatile char *m;
	unsigned long a;

	actor_start(&target);
	a = actor_map(&target, 0, 16 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE);
	m = mirror(access_whole(target.pid, RW), a, 16 * PAGE);
	/* Nothing is there yet; the target gets a page. */
	store(m + 5 * PAGE, 55);
	EQUAL(actor_get(&target, a + 5 * PAGE), 55);
	/* Read as the zero page first, then written, by either. */
	EQUAL(load(m + 6 * PAGE), 0);
	store(m + 6 * PAGE, 66);
	EQUAL(actor_get(&target, a + 6 * PAGE), 66);
	EQUAL(load(m + 7 * PAGE), 0);
	actor_put(&target, a + 7 * PAGE, 77);
	EQUAL(load(m + 7 * PAGE), 77);
}

/* T1 */
TEST(hole_is_sigbus_and_filled_later)
{
	struct actor target;
	volatile char *m;
	unsigned long a;
	uint64_t value;

	actor_start(&target);
	a = actor_map(&target, 0, 8 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE);
	actor_unmap(&target, a + 2 * PAGE, PAGE);
	m = mirror(access_whole(target.pid, RW), a, 8 * PAGE);
	EQUAL(try_load(m + 2 * PAGE, &value), SIGBUS);
	EQUAL(try_store(m + 2 * PAGE, 1), SIGBUS);
	EQUAL(load(m + 1 * PAGE), 0);
	EQUAL(load(m + 3 * PAGE), 0);
	EQUAL(try_load(m + 2 * PAGE, &value), SIGBUS);
	actor_map(&target, a + 2 * PAGE, PAGE, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_FIXED);
	actor_put(&target, a + 2 * PAGE, 22);
	EQUAL(load(m + 2 * PAGE), 22);
}

/* T2 */
TEST(munmap_and_mmap_are_followed)
{
	struct actor target;
	volatile char *m;
	unsigned long a;
	uint64_t value;

	actor_start(&target);
	a = actor_map(&target, 0, 8 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE);
	m = mirror(access_whole(target.pid, RW), a, 8 * PAGE);
	for (int round = 1; round < 20; round++) {
		for (int i = 0; i < 8; i++)
			actor_put(&target, a + i * PAGE, round * 10 + i);
		for (int i = 0; i < 8; i++)
			EQUAL(load(m + i * PAGE), round * 10 + i);
		actor_unmap(&target, a, 8 * PAGE);
		for (int i = 0; i < 8; i++)
			EQUAL(try_load(m + i * PAGE, &value), SIGBUS);
		actor_map(&target, a, 8 * PAGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_FIXED);
		for (int i = 0; i < 8; i++)
			EQUAL(load(m + i * PAGE), 0);
	}
}

/* T3 */
TEST(dontneed_is_followed)
{
	struct actor target;
	volatile char *m;
	unsigned long a;

	actor_start(&target);
	a = actor_map(&target, 0, 8 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE);
	m = mirror(access_whole(target.pid, RW), a, 8 * PAGE);
	for (int i = 0; i < 8; i++)
		store(m + i * PAGE, 7);
	CHECK(!actor_sys(&target, SYS_madvise, a + 2 * PAGE, 3 * PAGE,
			 MADV_DONTNEED));
	for (int i = 0; i < 8; i++)
		EQUAL(load(m + i * PAGE), i >= 2 && i < 5 ? 0 : 7);
	store(m + 3 * PAGE, 8);
	EQUAL(actor_get(&target, a + 3 * PAGE), 8);
}

TEST(mremap_is_followed)
{
	struct actor target;
	unsigned long a, b;
	volatile char *m, *n;
	uint64_t value;
	int access;

	actor_start(&target);
	a = actor_map(&target, 0, 4 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE);
	b = actor_map(&target, 0, 4 * PAGE, PROT_NONE, MAP_PRIVATE);
	access = access_whole(target.pid, RW);
	m = mirror(access, a, 4 * PAGE);
	n = mirror(access, b, 4 * PAGE);
	for (int i = 0; i < 4; i++)
		store(m + i * PAGE, 40 + i);
	EQUAL(try_load(n, &value), SIGBUS);
	CHECK(actor_sys(&target, SYS_mremap, a, 4 * PAGE, 4 * PAGE,
			MREMAP_MAYMOVE | MREMAP_FIXED, b) == (long)b);
	for (int i = 0; i < 4; i++) {
		EQUAL(try_load(m + i * PAGE, &value), SIGBUS);
		EQUAL(load(n + i * PAGE), 40 + i);
	}
}

TEST(mprotect_of_the_target_is_followed)
{
	struct actor target;
	volatile char *m;
	unsigned long a;
	uint64_t value;

	actor_start(&target);
	a = actor_map(&target, 0, 4 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE);
	m = mirror(access_whole(target.pid, RW), a, 4 * PAGE);
	store(m, 5);
	CHECK(!actor_sys(&target, SYS_mprotect, a, 4 * PAGE, PROT_READ));
	EQUAL(try_store(m, 6), SIGSEGV);
	EQUAL(load(m), 5);
	EQUAL(try_store(m, 6), SIGSEGV);
	EQUAL(try_store(m + PAGE, 6), SIGSEGV);
	CHECK(!actor_sys(&target, SYS_mprotect, a, 4 * PAGE, PROT_NONE));
	EQUAL(try_load(m, &value), SIGBUS);
	EQUAL(try_store(m, 6), SIGBUS);
	CHECK(!actor_sys(&target, SYS_mprotect, a, 4 * PAGE,
			 PROT_READ | PROT_WRITE));
	EQUAL(load(m), 5);
	store(m, 6);
	EQUAL(actor_get(&target, a), 6);
}

/* T4 */
TEST(fork_of_the_target_follows_the_parent)
{
	struct actor target, child;
	volatile char *m;
	unsigned long a;

	actor_start(&target);
	a = actor_map(&target, 0, 16 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE);
	m = mirror(access_whole(target.pid, RW), a, 16 * PAGE);
	for (int i = 0; i < 16; i++)
		store(m + i * PAGE, 100 + i);
	actor_fork(&target, &child);
	/* Loads must not show the child's copy, whoever writes first. */
	for (int i = 0; i < 16; i++)
		EQUAL(load(m + i * PAGE), 100 + i);
	for (int i = 0; i < 4; i++)
		actor_put(&child, a + i * PAGE, 200 + i);
	for (int i = 4; i < 8; i++)
		actor_put(&target, a + i * PAGE, 300 + i);
	for (int i = 8; i < 12; i++)
		store(m + i * PAGE, 400 + i);
	for (int i = 0; i < 16; i++) {
		uint64_t want = i < 4 ? 100 + i : i < 8 ? 300 + i :
				i < 12 ? 400 + i : 100 + i;

		EQUAL(load(m + i * PAGE), want);
		EQUAL(actor_get(&target, a + i * PAGE), want);
		EQUAL(actor_get(&child, a + i * PAGE), i < 4 ? 200 + i :
							      100 + i);
	}
	actor_kill(&child);
	for (int i = 0; i < 16; i++)
		store(m + i * PAGE, 500 + i);
	for (int i = 0; i < 16; i++)
		EQUAL(actor_get(&target, a + i * PAGE), 500 + i);
}

/* R20: what is not anonymous. */
TEST(files_and_shared_memory)
{
	unsigned long shared, file, private;
	struct actor target;
	volatile char *m;
	int access, fd;

	actor_start(&target);
	shared = actor_map(&target, 0, 4 * PAGE, PROT_READ | PROT_WRITE,
			   MAP_SHARED);
	fd = memfd_create("test", MFD_CLOEXEC);
	CHECK(fd >= 0 && !ftruncate(fd, 4 * PAGE));
	CHECK(pwrite(fd, &(uint64_t){ 9 }, 8, 0) == 8);
	fd = actor_give_fd(&target, fd);
	file = actor_sys(&target, SYS_mmap, 0, 8 * PAGE,
			 PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	private = actor_sys(&target, SYS_mmap, 0, 4 * PAGE,
			    PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHECK(file != -1UL && private != -1UL);
	access = access_whole(target.pid, RW);

	m = mirror(access, shared, 4 * PAGE);
	EQUAL(load(m + PAGE), 0);
	store(m + PAGE, 3);
	EQUAL(actor_get(&target, shared + PAGE), 3);

	m = mirror(access, file, 8 * PAGE);
	EQUAL(load(m), 9);
	store(m, 10);
	EQUAL(actor_get(&target, file), 10);
	/* Past the end of the file: SIGBUS, as in the target. */
	EQUAL(try_store(m + 5 * PAGE, 1), SIGBUS);
	EQUAL(try_store(m + 5 * PAGE, 1), SIGBUS);

	/* A private file mapping: its own copy once somebody writes. */
	m = mirror(access, private, 4 * PAGE);
	EQUAL(load(m), 10);
	store(m, 11);
	EQUAL(actor_get(&target, private), 11);
	EQUAL(actor_get(&target, file), 10);
	/* Truncation takes file pages away, in the mirror too. */
	CHECK(!actor_sys(&target, SYS_ftruncate, fd, PAGE));
	CHECK(!actor_sys(&target, SYS_ftruncate, fd, 4 * PAGE));
	EQUAL(load(mirror(access, file, 4 * PAGE) + 3 * PAGE), 0);
}

TEST(hugetlb_memory)
{
	struct actor target, child;
	volatile char *m;
	unsigned long a;
	uint64_t value;
	int access;

	actor_start(&target);
	a = actor_sys(&target, SYS_mmap, 0, 2 * HUGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (a == -1UL)
		skip("no huge pages reserved (%s)", strerror(errno));
	access = access_whole(target.pid, RW);
	m = mirror(access, a, 2 * HUGE);
	store(m + 3 * PAGE, 1);
	EQUAL(actor_get(&target, a + 3 * PAGE), 1);
	for (unsigned long i = 0; i < 2 * HUGE; i += PAGE)
		store(m + i, i);
	actor_expect(&target, a, 2 * HUGE, 0, PAGE);
	EQUAL(load(mirror(access, a + 5 * PAGE, PAGE)), 5 * PAGE);
	actor_fork(&target, &child);
	EQUAL(load(m + PAGE), PAGE);
	actor_put(&target, a + PAGE, 1);
	EQUAL(load(m + PAGE), 1);
	EQUAL(actor_get(&child, a + PAGE), PAGE);
	actor_unmap(&target, a, 2 * HUGE);
	EQUAL(try_load(m, &value), SIGBUS);
	actor_kill(&child);
}

TEST(secret_memory_stays_secret)
{
	struct actor target;
	volatile char *m;
	unsigned long a;
	uint64_t value;
	int access;
	long fd;

	actor_start(&target);
	fd = actor_sys(&target, SYS_memfd_secret, 0);
	if (fd < 0)
		skip("no memfd_secret here (%s)", strerror(errno));
	CHECK(!actor_sys(&target, SYS_ftruncate, fd, 2 * PAGE));
	a = actor_sys(&target, SYS_mmap, 0, 2 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_SHARED, fd, 0);
	CHECK(a != -1UL);
	actor_put(&target, a, 1);
	access = access_whole(target.pid, RW);
	m = mirror(access, a, 2 * PAGE);
	EQUAL(try_load(m, &value), SIGBUS);
	ERRNO(pread(access, &value, 8, a), EIO);
}

/* T13 */
TEST(userfaultfd_of_the_target_is_waited_for)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = {
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct uffdio_copy copy = { .len = PAGE };
	struct uffd_msg message;
	static uint64_t page[PAGE / 8];
	struct actor target;
	unsigned long a;
	volatile char *m;
	int uffd, status;
	pid_t waiter;
	long fd;

	actor_start(&target);
	fd = actor_sys(&target, SYS_userfaultfd, O_CLOEXEC);
	if (fd < 0)
		skip("no userfaultfd for kernel faults (%s)", strerror(errno));
	uffd = actor_take_fd(&target, fd);
	a = actor_map(&target, 0, 8 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE);
	CHECK(!ioctl(uffd, UFFDIO_API, &api));
	range.range.start = a;
	range.range.len = 8 * PAGE;
	CHECK(!ioctl(uffd, UFFDIO_REGISTER, &range));
	m = mirror(access_whole(target.pid, RW), a, 8 * PAGE);

	/* Killed while it waits. */
	waiter = fork();
	if (!waiter) {
		m = mirror(access_whole(target.pid, RW), a, 8 * PAGE);
		load(m + PAGE);
		_exit(0);
	}
	CHECK(read(uffd, &message, sizeof(message)) == sizeof(message));
	EQUAL(message.arg.pagefault.address, a + PAGE);
	kill(waiter, SIGKILL);
	CHECK(waitpid(waiter, &status, 0) == waiter);

	/* Answered. */
	waiter = fork();
	if (!waiter) {
		CHECK(read(uffd, &message, sizeof(message)) == sizeof(message));
		EQUAL(message.arg.pagefault.address, a + 2 * PAGE);
		page[0] = 1234;
		copy.dst = a + 2 * PAGE;
		copy.src = (unsigned long)page;
		CHECK(!ioctl(uffd, UFFDIO_COPY, &copy));
		_exit(0);
	}
	EQUAL(load(m + 2 * PAGE), 1234);
	CHECK(waitpid(waiter, &status, 0) == waiter);
	EQUAL(status, 0);
}

/* The target's userfaultfd says SIGBUS: the importer's fault ends with it. */
TEST(userfaultfd_that_refuses)
{
	struct uffdio_api api = { .api = UFFD_API,
				  .features = UFFD_FEATURE_SIGBUS };
	struct uffdio_register range = {
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct actor target;
	volatile char *m;
	unsigned long a;
	uint64_t value;
	long fd;
	int uffd;

	actor_start(&target);
	fd = actor_sys(&target, SYS_userfaultfd,
		       O_CLOEXEC | UFFD_USER_MODE_ONLY);
	if (fd < 0)
		skip("no userfaultfd (%s)", strerror(errno));
	uffd = actor_take_fd(&target, fd);
	a = actor_map(&target, 0, 8 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE);
	CHECK(!ioctl(uffd, UFFDIO_API, &api));
	range.range.start = a;
	range.range.len = 8 * PAGE;
	CHECK(!ioctl(uffd, UFFDIO_REGISTER, &range));
	m = mirror(access_whole(target.pid, RW), a, 8 * PAGE);
	EQUAL(try_load(m, &value), SIGBUS);
	EQUAL(try_store(m, 1), SIGBUS);
}

/* T9: a mirror shows as a hole in a mirror, also of oneself. */
TEST(mirror_of_a_mirror_is_a_hole)
{
	unsigned long a, middle;
	struct actor target;
	volatile char *m, *n;
	uint64_t value;
	int access, self;

	actor_start(&target);
	a = actor_map(&target, 0, 4 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE);
	access = access_whole(target.pid, RW);
	m = mirror(access, a, 4 * PAGE);
	store(m, 1);
	self = access_whole(0, RW);
	middle = (unsigned long)m;
	n = mirror(self, middle, 4 * PAGE);
	EQUAL(try_load(n, &value), SIGBUS);
	EQUAL(try_store(n, 1), SIGBUS);
	ERRNO(pread(self, &value, 8, middle), EIO);
	/* Invalidation goes by all three address spaces. */
	actor_unmap(&target, a, 4 * PAGE);
	EQUAL(try_load(m, &value), SIGBUS);
	EQUAL(try_load(n, &value), SIGBUS);
}

TEST(mirror_of_oneself)
{
	int self = access_whole(0, RW);
	volatile char *a, *m;
	uint64_t value;

	a = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(a != MAP_FAILED);
	m = mirror(self, (unsigned long)a, 64 * PAGE);
	for (int i = 0; i < 64; i++) {
		store(m + i * PAGE, i + 1);
		EQUAL(load(a + i * PAGE), i + 1);
	}
	CHECK(!madvise((void *)a, 8 * PAGE, MADV_DONTNEED));
	EQUAL(load(m), 0);
	CHECK(!munmap((void *)a, 32 * PAGE));
	EQUAL(try_load(m, &value), SIGBUS);
	EQUAL(load(m + 40 * PAGE), 41);
	/* Both at once, and one over the other. */
	CHECK(mmap((void *)a, 64 * PAGE, PROT_READ | PROT_WRITE,
		   MAP_SHARED | MAP_FIXED, self, (unsigned long)a) == a);
	EQUAL(try_load(a, &value), SIGBUS);
	EQUAL(try_load(m + 40 * PAGE, &value), SIGBUS);
}

/* T18 */
TEST(huge_pages)
{
	unsigned long a, at;
	struct actor target;
	volatile char *m, *n;
	int access;

	actor_start(&target);
	at = actor_map(&target, 0, 6 * HUGE, PROT_NONE, MAP_PRIVATE);
	a = (at + HUGE - 1) & ~(HUGE - 1);
	actor_map(&target, a, 4 * HUGE, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_FIXED);
	CHECK(!actor_sys(&target, SYS_madvise, a, 4 * HUGE, MADV_HUGEPAGE));
	actor_fill(&target, a, 4 * HUGE, 0, PAGE);
	access = access_whole(target.pid, RW);

	/* Congruent, and off by a page. */
	m = mirror(access, a, 4 * HUGE);
	EQUAL((unsigned long)m % HUGE, 0);
	n = mirror(access, a + PAGE, 3 * HUGE);
	for (unsigned long i = 0; i < 4 * HUGE; i += PAGE)
		EQUAL(load(m + i), i);
	for (unsigned long i = 0; i < 3 * HUGE; i += PAGE)
		EQUAL(load(n + i), i + PAGE);
	for (unsigned long i = 0; i < 4 * HUGE; i += 16 * PAGE) {
		store(m + i, i + 1);
		EQUAL(actor_get(&target, a + i), i + 1);
	}
	/* Less than a huge page goes. */
	CHECK(!actor_sys(&target, SYS_madvise, a + HUGE + 3 * PAGE, PAGE,
			 MADV_DONTNEED));
	EQUAL(load(m + HUGE + 3 * PAGE), 0);
	EQUAL(load(m + HUGE + 4 * PAGE), HUGE + 4 * PAGE);
	store(m + HUGE + 3 * PAGE, 4);
	EQUAL(actor_get(&target, a + HUGE + 3 * PAGE), 4);
	EQUAL(load(n + HUGE + 2 * PAGE), 4);
	/* Split and joined in the mirror. */
	CHECK(!munmap((void *)(m + 2 * HUGE + 7 * PAGE), PAGE));
	EQUAL(load(m + 2 * HUGE + 6 * PAGE), 2 * HUGE + 6 * PAGE);
	EQUAL(load(m + 2 * HUGE + 8 * PAGE), 2 * HUGE + 8 * PAGE);
	CHECK(!mprotect((void *)(m + 3 * HUGE), PAGE, PROT_READ));
	EQUAL(try_store(m + 3 * HUGE, 1), SIGSEGV);
	store(m + 3 * HUGE + PAGE, 1);
	CHECK(!mprotect((void *)(m + 3 * HUGE), HUGE, PROT_READ | PROT_WRITE));
	store(m + 3 * HUGE, 2);
	EQUAL(actor_get(&target, a + 3 * HUGE), 2);
}

/* One that was started again counts as a major one. */
static long faults(struct rusage *before, struct rusage *after)
{
	return after->ru_minflt + after->ru_majflt -
	       before->ru_minflt - before->ru_majflt;
}

/* Mapped as such: no page tables below, and a fault for each. */
TEST(huge_pages_are_mapped_huge)
{
	unsigned long a, at, size = 64 * HUGE, huge;
	struct rusage before, after;
	struct actor target;
	long tables;
	volatile char *m;
	char path[64], knob;
	int fd = open("/sys/module/rmap/parameters/huge_pages", O_RDONLY);

	CHECK(fd >= 0 && read(fd, &knob, 1) == 1);
	if (knob != 'Y')
		skip("huge_pages is off for this kernel");
	actor_start(&target);
	at = actor_map(&target, 0, size + HUGE, PROT_NONE, MAP_PRIVATE);
	a = (at + HUGE - 1) & ~(HUGE - 1);
	actor_map(&target, a, size, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_FIXED);
	CHECK(!actor_sys(&target, SYS_madvise, a, size, MADV_HUGEPAGE));
	for (unsigned long i = 0; i < size; i += HUGE)
		actor_put(&target, a + i, 1);
	snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", target.pid);
	huge = proc_number(path, "AnonHugePages:");
	if (huge < size >> 10)
		skip("only %lu KiB of the target are huge pages", huge);
	m = mirror(access_whole(target.pid, RW), a, size);
	tables = status_kb("VmPTE:");
	CHECK(!getrusage(RUSAGE_SELF, &before));
	for (unsigned long i = 0; i < size; i += PAGE)
		store(m + i, 2);
	CHECK(!getrusage(RUSAGE_SELF, &after));
	/* An invalidation may come from elsewhere, such as a compaction. */
	CHECK(status_kb("VmPTE:") - tables < (long)(size / HUGE) * 4 / 2);
	CHECK(faults(&before, &after) < (long)(size / HUGE) * 4);
	EQUAL(actor_get(&target, a + size - PAGE), 2);
}

/* Small pages that are there come 2 MiB at a time, wherever they lie. */
TEST(faults_come_in_batches)
{
	unsigned long a, size = 16 * HUGE;
	struct rusage before, after;
	struct actor target;
	volatile char *m;

	actor_start(&target);
	a = actor_map(&target, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	actor_sys(&target, SYS_madvise, a, size, MADV_NOHUGEPAGE);
	actor_fill(&target, a, size, 0, PAGE);
	m = mirror(access_whole(target.pid, RW), a, size);
	CHECK(!getrusage(RUSAGE_SELF, &before));
	for (unsigned long i = 0; i < size; i += PAGE)
		EQUAL(load(m + i), i);
	for (unsigned long i = 0; i < size; i += PAGE)
		store(m + i, i + 1);
	CHECK(!getrusage(RUSAGE_SELF, &after));
	CHECK(faults(&before, &after) < (long)(size / HUGE) * 8);
	/* One at a time, if that is wanted. */
	CHECK(!munmap((void *)m, size));
	m = mirror(access_whole(target.pid, RW), a, size);
	CHECK(!madvise((void *)m, size, MADV_RANDOM));
	CHECK(!getrusage(RUSAGE_SELF, &before));
	for (unsigned long i = 0; i < size; i += PAGE)
		EQUAL(load(m + i), i + 1);
	CHECK(!getrusage(RUSAGE_SELF, &after));
	CHECK(faults(&before, &after) >= (long)(size / PAGE));
}

/* A huge page that is read-only first: the target's fork, then stores. */
TEST(huge_pages_and_fork)
{
	struct actor target, child;
	unsigned long a, at;
	volatile char *m;

	actor_start(&target);
	at = actor_map(&target, 0, 3 * HUGE, PROT_NONE, MAP_PRIVATE);
	a = (at + HUGE - 1) & ~(HUGE - 1);
	actor_map(&target, a, 2 * HUGE, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_FIXED);
	CHECK(!actor_sys(&target, SYS_madvise, a, 2 * HUGE, MADV_HUGEPAGE));
	actor_put(&target, a, 1);
	actor_put(&target, a + HUGE, 2);
	m = mirror(access_whole(target.pid, RW), a, 2 * HUGE);
	actor_fork(&target, &child);
	EQUAL(load(m), 1);
	EQUAL(load(m + HUGE), 2);
	store(m + PAGE, 3);
	actor_put(&child, a + HUGE, 4);
	actor_put(&target, a + 2 * PAGE, 5);
	EQUAL(load(m + PAGE), 3);
	EQUAL(load(m + 2 * PAGE), 5);
	EQUAL(load(m + HUGE), 2);
	EQUAL(actor_get(&target, a + PAGE), 3);
	EQUAL(actor_get(&child, a + PAGE), 0);
	EQUAL(actor_get(&child, a + HUGE), 4);
	store(m + HUGE, 6);
	EQUAL(actor_get(&child, a + HUGE), 4);
	EQUAL(actor_get(&target, a + HUGE), 6);
}
