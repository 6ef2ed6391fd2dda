// SPDX-License-Identifier: GPL-2.0-only
/*
 * For the tests only: has a kernel thread load or store in the caller's address
 * space, as vhost or KVM's asynchronous page faults do.
 */
#include <linux/completion.h>
#include <linux/fs.h>
#include <linux/kthread.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/uaccess.h>

struct touch {
	struct mm_struct *mm;
	u64 request[3];		/* address, value, is it a store */
	int result;
	struct completion done;
};

static int touch_thread(void *arg)
{
	struct touch *touch = arg;
	u64 __user *address = u64_to_user_ptr(touch->request[0]);

	kthread_use_mm(touch->mm);
	if (touch->request[2])
		touch->result = copy_to_user(address, &touch->request[1], 8);
	else
		touch->result = copy_from_user(&touch->request[1], address, 8);
	kthread_unuse_mm(touch->mm);
	complete(&touch->done);
	return 0;
}

static long touch_ioctl(struct file *file, unsigned int command,
			unsigned long arg)
{
	struct touch touch = { .mm = current->mm };
	void __user *user = (void __user *)arg;
	struct task_struct *thread;

	if (copy_from_user(touch.request, user, sizeof(touch.request)))
		return -EFAULT;
	init_completion(&touch.done);
	thread = kthread_run(touch_thread, &touch, "rmap_test");
	if (IS_ERR(thread))
		return PTR_ERR(thread);
	wait_for_completion(&touch.done);
	if (touch.result)
		return -EFAULT;
	if (copy_to_user(user, touch.request, sizeof(touch.request)))
		return -EFAULT;
	return 0;
}

static const struct file_operations touch_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = touch_ioctl,
};

static struct miscdevice touch_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "rmap-test-kthread",
	.mode = 0666,
	.fops = &touch_fops,
};

module_misc_device(touch_device);

MODULE_DESCRIPTION("Test of rmap: user accesses of a kernel thread");
MODULE_LICENSE("GPL");
