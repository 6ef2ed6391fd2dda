// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/xpmem: XPMEM's requests, for programs that make them by themselves.
 *
 *   process   what a process has from the device, from its open to any close
 *   segment   a range of a process; a space of it once somebody attaches
 *   permit    a process's right to attach a segment
 *   attachment  one mapping, which is the only holder of a file of its own
 *
 * Objects are counted. A process has its segments and permits by number; a
 * permit has its segment; an attachment has its permit. A segment has its
 * process. What a process has is taken from it when it ends.
 *
 * Locks, outermost first: segment->lock, space->lock. xpmem_lock, the arrays'
 * locks and permit->lock are leaves.
 */
#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/file.h>
#include <linux/hashtable.h>
#include <linux/miscdevice.h>
#include <linux/mman.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/xarray.h>

#include "compat.h"
#include "internal.h"

static bool xpmem_wanted;
module_param_named(xpmem, xpmem_wanted, bool, 0444);
MODULE_PARM_DESC(xpmem, "Offer /dev/xpmem, too");

#define XPMEM_VERSION		0x00027004
#define XPMEM_CMD(nr)		_IO('x', nr)

#define XPMEM_RDONLY		1
#define XPMEM_RDWR		2
#define XPMEM_PERMIT_MODE	1
#define XPMEM_MAXADDR_SIZE	(~0ULL)

/* The caller has not opened the device. */
#define XPMEM_ERRNO_NOPROC	2004

/* Ids end where XPMEM's do. */
#define XPMEM_COUNTER_MAX	0x3fffffff

struct xpmem_make {
	u64 vaddr;
	u64 size;
	s32 permit_type;
	u32 unused;
	u64 permit_value;
	s64 segid;
};

struct xpmem_get {
	s64 segid;
	s32 flags;
	s32 permit_type;
	u64 permit_value;
	s64 apid;
};

struct xpmem_attach {
	s64 apid;
	s64 offset;
	u64 size;
	u64 vaddr;
	s32 fd;
	s32 flags;
};

struct xpmem_process {
	struct kref ref;
	struct hlist_node node;		/* while it is known */
	pid_t tgid;
	struct mm_struct *mm;		/* the struct, not the memory */
	kuid_t uid;
	kgid_t gid;
	u32 last_segment;
	u32 last_permit;
	struct xarray segments;
	struct xarray permits;
};

struct xpmem_segment {
	struct kref ref;
	struct xpmem_process *owner;
	s64 id;
	unsigned long address;
	unsigned long size;
	unsigned int mode;
	struct mutex lock;		/* @space, @removed */
	struct rmap_space *space;
	bool removed;
};

struct xpmem_permit {
	struct kref ref;
	struct xpmem_segment *segment;
	s64 id;
	pid_t tgid;			/* whose it is */
	bool writable;
	spinlock_t lock;		/* @attachments, @released */
	struct list_head attachments;
	bool released;
};

struct xpmem_attachment {
	struct rmap_file file;		/* first: what faults look at */
	struct xpmem_permit *permit;
	struct list_head node;
	unsigned long start;
	unsigned long len;
};

static DEFINE_MUTEX(xpmem_lock);	/* the table, last_segment, last_permit */
static DEFINE_HASHTABLE(xpmem_processes, 8);

/* ---- processes ---- */

static void xpmem_process_release(struct kref *ref)
{
	struct xpmem_process *process =
		container_of(ref, struct xpmem_process, ref);

	xa_destroy(&process->segments);
	xa_destroy(&process->permits);
	mmdrop(process->mm);
	kfree(process);
}

static void xpmem_process_put(struct xpmem_process *process)
{
	if (process)
		kref_put(&process->ref, xpmem_process_release);
}

static struct xpmem_process *xpmem_process_find(pid_t tgid)
{
	struct xpmem_process *process;

	lockdep_assert_held(&xpmem_lock);
	hash_for_each_possible(xpmem_processes, process, node, tgid)
		if (process->tgid == tgid)
			return process;
	return NULL;
}

static struct xpmem_process *xpmem_process_get(pid_t tgid)
{
	struct xpmem_process *process;

