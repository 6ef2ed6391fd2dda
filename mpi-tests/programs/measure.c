/* Latency, bandwidth, message rate and collective operations over a range of message sizes.
 *
 * usage: measure [-s SMALLEST] [-l LARGEST] [-f FACTOR] [-m MILLISECONDS] [-w NANOSECONDS] MEASUREMENT ...
 *
 *   latency       ranks 0 and 1 send one message to and fro: half the time of a round trip, microseconds
 *   bandwidth     rank 0 sends windows of up to 64 messages, each answered by one short message: 1e6 bytes a second
 *   bibandwidth   the same in both directions at once: 1e6 bytes a second of both together
 *   rate          the first half of the ranks sends windows of 64 messages to the second half: 1e6 messages a second, all pairs
 *   bcast, allreduce, alltoall
 *                 one operation after a barrier: microseconds, average of the ranks and the slowest rank. The size is that of
 *                 the buffer (bcast, allreduce) or of the block for each rank (alltoall)
 *
 * Each size is measured in several batches which take about MILLISECONDS together, after one that does not count. A line for each
 * batch: "result MEASUREMENT RANKS SIZE VALUE SLOWEST BEFORE AFTER". SLOWEST is "-" except for collective operations.
 *
 * BEFORE and AFTER are nanoseconds that a cache line took from rank 0 to rank 1 and back, measured before and after the batch.
 * A virtual machine's cores may be two hyperthreads of one core now and two cores a second later, which makes all that goes
 * through caches several times faster or slower: only batches with like figures can be compared. With -w, batches with less than
 * NANOSECONDS before or after them are printed but do not count: others follow, for PATIENCE seconds in all.
 *
 * All messages of a size use the same buffers again. Messages of a window are received side by side, in 64 MiB at most: windows
 * of large messages are shorter. The data are checked once for each size. */
#include "rally.h"

#define WINDOW 64
#define LARGEST (64 * MIB)
#define BATCHES 5
#define PATIENCE 4.0

struct outcome {
    double average, slowest; /* Seconds of one iteration. */
};

static unsigned char *send_buffer, *recv_buffer;

static int window(size_t size) { return LARGEST / size < WINDOW ? (int)(LARGEST / size) : WINDOW; }

static unsigned char *slot(unsigned char *buffer, size_t size, int k) { return buffer + (size_t)k * size; }

/* The rank at the other end; -1: this rank has nothing to do. */
static int partner(void) { return my_rank < 2 ? 1 - my_rank : -1; }

static int pairs(void) { return rank_count / 2; }

static int partner_of_pair(void)
{
    if (my_rank >= 2 * pairs())
        return -1;
    return my_rank < pairs() ? my_rank + pairs() : my_rank - pairs();
}

static struct outcome same(double seconds, int count)
{
    return (struct outcome){seconds / count, seconds / count};
}

static struct outcome latency(size_t size, int count)
{
    double begin = MPI_Wtime();
    int i;

