/*
 * errno.c: each reason for which a call fails, and its errno. When two reasons apply, the one that is checked first counts.
 * A call that works leaves errno alone: ZERO() and GIVES() look at that.
 *
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 */
#include "harness.h"

#include <limits.h>
#include <sched.h>
#include <sys/resource.h>

extern int xpmem_init(void);

/* Ids that nobody has. */
#define UNKNOWN_SMALL 12345LL
#define UNKNOWN_BIG   0x7fffffffffffffffLL

/* The peers: `alive` lives to the end; `dead` has been killed. Each has made a segment and got a permit for it. */
static struct peer alive;
static xpmem_segid_t alive_segid, alive_removed_segid, dead_segid;
static xpmem_apid_t alive_apid, alive_released_apid, dead_apid;
static uintptr_t alive_memory;

/*
 * waitpid() says that a process is gone a moment before the last of its descriptors is closed: the library's process that
 * stops its threads shares them. Until then its ids are those of a live process.
 */
static void await_end_of(xpmem_segid_t segid)
{
	while (xpmem_remove(segid) == -1 && errno == EACCES)
		sched_yield();
}

static void start_peers(void)
{
	struct peer dead;

	alive = start_peer();
	alive_memory = (uintptr_t)must(ask(alive, PEER_MAP, 4, 0, 0, 0), "map");
	alive_segid = must(ask(alive, PEER_MAKE, 0, -1, 0666, 0), "make");
	alive_apid = must(ask(alive, PEER_GET, alive_segid, XPMEM_RDWR, 0, 0), "get");
	alive_released_apid = must(ask(alive, PEER_GET, alive_segid, XPMEM_RDWR, 0, 0), "get");
	must(ask(alive, PEER_RELEASE, alive_released_apid, 0, 0, 0), "release");
	alive_removed_segid = must(ask(alive, PEER_MAKE, 0, -1, 0, 0), "make");
	must(ask(alive, PEER_REMOVE, alive_removed_segid, 0, 0, 0), "remove");

	dead = start_peer();
	dead_segid = must(ask(dead, PEER_MAKE, 0, -1, 0666, 0), "make");
	dead_apid = must(ask(dead, PEER_GET, dead_segid, XPMEM_RDWR, 0, 0), "get");
	end_peer(dead);
	await_end_of(dead_segid);
}

static void test_version(void)
{
	struct result r;
	struct peer p;

	CALL(r, xpmem_version());
	CHECK(r.value == 0x00027004 && r.error == UNTOUCHED, "xpmem_version() returns 2.7.4 (%#llx)",
	      (unsigned long long)r.value);
	ZERO(xpmem_init());
	ZERO(xpmem_init());
	/* Settings are the library's. */
	if (ON_DEVICE)
		return;

	p = start_peer_as(-1, -1, "RMAP_DISABLE=1");
	check_fails(ask(p, PEER_VERSION, 0, 0, 0, 0), ENOENT, __FILE__, __LINE__,
		    "xpmem_version() with RMAP_DISABLE=1");
	check_fails(ask(p, PEER_MAKE, 0, -1, 0600, 0), ENOENT, __FILE__, __LINE__,
		    "xpmem_make() with RMAP_DISABLE=1");
	check_fails(ask(p, PEER_REMOVE, -1, 0, 0, 0), ENOENT, __FILE__, __LINE__,
		    "xpmem_remove() with RMAP_DISABLE=1");
	check_fails(ask(p, PEER_GET, alive_segid, XPMEM_RDWR, 0, 0), ENOENT, __FILE__, __LINE__,
		    "xpmem_get() with RMAP_DISABLE=1");
	check_fails(ask(p, PEER_RELEASE, -1, 0, 0, 0), ENOENT, __FILE__, __LINE__,
		    "xpmem_release() with RMAP_DISABLE=1");
	check_fails(ask(p, PEER_ATTACH, alive_apid, 0, (long long)page, 0), ENOENT, __FILE__, __LINE__,
		    "xpmem_attach() with RMAP_DISABLE=1");
	check_fails(ask(p, PEER_DETACH, 0, 0, 0, 0), ENOENT, __FILE__, __LINE__,
		    "xpmem_detach() with RMAP_DISABLE=1");
	end_peer(p);
}

