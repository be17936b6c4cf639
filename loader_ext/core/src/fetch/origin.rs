//! One place to fetch from: ranged GETs over HTTP, and what its answers mean.

use std::path::Path;
use std::time::Duration;

use reqwest::header::{
    CONTENT_RANGE, ETAG, HeaderMap, IF_MATCH, LAST_MODIFIED, RANGE, RETRY_AFTER,
};
use reqwest::{Client, Response, StatusCode, redirect};
use tokio::runtime;

use crate::arrival::head::MAX_FILE_BYTES;
use crate::error::{Error, Kind, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Silences that one answer may take in all: who sends a byte now and then is as good as silent. By
/// default a chunk has 5 minutes, which is 28 kB/s.
pub const MAX_SILENCES: u32 = 20;
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A URL that answers ranged GETs, such as a presigned one of an object store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// May carry a signature in its query: it is never shown, [`Origin::label`] is.
    pub url: String,
    /// The object's entity tag, if it is known: each range then asks for exactly that object.
    pub etag: Option<String>,
    /// The object's time of modification, to know it by where it has no tag.
    pub modified: Option<String>,
}

impl Origin {
    /// The URL without user and query, which may hold credentials.
    pub fn label(&self) -> String {
        let Ok(mut url) = reqwest::Url::parse(&self.url) else {
            return "an invalid URL".to_owned();
        };
        url.set_query(None);
        url.set_fragment(None);
        // Only URLs without a host refuse these, and those have no user either.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        url.into()
    }
}

/// What an origin says of its object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Description {
    /// The path of its URL: tags tell versions of one object apart, not objects (RFC 9110, 8.8.3).
    pub path: String,
    /// Its length.
    pub file_bytes: u64,
    /// Its entity tag.
    pub etag: Option<String>,
    /// Its time of modification, as the server writes it.
    pub modified: Option<String>,
}

/// Why a range did not come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Asking this origin again changes nothing.
    Permanent(Kind),
    /// The next attempt may succeed, not before this time.
    Transient(Kind, Option<Duration>),
}

/// A client for ranges: HTTP/1.1 connections that are kept, no redirects (a signature is for one
/// URL), no decompression, no more than `stall` without a byte, and no answer that takes longer than
/// [`MAX_SILENCES`] of those.
///
/// Where no URL is encrypted the machine's certificates are not read, which takes milliseconds.
pub fn client(file: &Path, stall: Duration, origins: &[Origin]) -> Result<Client> {
    // Refused when an earlier call has done it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder();
    if origins.iter().all(|origin| origin.url.starts_with("http://")) && !is_proxy_encrypted() {
        builder = builder.tls_certs_only([]);
    }
    builder
        .http1_only()
        .redirect(redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(stall)
        .timeout(stall.saturating_mul(MAX_SILENCES))
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .tcp_nodelay(true)
        .build()
        .map_err(|error| {
            let reason = error.to_string();
            Error::new(file, Kind::Io { action: "make an HTTP client", reason, errno: None })
        })
}

fn is_proxy_encrypted() -> bool {
    ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]
        .iter()
        .any(|name| std::env::var(name).is_ok_and(|proxy| proxy.starts_with("https")))
}

/// Drives a future and its connections on this thread to its end.
pub fn drive<T>(file: &Path, future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::io(file, "make an event loop", &error))?;
    let outcome = runtime.block_on(future);
    // Names are looked up on a thread that nobody can stop: a silent name server is not waited for.
    runtime.shutdown_background();
    outcome
}

/// Asks for an object's length and tag by its first byte: a signed GET allows no HEAD.
pub async fn describe(
    client: &Client,
    origin: &Origin,
) -> std::result::Result<Description, Failure> {
    let request = client.get(&origin.url).header(RANGE, "bytes=0-0");
    let response = request.send().await.map_err(|error| lost(origin, &error))?;
    let headers = response.headers();
    let file_bytes = match response.status() {
        StatusCode::PARTIAL_CONTENT => content_range(headers).map(|(_, total)| total),
        // An empty object has no first byte.
        StatusCode::RANGE_NOT_SATISFIABLE if text(headers, CONTENT_RANGE) == Some("bytes */0") => {
            Some(0)
        }
        _ => return Err(refusal(origin, &response)),
    };
    let file_bytes = file_bytes.ok_or_else(|| ignored(origin))?;
    if file_bytes > MAX_FILE_BYTES {
        let reason = format!("it says that the object has {file_bytes} bytes, as no file can");
        return Err(Failure::Permanent(Kind::SourceFailed { source_url: origin.label(), reason }));
    }
    Ok(Description {
        path: response.url().path().to_owned(),
        file_bytes,
        etag: text(headers, ETAG).map(str::to_owned),
        modified: text(headers, LAST_MODIFIED).map(str::to_owned),
    })
}