	mutex_lock(&xpmem_lock);
	process = xpmem_process_find(tgid);
	if (process)
		kref_get(&process->ref);
	mutex_unlock(&xpmem_lock);
	return process;
}

/* The caller, if it has opened the device since it has its memory. */
static struct xpmem_process *xpmem_process_current(void)
{
	struct xpmem_process *process = xpmem_process_get(current->tgid);

	if (process && process->mm != current->mm) {
		xpmem_process_put(process);
		process = NULL;
	}
	return process;
}

/* What is given to one that is not would never be taken away again. */
static bool xpmem_process_is_known(struct xpmem_process *process)
{
	bool known;

	mutex_lock(&xpmem_lock);
	known = !hlist_unhashed(&process->node);
	mutex_unlock(&xpmem_lock);
	return known;
}

static bool xpmem_process_lives(struct xpmem_process *process)
{
	return atomic_read(&process->mm->mm_users);
}

static pid_t xpmem_id_tgid(s64 id)
{
	return lower_32_bits(id);
}

static s64 xpmem_id(pid_t tgid, u32 counter)
{
	return (s64)((u64)counter << 32 | (u32)tgid);
}

/* Whose an id is: the caller's, another's (EACCES) or nobody's (ENOENT). */
static struct xpmem_process *xpmem_process_of_own(s64 id)
{
	struct xpmem_process *process;

	if (id <= 0)
		return ERR_PTR(-EINVAL);
	process = xpmem_process_get(xpmem_id_tgid(id));
	if (!process)
		return ERR_PTR(-ENOENT);
	if (process->tgid != current->tgid || process->mm != current->mm) {
		xpmem_process_put(process);
		return ERR_PTR(-EACCES);
	}
	return process;
}

/* ---- segments ---- */

static void xpmem_segment_release(struct kref *ref)
{
	struct xpmem_segment *segment =
		container_of(ref, struct xpmem_segment, ref);

	if (segment->space)
		rmap_space_put(segment->space);
	xpmem_process_put(segment->owner);
	kfree(segment);
}

static void xpmem_segment_put(struct xpmem_segment *segment)
{
	kref_put(&segment->ref, xpmem_segment_release);
}

/* When it returns, nobody reaches the memory. Takes the array's reference. */
static void xpmem_segment_remove(struct xpmem_segment *segment)
{
	struct rmap_space *space;

	mutex_lock(&segment->lock);
	segment->removed = true;
	space = segment->space;
	if (space) {
		mutex_lock(&space->lock);
		WRITE_ONCE(space->revoked, true);
		rmap_view_remove_all(space);
		mutex_unlock(&space->lock);
	}
	mutex_unlock(&segment->lock);
	xpmem_segment_put(segment);
}

static int xpmem_segment_show(struct xpmem_segment *segment)
{
	const struct rmap_map map = {
		.address = segment->address,
		.offset = segment->address,
		.length = segment->size,
	};
	struct rmap_space *space = rmap_space_create();
	int ret;

	if (IS_ERR(space))
		return PTR_ERR(space);
	space->mm = segment->owner->mm;
	mmgrab(space->mm);
	space->rights = FMODE_READ | FMODE_WRITE;
	mutex_lock(&space->lock);
	ret = rmap_view_add(space, &map);
	mutex_unlock(&space->lock);
	if (ret) {
		rmap_space_put(space);
		return ret == -ESRCH ? -ENOENT : ret;
	}
	segment->space = space;
	return 0;
}

/* What shows the segment, with a reference. */
static struct rmap_space *xpmem_segment_space(struct xpmem_segment *segment)
{
	struct rmap_space *space;
	int ret = 0;

	if (mutex_lock_killable(&segment->lock))
		return ERR_PTR(-EINTR);
	if (segment->removed || !xpmem_process_lives(segment->owner))
		ret = -ENOENT;
	else if (!segment->space)
		ret = xpmem_segment_show(segment);
	space = segment->space;
	if (!ret)
		rmap_space_get(space);
	mutex_unlock(&segment->lock);
	return ret ? ERR_PTR(ret) : space;
}

