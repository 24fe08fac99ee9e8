//! `virga cp`.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::base::{Error, GuestName, GuestPath, Result};
use crate::ops::{Env, cp};

/// `virga cp`
#[derive(clap::Args, Debug)]
#[command(after_help = "\
One of the two is in a guest and written GUEST:PATH; a path that is not absolute begins in the home
folder there. In a container files belong to root; in a machine it is done over SSH, as its user.
A file that is there is replaced, a folder is not. A file here whose name has a ':' is written ./NAME.

  virga cp site.conf web:/etc/nginx/conf.d
  virga cp -r web:/var/log logs")]
pub struct Args {
    /// Copy folders too, with all that is in them
    #[arg(short, long)]
    recursive: bool,
    /// A file or folder
    #[arg(value_name = "FROM")]
    from: String,
    /// A folder that it goes to, or its new name
    #[arg(value_name = "TO")]
    to: String,
}

/// One end of a copy.
enum Place {
    Here(PathBuf),
    There(GuestName, GuestPath),
}

impl Place {
    /// As `scp` reads it: a colon before any slash makes it a guest's.
    fn parse(text: &str) -> Result<Self> {
        match text.split_once(':') {
            Some((name, path)) if !name.contains('/') => Ok(Place::There(name.parse()?, path.parse()?)),
            _ if text.is_empty() => Err(Error::usage("an empty path names no file")),
            _ => Ok(Place::Here(text.into())),
        }
    }
}

/// Runs `virga cp`.
///
/// # Errors
/// As [`cp::push`] and [`cp::pull`].
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    match (Place::parse(&args.from)?, Place::parse(&args.to)?) {
        (Place::Here(from), Place::There(name, to)) => cp::push(env, &from, &name, &to, args.recursive)?,
        (Place::There(name, from), Place::Here(to)) => cp::pull(env, &name, &from, &to, args.recursive)?,
        (Place::There(..), Place::There(..)) => {
            return Err(Error::usage("files go from one guest to another by way of this machine")
                .hint("copy to a file here first"));
        }
        (Place::Here(_), Place::Here(_)) => {
            return Err(Error::usage("neither of the two is in a guest").hint("as in web:/etc/hosts"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_are_told_from_files() {
        for (text, guest) in [("web:/a", true), ("web:", true), ("./a:b", false), ("/a:b", false), ("a", false)] {
            assert_eq!(matches!(Place::parse(text), Ok(Place::There(..))), guest, "{text}");
        }
        assert!(Place::parse("a b:c").is_err() && Place::parse("").is_err() && Place::parse("web:../x").is_err());
    }
}
