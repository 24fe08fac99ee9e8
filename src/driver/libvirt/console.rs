//! The serial console: libvirt's stream behind a socket, as the other drivers have one.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use virt::connect::Connect;
use virt::domain::Domain;
use virt::stream::Stream;

use super::connection::{doing, explain};
use crate::base::{Context as _, Error, GuestPlan, Result};

/// Connects. Two threads carry what is said from one to the other, until either side ends.
///
/// # Errors
/// When another client has the console; what libvirt said.
pub(super) fn connect(connection: &Connect, domain: &Domain, plan: &GuestPlan) -> Result<UnixStream> {
    let stream = Stream::new(connection, 0).map_err(doing("connecting to the console"))?;
    domain.open_console(None, &stream, 0).map_err(|error| match error.message() {
        words if words.contains("Active console session") => {
            Error::failed(format!("the console of guest '{}' is taken by another client", plan.name))
                .hint(format!("what it shows is in its log: virga console --log {}", plan.name))
        }
        _ => explain(&error, "connecting to the console"),
    })?;
    let (ours, theirs) = UnixStream::pair().context(|| "making a socket".into())?;
    let typed = theirs.try_clone().context(|| "making a socket".into())?;
    let up = stream.clone();
    std::thread::spawn(move || carry_down(&stream, theirs));
    std::thread::spawn(move || carry_up(&up, typed));
    Ok(ours)
}

/// What the guest says. The end of the guest is the end of the socket.
fn carry_down(stream: &Stream, mut socket: UnixStream) {
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = stream.recv(&mut piece) {
        let length = usize::try_from(length).unwrap_or(0);
        if socket.write_all(&piece[..length]).is_err() {
            break;
        }
    }
    // The other thread wakes up by it, and gives the stream up.
    let _ = socket.shutdown(Shutdown::Both);
}

/// What is typed.
fn carry_up(stream: &Stream, mut socket: UnixStream) {
    let mut piece = [0; 4096];
    'all: while let Ok(length @ 1..) = socket.read(&mut piece) {
        let mut rest = &piece[..length];
        while !rest.is_empty() {
            let Ok(sent) = stream.send(rest) else { break 'all };
            rest = &rest[usize::try_from(sent).unwrap_or(0).min(rest.len())..];
        }
    }
    // Wakes the other one; that a stream which has ended cannot be given up says nothing.
    let _ = stream.clone().abort();
}