static struct xpmem_segment *xpmem_segment_get(s64 id)
{
	struct xpmem_process *owner = xpmem_process_get(xpmem_id_tgid(id));
	struct xpmem_segment *segment = NULL;

	if (owner && xpmem_process_lives(owner)) {
		xa_lock(&owner->segments);
		segment = xa_load(&owner->segments, upper_32_bits(id));
		if (segment)
			kref_get(&segment->ref);
		xa_unlock(&owner->segments);
	}
	xpmem_process_put(owner);
	return segment;
}

/*
 * As with System V IPC: of the three classes only the first that fits counts.
 */
static bool xpmem_segment_allows(struct xpmem_segment *segment, bool write)
{
	unsigned int wanted = write ? 06 : 04, mode = segment->mode;

	if (uid_eq(current_euid(), segment->owner->uid))
		mode >>= 6;
	else if (in_egroup_p(segment->owner->gid))
		mode >>= 3;
	return (mode & wanted) == wanted || capable(CAP_IPC_OWNER);
}

/* ---- permits and attachments ---- */

static void xpmem_permit_release(struct kref *ref)
{
	struct xpmem_permit *permit =
		container_of(ref, struct xpmem_permit, ref);

	xpmem_segment_put(permit->segment);
	kfree(permit);
}

static void xpmem_permit_put(struct xpmem_permit *permit)
{
	kref_put(&permit->ref, xpmem_permit_release);
}

static int xpmem_attachment_release(struct inode *inode, struct file *file)
{
	struct xpmem_attachment *attachment = file->private_data;
	struct xpmem_permit *permit = attachment->permit;

	spin_lock(&permit->lock);
	list_del(&attachment->node);
	spin_unlock(&permit->lock);
	rmap_space_put(attachment->file.space);
	xpmem_permit_put(permit);
	kfree(attachment);
	return 0;
}

/* No descriptor has such a file: it is the mapping's alone. */
static const struct file_operations xpmem_attachment_fops = {
	.owner = THIS_MODULE,
	.mmap = rmap_access_mmap,
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
	.get_unmapped_area = rmap_access_get_unmapped_area,
#endif
	.release = xpmem_attachment_release,
};

/* Under the mmap_lock. */
static struct xpmem_attachment *xpmem_attachment_of(struct vm_area_struct *vma)
{
	if (!vma->vm_file || vma->vm_file->f_op != &xpmem_attachment_fops)
		return NULL;
	return vma->vm_file->private_data;
}

/*
 * Unmaps what there is of an attachment in a range of the caller. It may be
 * in parts, and something else may be in between. @attachment may be gone: it
 * is only compared.
 */
static int xpmem_attachment_unmap(struct xpmem_attachment *attachment,
				  unsigned long start, unsigned long end)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;
	unsigned long from = 0;
	int ret;

	while (start < end) {
		if (mmap_read_lock_killable(mm))
			return -EINTR;
		vma = find_vma(mm, start);
		if (!vma || vma->vm_start >= end) {
			mmap_read_unlock(mm);
			break;
		}
		from = max(vma->vm_start, start);
		start = min(vma->vm_end, end);
		if (xpmem_attachment_of(vma) != attachment)
			from = start;
		mmap_read_unlock(mm);
		if (from < start) {
			ret = vm_munmap(from, start - from);
			if (ret)
				return ret;
		}
	}
	return 0;
}

/* Takes the array's reference. The attachments go if they are the caller's. */
static int xpmem_permit_end(struct xpmem_permit *permit)
{
	struct xpmem_attachment *attachment;
	unsigned long start, len;
	int ret = 0;

	spin_lock(&permit->lock);
	permit->released = true;
	while (!ret && current->mm && permit->tgid == current->tgid &&
	       !list_empty(&permit->attachments)) {
		attachment = list_first_entry(&permit->attachments,
					      struct xpmem_attachment, node);
		list_del_init(&attachment->node);
		start = attachment->start;
		len = attachment->len;
		spin_unlock(&permit->lock);
		ret = xpmem_attachment_unmap(attachment, start, start + len);
		spin_lock(&permit->lock);
	}
	spin_unlock(&permit->lock);
	xpmem_permit_put(permit);
	return ret;
}

