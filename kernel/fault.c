// SPDX-License-Identifier: GPL-2.0-only
/*
 * Page faults of mirrors.
 *
 * The quick way looks at the target's page tables and installs what is there:
 * up to the whole 2 MiB around the fault, without waiting for anything. If
 * that cannot be done, the slow way drops the importer's lock, has the target
 * bring the page in, and lets the fault start again.
 *
 * It may be a kernel thread that faults, so nothing depends on current's
 * credentials or mm.
 */
#include <linux/file.h>
#include <linux/hash.h>
#include <linux/hmm.h>
#include <linux/moduleparam.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/swap.h>

#include <asm/pgalloc.h>

#include "compat.h"
#include "internal.h"

static bool rmap_huge_pages = RMAP_HUGE_PAGES_DEFAULT;
module_param_named(huge_pages, rmap_huge_pages, bool, 0444);
MODULE_PARM_DESC(huge_pages, "Map the target's huge pages as such");

/* What one fault may install: pages of one view, VMA and 2 MiB block. */
struct rmap_batch {
	struct vm_fault *vmf;
	struct rmap_view *view;
	struct mm_struct *mm;		/* the target */
	unsigned long address;		/* of the first page, in the mirror */
	unsigned long target;		/* of the first page, in the target */
	unsigned long first;		/* first page of the view */
	unsigned int nr;
	unsigned int index;		/* the page that faulted */
	unsigned int gup_flags;
	bool writable;			/* the target itself may write there */
	bool whole;			/* all of it is one huge page */
	bool odd_type;			/* may not be plain cached memory */
	struct rmap_attempt attempt;
	unsigned long *pfns;		/* HMM_PFN_ encoding */
	unsigned long pfn;		/* where that is if there is only one */
};

/*
 * A fault whose lock was dropped can only say "retry". An error waits here for
 * the retry. Nothing else may find it: see rmap_outcome_take().
 */
static struct rmap_outcome *rmap_outcome(struct rmap_space *space)
{
	return &space->outcomes[hash_ptr(current, RMAP_OUTCOME_BITS)];
}

static void rmap_outcome_put(struct rmap_space *space, unsigned long address,
			     vm_fault_t fault)
{
	struct rmap_outcome *outcome = rmap_outcome(space);

	spin_lock(&space->outcome_lock);
	outcome->address = address;
	outcome->fault = fault;
	WRITE_ONCE(outcome->task, current);
	spin_unlock(&space->outcome_lock);
}

static vm_fault_t rmap_outcome_take(struct rmap_space *space,
				    struct vm_fault *vmf)
{
	struct rmap_outcome *outcome = rmap_outcome(space);
	vm_fault_t fault = 0;

	/* Only this task writes its own name there. */
	if (READ_ONCE(outcome->task) != current)
		return 0;
	spin_lock(&space->outcome_lock);
	if (outcome->task == current) {
		outcome->task = NULL;
		/* The first try of a fault throws away what it finds. */
		if (vmf->flags & FAULT_FLAG_TRIED &&
		    outcome->address == (vmf->address & PAGE_MASK))
			fault = outcome->fault;
	}
	spin_unlock(&space->outcome_lock);
	return fault;
}

static vm_fault_t rmap_fault_of_errno(long error)
{
	switch (error) {
	case -ENOMEM:
		return VM_FAULT_OOM;
	case -EHWPOISON:
		return VM_FAULT_HWPOISON;
	/* Interrupted, or somebody else is at it. */
	case -EINTR:
	case -ERESTARTSYS:
	case -EAGAIN:
	case -EBUSY:
		return 0;
	default:
		return VM_FAULT_SIGBUS;
	}
}

static void rmap_batch_init(struct rmap_batch *batch, struct vm_fault *vmf,
			    struct rmap_view *view, bool single)
{
	struct vm_area_struct *vma = vmf->vma;
	unsigned long address = vmf->address & PAGE_MASK;
	unsigned long page = vmf->pgoff - view->pgoff;
	unsigned long before = 0, after = 0;

