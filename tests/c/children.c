/*
 * children.c: processes that the C library makes of an exporter: system, popen, vfork, posix_spawn, fork with exec, daemon. What is attached
 * stays, nothing gets into the new program, and a daemon uses the library on its own.
 *
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 */
#include "harness.h"

#include <dirent.h>
#include <spawn.h>
#include <sys/syscall.h>

#define PAGES 600

extern char **environ;

static char *memory;
static int to_importer, from_importer;
static xpmem_segid_t segid;

/* ---- what a program has got ---- */

/* The lines about signals in /proc/self/status. Signals 32 and 33 are the C library's own: posix_spawn has the new program ignore them. */
struct signals {
	char blocked[32], ignored[32], caught[32];
};

static struct signals signals_now(void)
{
	struct signals now;
	char *sets[3] = { now.blocked, now.ignored, now.caught };
	char line[256];
	size_t i;
	FILE *status = fopen("/proc/self/status", "re");

	memset(&now, 0, sizeof(now));
	while (status != NULL && fgets(line, sizeof(line), status) != NULL) {
		(void)sscanf(line, "SigBlk: %31s", now.blocked);
		(void)sscanf(line, "SigIgn: %31s", now.ignored);
		(void)sscanf(line, "SigCgt: %31s", now.caught);
	}
	if (status != NULL)
		fclose(status);
	for (i = 0; i < 3; i++)
		snprintf(sets[i], sizeof(now.blocked), "%llx", strtoull(sets[i], NULL, 16) & ~(3ULL << 31));
	return now;
}

