/*
 * xpmem.h: map memory of another process and use it with loads and stores.
 *
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * This is the C interface of libxpmem.so.0 as provided by rmap. It is source and binary compatible with
 * XPMEM 2.7: the same types, constants, functions and symbol names. No kernel module is needed.
 *
 * Three objects:
 *
 *   segment     a range of the calling process's addresses that others may map   (xpmem_segid_t)
 *   permit      the right to map a segment of some process                       (xpmem_apid_t)
 *   attachment  one mapping of a part of a segment, made with a permit           (an address)
 *
 * One process makes a segment and tells its id to another one by any means. The other one gets a permit for it
 * and attaches a part of it:
 *
 *   exporter:  xpmem_segid_t segid = xpmem_make(0, XPMEM_MAXADDR_SIZE, XPMEM_PERMIT_MODE, (void *)0600);
 *
 *   importer:  xpmem_apid_t apid = xpmem_get(segid, XPMEM_RDWR, XPMEM_PERMIT_MODE, NULL);
 *              struct xpmem_addr addr = { apid, offset };
 *              void *p = xpmem_attach(addr, length, NULL);
 *
 * Every function that fails returns -1 (xpmem_attach: (void *)-1) and sets errno. A function that succeeds
 * leaves errno alone. All functions may be called from any thread. Details: xpmem(7).
 */
#ifndef XPMEM_H
#define XPMEM_H

#include <linux/types.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Names a segment. Greater than 0; an id is not used twice. */
typedef __s64 xpmem_segid_t;

/* Names a permit. Greater than 0; valid only in the process that got it. */
typedef __s64 xpmem_apid_t;

/* A place in a segment: `offset` bytes after its start, through the permit `apid`. Passed by value. */
struct xpmem_addr {
	xpmem_apid_t apid;
	off_t offset;
};

/* As the size of a segment that starts at address 0: the whole address space, now and later. */
#define XPMEM_MAXADDR_SIZE ((size_t)(-1L))

/* The kernel module's word for "this process has no XPMEM state". The library never lets it out. */
#define XPMEM_ERRNO_NOPROC 2004

/* Flags of xpmem_get(). */
#define XPMEM_RDONLY 0x1 /* attachments are readable */
#define XPMEM_RDWR   0x2 /* attachments are readable and writable */

/* Permit types: how it is decided who may get a segment. There is one. */
enum {
	XPMEM_PERMIT_MODE = 0x1 /* by owner, group and others, like the mode of a file */
};

/*
 * Returns the version of the interface, 0x00027004 for 2.7.4: major number in bits 16 and up.
 *
 * Fails with ENOENT if this process cannot export memory. Then nothing else works either.
 */
int xpmem_version(void);

/*
 * Makes [vaddr, vaddr + size) of the calling process a segment and returns its id.
 *
 * `vaddr` and `size` are multiples of the page size, or 0 and XPMEM_MAXADDR_SIZE for the whole address space.
 * Nothing needs to be mapped there yet, and no memory is touched. Segments may overlap.
 * `permit_type` is XPMEM_PERMIT_MODE, `permit_value` a mode in the form (void *)0600.
 *
 * Errors: EINVAL an argument is out of range or not page-aligned; ENOENT this process cannot export memory;
 * EBUSY no ids left; ENOMEM.
 */
xpmem_segid_t xpmem_make(void *vaddr, size_t size, int permit_type, void *permit_value);

/*
 * Removes a segment of the calling process. When it returns, no attachment of it shows memory any more:
 * a later access gets SIGBUS.
 *
 * Errors: EINVAL segid <= 0; EACCES the segment belongs to another process; ENOENT there is no such segment.
 */
int xpmem_remove(xpmem_segid_t segid);

/*
 * Asks for a permit for a segment and returns its id. Each call returns a new one.
 *
 * `flags` is XPMEM_RDWR or XPMEM_RDONLY. `permit_type` is XPMEM_PERMIT_MODE. `permit_value` is ignored.
 *
 * Errors: EINVAL an argument is out of range; ENOENT there is no such segment, or its process has ended;
 * EACCES the mode of the segment does not allow it; EBUSY no ids left; ENOMEM; ETIMEDOUT its process did not answer
 * within RMAP_PEER_TIMEOUT seconds, if that is set.
 */
xpmem_apid_t xpmem_get(xpmem_segid_t segid, int flags, int permit_type, void *permit_value);

/*
 * Gives a permit back. Attachments made with it are unmapped.
 *
 * Errors: EINVAL apid <= 0; EACCES the permit belongs to another process; ENOENT there is no such permit.
 */
int xpmem_release(xpmem_apid_t apid);

/*
 * Maps `size` bytes of a segment from `addr.offset` on and returns the address of the first one.
 *
 * `addr.offset` is a multiple of the page size; `size` is rounded up to one. With `vaddr` NULL the system
 * chooses the address. Another `vaddr` is a multiple of the page size and is where the attachment goes, in place
 * of what is mapped there. The exporter need not have anything mapped in the range: only an access to an address
 * where it has nothing at that moment gets SIGBUS. The first access to a page must be a load or store: a system
 * call gets EFAULT.
 *
 * Errors: EINVAL an argument is out of range, not page-aligned, outside the segment, or `vaddr` collides with an
 * attachment or with the segment itself; ENOENT there is no such permit, the segment was removed, or its process
 * has ended; EACCES the permit belongs to another process; ENOMEM; EPERM `vaddr` is below the lowest address that
 * may be mapped.
 */
void *xpmem_attach(struct xpmem_addr addr, size_t size, void *vaddr);

/*
 * Unmaps the whole attachment that contains the address `vaddr`. An address where nothing is mapped is no error.
 *
 * Errors: EINVAL what is mapped there is not an attachment.
 */
int xpmem_detach(void *vaddr);

#ifdef __cplusplus
}
#endif

#endif /* XPMEM_H */