	if (!single && !(vma->vm_flags & VM_RAND_READ)) {
		unsigned long start = max(address & PMD_MASK, vma->vm_start);
		unsigned long end = min((address & PMD_MASK) + (PMD_SIZE - 1),
					vma->vm_end - 1);

		before = min((address - start) >> PAGE_SHIFT, page);
		after = min((end - address) >> PAGE_SHIFT,
			    view->nr - 1 - page);
	}
	batch->vmf = vmf;
	batch->view = view;
	batch->mm = view->space->mm;
	batch->first = page - before;
	batch->nr = before + 1 + after;
	batch->index = before;
	batch->whole = false;
	batch->pfn = 0;
	batch->pfns = &batch->pfn;
	batch->address = address - (before << PAGE_SHIFT);
	batch->target = view->address + (batch->first << PAGE_SHIFT);
	batch->attempt.first = batch->first;
	batch->attempt.last = batch->first + batch->nr - 1;
}

/* Room for all pages. A huge one that is mapped as such does without. */
static bool rmap_batch_alloc(struct rmap_batch *batch)
{
	if (batch->nr == 1)
		return true;
	batch->pfns = kcalloc(batch->nr, sizeof(*batch->pfns), GFP_KERNEL);
	if (batch->pfns)
		return true;
	batch->pfns = &batch->pfn;
	return false;
}

static void rmap_batch_free(struct rmap_batch *batch)
{
	if (batch->pfns != &batch->pfn)
		kfree(batch->pfns);
}

/* Narrows the batch to the target's VMA. */
static void rmap_batch_clip(struct rmap_batch *batch,
			    struct vm_area_struct *vma)
{
	unsigned long end = batch->target + ((unsigned long)batch->nr
					     << PAGE_SHIFT);

	if (vma->vm_end < end)
		batch->nr -= (end - vma->vm_end) >> PAGE_SHIFT;
	if (vma->vm_start > batch->target) {
		unsigned long skip = (vma->vm_start - batch->target)
				     >> PAGE_SHIFT;

		batch->first += skip;
		batch->nr -= skip;
		batch->index -= skip;
		batch->address += skip << PAGE_SHIFT;
		batch->target += skip << PAGE_SHIFT;
	}
}

/*
 * Can there be a page at all? Returns what the fault ends with if not. What
 * the target can reach in no way is a hole; what it can only read is like a
 * read-only mapping to a store.
 */
static vm_fault_t rmap_target_check(struct vm_area_struct *vma,
				    unsigned long target,
				    unsigned int gup_flags)
{
	unsigned long flags;

	if (!vma)
		return VM_FAULT_SIGBUS;
	if (target < vma->vm_start)
		/* A stack may still grow down to it. */
		return vma->vm_flags & VM_GROWSDOWN ? 0 : VM_FAULT_SIGBUS;
	flags = vma->vm_flags;
	/* Devices, and mirrors: there is no mirror of a mirror. */
	if (flags & (VM_IO | VM_PFNMAP))
		return VM_FAULT_SIGBUS;
	if (!(gup_flags & FOLL_WRITE))
		return flags & VM_READ ? 0 : VM_FAULT_SIGBUS;
	if (flags & VM_WRITE)
		return 0;
	if (!(flags & VM_READ))
		return VM_FAULT_SIGBUS;
	/* A private mapping: it gets its own copy of the page. */
	if (gup_flags & FOLL_FORCE &&
	    (flags & (VM_SHARED | VM_MAYWRITE)) == VM_MAYWRITE)
		return 0;
	return VM_FAULT_SIGSEGV;
}

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
/* Do both sides agree modulo 2 MiB, with room for all of a huge page? */
static bool rmap_batch_may_be_huge(struct rmap_batch *batch)
{
	/* A table to deposit would be allocated under view->rwsem. */
	return rmap_huge_pages && !arch_needs_pgtable_deposit() &&
	       batch->nr == PMD_SIZE >> PAGE_SHIFT &&
	       !((batch->address | batch->target) & ~PMD_MASK);
}
#else
static bool rmap_batch_may_be_huge(struct rmap_batch *batch)
{
	return false;
}
#endif

/*
 * Is the page that faulted mapped as part of a huge one? Then it tells all
 * about its neighbours. Only the first entry is filled in.
 */