/// Asks for bytes `begin..begin + length` of an object of `file_bytes`. The body is still to come.
pub async fn range(
    client: &Client,
    origin: &Origin,
    (begin, length): (u64, u64),
    file_bytes: u64,
) -> std::result::Result<Response, Failure> {
    let last = begin + length - 1;
    let mut request = client.get(&origin.url).header(RANGE, format!("bytes={begin}-{last}"));
    // RFC 9110, 13.1.1: only strong tags match.
    if let Some(tag) = origin.etag.as_deref().filter(|tag| !tag.starts_with("W/")) {
        request = request.header(IF_MATCH, tag);
    }
    let response = request.send().await.map_err(|error| lost(origin, &error))?;
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return Err(refusal(origin, &response));
    }
    let headers = response.headers();
    let (span, total) = content_range(headers).ok_or_else(|| ignored(origin))?;
    let differs = |known: &Option<String>, name| {
        known.as_deref().is_some_and(|known| text(headers, name) != Some(known))
    };
    if total != file_bytes
        || differs(&origin.etag, ETAG)
        || differs(&origin.modified, LAST_MODIFIED)
    {
        return Err(Failure::Permanent(Kind::SourceChanged { source_url: origin.label() }));
    }
    if span != (begin, last) {
        return Err(ignored(origin));
    }
    Ok(response)
}

/// A connection that broke or stalled.
pub fn lost(origin: &Origin, error: &reqwest::Error) -> Failure {
    // The error's own text holds the URL.
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let reason =
        if error.is_timeout() { "no answer in time".to_owned() } else { cause.to_string() };
    let reason = if error.is_builder() { "the URL is not valid".to_owned() } else { reason };
    let kind = Kind::SourceFailed { source_url: origin.label(), reason };
    if error.is_builder() { Failure::Permanent(kind) } else { Failure::Transient(kind, None) }
}

/// An answer that breaks off, or goes on, where it should not.
pub fn wrong_length(origin: &Origin) -> Failure {
    let reason = "the answer has not the length that was asked for".to_owned();
    Failure::Transient(Kind::SourceFailed { source_url: origin.label(), reason }, None)
}

fn ignored(origin: &Origin) -> Failure {
    Failure::Permanent(Kind::RangeIgnored { source_url: origin.label() })
}

fn refusal(origin: &Origin, response: &Response) -> Failure {
    let source_url = origin.label();
    let status = response.status();
    match status {
        StatusCode::OK => ignored(origin),
        StatusCode::NOT_FOUND | StatusCode::GONE => {
            Failure::Permanent(Kind::SourceMissing { source_url })
        }
        StatusCode::PRECONDITION_FAILED => Failure::Permanent(Kind::SourceChanged { source_url }),
        StatusCode::RANGE_NOT_SATISFIABLE => Failure::Permanent(Kind::RangeRefused { source_url }),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => busy(source_url, response),
        status if status.is_server_error() => busy(source_url, response),
        status => Failure::Permanent(Kind::SourceRefused { source_url, status: status.as_u16() }),
    }
}

fn busy(source_url: String, response: &Response) -> Failure {
    let reason = format!("HTTP {}", response.status().as_u16());
    let seconds = text(response.headers(), RETRY_AFTER).and_then(|value| value.parse().ok());
    Failure::Transient(Kind::SourceFailed { source_url, reason }, seconds.map(Duration::from_secs))
}

/// `bytes first-last/total` (RFC 9110, 14.4).
fn content_range(headers: &HeaderMap) -> Option<((u64, u64), u64)> {
    let (span, total) = text(headers, CONTENT_RANGE)?.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = span.split_once('-')?;
    Some(((first.parse().ok()?, last.parse().ok()?), total.parse().ok()?))
}

fn text(headers: &HeaderMap, name: reqwest::header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}
