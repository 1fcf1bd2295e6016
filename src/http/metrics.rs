//! The metrics: a snapshot, rendered in the Prometheus text format 0.0.4.
//!
//! Only [`Process::read`] does I/O: it reads `/proc/self`.
//!
//! All names start with `tallyline_`, and units are base units. No label contains data from a client, so
//! the number of series is bounded.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::SystemTime;

use super::engine::Figures;
use crate::event::Micros;
use crate::histogram::HistogramSnapshot;
use crate::store::{Ledger, Overall};

/// The `Content-Type` of the text that [`Snapshot::render`] returns.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Figures of this process from `/proc/self`; `None` if they cannot be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Resident memory in bytes.
    pub resident_bytes: Option<u64>,
    /// Number of open file descriptors.
    pub open_fds: Option<u64>,
    /// Number of threads.
    pub threads: Option<u64>,
}

impl Process {
    /// Reads `/proc/self`.
    pub fn read() -> Self {
        let status = crate::data_dir::disk::read_to_string(Path::new("/proc/self/status"))
            .unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        Self {
            resident_bytes: field("VmRSS:").map(|kib| kib * 1024),
            // The descriptor that reads the directory is not counted.
            open_fds: std::fs::read_dir("/proc/self/fd")
                .ok()
                .map(|fds| (fds.count() as u64).saturating_sub(1)),
            threads: field("Threads:"),
        }
    }
}

/// The number of segments in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segments {
    /// The segment that events are appended to: 0 or 1.
    pub active: u64,
    /// Sealed and not fully applied.
    pub sealed: u64,
    /// Fully applied.
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
    /// Events acknowledged.
    pub accepted: u64,
    /// Events refused.
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

impl Snapshot {
    /// The snapshot as Prometheus text.
    pub fn render(&self) -> String {
        let mut text = Text(String::with_capacity(16 << 10));
        self.process_metrics(&mut text);
        self.event_metrics(&mut text);
        self.line_metrics(&mut text);
        self.node_metrics(&mut text);
        self.file_metrics(&mut text);
        text.histogram(
            "tallyline_ack_duration_seconds",
            "Time from the last byte of a request to its durable acknowledgement.",
            &self.ack,
        );
        text.histogram(
            "tallyline_flush_duration_seconds",
            "Time of one flush of new events into the database.",
            &self.flush,
        );
        self.request_metrics(&mut text);
        text.0
    }

    fn request_metrics(&self, text: &mut Text) {
        let name = "tallyline_http_requests_total";
        text.head(
            name,
            "counter",
            "Answered requests by route and class of status.",
        );
        let mut by_class = BTreeMap::new();
        for &(route, status, count) in &self.requests {
            // A rate needs a series that starts at 0: all classes of a route appear together.
            for class in ["2xx", "4xx", "5xx"] {
                by_class.entry((route, class)).or_insert(0);
            }
            let class = match status {
                200..=299 => "2xx",
                400..=499 => "4xx",
                500..=599 => "5xx",
                _ => "other",
            };
            *by_class.entry((route, class)).or_insert(0) += count;
        }
        for ((route, class), count) in by_class {
            text.labelled(name, &[("route", route), ("status", class)], count);
        }
        text.gauge(
            "tallyline_http_requests_in_flight",
            "Requests received and not yet answered.",
            self.http.in_flight,
        );
        let name = "tallyline_http_refused_total";
        let help = "Requests that the HTTP engine refused, by reason.";
        text.head(name, "counter", help);
        for (reason, count) in &self.http_refused {
            text.labelled(name, &[("reason", reason)], count);
        }
        text.gauge(
            "tallyline_http_connections",
            "Open connections.",
            self.http.connections,
        );
        text.gauge(
            "tallyline_http_connections_limit",
            "Maximum number of open connections.",
            self.http.connections_max,
        );
        text.counter(
            "tallyline_http_connections_evicted_total",
            "Idle connections that were closed to accept others or to free memory.",
            self.http.evicted,
        );
        text.counter(
            "tallyline_http_io_blocked_total",
            "Steps that blocked the HTTP I/O thread for 100 ms or more; the log names them.",
            self.http.blocked,
        );
    }

