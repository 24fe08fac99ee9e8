//! Serving a published stream over HTTP: static files with ranges and
//! conditional requests, nothing else.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use axum::serve::ListenerExt as _;
use tower_http::services::ServeDir;

use super::Env;
use crate::base::{Context as _, Error, Kind, Result, fs, interrupt};

/// Bytes read from a file at a time. Large images are what is served.
const BLOCK: usize = 512 << 10;

/// What to serve and where.
#[derive(Clone, Debug)]
pub struct ServeRequest {
    /// The folder.
    pub dir: PathBuf,
    /// The address to listen on.
    pub bind: IpAddr,
    /// The port; 0 lets the system choose.
    pub port: u16,
    /// Gets the port as text once the server listens.
    pub port_file: Option<PathBuf>,
}

/// Serves until Ctrl-C or SIGTERM, which end it without an error.
///
/// # Errors
/// [`Kind::NotFound`] without such a folder; [`Kind::Failed`] when the port is taken.
pub fn serve(env: Env<'_>, request: &ServeRequest) -> Result<()> {
    if !request.dir.is_dir() {
        return Err(Error::new(Kind::NotFound, format!("there is no folder '{}'", request.dir.display())));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context(|| "starting the server".into())?;
    let served = runtime.block_on(listen(env, request));
    // Downloads that still run are cut off: the user asked for the end.
    runtime.shutdown_timeout(Duration::from_millis(100));
    served
}

async fn listen(env: Env<'_>, request: &ServeRequest) -> Result<()> {
    let wanted = SocketAddr::new(request.bind, request.port);
    let listener = tokio::net::TcpListener::bind(wanted).await.context(|| format!("listening on {wanted}"))?;
    let address = listener.local_addr().context(|| "asking for the port".into())?;
    if let Some(file) = &request.port_file {
        fs::write_atomic(file, format!("{}\n", address.port()).as_bytes(), 0o644)?;
    }
    env.reporter.note(&format!("serving '{}' on http://{address}/", request.dir.display()));
    let files = ServeDir::new(&request.dir).append_index_html_on_directories(false).with_buf_chunk_size(BLOCK);
    let app = axum::Router::new().fallback_service(files).layer(axum::middleware::from_fn(refuse_hidden));
    tokio::select! {
        served = async { axum::serve(listener.tap_io(at_once), app).await } => served.context(|| "serving".into()),
        () = asked_to_end() => Ok(()),
    }
}

/// A head and a small body are two packets: the second is not to wait until
/// the client has confirmed the first, which takes up to 40 ms (RFC 1122 section 4.2.3.2).
fn at_once(connection: &mut tokio::net::TcpStream) {
    if let Err(error) = connection.set_nodelay(true) {
        tracing::debug!(%error, "this connection will be slow");
    }
}

/// Hidden files are the publisher's own: its lock, files that are being written.
async fn refuse_hidden(request: axum::extract::Request, next: axum::middleware::Next) -> axum::response::Response {
    use axum::response::IntoResponse as _;
    let path = request.uri().path().to_ascii_lowercase();
    // No path of a stream holds an encoded dot or slash: nobody honest asks for one.
    let encoded = path.contains("%2e") || path.contains("%2f");
    if encoded || path.split('/').any(|segment| segment.starts_with('.')) {
        return axum::http::StatusCode::NOT_FOUND.into_response();
    }
    next.run(request).await
}

async fn asked_to_end() {
    while !interrupt::requested() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
