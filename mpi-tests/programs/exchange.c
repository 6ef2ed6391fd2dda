/* Exchanges messages between all ranks and checks every byte on every rank: sizes from one byte to 64 MiB, buffers in all
 * kinds of memory that a program has, and collectives.
 *
 * usage: exchange [largest size in KiB] */
#include "common.h"

/* Memory kinds. Constants can only be sent. */
enum kind { HEAP, MAPPED, BSS, DATA, STACK, KINDS };
static const char *const kind_name[KINDS] = {"heap", "mmap", "bss", "data", "stack"};

#define STATIC_MAX (8 * MIB)
#define STACK_MAX (3 * MIB)
#define GUARD 64

static unsigned char bss_send[STATIC_MAX + 4 * GUARD], bss_recv[STATIC_MAX + 4 * GUARD];
static unsigned char data_send[STATIC_MAX + 4 * GUARD] = {1}, data_recv[STATIC_MAX + 4 * GUARD] = {2};

#define TEXT_50 "The quick brown fox jumps over the lazy dog 12345."
#define TEXT_300 TEXT_50 TEXT_50 TEXT_50 TEXT_50 TEXT_50 TEXT_50
#define TEXT_3000                                                                                                              \
    TEXT_300 TEXT_300 TEXT_300 TEXT_300 TEXT_300 TEXT_300 TEXT_300 TEXT_300 TEXT_300 TEXT_300
#define TEXT_30000                                                                                                             \
    TEXT_3000 TEXT_3000 TEXT_3000 TEXT_3000 TEXT_3000 TEXT_3000 TEXT_3000 TEXT_3000 TEXT_3000 TEXT_3000
static const char text_300[] = TEXT_300;
static const char text_5000[] = TEXT_3000 TEXT_300 TEXT_300 TEXT_300 TEXT_300 TEXT_300 TEXT_300 TEXT_50 TEXT_50 TEXT_50 TEXT_50;
static const char text_120000[] = TEXT_30000 TEXT_30000 TEXT_30000 TEXT_30000;

static uint64_t serial;

/* One message each way round the ring at the given distance, both at once. The receive buffer has guard bytes around it; the
 * send buffer is checked to be unchanged. */