static void test_make(void)
{
	char *memory = map_pages(4);
	xpmem_segid_t first, second, other;
	struct result r;

	/* type, value, size */
	FAILS(xpmem_make(memory, page, 0, MODE(0600)), EINVAL);
	FAILS(xpmem_make(memory, page, 2, MODE(0600)), EINVAL);
	FAILS(xpmem_make(memory, page, -1, MODE(0600)), EINVAL);
	FAILS(xpmem_make(memory, page, XPMEM_PERMIT_MODE, MODE(01000)), EINVAL);
	FAILS(xpmem_make(memory, page, XPMEM_PERMIT_MODE, (void *)-1), EINVAL);
	FAILS(xpmem_make(memory, 0, XPMEM_PERMIT_MODE, MODE(0600)), EINVAL);
	FAILS(xpmem_make(NULL, 0, XPMEM_PERMIT_MODE, MODE(0600)), EINVAL);
	/* the end of the address space */
	FAILS(make(NULL, (size_t)1 << 62, 0600), EINVAL);
	FAILS(make((void *)((uintptr_t)1 << 62), page, 0600), EINVAL);
	FAILS(make(memory, XPMEM_MAXADDR_SIZE, 0600), EINVAL);
	FAILS(make((void *)page, XPMEM_MAXADDR_SIZE, 0600), EINVAL);
	/* alignment */
	FAILS(make((char *)12, page, 0600), EINVAL);
	FAILS(make(memory + 1, page, 0600), EINVAL);
	FAILS(make((char *)-2, 1, 0600), EINVAL);
	FAILS(make(memory, 1, 0600), EINVAL);
	FAILS(make(memory, page + 1, 0600), EINVAL);
	FAILS(make(NULL, XPMEM_MAXADDR_SIZE - 1, 0600), EINVAL);

	GIVES(first, xpmem_segid_t, make(memory, page, 0600));
	GIVES(second, xpmem_segid_t, make(memory, page, 0600));
	CHECK(first != second, "equal segments have different ids");
	GIVES(other, xpmem_segid_t, make(memory, 2 * page, 0));
	ZERO(xpmem_remove(other));
	GIVES(other, xpmem_segid_t, make(memory, page, 0777));
	ZERO(xpmem_remove(other));
	GIVES(other, xpmem_segid_t, make(NULL, 16 * page, 0600));
	ZERO(xpmem_remove(other));
	GIVES(other, xpmem_segid_t, make(NULL, USER_END, 0600));
	ZERO(xpmem_remove(other));
	GIVES(other, xpmem_segid_t, make(NULL, XPMEM_MAXADDR_SIZE, 0600));
	ZERO(xpmem_remove(other));
	ZERO(xpmem_remove(first));
	ZERO(xpmem_remove(second));

	/* The kernel module accepts a range that wraps, which nobody can use. Accepting or EINVAL: both will do. */
	CALL(r, make((char *)-page, 2 * page, 0600));
	CHECK(r.value > 0 || (r.value == -1 && r.error == EINVAL), "a range that wraps is accepted or gives EINVAL");
	munmap(memory, 4 * page);
}

static void test_remove(void)
{
	xpmem_segid_t segid;

	FAILS(xpmem_remove(0), EINVAL);
	FAILS(xpmem_remove(-1), EINVAL);
	FAILS(xpmem_remove(LLONG_MIN), EINVAL);
	FAILS(xpmem_remove(UNKNOWN_SMALL), ENOENT);
	FAILS(xpmem_remove(UNKNOWN_BIG), ENOENT);
	FAILS(xpmem_remove(dead_segid), ENOENT);
	FAILS(xpmem_remove(alive_segid), EACCES);
	FAILS(xpmem_remove(alive_removed_segid), EACCES);
	GIVES(segid, xpmem_segid_t, make_all(0600));
	ZERO(xpmem_remove(segid));
	FAILS(xpmem_remove(segid), ENOENT);
}