static bool rmap_batch_look_whole(struct rmap_batch *batch,
				  struct hmm_range *range, struct page *page)
{
	unsigned long entry = 0;

	if (!rmap_batch_may_be_huge(batch))
		return false;
	range->start = batch->target +
		       ((unsigned long)batch->index << PAGE_SHIFT);
	range->end = range->start + PAGE_SIZE;
	range->hmm_pfns = &entry;
	if (hmm_range_fault(range) || !(entry & HMM_PFN_VALID) ||
	    hmm_pfn_to_map_order(entry) < PMD_SHIFT - PAGE_SHIFT ||
	    (entry & ~HMM_PFN_FLAGS) != page_to_pfn(page))
		return false;
	batch->pfn = entry - batch->index;
	return true;
}

/* Fills in the rest; false if there is no memory for that. */
static bool rmap_batch_spread(struct rmap_batch *batch)
{
	unsigned int i;

	if (!rmap_batch_alloc(batch))
		return false;
	for (i = 0; i < batch->nr; i++)
		batch->pfns[i] = batch->pfn + i;
	if (batch->gup_flags & FOLL_WRITE)
		batch->pfns[batch->index] |= HMM_PFN_WRITE;
	batch->whole = false;
	return true;
}

/*
 * Reads the target's page tables, under its mmap_lock. Returns 0 with the
 * batch filled in, VM_FAULT_RETRY if the page has to be brought in first, or
 * what the fault ends with. @huge: VM_FAULT_FALLBACK if it is not all one huge
 * page.
 *
 * The page that faulted is looked up with get_user_pages(), which has the last
 * word on what may be had from this VMA (secret memory may not). Its
 * neighbours come from a walk that takes no references.
 */
static vm_fault_t rmap_batch_look(struct rmap_batch *batch, bool huge)
{
	unsigned long target = batch->target +
			       ((unsigned long)batch->index << PAGE_SHIFT);
	struct vm_area_struct *vma = find_vma(batch->mm, target);
	/* One that never fires: the attempt says what is stale. */
	struct mmu_interval_notifier still = { .mm = batch->mm };
	struct hmm_range range = {
		.notifier = &still,
		.notifier_seq = still.invalidate_seq,
		/* Nobody's, so that device memory is left out. */
		.dev_private_owner = batch,
	};
	unsigned long *entry;
	struct page *page;
	vm_fault_t fault;
	long n;

	fault = rmap_target_check(vma, target, batch->gup_flags);
	if (fault)
		return fault;
	if (target < vma->vm_start)
		return VM_FAULT_RETRY;
	n = rmap_gup(batch->mm, target, batch->gup_flags | FOLL_NOFAULT, &page,
		     NULL);
	if (n != 1)
		return VM_FAULT_RETRY;

	rmap_batch_clip(batch, vma);
	/* Entries of shadow stacks count as writable, but not for stores. */
	batch->writable = (vma->vm_flags & (VM_WRITE | VM_SHADOW_STACK)) ==
			  VM_WRITE;
	batch->odd_type = vma->vm_flags & VM_MIXEDMAP;
	batch->whole = rmap_batch_look_whole(batch, &range, page);
	fault = 0;
	if (!batch->whole && huge)
		fault = VM_FAULT_FALLBACK;
	else if (!batch->whole && !rmap_batch_alloc(batch))
		fault = VM_FAULT_OOM;
	if (batch->whole || fault) {
		put_page(page);
		return fault;
	}
	range.start = batch->target;
	range.end = batch->target + ((unsigned long)batch->nr << PAGE_SHIFT);
	range.hmm_pfns = batch->pfns;
	/* Nothing is asked for, so hardly anything can fail. */
	if (hmm_range_fault(&range))
		memset(batch->pfns, 0, batch->nr * sizeof(*batch->pfns));
	/*
	 * Whether the target may write to it already is known from the walk. A
	 * load that is followed by a store then takes one fault.
	 */
	entry = &batch->pfns[batch->index];
	if (!(*entry & HMM_PFN_VALID) ||
	    (*entry & ~HMM_PFN_FLAGS) != page_to_pfn(page))
		*entry = page_to_pfn(page) | HMM_PFN_VALID;
	if (batch->gup_flags & FOLL_WRITE)
		*entry |= HMM_PFN_WRITE;
	put_page(page);
	return 0;
}

