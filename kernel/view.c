// SPDX-License-Identifier: GPL-2.0-only
/*
 * Views: which range of the target is shown where, and taking it away again
 * whenever the target's pages are about to change.
 */
#include <linux/bitmap.h>
#include <linux/bits.h>
#include <linux/lockdep.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "internal.h"

/*
 * Which pages of a view may be installed in some mirror. A bit is set with the
 * installation and cleared when the page was zapped everywhere; mirrors that
 * go away leave it. It spares the target a walk over all mirrors for memory
 * that nobody looks at, and it ends recursion: see rmap_view_invalidate().
 */
#define RMAP_BLOCK_SHIFT	9
#define RMAP_BLOCK_PAGES	BIT(RMAP_BLOCK_SHIFT)

struct rmap_block {
	DECLARE_BITMAP(installed, RMAP_BLOCK_PAGES);
};

/* Pages of the view from @first to @last, both included, block by block. */
#define rmap_for_each_block(view, index, block, first, last)		\
	xa_for_each_range(&(view)->blocks, index, block,		\
			  (first) >> RMAP_BLOCK_SHIFT,			\
			  (last) >> RMAP_BLOCK_SHIFT)

static unsigned int rmap_block_from(unsigned long index, unsigned long first)
{
	unsigned long base = index << RMAP_BLOCK_SHIFT;

	return first > base ? first - base : 0;
}

static unsigned int rmap_block_to(unsigned long index, unsigned long last)
{
	unsigned long base = index << RMAP_BLOCK_SHIFT;

	return min(last - base, RMAP_BLOCK_PAGES - 1) + 1;
}

/* Makes room for the bits, because marking may not allocate. */
int rmap_view_reserve(struct rmap_view *view, unsigned long first,
		      unsigned long last)
{
	unsigned long index = first >> RMAP_BLOCK_SHIFT;

	for (; index <= last >> RMAP_BLOCK_SHIFT; index++) {
		struct rmap_block *block;
		int ret;

		if (xa_load(&view->blocks, index))
			continue;
		block = kzalloc(sizeof(*block), GFP_KERNEL_ACCOUNT);
		if (!block)
			return -ENOMEM;
		ret = xa_insert(&view->blocks, index, block,
				GFP_KERNEL_ACCOUNT);
		if (ret)
			kfree(block);
		if (ret && ret != -EBUSY)
			return ret;
	}
	return 0;
}

/* Under view->rwsem, for reading at least. */
void rmap_view_mark(struct rmap_view *view, unsigned long first,
		    unsigned long last)
{
	struct rmap_block *block;
	unsigned long index;

	lockdep_assert_held(&view->rwsem);
	rmap_for_each_block(view, index, block, first, last) {
		unsigned int bit = rmap_block_from(index, first);
		unsigned int end = rmap_block_to(index, last);

		while (bit < end) {
			unsigned long *word = block->installed + BIT_WORD(bit);
			unsigned int next = min_t(unsigned int, end,
						  round_down(bit, BITS_PER_LONG) +
							  BITS_PER_LONG);
			unsigned long mask = BITMAP_FIRST_WORD_MASK(bit) &
					     BITMAP_LAST_WORD_MASK(next);

			/* Other faults mark other pages at the same time. */
			if (~READ_ONCE(*word) & mask)
				atomic_long_or(mask, (atomic_long_t *)word);
			bit = next;
		}
	}
}

/* Narrows the range to what may be installed; false if nothing may be. */
static bool rmap_view_marked(struct rmap_view *view, unsigned long *first,
			     unsigned long *last)
{
	unsigned long index, low = ULONG_MAX, high = 0;
	struct rmap_block *block;

	lockdep_assert_held_write(&view->rwsem);
	rmap_for_each_block(view, index, block, *first, *last) {
		unsigned int from = rmap_block_from(index, *first);
		unsigned int to = rmap_block_to(index, *last);
		unsigned long base = index << RMAP_BLOCK_SHIFT;
		unsigned int bit;

		bit = find_next_bit(block->installed, to, from);
		if (bit >= to)
			continue;
		low = min(low, base + bit);
		while (bit < to) {
			high = base + bit;
			bit = find_next_bit(block->installed, to, bit + 1);
		}
	}
	*first = low;
	*last = high;
	return low <= high;
}

