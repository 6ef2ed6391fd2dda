//! Actors in namespaces of their own, as in containers.

use crate::{Actor, Setup, Stage};
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

/// A process in namespaces of its own, and the one that it was forked from, if it is the first of a pid namespace.
#[derive(Debug)]
pub struct Contained {
    actor: Actor,
    _outside: Option<Actor>,
}

impl std::ops::Deref for Contained {
    type Target = Actor;

    fn deref(&self) -> &Actor {
        &self.actor
    }
}

impl std::ops::DerefMut for Contained {
    fn deref_mut(&mut self) -> &mut Actor {
        &mut self.actor
    }
}

impl Stage {
    /// Starts an actor in namespaces of its own (`CLONE_NEWPID` and others), with a `/proc` that fits if it is to have a pid namespace, and with
    /// a user namespace that has one user if it is not allowed otherwise.
    ///
    /// # Errors
    ///
    /// Why the machine does not allow it.
    ///
    /// # Panics
    ///
    /// If it allows half of it.
    pub fn contained(&self, setup: &Setup, namespaces: i32) -> Result<Contained, String> {
        let mut actor = self.actor_with(setup);
        let user = if crate::is_root() { 0 } else { libc::CLONE_NEWUSER };
        let proc = if namespaces & libc::CLONE_NEWPID == 0 { 0 } else { libc::CLONE_NEWNS };
        // A forked actor finds the test by the network.
        let net = namespaces & libc::CLONE_NEWNET;
        let wanted = (namespaces | user | proc) & !net;
        actor
            .unshare(wanted)
            .map_err(|errno| format!("namespaces {wanted:#x} are refused: errno {errno}"))?;
        if wanted & libc::CLONE_NEWUSER != 0 {
            let ids = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
            actor.map_ids(&[(0, ids.0, 1)], &[(0, ids.1, 1)]);
        }
        let mut outside = None;
        if proc != 0 {
            let inside = actor.fork();
            outside = Some(std::mem::replace(&mut actor, inside));
            actor.mount_proc()?;
        }
        if net != 0 {
            actor.unshare(net).map_err(|errno| format!("a network namespace is refused: errno {errno}"))?;
        }
        Ok(Contained { actor, _outside: outside })
    }
}

impl Actor {
    /// Mounts a `/proc` of its pid namespace, for its mount namespace.
    fn mount_proc(&mut self) -> Result<(), String> {
        let private = (libc::MS_REC | libc::MS_PRIVATE) as usize;
        let refused = |errno| format!("a /proc of its own is refused: errno {errno}");
        // A text stays until the next.
        let root = self.text("/");
        self.sys(libc::SYS_mount, &[0, root, 0, private, 0]).map_err(refused)?;
        let place = self.text("/proc");
        let kind = place + 1;
        self.sys(libc::SYS_mount, &[kind, place, kind, 0, 0]).map(drop).map_err(refused)
    }
}
