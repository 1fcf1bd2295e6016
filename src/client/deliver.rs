//! Delivers one batch: repeats requests until each line is accepted or refused.
//!
//! Owned by one sending thread. A request that fails is sent again, after pauses that double and are
//! randomised. The run fails when the server has answered no request for `--retry-for`. A body that is
//! too large, or refused without naming a line, is split in two.
//!
//! The server takes a body that begins with `[` for an array, and a body that is a single object for
//! one event. Lines of a broken file must not be taken for either. Therefore lines that are objects
//! are sent first, and a body that could be mistaken is refused here.

use std::time::{Duration, Instant};

use serde::de::IgnoredAny;

use super::await_applied::own_key;
use super::error::SendError;
use super::group::{Ready, code_and_detail, joined, named, refusal, refused_here, without};
use super::ids::{IdMaker, Shape, random};
use super::lines::Batch;
use super::post::{Answer, Poster, Stored};
use super::rejects::Refusal;
use super::state::Acknowledged;
use super::tally::{Done, Tally};
use crate::cli::Span;
use crate::cli::config::SendConfig;
use crate::shutdown::Shutdown;

/// The first and the longest pause before a request is sent again.
pub(super) const PAUSE_FIRST: Duration = Duration::from_millis(100);
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Why a batch is unfinished.
#[derive(Debug)]
pub(super) enum Halt {
    /// A stop was requested. Lines without an answer do not count as acknowledged.
    Stopped,
    Failed(SendError),
}

/// Delivers the batches of one sending thread.
pub(super) struct Deliverer<'a> {
    pub(super) config: &'a SendConfig,
    pub(super) ids: &'a IdMaker,
    pub(super) tally: &'a Tally,
    pub(super) stop: &'a Shutdown,
    pub(super) poster: Poster,
}

/// Results for the lines of a batch.
#[derive(Default)]
struct Outcomes {
    accepted: u64,
    refusals: Vec<Refusal>,
    /// The last acknowledged positions.
    last: Acknowledged,
}

