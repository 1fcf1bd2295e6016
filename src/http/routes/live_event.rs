//! `POST /liveEvent`: ingests events.
//!
//! No thread waits: the batch is queued at the journal, and the callback of the committer answers. For
//! `ack=applied` it registers a waiter, whose callback answers. If the events are not applied in time,
//! the reply is 202 with `"acked":"durable"`.

use std::fmt::Write as _;
use std::io::{self, Read as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Inner;
use super::params::Params;
use crate::data_dir::node_position::NodePosition;
use crate::data_dir::segment::Position;
use crate::http::cloudevents;
use crate::http::counters::Route;
use crate::http::engine::{Lane, Reply, Request, reserve};
use crate::http::intake::{self, Intake, IntakeError, Invalid};
use crate::http::problem::{self, Problem};
use crate::journal::{AppendError, Batch};
use crate::progress::WaitOutcome;

/// When a request is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ack {
    /// The events are durable in the journal.
    Durable,
    /// The events are applied to the totals.
    Applied,
}

const WAIT_DEFAULT: Duration = Duration::from_secs(5);
const WAIT_MAX: Duration = Duration::from_mins(1);

/// The content encoding of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Identity,
    Gzip,
}

fn encoding(request: &Request) -> Result<Encoding, Problem> {
    match request.header("Content-Encoding") {
        None => Ok(Encoding::Identity),
        Some(name) if name.eq_ignore_ascii_case("identity") => Ok(Encoding::Identity),
        Some(name)
            if ["gzip", "x-gzip"]
                .iter()
                .any(|n| name.eq_ignore_ascii_case(n)) =>
        {
            Ok(Encoding::Gzip)
        }
        Some(_) => Err(Problem::new(
            415,
            "unsupported Content-Encoding; send the body without one, or with gzip",
        )
        .header("Accept-Encoding", "gzip")),
    }
}

/// Which threads handle the request: decompressing takes too long for the I/O thread.
pub(super) fn lane(request: &Request) -> Result<Lane, Problem> {
    Ok(match encoding(request)? {
        Encoding::Identity => Lane::Io,
        Encoding::Gzip => Lane::Worker,
    })
}

/// The query parameters of `/liveEvent`.
struct Options {
    ack: Ack,
    wait: Duration,
    invalid: Invalid,
}

fn options(query: &str) -> Result<Options, Problem> {
    let params = Params::parse(query, &["ack", "wait", "invalid"])?;
    let invalid = [("refuse", Invalid::Refuse), ("skip", Invalid::Skip)];
    Ok(Options {
        ack: params.one_of(
            "ack",
            &[("durable", Ack::Durable), ("applied", Ack::Applied)],
        )?,
        wait: params.wait(WAIT_DEFAULT, WAIT_MAX)?,
        invalid: params.one_of("invalid", &invalid)?,
    })
}

/// Reads the events of a request and appends them to the journal.
pub(super) fn post(inner: &Arc<Inner>, mut request: Request, query: &str) {
    match receive(inner, &mut request, query) {
        Ok((options, intake)) => append(inner, request, &options, intake),
        Err((problem, events)) => {
            inner.record_refused(&problem, events);
            inner.answer(request, Route::LiveEvent, problem.reply());
        }
    }
}

/// Reads the events of a request and counts them as received. If none is stored, they are counted as
/// refused, and their number is in the error.
fn receive(
    inner: &Inner,
    request: &mut Request,
    query: &str,
) -> Result<(Options, Intake), (Problem, u64)> {
    let no_events = |problem| (problem, 0);
    let options = options(query).map_err(no_events)?;
    let mut body = request.take_body();
    if encoding(request).map_err(no_events)? == Encoding::Gzip {
        body = decompress(&body, inner.body_bytes_max).map_err(no_events)?;
    }
    let read = read(request, body).map_err(no_events)?;
    let intake = read.map_err(|error| {
        let refused = u64::from(error != IntakeError::Empty && error != IntakeError::EmptyArray);
        inner.counters.receive(refused);
        inner.counters.record_outcome(0, refused);
        let problem = match error {
            IntakeError::Empty => Problem::new(400, "the body is empty; send an event"),
            IntakeError::EmptyArray => Problem::new(422, "the array is empty; send an event"),
            IntakeError::NotJson(detail) => Problem::new(400, detail),
        };
        (problem, refused)
    })?;
    let all = intake.refused + u64::from(intake.accepted);
    inner.counters.receive(all);
    if intake.accepted == 0 || (options.invalid == Invalid::Refuse && intake.refused > 0) {
        inner.counters.record_outcome(0, all);
        let mut problem = Problem::of_intake(&intake);
        if options.invalid == Invalid::Skip {
            problem = problem.unprocessable();
        }
        return Err((problem, all));
    }
    Ok((options, intake))
}

