//! What warm starts need of cloud-init: the part that makes a guest fit to be
//! saved, and the user-data that a resumed guest is too late for.

use serde_json::{Value, json};

use super::part::{self, Form};
use super::settings::Config;
use super::{UserPart, yaml};
use crate::base::Result;

/// Keys of cloud-config that mean something before, or by the time of, the first
/// login only: the machine's disks, its users, its own way of starting.
const TOO_LATE: [&str; 14] = [
    "bootcmd",
    "datasource",
    "datasource_list",
    "device_aliases",
    "disk_setup",
    "fs_setup",
    "growpart",
    "random_seed",
    "resize_rootfs",
    "ssh_keys",
    "swap",
    "system_info",
    "user",
    "users",
];

/// The service that makes every clone of a saved guest a machine of its own.
const RENEW: &str = include_str!("../../cloud-init/renew.py");

/// Where it lies in the guest. `/run` is memory: a clone that starts anew has none of it.
const PLACE: &str = "/run/virga/renew.py";

/// User-data for a guest that is to become a template: starts the service at the end of the first boot.
///
/// # Errors
/// Never, unless the service cannot be written as YAML.
pub fn renewal_part() -> Result<UserPart> {
    let document = json!({
        "write_files": [{"path": PLACE, "permissions": "0700", "content": RENEW}],
        // On its own: cloud-init does not wait for it, and it waits for cloud-init.
        "runcmd": [["systemd-run", "--unit=virga-renewal", "--property=LimitCORE=0", "python3", PLACE]],
    });
    let Value::Object(document) = document else { return Ok(user_part("")) };
    let text = format!("#cloud-config\n{}", yaml::write(&document)?);
    Ok(UserPart { name: "renewal".into(), bytes: text.into_bytes() })
}

/// User-data that names the default user, for images that do not say who theirs is.
#[must_use]
pub fn user_part(name: &str) -> UserPart {
    UserPart { name: "user".into(), bytes: format!("#cloud-config\nuser:\n  name: {name}\n").into_bytes() }
}

/// What of the user's user-data a guest cannot honour that has booted already, one line each.
///
/// # Errors
/// As [`build`](super::build), for what cloud-init would ignore or fail on.
pub fn why_cold(user_data: &[UserPart]) -> Result<Vec<String>> {
    let mut reasons = Vec::new();
    for part in part::read(user_data)? {
        let name = crate::base::name::quoted(part.name);
        match (part.configs.as_slice(), part.form) {
            ([Config::Plain { document, .. }], Form::CloudConfig) => {
                let late = TOO_LATE.iter().filter(|key| document.get(**key).is_some());
                reasons
                    .extend(late.map(|key| format!("the user-data {name} has '{key}', which is for the first boot")));
            }
            (_, Form::Script) => {}
            _ => reasons.push(format!("what the user-data {name} does is known in the guest alone")),
        }
    }
    Ok(reasons)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_keys_and_opaque_forms_are_told() {
        let cold = |text: &str| why_cold(&[UserPart { name: "ud".into(), bytes: text.into() }]).unwrap();
        assert_eq!(cold("#cloud-config\npackages: [git]\nruncmd: [ls]\n"), Vec::<String>::new());
        assert_eq!(cold("#!/bin/sh\ntrue\n"), Vec::<String>::new());
        assert!(cold("#cloud-config\nbootcmd: [ls]\ndisk_setup: {}\n").len() == 2);
        for opaque in
            ["#include\nhttp://x/\n", "#cloud-boothook\n#!/bin/sh\n", "## template: jinja\n#cloud-config\n{}\n"]
        {
            assert_eq!(cold(opaque).len(), 1, "{opaque}");
        }
    }

    #[test]
    fn the_service_arrives_as_it_is() {
        let part = renewal_part().unwrap();
        let document = yaml::parse(std::str::from_utf8(&part.bytes).unwrap(), "it").unwrap();
        assert_eq!(document["write_files"][0]["content"], RENEW);
    }
}