static struct xpmem_permit *xpmem_permit_get(s64 id)
{
	struct xpmem_process *process = xpmem_process_get(xpmem_id_tgid(id));
	struct xpmem_permit *permit = NULL;

	if (process) {
		xa_lock(&process->permits);
		permit = xa_load(&process->permits, upper_32_bits(id));
		if (permit)
			kref_get(&permit->ref);
		xa_unlock(&process->permits);
	}
	xpmem_process_put(process);
	return permit;
}

/* Is there an attachment in a range of the caller? */
static bool xpmem_range_is_taken(unsigned long start, unsigned long end)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;
	bool taken = false;

	mmap_read_lock(mm);
	for (vma = find_vma(mm, start); vma && vma->vm_start < end && !taken;
	     vma = find_vma(mm, vma->vm_end))
		taken = xpmem_attachment_of(vma);
	mmap_read_unlock(mm);
	return taken;
}

/* Returns the address. */
static long xpmem_permit_map(struct xpmem_permit *permit, unsigned long target,
			     unsigned long size, unsigned long vaddr)
{
	unsigned long prot = PROT_READ | (permit->writable ? PROT_WRITE : 0);
	struct xpmem_attachment *attachment;
	struct rmap_space *space;
	struct file *file;
	long address;

	space = xpmem_segment_space(permit->segment);
	if (IS_ERR(space))
		return PTR_ERR(space);
	attachment = kzalloc(sizeof(*attachment), GFP_KERNEL_ACCOUNT);
	if (!attachment) {
		rmap_space_put(space);
		return -ENOMEM;
	}
	attachment->file.space = space;
	INIT_LIST_HEAD(&attachment->node);
	file = rmap_space_file(space, "[xpmem]",
			       (permit->writable ? O_RDWR : O_RDONLY) |
				       O_LARGEFILE,
			       &xpmem_attachment_fops);
	if (IS_ERR(file)) {
		rmap_space_put(space);
		kfree(attachment);
		return PTR_ERR(file);
	}
	/* From here its release puts everything. */
	kref_get(&permit->ref);
	attachment->permit = permit;
	file->private_data = attachment;

	address = vm_mmap(file, vaddr, size, prot,
			  MAP_SHARED | (vaddr ? MAP_FIXED : 0), target);
	if (!IS_ERR_VALUE(address)) {
		attachment->start = address;
		attachment->len = size;
		spin_lock(&permit->lock);
		if (!permit->released)
			list_add(&attachment->node, &permit->attachments);
		spin_unlock(&permit->lock);
		if (list_empty(&attachment->node)) {
			xpmem_attachment_unmap(attachment, address,
					       address + size);
			address = -ENOENT;
		}
	} else if (address == -ENODEV || address == -ESRCH) {
		/* The segment has gone meanwhile, or its process. */
		address = -ENOENT;
	}
	fput(file);
	return address;
}

/* ---- requests ---- */

static long xpmem_remove(s64 segid)
{
	struct xpmem_process *process = xpmem_process_of_own(segid);
	struct xpmem_segment *segment;

	if (IS_ERR(process))
		return PTR_ERR(process);
	segment = xa_erase(&process->segments, upper_32_bits(segid));
	if (segment)
		xpmem_segment_remove(segment);
	xpmem_process_put(process);
	return segment ? 0 : -ENOENT;
}

/* The next number of a kind, or 0. */
static u32 xpmem_next(u32 *last)
{
	u32 next = 0;

	mutex_lock(&xpmem_lock);
	if (*last < XPMEM_COUNTER_MAX)
		next = ++*last;
	mutex_unlock(&xpmem_lock);
	return next;
}

