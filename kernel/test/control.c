// SPDX-License-Identifier: GPL-2.0-only
/* Requests, rights and their errnos. */
#include "harness.h"

#include <linux/capability.h>
#include <sys/prctl.h>

/* T17 */
TEST(arguments_are_checked)
{
	int control = control_open();
	uint64_t end;
	struct {
		struct rmap_map map;
		uint64_t more[2];
	} big = { { sizeof(big), 0, 0, 0, PAGE }, { 0, 0 } };
	struct rmap_map small = { sizeof(small) - 8, 0, 0, 0, PAGE };
	struct rmap_map huge = { 2 * PAGE, 0, 0, 0, PAGE };

	EQUAL(rmap_state(control), 0);
	EQUAL(rmap_address_end(control), 0);
	ERRNO(ioctl(control, 0x5401, &big), ENOTTY);
	ERRNO(ioctl(control, _IO(RMAP_IOC_MAGIC, 7), &big), ENOTTY);
	ERRNO(ioctl(control, RMAP_IOC_MAP, NULL), EFAULT);
	ERRNO(ioctl(control, RMAP_IOC_MAP, -8), EFAULT);
	ERRNO(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, control, 0), ENODEV);

	/* Before there is a target. */
	ERRNO(rmap_map(control, 0, 0, 0, PAGE), ENOTCONN);
	ERRNO(rmap_unmap(control, 0, PAGE), ENOTCONN);
	ERRNO(rmap_access(control, RW), ENOTCONN);
	ERRNO(rmap_lock(control), ENOTCONN);

	/* Choosing it. */
	ERRNO(rmap_bind(control, 0, 0), EINVAL);
	ERRNO(rmap_bind(control, RMAP_BIND_SELF, 1), EINVAL);
	ERRNO(rmap_bind(control, RMAP_BIND_SELF | RMAP_BIND_MEM, 0), EINVAL);
	ERRNO(rmap_bind(control, RMAP_BIND_SELF | 1ULL << 40, 0), EINVAL);
	ERRNO(rmap_bind(control, RMAP_BIND_MEM, -1), EBADF);
	ERRNO(rmap_bind(control, RMAP_BIND_MEM, -100), EBADF);
	ERRNO(rmap_bind(control, RMAP_BIND_MEM, 1LL << 40), EBADF);
	ERRNO(rmap_bind(control, RMAP_BIND_MEM, 1000), EBADF);
	ERRNO(rmap_bind(control, RMAP_BIND_MEM, control), EINVAL);
	ERRNO(rmap_bind(control, RMAP_BIND_MEM,
			open("/proc/self/environ", O_RDONLY)), EINVAL);
	ERRNO(rmap_bind(control, RMAP_BIND_MEM,
			open("/proc/self/maps", O_RDONLY)), EINVAL);
	ERRNO(rmap_bind(control, RMAP_BIND_MEM, open("/dev/null", O_RDWR)),
	      EINVAL);
	CHECK(!rmap_bind(control, RMAP_BIND_SELF, 0));
	ERRNO(rmap_bind(control, RMAP_BIND_SELF, 0), EBUSY);
	EQUAL(rmap_state(control), RMAP_STATE_BOUND | RMAP_STATE_ALIVE);
	end = rmap_address_end(control);
	CHECK(end > 1ULL << 46);

	ERRNO(rmap_access(control, 0), EINVAL);
	ERRNO(rmap_access(control, RMAP_ACCESS_WRITE), EINVAL);
	ERRNO(rmap_access(control, RMAP_ACCESS_READ | RMAP_ACCESS_FORCE),
	      EINVAL);
	ERRNO(rmap_access(control, RW | 1ULL << 3), EINVAL);
	ERRNO(rmap_access(control, RW | 1ULL << 35), EINVAL);

	/* Views. */
	ERRNO(rmap_map(control, 2, 0, 0, PAGE), EINVAL);
	ERRNO(rmap_map(control, 1ULL << 32, 0, 0, PAGE), EINVAL);
	ERRNO(rmap_map(control, 0, 1, 0, PAGE), EINVAL);
	ERRNO(rmap_map(control, 0, 0, 1, PAGE), EINVAL);
	ERRNO(rmap_map(control, 0, 0, 0, 1), EINVAL);
	ERRNO(rmap_map(control, 0, 0, 0, 0), EINVAL);
	ERRNO(rmap_map(control, 0, end, 0, PAGE), EINVAL);
	ERRNO(rmap_map(control, 0, PAGE, 0, end), EINVAL);
	ERRNO(rmap_map(control, 0, -PAGE, 0, 2 * PAGE), EINVAL);
	ERRNO(rmap_map(control, 0, 0, -PAGE, 2 * PAGE), EINVAL);
	ERRNO(rmap_map(control, 0, 0, 1ULL << 63, PAGE), EINVAL);
	ERRNO(rmap_map(control, 0, 0, 0, -PAGE), EINVAL);
	CHECK(!rmap_map(control, 0, 0, 4 * PAGE, 4 * PAGE));
	ERRNO(rmap_map(control, 0, 0, 4 * PAGE, 4 * PAGE), EEXIST);
	ERRNO(rmap_map(control, 0, 0, 0, 5 * PAGE), EEXIST);
	ERRNO(rmap_map(control, 0, 0, 7 * PAGE, 5 * PAGE), EEXIST);
	ERRNO(rmap_map(control, 0, 0, 5 * PAGE, PAGE), EEXIST);
	ERRNO(rmap_map(control, 0, 0, 0, 16 * PAGE), EEXIST);
	CHECK(!rmap_map(control, 0, 0, 8 * PAGE, 4 * PAGE));
	CHECK(!rmap_map(control, 0, 0, 0, 4 * PAGE));

	ERRNO(rmap_unmap(control, 4 * PAGE, PAGE), ENOENT);
	ERRNO(rmap_unmap(control, 5 * PAGE, 3 * PAGE), ENOENT);
	ERRNO(rmap_unmap(control, 4 * PAGE, 8 * PAGE), ENOENT);
	ERRNO(rmap_unmap(control, 12 * PAGE, PAGE), ENOENT);
	ERRNO(rmap_unmap(control, 4 * PAGE, 0), EINVAL);
	ERRNO(rmap_unmap(control, 4 * PAGE + 1, 4 * PAGE), EINVAL);
	CHECK(!rmap_unmap(control, 4 * PAGE, 4 * PAGE));
	ERRNO(rmap_unmap(control, 4 * PAGE, 4 * PAGE), ENOENT);

	/* Sizes: smaller than the first version, larger with and without. */
	ERRNO(ioctl(control, RMAP_IOC_MAP, &small), EINVAL);
	ERRNO(ioctl(control, RMAP_IOC_MAP, &huge), E2BIG);
	big.map.offset = 100 * PAGE;
	CHECK(!ioctl(control, RMAP_IOC_MAP, &big));
	big.map.offset = 101 * PAGE;
	big.more[1] = 1;
	ERRNO(ioctl(control, RMAP_IOC_MAP, &big), E2BIG);
}

