//! `virga ssh-config`, `virga inventory`.

use std::path::PathBuf;
use std::process::ExitCode;

use super::args::value;
use super::{render, term};
use crate::base::{Context as _, GuestName, Result, fs};
use crate::ops::{Env, access};

/// `virga ssh-config`
#[derive(clap::Args, Debug)]
#[command(after_help = "After 'virga ssh-config --install' plain ssh, scp, rsync and editors reach every guest as\n\
    NAME.virga, with its host keys pinned:\n\n    rsync -a src/ web.virga:src/")]
pub struct ConfigArgs {
    /// The guests [default: all that run]
    #[arg(value_parser = value::<GuestName>, value_name = "NAME", conflicts_with_all = ["install", "uninstall", "refresh"])]
    names: Vec<GuestName>,
    /// Have ~/.ssh/config include it, for good: addresses are asked for whenever a guest is called
    #[arg(long, conflicts_with_all = ["uninstall", "refresh"])]
    install: bool,
    /// Take that back
    #[arg(long, conflicts_with = "refresh")]
    uninstall: bool,
    /// Write it to where the installed configuration looks
    #[arg(long, hide = true)]
    refresh: bool,
}

/// Runs `virga ssh-config`.
///
/// # Errors
/// As [`access::ssh_config`] and [`access::install`].
pub fn ssh_config(env: Env<'_>, args: ConfigArgs) -> Result<ExitCode> {
    let told = |(file, changed): (PathBuf, bool), done: &str| {
        let what = if changed { done } else { "nothing to do in" };
        env.reporter.note(&format!("{what} '{}'", file.display()));
    };
    if args.refresh {
        access::refresh(env)?;
    } else if args.install {
        let program = std::env::current_exe().context(|| "finding this program".into())?;
        told(access::install(env, &program)?, "guests are now NAME.virga for ssh:");
    } else if args.uninstall {
        told(access::uninstall(env)?, "taken out of");
    } else {
        term::data(&access::ssh_config(env, &args.names)?);
    }
    Ok(ExitCode::SUCCESS)
}

/// `virga inventory`
#[derive(clap::Args, Debug)]
#[command(after_help = "Ansible runs inventory scripts: called by the name virga-inventory, virga is one.\n\n\
    ansible -i /usr/bin/virga-inventory all -m ping")]
pub struct InventoryArgs {
    /// All running guests, as Ansible asks a script: so it is without being said
    #[arg(long, conflicts_with_all = ["host", "write"])]
    list: bool,
    /// One guest's variables
    #[arg(long, value_parser = value::<GuestName>, value_name = "NAME", conflicts_with = "write")]
    host: Option<GuestName>,
    /// Write it as a file that Ansible reads, as in hosts.json
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

/// Runs `virga inventory`.
///
/// # Errors
/// As [`access::inventory`]; when the file cannot be written.
pub fn inventory(env: Env<'_>, args: InventoryArgs) -> Result<ExitCode> {
    match (args.host, args.write) {
        (Some(host), _) => render::json(&access::inventory_host(env, &host)?)?,
        (None, Some(file)) => fs::write_json(&file, &access::inventory_file(env)?, 0o644)?,
        (None, None) => render::json(&access::inventory(env)?)?,
    }
    Ok(ExitCode::SUCCESS)
}