static long xpmem_make(struct xpmem_process *process,
		       const struct xpmem_make *make, u64 size)
{
	struct xpmem_segment *segment;
	u32 counter = xpmem_next(&process->last_segment);
	s64 id = xpmem_id(process->tgid, counter);
	int ret;

	if (!counter)
		return -EBUSY;
	segment = kzalloc(sizeof(*segment), GFP_KERNEL_ACCOUNT);
	if (!segment)
		return -ENOMEM;
	kref_init(&segment->ref);
	mutex_init(&segment->lock);
	kref_get(&process->ref);
	segment->owner = process;
	segment->id = id;
	segment->address = make->vaddr;
	segment->size = size;
	segment->mode = make->permit_value;
	ret = xa_err(xa_store(&process->segments, counter, segment,
			      GFP_KERNEL_ACCOUNT));
	if (ret) {
		xpmem_segment_put(segment);
		return ret;
	}
	/* Another thread has closed the device. */
	if (!xpmem_process_is_known(process)) {
		if (xa_erase(&process->segments, counter))
			xpmem_segment_remove(segment);
		return -XPMEM_ERRNO_NOPROC;
	}
	return id;
}

static long xpmem_ioctl_make(void __user *user)
{
	struct xpmem_process *process;
	struct xpmem_make make;
	u64 size, end;
	long id = -EINVAL;

	if (copy_from_user(&make, user, sizeof(make)))
		return -EFAULT;
	if (make.permit_type != XPMEM_PERMIT_MODE ||
	    make.permit_value & ~0777ULL || !make.size)
		return -EINVAL;
	process = xpmem_process_current();
	if (!process)
		return -XPMEM_ERRNO_NOPROC;
	end = process->mm->task_size;
	size = make.size;
	if (size == XPMEM_MAXADDR_SIZE && !make.vaddr)
		size = end;
	if (size <= end && make.vaddr <= end - size &&
	    !((make.vaddr | size) & ~PAGE_MASK))
		id = xpmem_make(process, &make, size);
	xpmem_process_put(process);
	if (id < 0)
		return id;
	make.segid = id;
	if (copy_to_user(user, &make, sizeof(make))) {
		xpmem_remove(id);
		return -EFAULT;
	}
	return 0;
}

static long xpmem_release(s64 apid)
{
	struct xpmem_process *process = xpmem_process_of_own(apid);
	struct xpmem_permit *permit;
	long ret = -ENOENT;

	if (IS_ERR(process))
		return PTR_ERR(process);
	permit = xa_erase(&process->permits, upper_32_bits(apid));
	if (permit)
		ret = xpmem_permit_end(permit);
	xpmem_process_put(process);
	return ret;
}

/* Takes the reference to the segment. Returns the permit's id. */
static long xpmem_get(struct xpmem_process *process,
		      struct xpmem_segment *segment, bool writable)
{
	u32 counter = xpmem_next(&process->last_permit);
	struct xpmem_permit *permit;
	int ret = -ENOMEM;

	permit = kzalloc(sizeof(*permit), GFP_KERNEL_ACCOUNT);
	if (!permit || !counter) {
		kfree(permit);
		xpmem_segment_put(segment);
		return counter ? -ENOMEM : -EBUSY;
	}
	kref_init(&permit->ref);
	spin_lock_init(&permit->lock);
	INIT_LIST_HEAD(&permit->attachments);
	permit->segment = segment;
	permit->id = xpmem_id(process->tgid, counter);
	permit->tgid = process->tgid;
	permit->writable = writable;
	ret = xa_err(xa_store(&process->permits, counter, permit,
			      GFP_KERNEL_ACCOUNT));
	if (ret) {
		xpmem_permit_put(permit);
		return ret;
	}
	if (!xpmem_process_is_known(process)) {
		if (xa_erase(&process->permits, counter))
			xpmem_permit_end(permit);
		return -XPMEM_ERRNO_NOPROC;
	}
	return xpmem_id(process->tgid, counter);
}

