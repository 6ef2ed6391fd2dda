/* SPDX-License-Identifier: ((GPL-2.0-only WITH Linux-syscall-note) OR MIT) */
/*
 * Interface of /dev/rmap: mappings of another process's memory that follow it.
 *
 * Opening the device gives a control descriptor. It is bound to one address
 * space, the target (RMAP_IOC_BIND), and says which ranges of it are shown at
 * which offsets (RMAP_IOC_MAP: a view). An access descriptor made from it
 * (RMAP_IOC_ACCESS) has a largest protection that is chosen then. It can be
 * mapped shared, read and written at those offsets, and passed on.
 *
 * Every request takes a pointer to a structure that starts with its size. All
 * members are 64 bits wide. Members that a kernel does not know must be zero,
 * unknown flags are refused. Requests return 0, or a descriptor where said so.
 */
#ifndef LINUX_RMAP_RMAP_H
#define LINUX_RMAP_RMAP_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define RMAP_DEVICE		"/dev/rmap"
#define RMAP_API_VERSION	1
/* statfs.f_type of access descriptors: they cannot be mistaken for others. */
#define RMAP_FS_MAGIC		0x726d6170

/* The size is in the structure, so that it can grow without a new number. */
#define RMAP_IOC_MAGIC		0xE9
#define RMAP_IOC_INFO		_IO(RMAP_IOC_MAGIC, 0)
#define RMAP_IOC_BIND		_IO(RMAP_IOC_MAGIC, 1)
#define RMAP_IOC_ACCESS		_IO(RMAP_IOC_MAGIC, 2)
#define RMAP_IOC_MAP		_IO(RMAP_IOC_MAGIC, 3)
#define RMAP_IOC_UNMAP		_IO(RMAP_IOC_MAGIC, 4)
#define RMAP_IOC_LOCK		_IO(RMAP_IOC_MAGIC, 5)
#define RMAP_IOC_REVOKE		_IO(RMAP_IOC_MAGIC, 6)

/* struct rmap_info.state */
#define RMAP_STATE_BOUND	(1ULL << 0)	/* there is a target */
#define RMAP_STATE_ALIVE	(1ULL << 1)	/* the target has not ended */
#define RMAP_STATE_LOCKED	(1ULL << 2)
#define RMAP_STATE_REVOKED	(1ULL << 3)

/**
 * struct rmap_info - what there is (RMAP_IOC_INFO fills it in)
 * @size: size of this structure; set to the size that the kernel knows
 * @version: RMAP_API_VERSION of the module
 * @state: RMAP_STATE_ bits
 * @address_end: end of the target's address space, 0 without a target
 * @batch: most bytes that one page fault makes accessible
 */
struct rmap_info {
	__u64 size;
	__u64 version;
	__u64 state;
	__u64 address_end;
	__u64 batch;
};

/* struct rmap_bind.flags: exactly one of the first three */
#define RMAP_BIND_SELF		(1ULL << 0)	/* the caller; @target is 0 */
#define RMAP_BIND_MEM		(1ULL << 1)	/* @target: open /proc/PID/mem */
#define RMAP_BIND_PID		(1ULL << 2)	/* @target: a process id */
#define RMAP_BIND_REVOKE_ON_CLOSE (1ULL << 8)	/* last close revokes */

/**
 * struct rmap_bind - choose the target, once
 * @size: size of this structure
 * @flags: RMAP_BIND_ bits
 * @target: see the flags
 *
 * RMAP_BIND_MEM proves by the open file that its opener had the right to trace
 * the process; it gives no more than the file was opened for. RMAP_BIND_PID
 * needs CAP_SYS_PTRACE. That is meant in the initial user namespace, always.
 *
 * EBADF no such descriptor or a negative one, EINVAL not /proc/PID/mem, EPERM,
 * ESRCH the process has no memory (any more), EBUSY bound already.
 */
struct rmap_bind {
	__u64 size;
	__u64 flags;
	__s64 target;
};

/* struct rmap_access.flags */
#define RMAP_ACCESS_READ	(1ULL << 0)	/* always needed */
#define RMAP_ACCESS_WRITE	(1ULL << 1)
#define RMAP_ACCESS_FORCE	(1ULL << 2)	/* with WRITE: see below */

/**
 * struct rmap_access - make an access descriptor, close-on-exec
 * @size: size of this structure
 * @flags: RMAP_ACCESS_ bits: the largest protection of its mappings
 *
 * With RMAP_ACCESS_FORCE stores also go to private memory that the target may
 * only read: as with a debugger the target gets its own copy of the page. It
 * needs CAP_SYS_PTRACE. Nothing can be mapped executable.
 *
 * Returns the descriptor. EACCES the target was bound with less, EPERM,
 * ENOTCONN no target, ENODEV revoked.
 *
 * Mapping it fails with ENODEV once it is revoked, and with ESRCH once the
 * target has ended. What is mapped already stays, and is SIGBUS.
 */
struct rmap_access {
	__u64 size;
	__u64 flags;
};

/* struct rmap_map.flags */
#define RMAP_MAP_RDONLY		(1ULL << 0)	/* no stores through this view */

/**
 * struct rmap_map - add a view: show [address, address + length) of the target
 *	at [offset, offset + length) of the access descriptors
 * @size: size of this structure
 * @flags: RMAP_MAP_ bits
 * @address: page-aligned
 * @offset: page-aligned; best congruent with @address modulo 2 MiB
 * @length: page-aligned, not 0
 *
 * Nothing need be mapped there. Views do not overlap in offsets; they may in
 * addresses.
 *
 * EINVAL, EEXIST overlaps a view, EPERM locked, ENODEV revoked, ENOTCONN no
 * target, ESRCH the target has ended.
 */
struct rmap_map {
	__u64 size;
	__u64 flags;
	__u64 address;
	__u64 offset;
	__u64 length;
};

/**
 * struct rmap_unmap - remove one view, named by exactly its range
 * @size: size of this structure
 * @flags: 0
 * @offset: as in struct rmap_map
 * @length: as in struct rmap_map
 *
 * When it returns, nobody reaches the memory through the view. Mappings stay;
 * touching them is SIGBUS until there is a view at their offset again.
 *
 * EINVAL, ENOENT no such view, EPERM locked, ENODEV revoked.
 */
struct rmap_unmap {
	__u64 size;
	__u64 flags;
	__u64 offset;
	__u64 length;
};

/**
 * struct rmap_lock - from now on views are neither added nor removed
 * @size: size of this structure
 * @flags: 0
 */
struct rmap_lock {
	__u64 size;
	__u64 flags;
};

/**
 * struct rmap_revoke - remove all views for good, locked or not
 * @size: size of this structure
 * @flags: 0
 */
struct rmap_revoke {
	__u64 size;
	__u64 flags;
};

#endif /* LINUX_RMAP_RMAP_H */