static void rmap_view_unmark(struct rmap_view *view, unsigned long first,
			     unsigned long last)
{
	struct rmap_block *block;
	unsigned long index;

	lockdep_assert_held_write(&view->rwsem);
	rmap_for_each_block(view, index, block, first, last) {
		unsigned int from = rmap_block_from(index, first);

		bitmap_clear(block->installed, from,
			     rmap_block_to(index, last) - from);
	}
}

/*
 * Attempts.
 *
 * A fault reads the target's page tables and then installs what it saw. That is
 * sound if no invalidation of these pages was going on when it began to read,
 * and none has begun when it installs. The first is told by the ranges in
 * view->busy, the second by the attempt itself, which every invalidation finds
 * in view->attempts. Both know pages: a target that unmaps all day does not
 * disturb faults elsewhere in its address space.
 *
 * When invalidations end is known to mmu_interval_read_begin() only, which
 * waits for that. But not killably, and a target whose threads take turns can
 * make it wait for ever. So a worker calls it and publishes the sequence it
 * got; faults wait for the worker where they can be killed.
 */

/* Are these pages being invalidated, as far as is known? */
static bool rmap_view_busy(struct rmap_view *view, unsigned long first,
			   unsigned long last)
{
	unsigned long settled;
	unsigned int i;

	lockdep_assert_held(&view->lock);
	/* Pairs with rmap_view_settle(). */
	settled = smp_load_acquire(&view->settled);
	if (!settled)
		return true;
	for (i = 0; i < view->busy_nr; i++) {
		struct rmap_busy *busy = &view->busy[i];

		if ((long)(busy->seq - settled) > 0 && busy->first <= last &&
		    busy->last >= first)
			return true;
	}
	return false;
}

/* An invalidation of these pages begins. */
static void rmap_view_make_busy(struct rmap_view *view, unsigned long first,
				unsigned long last, unsigned long seq)
{
	unsigned long settled = READ_ONCE(view->settled);
	struct rmap_busy all = { first, last, seq };
	struct rmap_attempt *attempt;
	unsigned int i, kept = 0;

	spin_lock(&view->lock);
	for (i = 0; i < view->busy_nr; i++) {
		struct rmap_busy *busy = &view->busy[i];

		if (settled && (long)(busy->seq - settled) <= 0)
			continue;
		/* Sequences do not go back: this one stands for both. */
		if (busy->first <= all.last && busy->last >= all.first) {
			all.first = min(all.first, busy->first);
			all.last = max(all.last, busy->last);
			continue;
		}
		view->busy[kept++] = *busy;
	}
	if (kept == RMAP_BUSY_MAX) {
		for (i = 0; i < kept; i++) {
			all.first = min(all.first, view->busy[i].first);
			all.last = max(all.last, view->busy[i].last);
		}
		kept = 0;
	}
	view->busy[kept++] = all;
	view->busy_nr = kept;

	list_for_each_entry(attempt, &view->attempts, node)
		if (attempt->first <= last && attempt->last >= first)
			attempt->stale = true;
	spin_unlock(&view->lock);
}

/* False if the pages are busy. Else the attempt has to be ended. */
bool rmap_attempt_begin(struct rmap_view *view, struct rmap_attempt *attempt)
{
	bool begun;

	attempt->stale = false;
	spin_lock(&view->lock);
	begun = !rmap_view_busy(view, attempt->first, attempt->last);
	if (begun)
		list_add(&attempt->node, &view->attempts);
	spin_unlock(&view->lock);
	return begun;
}

void rmap_attempt_end(struct rmap_view *view, struct rmap_attempt *attempt)
{
	spin_lock(&view->lock);
	list_del(&attempt->node);
	spin_unlock(&view->lock);
}

static void rmap_view_settle(struct work_struct *work)
{
	struct rmap_view *view = container_of(work, struct rmap_view, settle);
	unsigned long seq = mmu_interval_read_begin(&view->notifier);

	/* Pairs with rmap_view_busy(): then look at page tables. */
	smp_store_release(&view->settled, seq);
	wake_up_all(&view->settled_wait);
	rmap_view_put(view);
}

void rmap_view_queue_settle(struct rmap_view *view)
{
	kref_get(&view->ref);
	if (!queue_work(view->space->work, &view->settle))
		rmap_view_put(view);
}

