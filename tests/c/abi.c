/*
 * abi.c: what a compiler sees of xpmem.h. Everything is checked at compile time, in C99 and without extensions.
 *
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 */
#include <xpmem.h>
#include <xpmem.h> /* twice does no harm */

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define ASSERT(name, condition) typedef char assert_##name[(condition) ? 1 : -1]

ASSERT(segid_is_64_bits, sizeof(xpmem_segid_t) == 8);
ASSERT(segid_is_signed, (xpmem_segid_t)-1 < 0);
ASSERT(apid_is_64_bits, sizeof(xpmem_apid_t) == 8);
ASSERT(apid_is_signed, (xpmem_apid_t)-1 < 0);
ASSERT(off_t_is_64_bits, sizeof(off_t) == 8);
ASSERT(addr_size, sizeof(struct xpmem_addr) == 16);
ASSERT(addr_apid, offsetof(struct xpmem_addr, apid) == 0);
ASSERT(addr_offset, offsetof(struct xpmem_addr, offset) == 8);
struct alignment {
	char c;
	struct xpmem_addr addr;
};
ASSERT(addr_alignment, offsetof(struct alignment, addr) == 8);

ASSERT(maxaddr, XPMEM_MAXADDR_SIZE == SIZE_MAX);
ASSERT(maxaddr_type, sizeof(XPMEM_MAXADDR_SIZE) == sizeof(size_t));
ASSERT(rdonly, XPMEM_RDONLY == 1);
ASSERT(rdwr, XPMEM_RDWR == 2);
ASSERT(permit_mode, XPMEM_PERMIT_MODE == 1);
ASSERT(noproc, XPMEM_ERRNO_NOPROC == 2004);

#if !defined(XPMEM_H) || !defined(XPMEM_MAXADDR_SIZE) || !defined(XPMEM_ERRNO_NOPROC) || !defined(XPMEM_RDONLY) ||       \
	!defined(XPMEM_RDWR)
#error "a macro of xpmem.h is missing"
#endif
#ifdef XPMEM_PERMIT_MODE
#error "XPMEM_PERMIT_MODE is an enumeration constant, not a macro"
#endif

/* The constants work in the preprocessor and in initialisers of static data. */
#if XPMEM_RDONLY != 1 || XPMEM_RDWR != 2 || XPMEM_ERRNO_NOPROC != 2004
#error "a constant of xpmem.h is wrong"
#endif
static const size_t everything = XPMEM_MAXADDR_SIZE;

/* The prototypes: a difference is an error here. */
static int (*volatile version)(void) = xpmem_version;
static xpmem_segid_t (*volatile make)(void *, size_t, int, void *) = xpmem_make;
static int (*volatile remove_)(xpmem_segid_t) = xpmem_remove;
static xpmem_apid_t (*volatile get)(xpmem_segid_t, int, int, void *) = xpmem_get;
static int (*volatile release)(xpmem_apid_t) = xpmem_release;
static void *(*volatile attach)(struct xpmem_addr, size_t, void *) = xpmem_attach;
static int (*volatile detach)(void *) = xpmem_detach;

int main(void)
{
	struct xpmem_addr addr = { 1, 2 };

	if (version && make && remove_ && get && release && attach && detach && everything && addr.apid == 1 &&
	    addr.offset == 2)
		puts("ok 1 - xpmem.h has the types, constants and functions of XPMEM 2.7");
	else
		puts("not ok 1 - xpmem.h");
	puts("1..1");
	return 0;
}