/*
 * May this page be writable in the mirror? The target's page table entry is.
 * But a store through the mirror marks neither that entry nor the page as
 * dirty, and a page that counts as clean can be thrown away or not written
 * back. Cleaning a page announces itself, so it is enough that it is dirty
 * now; and for anonymous memory, to make it so.
 *
 * Under view->rwsem in an attempt that is not stale: the target maps the page.
 */
static bool rmap_batch_writable(struct rmap_batch *batch, unsigned int i)
{
	struct vm_area_struct *vma = batch->vmf->vma;
	struct folio *folio;

	if (!(batch->pfns[i] & HMM_PFN_WRITE) || !(vma->vm_flags & VM_WRITE) ||
	    batch->view->rdonly)
		return false;
	/* get_user_pages() has made this one dirty. */
	if (i == batch->index && batch->gup_flags & FOLL_WRITE)
		return true;
	if (!batch->writable)
		return false;
	folio = page_folio(pfn_to_page(batch->pfns[i] & ~HMM_PFN_FLAGS));
	if (folio_test_dirty(folio))
		return true;
	if (!folio_test_anon(folio))
		return false;
	/* Only read so far: what is in the swap cache may stay clean. */
	if (!(batch->gup_flags & FOLL_WRITE) && folio_test_swapcache(folio))
		return false;
	folio_mark_dirty(folio);
	return true;
}

/* Under view->rwsem. */
static bool rmap_batch_valid(struct rmap_batch *batch)
{
	return !batch->view->dead && !batch->attempt.stale;
}

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
/* One huge page in the target, and the mirror's address agrees with it? */
static bool rmap_batch_is_huge(struct rmap_batch *batch)
{
	unsigned long pfn = batch->pfns[0] & ~HMM_PFN_FLAGS;
	unsigned int i;

	if (batch->whole)
		return true;
	if (!rmap_batch_may_be_huge(batch) ||
	    pfn & ((PMD_SIZE >> PAGE_SHIFT) - 1))
		return false;
	for (i = 0; i < batch->nr; i++)
		if (!(batch->pfns[i] & HMM_PFN_VALID) ||
		    (batch->pfns[i] & ~HMM_PFN_FLAGS) != pfn + i)
			return false;
	return true;
}

/* Returns VM_FAULT_FALLBACK if single pages have to do. */
static vm_fault_t rmap_install_huge(struct rmap_batch *batch)
{
	bool write = batch->vmf->flags & FAULT_FLAG_WRITE;
	struct rmap_view *view = batch->view;
	vm_fault_t fault = VM_FAULT_FALLBACK;
	bool writable = true;
	unsigned int i;
	/* What holds for one page of a huge one holds for all. */
	unsigned int nr = batch->whole ? 1 : batch->nr;

	/*
	 * Exclusively: nobody puts a page table there in the meantime. All
	 * of the block is this view's, and the core does not do so itself for
	 * a VMA like this one.
	 */
	down_write(&view->rwsem);
	if (!rmap_batch_valid(batch)) {
		fault = VM_FAULT_NOPAGE;
		goto unlock;
	}
	if (!pmd_none(READ_ONCE(*batch->vmf->pmd)))
		goto unlock;
	/*
	 * The huge zero page, which has neither a file nor an owner: with an
	 * entry for it, whoever made that, Linux 7.2 frees a page table that
	 * was put by, and here that is another mapping's.
	 */
	if (!READ_ONCE(page_folio(pfn_to_page(batch->pfns[0] &
					      ~HMM_PFN_FLAGS))->mapping))
		goto unlock;
	for (i = 0; i < nr && writable; i++)
		writable = rmap_batch_writable(batch, i);
	if (write && !writable)
		goto unlock;
	rmap_view_mark(view, batch->first, batch->first + batch->nr - 1);
	fault = rmap_insert_pmd(batch->vmf, batch->pfns[0] & ~HMM_PFN_FLAGS,
				writable);
unlock:
	up_write(&view->rwsem);
	return fault;
}
#else
static bool rmap_batch_is_huge(struct rmap_batch *batch)
{
	return false;
}