/* T21: the system call as a 32-bit process makes it. */
TEST(callers_with_32_bits)
{
#ifdef __x86_64__
	struct rmap_map *map = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT,
				    -1, 0);
	int control = control_of_self(), ret;

	CHECK(map != MAP_FAILED);
	*map = (struct rmap_map){ sizeof(*map), 0, 1ULL << 40, 1ULL << 41,
				  1ULL << 36 };
	/* ioctl is 54 there. */
	asm volatile("int $0x80" : "=a"(ret)
		     : "a"(54), "b"(control), "c"(RMAP_IOC_MAP), "d"(map)
		     : "memory", "r8", "r9", "r10", "r11");
	if (ret == -ENOSYS)
		skip("the kernel takes no 32-bit system calls");
	EQUAL(ret, 0);
	CHECK(!rmap_unmap(control, 1ULL << 41, 1ULL << 36));
#else
	skip("only for x86-64");
#endif
}

TEST(a_thread_that_is_gone)
{
	struct actor target;
	char path[64];
	int mem, control = control_open();

	actor_start(&target);
	snprintf(path, sizeof(path), "/proc/%d/mem", target.pid);
	mem = open(path, O_RDWR);
	CHECK(mem >= 0);
	actor_kill(&target);
	/* The file still names the dead address space. */
	CHECK(!rmap_bind(control, RMAP_BIND_MEM, mem));
	EQUAL(rmap_state(control), RMAP_STATE_BOUND);
	ERRNO(rmap_map(control, 0, 0, 0, PAGE), ESRCH);
}

