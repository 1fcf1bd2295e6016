//! Checks that the commands share: bounds of sizes and durations, addresses, directories.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::time::Duration;

use super::UsageError;
use crate::cli::{Size, Span};
use crate::http;

/// The path of a data directory, which may not exist yet.
pub(super) fn directory(path: PathBuf) -> Result<PathBuf, UsageError> {
    match std::fs::metadata(&path) {
        Ok(metadata) if !metadata.is_dir() => Err(UsageError::new(format!(
            "cannot use {} as the data directory: it is {}; name a directory with --data-dir",
            path.display(),
            if metadata.is_file() {
                "a file"
            } else {
                "not a directory"
            }
        ))),
        _ => Ok(path),
    }
}

/// `value` in bytes, if it is from `min` to `max`.
pub(super) fn within(name: &str, value: Size, min: u64, max: u64) -> Result<u64, UsageError> {
    if (min..=max).contains(&value.0) {
        return Ok(value.0);
    }
    let (min, max) = (Size(min), Size(max));
    Err(UsageError::new(format!(
        "{name} {value} is out of range: from {min} to {max}"
    )))
}

/// `value`, if it is at least `min`. `None` stands for forever, which has no upper bound.
pub(super) fn at_least(
    name: &str,
    value: Span,
    min: Duration,
) -> Result<Option<Duration>, UsageError> {
    match value.0 {
        Some(duration) if duration < min => {
            let min = Span(Some(min));
            Err(UsageError::new(format!(
                "{name} {value} is too short: {min} or more, or forever"
            )))
        }
        span => Ok(span),
    }
}

/// Parses `127.0.0.1:8000`, `[::1]:8000` or `localhost:8000`; a name is resolved.
pub(super) fn address(name: &str, text: &str) -> Result<SocketAddr, UsageError> {
    let wrong = |why: &str, example: &str| {
        UsageError::new(format!(
            "{name} {text:?}: {why}; write an address and a port, such as {example}"
        ))
    };
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let port = text.strip_prefix(':').unwrap_or(text);
    if port.parse::<u16>().is_ok() {
        return Err(wrong(
            "the address is missing",
            &format!("127.0.0.1:{port}"),
        ));
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        let example = SocketAddr::new(ip, 8000).to_string();
        return Err(wrong("the port is missing", &example));
    }
    if let Some((_, rest)) = text.split_once("://") {
        return Err(wrong("it is a URL", rest.trim_end_matches('/')));
    }
    let Some((_, port)) = text.rsplit_once(':') else {
        return Err(wrong("the port is missing", &format!("{text}:8000")));
    };
    if port.parse::<u16>().is_err() {
        return Err(wrong(
            "the port must be a number from 0 to 65535",
            "127.0.0.1:8000",
        ));
    }
    text.to_socket_addrs()
        .map_err(|error| wrong(&error.to_string(), "127.0.0.1:8000 or [::1]:0"))?
        .next()
        .ok_or_else(|| wrong("no such address", "127.0.0.1:8000 or [::1]:0"))
}

/// Whether only this machine can reach the address.
pub(super) fn is_loopback(address: SocketAddr) -> bool {
    http::is_loopback(address.ip())
}

/// The host name in `edge-7:8000`; `None` if the text is an IP address.
pub(super) fn host_name(text: &str) -> Option<String> {
    let (name, _) = text.rsplit_once(':')?;
    text.parse::<SocketAddr>().is_err().then(|| name.to_owned())
}

/// `value`, if it is from `min` to `max`.
pub(super) fn between(
    name: &str,
    value: Span,
    min: Duration,
    max: Duration,
) -> Result<Duration, UsageError> {
    match value.0 {
        Some(duration) if (min..=max).contains(&duration) => Ok(duration),
        _ => {
            let (min, max) = (Span(Some(min)), Span(Some(max)));
            Err(UsageError::new(format!(
                "{name} {value} is out of range: from {min} to {max}"
            )))
        }
    }
}
