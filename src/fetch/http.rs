//! The HTTP client, and what an answer or a broken connection means.

use std::error::Error as _;
use std::net::IpAddr;
use std::time::Duration;

use reqwest::header::{ETAG, HeaderMap, HeaderName, LAST_MODIFIED, LOCATION, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url, redirect};

use super::retry::Failure;
use super::{FetchSettings, Fetcher, Target, Validators};
use crate::base::proxy::Proxy;
use crate::base::{Context as _, Error, Kind, Result, address, tls};

const REDIRECTS_MAX: usize = 5;
/// Longest validator that is worth keeping.
const VALIDATOR_MAX: usize = 1024;

/// How a server is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Through the environment's proxies, if it names any.
    Any,
    /// Without them: no proxy can reach this machine's loopback.
    Direct,
    /// As that, and without TLS: reading the system's certificates takes
    /// longer than all else that a sync with nothing new does.
    Plain,
}

/// A client without automatic content decoding (no such feature is compiled
/// in) and without a total time limit: large items take as long as they take.
pub(super) fn client(settings: &FetchSettings, way: Way) -> Result<Client> {
    let policy = redirect::Policy::custom(move |attempt| match redirect_verdict(attempt.previous(), attempt.url()) {
        Ok(()) if way == Way::Plain && attempt.url().scheme() == "https" => {
            attempt.error("a server of this machine redirects to https: use that URL itself")
        }
        Ok(()) => attempt.follow(),
        Err(reason) => attempt.error(reason),
    });
    tls::provider();
    let builder = Client::builder()
        .user_agent(&settings.user_agent)
        .connect_timeout(settings.connect_timeout)
        .read_timeout(settings.stall_timeout)
        .redirect(policy)
        .referer(false);
    let builder = match way {
        Way::Any => builder,
        Way::Direct => builder.no_proxy(),
        Way::Plain => builder.no_proxy().tls_certs_only([]),
    };
    builder.build().context(|| "setting up the HTTP client".into())
}

/// Whether a redirect may be followed; else why not.
pub(super) fn redirect_verdict(previous: &[Url], next: &Url) -> std::result::Result<(), String> {
    let from_tls = previous.last().is_some_and(|url| url.scheme() == "https");
    match next.scheme() {
        _ if previous.len() > REDIRECTS_MAX => Err(format!("more than {REDIRECTS_MAX} redirects")),
        "https" => Ok(()),
        "http" if from_tls => Err(format!("redirected from https to plain {}", shown(next))),
        "http" => Ok(()),
        _ => Err(format!("redirected to {}", shown(next))),
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// A URL fit for messages and notes: no user name, password, query or fragment.
pub(super) fn shown(url: &Url) -> String {
    address::shown(url.as_str())
}

impl Fetcher {
    /// The client for this URL's host.
    ///
    /// # Errors
    /// [`Kind::Usage`] for a proxy of a kind that is not known; when TLS cannot be set up, or the user agent is not a
    /// header value.
    pub(super) fn client_for(&self, url: &Url) -> Result<&Client> {
        let loopback = is_loopback(url.host_str().unwrap_or_default());
        let way = match url.scheme() {
            _ if !loopback => Way::Any,
            "https" => Way::Direct,
            _ => Way::Plain,
        };
        let wrong = self.shared.settings.wrong_proxies.iter().find(|(scheme, _)| *scheme == url.scheme());
        if let (Way::Any, Some((_, wrong))) = (way, wrong) {
            return Err(Error::usage(wrong).hint(
                "write socks5h://HOST:PORT, which has the proxy look names up, or socks5, socks4a, socks4, http, https",
            ));
        }
        let slot = &self.shared.clients[way as usize];
        if let Some(client) = slot.get() {
            return Ok(client);
        }
        let made = client(&self.shared.settings, way)?;
        // Another task may have been quicker: then its client is the one.
        Ok(slot.get_or_init(|| made))
    }

    /// A request for it, with the login that is known for its host. A redirect to another host does not get that.
    ///
    /// # Errors
    /// As [`client_for`](Self::client_for).
    pub(super) fn get(&self, target: &Target) -> Result<RequestBuilder> {
        let mut url = target.url.clone();
        let login = self.shared.settings.logins.of(&url).map(|(user, password)| (user.to_owned(), password.to_owned()));
        if login.is_some() {
            // Else it would be sent as well. Fails only for URLs that have no room for one.
            let _ = url.set_username("");
        }
        let request = self.client_for(&url)?.get(url);
        Ok(match login {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        })
    }
}

/// What a request or a body that ended in an error means.
pub(super) fn transport_failure(target: &Target, settings: &FetchSettings, error: &reqwest::Error) -> Failure {
    let cause = root_cause(error);
    if error.is_redirect() {
        return target.error(Kind::Refused, format!("the redirect is refused: {cause}")).into();
    }
    if error.is_builder() {
        return target.error(Kind::Usage, format!("cannot be asked for: {cause}")).into();
    }
    if error.is_connect() && cause.contains("certificate") {
        let hint = "are the ca-certificates installed and the clock right? does a proxy put in its own certificate?";
        return target.error(Kind::Failed, format!("the server's certificate is refused: {cause}")).hint(hint).into();
    }
    let proxy = asked_through(target, settings);
    let through = proxy.map(|proxy| format!(" through the proxy {}", proxy.address)).unwrap_or_default();
    let hint = unconnected(&target.url, proxy, &cause);
    if error.is_timeout() {
        if error.is_connect() {
            let limit = settings.connect_timeout;
            let what = format!("no connection{through} within {limit:?}");
            return Failure::transient(target.error(Kind::TimedOut, what).hint(hint));
        }
        return super::retry::stalled(&target.shown, settings.stall_timeout);
    }
    if error.is_connect() {
        let what = format!("cannot connect{through}: {cause}");
        return Failure::transient(target.error(Kind::Failed, what).hint(hint));
    }
    Failure::transient(target.error(Kind::Failed, format!("the connection broke: {cause}")))
}

/// The proxy that it is asked for through: none where this machine asks itself.
fn asked_through<'s>(target: &Target, settings: &'s FetchSettings) -> Option<&'s Proxy> {
    let host = target.url.host_str().unwrap_or_default();
    if is_loopback(host) { None } else { settings.proxies.of(target.url.scheme(), host) }
}

