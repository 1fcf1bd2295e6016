//! The command line: flags, configuration, and output to the terminal.
//!
//! [`args`] holds the flags only. [`config`] builds one checked value for each command from the flags,
//! the environment and the config file. [`output`], [`logging`] and [`exit`] hold what all commands
//! print and return.

pub mod args;
pub mod config;
pub mod exit;
pub mod logging;
mod memory;
pub(crate) mod output;
mod units;

pub use self::units::{Size, SizeError, Span, SpanError};
