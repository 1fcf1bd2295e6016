//! The command line: flags, what they mean together, and how text reaches the terminal.
//!
//! [`args`] holds the flags and nothing else; [`config`] builds one checked value for each command
//! from them, the environment and the config file; [`output`], [`logging`] and [`exit`] are what all
//! commands print and return.

pub mod args;
pub mod config;
pub mod exit;
pub mod logging;
pub(crate) mod output;
mod units;

pub use self::units::{Size, SizeError, Span, SpanError};
