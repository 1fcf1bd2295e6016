//! A node as JSON, in `GET /nodes` and in `tallyline nodes --json`.

use serde::Serialize;

use crate::store::Member;
use crate::timestamp;

/// The fields are described in `openapi.json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeJson<'m> {
    node: i32,
    id: String,
    name: &'m str,
    state: &'static str,
    started_at: String,
    seconds_since_report: Option<f64>,
    version: Option<&'m str>,
    users: u64,
    revenue_micros: String,
    lines: u64,
    applied: u64,
    duplicates: u64,
    rejected: u64,
    corrupt: u64,
    pending_lines: Option<u64>,
    lag_seconds: Option<f64>,
    reasons: Vec<&'m str>,
}

impl<'m> NodeJson<'m> {
    pub(crate) fn of(member: &'m Member) -> Self {
        let last = member.report.as_ref();
        let report = last.map(|last| &last.report);
        Self {
            node: member.number,
            id: member.id.to_string(),
            name: &member.name,
            state: member.state().name(),
            started_at: timestamp::rfc3339_of_ms(member.acquired_at_ms),
            seconds_since_report: last.map(|last| seconds(last.age_ms)),
            version: last.map(|last| last.version.as_str()),
            users: member.overall.users,
            revenue_micros: member.overall.revenue.0.to_string(),
            lines: member.lines,
            applied: member.applied,
            duplicates: member.duplicates,
            rejected: member.rejected,
            corrupt: member.corrupt,
            pending_lines: report.map(|report| report.pending_lines),
            lag_seconds: report.map(|report| seconds(report.lag_ms)),
            reasons: report
                .map(|report| report.reasons.lines().collect())
                .unwrap_or_default(),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "seconds for people")]
pub(super) fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}
