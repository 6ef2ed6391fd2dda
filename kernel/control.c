// SPDX-License-Identifier: GPL-2.0-only
/*
 * Control descriptors: the requests of /dev/rmap.
 */
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/uaccess.h>

#include "internal.h"

static int rmap_control_info(struct rmap_space *space, void *arg)
{
	struct rmap_info *info = arg;

	*info = (struct rmap_info){
		.size = sizeof(*info),
		.version = RMAP_API_VERSION,
		.batch = PMD_SIZE,
	};
	if (space->mm) {
		info->state |= RMAP_STATE_BOUND;
		info->address_end = space->mm->task_size;
		if (atomic_read(&space->mm->mm_users))
			info->state |= RMAP_STATE_ALIVE;
	}
	if (space->locked)
		info->state |= RMAP_STATE_LOCKED;
	if (space->revoked)
		info->state |= RMAP_STATE_REVOKED;
	return 0;
}

static int rmap_control_bind(struct rmap_space *space, void *arg)
{
	return rmap_target_bind(space, arg);
}

static int rmap_control_access(struct rmap_space *space, void *arg)
{
	return rmap_access_open(space, arg);
}

/* May views be added and removed? */
static int rmap_control_changeable(struct rmap_space *space)
{
	if (space->revoked)
		return -ENODEV;
	if (!space->mm)
		return -ENOTCONN;
	if (space->locked)
		return -EPERM;
	return 0;
}

/* A range of whole pages, not empty, that ends at @limit at the latest. */
static bool rmap_range_ok(u64 start, u64 length, u64 limit)
{
	return length && !((start | length) & ~PAGE_MASK) && length <= limit &&
	       start <= limit - length;
}

static int rmap_control_map(struct rmap_space *space, void *arg)
{
	const struct rmap_map *map = arg;
	int ret;

	if (map->flags & ~RMAP_MAP_RDONLY ||
	    !rmap_range_ok(map->offset, map->length, LLONG_MAX) ||
	    !rmap_range_ok(map->address, map->length, LLONG_MAX))
		return -EINVAL;
	ret = rmap_control_changeable(space);
	if (ret)
		return ret;
	if (!rmap_range_ok(map->address, map->length, space->mm->task_size))
		return -EINVAL;
	return rmap_view_add(space, map);
}

static int rmap_control_unmap(struct rmap_space *space, void *arg)
{
	const struct rmap_unmap *unmap = arg;
	int ret;

	if (unmap->flags ||
	    !rmap_range_ok(unmap->offset, unmap->length, LLONG_MAX))
		return -EINVAL;
	ret = rmap_control_changeable(space);
	if (ret)
		return ret;
	return rmap_view_remove(space, unmap->offset >> PAGE_SHIFT,
				unmap->length >> PAGE_SHIFT);
}

static int rmap_control_lock(struct rmap_space *space, void *arg)
{
	const struct rmap_lock *lock = arg;

	if (lock->flags)
		return -EINVAL;
	if (space->revoked)
		return -ENODEV;
	if (!space->mm)
		return -ENOTCONN;
	space->locked = true;
	return 0;
}

static int rmap_control_revoke(struct rmap_space *space, void *arg)
{
	const struct rmap_revoke *revoke = arg;

	if (revoke->flags)
		return -EINVAL;
	WRITE_ONCE(space->revoked, true);
	rmap_view_remove_all(space);
	return 0;
}

static const struct rmap_request {
	size_t size;		/* known to this kernel */
	size_t size_min;	/* of the first version */
	bool out;		/* the structure is written back */
	int (*run)(struct rmap_space *space, void *arg);
} rmap_requests[] = {
#define RMAP_REQUEST(name, min, back)				\
	{							\
		.size = sizeof(struct rmap_##name),		\
		.size_min = min,				\
		.out = back,					\
		.run = rmap_control_##name,			\
	}
	[_IOC_NR(RMAP_IOC_INFO)] = RMAP_REQUEST(info, 40, true),
	[_IOC_NR(RMAP_IOC_BIND)] = RMAP_REQUEST(bind, 24, false),
	[_IOC_NR(RMAP_IOC_ACCESS)] = RMAP_REQUEST(access, 16, false),
	[_IOC_NR(RMAP_IOC_MAP)] = RMAP_REQUEST(map, 40, false),
	[_IOC_NR(RMAP_IOC_UNMAP)] = RMAP_REQUEST(unmap, 32, false),
	[_IOC_NR(RMAP_IOC_LOCK)] = RMAP_REQUEST(lock, 16, false),
	[_IOC_NR(RMAP_IOC_REVOKE)] = RMAP_REQUEST(revoke, 16, false),
};

static long rmap_control_ioctl(struct file *file, unsigned int command,
			       unsigned long uarg)
{
	const struct rmap_request *request;
	void __user *user = (void __user *)uarg;
	struct rmap_space *space = file->private_data;
	union {
		struct rmap_info info;
		struct rmap_map map;
		struct rmap_unmap unmap;
	} arg;
	u64 size;
	int ret;

	if (_IOC_TYPE(command) != RMAP_IOC_MAGIC ||
	    _IOC_DIR(command) != _IOC_NONE || _IOC_SIZE(command) ||
	    _IOC_NR(command) >= ARRAY_SIZE(rmap_requests))
		return -ENOTTY;
	request = &rmap_requests[_IOC_NR(command)];
	BUILD_BUG_ON(sizeof(struct rmap_bind) > sizeof(arg) ||
		     sizeof(struct rmap_access) > sizeof(arg) ||
		     sizeof(struct rmap_lock) > sizeof(arg) ||
		     sizeof(struct rmap_revoke) > sizeof(arg));

	if (copy_from_user(&size, user, sizeof(size)))
		return -EFAULT;
	if (size < request->size_min)
		return -EINVAL;
	if (size > PAGE_SIZE)
		return -E2BIG;
	ret = copy_struct_from_user(&arg, request->size, user, size);
	if (ret)
		return ret;

	if (mutex_lock_killable(&space->lock))
		return -EINTR;
	ret = request->run(space, &arg);
	mutex_unlock(&space->lock);
	if (!ret && request->out &&
	    copy_to_user(user, &arg, min_t(size_t, size, request->size)))
		ret = -EFAULT;
	return ret;
}

static int rmap_control_open(struct inode *inode, struct file *file)
{
	struct rmap_space *space = rmap_space_create();

	if (IS_ERR(space))
		return PTR_ERR(space);
	file->private_data = space;
	return 0;
}

static int rmap_control_release(struct inode *inode, struct file *file)
{
	struct rmap_space *space = file->private_data;

	if (space->revoke_on_close) {
		mutex_lock(&space->lock);
		WRITE_ONCE(space->revoked, true);
		rmap_view_remove_all(space);
		mutex_unlock(&space->lock);
	}
	rmap_space_put(space);
	return 0;
}

const struct file_operations rmap_control_fops = {
	.owner = THIS_MODULE,
	.open = rmap_control_open,
	.unlocked_ioctl = rmap_control_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
	.release = rmap_control_release,
};
