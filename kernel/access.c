// SPDX-License-Identifier: GPL-2.0-only
/*
 * Access descriptors: mapping, reading and writing what a space shows.
 */
#include <linux/capability.h>
#include <linux/file.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uio.h>

#include "compat.h"
#include "internal.h"

/*
 * Before an importer's first mirror. The first notifier of an address space
 * takes the locks of all its mappings, in the order of their addresses, and
 * keeps them until it has the last. With a mirror among them it could wait for
 * the lock of a file, or of anonymous memory, that an invalidation of the
 * target holds while it waits to zap the mirror. So the first one comes while
 * there is no mirror, and those that are like ours take no locks from then on.
 *
 * It does not help against notifiers of the old kind, which take all locks
 * every time, as KVM does for a new machine.
 */
static int rmap_importer_register(struct mm_struct *mm)
{
	int ret;

	if (mm_has_notifiers(mm))
		return 0;
	ret = __mmu_notifier_register(NULL, mm);
	/* It gives up for any signal: start again. */
	return ret == -EINTR ? -ERESTARTNOINTR : ret;
}

int rmap_access_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct rmap_file *access = file->private_data;
	int ret;

	/* Not VM_SHARED: a descriptor for reading only has lost that. */
	if (!(vma->vm_flags & VM_MAYSHARE))
		return -EINVAL;
	if (READ_ONCE(access->space->revoked))
		return -ENODEV;
	if (!atomic_read(&access->space->mm->mm_users))
		return -ESRCH;
	ret = rmap_importer_register(vma->vm_mm);
	if (ret)
		return ret;
	/*
	 * VM_PFNMAP: the pages are the target's, whoever maps them here does
	 * not count them, and nobody pins them by way of the mirror.
	 * VM_IO: MADV_DOFORK is refused. A child that had the mirror would have
	 * it before its first notifier.
	 */
	rmap_vm_flags_set(vma, VM_PFNMAP | VM_IO | VM_DONTCOPY | VM_DONTDUMP |
			       VM_DONTEXPAND);
	vma->vm_ops = &rmap_vm_ops;
	return 0;
}

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
/* A place that agrees with the target's address modulo 2 MiB. */
unsigned long rmap_access_get_unmapped_area(struct file *file,
					    unsigned long address,
					    unsigned long len,
					    unsigned long pgoff,
					    unsigned long flags)
{
	struct rmap_file *access = file->private_data;
	struct rmap_view *view = rmap_view_get(access->space, pgoff);

	if (view) {
		pgoff = rmap_view_address(view, pgoff) >> PAGE_SHIFT;
		rmap_view_put(view);
	}
	return thp_get_unmapped_area(file, address, len, pgoff, flags);
}
#endif

/* Copies what lies in one page, through @bounce. Returns 0 or an errno. */
static int rmap_access_copy(struct rmap_file *access, loff_t pos, void *bounce,
			    size_t len, bool write)
{
	struct rmap_space *space = access->space;
	unsigned int gup_flags = 0;
	struct rmap_view *view;
	int ret = -EIO;

	view = rmap_view_get(space, pos >> PAGE_SHIFT);
	if (!view)
		return -EIO;
	if (write) {
		if (view->rdonly)
			goto put_view;
		gup_flags = FOLL_WRITE | (access->force ? FOLL_FORCE : 0);
	}
	ret = rmap_target_copy(space->mm,
			       rmap_view_address(view, pos >> PAGE_SHIFT) +
				       offset_in_page(pos),
			       bounce, len, gup_flags, NULL);
	/* EFAULT would be about the caller's memory. */
	if (ret && ret != -EINTR && ret != -ENOMEM)
		ret = -EIO;
put_view:
	rmap_view_put(view);
	return ret;
}

