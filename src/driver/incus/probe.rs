//! Is the daemon there, and can it run guests.

use super::api::Api;
use crate::base::{Error, Kind};
use crate::driver::{Finding, Level, ProbeDepth};

/// What there is to say of a daemon.
pub(super) fn findings(api: &Api, depth: ProbeDepth) -> Vec<Finding> {
    let server = match api.get("/1.0") {
        Ok(server) => server,
        Err(error) => return vec![bad(&error, depth)],
    };
    if server["auth"] != "trusted" {
        let error = Error::unavailable("the daemon does not trust this user").hint(api.link().entry());
        return vec![bad(&error, depth)];
    }
    if let Some(project) = api.project()
        && let Err(error) = api.get(&format!("/1.0/projects/{project}"))
    {
        let error = match error.kind() {
            Kind::NotFound => Error::unavailable(format!("the daemon has no project '{project}'"))
                .hint("'incus project list' shows those that it has"),
            _ => error,
        };
        return vec![bad(&error, depth)];
    }
    let environment = &server["environment"];
    let text = |key: &str| environment[key].as_str().unwrap_or("?").to_owned();
    let (name, version) = (text("server"), text("server_version"));
    let mut all = vec![said(Level::Ok, format!("{name} {version} answers at '{}'", api.link()), None)];
    if depth == ProbeDepth::Full {
        let pools = api.get("/1.0/storage-pools").ok().and_then(|pools| pools.as_array().map(Vec::len)).unwrap_or(0);
        if pools == 0 {
            let hint = "'incus admin init' makes a storage pool and a network";
            all.push(said(Level::Warning, "it has no storage pool yet".into(), Some(hint)));
        }
        if environment["server_clustered"] == true {
            all.extend(cluster(api, &text("server_name")));
        }
    }
    all
}

/// How the members of the daemon's cluster stand.
fn cluster(api: &Api, this: &str) -> Option<Finding> {
    let members = api.get("/1.0/cluster/members?recursion=1").ok()?;
    let members = members.as_array()?;
    let name = |member: &serde_json::Value| member["server_name"].as_str().unwrap_or("?").to_owned();
    let away: Vec<String> = members.iter().filter(|member| member["status"] == "Offline").map(name).collect();
    Some(match away.as_slice() {
        [] => said(Level::Ok, format!("it is the member '{this}' of a cluster of {}", members.len()), None),
        away => {
            let detail =
                format!("of the {} members of its cluster these do not answer: {}", members.len(), away.join(", "));
            said(Level::Warning, detail, Some("'incus cluster list' shows how its members stand"))
        }
    })
}

/// Why it cannot be used: an error for who wants to, and a warning for who asks how everything stands.
pub(super) fn bad(error: &Error, depth: ProbeDepth) -> Finding {
    let mut detail = error.to_string();
    if let Some(cause) = error.causes().last() {
        detail = format!("{detail}: {cause}");
    }
    let level = if depth == ProbeDepth::Quick { Level::Error } else { Level::Warning };
    Finding { kind: error.kind(), ..said(level, detail, error.hints().first().copied()) }
}

fn said(level: Level, detail: String, hint: Option<&str>) -> Finding {
    Finding { check: "incus".into(), level, detail, hint: hint.map(str::to_owned), kind: Kind::Unavailable }
}
