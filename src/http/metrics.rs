//! What `/metrics` shows: a plain snapshot, rendered as Prometheus text (format 0.0.4).
//!
//! Pure but for [`Process::read`], which looks into `/proc/self`.
//!
//! Every name begins `tallyline_`, units are base units, and no user is ever a label: the number of
//! series is fixed, whoever sends what.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::SystemTime;

use super::engine::Figures;
use crate::histogram::HistogramSnapshot;
use crate::store::Ledger;

/// The `Content-Type` of what [`Snapshot::render`] writes.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// This process, as the system sees it; `None` where it would not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Memory that is really in use, in bytes.
    pub resident_bytes: Option<u64>,
    /// File descriptors in use.
    pub open_fds: Option<u64>,
    /// Threads.
    pub threads: Option<u64>,
}

impl Process {
    /// Looks into `/proc/self`; everything is `None` where there is none.
    pub fn read() -> Self {
        let status = crate::data_dir::disk::read_to_string(Path::new("/proc/self/status"))
            .unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        Self {
            resident_bytes: field("VmRSS:").map(|kib| kib * 1024),
            // The one that reads the directory is not counted.
            open_fds: std::fs::read_dir("/proc/self/fd")
                .ok()
                .map(|fds| (fds.count() as u64).saturating_sub(1)),
            threads: field("Threads:"),
        }
    }
}

/// How many segments are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segments {
    /// Appended to now: 0 or 1.
    pub active: u64,
    /// Sealed, not wholly applied yet.
    pub sealed: u64,
    /// Wholly applied and kept.
    pub applied: u64,
    /// Changed after they were applied in part: not applied further.
    pub corrupt: u64,
    /// Known to the database, their file gone.
    pub missing: u64,
}