    for (i = 0; i < count; i++)
        if (my_rank == 0) {
            MPI_Send(send_buffer, (int)size, MPI_BYTE, 1, 2, MPI_COMM_WORLD);
            MPI_Recv(recv_buffer, (int)size, MPI_BYTE, 1, 2, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        } else if (my_rank == 1) {
            MPI_Recv(recv_buffer, (int)size, MPI_BYTE, 0, 2, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            MPI_Send(send_buffer, (int)size, MPI_BYTE, 0, 2, MPI_COMM_WORLD);
        }
    return same(MPI_Wtime() - begin, 2 * count);
}

static void send_window(size_t size, int depth, int peer)
{
    MPI_Request requests[WINDOW];
    char answer;
    int k;

    for (k = 0; k < depth; k++)
        MPI_Isend(send_buffer, (int)size, MPI_BYTE, peer, 3, MPI_COMM_WORLD, &requests[k]);
    MPI_Waitall(depth, requests, MPI_STATUSES_IGNORE);
    MPI_Recv(&answer, 1, MPI_BYTE, peer, 4, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
}

static void receive_window(size_t size, int depth, int peer)
{
    MPI_Request requests[WINDOW];
    char answer = 0;
    int k;

    for (k = 0; k < depth; k++)
        MPI_Irecv(slot(recv_buffer, size, k), (int)size, MPI_BYTE, peer, 3, MPI_COMM_WORLD, &requests[k]);
    MPI_Waitall(depth, requests, MPI_STATUSES_IGNORE);
    MPI_Send(&answer, 1, MPI_BYTE, peer, 4, MPI_COMM_WORLD);
}

static struct outcome bandwidth(size_t size, int count)
{
    double begin = MPI_Wtime();
    int i;

    for (i = 0; i < count; i++)
        if (my_rank == 0)
            send_window(size, window(size), 1);
        else if (my_rank == 1)
            receive_window(size, window(size), 0);
    return same(MPI_Wtime() - begin, count);
}

static struct outcome bibandwidth(size_t size, int count)
{
    MPI_Request requests[2 * WINDOW];
    int i, k, depth = window(size), peer = partner();
    double begin = MPI_Wtime();
    char mine = 0, other;

    for (i = 0; i < count && peer >= 0; i++) {
        for (k = 0; k < depth; k++)
            MPI_Irecv(slot(recv_buffer, size, k), (int)size, MPI_BYTE, peer, 3, MPI_COMM_WORLD, &requests[k]);
        for (k = 0; k < depth; k++)
            MPI_Isend(send_buffer, (int)size, MPI_BYTE, peer, 3, MPI_COMM_WORLD, &requests[depth + k]);
        MPI_Waitall(2 * depth, requests, MPI_STATUSES_IGNORE);
        MPI_Sendrecv(&mine, 1, MPI_BYTE, peer, 4, &other, 1, MPI_BYTE, peer, 4, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    }
    return same(MPI_Wtime() - begin, count);
}

static struct outcome rate(size_t size, int count)
{
    int i, peer = partner_of_pair();
    double begin, taken, slowest;

    MPI_Barrier(MPI_COMM_WORLD);
    begin = MPI_Wtime();
    for (i = 0; i < count && peer >= 0; i++)
        if (my_rank < peer)
            send_window(size, window(size), peer);
        else
            receive_window(size, window(size), peer);
    taken = MPI_Wtime() - begin;
    MPI_Allreduce(&taken, &slowest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return same(slowest, count);
}

static void call_bcast(size_t size)
{
    MPI_Bcast(my_rank == 0 ? send_buffer : recv_buffer, (int)size, MPI_BYTE, 0, MPI_COMM_WORLD);
}

static void call_allreduce(size_t size)
{
    MPI_Allreduce(send_buffer, recv_buffer, (int)(size / sizeof(float)), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}

static void call_alltoall(size_t size)
{
    MPI_Alltoall(send_buffer, (int)size, MPI_BYTE, recv_buffer, (int)size, MPI_BYTE, MPI_COMM_WORLD);
}

static struct outcome collective(void (*call)(size_t), size_t size, int count)
{
    struct outcome outcome;
    double begin, mine = 0;
    int i;

    for (i = 0; i < count; i++) {
        MPI_Barrier(MPI_COMM_WORLD);
        begin = MPI_Wtime();
        call(size);
        mine += MPI_Wtime() - begin;
    }
    mine /= count;
    MPI_Allreduce(&mine, &outcome.average, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    MPI_Allreduce(&mine, &outcome.slowest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    outcome.average /= rank_count;
    return outcome;
}

static struct outcome bcast(size_t size, int count) { return collective(call_bcast, size, count); }
static struct outcome allreduce(size_t size, int count) { return collective(call_allreduce, size, count); }
static struct outcome alltoall(size_t size, int count) { return collective(call_alltoall, size, count); }

static void check_exchange(size_t size, int peer)
{
    if (peer < 0)
        return;
    fill(send_buffer, size, message_seed(my_rank, peer, size, 0));
    memset(recv_buffer, 0x77, size);
    MPI_Sendrecv(send_buffer, (int)size, MPI_BYTE, peer, 1, recv_buffer, (int)size, MPI_BYTE, peer, 1, MPI_COMM_WORLD,
                 MPI_STATUS_IGNORE);
    check(recv_buffer, size, message_seed(peer, my_rank, size, 0), "exchange", peer);
}

static void check_pair(size_t size) { check_exchange(size, partner()); }
static void check_pairs(size_t size) { check_exchange(size, partner_of_pair()); }

static void check_bcast(size_t size)
{
    fill(send_buffer, size, message_seed(my_rank, 0, size, 1));
    memset(recv_buffer, 0x77, size);
    call_bcast(size);
    if (my_rank != 0)
        check(recv_buffer, size, message_seed(0, 0, size, 1), "bcast", 0);
}

/* Sums of small whole numbers are exact in whatever order they are made. */
static void check_allreduce(size_t size)
{
    size_t i, count = size / sizeof(float);
    float *in = (float *)send_buffer, *out = (float *)recv_buffer, sum;

    for (i = 0; i < count; i++)
        in[i] = (float)((i % 1000 + 1) * (size_t)(my_rank + 1));
    memset(recv_buffer, 0x77, size);
    call_allreduce(size);
    for (i = 0; i < count; i++) {
        sum = (float)((i % 1000 + 1) * (size_t)(rank_count * (rank_count + 1) / 2));
        if (out[i] != sum)
            fail("allreduce, size %zu, element %zu: expected %.0f, got %g", size, i, (double)sum, (double)out[i]);
    }
    checked_messages++;
    checked_bytes += size;
}

static void check_alltoall(size_t size)
{
    int peer;

    for (peer = 0; peer < rank_count; peer++)
        fill(slot(send_buffer, size, peer), size, message_seed(my_rank, peer, size, 2));
    memset(recv_buffer, 0x77, size * (size_t)rank_count);
    call_alltoall(size);
    for (peer = 0; peer < rank_count; peer++)
        check(slot(recv_buffer, size, peer), size, message_seed(peer, my_rank, size, 2), "alltoall", peer);
}

enum unit { MICROSECONDS, MEGABYTES, MEGABYTES_BOTH_WAYS, MESSAGES };

static const struct measurement {
    const char *name;
    struct outcome (*run)(size_t size, int count);
    void (*check)(size_t size);
    enum unit unit;
    int is_collective;
} measurements[] = {
    {"latency", latency, check_pair, MICROSECONDS, 0},
    {"bandwidth", bandwidth, check_pair, MEGABYTES, 0},
    {"bibandwidth", bibandwidth, check_pair, MEGABYTES_BOTH_WAYS, 0},
    {"rate", rate, check_pairs, MESSAGES, 0},
    {"bcast", bcast, check_bcast, MICROSECONDS, 1},
    {"allreduce", allreduce, check_allreduce, MICROSECONDS, 1},
    {"alltoall", alltoall, check_alltoall, MICROSECONDS, 1},
};

static double in_unit(enum unit unit, size_t size, double seconds)
{
    double messages = window(size);

    switch (unit) {
    case MICROSECONDS: return seconds * 1e6;
    case MEGABYTES: return messages * (double)size / seconds / 1e6;
    case MEGABYTES_BOTH_WAYS: return 2 * messages * (double)size / seconds / 1e6;
    case MESSAGES: return messages * pairs() / seconds / 1e6;
    }
    return 0;
}

/* Rank 0 chooses the number of iterations of a batch, from as many as take a fraction of its time. */
static int iterations(const struct measurement *m, size_t size, double batch)
{
    int count = 1;
    double begin, taken;

    m->run(size, 1);
    for (;;) {
        double chosen[2] = {count, 0};

        MPI_Barrier(MPI_COMM_WORLD);
        begin = MPI_Wtime();
        m->run(size, count);
        taken = MPI_Wtime() - begin;
        if (my_rank == 0) {
            chosen[1] = taken >= batch / 4 || count >= 1 << 20;
            chosen[0] = chosen[1] != 0 ? batch / taken * count : 4.0 * count;
        }
        MPI_Bcast(chosen, 2, MPI_DOUBLE, 0, MPI_COMM_WORLD);
        count = chosen[0] < 1 ? 1 : chosen[0] > 1e6 ? 1000000 : (int)chosen[0];
        if (chosen[1] != 0)
            return count;
    }
}

static void print_batch(const struct measurement *m, size_t size, struct outcome outcome, double before, double after)
{
    printf("result %s %d %zu %.6g ", m->name, rank_count, size, in_unit(m->unit, size, outcome.average));
    if (m->is_collective)
        printf("%.6g", in_unit(m->unit, size, outcome.slowest));
    else
        printf("-");
    printf(" %.0f %.0f\n", before, after);
}

static void measure(const struct measurement *m, size_t size, double limit, double wanted)
{
    static double patience = PATIENCE;
    double before, after, begin;
    int batch = 0, counts, count;

    m->check(size);
    MPI_Barrier(MPI_COMM_WORLD);
    count = iterations(m, size, limit / BATCHES);
    before = rally();
    while (batch < BATCHES) {
        struct outcome outcome;

        begin = MPI_Wtime();
        outcome = m->run(size, count);
        after = rally();
        if (my_rank == 0)
            print_batch(m, size, outcome, before, after);
        counts = patience <= 0 || (before >= wanted && after >= wanted);
        MPI_Bcast(&counts, 1, MPI_INT, 0, MPI_COMM_WORLD);
        if (counts)
            batch++;
        else
            patience -= MPI_Wtime() - begin;
        before = after;
    }
    fflush(stdout);
}

static const struct measurement *find(const char *name)
{
    size_t i;

    for (i = 0; i < sizeof measurements / sizeof measurements[0]; i++)
        if (strcmp(measurements[i].name, name) == 0)
            return &measurements[i];
    fail("no measurement %s", name);
}

static size_t largest_for(const struct measurement *m, size_t largest)
{
    size_t room = m->run == alltoall ? LARGEST / (size_t)rank_count : LARGEST;

    return largest < room ? largest : room;
}

int main(int argc, char **argv)
{
    size_t size, smallest = 1, largest = LARGEST, factor = 2;
    double limit = 0.05, wanted = 0;
    int option;

    start(&argc, &argv);
    while ((option = getopt(argc, argv, "s:l:f:m:w:")) != -1)
        switch (option) {
        case 's': smallest = strtoul(optarg, NULL, 10); break;
        case 'l': largest = strtoul(optarg, NULL, 10); break;
        case 'f': factor = strtoul(optarg, NULL, 10); break;
        case 'm': limit = strtod(optarg, NULL) / 1000; break;
        case 'w': wanted = strtod(optarg, NULL); break;
        default: fail("unknown option");
        }
    if (smallest < 1 || factor < 2 || optind == argc)
        fail("usage: measure [-s SMALLEST] [-l LARGEST] [-f FACTOR] [-m MILLISECONDS] [-w NANOSECONDS] MEASUREMENT ...");
    open_court();
    send_buffer = map_memory(LARGEST);
    recv_buffer = map_memory(LARGEST);
    for (; optind < argc; optind++) {
        const struct measurement *m = find(argv[optind]);

        for (size = smallest; size <= largest_for(m, largest); size *= factor)
            if (m->run != allreduce || size >= sizeof(float))
                measure(m, size, limit, wanted);
    }
    MPI_Barrier(MPI_COMM_WORLD);
    finish("measure");
    return 0;
}