static vm_fault_t rmap_install_huge(struct rmap_batch *batch)
{
	return VM_FAULT_FALLBACK;
}
#endif

/*
 * Puts the page table in place that the core has allocated for this fault.
 * vmf_insert_pfn() would allocate one itself, and reclaim may need the lock
 * that we hold. False if there is none, or a huge page has come first.
 */
static bool rmap_install_table(struct vm_fault *vmf)
{
	struct mm_struct *mm = vmf->vma->vm_mm;
	spinlock_t *ptl;	/* of vmf->pmd */
	pmd_t pmd;

	if (pmd_none(READ_ONCE(*vmf->pmd))) {
		if (!vmf->prealloc_pte)
			return false;
		ptl = pmd_lock(mm, vmf->pmd);
		if (pmd_none(*vmf->pmd)) {
			mm_inc_nr_ptes(mm);
			/* The table is zeroed before anyone can find it. */
			smp_wmb();
			pmd_populate(mm, vmf->pmd, vmf->prealloc_pte);
			vmf->prealloc_pte = NULL;
		}
		spin_unlock(ptl);
	}
	pmd = READ_ONCE(*vmf->pmd);
	return pmd_present(pmd) && !pmd_leaf(pmd);
}

/* Marks runs of pages that are about to be installed. */
static void rmap_batch_mark(struct rmap_batch *batch)
{
	unsigned int i, run = 0;

	for (i = 0; i <= batch->nr; i++) {
		if (i < batch->nr && batch->pfns[i] & HMM_PFN_VALID)
			continue;
		if (run < i)
			rmap_view_mark(batch->view, batch->first + run,
				       batch->first + i - 1);
		run = i + 1;
	}
}

/* How the entries of a batch are made. */
struct rmap_install {
	struct rmap_batch *batch;
	pgprot_t writable;
	pgprot_t readonly;
};

static pgprot_t rmap_install_prot(struct rmap_install *install, unsigned int i)
{
	return rmap_batch_writable(install->batch, i) ? install->writable :
							install->readonly;
}

/* One entry, under the lock of its table. */
static int rmap_install_entry(pte_t *pte, unsigned long address, void *data)
{
	struct rmap_install *install = data;
	struct rmap_batch *batch = install->batch;
	unsigned int i = (address - batch->address) >> PAGE_SHIFT;
	unsigned long pfn = batch->pfns[i] & ~HMM_PFN_FLAGS;

	if (!(batch->pfns[i] & HMM_PFN_VALID) || !pte_none(ptep_get(pte)))
		return 0;
	set_pte_at(batch->vmf->vma->vm_mm, address, pte,
		   pte_mkspecial(pfn_pte(pfn, rmap_install_prot(install, i))));
	return 0;
}

/* One by one, so that each gets the memory type that its page has. */
static vm_fault_t rmap_install_typed(struct rmap_install *install)
{
	struct rmap_batch *batch = install->batch;
	vm_fault_t result = VM_FAULT_NOPAGE;
	unsigned int i;

	for (i = 0; i < batch->nr; i++) {
		vm_fault_t fault;

		if (!(batch->pfns[i] & HMM_PFN_VALID))
			continue;
		fault = vmf_insert_pfn_prot(batch->vmf->vma,
					    batch->address +
					    ((unsigned long)i << PAGE_SHIFT),
					    batch->pfns[i] & ~HMM_PFN_FLAGS,
					    rmap_install_prot(install, i));
		if (i == batch->index)
			result = fault;
	}
	return result;
}

