//! The reasons why the server is not ready, for `/readyz` and `/status`.
//!
//! Each component that can fail owns one topic. It sets a reason when it fails and clears it when it
//! works again. Any thread may call any method. The lock of the reasons is held for a copy only; the
//! lock of the probes is held while they run, so a probe must not block.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The current reasons by topic (`journal`, `database`, `segment events-000042`, ...).
#[derive(Default)]
pub struct Health {
    reasons: Mutex<BTreeMap<String, String>>,
    probes: Mutex<Vec<Probe>>,
}

/// Runs each time the reasons are read and returns a reason, or `None` if its component works. It
/// serves components that cannot report a failure themselves, such as a thread that hangs.
pub type Probe = Box<dyn Fn() -> Option<String> + Send>;

impl Health {
    /// Marks `topic` as failed. A later reason for the same topic replaces the earlier one. A new
    /// reason is logged; the same reason again is not.
    pub fn set(&self, topic: &str, reason: impl Into<String>) {
        let reason = reason.into();
        let before = self.lock().insert(topic.to_owned(), reason.clone());
        if before.as_deref() != Some(&reason) {
            tracing::error!(topic, "not ready: {reason}");
        }
    }

    /// Removes the reason of `topic`, and logs this if there was one.
    pub fn clear(&self, topic: &str) {
        if self.lock().remove(topic).is_some() {
            tracing::info!(topic, "ready again");
        }
    }

    /// Removes the reasons of all topics that start with `prefix`.
    pub fn clear_all(&self, prefix: &str) {
        let topics: Vec<String> = self.lock().keys().cloned().collect();
        for topic in topics.iter().filter(|topic| topic.starts_with(prefix)) {
            self.clear(topic);
        }
    }

    /// Whether `topic` has a reason. Probes are not run.
    pub fn is_set(&self, topic: &str) -> bool {
        self.lock().contains_key(topic)
    }

    /// The reason of `topic`; `None` if it has none. Probes are not run.
    pub fn reason(&self, topic: &str) -> Option<String> {
        self.lock().get(topic).cloned()
    }

    /// Adds a probe that [`Health::reasons`] runs.
    pub fn watch(&self, probe: Probe) {
        self.probes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(probe);
    }

    /// The reasons of all topics and probes; empty if the server is ready.
    pub fn reasons(&self) -> Vec<String> {
        let mut reasons: Vec<String> = self.lock().values().cloned().collect();
        let probes = self.probes.lock().unwrap_or_else(PoisonError::into_inner);
        reasons.extend(probes.iter().filter_map(|probe| probe()));
        reasons
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
