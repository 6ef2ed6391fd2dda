/*
 * dl.c: a program that is not linked with the library and opens it at run time. Also: what the library exports.
 *
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 */
#include "harness.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <sys/stat.h>

static const char *const wanted[] = {
	"xpmem_attach", "xpmem_detach",	 "xpmem_get",	 "xpmem_init",	  "xpmem_ioctl",
	"xpmem_make",	"xpmem_release", "xpmem_remove", "xpmem_version", "rmap_counters",
};
#define WANTED (sizeof(wanted) / sizeof(wanted[0]))

/* Names of other XPMEM variants. Programs that find one of them expect more than this library has. */
static const char *const unwanted[] = {
	"xpmem_attach_wc", "xpmem_attach_getspace", "xpmem_bcopy",  "xpmem_copy",	 "xpmem_make_2",   "xpmem_get_2",
	"xpmem_attach_2",  "xpmem_make_ext",	    "xpmem_signal", "xpmem_block_pfs", "xpmem_make_hobbes",
};
#define UNWANTED (sizeof(unwanted) / sizeof(unwanted[0]))

/* Walks the dynamic symbol table of the file. */
static void check_exports(const char *path)
{
	struct stat status;
	int fd = open(path, O_RDONLY | O_CLOEXEC), found = 0, strange = 0, versions = 0;
	const char *file, *names;
	const ElfW(Ehdr) * header;
	const ElfW(Shdr) * sections, *symbols = NULL;
	const ElfW(Sym) * symbol, *end;
	size_t i;

	if (fd < 0 || fstat(fd, &status) != 0)
		die(path);
	file = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (file == MAP_FAILED)
		die("mmap");
	close(fd);
	header = (const ElfW(Ehdr) *)(const void *)file;
	sections = (const ElfW(Shdr) *)(const void *)(file + header->e_shoff);
	for (i = 0; i < header->e_shnum; i++) {
		if (sections[i].sh_type == SHT_DYNSYM)
			symbols = &sections[i];
		versions += sections[i].sh_type == SHT_GNU_verdef;
	}
	CHECK(symbols != NULL, "the library has a dynamic symbol table");
	CHECK(versions == 0, "it defines no symbol versions");
	if (!symbols)
		return;
	names = file + sections[symbols->sh_link].sh_offset;
	symbol = (const ElfW(Sym) *)(const void *)(file + symbols->sh_offset);
	for (end = symbol + symbols->sh_size / sizeof(*symbol); symbol < end; symbol++) {
		const char *name = names + symbol->st_name;

		if (symbol->st_shndx == SHN_UNDEF || ELF64_ST_BIND(symbol->st_info) == STB_LOCAL)
			continue;
		for (i = 0; i < WANTED && strcmp(name, wanted[i]) != 0; i++)
			;
		if (i < WANTED) {
			found++;
		} else {
			strange++;
			printf("# exported: %s\n", name);
		}
	}
	CHECK(found == (int)WANTED && strange == 0, "it exports XPMEM's nine functions, rmap_counters and nothing else (%d, and %d others)",
	      found, strange);
	munmap((void *)(uintptr_t)file, (size_t)status.st_size);
}

int main(void)
{
	void *library, *again, *functions[WANTED];
	int (*version)(void);
	xpmem_segid_t (*make_segment)(void *, size_t, int, void *);
	xpmem_apid_t (*get_permit)(xpmem_segid_t, int, int, void *);
	void *(*attach_at)(struct xpmem_addr, size_t, void *);
	int (*detach)(void *), (*release)(xpmem_apid_t), (*remove_segment)(xpmem_segid_t), (*init)(void);
	struct link_map *map;
	struct xpmem_addr addr;
	xpmem_segid_t segid;
	xpmem_apid_t apid;
	long long *memory, *at;
	size_t i;
	int missing = 0, extra = 0;

	begin();
	library = dlopen("libxpmem.so.0", RTLD_NOW | RTLD_LOCAL);
	CHECK(library != NULL, "dlopen(\"libxpmem.so.0\") works");
	if (!library) {
		fprintf(stderr, "%s\n", dlerror());
		return 1;
	}
	for (i = 0; i < WANTED; i++) {
		functions[i] = dlsym(library, wanted[i]);
		missing += functions[i] == NULL;
	}
	CHECK(missing == 0, "dlsym() finds them all");
	for (i = 0; i < UNWANTED; i++)
		extra += dlsym(library, unwanted[i]) != NULL;
	CHECK(extra == 0, "dlsym() finds no function of another XPMEM variant");
	if (dlinfo(library, RTLD_DI_LINKMAP, &map) != 0)
		die("dlinfo");
	check_exports(map->l_name);
	if (missing)
		return finish();

	/* POSIX lets a pointer to an object become one to a function by way of its bytes. */
	memcpy(&attach_at, &functions[0], sizeof(attach_at));
	memcpy(&detach, &functions[1], sizeof(detach));
	memcpy(&get_permit, &functions[2], sizeof(get_permit));
	memcpy(&init, &functions[3], sizeof(init));
	memcpy(&make_segment, &functions[5], sizeof(make_segment));
	memcpy(&release, &functions[6], sizeof(release));
	memcpy(&remove_segment, &functions[7], sizeof(remove_segment));
	memcpy(&version, &functions[8], sizeof(version));

	CHECK(version() == 0x27004, "xpmem_version() returns 2.7.4");
	ZERO(init());
	memory = map_pages(1);
	memory[0] = 17;
	GIVES(segid, xpmem_segid_t, make_segment(NULL, XPMEM_MAXADDR_SIZE, XPMEM_PERMIT_MODE, MODE(0600)));
	GIVES(apid, xpmem_apid_t, get_permit(segid, XPMEM_RDWR, XPMEM_PERMIT_MODE, NULL));
	addr.apid = apid;
	addr.offset = (off_t)(uintptr_t)memory;
	GIVES(at, long long *, attach_at(addr, page, NULL));
	CHECK(at[0] == 17, "an attachment of the process's own memory shows it");
	at[0] = 18;
	CHECK(memory[0] == 18, "a store through it arrives");

	/* Memory is shared and a thread runs: the library cannot go, whoever closes it. */
	dlclose(library);
	again = dlopen("libxpmem.so.0", RTLD_NOW | RTLD_NOLOAD);
	CHECK(again != NULL, "the library stays when it is closed");
	if (again) {
		at[1] = 19;
		CHECK(memory[1] == 19, "the attachment is alive after dlclose()");
		ZERO(detach(at));
		ZERO(release(apid));
		ZERO(remove_segment(segid));
		CHECK(munmap(memory, page) == 0, "the memory can be unmapped");
	}
	return finish();
}
