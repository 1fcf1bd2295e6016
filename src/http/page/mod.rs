//! The status page served at `/`: one HTML file, embedded, that draws what the server knows.
//!
//! Static text, no thread, no state, no failure: whatever the figures are, the browser fetches them
//! itself and says so when it can't. The page needs no token (a browser could not send one while it
//! loads a page); the calls it makes do, and it asks for one when they answer 401.
//!
//! # What the page asks of its own origin
//!
//! All by GET, relative to the page, with `Authorization: Bearer` once a token is known. Polling stops
//! while the tab is hidden or paused, and slows down while nothing answers.
//!
//! | call | when |
//! |---|---|
//! | `status` | each second |
//! | `userEvents?order=-revenue&limit=10` | `applied` moved; at most every 2 s, and for at most 1/20 of the time |
//! | `segments?limit=20` | `lines`, `applied`, `pending` or `corrupt` moved; likewise |
//! | `rejected?limit=20` | `rejected` moved; likewise |
//! | `userEvents/{userId}` | on demand, then each time totals move while it is on show |
//! | `readyz` | while the token is missing, without one |
//!
//! The panels' calls are made every 10 s or so even if nothing moved. Two of the answers are shaped
//! for the page:
//!
//! ```text
//! GET /segments?limit=20 -> {"segments": [{
//!     "name":         "events-000042",          the segment's identity, or the file name of one from elsewhere
//!     "file":         "applied/2026-11/events-2026-11-22T06-41-00.123Z-000042.jsonl",   below the data directory
//!     "state":        "active" | "sealed" | "applied" | "file_missing" (applied, and its file is gone) | "corrupt" | "missing",
//!     "bytes":        1834,                     of the file (active: durable); null if there is no file
//!     "appliedBytes": 1834,
//!     "events":       20,                       counted
//!     "rejected":     1,
//!     "duplicates":   0,
//!     "sealedAt":     "2026-11-22T06:41:00.123Z",   null: not sealed, or not known
//!     "completedAt":      "2026-11-22T06:41:00.391Z",   null: not wholly applied
//!     "reason":       null                      why it is corrupt or lost
//! }]}                                           newest first: the active one, then by when they were first seen
//!
//! GET /rejected?limit=20 -> {"rejected": [{
//!     "segment": "events-000042",               as `name` above
//!     "offset":  1702,                          bytes from the start of the file to the start of the line
//!     "code":    "negative",
//!     "reason":  "value: must not be negative",
//!     "line":    "{\"userId\": ..."             its first 1024 bytes at most, U+FFFD for what is not UTF-8
//! }]}                                           the segment last applied to first, in it the largest offset first
//! ```
//!
//! `limit` is 1 to 1000, 20 if absent. Field names are camelCase as everywhere in the API; fields may
//! be added.
//!
//! # Policy
//!
//! [`HEADERS`] lets the browser run the one script and the one style sheet of this file, known by their
//! hashes, and speak to the page's own origin, nothing else. So even a user id that is made to look
//! like markup could do nothing, were it ever put in as such (it is not: text goes in as text).

/// The page, UTF-8.
pub(crate) const HTML: &str = include_str!("page.html");

/// The headers to send with it, `Content-Type` included.
pub(crate) const HEADERS: &[(&str, &str)] = &[
    ("Content-Type", "text/html; charset=utf-8"),
    (
        "Content-Security-Policy",
        "default-src 'none'; \
         script-src 'sha256-wwT1ogbAdu8rYm0bdwkuGuxg1FjmMF1d1XuEEIoL6QI='; \
         style-src 'sha256-QILbQDNjrM+Hh4orvmmV3Y10eQRzWLv6NVW6oIVd2Wc='; \
         img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-cache"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use sha2::{Digest as _, Sha256};

    /// What stands between the only `<name ...>` and the only `</name>`.
    fn only(name: &str) -> &'static str {
        let (open, close) = (format!("<{name}"), format!("</{name}>"));
        assert_eq!(HTML.matches(&open).count(), 1, "one {open}");
        assert_eq!(HTML.matches(&close).count(), 1, "one {close}");
        let (_, rest) = HTML.split_once(&open).expect("counted above");
        let (_, rest) = rest.split_once('>').expect("the tag ends");
        rest.split_once(&close).expect("counted above").0
    }

    fn policy() -> &'static str {
        let named = HEADERS
            .iter()
            .find(|(name, _)| *name == "Content-Security-Policy");
        named.expect("a policy is sent").1
    }

    #[test]
    fn the_policy_names_the_hashes_of_script_and_style() {
        // Red after every change of the page: the message is the line to put into HEADERS.
        for (directive, element) in [("script-src", "script"), ("style-src", "style")] {
            let hash =
                base64::engine::general_purpose::STANDARD.encode(Sha256::digest(only(element)));
            let expected = format!("{directive} 'sha256-{hash}';");
            assert!(policy().contains(&expected), "HEADERS lacks {expected}");
        }
    }

    #[test]
    fn nothing_in_the_page_needs_a_weaker_policy() {
        // The browser would drop style attributes and handlers silently.
        for forbidden in [
            " style=",
            " onclick=",
            " onload=",
            " onsubmit=",
            " src=",
            "javascript:",
        ] {
            assert!(!HTML.contains(forbidden), "{forbidden}");
        }
        assert!(!policy().contains("unsafe"));
    }

    #[test]
    fn what_users_send_is_never_read_as_markup() {
        let script = only("script");
        for forbidden in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "DOMParser",
            "srcdoc",
            "eval(",
            "Function(",
        ] {
            assert!(!script.contains(forbidden), "{forbidden}");
        }
    }

    #[test]
    fn it_speaks_to_its_own_origin_only() {
        // The name of SVG's namespace looks like an address and is none.
        let rest = HTML.replace("http://www.w3.org/2000/svg", "");
        for elsewhere in ["http:", "https:", "ws:", "//fonts", "@import", "url("] {
            assert!(!rest.contains(elsewhere), "{elsewhere}");
        }
        assert!(!only("script").contains("fetch(\"/"), "paths are relative");
    }
}
