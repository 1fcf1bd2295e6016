//! Access control: bearer tokens, and the checks of `Origin` and `Host`.
//!
//! A token is compared in constant time with each token of the file. No log line and no reply contains
//! a token. `Origin` and `Host` are checked even if no token is required, because any web page can make
//! a browser post to 127.0.0.1, and an attacker's host name can resolve to it (DNS rebinding).

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use subtle::{Choice, ConstantTimeEq as _};

/// Which clients may use the paths that are not open to all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Every client on this machine. The server must listen on a loopback address.
    Loopback,
    /// Every client with a token of this file.
    TokenFile(PathBuf),
    /// Every client that reaches the address (`--no-auth`).
    Anyone,
}

/// Why the token file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The file cannot be read.
    #[error("cannot read the token file {}", path.display())]
    Read {
        /// Path of the token file.
        path: PathBuf,
        /// The error of the system call.
        source: std::io::Error,
    },
    /// A line is not a valid token.
    #[error(
        "cannot use the token file {}: line {line} is not a token; a token is printable ASCII without spaces, at most {TOKEN_BYTES_MAX} bytes",
        path.display()
    )]
    Malformed {
        /// Path of the token file.
        path: PathBuf,
        /// The line number, from 1.
        line: usize,
    },
    /// The file has no line with a token.
    #[error("cannot use the token file {}: it contains no token; write one token on each line", path.display())]
    Empty {
        /// Path of the token file.
        path: PathBuf,
    },
}

/// Maximum length of a token in bytes.
const TOKEN_BYTES_MAX: usize = 512;

/// The valid tokens, read from the token file by [`Self::read`] and [`Self::reload`].
#[derive(Debug)]
pub(super) struct Tokens {
    path: PathBuf,
    tokens: RwLock<Vec<Token>>,
}

/// A token, padded to the maximum length: the time of a comparison does not depend on its length.
#[derive(Clone)]
struct Token([u8; TOKEN_BYTES_MAX]);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    /// `None` if the text is not a valid token.
    fn new(text: &[u8]) -> Option<Self> {
        let fits = !text.is_empty() && text.len() <= TOKEN_BYTES_MAX;
        if !fits || !text.iter().all(u8::is_ascii_graphic) {
            return None;
        }
        let mut padded = [0; TOKEN_BYTES_MAX];
        padded[..text.len()].copy_from_slice(text);
        Some(Self(padded))
    }
}

impl Tokens {
    /// Reads the file, which has one token on each line. Empty lines and lines that start with `#` are
    /// skipped.
    pub(super) fn read(path: &Path) -> Result<Self, AuthError> {
        Ok(Self {
            path: path.to_owned(),
            tokens: RwLock::new(read_tokens(path)?),
        })
    }

    /// Reads the file again and returns the number of tokens. After an error the tokens stay as they were.
    pub(super) fn reload(&self) -> Result<usize, AuthError> {
        let tokens = read_tokens(&self.path)?;
        let count = tokens.len();
        *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = tokens;
        Ok(count)
    }

    /// Whether the `Authorization` header contains a valid token.
    pub(super) fn allow(&self, authorization: Option<&str>) -> bool {
        let Some(given) = authorization.and_then(bearer) else {
            return false;
        };
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        // All tokens are compared, even after a match.
        let matches = tokens.iter().fold(Choice::from(0), |found, token| {
            found | token.0.ct_eq(&given.0)
        });
        matches.into()
    }
}

fn read_tokens(path: &Path) -> Result<Vec<Token>, AuthError> {
    let text = crate::data_dir::disk::read(path).map_err(|source| AuthError::Read {
        path: path.to_owned(),
        source,
    })?;
    let mut tokens = Vec::new();
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let malformed = || AuthError::Malformed {
            path: path.to_owned(),
            line: index + 1,
        };
        tokens.push(Token::new(line).ok_or_else(malformed)?);
    }
    if tokens.is_empty() {
        return Err(AuthError::Empty {
            path: path.to_owned(),
        });
    }
    Ok(tokens)
}