static vm_fault_t rmap_install_pages(struct rmap_batch *batch)
{
	struct vm_fault *vmf = batch->vmf;
	struct vm_area_struct *vma = vmf->vma;
	struct rmap_view *view = batch->view;
	struct rmap_install install = {
		.batch = batch,
		.writable = vm_get_page_prot(vma->vm_flags),
		.readonly = vm_get_page_prot(vma->vm_flags & ~VM_SHARED),
	};
	vm_fault_t result = VM_FAULT_NOPAGE;

	down_read(&view->rwsem);
	/* If it is not valid any more, the fault starts again. */
	if (!rmap_batch_valid(batch) || !rmap_install_table(vmf))
		goto unlock;
	rmap_batch_mark(batch);
	/*
	 * The table is there, and all of the batch is in it: nothing is
	 * allocated. Nothing turns it into a huge entry either, which takes
	 * view->rwsem exclusively.
	 */
	if (batch->odd_type)
		result = rmap_install_typed(&install);
	else if (apply_to_page_range(vma->vm_mm, batch->address,
				     (unsigned long)batch->nr << PAGE_SHIFT,
				     rmap_install_entry, &install))
		result = VM_FAULT_OOM;
unlock:
	up_read(&view->rwsem);
	return result;
}

/*
 * Reads and installs. Returns as rmap_batch_look(), with the attempt begun.
 * @huge: a huge page, or VM_FAULT_FALLBACK.
 */
static vm_fault_t rmap_batch_try(struct rmap_batch *batch, bool huge)
{
	struct vm_fault *vmf = batch->vmf;
	vm_fault_t fault = VM_FAULT_RETRY;

	if (batch->mm == vmf->vma->vm_mm && rmap_fault_locks_mm(vmf)) {
		fault = rmap_batch_look(batch, huge);
	} else if (mmap_read_trylock(batch->mm)) {
		fault = rmap_batch_look(batch, huge);
		/* From here the attempt vouches for what was seen. */
		mmap_read_unlock(batch->mm);
	}
	if (fault)
		return fault;

	if (rmap_view_reserve(batch->view, batch->first,
			      batch->first + batch->nr - 1))
		return VM_FAULT_OOM;
	fault = VM_FAULT_FALLBACK;
	if (rmap_batch_is_huge(batch))
		fault = rmap_install_huge(batch);
	if (fault == VM_FAULT_FALLBACK && !huge) {
		if (batch->whole && !rmap_batch_spread(batch))
			return VM_FAULT_OOM;
		fault = rmap_install_pages(batch);
	}
	return fault;
}

/*
 * Returns VM_FAULT_RETRY if it takes the slow way, else what the fault ends
 * with; the lock of the importer is held on return.
 */
static vm_fault_t rmap_fault_quick(struct rmap_batch *batch,
				   struct vm_fault *vmf, struct rmap_view *view)
{
	vm_fault_t fault;

	rmap_batch_init(batch, vmf, view, false);
	if (batch->nr > 1 && rmap_attempt_begin(view, &batch->attempt)) {
		fault = rmap_batch_try(batch, false);
		rmap_batch_free(batch);
		rmap_attempt_end(view, &batch->attempt);
		if (!batch->attempt.stale)
			return fault;
	}
	/* What goes on nearby does not hold up the page itself. */
	rmap_batch_init(batch, vmf, view, true);
	if (!rmap_attempt_begin(view, &batch->attempt))
		return VM_FAULT_RETRY;
	fault = rmap_batch_try(batch, false);
	rmap_attempt_end(view, &batch->attempt);
	return fault;
}

/*
 * Has the target bring the page in, under its mmap_lock. Returns what the fault
 * ends with, or 0. @locked may be NULL: the lock is kept, and what cannot be
 * had without waiting for another process fails.
 */
static vm_fault_t rmap_bring_in(struct rmap_batch *batch, unsigned long target,
				int *locked)
{
	struct page *page;
	vm_fault_t fault;
	long n;

	fault = rmap_target_check(find_vma(batch->mm, target), target,
				  batch->gup_flags);
	if (fault)
		return fault;
	n = rmap_gup(batch->mm, target, batch->gup_flags, &page, locked);
	if (n != 1)
		return rmap_fault_of_errno(n);
	put_page(page);
	return 0;
}