/* Sleeps while the page is busy, or until a fatal signal. No lock is held. */
int rmap_view_wait_settled(struct rmap_view *view, unsigned long page)
{
	DEFINE_WAIT(wait);
	bool busy;
	int ret = 0;

	for (;;) {
		prepare_to_wait(&view->settled_wait, &wait, TASK_KILLABLE);
		spin_lock(&view->lock);
		busy = rmap_view_busy(view, page, page);
		spin_unlock(&view->lock);
		if (!busy || READ_ONCE(view->dead))
			break;
		if (fatal_signal_pending(current)) {
			ret = -EINTR;
			break;
		}
		/* Again if the last one published too old a sequence. */
		rmap_view_queue_settle(view);
		schedule();
	}
	finish_wait(&view->settled_wait, &wait);
	return ret;
}

/* When it returns, no mirror has a page of that range of the view. */
static void rmap_view_zap(struct rmap_view *view, unsigned long first,
			  unsigned long last)
{
	rmap_space_zap(view->space, view->pgoff + first, last - first + 1);
}

/*
 * The target is about to change what it has at @range. None of it is installed
 * from now on until that is over (see above), and what was is zapped, TLBs
 * included, before this returns.
 *
 * Zapping a mirror calls the notifiers of the importer's mm for the range of
 * the mirror. Where somebody mirrors that, we come here again, for his view:
 * but no page is ever installed from a VMA that is a mirror itself (it is
 * VM_PFNMAP, which get_user_pages() refuses), and what was there before the
 * mirror was invalidated with it. So no bit is set for it and nothing is
 * zapped: the recursion is one deep, whoever mirrors whom.
 *
 * Bits are cleared after the zap. A second invalidation of the same page at
 * the same time finds them set, and zaps itself rather than return too early.
 */
static bool rmap_view_invalidate(struct mmu_interval_notifier *notifier,
				 const struct mmu_notifier_range *range,
				 unsigned long seq)
{
	struct rmap_view *view =
		container_of(notifier, struct rmap_view, notifier);
	unsigned long first = 0, last = view->nr - 1;
	bool marked;

	if (range->start > view->address)
		first = (range->start - view->address) >> PAGE_SHIFT;
	if (range->end - 1 < view->address + (view->nr << PAGE_SHIFT) - 1)
		last = (range->end - 1 - view->address) >> PAGE_SHIFT;

	if (mmu_notifier_range_blockable(range))
		down_write(&view->rwsem);
	else if (!down_write_trylock(&view->rwsem))
		return false;
	mmu_interval_set_seq(notifier, seq);
	rmap_view_make_busy(view, first, last, seq);
	marked = rmap_view_marked(view, &first, &last);
	up_write(&view->rwsem);

	if (!marked)
		return true;
	/* Zapping sleeps. The OOM reaper then leaves these pages to exit. */
	if (!mmu_notifier_range_blockable(range))
		return false;
	rmap_view_zap(view, first, last);

	down_write(&view->rwsem);
	rmap_view_unmark(view, first, last);
	up_write(&view->rwsem);
	return true;
}

static const struct mmu_interval_notifier_ops rmap_view_notifier_ops = {
	.invalidate = rmap_view_invalidate,
};

/* The tree of views. */

static struct rmap_view *rmap_view_find(struct rmap_space *space,
					pgoff_t pgoff)
{
	struct rb_node *node = space->views.rb_node;

	lockdep_assert_held(&space->tree_lock);
	while (node) {
		struct rmap_view *view = rb_entry(node, struct rmap_view, node);

		if (pgoff < view->pgoff)
			node = node->rb_left;
		else if (pgoff - view->pgoff >= view->nr)
			node = node->rb_right;
		else
			return view;
	}
	return NULL;
}

static int rmap_view_link(struct rmap_space *space, struct rmap_view *new)
{
	struct rb_node **link = &space->views.rb_node, *parent = NULL;

	lockdep_assert_held(&space->tree_lock);
	while (*link) {
		struct rmap_view *view =
			rb_entry(*link, struct rmap_view, node);

		parent = *link;
		if (new->pgoff + new->nr <= view->pgoff)
			link = &parent->rb_left;
		else if (new->pgoff >= view->pgoff + view->nr)
			link = &parent->rb_right;
		else
			return -EEXIST;
	}
	rb_link_node(&new->node, parent, link);
	rb_insert_color(&new->node, &space->views);
	return 0;
}

struct rmap_view *rmap_view_get(struct rmap_space *space, pgoff_t pgoff)
{
	struct rmap_view *view;

