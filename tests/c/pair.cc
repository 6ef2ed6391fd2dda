// pair.cc: two processes, in C++: the header as C++ programs include it, exceptions, atomics and threads.
//
// SPDX-License-Identifier: Apache-2.0 OR MIT

// Some programs wrap the header, because XPMEM's own one does not say that it is C.
extern "C" {
#include <xpmem.h>
}

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <sys/socket.h>
#include <sys/wait.h>
#include <system_error>
#include <thread>
#include <type_traits>
#include <unistd.h>
#include <vector>

static_assert(sizeof(xpmem_addr) == 16 && alignof(xpmem_addr) == 8, "struct xpmem_addr");
static_assert(std::is_trivially_copyable<xpmem_addr>::value && std::is_standard_layout<xpmem_addr>::value,
	      "struct xpmem_addr is a C structure");
static_assert(std::is_same<decltype(&xpmem_attach), void *(*)(xpmem_addr, size_t, void *)>::value, "xpmem_attach");
static_assert(std::is_same<decltype(&xpmem_get), xpmem_apid_t (*)(xpmem_segid_t, int, int, void *)>::value, "xpmem_get");
static_assert(XPMEM_PERMIT_MODE == 1 && XPMEM_MAXADDR_SIZE == SIZE_MAX, "constants");

namespace {

int checks, failures;

void check(bool good, const char *text)
{
	failures += !good;
	std::printf("%sok %d - %s\n", good ? "" : "not ", ++checks, text);
	std::fflush(stdout);
}

[[noreturn]] void fail(const char *what)
{
	throw std::system_error(errno, std::generic_category(), what);
}

// An attachment of `count` objects at an address of another process.
template <typename T> class Remote {
public:
	Remote(xpmem_segid_t segid, std::uintptr_t at, std::size_t count)
	{
		const std::uintptr_t in_page = at % static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));

		apid_ = xpmem_get(segid, XPMEM_RDWR, XPMEM_PERMIT_MODE, nullptr);
		if (apid_ == -1)
			fail("xpmem_get");
		map_ = xpmem_attach({ apid_, static_cast<off_t>(at - in_page) }, in_page + count * sizeof(T), nullptr);
		if (map_ == reinterpret_cast<void *>(-1)) {
			xpmem_release(apid_);
			fail("xpmem_attach");
		}
		data_ = reinterpret_cast<T *>(static_cast<char *>(map_) + in_page);
	}
	~Remote()
	{
		if (xpmem_detach(map_) != 0 || xpmem_release(apid_) != 0)
			std::abort();
	}
	Remote(const Remote &) = delete;
	Remote &operator=(const Remote &) = delete;
	T &operator[](std::size_t i) { return data_[i]; }

private:
	xpmem_apid_t apid_;
	void *map_;
	T *data_;
};

struct Invitation {
	xpmem_segid_t segid;
	std::uintptr_t numbers, counter;
	std::size_t count;
};

constexpr int threads = 4, additions = 5000;

template <typename T> void send(int fd, const T &value)
{
	if (write(fd, &value, sizeof(value)) != static_cast<ssize_t>(sizeof(value)))
		fail("write");
}

template <typename T> T receive(int fd)
{
	T value;

	if (recv(fd, &value, sizeof(value), MSG_WAITALL) != static_cast<ssize_t>(sizeof(value)))
		fail("recv");
	return value;
}

// Several threads add to the counter of the exporter, each with its own permit and attachment.
void add(const Invitation &v)
{
	Remote<std::atomic<long>> counter(v.segid, v.counter, 1);

	for (int i = 0; i < additions; i++)
		counter[0]++;
}

int importer(int fd)
try {
	const auto v = receive<Invitation>(fd);
	{
		Remote<int> numbers(v.segid, v.numbers, v.count);

		for (std::size_t i = 0; i < v.count; i++)
			numbers[i] *= 2;
	}
	std::vector<std::thread> team;
	for (int i = 0; i < threads; i++)
		team.emplace_back(add, v);
	for (auto &thread : team)
		thread.join();
	// A permit for nothing: the exception passes through this library's caller, not through the library.
	try {
		Remote<int> nothing(0x7fffffffffffffff, v.numbers, 1);
		return 2;
	} catch (const std::system_error &error) {
		if (error.code() != std::errc::no_such_file_or_directory)
			return 3;
	}
	send(fd, 'd');
	return 0;
} catch (const std::exception &error) {
	std::fprintf(stderr, "importer: %s\n", error.what());
	return 1;
}

} // namespace

int main()
{
	int fds[2], status = 0;

	alarm(60);
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0)
		fail("socketpair");
	const pid_t child = fork();
	if (child == 0) {
		alarm(60);
		close(fds[0]);
		_exit(importer(fds[1]));
	}
	close(fds[1]);

	std::vector<int> numbers(100000);
	auto counter = std::make_unique<std::atomic<long>>(0);
	for (std::size_t i = 0; i < numbers.size(); i++)
		numbers[i] = static_cast<int>(i);
	check(xpmem_version() == 0x27004, "xpmem_version() returns 2.7.4");
	const auto segid = xpmem_make(nullptr, XPMEM_MAXADDR_SIZE, XPMEM_PERMIT_MODE, reinterpret_cast<void *>(0600));
	check(segid > 0, "xpmem_make()");
	send(fds[0], Invitation{ segid, reinterpret_cast<std::uintptr_t>(numbers.data()),
				 reinterpret_cast<std::uintptr_t>(counter.get()), numbers.size() });
	for (int i = 0; i < additions; i++)
		(*counter)++;
	waitpid(child, &status, 0);
	check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the importer found everything as it should be");
	bool doubled = true;
	for (std::size_t i = 0; i < numbers.size(); i++)
		doubled = doubled && numbers[i] == static_cast<int>(2 * i);
	check(doubled, "the importer doubled the numbers of a std::vector");
	check(*counter == (threads + 1L) * additions, "atomic additions of five threads in two processes add up");
	check(xpmem_remove(segid) == 0, "xpmem_remove()");
	std::printf("1..%d\n", checks);
	return failures != 0;
}