static void test_get(void)
{
	xpmem_segid_t segid;
	xpmem_apid_t first, second;

	FAILS(get(0, XPMEM_RDWR), EINVAL);
	FAILS(get(-1, XPMEM_RDWR), EINVAL);
	FAILS(get(LLONG_MIN, XPMEM_RDWR), EINVAL);
	/* flags before the type and before the segment */
	FAILS(get(alive_segid, XPMEM_RDWR | XPMEM_RDONLY), EINVAL);
	FAILS(get(alive_segid, 4), EINVAL);
	FAILS(get(alive_segid, 9999), EINVAL);
	FAILS(get(alive_segid, -1), EINVAL);
	FAILS(get(UNKNOWN_BIG, 3), EINVAL);
	FAILS(get(dead_segid, 3), EINVAL);
	FAILS(xpmem_get(alive_segid, XPMEM_RDWR, 0, NULL), EINVAL);
	FAILS(xpmem_get(alive_segid, XPMEM_RDWR, 2, NULL), EINVAL);
	FAILS(xpmem_get(UNKNOWN_BIG, XPMEM_RDWR, 0, NULL), EINVAL);
	/* the segment before the permission: the removed one had mode 0 */
	FAILS(get(UNKNOWN_SMALL, XPMEM_RDWR), ENOENT);
	FAILS(get(UNKNOWN_BIG, XPMEM_RDWR), ENOENT);
	FAILS(get(dead_segid, XPMEM_RDWR), ENOENT);
	FAILS(get(alive_removed_segid, XPMEM_RDWR), ENOENT);
	GIVES(segid, xpmem_segid_t, make_all(0600));
	ZERO(xpmem_remove(segid));
	FAILS(get(segid, XPMEM_RDWR), ENOENT);

	/* the value is not looked at */
	GIVES(first, xpmem_apid_t, xpmem_get(alive_segid, XPMEM_RDWR, XPMEM_PERMIT_MODE, NULL));
	GIVES(second, xpmem_apid_t, xpmem_get(alive_segid, XPMEM_RDWR, XPMEM_PERMIT_MODE, MODE(0600)));
	CHECK(first != second, "each permit has its own id");
	ZERO(xpmem_release(first));
	ZERO(xpmem_release(second));
	GIVES(first, xpmem_apid_t, xpmem_get(alive_segid, XPMEM_RDWR, XPMEM_PERMIT_MODE, (void *)-1));
	ZERO(xpmem_release(first));
	GIVES(first, xpmem_apid_t, get(alive_segid, XPMEM_RDONLY));
	ZERO(xpmem_release(first));
	GIVES(first, xpmem_apid_t, get(alive_segid, 0));
	ZERO(xpmem_release(first));
	GIVES(segid, xpmem_segid_t, make_all(0600));
	GIVES(first, xpmem_apid_t, get(segid, XPMEM_RDWR));
	ZERO(xpmem_release(first));
	ZERO(xpmem_remove(segid));
}

/* One row of a permission table. */
struct permission {
	unsigned mode;
	int flags;
	int allowed;
};

static void check_permission(struct result r, int allowed, unsigned mode, int flags, const char *who)
{
	char text[128];

	snprintf(text, sizeof(text), "mode %04o, flags %d, asked for by %s", mode, flags, who);
	if (allowed)
		check_works(r, 1, __FILE__, __LINE__, text);
	else
		check_fails(r, EACCES, __FILE__, __LINE__, text);
}

#define ROWS(table) (sizeof(table) / sizeof((table)[0]))

static void test_permission_owner(void)
{
	static const struct permission rows[] = {
		{ 0600, XPMEM_RDWR, 1 },   { 0600, XPMEM_RDONLY, 1 }, { 0600, 0, 1 },
		{ 0400, XPMEM_RDONLY, 1 }, { 0400, 0, 1 },	      { 0400, XPMEM_RDWR, 0 },
		{ 0200, XPMEM_RDWR, 0 },   { 0200, XPMEM_RDONLY, 0 }, { 0200, 0, 0 },
		{ 0000, XPMEM_RDWR, 0 },   { 0000, XPMEM_RDONLY, 0 }, { 0066, XPMEM_RDWR, 0 },
		{ 0077, XPMEM_RDONLY, 0 }, { 0700, XPMEM_RDWR, 1 },   { 0100, XPMEM_RDONLY, 0 },
	};
	int everything = has_capability(CAP_IPC_OWNER_BIT);
	xpmem_segid_t segid;
	struct result r;
	size_t i;

	for (i = 0; i < ROWS(rows); i++) {
		segid = must(ask(alive, PEER_MAKE, 0, -1, rows[i].mode, 0), "make");
		CALL(r, get(segid, rows[i].flags));
		check_permission(r, everything || rows[i].allowed, rows[i].mode, rows[i].flags,
				 everything ? "a process with CAP_IPC_OWNER" : "the owner");
		/* and in the process itself */
		r = ask(alive, PEER_GET, segid, rows[i].flags, 0, 0);
		check_permission(r, everything || rows[i].allowed, rows[i].mode, rows[i].flags,
				 everything ? "itself with CAP_IPC_OWNER" : "itself");
		must(ask(alive, PEER_REMOVE, segid, 0, 0, 0), "remove");
	}
}

