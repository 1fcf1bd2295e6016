//! The Prometheus text format 0.0.4.

use std::fmt::Write as _;

use crate::histogram::HistogramSnapshot;

/// Builds the text. Results are ignored, because writing to a `String` cannot fail.
pub(super) struct Text(String);

impl Text {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self(String::with_capacity(bytes))
    }

    pub(super) fn into_string(self) -> String {
        self.0
    }

    /// Writes the description of a metric. All names, help texts and labels are constants of this crate
    /// that need no escaping.
    pub(super) fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, "gauge", help);
        let _ = writeln!(self.0, "{name} {value}");
    }

    /// Writes nothing if the value is unknown.
    pub(super) fn gauge_if_known(&mut self, name: &str, help: &str, value: Option<u64>) {
        if let Some(value) = value {
            self.gauge(name, help, value);
        }
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        let _ = writeln!(self.0, "{name} {value}");
    }

    pub(super) fn labelled(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        value: impl std::fmt::Display,
    ) {
        let labels: Vec<_> = labels.iter().map(|(k, v)| format!("{k}=\"{v}\"")).collect();
        let _ = writeln!(self.0, "{name}{{{}}} {value}", labels.join(","));
    }

    pub(super) fn histogram(&mut self, name: &str, help: &str, histogram: &HistogramSnapshot) {
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
