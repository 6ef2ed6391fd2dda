/*
 * ioctl.c: xpmem_ioctl() takes the commands and structures of the kernel interface.
 *
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 */
#include "harness.h"

#include <stddef.h>

extern int xpmem_init(void);
extern int xpmem_ioctl(int cmd, void *arg);

enum {
	CMD_VERSION = 0x7800,
	CMD_MAKE,
	CMD_REMOVE,
	CMD_GET,
	CMD_RELEASE,
	CMD_ATTACH,
	CMD_DETACH,
	CMD_FORK_BEGIN,
	CMD_FORK_END
};

struct cmd_make {
	uint64_t vaddr;
	size_t size;
	int permit_type;
	uint64_t permit_value;
	int64_t segid;
};

struct cmd_id {
	int64_t id;
};

struct cmd_get {
	int64_t segid;
	int flags;
	int permit_type;
	uint64_t permit_value;
	int64_t apid;
};

struct cmd_attach {
	int64_t apid;
	off_t offset;
	size_t size;
	uint64_t vaddr;
	int fd;
	int flags;
};

struct cmd_detach {
	uint64_t vaddr;
};

_Static_assert(sizeof(struct cmd_make) == 40 && offsetof(struct cmd_make, permit_value) == 24, "layout");
_Static_assert(sizeof(struct cmd_get) == 32 && offsetof(struct cmd_get, permit_value) == 16, "layout");
_Static_assert(sizeof(struct cmd_attach) == 40 && offsetof(struct cmd_attach, fd) == 32, "layout");