TEST(lock_is_for_ever)
{
	int control = control_of_self();
	int access = rmap_access(control, RW);
	volatile char *a, *m;

	a = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(!rmap_map(control, 0, (unsigned long)a, 0, PAGE));
	CHECK(!rmap_lock(control));
	CHECK(!rmap_lock(control));
	EQUAL(rmap_state(control), RMAP_STATE_BOUND | RMAP_STATE_ALIVE |
					   RMAP_STATE_LOCKED);
	ERRNO(rmap_map(control, 0, 0, PAGE, PAGE), EPERM);
	ERRNO(rmap_unmap(control, 0, PAGE), EPERM);
	m = mirror(access, 0, PAGE);
	store(m, 1);
	CHECK(!madvise((void *)a, PAGE, MADV_DONTNEED));
	EQUAL(load(m), 0);
	CHECK(!rmap_revoke(control));
}

TEST(revoke_is_for_good)
{
	struct actor target;
	int control, access;
	unsigned long a;
	volatile char *m;
	uint64_t value;

	actor_start(&target);
	a = actor_map(&target, 0, 4 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE);
	control = control_of(target.pid);
	access = rmap_access(control, RW);
	CHECK(!rmap_map(control, 0, a, 0, 4 * PAGE));
	m = mirror(access, 0, 4 * PAGE);
	store(m, 1);
	EQUAL(pread(access, &value, 8, 0), 8);
	CHECK(!rmap_lock(control));
	CHECK(!rmap_revoke(control));
	EQUAL(try_load(m, &value), SIGBUS);
	EQUAL(try_store(m, 2), SIGBUS);
	ERRNO(pread(access, &value, 8, 0), EIO);
	ERRNO(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, access, 0), ENODEV);
	ERRNO(rmap_map(control, 0, 0, 0, PAGE), ENODEV);
	ERRNO(rmap_unmap(control, 0, 4 * PAGE), ENODEV);
	ERRNO(rmap_access(control, RW), ENODEV);
	CHECK(!rmap_revoke(control));
	EQUAL(actor_get(&target, a), 1);
}

/* T10 */
TEST(closing_in_any_order)
{
	volatile char *a, *m;
	uint64_t value;

	a = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (int order = 0; order < 8; order++) {
		int control = control_open(), access;
		bool revoke = order & 4;

		CHECK(!rmap_bind(control, RMAP_BIND_SELF |
				 (revoke ? RMAP_BIND_REVOKE_ON_CLOSE : 0), 0));
		access = rmap_access(control, RW);
		CHECK(!rmap_map(control, 0, (unsigned long)a, 0, PAGE));
		m = mirror(access, 0, PAGE);
		store(m, order);
		if (order & 1)
			close(access);
		if (order & 2)
			close(control);
		if (revoke && order & 2)
			EQUAL(try_load(m, &value), SIGBUS);
		else
			EQUAL(load(m), order);
		if (!(order & 1))
			close(access);
		if (!revoke)
			EQUAL(load(m), order);
		if (!(order & 2))
			close(control);
		if (revoke)
			EQUAL(try_load(m, &value), SIGBUS);
		else
			EQUAL(load(m), order);
		CHECK(!munmap((void *)m, PAGE));
		EQUAL(load(a), order);
	}
}

TEST(unmap_and_map_again_retargets)
{
	struct actor target;
	int control, access;
	unsigned long a;
	volatile char *m;
	uint64_t value;

	actor_start(&target);
	a = actor_map(&target, 0, 8 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE);
	for (int i = 0; i < 8; i++)
		actor_put(&target, a + i * PAGE, i + 1);
	control = control_of(target.pid);
	access = rmap_access(control, RW);
	/* Over two views and a gap between them. */
	m = mirror(access, 0, 8 * PAGE);
	EQUAL(try_load(m, &value), SIGBUS);
	CHECK(!rmap_map(control, 0, a, 0, 3 * PAGE));
	CHECK(!rmap_map(control, 0, a, 5 * PAGE, 3 * PAGE));
	for (int i = 0; i < 3; i++) {
		EQUAL(load(m + i * PAGE), i + 1);
		EQUAL(load(m + (5 + i) * PAGE), i + 1);
	}
	EQUAL(try_load(m + 3 * PAGE, &value), SIGBUS);
	CHECK(!rmap_unmap(control, 0, 3 * PAGE));
	EQUAL(try_load(m, &value), SIGBUS);
	EQUAL(load(m + 5 * PAGE), 1);
	CHECK(!rmap_map(control, 0, a + 3 * PAGE, 0, 5 * PAGE));
	for (int i = 0; i < 5; i++)
		EQUAL(load(m + i * PAGE), i + 4);
}