static ssize_t rmap_access_iter(struct kiocb *iocb, struct iov_iter *iter,
				bool write)
{
	struct rmap_file *access = iocb->ki_filp->private_data;
	ssize_t done = 0;
	void *bounce;
	int ret = 0;

	if (!iov_iter_count(iter))
		return 0;
	bounce = (void *)__get_free_page(GFP_KERNEL);
	if (!bounce)
		return -ENOMEM;
	while (iov_iter_count(iter)) {
		size_t len = min(iov_iter_count(iter),
				 PAGE_SIZE - offset_in_page(iocb->ki_pos));
		size_t copied;

		if (write) {
			copied = copy_from_iter(bounce, len, iter);
			ret = copied ? rmap_access_copy(access, iocb->ki_pos,
							bounce, copied, true) :
				       -EFAULT;
			if (ret)
				break;
		} else {
			ret = rmap_access_copy(access, iocb->ki_pos, bounce,
					       len, false);
			if (ret)
				break;
			copied = copy_to_iter(bounce, len, iter);
			if (!copied)
				ret = -EFAULT;
		}
		iocb->ki_pos += copied;
		done += copied;
		if (copied < len)
			break;
		if (fatal_signal_pending(current)) {
			ret = -EINTR;
			break;
		}
		cond_resched();
	}
	free_page((unsigned long)bounce);
	return done ? done : ret;
}

static ssize_t rmap_access_read_iter(struct kiocb *iocb, struct iov_iter *iter)
{
	return rmap_access_iter(iocb, iter, false);
}

static ssize_t rmap_access_write_iter(struct kiocb *iocb, struct iov_iter *iter)
{
	return rmap_access_iter(iocb, iter, true);
}

static int rmap_access_release(struct inode *inode, struct file *file)
{
	struct rmap_file *access = file->private_data;

	rmap_space_put(access->space);
	kfree(access);
	return 0;
}

static const struct file_operations rmap_access_fops = {
	.owner = THIS_MODULE,
	.mmap = rmap_access_mmap,
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
	.get_unmapped_area = rmap_access_get_unmapped_area,
#endif
	.read_iter = rmap_access_read_iter,
	.write_iter = rmap_access_write_iter,
	.llseek = no_seek_end_llseek,
	.release = rmap_access_release,
};

/* Called with the space locked. Returns a new descriptor. */
int rmap_access_open(struct rmap_space *space, const struct rmap_access *arg)
{
	bool write = arg->flags & RMAP_ACCESS_WRITE;
	bool force = arg->flags & RMAP_ACCESS_FORCE;
	struct rmap_file *access;
	struct file *file;
	int fd;

	if (arg->flags & ~(RMAP_ACCESS_READ | RMAP_ACCESS_WRITE |
			   RMAP_ACCESS_FORCE) ||
	    !(arg->flags & RMAP_ACCESS_READ) || (force && !write))
		return -EINVAL;
	if (space->revoked)
		return -ENODEV;
	if (!space->mm)
		return -ENOTCONN;
	if (!(space->rights & FMODE_READ) ||
	    (write && !(space->rights & FMODE_WRITE)))
		return -EACCES;
	/*
	 * More than an open /proc/PID/mem proves: whether a store to that goes
	 * through read-only memory is up to the administrator. Newer kernels
	 * have the target's user namespace in its task only, so it is the
	 * initial one that counts.
	 */
	if (force && !capable(CAP_SYS_PTRACE))
		return -EPERM;

	access = kzalloc(sizeof(*access), GFP_KERNEL_ACCOUNT);
	if (!access)
		return -ENOMEM;
	access->space = space;
	access->force = force;
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		goto free;
	file = rmap_space_file(space, "[rmap]",
			       (write ? O_RDWR : O_RDONLY) | O_LARGEFILE,
			       &rmap_access_fops);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		fd = PTR_ERR(file);
		goto free;
	}
	rmap_space_get(space);
	file->private_data = access;
	file->f_mode |= FMODE_LSEEK | FMODE_PREAD | FMODE_PWRITE;
	/* Last: from now on another thread may close it. */
	fd_install(fd, file);
	return fd;

free:
	kfree(access);
	return fd;
}
