// SPDX-License-Identifier: GPL-2.0-only
/*
 * Targets: whose memory a space shows, who may choose it, and copying to and
 * from it.
 */
#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/magic.h>
#include <linux/module.h>
#include <linux/mount.h>
#include <linux/pid.h>
#include <linux/sched/mm.h>
#include <linux/sched/task.h>

#include "compat.h"
#include "internal.h"

/*
 * The operations of /proc/PID/mem. ptrace_may_access() is not exported, but
 * whoever opened such a file has passed it, and has got the mm that it was
 * passed for as the file's private data, with a reference on mm_count.
 */
static const struct file_operations *rmap_proc_mem_fops;

/*
 * Reads the operations off a file of a procfs mount that is made here. A path
 * would be looked up in the namespace of the caller, who could have anything
 * there.
 */
int rmap_target_init(void)
{
	struct file_system_type *type = get_fs_type("proc");
	struct vfsmount *mount;
	struct file *file;
	struct path root;

	if (!type)
		return -ENODEV;
	mount = kern_mount(type);
	module_put(type->owner);
	if (IS_ERR(mount))
		return PTR_ERR(mount);
	root.mnt = mount;
	root.dentry = mount->mnt_root;
	file = file_open_root(&root, "self/mem", O_RDONLY, 0);
	if (!IS_ERR(file)) {
		rmap_proc_mem_fops = file->f_op;
		fput(file);
	}
	kern_unmount(mount);
	return PTR_ERR_OR_ZERO(file);
}

static struct mm_struct *rmap_mm_of_file(s64 fd, fmode_t *rights)
{
	struct mm_struct *mm;
	struct file *file;

	if (fd < 0 || fd > INT_MAX)
		return ERR_PTR(-EBADF);
	file = fget(fd);
	if (!file)
		return ERR_PTR(-EBADF);
	if (file->f_op != rmap_proc_mem_fops ||
	    file_inode(file)->i_sb->s_magic != PROC_SUPER_MAGIC) {
		mm = ERR_PTR(-EINVAL);
	} else {
		mm = file->private_data;
		if (mm)
			mmgrab(mm);
		else
			mm = ERR_PTR(-ESRCH);
		*rights = file->f_mode & (FMODE_READ | FMODE_WRITE);
	}
	fput(file);
	return mm;
}

static struct mm_struct *rmap_mm_of_pid(s64 nr)
{
	struct task_struct *task;
	struct mm_struct *mm;
	struct pid *pid;

	/* As coarse as it is, this is the only check that is exported. */
	if (!capable(CAP_SYS_PTRACE))
		return ERR_PTR(-EPERM);
	if (nr <= 0 || nr > INT_MAX)
		return ERR_PTR(-ESRCH);
	pid = find_get_pid(nr);
	task = get_pid_task(pid, PIDTYPE_PID);
	put_pid(pid);
	if (!task)
		return ERR_PTR(-ESRCH);
	mm = get_task_mm(task);
	put_task_struct(task);
	if (!mm)
		return ERR_PTR(-ESRCH);
	mmgrab(mm);
	mmput(mm);
	return mm;
}

/* Called with the space locked. */
int rmap_target_bind(struct rmap_space *space, const struct rmap_bind *bind)
{
	fmode_t rights = FMODE_READ | FMODE_WRITE;
	struct mm_struct *mm;

	if (space->mm)
		return -EBUSY;
	if (space->revoked)
		return -ENODEV;
	switch (bind->flags & ~RMAP_BIND_REVOKE_ON_CLOSE) {
	case RMAP_BIND_SELF:
		if (bind->target)
			return -EINVAL;
		if (!current->mm)
			return -ESRCH;
		mm = current->mm;
		mmgrab(mm);
		break;
	case RMAP_BIND_MEM:
		mm = rmap_mm_of_file(bind->target, &rights);
		break;
	case RMAP_BIND_PID:
		mm = rmap_mm_of_pid(bind->target);
		break;
	default:
		return -EINVAL;
	}
	if (IS_ERR(mm))
		return PTR_ERR(mm);
	space->rights = rights;
	space->revoke_on_close = bind->flags & RMAP_BIND_REVOKE_ON_CLOSE;
	space->mm = mm;
	return 0;
}

/*
 * Copies inside one page of @mm. @buf is kernel memory: copying to the caller
 * with the target's lock held could fault on a mirror of that very target.
 * @held: an mm whose lock the caller holds, or NULL. With another one's held,
 * the target's must not be waited for.
 */
int rmap_target_copy(struct mm_struct *mm, unsigned long address, void *buf,
		     size_t len, unsigned int gup_flags, struct mm_struct *held)
{
	unsigned int offset = offset_in_page(address);
	struct page *page;
	int locked = 1;
	void *data;
	long n;

	address &= PAGE_MASK;
	if (!mmget_not_zero(mm))
		return -ESRCH;
again:
	if (!held) {
		n = -EINTR;
		if (mmap_read_lock_killable(mm))
			goto put_mm;
		locked = 1;
	} else if (held != mm) {
		n = -EAGAIN;
		if (!mmap_read_trylock(mm))
			goto put_mm;
	}
	n = rmap_gup(mm, address, gup_flags, &page, held ? NULL : &locked);
	if (n != 1)
		goto unlock;
	if (!locked) {
		/* Without the lock, a fork may share the page meanwhile. */
		put_page(page);
		goto again;
	}
	data = kmap_local_page(page);
	if (gup_flags & FOLL_WRITE) {
		memcpy(data + offset, buf, len);
		flush_dcache_page(page);
	} else {
		memcpy(buf, data + offset, len);
	}
	kunmap_local(data);
	if (gup_flags & FOLL_WRITE)
		set_page_dirty_lock(page);
	put_page(page);
	n = 0;
unlock:
	if (locked && held != mm)
		mmap_read_unlock(mm);
put_mm:
	mmput_async(mm);
	return n;
}
