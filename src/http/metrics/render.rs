//! The names, descriptions and values of all metrics.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::Snapshot;
use super::text::Text;

impl Snapshot {
    /// The snapshot as Prometheus text.
    pub fn render(&self) -> String {
        let mut text = Text::with_capacity(16 << 10);
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
        text.into_string()
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
