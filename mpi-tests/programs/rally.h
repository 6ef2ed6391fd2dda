/* The time of a cache line between ranks 0 and 1 and back, over memory that is independent of the MPI runtime. It tells how the cores
 * that the two ranks are on lie to each other. */
#ifndef RALLY_H
#define RALLY_H

#include "common.h"

#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>

#define COURT (3 * MIB)

static unsigned char *court; /* A file that ranks 0 and 1 map; what follows the first page is for the program. */
static _Atomic unsigned *ball;
static unsigned thrown;
static int oversubscribed;

static void open_court(void)
{
    const char *folder = getenv("RMAP_MPI_JOB");
    char path[512];
    int file = -1;

    oversubscribed = rank_count > sysconf(_SC_NPROCESSORS_ONLN);
    snprintf(path, sizeof path, "%s/court", folder ? folder : "/tmp");
    if (my_rank == 0) {
        file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
        if (file < 0 || ftruncate(file, COURT) != 0)
            fail_call(path);
    }
    MPI_Barrier(MPI_COMM_WORLD);
    if (my_rank == 1)
        file = open(path, O_RDWR);
    if (my_rank < 2) {
        court = mmap(NULL, COURT, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (file < 0 || court == MAP_FAILED)
            fail_call(path);
        close(file);
        ball = (_Atomic unsigned *)court;
    }
    MPI_Barrier(MPI_COMM_WORLD);
    if (my_rank == 0)
        unlink(path);
}

static void wait_for_ball(unsigned value)
{
    unsigned spins = 0;

    while (atomic_load_explicit(ball, memory_order_acquire) != value)
        if (oversubscribed && ++spins % 4096 == 0)
            sched_yield();
}

static void throw_ball(void) { atomic_store_explicit(ball, ++thrown, memory_order_release); }

static void catch_ball(void) { wait_for_ball(++thrown); }

/* Nanoseconds of the fastest of a few short rallies, on rank 0. With more ranks than cores, ranks 0 and 1 go to two cores for it. */
static double rally(void)
{
    enum { RALLIES = 8, THROWS = 25 };
    cpu_set_t allowed, one;
    double begin, taken, best = 1;
    int i, k, cpu, skip = my_rank;

    MPI_Barrier(MPI_COMM_WORLD);
    if (my_rank >= 2)
        return 0;
    if (oversubscribed) {
        if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
            fail_call("sched_getaffinity");
        for (cpu = 0; !CPU_ISSET(cpu, &allowed) || skip-- > 0; cpu = cpu + 1 < CPU_SETSIZE ? cpu + 1 : 0)
            ;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        sched_setaffinity(0, sizeof one, &one);
    }
    for (i = 0; i < RALLIES; i++) {
        begin = MPI_Wtime();
        for (k = 0; k < THROWS; k++)
            if (my_rank == 0) {
                throw_ball();
                catch_ball();
            } else {
                catch_ball();
                throw_ball();
            }
        taken = MPI_Wtime() - begin;
        best = taken < best ? taken : best;
    }
    if (oversubscribed)
        sched_setaffinity(0, sizeof allowed, &allowed);
    return best / THROWS * 1e9;
}

#endif