static void test_permission_others(void)
{
	static const struct permission group[] = {
		{ 0060, XPMEM_RDWR, 1 },   { 0040, XPMEM_RDONLY, 1 }, { 0040, XPMEM_RDWR, 0 }, { 0020, XPMEM_RDWR, 0 },
		{ 0606, XPMEM_RDWR, 0 },   { 0606, XPMEM_RDONLY, 0 }, { 0600, XPMEM_RDWR, 0 }, { 0666, XPMEM_RDWR, 1 },
	};
	static const struct permission other[] = {
		{ 0006, XPMEM_RDWR, 1 },   { 0004, XPMEM_RDONLY, 1 }, { 0004, XPMEM_RDWR, 0 }, { 0002, XPMEM_RDWR, 0 },
		{ 0660, XPMEM_RDWR, 0 },   { 0660, XPMEM_RDONLY, 0 }, { 0600, XPMEM_RDWR, 0 }, { 0666, XPMEM_RDWR, 1 },
	};
	struct peer member, stranger;
	xpmem_segid_t segid;
	xpmem_apid_t apid;
	long long *memory, at;
	size_t i;

	if (geteuid() != 0) {
		skip("permission for group and others", "needs root, to have two users");
		return;
	}
	member = start_peer_as(65534, (int)getgid(), NULL);
	stranger = start_peer_as(65534, -1, NULL);
	for (i = 0; i < ROWS(group); i++) {
		segid = must((struct result){ make_all(group[i].mode), errno }, "make");
		check_permission(ask(member, PEER_GET, segid, group[i].flags, 0, 0), group[i].allowed, group[i].mode,
				 group[i].flags, "a member of the group");
		ZERO(xpmem_remove(segid));
	}
	for (i = 0; i < ROWS(other); i++) {
		segid = must((struct result){ make_all(other[i].mode), errno }, "make");
		check_permission(ask(stranger, PEER_GET, segid, other[i].flags, 0, 0), other[i].allowed, other[i].mode,
				 other[i].flags, "a stranger");
		ZERO(xpmem_remove(segid));
	}

	/* Two users share memory, in both directions. */
	memory = map_pages(1);
	memory[0] = 41;
	GIVES(segid, xpmem_segid_t, make_all(0666));
	apid = must(ask(stranger, PEER_GET, segid, XPMEM_RDWR, 0, 0), "get");
	at = must(ask(stranger, PEER_ATTACH, apid, (long long)(uintptr_t)memory, (long long)page, 0), "attach");
	CHECK(ask(stranger, PEER_LOAD, at, 0, 0, 0).value == 41, "another user reads root's memory, mode 0666");
	CHECK(ask(stranger, PEER_STORE, at, 42, 0, 0).value == 0 && memory[0] == 42,
	      "another user writes root's memory, mode 0666");
	apid = must(ask(stranger, PEER_GET, segid, XPMEM_RDONLY, 0, 0), "get");
	at = must(ask(stranger, PEER_ATTACH, apid, (long long)(uintptr_t)memory, (long long)page, 0), "attach");
	CHECK(ask(stranger, PEER_LOAD, at, 0, 0, 0).value == 42, "another user reads with a permit for reading");
	CHECK(ask(stranger, PEER_STORE, at, 43, 0, 0).error == SIGSEGV && memory[0] == 42,
	      "another user does not write with a permit for reading");
	ZERO(xpmem_remove(segid));

	segid = must(ask(stranger, PEER_MAKE, 0, -1, 0, 0), "make");
	at = must(ask(stranger, PEER_MAP, 1, 0, 0, 0), "map");
	must(ask(stranger, PEER_STORE, at, 77, 0, 0), "store");
	GIVES(apid, xpmem_apid_t, get(segid, XPMEM_RDWR));
	GIVES(memory, long long *, attach(apid, at, page, 0));
	LOADS(memory, 77);
	ZERO(xpmem_release(apid));
	end_peer(member);
	end_peer(stranger);
}

static void test_release(void)
{
	xpmem_apid_t apid;

	FAILS(xpmem_release(0), EINVAL);
	FAILS(xpmem_release(-1), EINVAL);
	FAILS(xpmem_release(LLONG_MIN), EINVAL);
	FAILS(xpmem_release(UNKNOWN_SMALL), ENOENT);
	FAILS(xpmem_release(UNKNOWN_BIG), ENOENT);
	FAILS(xpmem_release(dead_apid), ENOENT);
	FAILS(xpmem_release(alive_apid), EACCES);
	FAILS(xpmem_release(alive_released_apid), EACCES);
	GIVES(apid, xpmem_apid_t, get(alive_segid, XPMEM_RDWR));
	ZERO(xpmem_release(apid));
	FAILS(xpmem_release(apid), ENOENT);
}

/* The errno of an attach far too big for the address space that is left. */
static void test_attach_no_memory(xpmem_apid_t apid)
{
	struct rlimit old, limit;
	struct result r;

	FAILS(attach(apid, 0, USER_END, 0), ENOMEM);
	if (getrlimit(RLIMIT_AS, &old) != 0)
		die("getrlimit");
	limit = old;
	limit.rlim_cur = (rlim_t)64 << 20;
	if (setrlimit(RLIMIT_AS, &limit) != 0)
		die("setrlimit");
	CALL(r, attach(apid, 0, (size_t)1 << 40, 0));
	setrlimit(RLIMIT_AS, &old);
	check_fails(r, ENOMEM, __FILE__, __LINE__, "attach past RLIMIT_AS");
}

