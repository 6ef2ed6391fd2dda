// SPDX-License-Identifier: GPL-2.0-only
/*
 * Spaces: their lifetime, and the inode that all mirrors of a space share.
 *
 * Mirrors are zapped through that inode's i_mapping. So nothing is kept for
 * each mirror VMA, and the core may split, move and merge them as it likes.
 */
#include <linux/fs_context.h>
#include <linux/hash.h>
#include <linux/lockdep.h>
#include <linux/magic.h>
#include <linux/module.h>
#include <linux/mount.h>
#include <linux/pseudo_fs.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "internal.h"

static int rmap_fs_init_context(struct fs_context *fc)
{
	if (!init_pseudo(fc, RMAP_FS_MAGIC))
		return -ENOMEM;
	/* No mirror is executable, with READ_IMPLIES_EXEC neither. */
	fc->s_iflags |= SB_I_NOEXEC | SB_I_NODEV;
	return 0;
}

static struct file_system_type rmap_fs_type = {
	.name = "rmap",
	.owner = THIS_MODULE,
	.init_fs_context = rmap_fs_init_context,
	.kill_sb = kill_anon_super,
};

/* Mounted while there are spaces: the mount holds the module. */
static struct vfsmount *rmap_fs_mount;
static int rmap_fs_count;

static struct workqueue_struct *rmap_destroy_queue;

static struct inode *rmap_inode_create(void)
{
	/*
	 * Zapping happens inside the target's invalidations, which can hold
	 * the i_mmap_rwsem of the target's file. It is never this one.
	 */
	static struct lock_class_key i_mmap_key;
	struct inode *inode;
	int ret;

	ret = simple_pin_fs(&rmap_fs_type, &rmap_fs_mount, &rmap_fs_count);
	if (ret)
		return ERR_PTR(ret);
	inode = alloc_anon_inode(rmap_fs_mount->mnt_sb);
	if (IS_ERR(inode))
		simple_release_fs(&rmap_fs_mount, &rmap_fs_count);
	else
		lockdep_set_class(&inode->i_mapping->i_mmap_rwsem, &i_mmap_key);
	return inode;
}

static void rmap_inode_destroy(struct inode *inode)
{
	iput(inode);
	simple_release_fs(&rmap_fs_mount, &rmap_fs_count);
}

/*
 * Runs when no file is left, so there are no mirrors and no faults.
 *
 * Removing a notifier waits for the target's invalidations to end. A target
 * can keep that from happening for as long as it likes to, so neither the last
 * close nor the exit of an importer may wait for it.
 */
static void rmap_space_destroy(struct work_struct *work)
{
	struct rmap_space *space =
		container_of(work, struct rmap_space, destroy);

	rmap_view_remove_all(space);
	destroy_workqueue(space->work);
	if (space->mm)
		mmdrop(space->mm);
	rmap_inode_destroy(space->inode);
	kfree(space);
}

struct rmap_space *rmap_space_create(void)
{
	struct rmap_space *space;
	int ret;

	space = kzalloc(sizeof(*space), GFP_KERNEL_ACCOUNT);
	if (!space)
		return ERR_PTR(-ENOMEM);
	kref_init(&space->ref);
	mutex_init(&space->lock);
	spin_lock_init(&space->tree_lock);
	spin_lock_init(&space->outcome_lock);
	space->views = RB_ROOT;
	INIT_WORK(&space->destroy, rmap_space_destroy);

	/* Its own: what one target delays is no other's business. */
	space->work = alloc_workqueue("rmap", WQ_UNBOUND, 1);
	if (!space->work) {
		ret = -ENOMEM;
		goto free_space;
	}
	space->inode = rmap_inode_create();
	if (IS_ERR(space->inode)) {
		ret = PTR_ERR(space->inode);
		goto free_work;
	}
	return space;

free_work:
	destroy_workqueue(space->work);
free_space:
	kfree(space);
	return ERR_PTR(ret);
}

void rmap_space_get(struct rmap_space *space)
{
	kref_get(&space->ref);
}

static void rmap_space_release(struct kref *ref)
{
	struct rmap_space *space = container_of(ref, struct rmap_space, ref);

	queue_work(rmap_destroy_queue, &space->destroy);
}

void rmap_space_put(struct rmap_space *space)
{
	kref_put(&space->ref, rmap_space_release);
}

/* A file whose mappings are mirrors of this space. */
struct file *rmap_space_file(struct rmap_space *space, const char *name,
			     int flags, const struct file_operations *fops)
{
	struct file *file;

	/* Closing the file puts both. The caller's own file has the module. */
	ihold(space->inode);
	__module_get(fops->owner);
	file = alloc_file_pseudo(space->inode, rmap_fs_mount, name, flags,
				 fops);
	if (IS_ERR(file)) {
		module_put(fops->owner);
		iput(space->inode);
	}
	return file;
}

/*
 * When it returns, no mirror has a page of that range.
 *
 * Zapping announces an invalidation in every importer, often inside the one of
 * the target that brought us here. Lockdep knows one map for all mms and takes
 * that for recursion, and for the wrong order of that map and the mirrors' lock:
 * the core holds it when it splits a mirror, and announces that. Both end, since
 * nothing is installed from where a mirror is: see rmap_view_invalidate(). So
 * lockdep does not look. Who holds that lock and does wait for others is what
 * rmap_importer_register() is about.
 */
void rmap_space_zap(struct rmap_space *space, pgoff_t pgoff, unsigned long nr)
{
	lockdep_off();
	unmap_mapping_pages(space->inode->i_mapping, pgoff, nr, false);
	lockdep_on();
}

int rmap_space_init(void)
{
	rmap_destroy_queue = alloc_workqueue("rmap_destroy", WQ_UNBOUND, 0);
	return rmap_destroy_queue ? 0 : -ENOMEM;
}

void rmap_space_exit(void)
{
	destroy_workqueue(rmap_destroy_queue);
}