/* With nothing of the importer's locked: may sleep, but not past a kill. */
static vm_fault_t rmap_bring_in_killable(struct rmap_batch *batch,
					 unsigned long target)
{
	vm_fault_t fault;
	int locked = 1;

	if (rmap_view_wait_settled(batch->view,
				   batch->first + batch->index) ||
	    mmap_read_lock_killable(batch->mm))
		return 0;
	fault = rmap_bring_in(batch, target, &locked);
	if (locked)
		mmap_read_unlock(batch->mm);
	return fault;
}

/* Neither drops the importer's lock nor waits for the target's. */
static vm_fault_t rmap_bring_in_locked(struct rmap_batch *batch,
				       unsigned long target)
{
	vm_fault_t fault = 0;

	if (batch->mm == batch->vmf->vma->vm_mm) {
		fault = rmap_bring_in(batch, target, NULL);
	} else if (mmap_read_trylock(batch->mm)) {
		fault = rmap_bring_in(batch, target, NULL);
		mmap_read_unlock(batch->mm);
	}
	return fault ? fault : VM_FAULT_NOPAGE;
}

static vm_fault_t rmap_fault_slow(struct rmap_batch *batch)
{
	struct vm_fault *vmf = batch->vmf;
	struct rmap_space *space = batch->view->space;
	unsigned long target = rmap_view_address(batch->view, vmf->pgoff);
	unsigned long address = vmf->address & PAGE_MASK;
	unsigned int flags = vmf->flags;
	struct file *file;
	vm_fault_t fault;

	if (!(flags & FAULT_FLAG_ALLOW_RETRY) ||
	    flags & FAULT_FLAG_RETRY_NOWAIT) {
		rmap_view_queue_settle(batch->view);
		/* Who cannot retry loops, with the lock free in between. */
		return flags & FAULT_FLAG_ALLOW_RETRY ?
			       VM_FAULT_RETRY :
			       rmap_bring_in_locked(batch, target);
	}

	/* Without the lock the VMA may go, and with it the last file. */
	file = get_file(vmf->vma->vm_file);
	rmap_release_fault_lock(vmf);
	fault = rmap_bring_in_killable(batch, target);
	if (fault)
		rmap_outcome_put(space, address, fault);
	fput(file);
	return VM_FAULT_RETRY;
}

/* One way or the other. */
static vm_fault_t rmap_fault_any(struct rmap_batch *batch,
				 struct vm_fault *vmf, struct rmap_view *view)
{
	vm_fault_t fault = rmap_fault_quick(batch, vmf, view);

	return fault == VM_FAULT_RETRY ? rmap_fault_slow(batch) : fault;
}

/* @way: with the view and the target's memory held. */
static vm_fault_t rmap_fault_by(struct vm_fault *vmf,
				vm_fault_t (*way)(struct rmap_batch *batch,
						  struct vm_fault *vmf,
						  struct rmap_view *view))
{
	struct rmap_file *access = vmf->vma->vm_file->private_data;
	struct rmap_space *space = access->space;
	struct mm_struct *mm = space->mm;
	struct rmap_batch batch;
	struct rmap_view *view;
	vm_fault_t fault;

	view = rmap_view_get(space, vmf->pgoff);
	if (!view)
		return VM_FAULT_SIGBUS;

	batch.gup_flags = 0;
	if (vmf->flags & FAULT_FLAG_WRITE) {
		fault = VM_FAULT_SIGSEGV;
		if (view->rdonly)
			goto put_view;
		batch.gup_flags = FOLL_WRITE;
		if (access->force)
			batch.gup_flags |= FOLL_FORCE;
	}
	fault = VM_FAULT_SIGBUS;
	if (!mmget_not_zero(mm))
		goto put_view;

	fault = way(&batch, vmf, view);

	/* Not the last: the target's exit is not this fault's business. */
	mmput_async(mm);
put_view:
	rmap_view_put(view);
	return fault;
}

static vm_fault_t rmap_fault(struct vm_fault *vmf)
{
	struct rmap_file *access = vmf->vma->vm_file->private_data;
	vm_fault_t fault = rmap_outcome_take(access->space, vmf);

	return fault ? fault : rmap_fault_by(vmf, rmap_fault_any);
}