static void test_attach_low(xpmem_apid_t apid)
{
	unsigned long lowest = 0;
	FILE *file = fopen("/proc/sys/vm/mmap_min_addr", "r");

	if (file) {
		if (fscanf(file, "%lu", &lowest) != 1)
			lowest = 0;
		fclose(file);
	}
	if (lowest <= page)
		skip("attach below mmap_min_addr", "there is no limit");
	else if (has_capability(CAP_SYS_RAWIO_BIT))
		skip("attach below mmap_min_addr", "this process has CAP_SYS_RAWIO");
	else
		FAILS(attach(apid, (off_t)alive_memory, page, page), EPERM);
}

static void test_attach(void)
{
	const off_t offset = (off_t)alive_memory;
	xpmem_segid_t own_segid, short_segid, removed_segid;
	xpmem_apid_t apid, own_apid, short_apid, removed_apid, read_apid;
	char *at, *second, *own, *target;

	GIVES(apid, xpmem_apid_t, get(alive_segid, XPMEM_RDWR));
	GIVES(read_apid, xpmem_apid_t, get(alive_segid, XPMEM_RDONLY));
	short_segid = must(ask(alive, PEER_MAKE, (long long)alive_memory, 2 * (long long)page, 0666, 0), "make");
	GIVES(short_apid, xpmem_apid_t, get(short_segid, XPMEM_RDWR));
	removed_segid = must(ask(alive, PEER_MAKE, 0, -1, 0666, 0), "make");
	GIVES(removed_apid, xpmem_apid_t, get(removed_segid, XPMEM_RDWR));
	must(ask(alive, PEER_REMOVE, removed_segid, 0, 0, 0), "remove");
	own = map_apart(4);
	GIVES(own_segid, xpmem_segid_t, make_all(0600));
	GIVES(own_apid, xpmem_apid_t, get(own_segid, XPMEM_RDWR));
	target = free_range(8);

	/* the id */
	FAILS(attach(0, offset, page, 0), EINVAL);
	FAILS(attach(-1, offset, page, 0), EINVAL);
	/* an address outside the address space */
	FAILS(attach(apid, offset, page, (uintptr_t)-page), EINVAL);
	FAILS(attach(apid, offset, page, (uintptr_t)1 << 63), EINVAL);
	FAILS(attach(UNKNOWN_BIG, offset, page, (uintptr_t)-page), EINVAL);
	/* alignment, before the permit */
	FAILS(attach(apid, offset, page, (uintptr_t)target + 1), EINVAL);
	FAILS(attach(apid, offset + 1, page, 0), EINVAL);
	FAILS(attach(apid, -1, page, 0), EINVAL);
	FAILS(attach(UNKNOWN_BIG, offset, page, (uintptr_t)target + 1), EINVAL);
	FAILS(attach(UNKNOWN_BIG, offset + 1, page, 0), EINVAL);
	FAILS(attach(alive_apid, offset + 1, page, 0), EINVAL);
	FAILS(attach(removed_apid, offset + 1, page, 0), EINVAL);
	/* the permit, before the range */
	FAILS(attach(UNKNOWN_SMALL, offset, page, 0), ENOENT);
	FAILS(attach(UNKNOWN_BIG, offset, page, 0), ENOENT);
	FAILS(attach(UNKNOWN_BIG, offset, 0, 0), ENOENT);
	FAILS(attach(UNKNOWN_BIG, -(off_t)page, page, 0), ENOENT);
	FAILS(attach(dead_apid, offset, page, 0), ENOENT);
	FAILS(attach(dead_apid, offset, 0, 0), ENOENT);
	/* the segment, before the range */
	FAILS(attach(removed_apid, offset, page, 0), ENOENT);
	FAILS(attach(removed_apid, offset, 0, 0), ENOENT);
	/* the owner of the permit, before the range */
	FAILS(attach(alive_apid, offset, page, 0), EACCES);
	FAILS(attach(alive_apid, offset, 0, 0), EACCES);
	FAILS(attach(alive_apid, -(off_t)page, page, 0), EACCES);
	/* the range, before the place */
	FAILS(attach(apid, -(off_t)page, page, 0), EINVAL);
	FAILS(attach(apid, offset, 0, 0), EINVAL);
	FAILS(attach(apid, offset, (size_t)-1, 0), EINVAL);
	FAILS(attach(apid, (off_t)(USER_END << 16), page, 0), EINVAL);
	FAILS(attach(short_apid, 0, 2 * page + 1, 0), EINVAL);
	FAILS(attach(short_apid, (off_t)page, page + 1, 0), EINVAL);
	FAILS(attach(short_apid, 2 * (off_t)page, page, 0), EINVAL);
	FAILS(attach(short_apid, 0, XPMEM_MAXADDR_SIZE & ~(page - 1), 0), EINVAL);
	FAILS(attach(read_apid, offset, 0, 0), EINVAL);
	/* its own segment, over itself */
	FAILS(attach(own_apid, (off_t)(uintptr_t)own, page, (uintptr_t)own), EINVAL);
	FAILS(attach(own_apid, (off_t)(uintptr_t)own, 2 * page, (uintptr_t)own + page), EINVAL);
	FAILS(attach(own_apid, (off_t)((uintptr_t)own + page), 2 * page, (uintptr_t)own), EINVAL);
	own[0] = 1;
	CHECK(own[0] == 1, "the memory is still there");

	/* a chosen place: exactly there, but not over an attachment */
	GIVES(at, char *, attach(apid, offset, 2 * page, (uintptr_t)target));
	CHECK(at == target, "the attachment is where it was wanted");
	FAILS(attach(apid, offset, page, (uintptr_t)target), EINVAL);
	FAILS(attach(apid, offset, page, (uintptr_t)target + page), EINVAL);
	FAILS(attach(apid, offset, 2 * page, (uintptr_t)target + page), EINVAL);
	FAILS(attach(own_apid, (off_t)(uintptr_t)own, page, (uintptr_t)target), EINVAL);
	must(ask(alive, PEER_STORE, (long long)alive_memory, 123, 0, 0), "store");
	LOADS(at, 123);
	GIVES(second, char *, attach(apid, offset, page, (uintptr_t)target + 2 * page));
	CHECK(second == target + 2 * page, "the next attachment is right behind it");
	LOADS(second, 123);
	ZERO(xpmem_detach(second));
	ZERO(xpmem_detach(at));
	CHECK(!is_mapped(at) && !is_mapped(at + page) && !is_mapped(second), "they are gone after xpmem_detach()");
	/* over ordinary memory */
	own[0] = 7;
	GIVES(at, char *, attach(apid, offset, page, (uintptr_t)own));
	CHECK(at == own, "an attachment replaces ordinary memory");
	LOADS(at, 123);
	ZERO(xpmem_detach(at));

	test_attach_no_memory(apid);
	test_attach_low(apid);

	/* sizes that are no multiple of a page */
	GIVES(at, char *, attach(short_apid, 0, 1, 0));
	ZERO(xpmem_detach(at));
	GIVES(at, char *, attach(short_apid, (off_t)page, page - 1, 0));
	ZERO(xpmem_detach(at));
	GIVES(at, char *, attach(short_apid, 0, page + 1, 0));
	CHECK(is_mapped(at + page), "the size is rounded up");
	ZERO(xpmem_detach(at));

	/* a permit for reading */
	GIVES(at, char *, attach(read_apid, offset, page, 0));
	LOADS(at, 123);
	STORE_RAISES(at, SIGSEGV);
	ZERO(xpmem_detach(at));

	/* holes */
	GIVES(at, char *, attach(apid, 0, page, 0));
	LOAD_RAISES(at, SIGBUS);
	STORE_RAISES(at + 8, SIGBUS);
	ZERO(xpmem_detach(at));

	/* a permit that is given back takes its attachments with it */
	GIVES(at, char *, attach(short_apid, 0, page, 0));
	GIVES(second, char *, attach(short_apid, 0, page, 0));
	ZERO(xpmem_release(short_apid));
	CHECK(!is_mapped(at) && !is_mapped(second), "xpmem_release() unmaps the attachments");
	FAILS(attach(short_apid, 0, page, 0), ENOENT);
	ZERO(xpmem_detach(at));

	ZERO(xpmem_release(removed_apid));
	ZERO(xpmem_release(read_apid));
	ZERO(xpmem_release(own_apid));
	ZERO(xpmem_remove(own_segid));
	ZERO(xpmem_release(apid));
}