TEST(largest_protection)
{
	struct actor target;
	int control, reader, writer;
	unsigned long a;
	volatile char *m;
	char path[64];

	actor_start(&target);
	a = actor_map(&target, 0, 4 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE);
	actor_put(&target, a, 1);
	reader = access_whole(target.pid, RMAP_ACCESS_READ);
	EQUAL(fcntl(reader, F_GETFL) & O_ACCMODE, O_RDONLY);
	EQUAL(fcntl(reader, F_GETFD), FD_CLOEXEC);
	ERRNO(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, reader, a),
	      EACCES);
	m = mirror_read(reader, a, 4 * PAGE);
	EQUAL(load(m), 1);
	EQUAL(try_store(m, 2), SIGSEGV);
	ERRNO(mprotect((void *)m, PAGE, PROT_READ | PROT_WRITE), EACCES);
	ERRNO(pwrite(reader, &a, 8, a), EBADF);
	/* Opening it again gives no more. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", reader);
	CHECK(open(path, O_RDWR) < 0);

	writer = access_whole(target.pid, RW);
	ERRNO(mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, writer, a),
	      EPERM);
	ERRNO(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, writer, a), EINVAL);
	m = mirror(writer, a, 4 * PAGE);
	ERRNO(mprotect((void *)m, PAGE, PROT_READ | PROT_EXEC), EACCES);
	store(m, 2);
	EQUAL(actor_get(&target, a), 2);

	/* A view for reading. */
	control = control_of(target.pid);
	writer = rmap_access(control, RW);
	CHECK(!rmap_map(control, RMAP_MAP_RDONLY, a, 0, 4 * PAGE));
	m = mirror(writer, 0, 4 * PAGE);
	EQUAL(try_store(m, 3), SIGSEGV);
	EQUAL(load(m), 2);
	EQUAL(try_store(m, 3), SIGSEGV);
	CHECK(!mprotect((void *)m, PAGE, PROT_READ));
	CHECK(!mprotect((void *)m, PAGE, PROT_READ | PROT_WRITE));
	EQUAL(try_store(m, 3), SIGSEGV);
	ERRNO(pwrite(writer, &a, 8, 0), EIO);
	EQUAL(actor_get(&target, a), 2);
}

TEST(rights_over_a_process)
{
	int control = control_open(), mem;
	struct actor target;
	char path[64];

	actor_start(&target);
	snprintf(path, sizeof(path), "/proc/%d/mem", target.pid);
	mem = open(path, O_RDONLY);
	CHECK(mem >= 0);
	CHECK(!rmap_bind(control, RMAP_BIND_MEM, mem));
	CHECK(rmap_access(control, RMAP_ACCESS_READ) >= 0);
	ERRNO(rmap_access(control, RW), EACCES);

	control = control_open();
	if (has_cap(CAP_SYS_PTRACE)) {
		CHECK(!rmap_bind(control, RMAP_BIND_PID, target.pid));
		CHECK(rmap_access(control, RW) >= 0);
		control = control_open();
		ERRNO(rmap_bind(control, RMAP_BIND_PID, 0), ESRCH);
		ERRNO(rmap_bind(control, RMAP_BIND_PID, -1), ESRCH);
		ERRNO(rmap_bind(control, RMAP_BIND_PID, 1LL << 32), ESRCH);
		/* A kernel thread. */
		ERRNO(rmap_bind(control, RMAP_BIND_PID, 2), ESRCH);
	} else {
		ERRNO(rmap_bind(control, RMAP_BIND_PID, target.pid), EPERM);
	}

	/* Who may not be traced: by his mem file no more than before. */
	CHECK(!actor_sys(&target, SYS_prctl, PR_SET_DUMPABLE, 0));
	mem = open(path, O_RDWR);
	if (geteuid())
		CHECK(mem < 0);
}

