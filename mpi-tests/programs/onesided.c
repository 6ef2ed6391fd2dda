/* One-sided communication in windows over the program's own memory: puts into memory that its owner has never touched, gets,
 * accumulates by all ranks on the same words, counters and locks made of compare-and-swap. Every byte is checked, by the owner
 * with plain loads.
 *
 * usage: onesided [rounds of the counters; 0: none] */
#include "common.h"

enum kind { MAPPED, HEAP, STATIC, KINDS };
static const char *const kind_name[KINDS] = {"mmap", "heap", "static"};

#define SLOT (300 * KIB + 8)
#define MAX_RANKS 64

static unsigned char static_window[MAX_RANKS * SLOT / 4];

/* The window of every rank has one slot per rank: slot i of rank t is written by rank i and read back by rank i + 1. */
static void slots(enum kind kind, size_t slot, uint64_t serial)
{
    size_t size = slot * (size_t)rank_count;
    unsigned char *window, *local = allocate(slot);
    int target, owner;
    MPI_Win win;

    if (kind == STATIC && size > sizeof static_window)
        size = sizeof static_window, slot = size / (size_t)rank_count & ~(size_t)7;
    window = kind == MAPPED ? map_memory(size) : kind == HEAP ? allocate(size) : static_window;
    MPI_Win_create(window, (MPI_Aint)size, 1, MPI_INFO_NULL, MPI_COMM_WORLD, &win);
    MPI_Win_fence(0, win);
    for (target = 0; target < rank_count; target++) {
        fill(local, slot, message_seed(my_rank, target, slot, serial));
        MPI_Put(local, (int)slot, MPI_BYTE, target, (MPI_Aint)slot * my_rank, (int)slot, MPI_BYTE, win);
        MPI_Win_fence(0, win); /* `local` is written again in the next round. */
    }
    for (owner = 0; owner < rank_count; owner++)
        check(window + slot * (size_t)owner, slot, message_seed(owner, my_rank, slot, serial), kind_name[kind], owner);
    MPI_Win_fence(0, win);
    for (target = 0; target < rank_count; target++) {
        owner = (my_rank + 1) % rank_count;
        memset(local, 0x44, slot);
        MPI_Get(local, (int)slot, MPI_BYTE, target, (MPI_Aint)slot * owner, (int)slot, MPI_BYTE, win);
        MPI_Win_fence(0, win);
        check(local, slot, message_seed(owner, target, slot, serial), "get", target);
    }
    MPI_Win_free(&win);
    if (kind == MAPPED)
        munmap(window, size);
    if (kind == HEAP)
        free(window);
    free(local);
}

static void expect(uint64_t got, uint64_t expected, const char *what, int peer)
{
    checked_messages++;
    checked_bytes += sizeof got;
    if (got != expected)
        fail("%s, peer %d: expected %llu, got %llu", what, peer, (unsigned long long)expected, (unsigned long long)got);
}

/* All ranks add to the same words of all ranks at once. */
static void accumulate(size_t words, int times)
{
    uint64_t *window = map_memory(words * 8), *add = allocate(words * 8), sum = 0;
    int target, i;
    size_t k;
    MPI_Win win;

    for (k = 0; k < words; k++)
        add[k] = (uint64_t)(my_rank + 1) * (k + 1);
    for (i = 0; i < rank_count; i++)
        sum += (uint64_t)(i + 1) * (uint64_t)times;
    MPI_Win_create(window, (MPI_Aint)(words * 8), 8, MPI_INFO_NULL, MPI_COMM_WORLD, &win);
    MPI_Win_fence(0, win);
    for (i = 0; i < times; i++)
        for (target = 0; target < rank_count; target++)
            MPI_Accumulate(add, (int)words, MPI_UINT64_T, target, 0, (int)words, MPI_UINT64_T, MPI_SUM, win);
    MPI_Win_fence(0, win);
    for (k = 0; k < words; k++)
        expect(window[k], sum * (k + 1), "accumulate", -1);
    MPI_Win_free(&win);
    munmap(window, words * 8);
    free(add);
}

/* A counter on rank 0 that all ranks raise, and a pair of words guarded by a lock made of compare-and-swap. */
static void counters(int rounds)
{
    uint64_t *window = map_memory(4096), one = 1, zero = 0, old, last = 0, pair[2];
    int i;
    MPI_Win win;

    MPI_Win_create(window, 4096, 8, MPI_INFO_NULL, MPI_COMM_WORLD, &win);
    MPI_Win_lock_all(0, win);
    for (i = 0; i < rounds; i++) {
        MPI_Fetch_and_op(&one, &old, MPI_UINT64_T, 0, 0, MPI_SUM, win);
        MPI_Win_flush(0, win);
        if (i > 0 && old <= last)
            expect(old, last + 1, "counter went back", 0);
        last = old;
    }
    for (i = 0; i < rounds / 10; i++) {
        do {
            MPI_Compare_and_swap(&one, &zero, &old, MPI_UINT64_T, 0, 8, win);
            MPI_Win_flush(0, win);
        } while (old != 0);
        MPI_Get(pair, 2, MPI_UINT64_T, 0, 16, 2, MPI_UINT64_T, win);
        MPI_Win_flush(0, win);
        expect(pair[1], 3 * pair[0], "pair under the lock", 0);
        pair[0] += 1;
        pair[1] += 3;
        MPI_Put(pair, 2, MPI_UINT64_T, 0, 16, 2, MPI_UINT64_T, win);
        MPI_Win_flush(0, win);
        MPI_Fetch_and_op(&zero, &old, MPI_UINT64_T, 0, 8, MPI_REPLACE, win);
        MPI_Win_flush(0, win);
        expect(old, 1, "lock word", 0);
    }
    MPI_Win_unlock_all(win);
    MPI_Barrier(MPI_COMM_WORLD);
    if (my_rank == 0) {
        MPI_Win_lock(MPI_LOCK_SHARED, 0, 0, win);
        expect(window[0], (uint64_t)rounds * (uint64_t)rank_count, "counter", -1);
        expect(window[16], (uint64_t)(rounds / 10) * (uint64_t)rank_count, "first word of the pair", -1);
        expect(window[17], 3 * window[16], "second word of the pair", -1);
        MPI_Win_unlock(0, win);
    }
    MPI_Win_free(&win);
    munmap(window, 4096);
}

int main(int argc, char **argv)
{
    static const size_t sizes[] = {8, 1000, 4096, 70000, SLOT, 2 * MIB + 24};
    int rounds = 100, kind;
    size_t i;

    start(&argc, &argv);
    if (argc > 1)
        rounds = atoi(argv[1]);
    for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        for (kind = 0; kind < KINDS; kind++)
            slots(kind, sizes[i], i);
    accumulate(1, 50);
    accumulate(5000, 5);
    if (rounds > 0)
        counters(rounds);
    finish("onesided");
    return 0;
}
