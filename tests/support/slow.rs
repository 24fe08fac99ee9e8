//! A server so slow that a kill hits a download, which remembers who asked for what.

use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Bytes a second of one download: so slow that most kills hit one.
const RATE: usize = 8 << 20;

/// Serves a folder slowly, with ranges.
pub struct SlowServer {
    pub url: String,
    /// The path of each request.
    pub asked: Arc<Mutex<Vec<String>>>,
}

impl SlowServer {
    pub fn start(dir: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = Arc::clone(&asked);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (dir, log) = (dir.clone(), Arc::clone(&log));
                // A killed client breaks the pipe: that is the point of this test.
                std::thread::spawn(move || drop(answer(stream.unwrap(), &dir, &log)));
            }
        });
        SlowServer { url, asked }
    }
}

fn answer(mut stream: TcpStream, dir: &Path, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let lines: Vec<String> =
        BufReader::new(stream.try_clone()?).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let Some(path) = lines.first().and_then(|line| line.split(' ').nth(1)) else { return Ok(()) };
    log.lock().unwrap().push(path.to_owned());
    let mut file = std::fs::File::open(dir.join(path.trim_start_matches('/')))?;
    let size = file.metadata()?.len();
    let range = lines
        .iter()
        .find_map(|line| line.to_lowercase().strip_prefix("range: bytes=")?.strip_suffix('-')?.parse().ok());
    let start: u64 = range.unwrap_or(0);
    let status = match range {
        Some(_) => format!("206 Partial Content\r\nContent-Range: bytes {start}-{}/{size}", size - 1),
        None => "200 OK".into(),
    };
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", size - start)?;
    file.seek(SeekFrom::Start(start))?;
    let mut block = vec![0; RATE / 100];
    loop {
        let read = file.read(&mut block)?;
        if read == 0 {
            return Ok(());
        }
        stream.write_all(&block[..read])?;
        std::thread::sleep(Duration::from_millis(10));
    }
}
