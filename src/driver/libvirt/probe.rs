//! What `doctor` and `create` want to know of libvirt.

use virt::connect::Connect;

use super::connection::Connections;
use super::network;
use crate::base::Kind;
use crate::base::plan::Daemon;
use crate::driver::{Finding, Level, ProbeDepth};

/// Looks; see [`crate::driver::Driver::probe`].
pub(super) fn findings(connections: &Connections, daemon: &Daemon, depth: ProbeDepth) -> Vec<Finding> {
    let connection = match connections.get(&daemon.uri) {
        Ok(connection) => connection,
        Err(error) => {
            // Whoever wants a guest of this driver cannot have one; else it is one driver of several.
            let level = if depth == ProbeDepth::Quick { Level::Error } else { Level::Warning };
            let words: Vec<String> = std::iter::once(error.to_string()).chain(error.causes()).collect();
            return vec![finding("libvirt", level, words.join(": "), error.hints().first().copied())];
        }
    };
    if depth == ProbeDepth::Quick {
        return vec![finding("libvirt", Level::Ok, daemon.uri.clone(), None)];
    }
    vec![version(&connection, daemon), default_network(&connection, daemon)]
}

/// libvirt's numbers: a million for the major version, a thousand for the minor.
fn version(connection: &Connect, daemon: &Daemon) -> Finding {
    let three = |number: u32| format!("{}.{}.{}", number / 1_000_000, number / 1_000 % 1_000, number % 1_000);
    match (connection.lib_version(), connection.hyp_version()) {
        (Ok(libvirt), Ok(qemu)) => {
            let detail = format!("libvirt {} with QEMU {} at '{}'", three(libvirt), three(qemu), daemon.uri);
            finding("libvirt", Level::Ok, detail, None)
        }
        (Ok(libvirt), Err(error)) => {
            let detail = format!("libvirt {} at '{}' finds no QEMU: {}", three(libvirt), daemon.uri, error.message());
            finding("libvirt", Level::Warning, detail, Some("install QEMU on that host"))
        }
        (Err(error), _) => finding("libvirt", Level::Warning, error.message().to_owned(), None),
    }
}

fn default_network(connection: &Connect, daemon: &Daemon) -> Finding {
    match network::state(connection, network::DEFAULT) {
        Ok(Some(true)) => finding("libvirt network", Level::Ok, "its network 'default' runs".into(), None),
        Ok(Some(false)) => {
            let detail = "its network 'default' is stopped: it is started with the first guest".to_owned();
            finding("libvirt network", Level::Ok, detail, None)
        }
        Ok(None) => {
            let hint = network::define_hint(&daemon.uri);
            finding("libvirt network", Level::Warning, "it has no network 'default'".into(), Some(&hint))
        }
        Err(error) => finding("libvirt network", Level::Warning, error.to_string(), None),
    }
}

fn finding(check: &str, level: Level, detail: String, hint: Option<&str>) -> Finding {
    Finding { check: check.into(), level, detail, hint: hint.map(str::to_owned), kind: Kind::Unavailable }
}