static long xpmem_ioctl_get(void __user *user)
{
	struct xpmem_process *process;
	struct xpmem_segment *segment;
	struct xpmem_get get;
	bool write;
	long id;

	if (copy_from_user(&get, user, sizeof(get)))
		return -EFAULT;
	if (get.segid <= 0 || get.flags < 0 || get.flags > XPMEM_RDWR ||
	    get.permit_type != XPMEM_PERMIT_MODE || get.permit_value)
		return -EINVAL;
	write = get.flags == XPMEM_RDWR;
	segment = xpmem_segment_get(get.segid);
	if (!segment)
		return -ENOENT;
	if (!xpmem_segment_allows(segment, write)) {
		xpmem_segment_put(segment);
		return -EACCES;
	}
	process = xpmem_process_current();
	if (!process) {
		xpmem_segment_put(segment);
		return -XPMEM_ERRNO_NOPROC;
	}
	id = xpmem_get(process, segment, write);
	xpmem_process_put(process);
	if (id < 0)
		return id;
	get.apid = id;
	if (copy_to_user(user, &get, sizeof(get))) {
		xpmem_release(id);
		return -EFAULT;
	}
	return 0;
}

static long xpmem_attach(struct xpmem_permit *permit,
			 const struct xpmem_attach *attach, u64 size)
{
	struct xpmem_segment *segment = permit->segment;
	unsigned long target;

	if (READ_ONCE(segment->removed) ||
	    !xpmem_process_lives(segment->owner))
		return -ENOENT;
	if (permit->tgid != current->tgid)
		return -EACCES;
	if (attach->offset < 0 || !size || size > segment->size ||
	    attach->offset > segment->size - size)
		return -EINVAL;
	target = segment->address + attach->offset;
	if (attach->vaddr) {
		unsigned long end = attach->vaddr + size;

		if (end < attach->vaddr)
			return -EINVAL;
		if (segment->owner->mm == current->mm &&
		    attach->vaddr < target + size && target < end)
			return -EINVAL;
		if (xpmem_range_is_taken(attach->vaddr, end))
			return -EINVAL;
	}
	return xpmem_permit_map(permit, target, size, attach->vaddr);
}

static long xpmem_detach(unsigned long vaddr)
{
	struct mm_struct *mm = current->mm;
	unsigned long start, end, outer_start, outer_end;
	struct xpmem_attachment *attachment;
	struct vm_area_struct *vma;
	int ret = 0;

	if (mmap_read_lock_killable(mm))
		return -EINTR;
	vma = find_vma(mm, vaddr);
	if (!vma || vma->vm_start > vaddr)
		goto unlock;
	attachment = xpmem_attachment_of(vma);
	ret = -EINVAL;
	if (!attachment)
		goto unlock;
	ret = -EACCES;
	if (attachment->permit->tgid != current->tgid)
		goto unlock;
	/* Where it was made, and this part if it has been moved. */
	start = attachment->start;
	end = start + attachment->len;
	outer_start = vma->vm_start;
	outer_end = vma->vm_end;
	mmap_read_unlock(mm);
	ret = xpmem_attachment_unmap(attachment, outer_start, outer_end);
	return ret ? ret : xpmem_attachment_unmap(attachment, start, end);
unlock:
	mmap_read_unlock(mm);
	return ret;
}

static long xpmem_ioctl_attach(void __user *user)
{
	struct xpmem_permit *permit;
	struct xpmem_attach attach;
	long address;

	if (copy_from_user(&attach, user, sizeof(attach)))
		return -EFAULT;
	if (attach.apid <= 0)
		return -EINVAL;
	if (attach.vaddr && (PAGE_ALIGN(attach.vaddr) >= current->mm->task_size ||
			     PAGE_ALIGN(attach.vaddr) < attach.vaddr))
		return -EINVAL;
	if ((attach.vaddr | attach.offset) & ~PAGE_MASK)
		return -EINVAL;
	permit = xpmem_permit_get(attach.apid);
	if (!permit)
		return -ENOENT;
	address = xpmem_attach(permit, &attach, PAGE_ALIGN(attach.size));
	xpmem_permit_put(permit);
	if (IS_ERR_VALUE(address))
		return address;
	attach.vaddr = address;
	if (copy_to_user(user, &attach, sizeof(attach))) {
		xpmem_detach(address);
		return -EFAULT;
	}
	return 0;
}

