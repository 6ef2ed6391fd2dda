/* Sends from and receives into memory that is given back and taken again between messages. An MPI runtime keeps what it once
 * mapped of its peers and is never told that they freed it, so a mapping that does not follow the owner's address space
 * delivers old bytes here. Every byte is checked.
 *
 * Ranks work in pairs (0 and 1, 2 and 3, ...); every case runs once in each direction. To be run also with
 * MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ set to low values.
 *
 * usage: reuse [rounds [case ...]] */
#include "common.h"

#include <malloc.h>
#include <sys/wait.h>

static int peer, sending, rounds = 6;
static uint64_t serial;

/* One message from `buffer` of the sender to fresh memory of the receiver. `expect` is what the receiver must find: the
 * pattern of the sender's seed, or zeros. */
enum expect { PATTERN, ZEROS };

static uint64_t seed_now(size_t size) { return message_seed(sending ? my_rank : peer, sending ? peer : my_rank, size, serial); }

static void receive_into(unsigned char *buffer, size_t size, enum expect expect, const char *what)
{
    MPI_Recv(buffer, (int)size, MPI_BYTE, peer, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    if (expect == PATTERN)
        check(buffer, size, seed_now(size), what, peer);
    else
        check_value(buffer, size, 0, what, peer);
}

static void pass(unsigned char *buffer, size_t size, enum expect expect, const char *what)
{
    if (sending) {
        MPI_Send(buffer, (int)size, MPI_BYTE, peer, 1, MPI_COMM_WORLD);
        if (expect == PATTERN)
            check(buffer, size, seed_now(size), "sender's memory after the send", my_rank);
    } else {
        unsigned char *recv = allocate(size);

        receive_into(recv, size, expect, what);
        memset(recv, 0xdd, size);
        free(recv);
    }
    serial++;
}

/* malloc; fill; send; free, with sizes on both sides of the threshold from which malloc uses mmap, and of its upper limit. */
static void malloc_loop(void)
{
    static const size_t sizes[] = {1000,        20000,       100 * KIB,       127 * KIB,   128 * KIB - 32, 128 * KIB, 128 * KIB + 1,
                                   132 * KIB, 200 * KIB, MIB,         3 * MIB + 17,    33 * MIB};
    size_t i;
    int round;

    for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        for (round = 0; round < (sizes[i] > 16 * MIB ? 2 : rounds); round++) {
            unsigned char *buffer = NULL;

            if (sending) {
                buffer = allocate(sizes[i]);
                fill(buffer, sizes[i], seed_now(sizes[i]));
            }
            pass(buffer, sizes[i], PATTERN, "malloc, fill, send, free");
            if (buffer) {
                memset(buffer, 0xcc, sizes[i]);
                free(buffer);
            }
        }
}

/* Several blocks alive at a time and freed in another order, with trims of the heap in between. */
static void malloc_mixed(void)
{
    unsigned char *block[8];
    size_t size[8];
    int round, i;

    for (round = 0; round < 2 * rounds; round++) {
        for (i = 0; i < 8; i++) {
            size[i] = (size_t)(mix((uint64_t)(round * 8 + i)) % (300 * KIB)) + 1;
            block[i] = allocate(size[i]);
            memset(block[i], round, size[i]);
        }
        for (i = 0; i < 8; i++) {
            if (sending)
                fill(block[i], size[i], seed_now(size[i]));
            pass(block[i], size[i], PATTERN, "mixed blocks");
        }
        for (i = 0; i < 8; i++)
            free(block[(i * 3) % 8]);
        malloc_trim(0);
    }
}

/* realloc that grows and shrinks; large blocks move by mremap. The owner's own contents must survive every step. */
static void realloc_steps(void)
{
    size_t size = 40 * KIB, kept = 0, next;
    unsigned char *buffer = sending ? allocate(size) : NULL;
    uint64_t seed = 0;
    int step;

    for (step = 0; step < 18; step++) {
        if (sending) {
            if (kept)
                check(buffer, kept, seed, "sender's memory after realloc", my_rank);
            seed = seed_now(size);
            fill(buffer, size, seed);
        }
        pass(buffer, size, PATTERN, "realloc");
        next = step < 9 ? size * 2 + 4096 * (size_t)step + 1 : size / 2 + 77;
        if (sending) {
            kept = (next < size ? next : size) & ~(size_t)7;
            buffer = realloc(buffer, next);
            if (buffer == NULL)
                fail_call("realloc");
        }
        size = next;
    }
    free(buffer);
}

/* madvise(MADV_DONTNEED): the owner and the peer must find zeros, then what is written next. */
static void dontneed(void)
{
    size_t size = 2 * MIB, half = MIB;
    unsigned char *buffer = map_memory(size);
    int round;

    for (round = 0; round < rounds; round++) {
        if (sending)
            fill(buffer, size, seed_now(size));
        pass(buffer, size, PATTERN, "before MADV_DONTNEED");
        if (sending) {
            if (madvise(buffer, half, MADV_DONTNEED) != 0)
                fail_call("madvise");
            if (round % 2)
                check_value(buffer, half, 0, "sender's memory after MADV_DONTNEED", my_rank);
        }
        pass(buffer, half, ZEROS, "after MADV_DONTNEED");
        if (sending)
            fill(buffer, half, seed_now(half));
        pass(buffer, half, PATTERN, "refilled after MADV_DONTNEED");
    }
    munmap(buffer, size);
}

/* Replaces the mapping by fresh memory at the same address, in one step or in two. In two, another thread of the process may
 * have mapped something there in between; then the memory is elsewhere. */
static unsigned char *map_again(unsigned char *buffer, size_t size, int round)
{
    void *p;

    if (round % 2) {
        p = mmap(buffer, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        if (p != buffer)
            fail_call("mmap, fixed");
        return p;
    }
    if (munmap(buffer, size) != 0)
        fail_call("munmap");
    p = mmap(buffer, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    return p == MAP_FAILED ? map_memory(size) : p;
}

/* munmap and mmap at the same address: fresh private memory and a protected hole in turn. */
static void remap(void)
{
    size_t size = MIB + 64 * KIB;
    unsigned char *buffer = map_memory(size);
    int round;

    for (round = 0; round < rounds; round++) {
        if (sending)
            fill(buffer, size, seed_now(size));
        pass(buffer, size, PATTERN, "before munmap");
        if (sending) {
            buffer = map_again(buffer, size, round);
        }
        pass(buffer, size, ZEROS, "new memory, not touched");
        if (sending) {
            if (mmap(buffer, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != buffer)
                fail_call("mmap, no access");
            if (mprotect(buffer, size, PROT_READ | PROT_WRITE) != 0)
                fail_call("mprotect");
            fill(buffer, size, seed_now(size));
            if (mprotect(buffer, size, PROT_READ) != 0)
                fail_call("mprotect");
        }
        pass(buffer, size, PATTERN, "read-only memory");
        if (sending && mprotect(buffer, size, PROT_READ | PROT_WRITE) != 0)
            fail_call("mprotect");
    }
    munmap(buffer, size);
}

/* The top of the heap given back and taken again by brk. The runtime may have put its own blocks on top meanwhile; then there
 * is nothing to give back. */
static void brk_steps(void)
{
    size_t size = MIB;
    int round;

    for (round = 0; round < rounds; round++) {
        unsigned char *buffer = NULL;
        int given_back = 0, i;

        if (sending) {
            buffer = sbrk((intptr_t)size);
            if (buffer == (void *)-1)
                fail_call("sbrk");
            fill(buffer, size, seed_now(size));
        }
        pass(buffer, size, PATTERN, "brk up");
        if (sending && sbrk(0) == buffer + size) {
            given_back = 1;
            if (sbrk(-(intptr_t)size) == (void *)-1 || sbrk((intptr_t)size) != (void *)buffer)
                fail_call("sbrk down and up");
        } else if (sending) {
            memset(buffer, 0, size);
        }
        pass(buffer, size, ZEROS, "brk down and up");
        if (sending)
            fill(buffer, size, seed_now(size));
        pass(buffer, size, PATTERN, "brk refilled");
        if (given_back && sbrk(0) == buffer + size)
            sbrk(-(intptr_t)size);
        for (i = 0; i < 4; i++)
            free(allocate(100 * KIB));
    }
}

/* Receives into memory that was given back and taken again: the peer may write into it directly. */
static void receive_loop(void)
{
    static const size_t sizes[] = {5000, 100 * KIB, 130 * KIB, 700 * KIB, 5 * MIB};
    size_t i;
    int round;

    for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        unsigned char *fixed = map_memory(sizes[i]);

        for (round = 0; round < rounds; round++) {
            if (sending) {
                fill(fixed, sizes[i], seed_now(sizes[i]));
                MPI_Send(fixed, (int)sizes[i], MPI_BYTE, peer, 1, MPI_COMM_WORLD);
            } else if (round % 3 == 0) {
                if (madvise(fixed, sizes[i], MADV_DONTNEED) != 0)
                    fail_call("madvise");
                receive_into(fixed, sizes[i], PATTERN, "receive after MADV_DONTNEED");
            } else if (round % 3 == 1) {
                fixed = map_again(fixed, sizes[i], round);
                receive_into(fixed, sizes[i], PATTERN, "receive after munmap and mmap");
            } else {
                unsigned char *moved = realloc(allocate(sizes[i] / 2 + 1), sizes[i]);

                if (moved == NULL)
                    fail_call("realloc");
                receive_into(moved, sizes[i], PATTERN, "receive after realloc");
                free(moved);
            }
            serial++;
        }
        munmap(fixed, sizes[i]);
    }
}

/* A forked child has a copy: what it writes is seen by nobody, and it does not see what the parent writes or receives. */
static void fork_steps(void)
{
    size_t size = 600 * KIB;
    unsigned char *buffer = map_memory(size);
    int round, status, go[2];
    char c = 0;

    for (round = 0; round < 3; round++) {
        uint64_t seed = seed_now(size);
        pid_t child = 0;

        if (sending)
            fill(buffer, size, seed);
        pass(buffer, size, PATTERN, "before fork");
        if (sending) {
            fflush(stdout);
            if (pipe(go) != 0 || (child = fork()) < 0)
                fail_call("fork");
            if (child == 0) {
                unsigned char *expected;

                if (read(go[0], &c, 1) != 1)
                    _exit(2);
                expected = map_memory(size);
                fill(expected, size, seed);
                if (memcmp(buffer, expected, size) != 0)
                    _exit(3);
                memset(buffer, 0xbb, size);
                _exit(0);
            }
            fill(buffer, size, seed_now(size));
            if (write(go[1], &c, 1) != 1 || waitpid(child, &status, 0) != child)
                fail_call("waiting for the child");
            close(go[0]);
            close(go[1]);
            if (status != 0)
                fail("forked child ended with status 0x%x (exit 3: it saw the parent's later writes)", (unsigned)status);
        }
        pass(buffer, size, PATTERN, "after fork");
    }
    munmap(buffer, size);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } cases[] = {{"malloc_loop", malloc_loop}, {"malloc_mixed", malloc_mixed}, {"realloc_steps", realloc_steps},
                 {"dontneed", dontneed},       {"remap", remap},               {"brk_steps", brk_steps},
                 {"receive_loop", receive_loop}, {"fork_steps", fork_steps}};
    size_t i;
    int direction, wanted;

    start(&argc, &argv);
    if (argc > 1)
        rounds = atoi(argv[1]);
    peer = my_rank ^ 1;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (wanted = 2; wanted < argc && strcmp(argv[wanted], cases[i].name) != 0; wanted++)
            ;
        if (argc > 2 && wanted == argc)
            continue;
        for (direction = 0; direction < 2; direction++) {
            sending = (my_rank & 1) == direction;
            if (peer < rank_count)
                cases[i].run();
        }
        MPI_Barrier(MPI_COMM_WORLD);
    }
    finish("reuse");
    return 0;
}
