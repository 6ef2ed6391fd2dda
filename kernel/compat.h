/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What differs between kernels 6.1 and 7.x, and nothing else.
 */
#ifndef RMAP_COMPAT_H
#define RMAP_COMPAT_H

#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/version.h>
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 17, 0)
#include <linux/pfn_t.h>
#endif

/* One page of another address space; returns 1 or an error. */
static inline long rmap_gup(struct mm_struct *mm, unsigned long address,
			    unsigned int flags, struct page **page, int *locked)
{
	long n;

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 5, 0)
	n = get_user_pages_remote(mm, address, 1, flags, page, locked);
#else
	n = get_user_pages_remote(mm, address, 1, flags, page, NULL, locked);
#endif
	return n ? n : -EFAULT;
}

static inline void rmap_vm_flags_set(struct vm_area_struct *vma,
				     unsigned long flags)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_set(vma, flags);
#else
	vma->vm_flags |= flags;
#endif
}

static inline void rmap_release_fault_lock(struct vm_fault *vmf)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
	release_fault_lock(vmf);
#else
	mmap_read_unlock(vmf->vma->vm_mm);
#endif
}

/* Is it the importer's mmap_lock that the fault holds, or only its VMA's? */
static inline bool rmap_fault_locks_mm(struct vm_fault *vmf)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
	return !(vmf->flags & FAULT_FLAG_VMA_LOCK);
#else
	return true;
#endif
}

#ifndef VM_SHADOW_STACK
#define VM_SHADOW_STACK	VM_NONE
#endif

/*
 * Do page table walkers know huge entries without struct page? From 6.12 on,
 * where the architecture has a bit for it. Before, get_user_pages_fast() pins
 * what it finds there, and KVM's lookup of such memory fails.
 */
#if defined(CONFIG_ARCH_SUPPORTS_PMD_PFNMAP)
#define RMAP_HUGE_PAGES_DEFAULT	true
#else
#define RMAP_HUGE_PAGES_DEFAULT	false
#endif

/* Does the core call ->huge_fault() for a VMA that is VM_PFNMAP? */
#if defined(CONFIG_TRANSPARENT_HUGEPAGE) && \
	LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
#define RMAP_HUGE_FAULT
#endif

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
static inline vm_fault_t rmap_insert_pmd(struct vm_fault *vmf,
					 unsigned long pfn, bool write)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 17, 0)
	return vmf_insert_pfn_pmd(vmf, pfn, write);
#else
	return vmf_insert_pfn_pmd(vmf, pfn_to_pfn_t(pfn), write);
#endif
}
#endif

#endif /* RMAP_COMPAT_H */