    fn process_metrics(&self, text: &mut Text) {
        let name = "tallyline_build_info";
        text.head(name, "gauge", "Always 1; the version is the label.");
        text.labelled(name, &[("version", env!("CARGO_PKG_VERSION"))], 1);
        text.gauge(
            "tallyline_ready",
            "1 if the server is ready as in /readyz, else 0.",
            u8::from(self.unready_reasons == 0),
        );
        text.gauge(
            "tallyline_unready_reasons",
            "Number of reasons why the server is not ready; /readyz lists them.",
            self.unready_reasons,
        );
        let started = self.started_at.duration_since(SystemTime::UNIX_EPOCH);
        text.gauge(
            "tallyline_process_start_time_seconds",
            "When the process started, in seconds since 1970 UTC.",
            started.unwrap_or_default().as_secs_f64(),
        );
        text.counter(
            "tallyline_log_lines_lost_total",
            "Log lines that could not be written to stderr, or not in time.",
            self.lost_log_lines,
        );
        text.gauge_if_known(
            "tallyline_process_resident_memory_bytes",
            "Resident memory in bytes.",
            self.process.resident_bytes,
        );
        text.gauge_if_known(
            "tallyline_process_open_fds",
            "Open file descriptors.",
            self.process.open_fds,
        );
        text.gauge_if_known(
            "tallyline_process_threads",
            "Threads of the process.",
            self.process.threads,
        );
    }

    fn event_metrics(&self, text: &mut Text) {
        text.counter(
            "tallyline_events_received_total",
            "Events read from requests: accepted, refused, and those being written to disk.",
            self.received,
        );
        text.counter(
            "tallyline_events_accepted_total",
            "Events stored and acknowledged.",
            self.accepted,
        );
        text.counter(
            "tallyline_events_refused_total",
            "Events refused: invalid, or answered with 503 or 507.",
            self.refused,
        );
        text.gauge(
            "tallyline_apply_lag_seconds",
            "Age of the oldest event that is not applied: since it was acknowledged, or since its file was found.",
            self.lag_seconds,
        );
        text.gauge(
            "tallyline_append_queue_bytes",
            "Bytes in the append queue.",
            self.queue_bytes,
        );
        text.gauge(
            "tallyline_append_queue_limit_bytes",
            "Maximum bytes in the append queue; appends above it are refused.",
            self.queue_bytes_max,
        );
        text.gauge(
            "tallyline_users",
            "Users with at least one counted event; with a shared database, at this node.",
            self.overall.users,
        );
        text.gauge(
            "tallyline_events",
            "Events counted in the totals, all time; with a shared database, those of this node.",
            self.overall.events,
        );
        text.gauge(
            "tallyline_revenue",
            "Sum of the revenue of all users, all time; with a shared database, of this node's events. It falls when revenue is subtracted.",
            self.overall.revenue,
        );
    }

    fn line_metrics(&self, text: &mut Text) {
        let ledger = self.ledger;
        text.gauge(
            "tallyline_unaccounted_lines",
            "Lines without a state, or (negative) with two; not 0 if lines were lost or counted twice.",
            ledger.unaccounted,
        );
        text.gauge(
            "tallyline_lines",
            "Lines of all segments ever written.",
            ledger.lines,
        );
        let name = "tallyline_lines_by_state";
        let help = "Lines by state; their sum is tallyline_lines.";
        text.head(name, "gauge", help);
        for (state, lines) in [
            ("applied", ledger.applied),
            ("duplicate", ledger.duplicates),
            ("rejected", ledger.rejected),
            ("pending", ledger.pending),
            ("corrupt", ledger.corrupt),
        ] {
            text.labelled(name, &[("state", state)], lines);
        }
    }

