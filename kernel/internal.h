/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The objects of the module and who keeps what alive.
 *
 *   control file ---> space <--- access files <--- mirror VMAs
 *                       |
 *                       +--> target mm (mm_count: the struct, not the memory)
 *                       +--> inode, whose i_mapping knows every mirror VMA
 *                       +--> views <--- page faults in flight, queued work
 *
 * No page of the target is ever referenced by a mirror. What keeps a mirrored
 * page valid is its mapping in the target, whose end is announced by the
 * view's interval notifier before it happens.
 *
 * Lock order, outermost first. I is the importer's mm, T the target's:
 *
 *   space->lock                  control requests
 *     T mmap_lock (write)        MAP: inserting the notifier
 *   I mmap_lock (read)           page faults; I and T may be the same. Huge ones
 *                                hold the lock of their VMA only
 *     T mmap_lock (read)         only by trylock while I's is held, so two
 *                                processes that mirror each other cannot
 *                                wait for one another
 *     view->rwsem (read)         installing. Nothing sleeps or allocates under
 *                                it: reclaim may need it for writing
 *       page table locks
 *   whatever the core holds around an invalidation in T: mmap_lock, anon_vma,
 *   i_mmap_rwsem of the target's file, folio lock, reclaim
 *     view->rwsem (write)        released before the next
 *     inode i_mmap_rwsem         zapping mirrors, which announces a nested
 *                                invalidation in I: see rmap_view_invalidate().
 *                                The core must not hold it while it waits for
 *                                one of the above: see rmap_importer_register()
 *   space->tree_lock, view->lock, outcome lock: leaves
 */
#ifndef RMAP_INTERNAL_H
#define RMAP_INTERNAL_H

#include <linux/fs.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/mutex.h>
#include <linux/rbtree.h>
#include <linux/rwsem.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include <linux-rmap/rmap.h>

/* How the last try to bring in a page ended, for the retry that follows it. */
struct rmap_outcome {
	struct task_struct *task;	/* compared, never followed */
	unsigned long address;
	vm_fault_t fault;
};

/*
 * A line that another task overwrites costs one more round of its fault, so
 * the number is only about how many threads fail at the same moment.
 */
#define RMAP_OUTCOME_BITS	6

/* One target and what is shown of it. */
struct rmap_space {
	struct kref ref;		/* one per file */
	struct mutex lock;		/* control requests; the members below */
	struct mm_struct *mm;		/* set once, before any access file */
	fmode_t rights;
	bool locked;
	bool revoked;
	bool revoke_on_close;

	spinlock_t tree_lock;		/* @views */
	struct rb_root views;		/* by offset, disjoint */

	struct inode *inode;
	struct workqueue_struct *work;
	struct work_struct destroy;

	spinlock_t outcome_lock;	/* @outcomes */
	struct rmap_outcome outcomes[1 << RMAP_OUTCOME_BITS];
};

/* Pages of a view whose invalidation may not be over. */
struct rmap_busy {
	unsigned long first;
	unsigned long last;
	unsigned long seq;
};

/* When there are more, they are taken together; that only delays faults. */
#define RMAP_BUSY_MAX	16

/* A fault between reading the target's page tables and installing. */
struct rmap_attempt {
	struct list_head node;
	unsigned long first;		/* pages of the view */
	unsigned long last;
	bool stale;			/* one of them was invalidated since */
};

/* A range of the target shown at a range of offsets. */
struct rmap_view {
	struct kref ref;		/* tree, faults, queued work */
	struct rmap_space *space;
	struct rb_node node;
	unsigned long address;
	pgoff_t pgoff;
	unsigned long nr;		/* pages */
	bool rdonly;

	struct mmu_interval_notifier notifier;
	/*
	 * Faults install under it (read), invalidations make attempts stale
	 * under it (write). Guards @dead and @blocks' bits.
	 */
	struct rw_semaphore rwsem;
	bool dead;
	struct xarray blocks;		/* of struct rmap_block */

	spinlock_t lock;		/* @attempts, @busy */
	struct list_head attempts;
	struct rmap_busy busy[RMAP_BUSY_MAX];
	unsigned int busy_nr;
	/* Invalidations up to this sequence are over; 0 if none is known to be. */
	unsigned long settled;
	wait_queue_head_t settled_wait;
	struct work_struct settle;
	struct work_struct remove;
};

/* An open access descriptor. */
struct rmap_file {
	struct rmap_space *space;
	bool force;
};

/* space.c */
struct rmap_space *rmap_space_create(void);
void rmap_space_get(struct rmap_space *space);
void rmap_space_put(struct rmap_space *space);
struct file *rmap_space_file(struct rmap_space *space, const char *name,
			     int flags, const struct file_operations *fops);
void rmap_space_zap(struct rmap_space *space, pgoff_t pgoff, unsigned long nr);
int rmap_space_init(void);
void rmap_space_exit(void);

/* target.c */
int rmap_target_bind(struct rmap_space *space, const struct rmap_bind *bind);
int rmap_target_copy(struct mm_struct *mm, unsigned long address, void *buf,
		     size_t len, unsigned int gup_flags,
		     struct mm_struct *held);
int rmap_target_init(void);

/* view.c */
int rmap_view_add(struct rmap_space *space, const struct rmap_map *map);
int rmap_view_remove(struct rmap_space *space, pgoff_t pgoff, unsigned long nr);
void rmap_view_remove_all(struct rmap_space *space);
struct rmap_view *rmap_view_get(struct rmap_space *space, pgoff_t pgoff);
void rmap_view_put(struct rmap_view *view);
bool rmap_attempt_begin(struct rmap_view *view, struct rmap_attempt *attempt);
void rmap_attempt_end(struct rmap_view *view, struct rmap_attempt *attempt);
void rmap_view_queue_settle(struct rmap_view *view);
int rmap_view_wait_settled(struct rmap_view *view, unsigned long page);
int rmap_view_reserve(struct rmap_view *view, unsigned long first,
		      unsigned long last);
void rmap_view_mark(struct rmap_view *view, unsigned long first,
		    unsigned long last);

static inline unsigned long rmap_view_address(struct rmap_view *view,
					      pgoff_t pgoff)
{
	return view->address + ((pgoff - view->pgoff) << PAGE_SHIFT);
}

/* fault.c */
extern const struct vm_operations_struct rmap_vm_ops;

/* access.c */
int rmap_access_open(struct rmap_space *space, const struct rmap_access *arg);
int rmap_access_mmap(struct file *file, struct vm_area_struct *vma);
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
unsigned long rmap_access_get_unmapped_area(struct file *file,
					    unsigned long address,
					    unsigned long len,
					    unsigned long pgoff,
					    unsigned long flags);
#endif

/* xpmem.c */
int rmap_xpmem_init(void);
void rmap_xpmem_exit(void);

/* control.c */
extern const struct file_operations rmap_control_fops;

#endif /* RMAP_INTERNAL_H */