impl Deliverer<'_> {
    /// Delivers the batch and records its result in the tally.
    pub(super) fn deliver(&self, batch: &Batch) -> Result<(), Halt> {
        let mut outcomes = Outcomes::default();
        let mut body = Vec::with_capacity(batch.text.len() + 64 * batch.lines.len());
        let mut lines: Vec<Ready<'_>> = Vec::with_capacity(batch.lines.len());
        let mut own = Vec::new();
        for line in &batch.lines {
            let text = &batch.text[line.range.clone()];
            if let Some(fault) = line.fault {
                let (code, detail) = code_and_detail(fault);
                let refusal = refusal(line.number, text, code, detail);
                outcomes.refusals.push(refusal);
                continue;
            }
            let shape = Shape::of(text);
            if matches!(shape, Shape::Object { id: true, .. }) {
                own.push((own_key(text), line.number));
            }
            let start = body.len();
            self.ids.write(text, shape, line.number, &mut body);
            lines.push(Ready {
                number: line.number,
                text,
                body: start..body.len(),
                rank: rank(text, shape),
                counts_once: self.ids.counts_once(shape),
            });
        }
        lines.sort_by_key(|line| line.rank); // a stable sort: ids stay in order
        self.tally.begin();
        self.deliver_all(&lines, &body, &mut outcomes)?;
        outcomes.refusals.sort_by_key(|refusal| refusal.line);
        let done = Done {
            end: batch.end,
            accepted: outcomes.accepted,
            refused: outcomes.refusals.len() as u64,
            last: outcomes.last,
            own,
        };
        self.tally
            .done(batch.sequence, done, &outcomes.refusals)
            .map_err(Halt::Failed)
    }

    /// Sends the lines in one request, and splits them where the server does not accept them.
    fn deliver_all(
        &self,
        lines: &[Ready<'_>],
        bodies: &[u8],
        outcomes: &mut Outcomes,
    ) -> Result<(), Halt> {
        let mut groups: Vec<Vec<&Ready<'_>>> = vec![lines.iter().collect()];
        while let Some(group) = groups.pop() {
            let Some(first) = group.first() else { continue };
            let body = joined(&group, bodies);
            if first.rank == 3 || first.rank == 2 && is_json(&body) {
                outcomes
                    .refusals
                    .extend(group.iter().map(|line| refused_here(line)));
                continue;
            }
            let answer = self.request(&group, &body)?;
            self.record(answer, &group, &mut groups, outcomes)?;
        }
        Ok(())
    }

    /// Records which lines of a group were accepted and refused. Lines that have to be sent again are added to
    /// `groups`.
    fn record<'r, 'l>(
        &self,
        answer: Answer,
        group: &[&'r Ready<'l>],
        groups: &mut Vec<Vec<&'r Ready<'l>>>,
        outcomes: &mut Outcomes,
    ) -> Result<(), Halt> {
        match answer {
            Answer::Accepted {
                accepted,
                refused,
                errors,
                position,
            } => {
                let refusals = named(group, &errors, refused);
                if accepted + refused != group.len() as u64 || refusals.len() as u64 != refused {
                    return Err(self.incompatible(group.len(), accepted, refused, refusals.len()));
                }
                outcomes.accepted += accepted;
                if let Some(position) = position {
                    outcomes.last.add(position);
                }
                outcomes.refusals.extend(refusals);
            }
            Answer::Refused {
                errors,
                more_errors,
                ..
            } if errors.len() as u64 + more_errors == group.len() as u64 => {
                // All lines are refused: those that the answer does not name are not sent again.
                let named = named(group, &errors, 0);
                let unnamed = without(group, &named);
                outcomes
                    .refusals
                    .extend(unnamed.into_iter().map(refused_here));
                outcomes.refusals.extend(named);
            }
            Answer::Refused { errors, reason, .. } => {
                let refusals = named(group, &errors, 0);
                if refusals.is_empty() {
                    halve(group, "refused", &reason, groups, outcomes);
                    return Ok(());
                }
                // Nothing was stored: the other lines of the group are sent again.
                groups.push(without(group, &refusals));
                outcomes.refusals.extend(refusals);
            }
            Answer::TooLarge { reason } => {
                halve(group, "too_large", &reason, groups, outcomes);
            }
            Answer::Failed { reason } | Answer::Retry { reason, .. } => {
                return Err(self.failed(reason));
            }
        }
        Ok(())
    }

    /// Sends one request until its answer is final. Does not return [`Answer::Retry`].
    fn request(&self, group: &[&Ready<'_>], body: &[u8]) -> Result<Answer, Halt> {
        let mut pause = PAUSE_FIRST;
        let mut since: Option<Instant> = None;
        let mut in_doubt = 0;
        loop {
            let answer = self.poster.post(body);
            let Answer::Retry {
                reason,
                after,
                outcome,
            } = answer
            else {
                self.tally.answered();
                return Ok(answer);
            };
            // An event is counted as doubtful once, however often its request is repeated.
            let doubtful = if outcome == Stored::Unknown && in_doubt == 0 {
                group.iter().filter(|line| !line.counts_once).count() as u64
            } else {
                0
            };
            in_doubt += doubtful;
            let since = since.get_or_insert_with(Instant::now);
            let silent = self
                .tally
                .unanswered(&self.with_url(&reason), doubtful)
                .min(since.elapsed());
            let Some(wait) = pause_before_retry(self.config.retry_for, silent, after, pause) else {
                return Err(self.failed(gave_up(&reason, self.config.retry_for)));
            };
            pause = (pause * 2).min(PAUSE_MAX);
            if self.stop.wait(wait) {
                return Err(Halt::Stopped);
            }
        }
    }

    /// The error of an answer that does not account for each of the `sent` lines.
    fn incompatible(&self, sent: usize, accepted: u64, refused: u64, named: usize) -> Halt {
        self.failed(format!(
            "sent {sent} lines, but the answer accepts {accepted}, refuses {refused} and names {named}; \
             the server's version is not compatible with this one"
        ))
    }

    fn with_url(&self, reason: &str) -> String {
        format!("{}: {reason}", self.config.to)
    }

    fn failed(&self, reason: String) -> Halt {
        Halt::Failed(SendError::Server {
            url: self.config.to.clone(),
            reason,
        })
    }
}

/// The pause before a request is sent again; `None` if `retry_for` has passed without any answer.
/// `after`, the server's `Retry-After`, is honoured within the remaining time.
pub(super) fn pause_before_retry(
    retry_for: Option<Duration>,
    silent: Duration,
    after: Option<Duration>,
    pause: Duration,
) -> Option<Duration> {
    let wait = after.unwrap_or_else(|| shortened(pause));
    match retry_for {
        None => Some(wait),
        Some(patience) if silent >= patience => None,
        Some(patience) => Some(wait.min(patience.saturating_sub(silent))),
    }
}

/// The error of a request that was not sent again.
pub(super) fn gave_up(reason: &str, retry_for: Option<Duration>) -> String {
    format!("{reason}; gave up after {}", Span(retry_for))
}

/// A random time from half of `pause` to all of it, so that senders do not retry at the same time.
fn shortened(pause: Duration) -> Duration {
    let half = pause / 2;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "any 32 bits of a random number will do"
    )]
    let share = random() as u32;
    half + half.mul_f64(f64::from(share) / f64::from(u32::MAX))
}

fn rank(text: &[u8], shape: Shape) -> u8 {
    match (shape, text.first()) {
        (Shape::Object { .. }, _) => 0,
        (Shape::Other, Some(b'{')) => 2,
        (Shape::Other, Some(b'[')) => 3,
        (Shape::Other, _) => 1,
    }
}

fn is_json(body: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(body).is_ok()
}

fn halve<'l, 'a>(
    group: &[&'l Ready<'a>],
    code: &str,
    reason: &str,
    groups: &mut Vec<Vec<&'l Ready<'a>>>,
    outcomes: &mut Outcomes,
) {
    if let [line] = group {
        let refusal = refusal(line.number, line.text, code, reason.to_owned());
        outcomes.refusals.push(refusal);
        return;
    }
    let (first, second) = group.split_at(group.len() / 2);
    groups.push(second.to_vec());
    groups.push(first.to_vec());
}
