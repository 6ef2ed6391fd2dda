// SPDX-License-Identifier: GPL-2.0-only
/* What an importer may do with a mirror. */
#include "harness.h"

#include <linux/futex.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

/* T6 */
TEST(fork_of_the_importer)
{
	struct actor target;
	volatile char *m;
	unsigned long a;
	uint64_t value;
	int status;
	pid_t pid;

	actor_start(&target);
	a = actor_map(&target, 0, 4 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE);
	m = mirror(access_whole(target.pid, RW), a, 4 * PAGE);
	store(m, 1);
	pid = fork();
	if (!pid)
		_exit(try_load(m, &value));
	CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
	EQUAL(WEXITSTATUS(status), SIGSEGV);
	store(m, 2);
	EQUAL(actor_get(&target, a), 2);

	/* Nor if it is asked for. */
	ERRNO(madvise((void *)m, 4 * PAGE, MADV_DOFORK), EINVAL);
}

/* T7 */
TEST(partial_munmap_mprotect_mremap)
{
	struct actor target;
	volatile char *m, *n;
	unsigned long a;
	uint64_t value;
	int access;

	actor_start(&target);
	a = actor_map(&target, 0, 64 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE);
	for (int i = 0; i < 64; i++)
		actor_put(&target, a + i * PAGE, i + 1);
	access = access_whole(target.pid, RW);
	m = mirror(access, a, 64 * PAGE);
	for (int i = 0; i < 64; i += 2)
		EQUAL(load(m + i * PAGE), i + 1);

	/* A hole in the middle. */
	CHECK(!munmap((void *)(m + 20 * PAGE), 4 * PAGE));
	EQUAL(try_load(m + 20 * PAGE, &value), SIGSEGV);
	EQUAL(load(m + 19 * PAGE), 20);
	EQUAL(load(m + 24 * PAGE), 25);

	/* Protection of a part. */
	CHECK(!mprotect((void *)(m + 30 * PAGE), 4 * PAGE, PROT_READ));
	EQUAL(try_store(m + 31 * PAGE, 1), SIGSEGV);
	EQUAL(load(m + 31 * PAGE), 32);
	store(m + 34 * PAGE, 99);
	CHECK(!mprotect((void *)(m + 30 * PAGE), 4 * PAGE, PROT_NONE));
	EQUAL(try_load(m + 31 * PAGE, &value), SIGSEGV);
	CHECK(!mprotect((void *)(m + 30 * PAGE), 4 * PAGE,
			PROT_READ | PROT_WRITE));
	store(m + 31 * PAGE, 98);
	EQUAL(actor_get(&target, a + 31 * PAGE), 98);

	/* A part moves, and still follows. */
	n = mmap(NULL, 8 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(mremap((void *)(m + 40 * PAGE), 8 * PAGE, 8 * PAGE,
		     MREMAP_MAYMOVE | MREMAP_FIXED, n) == n);
	EQUAL(try_load(m + 40 * PAGE, &value), SIGSEGV);
	for (int i = 0; i < 8; i++)
		EQUAL(load(n + i * PAGE), 41 + i);
	CHECK(!actor_sys(&target, SYS_madvise, a + 40 * PAGE, 8 * PAGE,
			 MADV_DONTNEED));
	for (int i = 0; i < 8; i++)
		EQUAL(load(n + i * PAGE), 0);
	store(n, 5);
	EQUAL(actor_get(&target, a + 40 * PAGE), 5);

	/* Smaller works, larger is refused. */
	CHECK(mremap((void *)n, 8 * PAGE, 4 * PAGE, 0) == n);
	EQUAL(try_load(n + 4 * PAGE, &value), SIGSEGV);
	ERRNO(mremap((void *)n, 4 * PAGE, 8 * PAGE, MREMAP_MAYMOVE), EFAULT);
	EQUAL(load(n), 5);

	/* Replaced by something else. */
	CHECK(mmap((void *)(m + 50 * PAGE), PAGE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
	      m + 50 * PAGE);
	EQUAL(load(m + 50 * PAGE), 0);
	EQUAL(load(m + 51 * PAGE), 52);
	actor_unmap(&target, a, 64 * PAGE);
	EQUAL(load(m + 50 * PAGE), 0);
	EQUAL(try_load(m + 51 * PAGE, &value), SIGBUS);
	EQUAL(try_load(n, &value), SIGBUS);
}

/* T14: refused with an errno, as get_user_pages() does for VM_PFNMAP. */
TEST(pinning_is_refused)
{
	static char buffer[PAGE];
	struct actor target;
	volatile char *m;
	struct iovec mine, its;
	unsigned long a;
	int access, pipes[2];

	actor_start(&target);
	a = actor_map(&target, 0, 4 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE);
	access = access_whole(target.pid, RW);
	m = mirror(access, a, 4 * PAGE);
	store(m, 1);
	CHECK(!pipe(pipes));
	mine = (struct iovec){ (void *)m, PAGE };
	ERRNO(vmsplice(pipes[1], &mine, 1, SPLICE_F_GIFT), EFAULT);
	its = mine;
	mine.iov_base = buffer;
	ERRNO(process_vm_readv(getpid(), &mine, 1, &its, 1, 0), EFAULT);
	ERRNO(madvise((void *)m, PAGE, MADV_DONTNEED), EINVAL);
	CHECK(mlock((void *)m, PAGE) == 0);
	/* Buffers of read and write are fine. */
	EQUAL(write(pipes[1], (void *)m, PAGE), PAGE);
	EQUAL(read(pipes[0], (void *)(m + PAGE), PAGE), PAGE);
	EQUAL(actor_get(&target, a + PAGE), 1);
	/* Also where nothing has been touched, and where nothing is. */
	EQUAL(write(pipes[1], (void *)(m + 2 * PAGE), PAGE), PAGE);
	actor_unmap(&target, a + 3 * PAGE, PAGE);
	ERRNO(write(pipes[1], (void *)(m + 3 * PAGE), PAGE), EFAULT);
}

TEST(direct_io_is_refused)
{
	static char buffer[PAGE] __attribute__((aligned(PAGE)));
	int device = open("/dev/zram1", O_RDWR | O_DIRECT);
	struct actor target;
	volatile char *m;
	unsigned long a;

	if (device < 0)
		skip("no /dev/zram1 to write to");
	actor_start(&target);
	a = actor_map(&target, 0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	m = mirror(access_whole(target.pid, RW), a, PAGE);
	store(m, 5);
	EQUAL(pwrite(device, buffer, PAGE, 0), PAGE);
	ERRNO(pwrite(device, (void *)m, PAGE, 0), EFAULT);
	ERRNO(pread(device, (void *)m, PAGE, 0), EFAULT);
	EQUAL(load(m), 5);
}

TEST(fixed_buffers_are_refused)
{
	struct io_uring_params params = { 0 };
	int ring = syscall(SYS_io_uring_setup, 4, &params);
	struct actor target;
	struct iovec buffer;
	unsigned long a;

	if (ring < 0)
		skip("no io_uring here (%s)", strerror(errno));
	actor_start(&target);
	a = actor_map(&target, 0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	buffer.iov_base = (void *)mirror(access_whole(target.pid, RW), a, PAGE);
	buffer.iov_len = PAGE;
	store(buffer.iov_base, 5);
	ERRNO(syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS,
		      &buffer, 1), EFAULT);
}

/* T15: the page is needed for shared ones, for private ones it is not. */
TEST(shared_futexes_are_refused)
{
	struct actor target;
	pthread_mutex_t *mutex;
	pthread_mutexattr_t attr;
	volatile char *m;
	unsigned long a;
	int access, status;
	pid_t pid;

	actor_start(&target);
	a = actor_map(&target, 0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	access = access_whole(target.pid, RW);
	m = mirror(access, a, PAGE);
	store(m, 1);
	ERRNO(syscall(SYS_futex, m, FUTEX_WAKE, 1, NULL, NULL, 0), EFAULT);
	ERRNO(syscall(SYS_futex, m, FUTEX_WAIT, 1, NULL, NULL, 0), EFAULT);
	EQUAL(syscall(SYS_futex, m, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0), 0);
	ERRNO(syscall(SYS_futex, m, FUTEX_WAIT_PRIVATE, 2, NULL, NULL, 0),
	      EAGAIN);

	/* A mutex works while nobody has to wait; the C library then ends. */
	mutex = (pthread_mutex_t *)(m + 64);
	CHECK(!pthread_mutexattr_init(&attr));
	CHECK(!pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED));
	CHECK(!pthread_mutex_init(mutex, &attr));
	CHECK(!pthread_mutex_lock(mutex));
	pid = fork();
	if (!pid) {
		fclose(stderr);
		mutex = (pthread_mutex_t *)(mirror(access, a, PAGE) + 64);
		if (pthread_mutex_trylock(mutex) != EBUSY)
			_exit(1);
		pthread_mutex_lock(mutex);
		_exit(2);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

/* R15: by a module that is there for this test. */
TEST(kernel_threads_fault)
{
	int device = open("/dev/rmap-test-kthread", O_RDWR);
	struct actor target;
	uint64_t touch[3];
	unsigned long a;
	volatile char *m;

	if (device < 0)
		skip("rmap_test_kthread is not loaded");
	actor_start(&target);
	a = actor_map(&target, 0, 4 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE);
	actor_put(&target, a, 21);
	actor_unmap(&target, a + 3 * PAGE, PAGE);
	m = mirror(access_whole(target.pid, RW), a, 4 * PAGE);
	touch[0] = (unsigned long)m;
	touch[2] = 0;
	CHECK(!ioctl(device, 0, touch));
	EQUAL(touch[1], 21);
	/* Nothing there yet, so the thread has it brought in. */
	touch[0] = (unsigned long)m + PAGE;
	touch[1] = 22;
	touch[2] = 1;
	CHECK(!ioctl(device, 0, touch));
	EQUAL(actor_get(&target, a + PAGE), 22);
	touch[0] = (unsigned long)m + 3 * PAGE;
	ERRNO(ioctl(device, 0, touch), EFAULT);
	touch[2] = 0;
	ERRNO(ioctl(device, 0, touch), EFAULT);
	CHECK(!actor_sys(&target, SYS_mprotect, a, PAGE, PROT_READ));
	touch[0] = (unsigned long)m;
	touch[2] = 1;
	ERRNO(ioctl(device, 0, touch), EFAULT);
	actor_kill(&target);
	ERRNO(ioctl(device, 0, touch), EFAULT);
}

/* What accesses the importer's memory from outside. */
TEST(debuggers_see_through)
{
	struct actor target, importer;
	unsigned long a, m;
	uint64_t value;
	char path[64];
	int mem;

	actor_start(&target);
	actor_start(&importer);
	a = actor_map(&target, 0, 2 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE);
	actor_put(&target, a, 17);
	m = actor_sys(&importer, SYS_mmap, 0, 2 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_SHARED,
		      actor_give_fd(&importer, access_whole(target.pid, RW)),
		      a);
	CHECK(m != -1UL);
	snprintf(path, sizeof(path), "/proc/%d/mem", importer.pid);
	mem = open(path, O_RDWR);
	CHECK(mem >= 0);
	EQUAL(pread(mem, &value, 8, m), 8);
	EQUAL(value, 17);
	value = 18;
	EQUAL(pwrite(mem, &value, 8, m + PAGE), 8);
	EQUAL(actor_get(&target, a + PAGE), 18);
	CHECK(!actor_sys(&importer, SYS_mprotect, m, 2 * PAGE, PROT_READ));
	CHECK(pwrite(mem, &value, 8, m) < 0);
}

TEST(nothing_is_counted)
{
	unsigned long a, size = 8 * HUGE;
	struct actor target;
	volatile char *m;
	long before;

	actor_start(&target);
	a = actor_map(&target, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	actor_fill(&target, a, size, 1, 0);
	before = status_kb("VmRSS:");
	m = mirror(access_whole(target.pid, RW), a, size);
	for (unsigned long i = 0; i < size; i += PAGE)
		store(m + i, 2);
	CHECK(status_kb("VmRSS:") - before < (long)(size >> 10) / 4);
}

/* T20: time and space of many attachments do not add up. */
TEST(many_mirrors)
{
	unsigned long a, size = 64 * PAGE;
	struct actor target;
	volatile char *m;
	int access;

	actor_start(&target);
	a = actor_map(&target, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	access = access_whole(target.pid, RW);
	for (int i = 0; i < rounds(20000); i++) {
		m = mirror(access, a, size);
		store(m + (i % 64) * PAGE, i);
		CHECK(!munmap((void *)m, size));
	}
	/* And at once. */
	for (int i = 0; i < 1000; i++) {
		m = mirror(access, a + (i % 32) * PAGE, PAGE);
		store(m, i);
	}
	actor_unmap(&target, a, size);
	EQUAL(try_store(m, 1), SIGBUS);
}

static int mappings(void)
{
	FILE *file = fopen("/proc/self/maps", "r");
	int c, lines = 0;

	CHECK(file);
	while ((c = getc(file)) != EOF)
		lines += c == '\n';
	fclose(file);
	return lines;
}

/* T20: a mapping for each mirror, whatever is touched, and none after it. */
TEST(a_million_pages)
{
	enum { MIRRORS = 512 };
	unsigned long a, size = 4 * HUGE;
	volatile char *m[MIRRORS];
	struct actor target;
	int access, before, after;

	actor_start(&target);
	a = actor_map(&target, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	actor_fill(&target, a, size, 0, PAGE);
	access = access_whole(target.pid, RW);
	before = mappings();
	for (int i = 0; i < MIRRORS; i++) {
		m[i] = mirror(access, a, size);
		for (unsigned long at = 0; at < size; at += HUGE / 2)
			EQUAL(load(m[i] + at), at);
	}
	after = mappings();
	CHECK(after - before >= MIRRORS && after - before < MIRRORS + 16);
	/* One store is seen in all, and so is what becomes of the memory. */
	actor_put(&target, a + PAGE, 1);
	actor_unmap(&target, a + 2 * PAGE, PAGE);
	for (int i = 0; i < MIRRORS; i++) {
		uint64_t value;

		EQUAL(load(m[i] + PAGE), 1);
		EQUAL(try_load(m[i] + 2 * PAGE, &value), SIGBUS);
		CHECK(!munmap((void *)m[i], size));
	}
	CHECK(mappings() < before + 16);
}

struct shared_work {
	volatile char *m;
	unsigned long pages;
	int start;
};

static void *add_all(void *arg)
{
	struct shared_work *work = arg;

	for (unsigned long i = 0; i < work->pages; i++)
		__atomic_fetch_add((uint64_t *)(work->m +
			((i * 7 + work->start) % work->pages) * PAGE), 1,
			__ATOMIC_RELAXED);
	return NULL;
}

TEST(threads_fault_together)
{
	struct shared_work work[4];
	struct actor target;
	pthread_t threads[4];
	unsigned long a;
	volatile char *m;

	actor_start(&target);
	a = actor_map(&target, 0, 4 * HUGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE);
	m = mirror(access_whole(target.pid, RW), a, 4 * HUGE);
	for (int t = 0; t < 4; t++) {
		work[t] = (struct shared_work){ m, 4 * HUGE / PAGE - 1, t };
		CHECK(!pthread_create(&threads[t], NULL, add_all, &work[t]));
	}
	for (int t = 0; t < 4; t++)
		pthread_join(threads[t], NULL);
	actor_expect(&target, a, 4 * HUGE - PAGE, 4, 0);
}
