//! What a copy of a guest is told beyond who it is.

use serde_json::json;

use super::{UserPart, yaml};
use crate::base::{GuestName, Result};

/// Run early in the first boot of a copy, once for each life: `cloud-init` makes a new instance of a
/// copied disk, but leaves the rest to others. The machine-id is the original's, and whoever has read it by then
/// reads it again; and what `cloud-init` kept of the original are its secrets: host keys, passwords. `$1` is its name.
const NEW_LIFE: &str = "\
set -e
rm -f /etc/machine-id
[ -L /var/lib/dbus/machine-id ] || rm -f /var/lib/dbus/machine-id
systemd-machine-id-setup >/dev/null
[ -e /var/lib/dbus/machine-id ] || [ ! -d /var/lib/dbus ] || ln -s /etc/machine-id /var/lib/dbus/machine-id
rm -f /var/lib/systemd/random-seed /var/lib/dhcp/*
sed -i \"/^127\\.0\\.1\\.1[[:space:]]*$1[[:space:]]/d\" /etc/hosts
systemctl try-restart systemd-journald.service || true
now=$(readlink -f /var/lib/cloud/instance)
for life in /var/lib/cloud/instances/*; do [ \"$life\" = \"$now\" ] || rm -rf \"$life\"; done
";

/// User-data for a copy of the guest `source`, which was logged in to as `user`.
///
/// # Errors
/// Never, unless it cannot be written as YAML.
pub fn copy_part(source: &GuestName, user: &str) -> Result<UserPart> {
    let document = json!({
        "user": {"name": user},
        "bootcmd": [["cloud-init-per", "instance", "virga-new-life", "sh", "-c", NEW_LIFE, "sh", source.as_str()]],
    });
    Ok(UserPart { name: "copy".into(), bytes: yaml::write_cloud_config(&document)?.into_bytes() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::cmd::Cmd;

    #[test]
    fn the_script_arrives_whole_and_a_shell_reads_it() {
        let part = copy_part(&"web".parse().unwrap(), "debian").unwrap();
        let document = yaml::parse(std::str::from_utf8(&part.bytes).unwrap(), "it").unwrap();
        let command = &document["bootcmd"][0];
        assert_eq!((command[5].as_str(), command[7].as_str()), (Some(NEW_LIFE), Some("web")));
        Cmd::new("sh").args(["-n", "-c", NEW_LIFE]).run().unwrap();
    }
}
