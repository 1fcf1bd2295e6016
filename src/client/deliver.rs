//! Brings one batch to its end: every line accepted or refused, whatever it takes.
//!
//! Owned by one sending thread. A request that got no good answer is sent again, with pauses that
//! double and are never quite the same, until `--retry-for` has passed in which the server
//! answered nobody. A body that is too large, or refused without saying which line is to blame, is
//! halved.
//!
//! What the server makes of a body depends on its beginning: `[` is an array, and a body that is
//! one object as a whole is one event. Lines of a broken file must not be taken for such, so lines
//! that are objects go first, and what could be mistaken is refused right here.

use std::time::{Duration, Instant};

use serde::de::IgnoredAny;

use super::error::SendError;
use super::ids::{IdMaker, Shape, random};
use super::lines::{Batch, Fault};
use super::post::{Answer, LineError, Outcome, Poster};
use super::rejects::Refusal;
use super::settle::own_key;
use super::tally::{Done, Tally};
use crate::cli::Span;
use crate::cli::config::SendConfig;
use crate::data_dir::segment::Position;
use crate::event::Event;
use crate::shutdown::Shutdown;

/// The first pause before a request is sent again, and the longest.
pub(super) const PAUSE_FIRST: Duration = Duration::from_millis(100);
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Why a batch was left unfinished.
#[derive(Debug)]
pub(super) enum Halt {
    /// Asked to stop; what is not done is not counted as done.
    Stopped,
    /// It can't be done.
    Failed(SendError),
}

/// A sending thread's tools.
pub(super) struct Deliverer<'a> {
    pub(super) config: &'a SendConfig,
    pub(super) ids: &'a IdMaker,
    pub(super) tally: &'a Tally,
    pub(super) stop: &'a Shutdown,
    pub(super) poster: Poster,
}

/// A line as it will be sent.
struct Ready<'a> {
    number: u64,
    /// As in the input.
    text: &'a [u8],
    /// With its id.
    body: std::ops::Range<usize>,
    /// How well it serves as the first line of a body: 0 an object, 1 harmless, 2 `{`, 3 `[`.
    rank: u8,
    counts_once: bool,
}

/// What came of the lines of a batch.
#[derive(Default)]
struct Outcomes {
    accepted: u64,
    refusals: Vec<Refusal>,
    /// The last position that was acknowledged.
    last: Option<Position>,
}