int main(void)
{
	struct cmd_make m;
	struct cmd_id id;
	struct cmd_get g;
	struct cmd_attach a;
	struct cmd_detach d;
	struct result r;
	long long *memory;
	char *nowhere, *read_only, *two_pages;
	int64_t segid, apid;
	int cmd;

	/* So that DETACH unmaps. */
	setenv("RMAP_WINDOW_LIMIT", "0", 1);
	begin();
	/* The first call of the library in this process. */
	CALL(r, xpmem_ioctl(CMD_VERSION, NULL));
	CHECK(r.value == 0x27004 && r.error == UNTOUCHED, "VERSION returns 2.7.4 (%#llx)", (unsigned long long)r.value);
	ZERO(xpmem_init());
	ZERO(xpmem_ioctl(CMD_FORK_BEGIN, NULL));
	ZERO(xpmem_ioctl(CMD_FORK_END, NULL));

	FAILS(xpmem_ioctl(0x7809, NULL), ENOTTY);
	FAILS(xpmem_ioctl(0x77ff, NULL), ENOTTY);
	FAILS(xpmem_ioctl(0, NULL), ENOTTY);
	FAILS(xpmem_ioctl(-1, NULL), ENOTTY);
	FAILS(xpmem_ioctl((int)0xc0087801, NULL), ENOTTY);

	/* pointers that cannot be read */
	nowhere = free_range(1);
	two_pages = map_apart(2);
	if (munmap(two_pages + page, page) != 0)
		die("munmap");
	for (cmd = CMD_MAKE; cmd <= CMD_DETACH; cmd++) {
		FAILS(xpmem_ioctl(cmd, NULL), EFAULT);
		FAILS(xpmem_ioctl(cmd, nowhere), EFAULT);
		FAILS(xpmem_ioctl(cmd, (void *)-8), EFAULT);
		/* only its first four bytes can be read */
		FAILS(xpmem_ioctl(cmd, two_pages + page - 4), EFAULT);
	}

	/* the ordinary way */
	memory = map_pages(2);
	memory[0] = 5;
	memset(&m, 0, sizeof(m));
	m.size = XPMEM_MAXADDR_SIZE;
	m.permit_type = XPMEM_PERMIT_MODE;
	m.permit_value = 0600;
	ZERO(xpmem_ioctl(CMD_MAKE, &m));
	segid = m.segid;
	CHECK(segid > 0, "MAKE puts the id into the structure");
	CHECK(m.vaddr == 0 && m.size == XPMEM_MAXADDR_SIZE && m.permit_value == 0600, "MAKE changes nothing else there");

	memset(&g, 0, sizeof(g));
	g.segid = segid;
	g.flags = XPMEM_RDWR;
	g.permit_type = XPMEM_PERMIT_MODE;
	ZERO(xpmem_ioctl(CMD_GET, &g));
	apid = g.apid;
	CHECK(apid > 0, "GET puts the id into the structure");

	memset(&a, 0, sizeof(a));
	a.apid = apid;
	a.offset = (off_t)(uintptr_t)memory;
	a.size = page;
	a.fd = -1;
	a.flags = 0x1234;
	ZERO(xpmem_ioctl(CMD_ATTACH, &a));
	CHECK(a.vaddr != 0 && a.vaddr % page == 0, "ATTACH puts the address into the structure");
	LOADS((long long *)(uintptr_t)a.vaddr, 5);
	STORES((long long *)(uintptr_t)a.vaddr, 6);
	CHECK(memory[0] == 6, "a store through the attachment arrives");

	d.vaddr = a.vaddr + 1;
	ZERO(xpmem_ioctl(CMD_DETACH, &d));
	CHECK(!is_mapped((void *)(uintptr_t)a.vaddr), "DETACH unmaps it");

	/* errors, one per command */
	m.permit_type = 0;
	m.segid = 99;
	FAILS(xpmem_ioctl(CMD_MAKE, &m), EINVAL);
	CHECK(m.segid == 99, "a MAKE that fails leaves the structure alone");
	g.permit_value = 0600;
	FAILS(xpmem_ioctl(CMD_GET, &g), EINVAL);
	g.permit_value = 0;
	g.flags = 3;
	FAILS(xpmem_ioctl(CMD_GET, &g), EINVAL);
	a.offset = 1;
	FAILS(xpmem_ioctl(CMD_ATTACH, &a), EINVAL);
	d.vaddr = (uint64_t)(uintptr_t)&d;
	FAILS(xpmem_ioctl(CMD_DETACH, &d), EINVAL);
	id.id = 0;
	FAILS(xpmem_ioctl(CMD_RELEASE, &id), EINVAL);
	FAILS(xpmem_ioctl(CMD_REMOVE, &id), EINVAL);

	/* a structure that can be read but not written: the operation is undone */
	read_only = map_pages(1);
	memset(&m, 0, sizeof(m));
	m.size = page;
	m.permit_type = XPMEM_PERMIT_MODE;
	memcpy(read_only, &m, sizeof(m));
	if (mprotect(read_only, page, PROT_READ) != 0)
		die("mprotect");
	FAILS(xpmem_ioctl(CMD_MAKE, read_only), EFAULT);
	if (mprotect(read_only, page, PROT_READ | PROT_WRITE) != 0)
		die("mprotect");
	memset(&a, 0, sizeof(a));
	a.apid = apid;
	a.offset = (off_t)(uintptr_t)memory;
	a.size = page;
	a.vaddr = (uint64_t)(uintptr_t)nowhere;
	memcpy(read_only, &a, sizeof(a));
	if (mprotect(read_only, page, PROT_READ) != 0)
		die("mprotect");
	FAILS(xpmem_ioctl(CMD_ATTACH, read_only), EFAULT);
	CHECK(!is_mapped(nowhere), "an ATTACH whose result cannot be stored leaves no attachment");

	id.id = apid;
	ZERO(xpmem_ioctl(CMD_RELEASE, &id));
	FAILS(xpmem_ioctl(CMD_RELEASE, &id), ENOENT);
	id.id = segid;
	ZERO(xpmem_ioctl(CMD_REMOVE, &id));
	FAILS(xpmem_ioctl(CMD_REMOVE, &id), ENOENT);
	return finish();
}
