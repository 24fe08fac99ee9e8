//! `virga images`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Subcommand;

use super::args::{FormatArg, FromArgs};
use super::pattern::Template;
use super::render::{self, Format};
use super::{args, term};
use crate::base::{ByteSize, Error, Result, harmless};
use crate::ops::images::Listed;
use crate::ops::remote::RemoteRequest;
use crate::ops::upkeep::{Checked, Removed};
use crate::ops::{Env, images, remote, upkeep};

/// `virga images`
#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Only images that match, as in noble, 24.04/arm64, release=noble arch!=arm64 or version~^2026
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
    /// List what the source offers instead of what is in the pool
    #[arg(long)]
    remote: bool,
    #[command(flatten)]
    from: FromArgs,
    /// With --remote: use no network, but the metadata that was verified last
    #[arg(long, requires = "remote")]
    offline: bool,
    /// With --remote: only the newest N versions of each product
    #[arg(long, value_name = "N", requires = "remote", value_parser = args::at_least_one())]
    max: Option<usize>,
    /// Show why each image is trusted: key, signature, index, products, digest
    #[arg(long, conflicts_with_all = ["remote", "template"])]
    explain: bool,
    /// Print a line an image, as in '{release} {version_name} {item_url}'
    #[arg(long, value_name = "TEXT", value_parser = args::value::<Template>, conflicts_with = "format")]
    template: Option<Template>,
    #[command(flatten)]
    format: FormatArg,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Hash the images again; what has rotted is moved aside
    Verify {
        /// Only images that match
        #[arg(value_name = "FILTER")]
        filters: Vec<String>,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Remove images from the pool
    Rm {
        /// Ids, or filters as in release=noble
        #[arg(required = true, value_name = "ID|FILTER")]
        filters: Vec<String>,
        #[command(flatten)]
        format: FormatArg,
    },
}