/// Everything `/metrics` shows. Counters begin at 0 when the process starts.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When this process started.
    pub started_at: SystemTime,
    /// What stands in the way of readiness; 0 is ready.
    pub unready_reasons: u64,
    /// Events that came in.
    pub received: u64,
    /// Of these, acknowledged.
    pub accepted: u64,
    /// Of these, refused at the door.
    pub refused: u64,
    /// All time, by what became of each line; `None` while the database can't be read.
    pub ledger: Option<Ledger>,
    /// Seconds since the oldest acknowledged event that is not yet applied was acknowledged.
    pub lag_seconds: f64,
    /// Bytes that wait to be written.
    pub queue_bytes: u64,
    /// Bytes that may wait before appends are refused.
    pub queue_bytes_max: u64,
    /// By state; `None` while the database can't be read.
    pub segments: Option<Segments>,
    /// Length of the active segment.
    pub active_segment_bytes: u64,
    /// What the data directory takes, if known.
    pub data_bytes: Option<u64>,
    /// What its file system has left for us, if known.
    pub disk_free_bytes: Option<u64>,
    /// From a request's last byte to its durable acknowledgement.
    pub ack: HistogramSnapshot,
    /// One flush of new events into the database: reading, counting, the transaction.
    pub flush: HistogramSnapshot,
    /// Requests answered, by route (a label: the path as the API's description writes it) and
    /// status; those of one class are added up.
    pub requests: Vec<(&'static str, u16, u64)>,
    /// Requests that the HTTP engine refused, by reason.
    pub http_refused: Vec<(&'static str, u64)>,
    /// Figures of the HTTP engine.
    pub http: Figures,
    /// Log lines that could not be written.
    pub lost_log_lines: u64,
    /// The process.
    pub process: Process,
}

impl Snapshot {
    /// The text that a scraper reads.
    pub fn render(&self) -> String {
        let mut text = Text(String::with_capacity(16 << 10));
        self.process_metrics(&mut text);
        self.event_metrics(&mut text);
        self.file_metrics(&mut text);
        text.histogram(
            "tallyline_ack_duration_seconds",
            "From a request's last byte to its durable acknowledgement.",
            &self.ack,
        );
        text.histogram(
            "tallyline_flush_duration_seconds",
            "One flush of new events into the database.",
            &self.flush,
        );
        self.request_metrics(&mut text);
        text.0
    }

    fn request_metrics(&self, text: &mut Text) {
        let name = "tallyline_http_requests_total";
        text.head(name, "counter", "Requests answered, by class of status.");
        let mut by_class = BTreeMap::new();
        for &(route, status, count) in &self.requests {
            // A rate needs a 0 to begin at: a route seen once shows all that may come.
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
        let help = "Requests that were refused before they reached a route, by reason.";
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
            "Connections that may be open.",
            self.http.connections_max,
        );
        text.counter(
            "tallyline_http_connections_evicted_total",
            "Idle connections that were closed to make room for others.",
            self.http.evicted,
        );
        text.counter(
            "tallyline_http_io_held_up_total",
            "Times that the HTTP I/O thread was held up for 100 ms or more; the log says by what.",
            self.http.held_up,
        );
    }

    fn process_metrics(&self, text: &mut Text) {
        let name = "tallyline_build_info";
        text.head(name, "gauge", "Always 1; the version is the label.");
        text.labelled(name, &[("version", env!("CARGO_PKG_VERSION"))], 1);
        text.gauge(
            "tallyline_ready",
            "1 if it can do its work, as /readyz says.",
            u8::from(self.unready_reasons == 0),
        );
        text.gauge(
            "tallyline_unready_reasons",
            "What stands in the way of readiness; /readyz says it in words.",
            self.unready_reasons,
        );
        let started = self.started_at.duration_since(SystemTime::UNIX_EPOCH);
        text.gauge(
            "tallyline_process_start_time_seconds",
            "When the process started, since 1970 UTC.",
            started.unwrap_or_default().as_secs_f64(),
        );
        text.counter(
            "tallyline_log_lines_lost_total",
            "Log lines that stderr did not take in time, or not at all.",
            self.lost_log_lines,
        );
        text.gauge_if_known(
            "tallyline_process_resident_memory_bytes",
            "Memory in use.",
            self.process.resident_bytes,
        );
        text.gauge_if_known(
            "tallyline_process_open_fds",
            "File descriptors in use.",
            self.process.open_fds,
        );
        text.gauge_if_known(
            "tallyline_process_threads",
            "Threads.",
            self.process.threads,
        );
    }

    fn event_metrics(&self, text: &mut Text) {
        text.counter(
            "tallyline_events_received_total",
            "Events that came in: accepted + refused, and those on their way to the disk.",
            self.received,
        );
        text.counter(
            "tallyline_events_accepted_total",
            "Events acknowledged.",
            self.accepted,
        );
        text.counter(
            "tallyline_events_refused_total",
            "Events refused at the door.",
            self.refused,
        );
        text.gauge(
            "tallyline_apply_lag_seconds",
            "Since the oldest event that is not yet applied was acknowledged.",
            self.lag_seconds,
        );
        text.gauge(
            "tallyline_append_queue_bytes",
            "Bytes that wait to be written.",
            self.queue_bytes,
        );
        text.gauge(
            "tallyline_append_queue_limit_bytes",
            "Bytes that may wait before appends are refused.",
            self.queue_bytes_max,
        );
        let Some(ledger) = self.ledger else { return };
        text.gauge(
            "tallyline_unaccounted_lines",
            "Lines without a fate, or (negative) with two: 0, or events were lost or counted twice.",
            ledger.unaccounted,
        );
        text.gauge(
            "tallyline_lines",
            "Lines in the files, all time.",
            ledger.lines,
        );
        let name = "tallyline_lines_by_state";
        let help = "Lines in the files by what became of them; their sum is tallyline_lines.";
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

    fn file_metrics(&self, text: &mut Text) {
        text.gauge(
            "tallyline_active_segment_bytes",
            "Length of the file that is appended to.",
            self.active_segment_bytes,
        );
        text.gauge_if_known(
            "tallyline_data_bytes",
            "What the data directory takes.",
            self.data_bytes,
        );
        text.gauge_if_known(
            "tallyline_disk_free_bytes",
            "What the data directory's file system has left.",
            self.disk_free_bytes,
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

/// The text so far. Writing to a `String` never fails, so results are dropped.
struct Text(String);

impl Text {
    /// Names, help texts and labels are our own: none needs escaping.
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, "gauge", help);
        let _ = writeln!(self.0, "{name} {value}");
    }

    /// Nothing at all where the value is not known.
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
            ledger: Some(Ledger {
                lines: 15,
                applied: 1,
                duplicates: 2,
                rejected: 3,
                pending: 4,
                corrupt: 5,
                unaccounted: -6,
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
                held_up: 5,
            },
            lost_log_lines: 0,
            process: Process::read(),
        }
    }

    #[test]
    fn a_snapshot_is_shown_line_by_line() {
        let text = snapshot().render();
        for line in [
            "# TYPE tallyline_events_received_total counter",
            "tallyline_events_received_total 7",
            "tallyline_ready 0",
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
            "tallyline_http_io_held_up_total 5",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("tallyline_data_bytes"), "unknown, so absent");
    }

    #[test]
    fn every_name_is_ours_and_is_described_once() {
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
    fn this_process_is_seen() {
        let process = Process::read();
        assert!(process.resident_bytes.is_some_and(|bytes| bytes > 4096));
        assert!(process.open_fds.is_some_and(|fds| fds >= 3));
        assert!(process.threads.is_some_and(|threads| threads >= 1));
    }
}
