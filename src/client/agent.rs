//! Builds the HTTP client that all requests of this program use.
//!
//! Redirects are not followed, and an error status is an answer, not an error. Requests to this
//! machine bypass the proxy of `HTTP_PROXY`.

use std::net::IpAddr;
use std::time::Duration;

use http::Uri;

const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// A client for requests to `base_url`. A request fails if it gets no answer `within` that time. One
/// connection is kept open.
pub(super) fn agent(base_url: &str, within: Duration) -> ureq::Agent {
    let mut builder = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_idle_connections_per_host(1)
        .timeout_connect(Some(CONNECT_WITHIN))
        .timeout_global(Some(within))
        .user_agent(concat!("tallyline/", env!("CARGO_PKG_VERSION")));
    if is_loopback(base_url) {
        builder = builder.proxy(None);
    }
    builder.build().new_agent()
}

/// Whether a base URL names this machine.
fn is_loopback(base_url: &str) -> bool {
    let Ok(uri) = base_url.parse::<Uri>() else {
        return false;
    };
    let host = uri.host().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse::<IpAddr>() {
        return address.to_canonical().is_loopback();
    }
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_recognised_by_the_whole_host() {
        for here in [
            "http://127.0.0.1:8000",
            "http://127.1.2.3",
            "http://user@LocalHost:1/base",
            "http://[::1]:8000",
            "http://[::ffff:127.0.0.1]:8000",
            "http://app.localhost",
        ] {
            assert!(is_loopback(here), "{here}");
        }
        for elsewhere in [
            "http://127.0.0.1.example.com",
            "http://localhost.example.com",
            "http://10.0.0.1",
            "http://[2001:db8::1]",
        ] {
            assert!(!is_loopback(elsewhere), "{elsewhere}");
        }
    }
}
