//! The metrics: a snapshot, rendered in the Prometheus text format 0.0.4.
//!
//! All names start with `tallyline_`, and units are base units. No label contains data from a client, so
//! the number of series is bounded.

mod process;
mod render;
#[cfg(test)]
mod tests;
mod text;

use std::time::SystemTime;

pub use self::process::Process;
use super::engine::Figures;
use crate::event::Micros;
use crate::histogram::HistogramSnapshot;
use crate::store::{Ledger, Overall};

/// The `Content-Type` of the text that [`Snapshot::render`] returns.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The number of segments in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segments {
    /// The segment that events are appended to: 0 or 1.
    pub active: u64,
    /// Sealed and not fully applied.
    pub sealed: u64,
    /// Every byte of them is applied.
    pub applied: u64,
    /// Changed after a part of them was applied; the rest is not applied.
    pub corrupt: u64,
    /// Their file is gone and was not fully applied.
    pub missing: u64,
}

/// The figures of all nodes that share a database.
#[derive(Clone, Debug)]
pub struct Nodes {
    /// The number of nodes in each state.
    pub by_state: [(&'static str, u64); 5],
    /// Events counted in the totals of all nodes.
    pub events: u64,
    /// The sum of the revenue of all users, over all nodes.
    pub revenue: Micros,
    /// Lines that the nodes had not applied when they last reported.
    pub pending_lines: u64,
    /// Age in seconds of the oldest last report; 0 if there is none.
    pub oldest_report_seconds: f64,
}

/// The values of all metrics. Counters start at 0 when the process starts.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When the server started.
    pub started_at: SystemTime,
    /// The number of reasons why the server is not ready; 0 if it is ready.
    pub unready_reasons: u64,
    /// Events read from requests.
    pub received: u64,
    /// Events stored and acknowledged.
    pub accepted: u64,
    /// Events not stored: invalid, or answered with 503 or 507.
    pub refused: u64,
    /// The lines of all segments ever written, by state.
    pub ledger: Ledger,
    /// The sums over all users; with a shared database, over the events that this node has applied.
    pub overall: Overall,
    /// All nodes; `None` if the database is not shared, or cannot be read.
    pub nodes: Option<Nodes>,
    /// Age in seconds of the oldest acknowledged event that is not applied; 0 if there is none.
    pub lag_seconds: f64,
    /// Bytes in the append queue.
    pub queue_bytes: u64,
    /// Maximum bytes in the append queue; appends above it are refused.
    pub queue_bytes_max: u64,
    /// The segments by state; `None` if the database cannot be read.
    pub segments: Option<Segments>,
    /// Length of the active segment in bytes.
    pub active_segment_bytes: u64,
    /// Size of the data directory in bytes; `None` if it cannot be read.
    pub data_bytes: Option<u64>,
    /// Free bytes on its file system for this process; `None` if unknown.
    pub disk_free_bytes: Option<u64>,
    /// Size of that file system in bytes; `None` if unknown.
    pub disk_size_bytes: Option<u64>,
    /// Time from the last byte of a request to its durable acknowledgement.
    pub ack: HistogramSnapshot,
    /// Time to apply new events: reading, aggregating and the transaction.
    pub flush: HistogramSnapshot,
    /// Answered requests by route label and status; the statuses of a class are added up.
    pub requests: Vec<(&'static str, u16, u64)>,
    /// Requests that the HTTP engine refused, by reason.
    pub http_refused: Vec<(&'static str, u64)>,
    /// The counters of the HTTP engine.
    pub http: Figures,
    /// Log lines that could not be written.
    pub lost_log_lines: u64,
    /// Figures of the process.
    pub process: Process,
}
