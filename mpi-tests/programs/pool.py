"""A pool of forked processes computes on buffers that ranks exchange through XPMEM.

Pairs of ranks exchange bytearrays, arrays and pickled lists. Between messages each rank forks a pool with multiprocessing, and
the next messages go into the same buffers while the processes of the pool wait: they must find what was there at the fork. Then
messages go on.
"""

import array
import ctypes
import multiprocessing
import random
import sys
import zlib

from mpi4py import MPI

ROUNDS = 3
SIZES = (100_001, 1 << 20, 6_000_007)
WORKERS = 2

comm = MPI.COMM_WORLD
rank = comm.Get_rank()
peer = rank ^ 1
checked = 0


def fail(text):
    print(f"FAIL rank {rank}: {text}", flush=True)
    comm.Abort(1)


def expect(what, found, wanted):
    global checked
    checked += 1
    if found != wanted:
        at = next((at for at, (one, other) in enumerate(zip(found, wanted)) if one != other), len(wanted))
        fail(f"{what}: byte {at} of {len(wanted)}: expected {wanted[at:at + 4]!r}, got {found[at:at + 4]!r}")


def content(sender, step, size):
    return random.Random(1000 * sender + step).randbytes(size)


class Buffers:
    """What a rank sends and where it receives: memory of three kinds, which stays for all of the run."""

    def __init__(self):
        self.out = [bytearray(size) for size in SIZES]
        self.into = [bytearray(size) for size in SIZES]
        self.words = array.array("Q", bytes(8 << 18))
        self.step = 0

    def exchange(self):
        self.step += 1
        for size, out, into in zip(SIZES, self.out, self.into):
            out[:] = content(rank, self.step, size)
            comm.Sendrecv([out, MPI.BYTE], peer, recvbuf=[into, MPI.BYTE], source=peer)
            expect(f"message {self.step} of {size} bytes", into, content(peer, self.step, size))
        # Both ways over the same memory.
        for index in range(0, len(self.words), 512):
            self.words[index] = rank * 1_000_000 + self.step
        comm.Sendrecv_replace([self.words, MPI.UINT64_T], peer, source=peer)
        wanted = {peer * 1_000_000 + self.step}
        if set(self.words[::512]) != wanted:
            fail(f"words of message {self.step}")
        # Objects from the interpreter's own heap.
        numbers = list(range(self.step, self.step + 50_000))
        if comm.sendrecv(numbers, peer, source=peer) != numbers:
            fail(f"list of message {self.step}")

    def sums(self):
        return [zlib.crc32(buffer) for buffer in (*self.out, *self.into)] + [sum(self.words[::512])]


buffers = Buffers()
overwritten = None


def look(_):
    """In a process of the pool, after the parent has overwritten the buffers."""
    overwritten.wait()
    seen = buffers.sums()
    # Nobody else may see these.
    for buffer in (*buffers.out, *buffers.into):
        buffer[:] = bytes(len(buffer))
    garbage = [{str(number): number} for number in range(20_000)]
    return seen, len(garbage)


def pool_steps(start):
    global overwritten
    for _ in range(ROUNDS):
        buffers.exchange()
        overwritten = start.Event()
        before = buffers.sums()
        with start.Pool(WORKERS) as pool:
            looking = pool.map_async(look, range(WORKERS), chunksize=1)
            buffers.exchange()
            after = buffers.sums()
            overwritten.set()
            for seen, count in looking.get(60):
                if count != 20_000:
                    fail("a process of the pool cannot compute")
                # One process may have taken both turns: the second finds what it has written itself.
                zeroes = [zlib.crc32(bytes(size)) for size in (*SIZES, *SIZES)] + before[-1:]
                if seen not in (before, zeroes):
                    fail(f"a process of the pool finds {seen}, at the fork it was {before}, now {after}")
            if buffers.sums() != after:
                fail("what the pool has written is seen by the parent")
        buffers.exchange()


def report_transport():
    """As the C programs do: the mechanism that Open MPI's own shared memory uses after the last message (MPI_T)."""
    try:
        mpi = ctypes.CDLL("libmpi.so.40")
    except OSError:
        return
    number, index, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    handle, value = ctypes.c_void_p(), ctypes.c_int(-1)
    name = "btl_vader_single_copy_mechanism"
    if mpi.MPI_T_init_thread(0, ctypes.byref(number)):
        return
    if mpi.MPI_T_cvar_get_index(name.encode(), ctypes.byref(index)) == 0:
        verbosity, kind, choices, bind, scope = (ctypes.c_void_p() for _ in range(5))
        length = ctypes.c_int(0)
        mpi.MPI_T_cvar_get_info(index, None, ctypes.byref(length), ctypes.byref(verbosity), ctypes.byref(kind),
                                ctypes.byref(choices), None, None, ctypes.byref(bind), ctypes.byref(scope))
        mpi.MPI_T_cvar_handle_alloc(index, None, ctypes.byref(handle), ctypes.byref(count))
        mpi.MPI_T_cvar_read(handle, ctypes.byref(value))
        word = value.value
        items, item, text = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(64)
        mpi.MPI_T_enum_get_info(choices, ctypes.byref(items), text, ctypes.byref(ctypes.c_int(64)))
        for number in range(items.value):
            mpi.MPI_T_enum_get_item(choices, number, ctypes.byref(item), text, ctypes.byref(ctypes.c_int(64)))
            if item.value == value.value:
                word = text.value.decode()
        print(f"runtime: rank {rank}: {name} = {word}", flush=True)
    mpi.MPI_T_finalize()


def main():
    if comm.Get_size() % 2:
        sys.exit("an even number of ranks is needed")
    pool_steps(multiprocessing.get_context("fork"))
    total = comm.reduce(checked)
    report_transport()
    comm.Barrier()
    if rank == 0:
        print(f"ok pool: {comm.Get_size()} ranks, {total} buffers checked, {ROUNDS} pools of {WORKERS} each", flush=True)


main()
