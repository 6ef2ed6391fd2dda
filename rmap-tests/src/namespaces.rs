//! Actors in namespaces of their own, as in containers.

use crate::Actor;
use std::fs;

/// Numbers inside a user namespace, what they are outside, and how many.
pub type Ids = (u32, u32, u32);

impl Actor {
    /// Has it leave namespaces (`CLONE_NEWUSER` and others). Pid namespaces are for its children.
    ///
    /// # Errors
    ///
    /// Its errno, where the machine does not allow it.
    pub fn unshare(&mut self, namespaces: i32) -> Result<(), i32> {
        self.sys(libc::SYS_unshare, &[namespaces.unsigned_abs() as usize]).map(drop)
    }

    /// Says who is who in its user namespace. Only root can name others than itself.
    ///
    /// # Panics
    ///
    /// If that is not allowed.
    pub fn map_ids(&self, users: &[Ids], groups: &[Ids]) {
        let text = |ids: &[Ids]| -> String {
            ids.iter().map(|(inside, outside, count)| format!("{inside} {outside} {count}\n")).collect()
        };
        if !crate::is_root() {
            self.write_proc("setgroups", "deny");
        }
        self.write_proc("uid_map", &text(users));
        self.write_proc("gid_map", &text(groups));
    }

    fn write_proc(&self, name: &str, text: &str) {
        let path = format!("/proc/{}/{name}", self.pid());
        fs::write(&path, text).unwrap_or_else(|why| panic!("{path}: {why}"));
    }

    /// Has it become a user and group of its user namespace, without capabilities, as a new program.
    pub fn become_user(&mut self, user: u32, group: u32) {
        let (user, group) = (user as usize, group as usize);
        self.sys(libc::SYS_setresgid, &[group, group, group]).expect("setresgid");
        self.sys(libc::SYS_setresuid, &[user, user, user]).expect("setresuid");
        self.renew();
    }

    /// Has it start its program anew: without capabilities, unless it is root where it is.
    pub fn renew(&mut self) {
        self.ok("exec");
        self.ok("hello");
    }
}
