/*
 * counters.c: rmap_counters() in an exporter and in an importer, with structs of other sizes than the library's.
 *
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 */
#include "harness.h"

#include <rmap.h>
#include <stddef.h>

#define PAGES 16

static struct rmap_counters counted(void)
{
	struct rmap_counters counters;

	memset(&counters, 0xff, sizeof(counters));
	counters.size = sizeof(counters);
	errno = UNTOUCHED;
	if (rmap_counters(&counters) != 0)
		die("rmap_counters");
	return counters;
}

/* In the importer: what is wrong, or nothing. */
static const char *import(xpmem_segid_t segid, char *memory)
{
	struct xpmem_addr addr;
	struct rmap_counters counters = counted();
	void *at;
	int round;

	if (counters.segments_made != 0 || counters.forks != 0)
		return "a child starts with nothing";
	addr.apid = xpmem_get(segid, XPMEM_RDWR, XPMEM_PERMIT_MODE, NULL);
	addr.offset = (off_t)(uintptr_t)memory;
	for (round = 0; round < 10; round++) {
		at = xpmem_attach(addr, PAGES * page, NULL);
		/* Both ends: it may lie across a border of what is adopted in one go. */
		if (at == (void *)-1 || *(volatile char *)at != 7 ||
		    ((volatile char *)at)[PAGES * page - 1] != 7)
			return "an attachment";
		if (xpmem_detach(at) != 0)
			return "a detachment";
	}
	if (xpmem_get(segid + 1, XPMEM_RDWR, XPMEM_PERMIT_MODE, NULL) != -1)
		return "a permit of nothing";
	counters = counted();
	if (counters.permits_got != 1 || counters.permits_held != 1 || counters.exporters != 1)
		return "permits are counted";
	if (counters.attach_hits != 9 || counters.attach_misses != 1 || counters.detach_hits != 10)
		return "attachments are counted";
	if (counters.touches_asked < 1 || counters.touches_object != counters.touches_asked ||
	    counters.touches_ns < counters.touch_longest_ns || counters.touch_longest_ns == 0)
		return "first touches are counted";
	if (counters.windows != 1 || counters.window_bytes < PAGES * page)
		return "windows are counted";
	if (counters.permits_refused != 1 || counters.errors_no_such_id != 1)
		return "refusals are counted";
	return NULL;
}

int main(void)
{
	struct rmap_counters counters;
	uint64_t small[3] = { sizeof(small), 1, 1 }, total = 0;
	struct {
		struct rmap_counters known;
		uint64_t more[2];
	} large;
	const char *wrong;
	char *memory;
	int status = 0, i;
	pid_t child;
	xpmem_segid_t segid;

	begin();
	counters = counted();
	CHECK(errno == UNTOUCHED, "rmap_counters() leaves errno alone");
	CHECK(counters.size == sizeof(counters), "the library knows all counters of the header, and the header all of the library");
	CHECK(counters.segments_made == 0 && counters.attach_hits == 0 && counters.window_bytes == 0,
	      "all is 0 before the first use");
	memory = mmap(NULL, PAGES * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		die("mmap");
	memset(memory, 7, PAGES * page);
	segid = xpmem_make(NULL, XPMEM_MAXADDR_SIZE, XPMEM_PERMIT_MODE, MODE(0600));
	if (segid == -1)
		die("xpmem_make");
	child = fork();
	if (child == 0) {
		wrong = import(segid, memory);
		if (wrong)
			fprintf(stderr, "importer: %s\n", wrong);
		_exit(wrong != NULL);
	}
	waitpid(child, &status, 0);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "an importer's counters");
	counters = counted();
	CHECK(counters.segments_made == 1 && counters.segments == 1 && counters.forks == 1, "segments and forks are counted");
	CHECK(counters.permits_given == 1 && counters.permits_unknown == 1, "permits given and refused are counted");
	CHECK(counters.adoptions >= 1 && counters.adopted_bytes >= PAGES * page &&
		      counters.shown_bytes >= PAGES * page && counters.object_bytes >= PAGES * page,
	      "adopted memory is counted");
	for (i = 0; i < RMAP_STALL_LENGTHS; i++)
		total += counters.stalls_by_length[i];
	CHECK(counters.stalls >= 1 && total == counters.stalls && counters.stall_ns >= counters.stall_longest_ns &&
		      counters.threads_stopped >= counters.stalls,
	      "stalls are counted, each once by its length");
	CHECK(counters.answers_object >= 1 && counters.answers_hole == 0, "answers are counted");

	CHECK(rmap_counters((struct rmap_counters *)(void *)small) == 0 && small[0] == sizeof(small),
	      "a shorter struct is filled as far as it goes");
	CHECK(small[1] == counters.stalls_by_length[0] && small[2] == counters.stalls_by_length[1],
	      "a shorter struct has the first counters");
	memset(&large, 0xff, sizeof(large));
	large.known.size = sizeof(large);
	CHECK(rmap_counters(&large.known) == 0 && large.known.size == sizeof(large.known) && large.more[0] == 0 &&
		      large.more[1] == 0 && large.known.segments_made == 1,
	      "a longer struct has zeroes at its end, and is told so");
	counters.size = 7;
	errno = 0;
	CHECK(rmap_counters(&counters) == -1 && errno == EINVAL, "a size of 7 is refused");
	errno = 0;
	CHECK(rmap_counters(NULL) == -1 && errno == EINVAL, "no struct is refused");
	return finish();
}