    /// Every node exports the same values, so a query takes their `max`, not their `sum`.
    fn node_metrics(&self, text: &mut Text) {
        let Some(nodes) = &self.nodes else {
            return;
        };
        let name = "tallyline_cluster_nodes";
        text.head(name, "gauge", "Nodes that share the database, by state.");
        for (state, count) in nodes.by_state {
            text.labelled(name, &[("state", state)], count);
        }
        text.gauge(
            "tallyline_cluster_events",
            "Events counted in the totals of all nodes, all time.",
            nodes.events,
        );
        text.gauge(
            "tallyline_cluster_revenue",
            "Sum of the revenue of all users over all nodes, all time.",
            nodes.revenue,
        );
        text.gauge(
            "tallyline_cluster_pending_lines",
            "Lines that the nodes had not applied when they last reported.",
            nodes.pending_lines,
        );
        text.gauge(
            "tallyline_cluster_oldest_report_seconds",
            "Time since the last report of the node that has not reported for longest; removed nodes are left out.",
            nodes.oldest_report_seconds,
        );
    }

    fn file_metrics(&self, text: &mut Text) {
        text.gauge(
            "tallyline_active_segment_bytes",
            "Length of the active segment.",
            self.active_segment_bytes,
        );
        text.gauge_if_known(
            "tallyline_data_bytes",
            "Size of the data directory.",
            self.data_bytes,
        );
        text.gauge_if_known(
            "tallyline_disk_free_bytes",
            "Free bytes on the file system of the data directory.",
            self.disk_free_bytes,
        );
        text.gauge_if_known(
            "tallyline_disk_size_bytes",
            "Size of the file system of the data directory.",
            self.disk_size_bytes,
        );
        let Some(segments) = self.segments else {
            return;
        };
        let name = "tallyline_segments";
        text.head(name, "gauge", "Segments by state.");
        for (state, segments) in [
            ("active", segments.active),
            ("sealed", segments.sealed),
            ("applied", segments.applied),
            ("corrupt", segments.corrupt),
            ("missing", segments.missing),
        ] {
            text.labelled(name, &[("state", state)], segments);
        }
    }
}

/// Builds the text. Results are ignored, because writing to a `String` cannot fail.
struct Text(String);

