//! Lets `ssh` log in over a connection that is there already. A guest has spent
//! a process and its start on the connection that was answered first; under
//! emulation that is a tenth of a second, and a log is spared a line about who left.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use super::probe::{Answered, GREETING};
use crate::base::poll::{self, Deadline};
use crate::base::{Context as _, Result};

/// `ssh` connects within milliseconds of its start.
const PATIENCE: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(1);

/// Where the one client that comes is connected with the server. Does not
/// block: threads carry the bytes until one side ends. Whoever else on this host
/// came first would get a connection that anybody here can make, and `ssh` be refused.
///
/// # Errors
/// When the system gives no socket.
pub(super) fn offer(server: Answered) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context(|| "listening on loopback".into())?;
    let addr = listener.local_addr().context(|| "listening on loopback".into())?;
    listener.set_nonblocking(true).context(|| "listening on loopback".into())?;
    std::thread::spawn(move || {
        let client = poll::until(&Deadline::after(PATIENCE), STEP, || Ok(listener.accept().ok()));
        // Whoever comes second is refused, and does not wait for an answer.
        drop(listener);
        // A connection that fails here is one that fails in `ssh`, which says so.
        if let Ok(Some((client, _))) = client {
            let _ = carry(client, server);
        }
    });
    Ok(addr)
}

fn carry(mut client: TcpStream, server: Answered) -> io::Result<()> {
    let stream = server.stream;
    client.set_nonblocking(false)?;
    stream.set_nonblocking(false)?;
    client.set_nodelay(true)?;
    stream.set_nodelay(true)?;
    client.write_all(&server.received)?;
    if server.greeted {
        // The server has these already; what every client begins with it must not get twice.
        let mut greeting = [0; GREETING.len()];
        client.read_exact(&mut greeting)?;
        if greeting != GREETING {
            return Err(io::Error::other("not an SSH client"));
        }
    }
    let (from, to) = (client.try_clone()?, stream.try_clone()?);
    std::thread::spawn(move || pump(from, to));
    pump(stream, client);
    Ok(())
}

fn pump(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::probe::Banner;

    #[rstest::rstest]
    #[case::begun(true, "SSH-2.0-question")]
    #[case::fresh(false, "question")]
    fn what_was_received_comes_first_and_ends_are_passed_on(#[case] greeted: bool, #[case] sent: &str) {
        let there = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(there.local_addr().unwrap()).unwrap();
        let (mut server, _) = there.accept().unwrap();
        let received = b"SSH-2.0-x\r\n".to_vec();
        let addr = offer(Answered { banner: Banner("SSH-2.0-x".into()), received, greeted, stream }).unwrap();

        let mut client = TcpStream::connect(addr).unwrap();
        server.write_all(b"more").unwrap();
        client.write_all(sent.as_bytes()).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut asked = String::new();
        server.read_to_string(&mut asked).unwrap();
        assert_eq!(asked, "question");
        drop(server);
        let mut told = String::new();
        client.read_to_string(&mut told).unwrap();
        assert_eq!(told, "SSH-2.0-x\r\nmore");
        // It was there for one client.
        assert!(TcpStream::connect(addr).is_err());
    }
}