static long xpmem_ioctl(struct file *file, unsigned int command,
			unsigned long arg)
{
	void __user *user = (void __user *)arg;
	struct xpmem_process *process;
	s64 number;

	switch (command) {
	case XPMEM_CMD(0):
		return XPMEM_VERSION;
	case XPMEM_CMD(1):
		return xpmem_ioctl_make(user);
	case XPMEM_CMD(3):
		return xpmem_ioctl_get(user);
	case XPMEM_CMD(5):
		return xpmem_ioctl_attach(user);
	case XPMEM_CMD(2):
	case XPMEM_CMD(4):
	case XPMEM_CMD(6):
		if (copy_from_user(&number, user, sizeof(number)))
			return -EFAULT;
		if (command == XPMEM_CMD(2))
			return xpmem_remove(number);
		if (command == XPMEM_CMD(4))
			return xpmem_release(number);
		return xpmem_detach(number);
	case XPMEM_CMD(7):
	case XPMEM_CMD(8):
		/* Forks are followed without being told. */
		process = xpmem_process_current();
		if (!process)
			return -ENOENT;
		xpmem_process_put(process);
		return 0;
	default:
		return -ENOTTY;
	}
}

/* ---- the device ---- */

/* Takes everything from a process that nobody finds any more. */
static void xpmem_process_end(struct xpmem_process *process)
{
	struct xpmem_segment *segment;
	struct xpmem_permit *permit;
	unsigned long index;

	xa_for_each(&process->permits, index, permit)
		if (xa_erase(&process->permits, index))
			xpmem_permit_end(permit);
	xa_for_each(&process->segments, index, segment)
		if (xa_erase(&process->segments, index))
			xpmem_segment_remove(segment);
	xpmem_process_put(process);
}

static int xpmem_open(struct inode *inode, struct file *file)
{
	struct xpmem_process *process, *old;

	process = kzalloc(sizeof(*process), GFP_KERNEL_ACCOUNT);
	if (!process)
		return -ENOMEM;
	kref_init(&process->ref);
	process->tgid = current->tgid;
	process->mm = current->mm;
	mmgrab(process->mm);
	current_uid_gid(&process->uid, &process->gid);
	xa_init(&process->segments);
	xa_init(&process->permits);

	mutex_lock(&xpmem_lock);
	old = xpmem_process_find(current->tgid);
	if (old && old->mm == current->mm) {
		/* It is the process that counts, not the descriptor. */
		mutex_unlock(&xpmem_lock);
		xpmem_process_put(process);
		return 0;
	}
	if (old)
		hash_del(&old->node);
	hash_add(xpmem_processes, &process->node, process->tgid);
	mutex_unlock(&xpmem_lock);
	/* From before an exec that has kept the descriptor. */
	if (old)
		xpmem_process_end(old);
	return 0;
}

/* Any close by a process takes all that it has, its end included. */
static int xpmem_flush(struct file *file, fl_owner_t owner)
{
	struct xpmem_process *process;

	mutex_lock(&xpmem_lock);
	process = xpmem_process_find(current->tgid);
	if (process)
		hash_del(&process->node);
	mutex_unlock(&xpmem_lock);
	if (process)
		xpmem_process_end(process);
	return 0;
}

static vm_fault_t xpmem_device_fault(struct vm_fault *vmf)
{
	return VM_FAULT_SIGBUS;
}

static const struct vm_operations_struct xpmem_device_vm_ops = {
	.fault = xpmem_device_fault,
};

static int xpmem_device_mmap(struct file *file, struct vm_area_struct *vma)
{
	vma->vm_ops = &xpmem_device_vm_ops;
	return 0;
}

static const struct file_operations xpmem_fops = {
	.owner = THIS_MODULE,
	.open = xpmem_open,
	.flush = xpmem_flush,
	.unlocked_ioctl = xpmem_ioctl,
	.mmap = xpmem_device_mmap,
	.llseek = noop_llseek,
};

static struct miscdevice xpmem_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "xpmem",
	.mode = 0666,
	.fops = &xpmem_fops,
};

int rmap_xpmem_init(void)
{
	return xpmem_wanted ? misc_register(&xpmem_device) : 0;
}

void rmap_xpmem_exit(void)
{
	if (xpmem_wanted)
		misc_deregister(&xpmem_device);
}
