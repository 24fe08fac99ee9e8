//! A loopback HTTP server that breaks the rules on purpose: byte-exact
//! answers, bodies cut anywhere, silence.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::Url;

/// Nothing here waits longer: so long that only a fault takes it.
const LIMIT: Duration = Duration::from_secs(600);

#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
}

impl Request {
    /// First byte of a `Range: bytes=N-`.
    pub fn range(&self) -> Option<usize> {
        self.headers.get("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What happens after the body's bytes.
#[derive(Clone, Copy, Debug)]
pub enum After {
    Close,
    /// Silence until the client hangs up.
    Hang,
}

#[derive(Clone, Debug)]
pub struct Reply {
    head: String,
    body: Vec<u8>,
    cut: Option<usize>,
    trickle: bool,
    after: After,
}

impl Reply {
    pub fn status(line: &str) -> Self {
        Reply { head: format!("HTTP/1.1 {line}\r\n"), body: Vec::new(), cut: None, trickle: false, after: After::Close }
    }

    /// A right 200 with its length.
    pub fn ok(body: &[u8]) -> Self {
        Reply::status("200 OK").header("Content-Length", body.len()).body(body)
    }

    /// A right answer to a request with or without a range.
    pub fn ranged(request: &Request, body: &[u8]) -> Self {
        match request.range() {
            Some(start) if start < body.len() => Reply::part(start, body),
            Some(_) => Reply::status("416 Range Not Satisfiable").header("Content-Length", 0),
            None => Reply::ok(body),
        }
    }

    /// A right 206 from `start` to the end of `body`.
    pub fn part(start: usize, body: &[u8]) -> Self {
        Reply::status("206 Partial Content")
            .header("Content-Range", format!("bytes {start}-{}/{}", body.len() - 1, body.len()))
            .header("Content-Length", body.len() - start)
            .body(&body[start..])
    }

    pub fn header(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.head += &format!("{name}: {value}\r\n");
        self
    }

    pub fn body(mut self, body: &[u8]) -> Self {
        self.body = body.to_vec();
        self
    }

    /// Breaks off after so many bytes of the body.
    pub fn cut(mut self, at: usize) -> Self {
        self.cut = Some(at);
        self
    }

    /// Writes another text for `text` in the head.
    pub fn replace(mut self, text: &str, other: &str) -> Self {
        assert!(self.head.contains(text) || self.head.contains(" 200 "), "{}", self.head);
        self.head = self.head.replace(text, other);
        self
    }

    pub fn hang(mut self) -> Self {
        self.after = After::Hang;
        self
    }

    /// One byte each 20 ms.
    pub fn trickle(mut self) -> Self {
        self.trickle = true;
        self
    }

    fn send(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        stream.write_all(format!("{}Connection: close\r\n\r\n", self.head).as_bytes())?;
        let body = &self.body[..self.cut.unwrap_or(self.body.len()).min(self.body.len())];
        if self.trickle {
            for byte in body {
                stream.write_all(&[*byte])?;
                // Waits by listening: returns at once when the client hangs up.
                stream.set_read_timeout(Some(Duration::from_millis(20)))?;
                if stream.read(&mut [0]).is_ok() {
                    return Ok(());
                }
            }
        } else {
            stream.write_all(body)?;
        }
        if let After::Hang = self.after {
            stream.set_read_timeout(Some(LIMIT))?;
            let _ = stream.read(&mut [0]);
        }
        Ok(())
    }
}

/// Serves each connection on a thread of its own, none longer than [`LIMIT`];
/// takes no more of them once it is dropped.
pub struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// `answer` gets the number of the request, from 0, and the request.
    pub fn start(answer: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let thread = {
            let (seen, stop, answer) = (Arc::clone(&seen), Arc::clone(&stop), Arc::new(answer));
            std::thread::spawn(move || {
                for stream in listener.incoming().take_while(|_| !stop.load(Ordering::SeqCst)) {
                    let (seen, answer, mut stream) = (Arc::clone(&seen), Arc::clone(&answer), stream.unwrap());
                    std::thread::spawn(move || {
                        stream.set_write_timeout(Some(LIMIT)).unwrap();
                        // A client may open a connection that it then needs not.
                        let Some(request) = read(&stream) else { return };
                        let number = {
                            let mut seen = seen.lock().unwrap();
                            seen.push(request.clone());
                            seen.len() - 1
                        };
                        // The client may hang up first: that is its right.
                        let _ = answer(number, &request).send(&mut stream);
                    });
                }
            })
        };
        Server { address, seen, stop, thread: Some(thread) }
    }

    pub fn url(&self, path: &str) -> Url {
        format!("http://{}{path}", self.address).parse().unwrap()
    }

    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().unwrap().join();
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers = lines.take_while(|line| !line.is_empty());
    let headers = headers.filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_lowercase(), value.trim().to_owned()))
    });
    Some(Request { path, headers: headers.collect() })
}