/// The token of `Bearer TOKEN`; the scheme may be in any case.
fn bearer(authorization: &str) -> Option<Token> {
    let (scheme, token) = authorization.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    Token::new(token.trim_ascii().as_bytes())
}

/// Paths that need no token.
pub(super) fn is_open(path: &str) -> bool {
    matches!(path, "/" | "/healthz" | "/readyz" | "/openapi.json")
}

/// Which header makes a request foreign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Foreign {
    /// A web page of another origin sent it.
    Origin,
    /// The host it was sent to is not a name of this server.
    Host,
}

/// Whether only this machine can reach the address: 127.0.0.0/8 and `::1`, also as `::ffff:127.0.0.1`.
/// The configuration uses the same rule.
pub fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// The address of the server, for the check of `Host`.
#[derive(Debug)]
pub(super) struct Listening {
    pub(super) ip: IpAddr,
    /// The host name in the configuration; `None` if it has an address.
    pub(super) name: Option<String>,
}

/// Checks `Origin` and `Host`. `host` is the authority of the request target if the target is a full
/// URL, otherwise the `Host` header. A foreign `Host` is rejected on a loopback address only.
pub(super) fn check_origin(
    listening: &Listening,
    host: Option<&str>,
    origin: Option<&str>,
) -> Result<(), Foreign> {
    if is_loopback(listening.ip)
        && let Some(host) = host
        && !is_own_name(listening, host)
    {
        return Err(Foreign::Host);
    }
    match origin {
        Some(origin) if !is_same(origin, host) => Err(Foreign::Origin),
        _ => Ok(()),
    }
}

/// Whether the host is `127.0.0.1`, `localhost`, `[::1]`, or the server's address or name, with any port or
/// none.
fn is_own_name(listening: &Listening, host: &str) -> bool {
    let (name, port) = split_port(host);
    let known = ["127.0.0.1", "localhost", "[::1]"].into_iter();
    port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()))
        && (known
            .chain(listening.name.as_deref())
            .any(|known| name.eq_ignore_ascii_case(known))
            || address(name).is_some_and(|ip| ip.to_canonical() == listening.ip.to_canonical()))
}

/// Parses a host such as `127.0.0.2` or `[::1]`; `None` if it is a name.
fn address(name: &str) -> Option<IpAddr> {
    match name.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse().ok().map(IpAddr::V6),
        None => name.parse().ok().map(IpAddr::V4),
    }
}

/// Whether origin and host have the same name and port. The scheme is used for the default port only,
/// because a proxy may serve the page by https.
fn is_same(origin: &str, host: Option<&str>) -> bool {
    let Some(host) = host else { return false };
    let (default, authority) = if let Some(authority) = origin.strip_prefix("http://") {
        ("80", authority)
    } else if let Some(authority) = origin.strip_prefix("https://") {
        ("443", authority)
    } else {
        return false; // `null`, or not a web page
    };
    let (its_name, its_port) = split_port(authority);
    let (our_name, our_port) = split_port(host);
    its_name.eq_ignore_ascii_case(our_name)
        && its_port.unwrap_or(default) == our_port.unwrap_or(default)
}

