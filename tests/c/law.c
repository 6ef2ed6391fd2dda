/*
 * law.c: what the library's thread must never do.
 *
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * A thread that unmaps attached memory is held until the library's thread has seen to it, whatever locks the first one holds. So that
 * thread must not allocate, must not take a lock that others can hold, and must not touch memory of the program's, which could be on the move.
 *
 * Here malloc, the locks of pthreads and stdio are the program's own, and look who calls. And the program takes all access to its heap, its
 * stack and its variables away while it waits for that thread.
 */
#include "harness.h"

#include <dirent.h>
#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>
#include <sys/syscall.h>

#define PAGES 65

#ifndef LINKED_STATICALLY
#define LINKED_STATICALLY 0
#endif

/* ---- who calls ---- */

static volatile pid_t service;

/* The first function that the library's thread should not have called. */
static const char *volatile called;

static void watch(const char *what)
{
	if (service != 0 && called == NULL && syscall(SYS_gettid) == service)
		called = what;
}

void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);
void __libc_free(void *);
size_t _IO_fwrite(const void *, size_t, size_t, FILE *);

void *malloc(size_t size)
{
	watch("malloc");
	return __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
	watch("calloc");
	return __libc_calloc(count, size);
}

void *realloc(void *at, size_t size)
{
	watch("realloc");
	return __libc_realloc(at, size);
}

