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