/// Runs `virga images`.
///
/// # Errors
/// As [`images::images`], [`remote::remote`] and [`upkeep`]'s.
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    match args.command {
        Some(Command::Verify { filters, format }) => return verify(&upkeep::verify(env, &filters)?, format.format),
        Some(Command::Rm { filters, format }) => {
            removed(env, &upkeep::remove(env, &filters)?, format.format)?;
            return Ok(ExitCode::SUCCESS);
        }
        None => {}
    }
    if args.remote {
        let request =
            RemoteRequest { from: args.from.into(), offline: args.offline, max: args.max, filters: args.filters };
        offered(&remote::remote(env, &request)?, args.template.as_ref(), args.format.format)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.from.any() {
        return Err(Error::usage("the pool's own images have no --source")
            .hint("add --remote to ask the source, or filter by source"));
    }
    let listed = images::images(env, &args.filters)?;
    if args.explain {
        listed.iter().for_each(|line| term::data(&chain(line)));
    } else if let Some(template) = &args.template {
        let rows: Vec<BTreeMap<String, String>> = listed.iter().map(keys).collect();
        term::data(&template.lines(&rows)?);
    } else {
        match args.format.format {
            Format::Json => render::json(&listed.iter().map(json).collect::<Vec<_>>())?,
            Format::Table => table(&listed),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn json(line: &Listed) -> serde_json::Value {
    let record = &line.record;
    serde_json::json!({
        "id": record.id, "ftype": record.key("ftype"), "source": record.source, "blob": record.blob, "size": record.size,
        "virtual_size": record.disk.map(|disk| disk.virtual_size), "format": record.disk.map(|disk| disk.format),
        "synced_at": record.synced_at, "retired_at": record.retired_at, "present": line.present,
        "trust": record.trust(), "signer": record.signer(), "guests": line.guests, "chain": record.chain, "keys": record.keys,
    })
}

/// An image's keys and what the pool adds to them, for templates.
fn keys(line: &Listed) -> BTreeMap<String, String> {
    let record = &line.record;
    let mut keys = record.described();
    keys.extend([
        ("id".into(), record.id.to_string()),
        ("blob".into(), record.blob.to_string()),
        ("guests".into(), line.guests.to_string()),
        ("state".into(), state(line).into()),
    ]);
    keys
}

fn state(line: &Listed) -> &'static str {
    match line.record.retired_at {
        _ if !line.present => "missing",
        Some(_) => "retired",
        None if line.record.disk.is_some() => "ready",
        None => part(line.record.key("ftype")),
    }
}

/// What a file is that is no disk image: a part of a container image, or just a file.
fn part(ftype: &str) -> &'static str {
    match ftype {
        "squashfs" | "root.tar.xz" => "root",
        "incus.tar.xz" | "lxd.tar.xz" => "metadata",
        _ => "file",
    }
}

fn table(listed: &[Listed]) {
    let rows = listed.iter().map(|line| {
        let record = &line.record;
        vec![
            record.id.to_string(),
            record.key("os").to_owned(),
            record.key("release").to_owned(),
            record.key("arch").to_owned(),
            record.key("label").to_owned(),
            record.key("version_name").to_owned(),
            record.key("ftype").to_owned(),
            ByteSize(record.size).to_string(),
            record.source.clone(),
            record.trust().to_string(),
            state(line).to_owned(),
            line.guests.to_string(),
        ]
    });
    let header =
        ["ID", "OS", "RELEASE", "ARCH", "LABEL", "VERSION", "TYPE", "SIZE", "SOURCE", "TRUST", "STATE", "GUESTS"];
    render::table(&header, rows.collect());
}

fn offered(items: &[BTreeMap<String, String>], template: Option<&Template>, format: Format) -> Result<()> {
    if let Some(template) = template {
        term::data(&template.lines(items)?);
        return Ok(());
    }
    if format == Format::Json {
        return render::json(&items);
    }
    let rows = items.iter().map(|keys| {
        let key = |key: &str| keys.get(key).cloned().unwrap_or_default();
        let size = key("size").parse().map_or_else(|_| String::new(), |size| ByteSize(size).to_string());
        vec![key("os"), key("release"), key("arch"), key("version_name"), key("ftype"), size, key("product_name")]
    });
    render::table(&["OS", "RELEASE", "ARCH", "VERSION", "TYPE", "SIZE", "PRODUCT"], rows.collect());
    Ok(())
}

/// The chain of trust of one image, for people.
pub(super) fn chain(line: &Listed) -> String {
    let record = &line.record;
    let mut text = format!(
        "{}  {} {} {}\n",
        record.id,
        record.key("product_name"),
        record.key("version_name"),
        record.key("item_name")
    );
    if record.is_own() {
        text += &format!(
            "  made of   {}\n            with its metadata sha256:{}\n",
            record.chain.index.url, record.chain.index.sha256
        );
    }
    for (name, link) in
        [("index", &record.chain.index), ("products", &record.chain.products)].into_iter().filter(|_| !record.is_own())
    {
        text += &format!("  {name:<9} {}\n            sha256:{}\n", link.url, link.sha256);
        match &link.signature {
            Some(by) => {
                text += &format!("            signed {} ({}) by {}\n", by.signed_at, by.hash, by.fingerprint);
                if by.signing_key != by.fingerprint {
                    text += &format!("            with its sub-key {}\n", by.signing_key);
                }
                text += &format!("            {}\n", by.user_id);
            }
            None => text += "            UNSIGNED: only the connection vouched for it\n",
        }
    }
    text += &upstream(line);
    text += &format!(
        "  item      {} ({})\n            announced {}\n",
        record.chain.path,
        ByteSize(record.size),
        record.announced
    );
    text += &format!("  blob      {}, verified {}\n", record.blob, record.synced_at);
    text.lines().map(|line| format!("{}\n", harmless::line(line))).collect()
}

/// What a mirror says of where it had the image from: its own signature vouches for no more than that it says so.
fn upstream(line: &Listed) -> String {
    let record = &line.record;
    match record.key("upstream_trust") {
        "" => String::new(),
        "signed" => format!("  upstream  signed by {}, says the mirror\n", record.key("upstream_key")),
        _ => "  upstream  UNSIGNED: the mirror had only a connection's word for it\n".to_owned(),
    }
}

/// Rot is a refusal: exit code 5, so that scripts notice.
fn verify(checked: &Checked, format: Format) -> Result<ExitCode> {
    if format == Format::Json {
        render::json(checked)?;
    } else {
        term::line(&format!("{} sound, {}", checked.sound, ByteSize(checked.bytes)));
        for rotten in &checked.rotten {
            let ids: Vec<&str> = rotten.images.iter().map(|id| id.as_str()).collect();
            term::line(&format!("rotten {} {}", ids.join(" "), rotten.blob));
        }
        for id in &checked.missing {
            term::line(&format!("missing {id}"));
        }
    }
    if checked.rotten.is_empty() && checked.missing.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let mut error = Error::refused(format!(
        "{} of the images are damaged: their content was moved aside or is missing",
        checked.rotten.len() + checked.missing.len()
    ))
    .hint("'virga sync' fetches them again, 'virga prune' frees what was moved aside");
    for rotten in checked.rotten.iter().filter(|rotten| !rotten.guests.is_empty()) {
        error = error.hint(format!("until then these guests cannot start: {}", rotten.guests.join(" ")));
    }
    Err(error)
}

fn removed(env: Env<'_>, removed: &Removed, format: Format) -> Result<()> {
    if format == Format::Json {
        return render::json(removed);
    }
    for id in &removed.images {
        term::line(&format!("removed {id}"));
    }
    for id in &removed.in_use {
        env.reporter.note(&format!("the content of {id} stays while guests stand on it"));
    }
    env.reporter.note(&format!("freed {}", ByteSize(removed.bytes)));
    Ok(())
}
