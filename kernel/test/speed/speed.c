// SPDX-License-Identifier: GPL-2.0-only
/*
 * What mapping, touching and unmapping a mirror takes, in instructions: on a
 * machine whose clock counts them (see run.sh). Prints each number beside its
 * limit; fails if one is above it.
 */
#include <err.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux-rmap/rmap.h>

#define PAGE 4096UL
#define HUGE (2UL << 20)
#define SIZE (64UL << 20)
#define ROUNDS 20

static int failed;

static long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000L + time.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
	return *(const long *)a > *(const long *)b ? 1 : -1;
}

static void show(const char *what, long *times, double of, double limit)
{
	double median;

	qsort(times, ROUNDS, sizeof(*times), by_size);
	median = times[ROUNDS / 2] / of;
	if (!limit) {
		printf("%-42s %12.1f\n", what, median);
		return;
	}
	printf("%-42s %12.1f of %10.0f: %5.1f %%%s\n", what, median, limit,
	       100 * median / limit, median > limit ? ", TOO MUCH" : "");
	failed |= median > limit;
}

/* The limits of one kind of mapping, 0 for none. */
struct limits {
	double map, touch, unmap_touched, unmap_untouched;
};

/* A word of each page; returns the instructions that took. */
static long touch_all(volatile char *m, int store)
{
	long start = now();

	for (unsigned long at = 0; at < SIZE; at += PAGE)
		if (store)
			m[at] = 1;
		else
			(void)m[at];
	return now() - start;
}

static void measure(const char *kind, int fd, off_t offset,
		    struct limits limits)
{
	long map[ROUNDS], loads[ROUNDS], stores[ROUNDS], touched[ROUNDS];
	long untouched[ROUNDS];
	char what[64];

	for (int i = -1; i < ROUNDS; i++) {
		long times[4], load, store, unmap;
		char *m;

		times[0] = now();
		m = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			 offset);
		times[1] = now();
		if (m == MAP_FAILED)
			err(1, "mmap");
		load = touch_all(m, 0);
		times[2] = now();
		munmap(m, SIZE);
		unmap = now() - times[2];
		m = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			 offset);
		store = touch_all(m, 1);
		munmap(m, SIZE);
		m = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			 offset);
		times[2] = now();
		munmap(m, SIZE);
		times[3] = now();
		/* The first round brings things in. */
		if (i < 0)
			continue;
		map[i] = times[1] - times[0];
		loads[i] = load;
		stores[i] = store;
		touched[i] = unmap;
		untouched[i] = times[3] - times[2];
	}
	snprintf(what, sizeof(what), "%s: map", kind);
	show(what, map, 1, limits.map);
	snprintf(what, sizeof(what), "%s: first load from a page", kind);
	show(what, loads, SIZE / PAGE, limits.touch);
	snprintf(what, sizeof(what), "%s: first store to a page", kind);
	show(what, stores, SIZE / PAGE, limits.touch);
	snprintf(what, sizeof(what), "%s: unmap, all touched", kind);
	show(what, touched, 1, limits.unmap_touched);
	snprintf(what, sizeof(what), "%s: unmap, untouched", kind);
	show(what, untouched, 1, limits.unmap_untouched);
}

/* A process with memory of that kind; what it shows of it. */
static pid_t target(int advice, int *access, char **start)
{
	char *room = mmap(NULL, SIZE + HUGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *memory = (char *)(((unsigned long)room + HUGE - 1) & ~(HUGE - 1));
	struct rmap_bind bind = { sizeof(bind), RMAP_BIND_MEM, -1 };
	struct rmap_access rights = { sizeof(rights),
				      RMAP_ACCESS_READ | RMAP_ACCESS_WRITE };
	struct rmap_map map = { sizeof(map), 0, (unsigned long)memory,
				(unsigned long)memory, SIZE };
	int control = open(RMAP_DEVICE, O_RDWR), status;
	char path[32];
	pid_t pid;

	if (room == MAP_FAILED || madvise(memory, SIZE, advice))
		err(1, "memory");
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		memset(memory, 7, SIZE);
		raise(SIGSTOP);
		_exit(0);
	}
	if (waitpid(pid, &status, WUNTRACED) != pid || !WIFSTOPPED(status))
		errx(1, "no target");
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	bind.target = open(path, O_RDWR);
	if (ioctl(control, RMAP_IOC_BIND, &bind))
		err(1, "RMAP_IOC_BIND");
	*access = ioctl(control, RMAP_IOC_ACCESS, &rights);
	if (*access < 0 || ioctl(control, RMAP_IOC_MAP, &map))
		err(1, "RMAP_IOC_MAP");
	*start = memory;
	return pid;
}

/* Arguments: which kinds; "huge" only where the module maps huge pages. */
int main(int argc, char **argv)
{
	/* A plain file, to compare with. */
	int fd = memfd_create("speed", 0);
	char *start;
	pid_t pid;

	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "memfd")) {
			if (ftruncate(fd, SIZE))
				err(1, "ftruncate");
			measure("memfd", fd, 0, (struct limits){ 0 });
			continue;
		}
		if (!strcmp(argv[i], "huge")) {
			pid = target(MADV_HUGEPAGE, &fd, &start);
			measure("huge pages", fd, (off_t)start,
				(struct limits){ 7060, 20, 3.45e6, 12900 });
		} else {
			pid = target(MADV_NOHUGEPAGE, &fd, &start);
			measure("small pages", fd, (off_t)start,
				(struct limits){ 7060, 373, 3.45e6, 12900 });
		}
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
	return failed;
}
