//! What a run counts, and its table.

use std::fmt::Write as _;
use std::time::Duration;

/// The figures of the table.
#[derive(Default)]
pub(super) struct Figures {
    pub(super) server_kills: u64,
    pub(super) sender_kills: u64,
    pub(super) files: u64,
    pub(super) events: u64,
    pub(super) overlapping: u64,
    pub(super) starts: u64,
    pub(super) slowest_start: Duration,
    pub(super) torn_tails: u64,
    pub(super) reads: u64,
    pub(super) restores: u64,
}

impl Figures {
    pub(super) fn in_short(&self) -> String {
        format!(
            "{} kills, {} events",
            self.server_kills + self.sender_kills,
            self.events
        )
    }

    pub(super) fn table(
        &self,
        seed: u64,
        rounds: u32,
        proof: Duration,
        faults: &[String],
    ) -> String {
        let rows = [
            ("seed", seed.to_string()),
            ("rounds", rounds.to_string()),
            ("kill -9 of the server", self.server_kills.to_string()),
            ("kill -9 of a sender", self.sender_kills.to_string()),
            ("starts of the server", self.starts.to_string()),
            (
                "slowest start",
                format!("{} ms", self.slowest_start.as_millis()),
            ),
            ("torn tails kept", self.torn_tails.to_string()),
            ("reads by other processes", self.reads.to_string()),
            ("backups restored", self.restores.to_string()),
            ("files sent", self.files.to_string()),
            ("events, each to count once", self.events.to_string()),
            ("... sent twice on purpose", self.overlapping.to_string()),
            ("proof took", format!("{:.1} s", proof.as_secs_f64())),
            ("faults", faults.len().to_string()),
        ];
        let mut table = String::new();
        for (name, value) in rows {
            let _infallible = writeln!(table, "{name:<28}{value:>16}");
        }
        for fault in faults.iter().take(20) {
            let _infallible = writeln!(table, "FAULT {fault}");
        }
        table.push_str(if faults.is_empty() {
            "Every acknowledged event is counted once, in the files and in the database.\n"
        } else {
            "FAILED: the totals do not match the events; keep the directory and report it.\n"
        });
        table
    }
}
