//! The subcommands, one file each: what they do with the parts below, and what they print.

pub mod backup;
pub mod demo;
pub mod generate;
pub mod manual;
pub mod process;
pub mod query;
pub mod send;
pub mod serve;
pub mod torture;
pub mod verify;