/// Splits `[::1]:80` into `[::1]` and `80`; the port is `None` if there is none.
fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("tokens");
        std::fs::write(&path, text).expect("written");
        (dir, path)
    }

    #[test]
    fn several_tokens_comments_and_reloading() {
        let (_dir, path) = file("# for the edge boxes\nalpha\n\n  beta  \r\n");
        let tokens = Tokens::read(&path).expect("tokens");
        for allowed in ["Bearer alpha", "bearer beta", "BEARER  beta"] {
            assert!(tokens.allow(Some(allowed)), "{allowed}");
        }
        for refused in [
            "Bearer gamma",
            "Bearer alph",
            "Bearer alphaa",
            "Bearer",
            "Bearer ",
            "Basic alpha",
            "alpha",
            "Bearer alpha beta",
            "Bearer #",
            "",
        ] {
            assert!(!tokens.allow(Some(refused)), "{refused}");
        }
        assert!(!tokens.allow(None));
        std::fs::write(&path, "gamma\n").expect("written");
        assert_eq!(tokens.reload().expect("read again"), 1);
        assert!(tokens.allow(Some("Bearer gamma")) && !tokens.allow(Some("Bearer alpha")));
        std::fs::write(&path, "# none\n").expect("written");
        assert!(matches!(tokens.reload(), Err(AuthError::Empty { .. })));
        assert!(tokens.allow(Some("Bearer gamma")), "still valid");
    }

    #[test]
    fn an_error_names_the_line_and_no_token() {
        let (_dir, path) = file("alpha\ntwo words\n");
        let error = Tokens::read(&path).expect_err("malformed");
        assert!(matches!(error, AuthError::Malformed { line: 2, .. }));
        assert!(error.to_string().contains("line 2"), "{error}");
        let missing = Tokens::read(&path.join("no")).expect_err("missing");
        assert!(matches!(missing, AuthError::Read { .. }));
        assert!(!format!("{:?}", Tokens::read(&file("secret").1)).contains("secret"));
    }

    fn on(ip: &str, name: Option<&str>) -> Listening {
        Listening {
            ip: ip.parse().expect("an address"),
            name: name.map(str::to_owned),
        }
    }

    #[test]
    fn the_host_may_be_the_address_or_name_of_the_server() {
        // Fails if the server's own loopback address is rejected because it is not 127.0.0.1, or if
        // another loopback address is accepted.
        for (ip, name, own, foreign) in [
            ("127.0.0.2", None, "127.0.0.2:80", "127.0.0.3:80"),
            ("::ffff:127.0.0.1", None, "[::ffff:127.0.0.1]:8000", "[::2]"),
            ("::ffff:127.0.0.1", None, "[::ffff:7f00:1]", "[127.0.0.2]"),
            ("127.0.1.1", Some("edge-7"), "Edge-7:8000", "edge-8:8000"),
            ("127.0.1.1", Some("edge-7"), "127.0.1.1", "edge-7.example"),
        ] {
            let listening = on(ip, name);
            let check = |host| check_origin(&listening, Some(host), None);
            for own in [own, "localhost:1", "127.0.0.1", "[::1]:8000"] {
                assert_eq!(check(own), Ok(()), "{own} on {ip}");
            }
            assert_eq!(check(foreign), Err(Foreign::Host), "{foreign} on {ip}");
        }
    }

    #[test]
    fn other_hosts_and_origins_are_foreign() {
        let loopback = on("127.0.0.1", None);
        let check = |host, origin| check_origin(&loopback, host, origin);
        for host in [
            "127.0.0.1",
            "127.0.0.1:8000",
            "LOCALHOST:1",
            "[::1]",
            "[::1]:8000",
        ] {
            assert_eq!(check(Some(host), None), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.2",
            "localhost:x",
            "",
            "::1",
        ] {
            assert_eq!(check(Some(host), None), Err(Foreign::Host), "{host}");
        }
        assert_eq!(check(None, None), Ok(()), "HTTP/1.0");
        let host = Some("localhost:8000");
        assert_eq!(check(host, Some("http://localhost:8000")), Ok(()));
        for origin in [
            "http://evil.example",
            "http://localhost:3000",
            "http://localhost",
            "null",
            "",
            "http://127.0.0.1:8000",
            "file://localhost:8000",
            "http://localhost:8000.evil.example",
        ] {
            assert_eq!(check(host, Some(origin)), Err(Foreign::Origin), "{origin}");
        }
        assert_eq!(check(None, Some("http://localhost")), Err(Foreign::Origin));
    }

    #[test]
    fn beyond_loopback_any_host_is_accepted_and_other_origins_are_not() {
        let beyond = on("10.0.0.1", None);
        assert_eq!(check_origin(&beyond, Some("stats.example"), None), Ok(()));
        let check = |origin| check_origin(&beyond, Some("stats.example"), Some(origin));
        assert_eq!(check("https://stats.example"), Ok(()));
        assert_eq!(check("https://stats.example:443"), Ok(()));
        assert_eq!(check("https://other.example"), Err(Foreign::Origin));
    }
}