void *memalign(size_t alignment, size_t size)
{
	watch("memalign");
	return __libc_memalign(alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
	watch("aligned_alloc");
	return __libc_memalign(alignment, size);
}

int posix_memalign(void **at, size_t alignment, size_t size)
{
	watch("posix_memalign");
	*at = __libc_memalign(alignment, size);
	return *at ? 0 : ENOMEM;
}

void free(void *at)
{
	watch("free");
	__libc_free(at);
}

/* libc's own, behind the program's. */
#define LOCK(name, type)                                                                                               \
	int name(type *lock)                                                                                           \
	{                                                                                                              \
		static int (*next)(type *);                                                                            \
                                                                                                                       \
		watch(#name);                                                                                          \
		if (!next)                                                                                             \
			*(void **)&next = dlsym(RTLD_NEXT, #name);                                                     \
		return next(lock);                                                                                     \
	}

LOCK(pthread_mutex_lock, pthread_mutex_t)
LOCK(pthread_mutex_trylock, pthread_mutex_t)
LOCK(pthread_rwlock_rdlock, pthread_rwlock_t)
LOCK(pthread_rwlock_wrlock, pthread_rwlock_t)

size_t fwrite(const void *from, size_t size, size_t count, FILE *to)
{
	watch("fwrite");
	return _IO_fwrite(from, size, count, to);
}

/* The thread whose table of descriptors has the library's memory. */
static pid_t find_service(void)
{
	char path[300], link[300];
	struct dirent *task, *fd;
	DIR *tasks = opendir("/proc/self/task"), *fds;
	pid_t found = 0;
	ssize_t len;

	while (tasks && found == 0 && (task = readdir(tasks)) != NULL) {
		snprintf(path, sizeof(path), "/proc/self/task/%.20s/fd", task->d_name);
		fds = opendir(path);
		while (fds && (fd = readdir(fds)) != NULL) {
			snprintf(path, sizeof(path), "/proc/self/task/%.20s/fd/%.20s", task->d_name, fd->d_name);
			len = readlink(path, link, sizeof(link) - 1);
			if (len > 0 && strncmp(link, "/memfd:rmap-own", 15) == 0)
				found = atoi(task->d_name);
		}
		if (fds)
			closedir(fds);
	}
	if (tasks)
		closedir(tasks);
	return found;
}

/* ---- without memory ---- */

#define MOST 200

/* In shared memory: what is taken away, and what is done meanwhile. The order of the fields is known to `blindly`. */
struct plan {
	long count;
	long number, arguments[6];
	long result;
	struct {
		unsigned long start, len, protection;
	} ranges[MOST];
};

/* Takes all access to the ranges away, makes the system call (or loads the word at the first argument, if the number is -1), and gives the
 * access back. Uses registers only. */
void blindly(struct plan *plan);
__asm__(".text\n"
	".globl blindly\n"
	".type blindly, @function\n"
	"blindly:\n"
	"	push %rbx\n	push %r12\n	push %r13\n"
	"	mov %rdi, %rbx\n"
	"	mov (%rbx), %r12\n"
	"	lea 72(%rbx), %r13\n"
	"1:	test %r12, %r12\n	jz 2f\n"
	"	mov (%r13), %rdi\n	mov 8(%r13), %rsi\n	xor %edx, %edx\n"
	"	mov $10, %eax\n	syscall\n"
	"	add $24, %r13\n	dec %r12\n	jmp 1b\n"
	"2:	mov 8(%rbx), %rax\n"
	"	mov 16(%rbx), %rdi\n"
	"	cmp $-1, %rax\n	jne 5f\n"
	"	mov (%rdi), %rax\n	jmp 6f\n"
	"5:	mov 24(%rbx), %rsi\n	mov 32(%rbx), %rdx\n"
	"	mov 40(%rbx), %r10\n	mov 48(%rbx), %r8\n	mov 56(%rbx), %r9\n"
	"	syscall\n"
	"6:	mov %rax, 64(%rbx)\n"
	"	mov (%rbx), %r12\n"
	"	lea 72(%rbx), %r13\n"
	"3:	test %r12, %r12\n	jz 4f\n"
	"	mov (%r13), %rdi\n	mov 8(%r13), %rsi\n	mov 16(%r13), %rdx\n"
	"	mov $10, %eax\n	syscall\n"
	"	add $24, %r13\n	dec %r12\n	jmp 3b\n"
	"4:	pop %r13\n	pop %r12\n	pop %rbx\n"
	"	ret\n"
	".size blindly, . - blindly\n");

static struct plan *plan;
/* Where the program has variables. */
extern char __data_start;

/* Where a thread's stack is: in a system call, /proc shows its stack pointer. */
static unsigned long stack_of(pid_t thread)
{
	char path[64], line[300], *words[10], *word;
	int count = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", thread);
	file = fopen(path, "r");
	if (!file || !fgets(line, sizeof(line), file))
		die(path);
	fclose(file);
	for (word = strtok(line, " \n"); word && count < 10; word = strtok(NULL, " \n"))
		words[count++] = word;
	return count < 3 ? 0 : strtoul(words[count - 2], NULL, 16);
}

/*
 * All private memory that can be written, but for: variables of libraries, which is the part behind a file's mapping, too; the storage of this
 * thread, where the kernel notes its core (rseq); the stack of the library's thread; and what the peer has attached.
 */
static void list_memory(const void *attached)
{
	unsigned long start, end, inode, before = 0, variables = (unsigned long)&__data_start;
	unsigned long spared[3] = { (unsigned long)__builtin_thread_pointer(), stack_of(service),
				    (unsigned long)attached };
	int of_file, of_program, of_file_before = 0, of_program_before = 0, wanted;
	char line[512], mode[8], path[300];
	FILE *maps = fopen("/proc/self/maps", "r");
	size_t i;

	if (!maps)
		die("/proc/self/maps");
	plan->count = 0;
	while (fgets(line, sizeof(line), maps)) {
		path[0] = 0;
		if (sscanf(line, "%lx-%lx %7s %*s %*s %lu %299s", &start, &end, mode, &inode, path) < 4)
			continue;
		of_program = start <= variables && variables < end;
		of_file = inode != 0;
		if (!of_file && path[0] == 0 && start == before) {
			of_file = of_file_before;
			of_program = of_program_before;
		}
		before = end;
		of_file_before = of_file;
		of_program_before = of_program;
		/* With the archive the library's variables are among the program's. */
		wanted = strcmp(mode, "rw-p") == 0 && (!of_file || (of_program && !LINKED_STATICALLY));
		for (i = 0; i < sizeof(spared) / sizeof(*spared); i++)
			wanted = wanted && !(start <= spared[i] && spared[i] < end);
		if (!wanted)
			continue;
		if (plan->count == MOST)
			die("too many mappings");
		plan->ranges[plan->count].start = start;
		plan->ranges[plan->count].len = end - start;
		plan->ranges[plan->count].protection = PROT_READ | PROT_WRITE;
		plan->count++;
	}
	fclose(maps);
}

static long do_blindly(const void *attached, long number, long a, long b, long c)
{
	list_memory(attached);
	/* Heap, stack and more. */
	if (plan->count < 3)
		die("no memory found");
	plan->number = number;
	plan->arguments[0] = a;
	plan->arguments[1] = b;
	plan->arguments[2] = c;
	blindly(plan);
	return plan->result;
}

/* The library's thread dies of a touch, and with it the program, which can say nothing any more. */
static void announce(const char *what)
{
	printf("# without memory: %s\n", what);
	fflush(stdout);
}

/* ---- the program ---- */

static long long *numbered(size_t pages)
{
	char *memory = map_apart(pages);
	size_t i;

	for (i = 0; i < pages; i++)
		*(long long *)(void *)(memory + i * page) = (long long)i + 1;
	return (long long *)(void *)memory;
}

static long long in_peer(struct peer p, long long at)
{
	return must(ask(p, PEER_LOAD, at, 0, 0, 0), "a load in the peer");
}

/* What an exporter does, and what an importer does. */
static void work(struct peer p, xpmem_apid_t its, long long its_memory, xpmem_segid_t theirs)
{
	long long at, value = 0;
	char *memory, *moved, *here;
	struct outcome o;
	xpmem_apid_t apid;
	pid_t child;
	int status, file;

	memory = (char *)numbered(PAGES);
	at = must(ask(p, PEER_ATTACH, its, (long long)(uintptr_t)memory, PAGES * (long long)page, 0), "attach");
	CHECK(in_peer(p, at + 3 * (long long)page) == 4, "memory is adopted");
	madvise(memory, 4 * page, MADV_DONTNEED);
	CHECK(in_peer(p, at + 3 * (long long)page) == 0, "pages are dropped");
	if (mmap(memory + 8 * page, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
	    MAP_FAILED)
		die("mmap");
	CHECK(in_peer(p, at + 9 * (long long)page) == 0, "memory is mapped over it");
	moved = map_apart(4);
	if (mremap(memory + 16 * page, 4 * page, 4 * page, MREMAP_MAYMOVE | MREMAP_FIXED, moved) == MAP_FAILED)
		die("mremap");
	child = fork();
	if (child == 0)
		_exit(0);
	CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0, "a child is forked");
	CHECK(in_peer(p, at + 20 * (long long)page) == 21, "what was private again is adopted again");
	munmap(memory, PAGES * page);
	CHECK(ask(p, PEER_LOAD, at + 20 * (long long)page, 0, 0, 0).error == SIGBUS, "memory is unmapped");
	must(ask(p, PEER_DETACH, at, 0, 0, 0), "detach");

	file = memfd_create("law", MFD_CLOEXEC);
	if (file < 0 || ftruncate(file, 4 * (off_t)page))
		die("memfd_create");
	memory = mmap(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	at = must(ask(p, PEER_ATTACH, its, (long long)(uintptr_t)memory, 4 * (long long)page, 0), "attach");
	CHECK(in_peer(p, at) == 0, "a file is shown");
	munmap(memory, 4 * page);
	CHECK(ask(p, PEER_LOAD, at, 0, 0, 0).error == SIGBUS, "a file is unmapped");
	close(file);

	apid = get(theirs, XPMEM_RDWR);
	here = attach(apid, its_memory, 4 * page, 0);
	CHECK(apid > 0 && here != (char *)-1, "memory of the peer is attached");
	o = probe_load(here, &value);
	CHECK(o.signal == 0 && value == 0, "it is touched");
	xpmem_detach(here);
	here = attach(apid, its_memory + 64 * (long long)page, page, 0);
	o = probe_load(here, &value);
	CHECK(o.signal == SIGBUS, "nothing is touched");
	xpmem_detach(here);
	CHECK(xpmem_release(apid) == 0 && xpmem_release(apid) == -1, "a permit is given back, once");
}

int main(int argc, char **argv)
{
	long long at, its_memory, *memory;
	struct result *answer;
	struct request q;
	xpmem_segid_t segid, theirs;
	xpmem_apid_t its, apid;
	struct pollfd ready;
	struct peer p;
	char *here;

	serve_if_peer(argc, argv);
	begin();
	/* Its lines are not wanted, but that it says them. */
	setenv("RMAP_LOG", "trace", 1);
	if (dup2(open("/dev/null", O_WRONLY | O_CLOEXEC), 2) < 0)
		die("/dev/null");
	plan = mmap(NULL, sizeof(*plan) + 2 * page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	answer = (struct result *)(void *)((char *)plan + sizeof(*plan) + 64);
	segid = make_all(0600);
	service = find_service();
	CHECK(segid > 0 && service > 0, "the library has a thread");
	p = start_peer();
	its = must(ask(p, PEER_GET, segid, XPMEM_RDWR, 0, 0), "get");
	theirs = must(ask(p, PEER_MAKE, 0, -1, 0600, 0), "make");
	its_memory = must(ask(p, PEER_MAP, PAGES, 0, 0, 0), "map");
	must(ask(p, PEER_UNMAP, its_memory + 64 * (long long)page, 1, 0, 0), "unmap");
	work(p, its, its_memory, theirs);
	CHECK(called == NULL, "its thread has called none of malloc, locks and stdio, but %s", called ? called : "what is its own");

	memory = numbered(PAGES);
	at = must(ask(p, PEER_ATTACH, its, (long long)(uintptr_t)memory, PAGES * (long long)page, 0), "attach");
	in_peer(p, at);
	announce("munmap of adopted memory");
	CHECK(do_blindly(memory, SYS_munmap, (long)memory, PAGES * (long)page, 0) == 0,
	      "munmap is followed without touching the program's memory");
	CHECK(ask(p, PEER_LOAD, at, 0, 0, 0).error == SIGBUS, "the peer has lost it");
	must(ask(p, PEER_DETACH, at, 0, 0, 0), "detach");

	memory = numbered(PAGES);
	at = must(ask(p, PEER_ATTACH, its, (long long)(uintptr_t)memory, PAGES * (long long)page, 0), "attach");
	memset(&q, 0, sizeof(q));
	q.op = PEER_LOAD;
	q.a = at + 5 * (long long)page;
	announce("memory is adopted");
	transfer(write_step, p.socket, &q, sizeof(q));
	CHECK(do_blindly(memory, SYS_read, p.socket, (long)answer, sizeof(*answer)) == (long)sizeof(*answer) &&
		      answer->value == 6 && answer->error == 0,
	      "memory is adopted without touching other memory");
	ready.fd = p.socket;
	ready.events = POLLIN;
	CHECK(poll(&ready, 1, 0) == 0, "the peer has said all");

	apid = get(theirs, XPMEM_RDWR);
	here = attach(apid, its_memory + 8 * (long long)page, page, 0);
	announce("an attachment is touched");
	CHECK(do_blindly(memory, -1, (long)here, 0, 0) == 0, "a touch is served without touching the program's memory");
	end_peer(p);
	CHECK(called == NULL, "nor when the peer is gone");
	return finish();
}
