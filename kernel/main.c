// SPDX-License-Identifier: GPL-2.0-only
/*
 * rmap: mappings of another process's memory that follow it.
 */
#include <linux/miscdevice.h>
#include <linux/module.h>

#include "internal.h"

static struct miscdevice rmap_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "rmap",
	.mode = 0666,
	.fops = &rmap_control_fops,
};

static int __init rmap_init(void)
{
	int ret;

	ret = rmap_target_init();
	if (ret)
		return ret;
	ret = rmap_space_init();
	if (ret)
		return ret;
	ret = misc_register(&rmap_device);
	if (ret)
		goto exit_space;
	ret = rmap_xpmem_init();
	if (ret)
		goto deregister;
	return 0;

deregister:
	misc_deregister(&rmap_device);
exit_space:
	rmap_space_exit();
	return ret;
}

static void __exit rmap_exit(void)
{
	rmap_xpmem_exit();
	misc_deregister(&rmap_device);
	rmap_space_exit();
}

module_init(rmap_init);
module_exit(rmap_exit);

MODULE_AUTHOR("The rmap authors");
MODULE_DESCRIPTION("Mappings of another process's memory that follow it");
MODULE_LICENSE("GPL");
MODULE_VERSION("0.1.0");
