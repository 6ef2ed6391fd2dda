/* Shared by the test programs: patterns that differ per message and per byte, checks that name the first bad byte, and a
 * report of the transport that the MPI runtime itself says it uses. */
#ifndef COMMON_H
#define COMMON_H

#define _GNU_SOURCE
#include <errno.h>
#include <mpi.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define KIB ((size_t)1024)
#define MIB ((size_t)1024 * 1024)
#define WORD_STEP UINT64_C(0x9e3779b97f4a7c15)

static int my_rank, rank_count;
static unsigned long checked_messages, checked_bytes;

static inline uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= UINT64_C(0xbf58476d1ce4e5b9);
    x ^= x >> 27;
    x *= UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

/* One seed per message: sender, receiver, size and a counter make two messages with the same contents very unlikely. */
static inline uint64_t message_seed(int from, int to, size_t size, uint64_t serial)
{
    return mix(mix(mix((uint64_t)from * 1000 + (uint64_t)to) ^ size) + serial * WORD_STEP);
}

static inline uint64_t pattern_word(uint64_t state) { return state ^ (state >> 29); }

/* Both loops use memcpy for the words, because buffers may have odd addresses. */
static inline void fill(void *buffer, size_t size, uint64_t seed)
{
    unsigned char *p = buffer;
    uint64_t state = seed, word;
    size_t i;

    for (i = 0; i + 8 <= size; i += 8) {
        state += WORD_STEP;
        word = pattern_word(state);
        memcpy(p + i, &word, 8);
    }
    word = pattern_word(state + WORD_STEP);
    memcpy(p + i, &word, size - i);
}

/* Says what is wrong and ends the job. A launcher that ends a job may lose its last output, so the line also goes to a file. */
static inline __attribute__((noreturn, format(printf, 1, 2))) void fail(const char *format, ...)
{
    const char *folder = getenv("RMAP_MPI_JOB");
    char line[512], path[512];
    va_list arguments;
    FILE *file;

    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    snprintf(path, sizeof path, "%s/failure.%d", folder ? folder : "", my_rank);
    file = folder ? fopen(path, "w") : NULL;
    if (file) {
        fprintf(file, "FAIL rank %d: %s\n", my_rank, line);
        fclose(file);
    }
    printf("FAIL rank %d: %s\n", my_rank, line);
    fflush(stdout);
    MPI_Abort(MPI_COMM_WORLD, 1);
    _exit(1);
}

static inline void fail_at(const char *what, int peer, size_t size, size_t offset, unsigned expected, unsigned got)
{
    fail("%s, peer %d, size %zu, first bad byte at offset %zu: expected 0x%02x, got 0x%02x", what, peer, size, offset, expected,
         got);
}

static inline void fail_call(const char *what) { fail("%s: %s", what, strerror(errno)); }

static inline void check(const void *buffer, size_t size, uint64_t seed, const char *what, int peer)
{
    const unsigned char *p = buffer;
    uint64_t state = seed, word, got;
    size_t i, k, n;

    for (i = 0; i < size; i += 8) {
        n = size - i < 8 ? size - i : 8;
        state += WORD_STEP;
        word = pattern_word(state);
        got = word;
        memcpy(&got, p + i, n);
        if (got == word)
            continue;
        for (k = 0; k < n; k++)
            if (p[i + k] != ((unsigned char *)&word)[k])
                fail_at(what, peer, size, i + k, ((unsigned char *)&word)[k], p[i + k]);
        fail_at(what, peer, size, i, 0, 0); /* The memory changed between the two looks. */
    }
    checked_messages++;
    checked_bytes += size;
}

static inline void check_equal(const void *buffer, const void *expected, size_t size, const char *what, int peer)
{
    const unsigned char *p = buffer, *e = expected;
    size_t i;

    if (memcmp(p, e, size) != 0)
        for (i = 0; i < size; i++)
            if (p[i] != e[i])
                fail_at(what, peer, size, i, e[i], p[i]);
    checked_messages++;
    checked_bytes += size;
}

static inline void check_value(const void *buffer, size_t size, unsigned char value, const char *what, int peer)
{
    const unsigned char *p = buffer;
    size_t i;

    if (size == 0)
        return;
    if (p[0] != value || memcmp(p, p + 1, size - 1) != 0)
        for (i = 0; i < size; i++)
            if (p[i] != value)
                fail_at(what, peer, size, i, value, p[i]);
    checked_messages++;
    checked_bytes += size;
}

static inline void *map_memory(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED)
        fail_call("mmap");
    return p;
}

static inline void *allocate(size_t size)
{
    void *p = malloc(size);

    if (p == NULL)
        fail_call("malloc");
    return p;
}

/* Asks the runtime, through the MPI tool interface, which mechanism its shared-memory component uses. Open MPI's vader
 * component stores its final choice in this variable: it writes the next mechanism into it when xpmem_make fails. Other
 * runtimes do not have the variable. */
static inline void report_transport(void)
{
    static const char name[] = "btl_vader_single_copy_mechanism";
    int provided, index, count, value, len = 64, verbosity, bind, scope;
    char text[64], item[64];
    MPI_Datatype type;
    MPI_T_enum choices;
    MPI_T_cvar_handle handle;

    if (MPI_T_init_thread(MPI_THREAD_SINGLE, &provided) != MPI_SUCCESS)
        return;
    if (MPI_T_cvar_get_index(name, &index) == MPI_SUCCESS &&
        MPI_T_cvar_get_info(index, text, &len, &verbosity, &type, &choices, NULL, NULL, &bind, &scope) == MPI_SUCCESS &&
        MPI_T_cvar_handle_alloc(index, NULL, &handle, &count) == MPI_SUCCESS) {
        if (count == 1 && MPI_T_cvar_read(handle, &value) == MPI_SUCCESS) {
            int items = 0, i, item_value;

            snprintf(item, sizeof item, "%d", value);
            if (MPI_T_enum_get_info(choices, &items, text, &(int){sizeof text}) == MPI_SUCCESS)
                for (i = 0; i < items; i++)
                    if (MPI_T_enum_get_item(choices, i, &item_value, text, &(int){sizeof text}) == MPI_SUCCESS &&
                        item_value == value)
                        snprintf(item, sizeof item, "%s", text);
            printf("runtime: rank %d: %s = %s\n", my_rank, name, item);
            fflush(stdout);
        }
        MPI_T_cvar_handle_free(&handle);
    }
    MPI_T_finalize();
}

static inline void start(int *argc, char ***argv)
{
    MPI_Init(argc, argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &my_rank);
    MPI_Comm_size(MPI_COMM_WORLD, &rank_count);
    if (rank_count < 2) {
        fprintf(stderr, "at least two ranks are needed\n");
        MPI_Abort(MPI_COMM_WORLD, 2);
    }
}

/* Rank 0 prints the totals of all ranks, after all of them got here. */
static inline void conclude(const char *program)
{
    unsigned long mine[2] = {checked_messages, checked_bytes}, all[2];

    MPI_Reduce(mine, all, 2, MPI_UNSIGNED_LONG, MPI_SUM, 0, MPI_COMM_WORLD);
    report_transport();
    MPI_Barrier(MPI_COMM_WORLD);
    if (my_rank == 0) {
        printf("ok %s: %d ranks, %lu buffers checked, %lu MiB\n", program, rank_count, all[0], all[1] >> 20);
        fflush(stdout);
    }
}

/* Ends the program. */
static inline void finish(const char *program)
{
    conclude(program);
    MPI_Finalize();
}

#endif