/// Reads the body as CloudEvents if the headers say so, otherwise as events in the native format.
fn read(request: &Request, body: Vec<u8>) -> Result<Result<Intake, IntakeError>, Problem> {
    let body = intake::without_byte_order_mark(body);
    let headers = |name| request.header(name);
    let Some(mode) =
        cloudevents::mode(&headers).map_err(|error| Problem::new(415, error.detail))?
    else {
        return Ok(intake::read(body));
    };
    Ok(match cloudevents::lines(mode, &headers, &body) {
        Ok(events) => intake::of_events(events),
        Err(error) if error.is_syntax() => Err(IntakeError::NotJson(error.detail)),
        Err(error) => intake::of_events(vec![Err(error)]),
    })
}

/// The compression ratio that memory is reserved for at first. Events usually compress about ten times.
const INFLATED_BY: usize = 16;

/// Decompresses a body up to the limit of plain bodies, so that a decompression bomb uses no more memory
/// than a plain body.
fn decompress(body: &[u8], bytes_max: usize) -> Result<Vec<u8>, Problem> {
    let plain = inflate(body, bytes_max + 1).map_err(|error| {
        Problem::new(400, format!("cannot decompress the body as gzip: {error}"))
    })?;
    if plain.len() > bytes_max {
        let detail =
            format!("the decompressed body is larger than {bytes_max} bytes; send smaller batches");
        return Err(Problem::new(413, detail));
    }
    Ok(plain)
}

fn inflate(body: &[u8], bytes_max: usize) -> io::Result<Vec<u8>> {
    let usual = bytes_max.min(body.len().saturating_mul(INFLATED_BY));
    let mut plain = Vec::new();
    reserve(&mut plain, usual);
    let mut inflater = flate2::read::MultiGzDecoder::new(body).take(bytes_max as u64);
    inflater
        .by_ref()
        .take(usual as u64)
        .read_to_end(&mut plain)?;
    if plain.len() == usual {
        reserve(&mut plain, bytes_max);
        inflater.read_to_end(&mut plain)?;
    }
    Ok(plain)
}

impl Inner {
    /// Records a refused request for `/refused`, with the number of its events.
    pub(super) fn record_refused(&self, problem: &Problem, events: u64) {
        let (detail, first) = problem.reason();
        let status = problem.status();
        self.refused.record(status, detail, first, events);
    }

    /// The same for the events that `invalid=skip` has left out.
    fn record_skipped(&self, intake: &Intake) {
        let first = problem::faults(&intake.errors[..intake.errors.len().min(1)]);
        let detail = "invalid events of the request were left out (invalid=skip)";
        self.refused
            .record(202, detail, first.first(), intake.refused);
    }
}

/// Queues the lines at the journal. The callback runs on the thread of the committer.
fn append(inner: &Arc<Inner>, request: Request, options: &Options, mut intake: Intake) {
    let batch = Batch {
        bytes: std::mem::take(&mut intake.lines),
    };
    let done = {
        let inner = Arc::clone(inner);
        let (ack, wait) = (options.ack, options.wait);
        move |result: Result<Position, AppendError>| match result {
            Ok(position) => {
                let position = inner.shown(position);
                let took = request.received().elapsed();
                inner.counters.ack().observe(took);
                inner
                    .counters
                    .record_outcome(u64::from(intake.accepted), intake.refused);
                if intake.refused > 0 {
                    inner.record_skipped(&intake);
                }
                if ack == Ack::Applied {
                    when_applied(&inner, request, intake, position, wait);
                    return None;
                }
                let reply = Reply::json(202, acknowledgement(&intake, position, None));
                inner.answer_unwoken(request, Route::LiveEvent, reply)
            }
            Err(error) => {
                let all = u64::from(intake.accepted) + intake.refused;
                inner.counters.record_outcome(0, all);
                let problem = Problem::of_append(&error);
                inner.record_refused(&problem, all);
                inner.answer_unwoken(request, Route::LiveEvent, problem.reply())
            }
        }
    };
    inner.journal.append(batch, Box::new(done));
}

