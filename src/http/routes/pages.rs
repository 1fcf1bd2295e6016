//! `/` and `/openapi.json`: static pages that need no token.

use super::Inner;
use crate::http::counters::Route;
use crate::http::engine::{Reply, Request};
use crate::http::page;

const OPENAPI: &str = include_str!("../openapi.json");

/// Answers with the status page.
pub(super) fn status_page(inner: &Inner, request: Request) {
    let mut reply = Reply::new(200, "", page::HTML.as_bytes());
    for &(name, value) in page::HEADERS {
        if name == "Content-Type" {
            reply.content_type = value;
        } else {
            reply = reply.with(name, value);
        }
    }
    inner.answer(request, Route::Service, reply);
}

/// Answers with the description of the API.
pub(super) fn openapi(inner: &Inner, request: Request) {
    let reply = Reply::new(200, "application/json", OPENAPI.as_bytes());
    inner.answer(request, Route::Service, reply);
}