/* How many descriptors a new program would have, or this one has. */
static int descriptors(int inherited_only)
{
	DIR *folder = opendir("/proc/self/fd");
	struct dirent *entry;
	int count = 0;

	if (folder == NULL)
		die("/proc/self/fd");
	while ((entry = readdir(folder)) != NULL) {
		int fd = atoi(entry->d_name);

		if (entry->d_name[0] != '.' && fd != dirfd(folder))
			count += !inherited_only || !(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	}
	closedir(folder);
	return count;
}

static int maps_name(const char *name)
{
	char line[512];
	int found = 0;
	FILE *maps = fopen("/proc/self/maps", "re");

	while (maps != NULL && fgets(line, sizeof(line), maps) != NULL)
		found |= strstr(line, name) != NULL;
	if (maps != NULL)
		fclose(maps);
	return found;
}

/* The program that is started: "--program DESCRIPTORS BLOCKED IGNORED", as its starter had them before it used the library. */
static int program(char **argv)
{
	struct signals now = signals_now();

	if (descriptors(0) != atoi(argv[2]))
		return 1;
	if (maps_name("memfd:rmap"))
		return 2;
	if (strcmp(now.blocked, argv[3]) != 0)
		return 3;
	return strcmp(now.ignored, argv[4]) != 0 ? 4 : 0;
}

/* ---- the importer ---- */

/* Loads a word and stores another whenever it is asked to. */
static void import(int asked, int answers)
{
	struct xpmem_addr addr;
	volatile uint64_t *words;
	uint64_t value;

	addr.apid = xpmem_get(segid, XPMEM_RDWR, XPMEM_PERMIT_MODE, NULL);
	addr.offset = (off_t)(uintptr_t)memory;
	words = xpmem_attach(addr, PAGES * page, NULL);
	if (words == (void *)-1)
		die("xpmem_attach");
	while (read(asked, &value, sizeof(value)) == sizeof(value)) {
		uint64_t seen = words[1];

		words[PAGES * page / 8 - 1] = value;
		if (write(answers, &seen, sizeof(seen)) != sizeof(seen))
			break;
	}
	_exit(0);
}

/* Whether both processes still see what the other stores. */
static int is_shared(void)
{
	static uint64_t value;
	volatile uint64_t *words = (volatile uint64_t *)memory;
	uint64_t seen = 0;

	words[1] = ++value;
	if (write(to_importer, &value, sizeof(value)) != sizeof(value) ||
	    read(from_importer, &seen, sizeof(seen)) != sizeof(seen))
		return 0;
	return seen == value && words[PAGES * page / 8 - 1] == value;
}

/* ---- daemons ---- */

/* In a daemon: what is wrong, as a status. */
static int serve_alone(uint64_t value)
{
	struct xpmem_addr addr;
	volatile uint64_t *words = (volatile uint64_t *)memory, *there;
	xpmem_segid_t own;

	if (words[1] != value)
		return 10;
	words[1] = 77;
	/* What is the parent's is not the daemon's. */
	if (xpmem_remove(segid) != -1 || errno != EACCES)
		return 11;
	own = xpmem_make(NULL, XPMEM_MAXADDR_SIZE, XPMEM_PERMIT_MODE, MODE(0600));
	if (own == -1)
		return 12;
	addr.offset = (off_t)(uintptr_t)memory;
	addr.apid = xpmem_get(own, XPMEM_RDWR, XPMEM_PERMIT_MODE, NULL);
	there = xpmem_attach(addr, PAGES * page, NULL);
	if (there == (void *)-1 || there[1] != 77)
		return 13;
	/* And it attaches its parent. */
	addr.apid = xpmem_get(segid, XPMEM_RDWR, XPMEM_PERMIT_MODE, NULL);
	there = xpmem_attach(addr, PAGES * page, NULL);
	if (there == (void *)-1 || there[1] != value)
		return 14;
	/* Not held by anything. */
	if (munmap(memory, PAGES * page) != 0)
		return 15;
	return 0;
}

/* The status of a daemon, which comes to this process when its parent has ended. */
static int daemon_status(pid_t importer)
{
	siginfo_t info;
	int status = -1;

	/* Without a look at the importer, which is a child that stays. */
	while (waitid(P_ALL, 0, &info, WEXITED | WNOWAIT) == 0) {
		if (waitpid(info.si_pid, &status, 0) == info.si_pid)
			return info.si_pid == importer ? 96 << 8 : status;
	}
	return status;
}

int main(int argc, char **argv)
{
	struct signals before, after;
	char count[16], command[4096], self[2048];
	int asked[2], answers[2], status;
	char *arguments[6];
	uint64_t value;
	ssize_t len;
	pid_t child, importer;
	FILE *stream;
	int way;

	if (argc > 4 && strcmp(argv[1], "--program") == 0)
		return program(argv);
	begin();
	len = readlink("/proc/self/exe", self, sizeof(self) - 1);
	if (len < 0)
		die("/proc/self/exe");
	self[len] = '\0';
	before = signals_now();
	snprintf(count, sizeof(count), "%d", descriptors(1));
	snprintf(command, sizeof(command), "exec '%s' --program %s %s %s", self, count, before.blocked, before.ignored);
	arguments[0] = self;
	arguments[1] = (char[]){ "--program" };
	arguments[2] = count;
	arguments[3] = before.blocked;
	arguments[4] = before.ignored;
	arguments[5] = NULL;

	memory = mmap(NULL, PAGES * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED || pipe2(asked, O_CLOEXEC) != 0 || pipe2(answers, O_CLOEXEC) != 0)
		die("mmap or pipe");
	memset(memory, 7, PAGES * page);
	segid = xpmem_make(NULL, XPMEM_MAXADDR_SIZE, XPMEM_PERMIT_MODE, MODE(0600));
	if (segid == -1)
		die("xpmem_make");
	importer = fork();
	if (importer == 0) {
		close(asked[1]);
		close(answers[0]);
		import(asked[0], answers[1]);
	}
	to_importer = asked[1];
	from_importer = answers[0];
	CHECK(is_shared(), "memory is shared");

	status = system(command);
	CHECK(status == 0 && is_shared(), "system (status %#x)", (unsigned)status);
	stream = popen(command, "r");
	status = stream == NULL ? -1 : pclose(stream);
	CHECK(status == 0 && is_shared(), "popen (status %#x)", (unsigned)status);
	child = vfork();
	if (child == 0) {
		execv(self, arguments);
		_exit(98);
	}
	waitpid(child, &status, 0);
	CHECK(status == 0 && is_shared(), "vfork and exec (status %#x)", (unsigned)status);
	status = -1;
	if (posix_spawn(&child, self, NULL, NULL, arguments, environ) == 0)
		waitpid(child, &status, 0);
	CHECK(status == 0 && is_shared(), "posix_spawn (status %#x)", (unsigned)status);
	child = fork();
	if (child == 0) {
		execv(self, arguments);
		_exit(98);
	}
	waitpid(child, &status, 0);
	CHECK(status == 0 && is_shared(), "fork and exec (status %#x)", (unsigned)status);

	/* Daemons come to this process when their parent has ended. */
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	for (way = 0; way < 2; way++) {
		CHECK(is_shared(), "memory is shared before a daemon");
		value = ((volatile uint64_t *)memory)[1];
		child = fork();
		if (child == 0) {
			if (way == 0) {
				if (daemon(0, 0) != 0)
					_exit(97);
			} else {
				setsid();
				if (fork() != 0)
					_exit(0);
			}
			alarm(TIME_LIMIT);
			syscall(SYS_close_range, 0, ~0U, 0);
			_exit(serve_alone(value));
		}
		/* The child, and the daemon that it leaves. The importer ends later. */
		waitpid(child, &status, 0);
		CHECK(status == 0, "the parent of a daemon ends (status %#x)", (unsigned)status);
		status = daemon_status(importer);
		CHECK(status == 0, "a daemon made by %s uses the library (status %#x)", way == 0 ? "daemon" : "two forks",
		      (unsigned)status);
		CHECK(is_shared(), "memory is shared after a daemon");
	}

	after = signals_now();
	CHECK(strcmp(before.blocked, after.blocked) == 0 && strcmp(before.ignored, after.ignored) == 0 &&
		      strcmp(before.caught, after.caught) == 0,
	      "signals are blocked, ignored and caught as before (%s %s %s, then %s %s %s)", before.blocked, before.ignored,
	      before.caught, after.blocked, after.ignored, after.caught);
	CHECK(descriptors(1) == atoi(count), "a new program would get the descriptors that it would have got before");
	return finish();
}