/* T16 */
TEST(stores_through_read_only_memory)
{
	struct actor target, child;
	unsigned long a, shared;
	int control, access;
	volatile char *m;
	uint64_t value;

	actor_start(&target);
	a = actor_map(&target, 0, 4 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE);
	actor_put(&target, a, 1);
	actor_put(&target, a + PAGE, 2);
	CHECK(!actor_sys(&target, SYS_mprotect, a, 4 * PAGE, PROT_READ));
	shared = actor_map(&target, 0, PAGE, PROT_READ, MAP_SHARED);
	actor_fork(&target, &child);
	control = control_of(target.pid);
	CHECK(!rmap_map(control, 0, 0, 0, rmap_address_end(control)));

	access = rmap_access(control, RW);
	m = mirror(access, a, 4 * PAGE);
	EQUAL(try_store(m, 3), SIGSEGV);
	ERRNO(pwrite(access, &a, 8, a), EIO);

	if (!has_cap(CAP_SYS_PTRACE)) {
		ERRNO(rmap_access(control, RW | RMAP_ACCESS_FORCE), EPERM);
		skip("CAP_SYS_PTRACE is needed for the rest");
	}
	access = rmap_access(control, RW | RMAP_ACCESS_FORCE);
	CHECK(access >= 0);
	m = mirror(access, a, 4 * PAGE);
	EQUAL(load(m), 1);
	store(m, 3);
	EQUAL(load(m), 3);
	store(m + 2 * PAGE, 4);
	value = 5;
	EQUAL(pwrite(access, &value, 8, a + 3 * PAGE), 8);
	EQUAL(actor_get(&target, a), 3);
	EQUAL(actor_get(&target, a + PAGE), 2);
	EQUAL(actor_get(&target, a + 2 * PAGE), 4);
	EQUAL(actor_get(&target, a + 3 * PAGE), 5);
	/* The target's own copy, still read-only for itself. */
	EQUAL(actor_get(&child, a), 1);
	EQUAL(actor_store(&target, a, 9), SIGSEGV);
	/* Shared memory that is read-only cannot be had. */
	m = mirror(access, shared, PAGE);
	EQUAL(try_store(m, 1), SIGSEGV);
	EQUAL(load(m), 0);
}

TEST(read_and_write)
{
	static char buffer[3 * PAGE], back[3 * PAGE];
	void *nowhere = (void *)PAGE;
	struct actor target;
	unsigned long a;
	volatile char *m;
	uint64_t value;
	int access;

	actor_start(&target);
	a = actor_map(&target, 0, 4 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE);
	actor_unmap(&target, a + 3 * PAGE, PAGE);
	access = access_whole(target.pid, RW);
	for (size_t i = 0; i < sizeof(buffer); i++)
		buffer[i] = i * 7;
	EQUAL(pwrite(access, buffer, 2 * PAGE, a + 100), 2 * PAGE);
	EQUAL(pread(access, back, 2 * PAGE, a + 100), 2 * PAGE);
	CHECK(!memcmp(buffer, back, 2 * PAGE));
	memcpy(&value, buffer + 4, 8);
	EQUAL(actor_get(&target, a + 104), value);
	/* Up to the hole, then nothing. */
	EQUAL(pread(access, back, 2 * PAGE, a + 2 * PAGE), PAGE);
	ERRNO(pread(access, back, PAGE, a + 3 * PAGE), EIO);
	ERRNO(pwrite(access, back, PAGE, a + 3 * PAGE), EIO);
	ERRNO(pread(access, nowhere, PAGE, a), EFAULT);
	ERRNO(pwrite(access, nowhere, PAGE, a), EFAULT);
	EQUAL(lseek(access, a + 8, SEEK_SET), a + 8);
	EQUAL(read(access, &value, 8), 8);
	EQUAL(value, actor_get(&target, a + 8));
	EQUAL(lseek(access, 0, SEEK_CUR), a + 16);
	/* From and to a mirror of the same memory. */
	m = mirror(access, a, 3 * PAGE);
	EQUAL(pread(access, (void *)(m + PAGE), PAGE, a), PAGE);
	EQUAL(pwrite(access, (void *)(m + PAGE), PAGE, a + 2 * PAGE), PAGE);
	EQUAL(load(m + 200), load(m + 2 * PAGE + 200));
}