static void test_remove_attached(void)
{
	xpmem_segid_t segid;
	xpmem_apid_t apid;
	char *at;

	segid = must(ask(alive, PEER_MAKE, 0, -1, 0666, 0), "make");
	GIVES(apid, xpmem_apid_t, get(segid, XPMEM_RDWR));
	GIVES(at, char *, attach(apid, (off_t)alive_memory, 2 * page, 0));
	STORES(at, 5);
	CHECK(ask(alive, PEER_LOAD, (long long)alive_memory, 0, 0, 0).value == 5, "the exporter sees the store");
	must(ask(alive, PEER_REMOVE, segid, 0, 0, 0), "remove");
	LOAD_RAISES(at, SIGBUS);
	STORE_RAISES(at, SIGBUS);
	LOAD_RAISES(at + page, SIGBUS);
	CHECK(ask(alive, PEER_LOAD, (long long)alive_memory, 0, 0, 0).value == 5, "the exporter has its memory");
	ZERO(xpmem_detach(at + page + 3));
	CHECK(!is_mapped(at), "an attachment of a removed segment can be detached");
	ZERO(xpmem_release(apid));
}

static void test_detach(void)
{
	static char in_data[64] = "data";
	const off_t offset = (off_t)alive_memory;
	char on_stack[64];
	xpmem_apid_t apid;
	char *at, *shared, *heap;

	ZERO(xpmem_detach(NULL));
	ZERO(xpmem_detach(free_range(1)));
	ZERO(xpmem_detach((void *)-page));
	ZERO(xpmem_detach((void *)1));
	heap = malloc(64);
	shared = mmap(NULL, page, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	FAILS(xpmem_detach(on_stack), EINVAL);
	FAILS(xpmem_detach(in_data), EINVAL);
	FAILS(xpmem_detach(heap), EINVAL);
	FAILS(xpmem_detach(shared), EINVAL);
	FAILS(xpmem_detach((void *)(uintptr_t)&test_detach), EINVAL);
	free(heap);
	munmap(shared, page);

	GIVES(apid, xpmem_apid_t, get(alive_segid, XPMEM_RDWR));
	GIVES(at, char *, attach(apid, offset, 2 * page, 0));
	ZERO(xpmem_detach(at));
	ZERO(xpmem_detach(at));
	GIVES(at, char *, attach(apid, offset, 2 * page, 0));
	ZERO(xpmem_detach(at + page));
	CHECK(!is_mapped(at) && !is_mapped(at + page), "detached by an address inside");
	GIVES(at, char *, attach(apid, offset, 2 * page, 0));
	STORES(at, 9);
	ZERO(xpmem_detach(at + 2 * page - 1));
	CHECK(!is_mapped(at) && !is_mapped(at + page), "detached by its last byte");
	LOAD_RAISES(at, SIGSEGV);
	ZERO(xpmem_release(apid));
}

/* A forked child has no segments, permits and attachments, and the ids of its parent are those of another process. */
static void test_fork(void)
{
	struct peer p = start_peer();
	long long memory = must(ask(p, PEER_MAP, 1, 0, 0, 0), "map");
	xpmem_segid_t segid = must(ask(p, PEER_MAKE, 0, -1, 0666, 0), "make");
	xpmem_apid_t apid = must(ask(p, PEER_GET, alive_segid, XPMEM_RDWR, 0, 0), "get");
	/* At a place of its own: the hole that it leaves in the child stays a hole. */
	long long at = must(ask(p, PEER_ATTACH, apid, (long long)alive_memory, (long long)page, 0x300000000000), "attach");
	int child = p.child_socket;
	long long child_segid, child_at;
	xpmem_apid_t own_apid;
	struct result r;

	must(ask(p, PEER_STORE, memory, 11, 0, 0), "store");
	must(ask(p, PEER_LOAD, at, 0, 0, 0), "load");
	must(ask(p, PEER_FORK, 0, 0, 0, 0), "fork");
	check_works(ask_at(child, PEER_DETACH, at, 0, 0, 0), 0, __FILE__, __LINE__,
		    "child: xpmem_detach() of its parent's attachment");
	CHECK(ask_at(child, PEER_LOAD, at, 0, 0, 0).error == SIGSEGV, "child: the attachment is not inherited");
	check_fails(ask_at(child, PEER_REMOVE, segid, 0, 0, 0), EACCES, __FILE__, __LINE__,
		    "child: xpmem_remove() of its parent's segment");
	check_fails(ask_at(child, PEER_RELEASE, apid, 0, 0, 0), EACCES, __FILE__, __LINE__,
		    "child: xpmem_release() of its parent's permit");
	check_fails(ask_at(child, PEER_ATTACH, apid, (long long)alive_memory, (long long)page, 0), EACCES, __FILE__,
		    __LINE__, "child: xpmem_attach() with its parent's permit");
	CHECK(ask_at(child, PEER_VERSION, 0, 0, 0, 0).value == 0x27004, "child: xpmem_version()");
	r = ask_at(child, PEER_MAKE, 0, -1, 0666, 0);
	check_works(r, 1, __FILE__, __LINE__, "child: xpmem_make()");
	child_segid = r.value;
	CHECK(child_segid != segid, "child: its segment has another id than its parent's");
	r = ask_at(child, PEER_GET, segid, XPMEM_RDWR, 0, 0);
	check_works(r, 1, __FILE__, __LINE__, "child: xpmem_get() of its parent's segment");
	r = ask_at(child, PEER_ATTACH, r.value, memory, (long long)page, 0);
	check_works(r, 1, __FILE__, __LINE__, "child: xpmem_attach() of its parent's memory");
	child_at = r.value;
	CHECK(ask_at(child, PEER_LOAD, child_at, 0, 0, 0).value == 11, "child: reads its parent's memory");
	must(ask_at(child, PEER_STORE, child_at, 12, 0, 0), "store");
	CHECK(ask(p, PEER_LOAD, memory, 0, 0, 0).value == 12, "parent: sees what its child stored there");
	CHECK(ask_at(child, PEER_LOAD, memory, 0, 0, 0).value == 11, "child: its own copy is its own");
	GIVES(own_apid, xpmem_apid_t, get(child_segid, XPMEM_RDWR));
	ZERO(xpmem_release(own_apid));

	/* the parent goes, the child stays */
	kill(p.pid, SIGKILL);
	waitpid(p.pid, NULL, 0);
	await_end_of(segid);
	check_fails(ask_at(child, PEER_REMOVE, segid, 0, 0, 0), ENOENT, __FILE__, __LINE__,
		    "child of a dead parent: xpmem_remove() of its segment");
	check_fails(ask_at(child, PEER_RELEASE, apid, 0, 0, 0), ENOENT, __FILE__, __LINE__,
		    "child of a dead parent: xpmem_release() of its permit");
	check_fails(ask_at(child, PEER_ATTACH, apid, (long long)alive_memory, (long long)page, 0), ENOENT, __FILE__,
		    __LINE__, "child of a dead parent: xpmem_attach() with its permit");
	check_fails(ask_at(child, PEER_GET, segid, XPMEM_RDWR, 0, 0), ENOENT, __FILE__, __LINE__,
		    "child of a dead parent: xpmem_get() of its segment");
	GIVES(own_apid, xpmem_apid_t, get(child_segid, XPMEM_RDWR));
	ZERO(xpmem_release(own_apid));
	close(p.socket);
	close(p.child_socket);
}

/* An exporter dies while its memory is attached. */
static void test_death(void)
{
	struct peer p = start_peer();
	long long memory = must(ask(p, PEER_MAP, 2, 0, 0, 0), "map");
	xpmem_segid_t segid = must(ask(p, PEER_MAKE, 0, -1, 0666, 0), "make");
	xpmem_apid_t apid;
	char *at, *second;

	must(ask(p, PEER_STORE, memory, 33, 0, 0), "store");
	must(ask(p, PEER_STORE, memory + (long long)page, 34, 0, 0), "store");
	GIVES(apid, xpmem_apid_t, get(segid, XPMEM_RDWR));
	GIVES(at, char *, attach(apid, memory, page, 0));
	GIVES(second, char *, attach(apid, 0, page, 0));
	LOADS(at, 33);
	end_peer(p);
	await_end_of(segid);
	/* Unlike the library, the device keeps nothing of a process that has ended. */
	if (ON_DEVICE)
		LOAD_RAISES(at, SIGBUS);
	else
		LOADS(at, 33);
	LOAD_RAISES(second, SIGBUS);
	FAILS(attach(apid, memory, page, 0), ENOENT);
	FAILS(attach(apid, memory, 0, 0), ENOENT);
	FAILS(get(segid, XPMEM_RDWR), ENOENT);
	FAILS(xpmem_remove(segid), ENOENT);
	ZERO(xpmem_detach(second));
	ZERO(xpmem_detach(at));
	CHECK(!is_mapped(at), "an attachment of a dead exporter can be detached");
	ZERO(xpmem_release(apid));
	FAILS(xpmem_release(apid), ENOENT);
}

int main(int argc, char **argv)
{
	/* Here a detach unmaps what was attached, so that it can be seen. */
	setenv("RMAP_WINDOW_LIMIT", "0", 1);
	serve_if_peer(argc, argv);
	begin();
	/* The first call of this process is one that fails. */
	FAILS(xpmem_remove(-1), EINVAL);
	start_peers();
	test_version();
	test_make();
	test_remove();
	test_get();
	test_permission_owner();
	test_permission_others();
	test_release();
	test_attach();
	test_remove_attached();
	test_detach();
	test_fork();
	test_death();
	end_peer(alive);
	return finish();
}
