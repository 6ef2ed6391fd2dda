/*
 * pair.c: two processes, every function, in the order in which programs use them.
 *
 * The process forks before it uses the library. The parent exports, the child imports, and they talk over two pipes. Also
 * linked with libxpmem.a, as pair-static.
 *
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 */
#include "harness.h"

#include <pthread.h>
#include <stdatomic.h>

#define PAGES 64
#define ADDS  20000

/* What the exporter tells the importer. */
struct invitation {
	xpmem_segid_t all, part;
	uintptr_t heap, data, stack, text, zero;
};

static long long data[1024] = { 1, 2, 3 };
static const char text[] = "a constant of the program";

static void get_exactly(int fd, void *to, size_t size)
{
	int status = 0;

	if (transfer(read_step, fd, to, size))
		return;
	/* The other process is gone. The parent can say how. */
	if (waitpid(-1, &status, 0) > 0)
		fprintf(stderr, "the child has ended with status %#x\n", (unsigned)status);
	_exit(98);
}

static void put_exactly(int fd, const void *from, size_t size)
{
	if (write(fd, from, size) != (ssize_t)size)
		_exit(98);
}

/* Waits until the other process has said `step`. */
static void await(int fd, char step)
{
	char got;

	get_exactly(fd, &got, 1);
	if (got != step) {
		fprintf(stderr, "expected %c, got %c\n", step, got);
		_exit(97);
	}
}

static void say(int fd, char step)
{
	put_exactly(fd, &step, 1);
}