/// What can be done about a connection that did not come about.
pub(super) fn unconnected(url: &Url, proxy: Option<&Proxy>, cause: &str) -> String {
    // What a server that does not speak TLS answers is none of its messages.
    let not_tls =
        ["InvalidContentType", "corrupt message", "wrong version number"].iter().any(|part| cause.contains(part));
    let no_name = ["lookup", "resolve", "dns"].iter().any(|part| cause.contains(part));
    match proxy {
        Some(Proxy { variable, address, .. }) if not_tls && address.starts_with("https:") => {
            format!("does the proxy speak http only? then {variable} is to name it with http://")
        }
        _ if not_tls && url.scheme() == "https" => {
            format!("does it speak http only? then write {}", shown(url).replacen("https:", "http:", 1))
        }
        Some(Proxy { variable, .. }) if cause.contains("proxy auth") => {
            format!("the proxy wants a login: set {variable} to http://USER:PASSWORD@HOST:PORT")
        }
        Some(Proxy { variable, .. }) if cause.contains("tunnel") && cause.contains("unsuccessful") => {
            format!("the proxy that {variable} names does not let it through")
        }
        Some(proxy) if no_name && proxy.kind() == "socks5" => format!(
            "with socks5:// this machine looks names up itself: the proxy does with socks5h://, in {}",
            proxy.variable
        ),
        Some(Proxy { variable, address, .. }) => {
            format!(
                "{variable} names the proxy {address}: does it run there? NO_PROXY names hosts that are asked without it"
            )
        }
        None => "is this machine online? behind a proxy, set HTTPS_PROXY and HTTP_PROXY".into(),
    }
}

/// The text of the innermost error: the outer ones only say that there is one, and name the URL with its query.
fn root_cause(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = error.to_string();
        next = error.source();
    }
    address::without_secrets(&text)
}

/// What an answer means that is not the content.
pub(super) fn status_failure(target: &Target, response: &Response) -> Failure {
    let status = response.status();
    let from = redirected(target, response);
    let kind = match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => Kind::NotFound,
        // To another scheme: the client does not even ask the policy.
        _ if response.headers().contains_key(LOCATION) => Kind::Refused,
        _ => Kind::Failed,
    };
    let mut error = target.error(kind, format!("the server answered {status}{from}"));
    match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => {
            error = error.hint("the server no longer has this file, or the URL of the source is wrong");
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let host = target.url.host_str().unwrap_or_default();
            error = error.hint(format!(
                "the server wants a login: put 'machine {host} login USER password PASSWORD' into ~/.netrc, or into \
                 the file that NETRC names"
            ));
        }
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            let variable = if target.url.scheme() == "http" { "HTTP_PROXY" } else { "HTTPS_PROXY" };
            error = error.hint(format!("the proxy wants a login: set {variable} to http://USER:PASSWORD@HOST:PORT"));
        }
        _ => {}
    }
    let transient =
        status == StatusCode::REQUEST_TIMEOUT || status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
    let wait = if transient { retry_after(response.headers(), jiff::Timestamp::now()) } else { None };
    Failure { error, transient, wait }
}

/// " by way of URL" when the answer does not come from where was asked.
pub(super) fn redirected(target: &Target, response: &Response) -> String {
    let last = shown(response.url());
    if last == target.shown { String::new() } else { format!(" (redirected to {last})") }
}

/// `Retry-After`: seconds or a date (RFC 9110 section 10.2.3).
pub(super) fn retry_after(headers: &HeaderMap, now: jiff::Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

/// The validators of an answer.
pub(super) fn validators(headers: &HeaderMap) -> Validators {
    let text = |name: HeaderName| {
        let value = headers.get(name)?.to_str().ok()?;
        (!value.is_empty() && value.len() <= VALIDATOR_MAX).then(|| value.to_owned())
    };
    Validators { etag: text(ETAG), last_modified: text(LAST_MODIFIED) }
}

/// A refusal to take an answer as content.
pub(super) fn refused(target: &Target, what: impl std::fmt::Display) -> Error {
    target.error(Kind::Refused, what)
}