static void shift_buffers(unsigned char *send, unsigned char *recv, size_t size, int distance, const char *what)
{
    int to = (my_rank + distance) % rank_count, from = (my_rank - distance + rank_count) % rank_count;

    fill(send, size, message_seed(my_rank, to, size, serial));
    memset(recv - GUARD, 0xa5, GUARD);
    memset(recv, 0x5a, size);
    memset(recv + size, 0xa5, GUARD);
    MPI_Sendrecv(send, (int)size, MPI_BYTE, to, 1, recv, (int)size, MPI_BYTE, from, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    check(recv, size, message_seed(from, my_rank, size, serial), what, from);
    check_value(recv - GUARD, GUARD, 0xa5, "guard before the receive buffer", from);
    check_value(recv + size, GUARD, 0xa5, "guard after the receive buffer", from);
    check(send, size, message_seed(my_rank, to, size, serial), "send buffer after the send", to);
    serial++;
}

/* Not inlined, so that the stack buffers exist only here. The receiver is a level deeper than the sender every other time. */
static __attribute__((noinline)) void shift_stack(size_t size, size_t skew, int distance)
{
    unsigned char memory[2 * (size + skew + 2 * GUARD)];

    shift_buffers(memory + GUARD + skew, memory + size + skew + 3 * GUARD, size, distance, "stack");
}

/* The same message in one kind of memory; `skew` moves the buffers off their alignment. */
static void shift(enum kind kind, size_t size, size_t skew, int distance)
{
    size_t room = size + skew + 2 * GUARD;
    unsigned char *send, *recv;

    switch (kind) {
    case HEAP:
        send = allocate(room);
        recv = allocate(room);
        shift_buffers(send + GUARD + skew, recv + GUARD + skew, size, distance, kind_name[kind]);
        free(recv);
        free(send);
        break;
    case MAPPED:
        send = map_memory(room);
        recv = map_memory(room);
        shift_buffers(send + GUARD + skew, recv + GUARD + skew, size, distance, kind_name[kind]);
        munmap(recv, room);
        munmap(send, room);
        break;
    case BSS:
        if (size <= STATIC_MAX)
            shift_buffers(bss_send + GUARD + skew, bss_recv + GUARD + skew, size, distance, kind_name[kind]);
        break;
    case DATA:
        if (size <= STATIC_MAX)
            shift_buffers(data_send + GUARD + skew, data_recv + GUARD + skew, size, distance, kind_name[kind]);
        break;
    default:
        if (size <= STACK_MAX)
            shift_stack(size, skew, distance);
        break;
    }
}

/* Every size in every kind of memory, with the neighbour; small ones with everybody. */
static void point_to_point(size_t largest)
{
    static const size_t odd[] = {1,     2,     3,     7,     8,     63,     64,     65,     255,    256,       257,
                                 300,   511,   1000,  1024,  2047,  4095,   4097,   5000,   8191,   12288,     16383,
                                 32767, 32769, 40000, 65535, 65537, 100003, 131071, 131073, 200001, 262145,    500009,
                                 1 << 19 | 1, (1 << 20) - 1, (1 << 20) + 4097, (2 << 20) + 1, (5 << 20) + 12345};
    size_t i, size;
    int kind, distance;

    for (i = 0; i < sizeof odd / sizeof odd[0]; i++)
        for (kind = 0; kind < KINDS; kind++)
            for (distance = 1; distance < rank_count; distance++)
                if (odd[i] <= largest && (odd[i] <= 70000 || distance == 1))
                    shift(kind, odd[i], i % 2 ? 1 + i % 13 : 0, distance);
    for (size = 4 * KIB; size <= largest; size *= 2)
        for (kind = 0; kind < KINDS; kind++)
            shift(kind, size, 0, 1);
}

/* String constants as send buffers, and one direction at a time. */
static void constants(void)
{
    static const struct {
        const char *text;
        size_t size;
    } texts[] = {{text_300, sizeof text_300}, {text_5000, sizeof text_5000}, {text_120000, sizeof text_120000}};
    size_t i;
    int sender, receiver;

    for (i = 0; i < 3; i++)
        for (sender = 0; sender < rank_count; sender++)
            for (receiver = 0; receiver < rank_count; receiver++) {
                if (sender == receiver)
                    continue;
                if (my_rank == sender)
                    MPI_Send(texts[i].text, (int)texts[i].size, MPI_BYTE, receiver, 2, MPI_COMM_WORLD);
                if (my_rank == receiver) {
                    unsigned char *recv = allocate(texts[i].size);

                    memset(recv, 0xee, texts[i].size);
                    MPI_Recv(recv, (int)texts[i].size, MPI_BYTE, sender, 2, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
                    check_equal(recv, texts[i].text, texts[i].size, "constant", sender);
                    free(recv);
                }
            }
}

/* Several messages in flight to everybody at once, received in memory that nobody has touched yet. */
static void in_flight(size_t size, int depth)
{
    int peers = rank_count - 1, total = 2 * peers * depth, n = 0, d, k, to, from;
    MPI_Request *requests = allocate((size_t)total * sizeof *requests);
    unsigned char *send = allocate((size_t)(peers * depth) * size), *recv = map_memory((size_t)(peers * depth) * size);

    for (d = 1; d <= peers; d++)
        for (k = 0; k < depth; k++) {
            from = (my_rank - d + rank_count) % rank_count;
            MPI_Irecv(recv + (size_t)((d - 1) * depth + k) * size, (int)size, MPI_BYTE, from, 100 + k, MPI_COMM_WORLD,
                      &requests[n++]);
        }
    for (d = 1; d <= peers; d++)
        for (k = 0; k < depth; k++) {
            to = (my_rank + d) % rank_count;
            fill(send + (size_t)((d - 1) * depth + k) * size, size, message_seed(my_rank, to, size, serial + (uint64_t)k));
            MPI_Isend(send + (size_t)((d - 1) * depth + k) * size, (int)size, MPI_BYTE, to, 100 + k, MPI_COMM_WORLD,
                      &requests[n++]);
        }
    MPI_Waitall(total, requests, MPI_STATUSES_IGNORE);
    for (d = 1; d <= peers; d++)
        for (k = 0; k < depth; k++) {
            from = (my_rank - d + rank_count) % rank_count;
            check(recv + (size_t)((d - 1) * depth + k) * size, size, message_seed(from, my_rank, size, serial + (uint64_t)k),
                  "in flight", from);
        }
    serial += (uint64_t)depth;
    munmap(recv, (size_t)(peers * depth) * size);
    free(send);
    free(requests);
}

static void broadcast(size_t size)
{
    unsigned char *buffer = allocate(size);
    int root;

    for (root = 0; root < rank_count; root++) {
        if (my_rank == root)
            fill(buffer, size, message_seed(root, -1, size, serial));
        else
            memset(buffer, 0x11, size);
        MPI_Bcast(buffer, (int)size, MPI_BYTE, root, MPI_COMM_WORLD);
        check(buffer, size, message_seed(root, -1, size, serial), "bcast", root);
    }
    serial++;
    free(buffer);
}

/* Each element is a value that every rank can compute for all the others. */
static uint64_t element(int rank, size_t i) { return (uint64_t)(rank + 1) * 1000003 + i * 7 + serial; }

static uint64_t element_sum(size_t i)
{
    uint64_t sum = 0;
    int rank;

    for (rank = 0; rank < rank_count; rank++)
        sum += element(rank, i);
    return sum;
}

static void check_elements(const uint64_t *got, size_t count, size_t first, const char *what)
{
    size_t i, k;

    for (i = 0; i < count; i++) {
        uint64_t expected = element_sum(first + i);

        if (got[i] == expected)
            continue;
        for (k = 0; k < 7; k++)
            if (((unsigned char *)&expected)[k] != ((const unsigned char *)&got[i])[k])
                break;
        fail_at(what, -1, count * 8, i * 8 + k, ((unsigned char *)&expected)[k], ((const unsigned char *)&got[i])[k]);
    }
    checked_messages++;
    checked_bytes += count * 8;
}

static void reductions(size_t size)
{
    size_t count = size / 8 ? size / 8 : 1, i, all = count * (size_t)rank_count;
    uint64_t *send = allocate(all * 8), *recv = allocate(all * 8);

    for (i = 0; i < all; i++)
        send[i] = element(my_rank, i);
    memset(recv, 0xff, all * 8);
    MPI_Allreduce(send, recv, (int)count, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD);
    check_elements(recv, count, 0, "allreduce");
    memset(recv, 0xff, all * 8);
    MPI_Reduce_scatter_block(send, recv, (int)count, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD);
    check_elements(recv, count, (size_t)my_rank * count, "reduce_scatter_block");
    serial++;
    free(recv);
    free(send);
}

static void permutations(size_t size)
{
    unsigned char *send = allocate(size * (size_t)rank_count), *recv = allocate(size * (size_t)rank_count);
    int peer;

    for (peer = 0; peer < rank_count; peer++)
        fill(send + (size_t)peer * size, size, message_seed(my_rank, peer, size, serial));
    memset(recv, 0x22, size * (size_t)rank_count);
    MPI_Alltoall(send, (int)size, MPI_BYTE, recv, (int)size, MPI_BYTE, MPI_COMM_WORLD);
    for (peer = 0; peer < rank_count; peer++)
        check(recv + (size_t)peer * size, size, message_seed(peer, my_rank, size, serial), "alltoall", peer);
    serial++;

    fill(send, size, message_seed(my_rank, -2, size, serial));
    memset(recv, 0x33, size * (size_t)rank_count);
    MPI_Allgather(send, (int)size, MPI_BYTE, recv, (int)size, MPI_BYTE, MPI_COMM_WORLD);
    for (peer = 0; peer < rank_count; peer++)
        check(recv + (size_t)peer * size, size, message_seed(peer, -2, size, serial), "allgather", peer);
    serial++;
    free(recv);
    free(send);
}

static void collectives(size_t largest)
{
    static const size_t sizes[] = {8, 1000, 4096, 20000, 65544, 300000, 1 << 20, (4 << 20) + 24};
    size_t i;

    for (i = 0; i < sizeof sizes / sizeof sizes[0] && sizes[i] <= largest; i++) {
        broadcast(sizes[i]);
        reductions(sizes[i]);
        permutations(sizes[i]);
    }
}

int main(int argc, char **argv)
{
    size_t largest = 64 * MIB;

    start(&argc, &argv);
    if (argc > 1)
        largest = (size_t)strtoul(argv[1], NULL, 10) * KIB;
    constants();
    point_to_point(largest);
    in_flight(3000, 8);
    in_flight(100001, 4);
    in_flight(MIB + 1, 2);
    collectives(largest);
    finish("exchange");
    return 0;
}
