//! Names of system calls.

/// The name of a call, of those that the library makes, or its number.
pub(crate) fn name(number: i64) -> String {
    const NAMES: [(i64, &str); 61] = [
        (libc::SYS_accept4, "accept4"),
        (libc::SYS_bind, "bind"),
        (libc::SYS_clock_gettime, "clock_gettime"),
        (libc::SYS_clone, "clone"),
        (libc::SYS_clone3, "clone3"),
        (libc::SYS_close, "close"),
        (libc::SYS_close_range, "close_range"),
        (libc::SYS_connect, "connect"),
        (libc::SYS_dup3, "dup3"),
        (libc::SYS_epoll_create1, "epoll_create1"),
        (libc::SYS_epoll_ctl, "epoll_ctl"),
        (libc::SYS_epoll_pwait, "epoll_pwait"),
        (libc::SYS_epoll_wait, "epoll_wait"),
        (libc::SYS_eventfd2, "eventfd2"),
        (libc::SYS_fallocate, "fallocate"),
        (libc::SYS_fcntl, "fcntl"),
        (libc::SYS_fstat, "fstat"),
        (libc::SYS_fstatfs, "fstatfs"),
        (libc::SYS_ftruncate, "ftruncate"),
        (libc::SYS_futex, "futex"),
        (libc::SYS_get_mempolicy, "get_mempolicy"),
        (libc::SYS_getdents64, "getdents64"),
        (libc::SYS_getgroups, "getgroups"),
        (libc::SYS_getrandom, "getrandom"),
        (libc::SYS_getsockopt, "getsockopt"),
        (libc::SYS_gettid, "gettid"),
        (libc::SYS_ioctl, "ioctl"),
        (libc::SYS_listen, "listen"),
        (libc::SYS_lseek, "lseek"),
        (libc::SYS_madvise, "madvise"),
        (libc::SYS_mbind, "mbind"),
        (libc::SYS_memfd_create, "memfd_create"),
        (libc::SYS_mlock, "mlock"),
        (libc::SYS_mmap, "mmap"),
        (libc::SYS_move_pages, "move_pages"),
        (libc::SYS_mprotect, "mprotect"),
        (libc::SYS_mremap, "mremap"),
        (libc::SYS_munmap, "munmap"),
        (libc::SYS_newfstatat, "newfstatat"),
        (libc::SYS_openat, "openat"),
        (libc::SYS_pidfd_getfd, "pidfd_getfd"),
        (libc::SYS_pidfd_open, "pidfd_open"),
        (libc::SYS_poll, "poll"),
        (libc::SYS_prctl, "prctl"),
        (libc::SYS_pread64, "pread64"),
        (libc::SYS_prlimit64, "prlimit64"),
        (libc::SYS_ptrace, "ptrace"),
        (libc::SYS_pwrite64, "pwrite64"),
        (libc::SYS_read, "read"),
        (libc::SYS_recvmsg, "recvmsg"),
        (libc::SYS_rt_tgsigqueueinfo, "rt_tgsigqueueinfo"),
        (libc::SYS_sched_setaffinity, "sched_setaffinity"),
        (libc::SYS_sendmsg, "sendmsg"),
        (libc::SYS_set_mempolicy, "set_mempolicy"),
        (libc::SYS_set_robust_list, "set_robust_list"),
        (libc::SYS_setsockopt, "setsockopt"),
        (libc::SYS_signalfd4, "signalfd4"),
        (libc::SYS_socket, "socket"),
        (libc::SYS_tgkill, "tgkill"),
        (libc::SYS_userfaultfd, "userfaultfd"),
        (libc::SYS_write, "write"),
    ];
    let known = NAMES.iter().find(|(known, _)| *known == number);
    known.map_or_else(|| format!("call {number}"), |(_, name)| (*name).to_owned())
}

/// The name of what a call asks for: it goes before the name of the call where one call does many things.
pub(crate) fn full_name(number: i64, arguments: &[u64; 6]) -> String {
    let (asked, names): (u64, &[(u64, &str)]) = match number {
        libc::SYS_ioctl => (
            arguments[1] & 0xffff_ffff,
            &[
                (0xaa00, "USERFAULTFD_IOC_NEW"),
                (0xc018_aa3f, "UFFDIO_API"),
                (0xc020_aa00, "UFFDIO_REGISTER"),
                (0x8010_aa01, "UFFDIO_UNREGISTER"),
                (0x8010_aa02, "UFFDIO_WAKE"),
                (0xc028_aa03, "UFFDIO_COPY"),
                (0xc028_aa05, "UFFDIO_MOVE"),
                (0xc018_aa06, "UFFDIO_WRITEPROTECT"),
                (0xc060_6610, "PAGEMAP_SCAN"),
                (0xc068_6611, "PROCMAP_QUERY"),
                (0x541b, "FIONREAD"),
                (0x5421, "FIONBIO"),
            ],
        ),
        libc::SYS_epoll_ctl => {
            (arguments[1], &[(1, "EPOLL_CTL_ADD"), (2, "EPOLL_CTL_DEL"), (3, "EPOLL_CTL_MOD")])
        }
        libc::SYS_madvise => (
            arguments[2],
            &[
                (10, "MADV_DONTFORK"),
                (16, "MADV_DONTDUMP"),
                (14, "MADV_HUGEPAGE"),
                (15, "MADV_NOHUGEPAGE"),
                (22, "MADV_POPULATE_READ"),
                (23, "MADV_POPULATE_WRITE"),
                (25, "MADV_COLLAPSE"),
            ],
        ),
        libc::SYS_fallocate => (arguments[1], &[(0, "FALLOC"), (3, "FALLOC_FL_PUNCH_HOLE")]),
        libc::SYS_mmap => {
            (arguments[3] & 0x30, &[(0, "mmap of a file"), (0x10, "mmap over"), (0x20, "mmap of memory")])
        }
        libc::SYS_fcntl => {
            (arguments[1], &[(1033, "F_ADD_SEALS"), (1030, "F_DUPFD_CLOEXEC"), (3, "F_GETFL")])
        }
        libc::SYS_prctl => (arguments[0], &[(1, "PR_SET_PDEATHSIG"), (0x5961_6d61, "PR_SET_PTRACER")]),
        libc::SYS_ptrace => (
            arguments[0],
            &[
                (0x4206, "PTRACE_SEIZE"),
                (0x4207, "PTRACE_INTERRUPT"),
                (17, "PTRACE_DETACH"),
                (7, "PTRACE_CONT"),
                (0x4203, "PTRACE_SETSIGINFO"),
                (3, "PTRACE_PEEKUSER"),
                (6, "PTRACE_POKEUSER"),
            ],
        ),
        _ => return name(number),
    };
    let known = names.iter().find(|(known, _)| *known == asked);
    known.map_or_else(|| format!("{} {asked:#x}", name(number)), |(_, name)| (*name).to_owned())
}
