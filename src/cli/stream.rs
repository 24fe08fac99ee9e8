//! `virga stream …`: publishing images.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use super::args::SignArgs;
use super::term;
use crate::base::{ByteSize, Result};
use crate::ops::publish::{AddRequest, InitRequest, RekeyRequest};
use crate::ops::serve::ServeRequest;
use crate::ops::{Env, publish, serve};

/// `virga stream`
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an empty signed stream in a folder
    Init {
        /// The folder
        dir: PathBuf,
        #[command(flatten)]
        sign: SignArgs,
        /// Whom a new key belongs to
        #[arg(long, default_value = "virga stream", value_name = "TEXT")]
        user_id: String,
        /// What the stream is called among clients
        #[arg(long, value_name = "ID")]
        content_id: Option<String>,
    },
    /// Add an image to a stream
    Add {
        /// The stream's folder
        dir: PathBuf,
        /// The image; its format and size are read from it
        image: PathBuf,
        /// What it is, as in os=debian release=bookworm; arch and version_name have defaults
        #[arg(value_name = "KEY=VALUE")]
        keys: Vec<String>,
        /// A root file system's metadata archive (incus.tar.xz, lxd.tar.xz) [default: made of the keys]
        #[arg(long, value_name = "FILE")]
        metadata: Option<PathBuf>,
        #[command(flatten)]
        sign: SignArgs,
    },
    /// Remove images from a stream
    Remove {
        /// The stream's folder
        dir: PathBuf,
        /// Which images, as in version_name=20261123
        #[arg(required = true, value_name = "FILTER")]
        filters: Vec<String>,
        #[command(flatten)]
        sign: SignArgs,
    },
    /// Sign a stream anew, with these keys and no others
    #[command(
        after_help = "To a new key without a gap: first 'rekey DIR --key OLD --key NEW', so that both sign; when \
        all clients have the new 'keyring.gpg', 'rekey DIR --key NEW'. Clients that verify with GnuPG refuse signatures \
        by keys that they do not know beside those that they do: for them begin with 'rekey DIR --key OLD --announce NEW', \
        and wait until they have that 'keyring.gpg'."
    )]
    Rekey {
        /// The stream's folder
        dir: PathBuf,
        #[command(flatten)]
        sign: SignArgs,
        /// A key, public or secret, that clients are given before it signs; may be given several times
        #[arg(long, value_name = "FILE")]
        announce: Vec<PathBuf>,
        /// Whom a new key belongs to
        #[arg(long, default_value = "virga stream", value_name = "TEXT")]
        user_id: String,
    },
    /// Check a stream: signatures, every file's size and hash, nothing missing
    Verify {
        /// The stream's folder
        dir: PathBuf,
        /// The keys to trust [default: DIR/keyring.gpg]
        #[arg(long, value_name = "FILE")]
        keyring: Option<PathBuf>,
    },
    /// Serve a folder over HTTP
    Serve {
        /// The stream's folder
        dir: PathBuf,
        /// The address to listen on
        #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
        bind: std::net::IpAddr,
        /// The port; 0 lets the system choose
        #[arg(long, default_value_t = 0, value_name = "PORT")]
        port: u16,
        /// Write the port to this file once it listens
        #[arg(long, value_name = "FILE")]
        port_file: Option<PathBuf>,
    },
}

/// Runs `virga stream`.
///
/// # Errors
/// As the operations of [`publish`] and [`serve`].
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    match args.command {
        Command::Init { dir, sign, user_id, content_id } => {
            let request = InitRequest { dir, sign: sign.into(), user_id, content_id };
            publish::init(env, &request)?.iter().for_each(|key| term::line(&key.to_string()));
        }
        Command::Rekey { dir, sign, announce, user_id } => {
            let request = RekeyRequest { dir, sign: sign.into(), announce, user_id };
            publish::rekey(env, &request)?.iter().for_each(|key| term::line(&key.to_string()));
        }
        Command::Add { dir, image, keys, metadata, sign } => {
            let added = publish::add(env, &AddRequest { dir, image, metadata, keys, sign: sign.into() })?;
            let verb = if added.new { "added" } else { "present" };
            term::line(&format!("{verb} {} {} ({})", added.product, added.version, ByteSize(added.size)));
        }
        Command::Remove { dir, filters, sign } => {
            for gone in publish::remove(&dir, &sign.into(), &filters)? {
                term::line(&format!("removed {gone}"));
            }
        }
        Command::Verify { dir, keyring } => {
            let verified = publish::verify(&dir, keyring.as_deref())?;
            term::line(&format!("{} items, {}", verified.items, ByteSize(verified.bytes)));
        }
        Command::Serve { dir, bind, port, port_file } => {
            serve::serve(env, &ServeRequest { dir, bind, port, port_file })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
