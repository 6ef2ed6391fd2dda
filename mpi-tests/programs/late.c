/* The last rank is late in MPI_Finalize: the others are through, and perhaps gone, when it polls once more what it has attached of them.
 *
 * usage: late
 *
 * Open MPI polls in opal_progress(), in front of which this program puts a function of its own. Other runtimes do not call it. */
#include "common.h"

#include <dlfcn.h>
#include <time.h>

enum { MESSAGES = 64 };

static int late;

void opal_progress(void);

void opal_progress(void)
{
    static void (*real)(void);
    const struct timespec moment = {.tv_nsec = 300 * 1000 * 1000};

    if (real == NULL)
        *(void **)&real = dlsym(RTLD_NEXT, "opal_progress");
    if (late)
        nanosleep(&moment, NULL);
    real();
}

/* Enough small messages that runtimes set up what they have for those. */
static void greet(int other)
{
    int i;

    for (i = 0; i < MESSAGES; i++) {
        int sent = my_rank * MESSAGES + i, received = -1;

        MPI_Sendrecv(&sent, 1, MPI_INT, other, 0, &received, 1, MPI_INT, other, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        if (received != other * MESSAGES + i)
            fail("rank %d has sent %d as message %d", other, received, i);
        checked_messages++;
    }
}

int main(int argc, char **argv)
{
    int other;

    start(&argc, &argv);
    for (other = 0; other < rank_count; other++)
        if (other != my_rank)
            greet(other);
    conclude("late");
    late = my_rank == rank_count - 1;
    MPI_Finalize();
    return 0;
}