impl Deliverer<'_> {
    /// Delivers the batch and tells the tally.
    pub(super) fn deliver(&self, batch: &Batch) -> Result<(), Halt> {
        let mut outcomes = Outcomes::default();
        let mut body = Vec::with_capacity(batch.text.len() + 64 * batch.lines.len());
        let mut lines: Vec<Ready<'_>> = Vec::with_capacity(batch.lines.len());
        let mut own = Vec::new();
        for line in &batch.lines {
            let text = &batch.text[line.range.clone()];
            if let Some(fault) = line.fault {
                let (code, detail) = described(fault);
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
        lines.sort_by_key(|line| line.rank); // stable: ids stay in order
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

    /// Sends the lines together, and in ever smaller groups where that is not taken.
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
            match self.request(&group, &body)? {
                Answer::Taken {
                    accepted,
                    refused,
                    errors,
                    position,
                } => {
                    let refusals = named(&group, &errors, refused);
                    if accepted + refused != group.len() as u64 || refusals.len() as u64 != refused
                    {
                        return Err(self.failed(format!(
                            "sent {} lines, but the answer accepts {accepted}, refuses {refused} and names {}; \
                             the server's version does not go with this one",
                            group.len(),
                            refusals.len()
                        )));
                    }
                    outcomes.accepted += accepted;
                    outcomes.last = outcomes.last.max(position);
                    outcomes.refusals.extend(refusals);
                }
                Answer::Refused {
                    errors,
                    more_errors,
                    ..
                } if errors.len() as u64 + more_errors == group.len() as u64 => {
                    // None is good: those that the answer does not name need not be sent again.
                    let named = named(&group, &errors, 0);
                    let unnamed = group
                        .iter()
                        .filter(|line| !named.iter().any(|refusal| refusal.line == line.number));
                    outcomes
                        .refusals
                        .extend(unnamed.map(|line| refused_here(line)));
                    outcomes.refusals.extend(named);
                }
                Answer::Refused { errors, reason, .. } => {
                    let refusals = named(&group, &errors, 0);
                    if refusals.is_empty() {
                        halve(&group, "refused", &reason, &mut groups, outcomes);
                        continue;
                    }
                    // Nothing was taken: the others of the group have not had their turn yet.
                    let others = group
                        .into_iter()
                        .filter(|line| !refusals.iter().any(|refusal| refusal.line == line.number));
                    groups.push(others.collect());
                    outcomes.refusals.extend(refusals);
                }
                Answer::TooLarge { reason } => {
                    halve(&group, "too_large", &reason, &mut groups, outcomes);
                }
                Answer::Hopeless { reason } | Answer::Again { reason, .. } => {
                    return Err(self.failed(reason));
                }
            }
        }
        Ok(())
    }

    /// One request until it has an answer that is final; never [`Answer::Again`].
    fn request(&self, group: &[&Ready<'_>], body: &[u8]) -> Result<Answer, Halt> {
        let mut pause = PAUSE_FIRST;
        let mut since: Option<Instant> = None;
        let mut in_doubt = 0;
        loop {
            let answer = self.poster.post(body);
            let Answer::Again {
                reason,
                after,
                outcome,
            } = answer
            else {
                self.tally.answered();
                return Ok(answer);
            };
            // In doubt once, however often it is repeated.
            let doubtful = if outcome == Outcome::Unknown && in_doubt == 0 {
                group.iter().filter(|line| !line.counts_once).count() as u64
            } else {
                0
            };
            in_doubt += doubtful;
            let since = since.get_or_insert_with(Instant::now);
            let silent = self
                .tally
                .unanswered(&self.told(&reason), doubtful)
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

    fn told(&self, reason: &str) -> String {
        format!("{}: {reason}", self.config.to)
    }

    fn failed(&self, reason: String) -> Halt {
        Halt::Failed(SendError::Server {
            url: self.config.to.clone(),
            reason,
        })
    }
}

/// How long to wait before a request is sent again; `None`: `retry_for` has passed in silence.
/// What the server asks for (`after`) is heeded as far as there is time for it.
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

/// Why a request was not sent again.
pub(super) fn gave_up(reason: &str, retry_for: Option<Duration>) -> String {
    format!("{reason}; gave up after {}", Span(retry_for))
}

fn described(fault: Fault) -> (&'static str, String) {
    match fault {
        Fault::TooLong(length) => {
            let max = crate::event::LINE_BYTES_MAX;
            let detail = format!("the line has {length} bytes; at most {max} are taken");
            ("line_too_long", detail)
        }
        Fault::NoElement => (
            "not_json",
            "a comma of the array stands without an element".to_owned(),
        ),
        Fault::Unclosed => (
            "not_json",
            "the array has no closing bracket; is the file cut short?".to_owned(),
        ),
    }
}

/// Half of it to all of it, so that many senders don't come back together.
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

fn joined(group: &[&Ready<'_>], bodies: &[u8]) -> Vec<u8> {
    let bytes = group.iter().map(|line| line.body.len() + 1).sum();
    let mut body = Vec::with_capacity(bytes);
    for (index, line) in group.iter().enumerate() {
        if index > 0 {
            body.push(b'\n');
        }
        body.extend_from_slice(&bodies[line.body.clone()]);
    }
    body
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

/// The refusals of an answer as lines of the file. A long answer may name only some of its
/// `refused` lines; we read an event as the server does, so we can tell which the others are.
fn named(group: &[&Ready<'_>], errors: &[LineError], refused: u64) -> Vec<Refusal> {
    let mut refusals: Vec<Refusal> = Vec::new();
    for error in errors {
        let index = usize::try_from(error.line).unwrap_or(0).wrapping_sub(1);
        let Some(line) = group.get(index) else {
            continue;
        };
        if refusals
            .last()
            .is_some_and(|refusal| refusal.line == line.number)
        {
            continue; // a line is refused once, for its first reason
        }
        refusals.push(Refusal {
            line: line.number,
            code: error.code.clone(),
            pointer: error.pointer.clone(),
            detail: error.detail.clone(),
            text: String::from_utf8_lossy(line.text).into_owned(),
        });
    }
    if (refusals.len() as u64) < refused {
        let known: std::collections::HashSet<u64> =
            refusals.iter().map(|refusal| refusal.line).collect();
        let unnamed = group
            .iter()
            .filter(|line| !known.contains(&line.number) && Event::parse(line.text).is_err());
        refusals.extend(unnamed.map(|line| refused_here(line)));
    }
    refusals
}

/// Refused for what we ourselves find wrong with it.
fn refused_here(line: &Ready<'_>) -> Refusal {
    match Event::parse(line.text) {
        Err(error) => Refusal {
            pointer: error.pointer.into_owned(),
            ..refusal(line.number, line.text, error.code, error.detail)
        },
        Ok(_) => refusal(line.number, line.text, "refused", "no event".to_owned()),
    }
}

fn refusal(number: u64, text: &[u8], code: &str, detail: String) -> Refusal {
    Refusal {
        line: number,
        code: code.to_owned(),
        pointer: String::new(),
        detail,
        text: String::from_utf8_lossy(text).into_owned(),
    }
}