impl Text {
    /// Writes the description of a metric. All names, help texts and labels are constants of this crate
    /// that need no escaping.
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, "gauge", help);
        let _ = writeln!(self.0, "{name} {value}");
    }

    /// Writes nothing if the value is unknown.
    fn gauge_if_known(&mut self, name: &str, help: &str, value: Option<u64>) {
        if let Some(value) = value {
            self.gauge(name, help, value);
        }
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        let _ = writeln!(self.0, "{name} {value}");
    }

    fn labelled(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<_> = labels.iter().map(|(k, v)| format!("{k}=\"{v}\"")).collect();
        let _ = writeln!(self.0, "{name}{{{}}} {value}", labels.join(","));
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &HistogramSnapshot) {
        self.head(name, "histogram", help);
        let mut count = 0;
        for (bound, in_bucket) in histogram.buckets() {
            count += in_bucket;
            let bound = bound.map_or("+Inf".to_owned(), |bound| bound.as_secs_f64().to_string());
            self.labelled(&format!("{name}_bucket"), &[("le", &bound)], count);
        }
        let sum = histogram.sum().as_secs_f64();
        let _ = writeln!(self.0, "{name}_sum {sum}\n{name}_count {count}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Micros;
    use crate::histogram::Histogram;
    use std::time::Duration;

    fn snapshot() -> Snapshot {
        let ack = Histogram::default();
        ack.observe(Duration::from_micros(250));
        ack.observe(Duration::from_micros(251));
        ack.observe(Duration::from_mins(1));
        Snapshot {
            started_at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_500),
            unready_reasons: 2,
            received: 7,
            accepted: 5,
            refused: 2,
            ledger: Ledger {
                lines: 15,
                applied: 1,
                duplicates: 2,
                rejected: 3,
                pending: 4,
                corrupt: 5,
                unaccounted: -6,
            },
            overall: Overall {
                users: 8,
                events: 9,
                revenue: Micros(i128::from(i64::MAX) * 100),
                updated_at_ms: None,
            },
            nodes: Some(Nodes {
                by_state: [
                    ("ready", 2),
                    ("not_ready", 0),
                    ("not_reporting", 1),
                    ("never_reported", 0),
                    ("removed", 1),
                ],
                events: 19,
                revenue: Micros(-5),
                pending_lines: 4,
                oldest_report_seconds: 61.5,
            }),
            lag_seconds: 0.25,
            queue_bytes: 10,
            queue_bytes_max: 1 << 26,
            segments: Some(Segments {
                active: 1,
                applied: 3,
                ..Segments::default()
            }),
            active_segment_bytes: 99,
            data_bytes: None,
            disk_free_bytes: Some(1 << 40),
            disk_size_bytes: Some(1 << 41),
            ack: ack.snapshot(),
            flush: HistogramSnapshot::default(),
            requests: vec![
                ("/liveEvent", 202, 3),
                ("/liveEvent", 200, 1),
                ("other", 404, 1),
            ],
            http_refused: vec![("malformed", 0), ("tls", 3)],
            http: Figures {
                in_flight: 1,
                connections: 7,
                connections_max: 9,
                evicted: 4,
                blocked: 5,
            },
            lost_log_lines: 0,
            process: Process::read(),
        }
    }

    #[test]
    fn a_snapshot_is_rendered() {
        let text = snapshot().render();
        for line in [
            "# TYPE tallyline_events_received_total counter",
            "tallyline_events_received_total 7",
            "tallyline_ready 0",
            "tallyline_users 8",
            "tallyline_events 9",
            "tallyline_revenue 922337203685477.5807",
            "tallyline_cluster_nodes{state=\"not_reporting\"} 1",
            "tallyline_cluster_events 19",
            "tallyline_cluster_revenue -0.000005",
            "tallyline_cluster_pending_lines 4",
            "tallyline_cluster_oldest_report_seconds 61.5",
            "tallyline_unready_reasons 2",
            "tallyline_process_start_time_seconds 1700000000.5",
            "tallyline_lines 15",
            "tallyline_unaccounted_lines -6",
            "tallyline_lines_by_state{state=\"duplicate\"} 2",
            "tallyline_segments{state=\"applied\"} 3",
            "tallyline_apply_lag_seconds 0.25",
            "tallyline_ack_duration_seconds_bucket{le=\"0.00025\"} 1",
            "tallyline_ack_duration_seconds_bucket{le=\"0.0005\"} 2",
            "tallyline_ack_duration_seconds_bucket{le=\"10\"} 2",
            "tallyline_ack_duration_seconds_bucket{le=\"+Inf\"} 3",
            "tallyline_ack_duration_seconds_sum 60.000501",
            "tallyline_ack_duration_seconds_count 3",
            "tallyline_flush_duration_seconds_count 0",
            "tallyline_http_requests_total{route=\"/liveEvent\",status=\"2xx\"} 4",
            "tallyline_http_requests_total{route=\"other\",status=\"2xx\"} 0",
            "tallyline_http_requests_total{route=\"other\",status=\"4xx\"} 1",
            "tallyline_http_requests_in_flight 1",
            "tallyline_http_refused_total{reason=\"malformed\"} 0",
            "tallyline_http_refused_total{reason=\"tls\"} 3",
            "tallyline_http_connections 7",
            "tallyline_http_connections_limit 9",
            "tallyline_http_connections_evicted_total 4",
            "tallyline_http_io_blocked_total 5",
            "tallyline_disk_size_bytes 2199023255552",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("tallyline_data_bytes"), "unknown, so absent");
    }

    #[test]
    fn every_name_has_the_prefix_and_one_description() {
        let text = snapshot().render();
        let mut described = std::collections::HashSet::new();
        for line in text.lines() {
            let name = line.trim_start_matches("# HELP ").split([' ', '{']).next();
            if line.starts_with("# HELP ") {
                assert!(described.insert(name), "{line}");
            }
            let rest = line
                .strip_prefix("# TYPE ")
                .or(line.strip_prefix("# HELP "));
            assert!(rest.unwrap_or(line).starts_with("tallyline_"), "{line}");
        }
    }

    #[test]
    fn the_figures_of_this_process_are_read() {
        let process = Process::read();
        assert!(process.resident_bytes.is_some_and(|bytes| bytes > 4096));
        assert!(process.open_fds.is_some_and(|fds| fds >= 3));
        assert!(process.threads.is_some_and(|threads| threads >= 1));
    }
}
