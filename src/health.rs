//! Why the system is not ready, in words.
//!
//! Every part that can break owns one topic here: it sets the reason when it breaks and clears it
//! when it works again. `/readyz` and `/status` show what stands. Locks are held for a copy only.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The reasons that stand now, by topic (`journal`, `database`, `segment events-000042`, ...).
#[derive(Default)]
pub struct Health {
    reasons: Mutex<BTreeMap<String, String>>,
    probes: Mutex<Vec<Probe>>,
}

/// Asked each time somebody wants to know: a reason that stands just now, if any. For what can't
/// report itself because it hangs.
pub type Probe = Box<dyn Fn() -> Option<String> + Send>;

impl Health {
    /// Turns readiness red for `topic`; a later reason for the same topic replaces the earlier.
    /// Logged when it is new, so that the log tells when it began.
    pub fn set(&self, topic: &str, reason: impl Into<String>) {
        let reason = reason.into();
        let before = self.lock().insert(topic.to_owned(), reason.clone());
        if before.as_deref() != Some(&reason) {
            tracing::error!(topic, "not ready: {reason}");
        }
    }

    /// `topic` works (again).
    pub fn clear(&self, topic: &str) {
        if self.lock().remove(topic).is_some() {
            tracing::info!(topic, "ready again");
        }
    }

    /// Every topic that begins so works, as far as is known.
    pub fn clear_all(&self, beginning: &str) {
        let topics: Vec<String> = self.lock().keys().cloned().collect();
        for topic in topics.iter().filter(|topic| topic.starts_with(beginning)) {
            self.clear(topic);
        }
    }

    /// Whether a reason stands for `topic`.
    pub fn is_set(&self, topic: &str) -> bool {
        self.lock().contains_key(topic)
    }

    /// Adds a probe to what [`Health::reasons`] asks.
    pub fn watch(&self, probe: Probe) {
        self.probes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(probe);
    }

    /// What stands in the way, one sentence each; empty when ready.
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
