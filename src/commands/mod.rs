//! The subcommands, one file each: they call the modules below and print the results.

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
