//! The subcommands. Each calls the modules below and prints the results. `backup` also has `restore`,
//! and `manual` has `man` and `completions`.

pub mod backup;
pub mod demo;
pub mod generate;
pub mod manual;
pub mod process;
pub mod query;
pub mod rejected;
pub mod send;
pub mod serve;
pub mod torture;
pub mod verify;
