/* Bandwidth and latency between ranks 0 and 1, one line per size: bytes, MB/s (1e6 bytes), microseconds.
 *
 * The latency is half the time of a round trip. The bandwidth is that of a window of messages in one direction, closed by a
 * short answer. Each is that of the best of a few batches. All messages of a size use the same buffers again, as such programs
 * usually do. The data are checked once per size, in both directions.
 *
 * usage: bandwidth [milliseconds per size] */
#include "common.h"

#define WINDOW 8
#define LARGEST (64 * MIB)
#define BATCHES 4

static unsigned char *send_buffer, *recv_buffer;

/* Messages of a window are received side by side, so large ones are fewer. */
static int window(size_t size) { return LARGEST / size < WINDOW ? (int)(LARGEST / size) : WINDOW; }

static void check_data(size_t size)
{
    int peer = 1 - my_rank;

    fill(send_buffer, size, message_seed(my_rank, peer, size, 0));
    memset(recv_buffer, 0x77, size);
    MPI_Sendrecv(send_buffer, (int)size, MPI_BYTE, peer, 1, recv_buffer, (int)size, MPI_BYTE, peer, 1, MPI_COMM_WORLD,
                 MPI_STATUS_IGNORE);
    check(recv_buffer, size, message_seed(peer, my_rank, size, 0), "bandwidth", peer);
}

static double round_trips(size_t size, int count)
{
    double begin = MPI_Wtime();
    int i;

    for (i = 0; i < count; i++)
        if (my_rank == 0) {
            MPI_Send(send_buffer, (int)size, MPI_BYTE, 1, 2, MPI_COMM_WORLD);
            MPI_Recv(recv_buffer, (int)size, MPI_BYTE, 1, 2, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        } else {
            MPI_Recv(recv_buffer, (int)size, MPI_BYTE, 0, 2, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            MPI_Send(send_buffer, (int)size, MPI_BYTE, 0, 2, MPI_COMM_WORLD);
        }
    return MPI_Wtime() - begin;
}

static double windows(size_t size, int count)
{
    MPI_Request requests[WINDOW];
    double begin = MPI_Wtime();
    char answer = 0;
    int i, k, depth = window(size);

    for (i = 0; i < count; i++) {
        for (k = 0; k < depth; k++)
            if (my_rank == 0)
                MPI_Isend(send_buffer, (int)size, MPI_BYTE, 1, 3, MPI_COMM_WORLD, &requests[k]);
            else
                MPI_Irecv(recv_buffer + (size_t)k * size, (int)size, MPI_BYTE, 0, 3, MPI_COMM_WORLD, &requests[k]);
        MPI_Waitall(depth, requests, MPI_STATUSES_IGNORE);
        if (my_rank == 0)
            MPI_Recv(&answer, 1, MPI_BYTE, 1, 4, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        else
            MPI_Send(&answer, 1, MPI_BYTE, 0, 4, MPI_COMM_WORLD);
    }
    return MPI_Wtime() - begin;
}

/* Calls `measure` in several batches that take about `limit` seconds together, and returns seconds per count of the best batch: the
 * machine may do other things now and then. Rank 0 chooses the count. */
static double timed(double (*measure)(size_t, int), size_t size, double limit)
{
    double once, best;
    int count = 1, batch;

    measure(size, 1);
    once = measure(size, 1);
    if (my_rank == 0) {
        count = once > 0 ? (int)(limit / BATCHES / once) : 1000;
        count = count < 1 ? 1 : count > 5000 ? 5000 : count;
        MPI_Send(&count, 1, MPI_INT, 1, 5, MPI_COMM_WORLD);
    } else {
        MPI_Recv(&count, 1, MPI_INT, 0, 5, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    }
    best = measure(size, count);
    for (batch = 1; batch < BATCHES; batch++) {
        double taken = measure(size, count);

        best = taken < best ? taken : best;
    }
    return best / count;
}

int main(int argc, char **argv)
{
    double limit = 0.06;
    size_t size;

    start(&argc, &argv);
    if (argc > 1)
        limit = strtod(argv[1], NULL) / 1000;
    if (my_rank < 2) {
        send_buffer = map_memory(LARGEST);
        recv_buffer = map_memory(LARGEST);
        for (size = 4 * KIB; size <= LARGEST; size *= 2) {
            double latency, rate;

            check_data(size);
            latency = timed(round_trips, size, limit) / 2;
            rate = window(size) * (double)size / timed(windows, size, limit);
            if (my_rank == 0) {
                printf("%zu %.1f MB/s %.2f usec\n", size, rate / 1e6, latency * 1e6);
                fflush(stdout);
            }
        }
    }
    MPI_Barrier(MPI_COMM_WORLD);
    finish("bandwidth");
    return 0;
}
