//! Which users of the host a container's users are: `subuid(5)`, `subgid(5)`.

use std::path::Path;

use crate::base::{Error, Kind, Result, fs};
use crate::rootfs::Owners;

/// Users in a container: as many as a `uid_t` of old had, which is what distributions count on.
const COUNT: u32 = 65536;

/// The users and groups from 0 up in a container, as those from [`base`](Self::base) up on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IdMap {
    /// The host's number of the container's root, as user and as group.
    pub base: u32,
}

impl IdMap {
    /// What root may map, as the host's files say.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] when there is no range for users and groups.
    pub fn of_root() -> Result<Self> {
        let read = |file: &str| match fs::read_text(Path::new(file), 1 << 20) {
            Err(error) if error.kind() == Kind::NotFound => Ok(String::new()),
            other => other,
        };
        Self::common(&ranges(&read("/etc/subuid")?), &ranges(&read("/etc/subgid")?)).ok_or_else(|| {
            Error::unavailable("root has no range of users in /etc/subuid and /etc/subgid to give to containers")
                .hint("usermod --add-subuids 1000000-1065535 --add-subgids 1000000-1065535 root")
                .hint("or '--privileged': the container's root is the host's root then")
        })
    }

    /// The first range that is free for both.
    fn common(users: &[(u32, u32)], groups: &[(u32, u32)]) -> Option<Self> {
        users
            .iter()
            .flat_map(|users| groups.iter().map(move |groups| (users, groups)))
            .map(|(users, groups)| (users.0.max(groups.0), end(*users).min(end(*groups))))
            .find(|(base, end)| base.checked_add(COUNT).is_some_and(|needed| needed <= *end))
            .map(|(base, _)| IdMap { base })
    }

    /// The settings for LXC.
    pub fn lines(self) -> [(&'static str, String); 2] {
        ["u", "g"].map(|kind| ("lxc.idmap", format!("{kind} 0 {} {COUNT}", self.base)))
    }

    /// The map in the words of `lxc-usernsexec`.
    pub fn namespace(self) -> [String; 2] {
        ["u", "g"].map(|kind| format!("{kind}:0:{}:{COUNT}", self.base))
    }

    /// The map of a container, from its own settings; `None` for a privileged one.
    pub fn of_config(text: &str) -> Option<Self> {
        let values = text.lines().filter_map(|line| line.strip_prefix("lxc.idmap = u 0 "));
        let base = values.filter_map(|rest| rest.split(' ').next()).find_map(|base| base.parse().ok())?;
        Some(IdMap { base })
    }
}

/// Whose the files of a root are.
pub(super) fn owners(map: Option<IdMap>) -> Owners {
    map.map_or(Owners::Kept, |map| Owners::Shifted { base: map.base, count: COUNT })
}

fn end((start, count): (u32, u32)) -> u32 {
    start.saturating_add(count)
}

/// Root's ranges: `name:start:count` a line.
fn ranges(text: &str) -> Vec<(u32, u32)> {
    let range = |line: &str| {
        let mut fields = line.trim().split(':');
        let ours = matches!(fields.next()?, "root" | "0");
        let range = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (ours && range.0 > 0).then_some(range)
    };
    text.lines().filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(users: &str, groups: &str) -> Option<u32> {
        IdMap::common(&ranges(users), &ranges(groups)).map(|map| map.base)
    }

    #[test]
    fn the_first_range_that_both_have_is_taken() {
        assert_eq!(map("root:1000000:65536", "root:1000000:65536\n"), Some(1_000_000));
        assert_eq!(map("0:100000:65536", "root:100000:200000"), Some(100_000));
        assert_eq!(map("root:100000:165536", "root:200000:65536"), Some(200_000));
        assert_eq!(map("root:100:65535\nroot:300000:65536", "root:1:4000000000"), Some(300_000));
    }

    #[test]
    fn nothing_else_is_root_s() {
        for users in ["", "user:1000000:65536", "root:1000000:65535", "root:x:65536", "root:0:65536", "root:1000000"] {
            assert_eq!(map(users, "root:1:4000000000"), None, "{users}");
        }
        assert_eq!(map("root:100000:65536", "root:200000:65536"), None);
        assert_eq!(map("root:4294967290:65536", "root:4294967290:65536"), None);
    }

    #[test]
    fn it_is_read_back() {
        let map = IdMap { base: 231_072 };
        let text: String = map.lines().iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        assert_eq!(IdMap::of_config(&text), Some(map));
        assert_eq!(IdMap::of_config("lxc.uts.name = a\n"), None);
    }
}