/* In the child a failed check ends the process; its exit status is the line. */
#define NEED(condition)                                                                                                \
	do {                                                                                                           \
		if (!(condition)) {                                                                                    \
			fprintf(stderr, "child, line %d: %s, errno %d\n", __LINE__, #condition, errno);                \
			_exit(1);                                                                                      \
		}                                                                                                      \
	} while (0)

/* Attaches the page that holds a remote address, or more, and returns where the address is found. */
static void *reach(xpmem_apid_t apid, uintptr_t remote, size_t size, void **map)
{
	uintptr_t in_page = remote & (page - 1);

	*map = attach(apid, (off_t)(remote - in_page), size + in_page, 0);
	return *map == (void *)-1 ? NULL : (char *)*map + in_page;
}

static void importer(int in, int out)
{
	struct invitation v;
	xpmem_apid_t all, part, reading;
	long long *heap, *p;
	atomic_llong *counter;
	const char *string;
	void *map, *heap_map, *same;
	struct outcome o;
	size_t i;

	begin();
	get_exactly(in, &v, sizeof(v));
	NEED(xpmem_version() == 0x27004);
	all = get(v.all, XPMEM_RDWR);
	NEED(all > 0);
	part = get(v.part, XPMEM_RDWR);
	NEED(part > 0 && part != all);
	reading = get(v.all, XPMEM_RDONLY);
	NEED(reading > 0);

	/* a whole range: read a pattern, write another one */
	heap = reach(all, v.heap, (PAGES + 1) * page, &heap_map);
	NEED(heap);
	/* a thread of the exporter is writing here */
	NEED(heap[PAGES * page / sizeof(*heap)] >= 0);
	for (i = 0; i < PAGES * page / sizeof(*heap); i++)
		NEED(heap[i] == (long long)(i * 3));
	for (i = 0; i < PAGES * page / sizeof(*heap); i++)
		heap[i] += 1;

	/* the same memory a second time, by a segment that starts there */
	same = attach(part, (off_t)page, page, 0);
	NEED(same != (void *)-1 && same != (char *)heap_map + page);
	NEED(*(long long *)same == heap[page / sizeof(*heap)]);
	*(long long *)same = -1;
	NEED(heap[page / sizeof(*heap)] == -1);
	NEED(xpmem_detach(same) == 0);

	/* static data, the stack, constants, memory that nobody has touched */
	p = reach(all, v.data, sizeof(data), &map);
	NEED(p && p[0] == 1 && p[1] == 2 && p[2] == 3 && p[1023] == 0);
	p[1023] = 1023;
	NEED(xpmem_detach(map) == 0);
	p = reach(all, v.stack, sizeof(*p), &map);
	NEED(p && *p == 4711);
	*p = 4712;
	NEED(xpmem_detach((char *)map + 5) == 0);
	string = reach(all, v.text, sizeof(text), &map);
	NEED(string && strcmp(string, text) == 0);
	NEED(xpmem_detach(map) == 0);
	p = reach(all, v.zero, page, &map);
	NEED(p && p[0] == 0);
	p[1] = 8;
	NEED(xpmem_detach(map) == 0);

	/* with a permit for reading */
	p = reach(reading, v.heap, page, &map);
	NEED(p && p[0] == 1);
	o = probe_store(p, 1);
	NEED(o.signal == SIGSEGV);
	NEED(xpmem_release(reading) == 0);
	NEED(!is_mapped(map));
	say(out, 'A');

	/* both count on one place at the same time */
	await(in, 'a');
	counter = (atomic_llong *)heap;
	for (i = 0; i < ADDS; i++)
		atomic_fetch_add(counter, 1);
	say(out, 'B');

	/* the exporter unmaps the range, and maps new memory there */
	await(in, 'b');
	o = probe_load(heap, &heap[0]);
	NEED(o.signal == SIGBUS && o.address == (uintptr_t)heap);
	say(out, 'C');
	await(in, 'c');
	NEED(heap[0] == 100 && heap[PAGES * page / sizeof(*heap) - 1] == 0);
	heap[1] = 101;
	say(out, 'D');

	/* the segments are removed */
	await(in, 'd');
	o = probe_store(heap, 1);
	NEED(o.signal == SIGBUS);
	errno = 0;
	NEED(get(v.all, XPMEM_RDWR) == -1 && errno == ENOENT);
	NEED(attach(all, (off_t)v.heap, page, 0) == (void *)-1 && errno == ENOENT);
	NEED(xpmem_detach(heap_map) == 0);
	NEED(xpmem_release(all) == 0);
	NEED(xpmem_release(part) == 0);
	NEED(xpmem_release(part) == -1 && errno == ENOENT);
	_exit(0);
}

/* A thread that reads and writes while its memory is adopted. */
static atomic_int stop;
static atomic_llong busy_rounds;

static void *busy(void *at)
{
	volatile long long *counter = at;
	long long n = *counter;

	while (!atomic_load(&stop)) {
		*counter = ++n;
		if (*counter != n)
			return (void *)1;
	}
	atomic_store(&busy_rounds, n);
	return NULL;
}

int main(void)
{
	int to_child[2], to_parent[2], status = 0;
	struct invitation v;
	volatile long long on_stack = 4711;
	long long *heap, *zero, *moved, *thread_page;
	atomic_llong *counter;
	pthread_t thread;
	void *lost;
	pid_t child;
	size_t i;

	begin();
	if (pipe(to_child) || pipe(to_parent))
		die("pipe");
	child = fork();
	if (child < 0)
		die("fork");
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(to_child[1]);
		close(to_parent[0]);
		importer(to_child[0], to_parent[1]);
	}
	close(to_child[0]);
	close(to_parent[1]);

	/* One mapping: the range that the importer writes to, and a page that a thread of this process writes to. */
	heap = map_apart(PAGES + 1);
	thread_page = (long long *)(void *)((char *)heap + PAGES * page);
	for (i = 0; i < PAGES * page / sizeof(*heap); i++)
		heap[i] = (long long)(i * 3);
	zero = map_pages(1);
	if (pthread_create(&thread, NULL, busy, thread_page))
		die("pthread_create");

	GIVES(v.all, xpmem_segid_t, make_all(0600));
	GIVES(v.part, xpmem_segid_t, make(heap, PAGES * page, 0600));
	v.heap = (uintptr_t)heap;
	v.data = (uintptr_t)data;
	v.stack = (uintptr_t)&on_stack;
	v.text = (uintptr_t)text;
	v.zero = (uintptr_t)zero;
	put_exactly(to_child[1], &v, sizeof(v));

	await(to_parent[0], 'A');
	for (i = 0; i < PAGES * page / sizeof(*heap); i++)
		if (heap[i] != (i == page / sizeof(*heap) ? -1 : (long long)(i * 3 + 1)))
			break;
	CHECK(i == PAGES * page / sizeof(*heap), "the importer read the pattern, and its stores are here (%zu)", i);
	CHECK(data[1023] == 1023, "its store to static data is here");
	CHECK(on_stack == 4712, "its store to the stack is here");
	CHECK(zero[0] == 0 && zero[1] == 8, "its store to untouched memory is here");

	counter = (atomic_llong *)heap;
	atomic_store(counter, 0);
	say(to_child[1], 'a');
	for (i = 0; i < ADDS; i++)
		atomic_fetch_add(counter, 1);
	await(to_parent[0], 'B');
	CHECK(atomic_load(counter) == 2 * ADDS, "atomic additions of both processes add up (%lld)",
	      atomic_load(counter));

	atomic_store(&stop, 1);
	pthread_join(thread, &lost);
	CHECK(lost == NULL && *thread_page == atomic_load(&busy_rounds), "another thread noticed nothing");

	CHECK(munmap(heap, PAGES * page) == 0, "the exporter unmaps the range");
	say(to_child[1], 'b');
	await(to_parent[0], 'C');
	moved = mmap(heap, PAGES * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
		     0);
	CHECK(moved == heap, "and maps new memory at the same addresses");
	heap[0] = 100;
	say(to_child[1], 'c');
	await(to_parent[0], 'D');
	CHECK(heap[0] == 100 && heap[1] == 101, "the old attachment shows the new memory");

	ZERO(xpmem_remove(v.all));
	ZERO(xpmem_remove(v.part));
	say(to_child[1], 'd');
	waitpid(child, &status, 0);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the importer found everything as it should be (%#x)",
	      (unsigned)status);
	CHECK(heap[0] == 100, "the memory is there after xpmem_remove()");
	return finish();
}