	spin_lock(&space->tree_lock);
	view = rmap_view_find(space, pgoff);
	if (view)
		kref_get(&view->ref);
	spin_unlock(&space->tree_lock);
	return view;
}

static void rmap_view_release(struct kref *ref)
{
	struct rmap_view *view = container_of(ref, struct rmap_view, ref);
	struct rmap_block *block;
	unsigned long index;

	xa_for_each(&view->blocks, index, block)
		kfree(block);
	xa_destroy(&view->blocks);
	kfree(view);
}

void rmap_view_put(struct rmap_view *view)
{
	kref_put(&view->ref, rmap_view_release);
}

/* Waits for the target's invalidations, so nobody waits for this. */
static void rmap_view_finish(struct work_struct *work)
{
	struct rmap_view *view = container_of(work, struct rmap_view, remove);

	mmu_interval_notifier_remove(&view->notifier);
	rmap_view_put(view);
}

/* Called with the space locked and the view out of the tree. */
static void rmap_view_kill(struct rmap_view *view)
{
	/* Faults in flight that hold it have installed, or will not. */
	down_write(&view->rwsem);
	WRITE_ONCE(view->dead, true);
	up_write(&view->rwsem);
	wake_up_all(&view->settled_wait);

	rmap_view_zap(view, 0, view->nr - 1);
	queue_work(view->space->work, &view->remove);
}

/* Called with the space locked. */
int rmap_view_add(struct rmap_space *space, const struct rmap_map *map)
{
	struct mm_struct *mm = space->mm;
	struct rmap_view *view;
	int ret;

	view = kzalloc(sizeof(*view), GFP_KERNEL_ACCOUNT);
	if (!view)
		return -ENOMEM;
	kref_init(&view->ref);
	view->space = space;
	view->address = map->address;
	view->pgoff = map->offset >> PAGE_SHIFT;
	view->nr = map->length >> PAGE_SHIFT;
	view->rdonly = map->flags & RMAP_MAP_RDONLY;
	init_rwsem(&view->rwsem);
	spin_lock_init(&view->lock);
	INIT_LIST_HEAD(&view->attempts);
	xa_init(&view->blocks);
	init_waitqueue_head(&view->settled_wait);
	INIT_WORK(&view->settle, rmap_view_settle);
	INIT_WORK(&view->remove, rmap_view_finish);

	ret = -ESRCH;
	if (!mmget_not_zero(mm))
		goto free;
	ret = -EINTR;
	if (mmap_write_lock_killable(mm))
		goto put_mm;
	ret = mmu_interval_notifier_insert_locked(&view->notifier, mm,
						  view->address, map->length,
						  &rmap_view_notifier_ops);
	mmap_write_unlock(mm);
	/* The first notifier of an mm gives up for any signal: start again. */
	if (ret == -EINTR)
		ret = -ERESTARTNOINTR;
	if (ret)
		goto put_mm;

	/* Adding and removing exclude each other by space->lock. */
	spin_lock(&space->tree_lock);
	ret = rmap_view_link(space, view);
	spin_unlock(&space->tree_lock);
	if (ret) {
		/* Never seen by a fault. */
		queue_work(space->work, &view->remove);
		mmput_async(mm);
		return ret;
	}
	rmap_view_queue_settle(view);
	mmput_async(mm);
	return 0;

put_mm:
	mmput_async(mm);
free:
	rmap_view_put(view);
	return ret;
}

/* Called with the space locked. */
int rmap_view_remove(struct rmap_space *space, pgoff_t pgoff, unsigned long nr)
{
	struct rmap_view *view;

	spin_lock(&space->tree_lock);
	view = rmap_view_find(space, pgoff);
	if (view && view->pgoff == pgoff && view->nr == nr)
		rb_erase(&view->node, &space->views);
	else
		view = NULL;
	spin_unlock(&space->tree_lock);
	if (!view)
		return -ENOENT;
	rmap_view_kill(view);
	return 0;
}

/* Called with the space locked, or when nobody has it any more. */
void rmap_view_remove_all(struct rmap_space *space)
{
	struct rb_node *node;

	for (;;) {
		spin_lock(&space->tree_lock);
		node = rb_first(&space->views);
		if (node)
			rb_erase(node, &space->views);
		spin_unlock(&space->tree_lock);
		if (!node)
			return;
		rmap_view_kill(rb_entry(node, struct rmap_view, node));
	}
}