#ifdef RMAP_HUGE_FAULT
static vm_fault_t rmap_fault_whole(struct rmap_batch *batch,
				   struct vm_fault *vmf, struct rmap_view *view)
{
	vm_fault_t fault;

	rmap_batch_init(batch, vmf, view, false);
	if (!rmap_batch_may_be_huge(batch) ||
	    !rmap_attempt_begin(view, &batch->attempt))
		return VM_FAULT_FALLBACK;
	fault = rmap_batch_try(batch, true);
	rmap_attempt_end(view, &batch->attempt);
	return fault;
}

/*
 * Where there is no page table yet. The core has neither allocated one nor
 * taken more than the VMA's lock, both of which ->fault has it do. That is
 * called next, if it was in vain.
 */
static vm_fault_t rmap_huge_fault(struct vm_fault *vmf, unsigned int order)
{
	if (!rmap_huge_pages || order != PMD_SHIFT - PAGE_SHIFT ||
	    !pmd_none(READ_ONCE(*vmf->pmd)) ||
	    rmap_fault_by(vmf, rmap_fault_whole) != VM_FAULT_NOPAGE)
		return VM_FAULT_FALLBACK;
	return VM_FAULT_NOPAGE;
}
#endif

/*
 * A store to a page that is shown read-only. Only ->fault can tell whether it
 * may be written, so the page is dropped and the store faults again. Without
 * this operation the core would just make the entry writable.
 *
 * Before that the target gets the page for writing, if that needs no waiting:
 * what faults again may be a load. A processor, at least an emulated one, may
 * load before it stores in one instruction, and would never get any further.
 */
static vm_fault_t rmap_pfn_mkwrite(struct vm_fault *vmf)
{
	struct rmap_file *access = vmf->vma->vm_file->private_data;
	struct rmap_space *space = access->space;
	struct rmap_batch batch = {
		.vmf = vmf,
		.mm = space->mm,
		.gup_flags = FOLL_WRITE | (access->force ? FOLL_FORCE : 0),
	};
	struct rmap_view *view = rmap_view_get(space, vmf->pgoff);
	vm_fault_t fault = 0;

	if (view && view->rdonly) {
		fault = VM_FAULT_SIGSEGV;
	} else if (view && mmget_not_zero(space->mm)) {
		fault = rmap_bring_in_locked(&batch,
					     rmap_view_address(view, vmf->pgoff));
		mmput_async(space->mm);
	}
	if (view)
		rmap_view_put(view);
	if (fault == VM_FAULT_SIGSEGV)
		return fault;
	rmap_space_zap(space, vmf->pgoff, 1);
	return VM_FAULT_NOPAGE;
}

/* For debuggers of the importer, with its mmap_lock held. */
static int rmap_vm_access(struct vm_area_struct *vma, unsigned long address,
			  void *buf, int len, int write)
{
	struct rmap_file *access = vma->vm_file->private_data;
	struct rmap_space *space = access->space;
	unsigned int gup_flags = 0;
	struct rmap_view *view;
	int ret = -EFAULT;

	/* As get_user_pages() would for a normal mapping, without force. */
	if (!(vma->vm_flags & (write ? VM_WRITE : VM_READ)))
		return -EFAULT;
	len = min_t(unsigned long, len, PAGE_SIZE - offset_in_page(address));
	view = rmap_view_get(space, linear_page_index(vma, address));
	if (!view)
		return -EFAULT;
	if (write) {
		if (view->rdonly)
			goto put_view;
		gup_flags = FOLL_WRITE | (access->force ? FOLL_FORCE : 0);
	}
	ret = rmap_target_copy(space->mm,
			       rmap_view_address(view, linear_page_index(vma, address)) +
				       offset_in_page(address),
			       buf, len, gup_flags, vma->vm_mm);
	if (!ret)
		ret = len;
put_view:
	rmap_view_put(view);
	return ret;
}

const struct vm_operations_struct rmap_vm_ops = {
	.fault = rmap_fault,
#ifdef RMAP_HUGE_FAULT
	.huge_fault = rmap_huge_fault,
#endif
	.pfn_mkwrite = rmap_pfn_mkwrite,
	.access = rmap_vm_access,
};
