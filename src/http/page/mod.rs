//! The status page at `/`: an embedded HTML file that shows the state of the server.
//!
//! This module has static text only: no thread, no state, no failure. The browser requests the figures
//! and shows an error if that fails. The page itself needs no token, because a browser cannot send one
//! when it loads a page. Its requests do, and if they are answered with 401, the page prompts for a
//! token.
//!
//! # Requests of the page
//!
//! All requests are GET, have paths relative to the page, and have `Authorization: Bearer` if a token
//! was entered. Polling stops while the tab is hidden or paused, and slows down while the server does
//! not answer.
//!
//! | request | when |
//! |---|---|
//! | `status` | each second |
//! | `history` | when the page opens, and when it has missed figures |
//! | `userEvents?order=-revenue&limit=10` | `applied` changed; at most every 2 s, and at most 1/20 of the time |
//! | `segments?limit=20` | `lines`, `applied`, `pending` or `corrupt` changed; same limits |
//! | `rejected?limit=20` | `rejected` changed; same limits |
//! | `refused` | `refused` changed; same limits |
//! | `userEvents/{userId}` | on demand, then each time totals change while the user is shown |
//! | `nodes` | if `status` has `shared`: each second or two, at most 1/20 of the time |
//! | `readyz` | while the token is missing, without a token |
//!
//! The requests of the panels are also made about every 10 s. Two of the replies are designed for the
//! page:
//!
//! ```text
//! GET /segments?limit=20 -> {"segments": [{
//!     "name":         "events-000042",          of an imported segment its file name
//!     "file":         "applied/2026-11/events-2026-11-22T06-41-00.123Z-000042-5e3fa1c29b77d0e4-1834-9ae0daaf.jsonl",   below the data directory
//!     "state":        "active" | "sealed" | "applied" | "file_missing" (applied, without a file) | "corrupt" | "missing",
//!     "bytes":        1834,                     length of the file (active: durable bytes); null if there is no file
//!     "appliedBytes": 1834,
//!     "events":       20,                       applied
//!     "rejected":     1,
//!     "duplicates":   0,
//!     "sealedAt":     "2026-11-22T06:41:00.123Z",   null: not sealed, or unknown
//!     "completedAt":  "2026-11-22T06:41:00.391Z",   null: not fully applied
//!     "reason":       null                      why it is corrupt or missing
//! }]}                                           newest first: the active one, then by when the processor found them
//!
//! GET /rejected?limit=20 -> {"rejected": [{
//!     "segment": "events-000042",               as `name` above
//!     "offset":  1702,                          bytes from the start of the file to the start of the line
//!     "code":    "negative",
//!     "reason":  "value: must not be negative",
//!     "line":    "{\"userId\": ..."             at most its first 1024 bytes; invalid UTF-8 is U+FFFD
//! }]}                                           by segment, the last applied one first, then by offset, descending
//! ```
//!
//! `limit` is 1 to 1000, by default 20. Field names are camelCase as in the whole API; fields may be
//! added.
//!
//! # Content security policy
//!
//! The policy in [`HEADERS`] allows the script and the style sheet of this file, by their hashes, and
//! requests to the origin of the page. It forbids everything else. The script inserts data as text, and
//! if it ever inserted a user id as markup, the policy would still prevent a script in it from running.

/// The page as UTF-8.
pub(crate) const HTML: &str = include_str!("page.html");

/// The response headers of the page, `Content-Type` included.
pub(crate) const HEADERS: &[(&str, &str)] = &[
    ("Content-Type", "text/html; charset=utf-8"),
    (
        "Content-Security-Policy",
        "default-src 'none'; \
         script-src 'sha256-nlnwPFPFVSzWbYPFKy7b0z0dd7GqW2fxA9PS9683qi4='; \
         style-src 'sha256-LH/meGYNbPOKlzAiVJ4oOQiO1YPR5yyk9L0iC3iNwLs='; \
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

    /// The text between the only `<name ...>` and the only `</name>`.
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
        // Red after each change of the script or style: the message has the new value for HEADERS.
        for (directive, element) in [("script-src", "script"), ("style-src", "style")] {
            let hash =
                base64::engine::general_purpose::STANDARD.encode(Sha256::digest(only(element)));
            let expected = format!("{directive} 'sha256-{hash}';");
            assert!(policy().contains(&expected), "HEADERS lacks {expected}");
        }
    }

    #[test]
    fn the_page_needs_no_weaker_policy() {
        // The browser ignores style attributes and inline handlers silently.
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
    fn the_script_never_inserts_markup() {
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
    fn the_page_requests_its_own_origin_only() {
        // The name of the SVG namespace is not requested.
        let rest = HTML.replace("http://www.w3.org/2000/svg", "");
        for foreign in ["http:", "https:", "ws:", "//fonts", "@import", "url("] {
            assert!(!rest.contains(foreign), "{foreign}");
        }
        assert!(!only("script").contains("fetch(\"/"), "paths are relative");
    }
}
