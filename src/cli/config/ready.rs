//! Configuration of `tallyline ready`.

use std::time::Duration;

use super::send::base_url;
use super::{UsageError, Verbosity};
use crate::cli::args::ReadyArgs;

/// Configuration of `tallyline ready`.
#[derive(Clone, Debug)]
pub struct ReadyConfig {
    /// Base URL of the server without a slash at the end. Default `http://127.0.0.1:8000`.
    pub to: String,
    /// Maximum time to wait until the server is ready; `None`: no limit. Default 0 s: one request.
    pub wait: Option<Duration>,
    /// Whether to print that the server is ready.
    pub verbosity: Verbosity,
}

impl ReadyConfig {
    /// The configuration of these flags. An error names the flag that is wrong.
    pub fn new(args: &ReadyArgs, quiet: bool) -> Result<Self, UsageError> {
        Ok(Self {
            to: base_url(&args.to)?,
            wait: args.wait.0,
            verbosity: Verbosity::of(quiet),
        })
    }
}
