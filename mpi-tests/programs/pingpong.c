/* A ping-pong between two ranks for profile.sh, which counts and samples it from outside.
 *
 * usage: pingpong FOLDER SIZE
 *
 * Each rank reads commands from the pipe FOLDER/command.RANK, waiting in read() so that it does nothing uncounted meanwhile, and
 * writes a line for each to the pipe FOLDER/answer.RANK. A message is one way of a round trip.
 *
 *   steady COUNT  round trips with the same buffers again
 *   fresh COUNT   maps and fills memory for COUNT messages, each a mapping of its own, 4 MiB apart
 *   first COUNT   round trips in which each rank sends each message from another of these
 *   drop COUNT    unmaps it
 *   floor COUNT   what the machine itself takes: a flag in shared memory, and one memcpy from memory that both have mapped
 *   copy COUNT    that memcpy alone
 *   rally         nanoseconds of a cache line to the other rank and back
 *   end
 *
 * Answer: command, COUNT, microseconds for each message, page faults and voluntary and involuntary context switches in all. */
#include "rally.h"

#include <sys/resource.h>

#define STRIDE (4 * MIB)

static unsigned char *send_buffer, *recv_buffer, *fresh;
static size_t size;

static void to_and_fro(unsigned char *from)
{
    if (my_rank == 0) {
        MPI_Send(from, (int)size, MPI_BYTE, 1, 1, MPI_COMM_WORLD);
        MPI_Recv(recv_buffer, (int)size, MPI_BYTE, 1, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    } else {
        MPI_Recv(recv_buffer, (int)size, MPI_BYTE, 0, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        MPI_Send(from, (int)size, MPI_BYTE, 0, 1, MPI_COMM_WORLD);
    }
}

/* Each rank's data for the other lie in its half of the memory that both have mapped. */
static unsigned char *shown_by(int rank) { return court + MIB * (size_t)(rank + 1); }

static void floor_to_and_fro(void)
{
    if (my_rank == 0) {
        throw_ball();
        catch_ball();
        memcpy(recv_buffer, shown_by(1), size);
    } else {
        catch_ball();
        memcpy(recv_buffer, shown_by(0), size);
        throw_ball();
    }
}

static double seconds_of(const char *what, int count)
{
    double begin;
    int i;

    MPI_Barrier(MPI_COMM_WORLD);
    begin = MPI_Wtime();
    for (i = 0; i < count; i++)
        if (strcmp(what, "floor") == 0) {
            floor_to_and_fro();
        } else if (strcmp(what, "copy") == 0) {
            memcpy(recv_buffer, shown_by(1 - my_rank), size);
            __asm__ volatile("" : : "r"(recv_buffer) : "memory");
        } else {
            to_and_fro(strcmp(what, "first") == 0 ? fresh + (size_t)i * STRIDE : send_buffer);
        }
    return MPI_Wtime() - begin;
}

/* Mappings with gaps between them, so that the kernel does not join them. */
static unsigned char *fresh_buffers(int count)
{
    unsigned char *all = mmap(NULL, (size_t)count * STRIDE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    int i;

    if (all == MAP_FAILED)
        fail_call("mmap");
    for (i = 0; i < count; i++) {
        if (mprotect(all + (size_t)i * STRIDE, size, PROT_READ | PROT_WRITE) != 0)
            fail_call("mprotect");
        fill(all + (size_t)i * STRIDE, size, message_seed(my_rank, i, size, 3));
    }
    return all;
}

static void perform(const char *what, int count, FILE *answers)
{
    struct rusage before, after;
    double seconds;

    getrusage(RUSAGE_SELF, &before);
    seconds = seconds_of(what, count);
    getrusage(RUSAGE_SELF, &after);
    if (count > 0)
        seconds /= strcmp(what, "copy") == 0 ? count : 2 * count;
    fprintf(answers, "%s %d %.4f %ld %ld %ld\n", what, count, seconds * 1e6,
            after.ru_minflt + after.ru_majflt - before.ru_minflt - before.ru_majflt, after.ru_nvcsw - before.ru_nvcsw,
            after.ru_nivcsw - before.ru_nivcsw);
}

static FILE *open_pipe(const char *folder, const char *name, const char *mode)
{
    char path[512];
    FILE *file;

    snprintf(path, sizeof path, "%s/%s.%d", folder, name, my_rank);
    file = fopen(path, mode);
    if (file == NULL)
        fail_call(path);
    return file;
}

int main(int argc, char **argv)
{
    FILE *commands, *answers;
    char what[32];
    int count;

    start(&argc, &argv);
    if (argc != 3 || rank_count != 2 || (size = strtoul(argv[2], NULL, 10)) < 1 || size > MIB)
        fail("usage: pingpong FOLDER SIZE (of up to 1 MiB), 2 ranks");
    open_court();
    send_buffer = map_memory(size);
    recv_buffer = map_memory(size);
    fill(send_buffer, size, message_seed(my_rank, 0, size, 0));
    fill(shown_by(my_rank), size, message_seed(my_rank, 0, size, 0));
    to_and_fro(send_buffer);
    check(recv_buffer, size, message_seed(1 - my_rank, 0, size, 0), "ping-pong", 1 - my_rank);
    commands = open_pipe(argv[1], "command", "r");
    answers = open_pipe(argv[1], "answer", "w");
    fprintf(answers, "pid %d\n", getpid());
    fflush(answers);
    while (fscanf(commands, "%31s", what) == 1 && strcmp(what, "end") != 0) {
        if (strcmp(what, "rally") == 0)
            fprintf(answers, "rally %.0f\n", rally());
        else if (fscanf(commands, "%d", &count) != 1)
            fail("%s: no count", what);
        else if (strcmp(what, "fresh") == 0)
            fprintf(answers, "fresh %p\n", (void *)(fresh = fresh_buffers(count)));
        else if (strcmp(what, "drop") == 0)
            fprintf(answers, "drop %d\n", munmap(fresh, (size_t)count * STRIDE));
        else
            perform(what, count, answers);
        fflush(answers);
    }
    finish("pingpong");
    return 0;
}
