// SPDX-License-Identifier: GPL-2.0-only
/* A virtual machine whose memory is a mirror. */
#include "harness.h"

#include <linux/kvm.h>
#include <pthread.h>

#define CODE	0x1000UL
#define SOURCE	0x2000UL
#define DEST	0x3000UL
#define MEMORY	(8 * PAGE)

/* Without end: what is at SOURCE goes to DEST, and out of port 0x10. */
static const unsigned char program[] = {
	0xa1, SOURCE & 0xff, SOURCE >> 8,	/* mov ax, [SOURCE] */
	0xa3, DEST & 0xff, DEST >> 8,		/* mov [DEST], ax */
	0xe7, 0x10,				/* out 0x10, ax */
	0xeb, 0xf6,				/* jmp to the first */
};

struct machine {
	int vcpu;
	struct kvm_run *run;
};

/*
 * Its memory from 0 on is what the target has at @address; in real mode, at
 * CODE. The mirror comes after the machine: see "What cannot be had".
 */
static struct machine machine_start(pid_t target, unsigned long address)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm, size;
	struct kvm_userspace_memory_region region = {
		.memory_size = MEMORY,
	};
	struct kvm_regs regs = { .rip = CODE, .rflags = 2 };
	struct kvm_sregs sregs;
	struct machine machine;

	if (kvm < 0)
		skip("no /dev/kvm here (%s)", strerror(errno));
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	CHECK(vm >= 0);
	CHECK(!ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000UL));
	region.userspace_addr =
		(unsigned long)mirror(access_whole(target, RW), address,
				      MEMORY);
	CHECK(!ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region));
	machine.vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	CHECK(machine.vcpu >= 0);
	size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	machine.run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED,
			   machine.vcpu, 0);
	CHECK(machine.run != MAP_FAILED);
	CHECK(!ioctl(machine.vcpu, KVM_GET_SREGS, &sregs));
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	CHECK(!ioctl(machine.vcpu, KVM_SET_SREGS, &sregs));
	CHECK(!ioctl(machine.vcpu, KVM_SET_REGS, &regs));
	return machine;
}

/* What comes out of the port next. */
static unsigned int machine_next(struct machine *machine)
{
	CHECK(!ioctl(machine->vcpu, KVM_RUN, 0));
	EQUAL(machine->run->exit_reason, KVM_EXIT_IO);
	return *(uint16_t *)((char *)machine->run +
			     machine->run->io.data_offset);
}

static unsigned long actor_load_program(struct actor *target)
{
	unsigned long a = actor_map(target, 0, MEMORY, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE);
	uint64_t words[2] = { 0 };

	memcpy(words, program, sizeof(program));
	actor_put(target, a + CODE, words[0]);
	actor_put(target, a + CODE + 8, words[1]);
	return a;
}

/* T19: what the target does to its memory is what happens to the machine's. */
TEST(memory_of_a_virtual_machine)
{
	struct machine machine;
	struct actor target;
	unsigned long a;

	actor_start(&target);
	a = actor_load_program(&target);
	actor_put(&target, a + SOURCE, 0x1111);
	machine = machine_start(target.pid, a);
	EQUAL(machine_next(&machine), 0x1111);
	EQUAL(actor_get(&target, a + DEST), 0x1111);
	actor_put(&target, a + SOURCE, 0x2222);
	EQUAL(machine_next(&machine), 0x2222);
	EQUAL(actor_get(&target, a + DEST), 0x2222);

	/* Other memory at the same address. */
	actor_map(&target, a + SOURCE, 2 * PAGE, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_FIXED);
	EQUAL(machine_next(&machine), 0);
	actor_put(&target, a + SOURCE, 0x3333);
	EQUAL(machine_next(&machine), 0x3333);
	EQUAL(actor_get(&target, a + DEST), 0x3333);

	/* None: it stops there, and goes on when there is some. */
	actor_unmap(&target, a + SOURCE, PAGE);
	ERRNO(ioctl(machine.vcpu, KVM_RUN, 0), EFAULT);
	actor_map(&target, a + SOURCE, PAGE, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_FIXED);
	actor_put(&target, a + SOURCE, 0x4444);
	EQUAL(machine_next(&machine), 0x4444);

	/* Only readable. */
	CHECK(!actor_sys(&target, SYS_mprotect, a + DEST, PAGE, PROT_READ));
	actor_put(&target, a + SOURCE, 0x5555);
	CHECK(ioctl(machine.vcpu, KVM_RUN, 0) == -1 ||
	      machine.run->exit_reason != KVM_EXIT_IO);
	EQUAL(actor_get(&target, a + DEST), 0x4444);

	actor_kill(&target);
	ERRNO(ioctl(machine.vcpu, KVM_RUN, 0), EFAULT);
}

struct remapping {
	struct actor *target;
	unsigned long address;
	int rounds;
};

/* Ends with the target's memory as it was. */
static void *remap_all_the_time(void *arg)
{
	struct remapping *work = arg;

	for (int i = 0; i < work->rounds; i++) {
		actor_unmap(work->target, work->address, PAGE);
		actor_map(work->target, work->address, PAGE,
			  PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED);
		actor_put(work->target, work->address, i + 1);
	}
	return NULL;
}

TEST(memory_of_a_virtual_machine_changes_while_it_runs)
{
	struct remapping work = { .rounds = rounds(500) };
	unsigned int value = 0, seen = 0;
	struct machine machine;
	struct actor target;
	pthread_t thread;
	unsigned long a;

	actor_start(&target);
	a = actor_load_program(&target);
	machine = machine_start(target.pid, a);
	work.target = &target;
	work.address = a + SOURCE;
	CHECK(!pthread_create(&thread, NULL, remap_all_the_time, &work));
	while (value != (unsigned int)work.rounds) {
		if (ioctl(machine.vcpu, KVM_RUN, 0)) {
			EQUAL(errno, EFAULT);
			continue;
		}
		EQUAL(machine.run->exit_reason, KVM_EXIT_IO);
		value = *(uint16_t *)((char *)machine.run +
				      machine.run->io.data_offset);
		/* Never an older one than before, but for a new page's 0. */
		CHECK(!value || value >= seen);
		seen = value ? value : seen;
	}
	pthread_join(thread, NULL);
}