/// Answers when the totals include the events, or, after `wait`, that they are durable.
fn when_applied(
    inner: &Arc<Inner>,
    request: Request,
    intake: Intake,
    position: NodePosition,
    wait: Duration,
) {
    let done = {
        let inner = Arc::clone(inner);
        move |waited| {
            let (status, acked) = match waited {
                WaitOutcome::Applied => (200, "applied"),
                WaitOutcome::TimedOut | WaitOutcome::Gone | WaitOutcome::Unavailable => {
                    (202, "durable")
                }
            };
            let reply = Reply::json(status, acknowledgement(&intake, position, Some(acked)));
            inner.answer(request, Route::LiveEvent, reply);
        }
    };
    let deadline = Instant::now() + wait;
    let progress = &inner.progress;
    progress.when_applied(position.position, deadline, Box::new(done));
}

/// The body of the reply to events that were stored.
fn acknowledgement(intake: &Intake, position: NodePosition, acked: Option<&str>) -> String {
    let mut json = String::with_capacity(64);
    // Writing to a String cannot fail.
    let _never = write!(json, "{{\"accepted\":{}", intake.accepted);
    if intake.refused > 0 {
        let _never = write!(json, ",\"refused\":{}", intake.refused);
    }
    let _never = write!(json, ",\"position\":\"{position}\"");
    if let Some(acked) = acked {
        let _never = write!(json, ",\"acked\":\"{acked}\"");
    }
    if intake.refused > 0 {
        // Strings and numbers: this cannot fail.
        let errors = serde_json::to_string(&problem::faults(&intake.errors)).unwrap_or_default();
        let more = intake.refused - intake.errors.len() as u64;
        let _never = write!(json, ",\"errors\":{errors}");
        if more > 0 {
            let _never = write!(json, ",\"moreErrors\":{more}");
        }
    }
    json.push('}');
    json
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn an_acknowledgement_as_json() {
        let position = "42-1834".parse().expect("a position");
        let clean =
            intake::read("{\"userId\":\"u\",\"name\":\"add_revenue\",\"value\":1}\n".into());
        let clean = clean.expect("lines");
        assert_eq!(
            acknowledgement(&clean, position, None),
            r#"{"accepted":1,"position":"42-1834"}"#
        );
        let mut mixed = clean.lines.clone();
        mixed.extend_from_slice(b"7\n");
        let mixed = intake::read(mixed).expect("lines");
        let json: serde_json::Value =
            serde_json::from_str(&acknowledgement(&mixed, position, Some("durable")))
                .expect("JSON");
        assert_eq!(json["accepted"], 1);
        assert_eq!(json["refused"], 1);
        assert_eq!(json["acked"], "durable");
        assert_eq!(json["errors"][0]["line"], 2);
    }

    #[test]
    fn a_decompression_bomb_is_413_and_invalid_gzip_is_400() {
        let zip = |bytes: &[u8]| {
            let mut zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            zip.write_all(bytes).expect("zipped");
            zip.finish().expect("zipped")
        };
        assert_eq!(decompress(&zip(b"{}"), 10).ok(), Some(b"{}".to_vec()));
        let bomb = zip(&vec![b' '; 1 << 20]);
        assert!(bomb.len() < 2048);
        let status = |body: &[u8]| decompress(body, 1 << 19).map_err(|problem| problem.status());
        assert_eq!(status(&bomb), Err(413));
        assert_eq!(status(b"nonsense"), Err(400));
        assert_eq!(status(&bomb[..bomb.len() - 9]), Err(413));
        assert_eq!(status(&zip(b"{}")[..15]), Err(400), "cut short");
    }

    #[test]
    fn the_query_is_parsed() {
        let parsed = options("ack=applied&wait=1s&invalid=skip").expect("valid");
        assert_eq!(parsed.ack, Ack::Applied);
        assert_eq!(parsed.invalid, Invalid::Skip);
        for bad in ["ack=aplied", "wait=2m", "invalid=yes", "acks=applied"] {
            assert_eq!(
                options(bad).map_err(|p| p.status()).err(),
                Some(400),
                "{bad}"
            );
        }
    }
}
