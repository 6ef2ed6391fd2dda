/*
 * XPMEM's library as it is where its kernel module is: each call is one
 * request of /dev/xpmem. Programs linked to this use whatever is behind the
 * device, and nothing of this project's library.
 *
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <xpmem.h>

enum { NOPROC = XPMEM_ERRNO_NOPROC };

static int device = -1;

int xpmem_init(void)
{
	if (device < 0)
		device = open("/dev/xpmem", O_RDWR | O_CLOEXEC);
	return device < 0 ? -1 : 0;
}

static int request(int number, void *argument)
{
	return xpmem_init() ? -1 : ioctl(device, 0x7800 + number, argument);
}

/* A child that was forked is not known to the device before it has opened it. */
static int request_anew(int number, void *argument)
{
	int before = errno, result = request(number, argument);

	if (result == -1 && errno == NOPROC) {
		device = -1;
		errno = before;
		result = request(number, argument);
	}
	return result;
}

int xpmem_ioctl(int command, void *argument)
{
	return request_anew(command - 0x7800, argument);
}

int xpmem_version(void)
{
	return request(0, NULL);
}

xpmem_segid_t xpmem_make(void *vaddr, size_t size, int permit_type, void *permit_value)
{
	struct {
		uint64_t vaddr;
		size_t size;
		int permit_type;
		uint64_t permit_value;
		int64_t segid;
	} make = { (uintptr_t)vaddr, size, permit_type, (uintptr_t)permit_value, 0 };

	return request_anew(1, &make) ? -1 : make.segid;
}

int xpmem_remove(xpmem_segid_t segid)
{
	return request(2, &segid);
}

xpmem_apid_t xpmem_get(xpmem_segid_t segid, int flags, int permit_type, void *permit_value)
{
	struct {
		int64_t segid;
		int flags;
		int permit_type;
		uint64_t permit_value;
		int64_t apid;
	} get = { segid, flags, permit_type, 0, 0 };

	(void)permit_value;
	return request_anew(3, &get) ? -1 : get.apid;
}

int xpmem_release(xpmem_apid_t apid)
{
	return request(4, &apid);
}

void *xpmem_attach(struct xpmem_addr addr, size_t size, void *vaddr)
{
	struct {
		int64_t apid;
		int64_t offset;
		size_t size;
		uint64_t vaddr;
		int fd;
		int flags;
	} attach = { addr.apid, addr.offset, size, (uintptr_t)vaddr, device, 0 };

	return request(5, &attach) ? (void *)-1 : (void *)(uintptr_t)attach.vaddr;
}

int xpmem_detach(void *vaddr)
{
	uint64_t address = (uintptr_t)vaddr;

	return request(6, &address);
}
