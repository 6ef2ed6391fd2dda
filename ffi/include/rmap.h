/*
 * rmap.h - what libxpmem.so of rmap has beyond XPMEM. SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * A program that also runs with other libraries looks the function up by its name: dlsym(RTLD_DEFAULT, "rmap_counters").
 */
#ifndef RMAP_H
#define RMAP_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Stalls are counted by length: the first of so many counts those below 2 us, each further one those of up to twice as long, and the last
 * all longer ones.
 */
#define RMAP_STALL_LENGTHS 32

/*
 * What a process has counted since it first used the library; a forked child starts with nothing. All are totals but for those that say
 * "longest" or "now".
 */
struct rmap_counters {
    uint64_t size; /* bytes of this struct: set by the caller */
    uint64_t stalls_by_length[RMAP_STALL_LENGTHS];
    uint64_t segments_made; /* segments that this process has made */
    uint64_t segments_removed; /* segments that it has removed */
    uint64_t permits_given; /* permits that others have got from it */
    uint64_t permits_denied; /* permits that it has refused by the segment's mode */
    uint64_t permits_unknown; /* permits that it has refused because there is no such segment */
    uint64_t permits_failed; /* permits that it has refused for want of something */
    uint64_t permits_got; /* permits that this process has got from others */
    uint64_t permits_refused; /* permits that others have refused it */
    uint64_t permits_released; /* permits that it has given back */
    uint64_t attach_hits; /* attachments found mapped: no system call, no message */
    uint64_t attach_misses; /* attachments that the service thread was asked for */
    uint64_t detach_hits; /* detachments that left the memory mapped, without asking */
    uint64_t detach_misses; /* detachments that the service thread was asked for */
    uint64_t windows_made; /* windows onto exporters that were mapped */
    uint64_t touches_asked; /* first touches of memory that was not there yet: questions to exporters */
    uint64_t touches_object; /* those that were answered with memory of an object */
    uint64_t touches_file; /* those that were answered with a file */
    uint64_t touches_system_v; /* those that were answered with a System V segment */
    uint64_t touches_hole; /* those where the exporter has nothing */
    uint64_t touches_read_only; /* those that were stores to memory that the exporter may only read */
    uint64_t touches_ns; /* nanoseconds between questions and answers, together */
    uint64_t touch_longest_ns; /* the longest time between a question and its answer, in nanoseconds */
    uint64_t answers_object; /* questions of importers answered with memory of an object */
    uint64_t answers_file; /* questions of importers answered with a file */
    uint64_t answers_system_v; /* questions of importers answered with a System V segment */
    uint64_t answers_hole; /* questions of importers answered with nothing */
    uint64_t answers_read_only; /* questions of importers answered with memory that this process may only read */
    uint64_t adoptions; /* chunks of memory that were adopted */
    uint64_t adopted_bytes; /* bytes of address space that were adopted */
    uint64_t copied_bytes; /* bytes of program text and constants that were copied for importers */
    uint64_t evicted_bytes; /* bytes that were made private again: for a fork, or because a segment was removed */
    uint64_t huge_pages; /* blocks of 2 MiB that became huge pages */
    uint64_t huge_pages_failed; /* times that becoming huge pages has failed */
    uint64_t stalls; /* times that all threads stood still */
    uint64_t stalls_failed; /* times that they could not be stopped */
    uint64_t threads_stopped; /* threads that were stopped, together */
    uint64_t stall_ns; /* nanoseconds that they stood still, with the time it took to stop them */
    uint64_t stall_longest_ns; /* the longest of those times, in nanoseconds */
    uint64_t events; /* events of the address space that were followed: unmapping, moving and dropping of memory */
    uint64_t punches; /* ranges that were taken from importers because of them */
    uint64_t notices; /* notices to importers that files or segments have gone */
    uint64_t forks; /* forks that were followed */
    uint64_t errors_invalid; /* calls that failed because of an argument */
    uint64_t errors_no_such_id; /* calls that failed because there is no such segment or permit */
    uint64_t errors_denied; /* calls that failed by a segment's mode, or with an id of another process */
    uint64_t errors_resources; /* calls that failed because memory, mappings or descriptors had run out */
    uint64_t errors_timed_out; /* calls that failed because an exporter did not answer in time */
    uint64_t errors_other; /* calls that failed otherwise */
    uint64_t segments; /* now: segments of this process */
    uint64_t importers; /* now: processes that hold permits of this one */
    uint64_t permits_given_now; /* now: permits that they hold */
    uint64_t exporters; /* now: processes of which this one holds permits */
    uint64_t permits_held; /* now: permits that it holds */
    uint64_t windows; /* now: windows that are mapped */
    uint64_t window_bytes; /* now: bytes of address space that they take */
    uint64_t shown_bytes; /* now: bytes of address space that objects show to importers */
    uint64_t object_bytes; /* now: bytes of memory in objects */
    uint64_t evictions; /* ranges that were made private again */
    uint64_t windows_removed; /* windows that were given up: the permit or exporter gone, taken by the application, or too many */
};

/*
 * Fills in the counters of this process. The caller sets counters->size to sizeof(struct rmap_counters); a library that is older or newer than
 * the header fills in what both have, sets the rest to 0, and counters->size to what it has filled in. Nothing is started for this: where the
 * library has not been used all are 0. 0, or -1 with errno EINVAL if the size is not one.
 */
int rmap_counters(struct rmap_counters *counters);

#ifdef __cplusplus
}
#endif

#endif
