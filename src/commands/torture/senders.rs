//! The senders, the files that they send, and the totals that must result.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use fastrand::Rng;

use super::trial::{PATIENCE, Trial};
use crate::event::{MICROS_PER_UNIT, Micros};

/// Number of concurrent senders.
const SENDERS: usize = 3;
/// Number of users. They are few, so that each round changes every total.
const USERS: u64 = 40;
/// The expected total of each user: micros and number of events.
pub(super) type Expected = BTreeMap<String, (i64, u64)>;

/// The processes are killed when this is dropped.
pub(super) struct Senders {
    all: Vec<Sender>,
    pub(super) expected: Expected,
}

impl Senders {
    pub(super) fn new() -> Self {
        Self {
            all: (0..SENDERS).map(Sender::new).collect(),
            expected: BTreeMap::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Starts the sender with its file, or with a new one if that is acknowledged.
    pub(super) fn keep_sending(
        &mut self,
        index: usize,
        ports: &[u16],
        trial: &mut Trial,
    ) -> anyhow::Result<()> {
        if let Some(child) = &mut self.all[index].running {
            let Some(status) = child.try_wait()? else {
                return Ok(());
            };
            self.all[index].ended(status, &trial.dir)?;
        }
        if self.all[index].done {
            self.new_file(index, trial)?;
        }
        self.all[index].send(ports, trial)
    }

    pub(super) fn kill(&mut self, index: usize, trial: &mut Trial) -> anyhow::Result<()> {
        let sender = &mut self.all[index];
        let Some(child) = &mut sender.running else {
            return Ok(());
        };
        let ended = child.try_wait()?;
        if ended.is_none() {
            child.kill()?;
            trial.figures.sender_kills += 1;
        }
        let status = child.wait()?;
        sender.ended(status, &trial.dir)
    }

    /// Sends the rest of all files.
    pub(super) fn finish(&mut self, ports: &[u16], trial: &mut Trial) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        for sender in &mut self.all {
            loop {
                if let Some(mut child) = sender.running.take() {
                    let status = child.wait()?;
                    sender.ended(status, &trial.dir)?;
                }
                if sender.done {
                    break;
                }
                ensure!(
                    Instant::now() < deadline,
                    "{} could not get its file acknowledged in time",
                    sender.name
                );
                sender.send(ports, trial)?;
            }
        }
        Ok(())
    }

    /// Writes the next file of a sender. Half of the files have ids of their own.
    fn new_file(&mut self, index: usize, trial: &mut Trial) -> anyhow::Result<()> {
        let lines = 100 + trial.random.u64(..8000);
        let own_ids = !(self.all[index].files + index as u64).is_multiple_of(2);
        let mut text = String::new();
        if own_ids {
            self.repeat_lines(&mut text, trial);
        }
        let from = trial.random.u64(..lines);
        let sender = &mut self.all[index];
        sender.files += 1;
        sender.done = false;
        if own_ids {
            sender.with_id.clear();
        }
        for _ in 0..lines {
            let line = sender.new_line(own_ids, &mut self.expected, &mut trial.random);
            text.push_str(&line);
            if own_ids {
                sender.with_id.push(line);
            }
        }
        if own_ids {
            // The sender comes back to a number that it has passed, and continues from there.
            let back = usize::try_from(from).unwrap_or_default();
            for line in sender.with_id.iter().skip(back).take(200) {
                text.push_str(line);
                trial.figures.overlapping += 1;
            }
        }
        trial.figures.files += 1;
        trial.figures.events += lines;
        let path = sender.file(&trial.dir);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Adds lines that a sender has sent before, or is sending.
    fn repeat_lines(&self, text: &mut String, trial: &mut Trial) {
        let sent = &self.all[trial.below(SENDERS)].with_id;
        let (one, other) = (trial.below(sent.len() + 1), trial.below(sent.len() + 1));
        let again = &sent[one.min(other)..one.max(other)];
        text.extend(again.iter().map(String::as_str));
        trial.figures.overlapping += again.len() as u64;
    }
}

impl Drop for Senders {
    fn drop(&mut self) {
        let running = self.all.iter_mut();
        for child in running.filter_map(|sender| sender.running.as_mut()) {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Sends one file until `send` reports that it is acknowledged, then the next.
struct Sender {
    name: String,
    files: u64,
    lines: u64,
    /// Lines of the last file that had ids of their own.
    with_id: Vec<String>,
    running: Option<Child>,
    /// Whether the whole file was sent.
    done: bool,
}

impl Sender {
    fn new(index: usize) -> Self {
        Self {
            name: format!("sender-{}", index + 1),
            files: 0,
            lines: 0,
            with_id: Vec::new(),
            running: None,
            done: true,
        }
    }

    fn file(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}-{}.jsonl", self.name, self.files))
    }

    /// A new line, whose event is added to the expected totals.
    fn new_line(&mut self, own_id: bool, expected: &mut Expected, random: &mut Rng) -> String {
        self.lines += 1;
        let user = format!("user{}", random.u64(..USERS));
        let micros = random.u64(..1000 * MICROS_PER_UNIT);
        let add = random.u64(..10) < 7;
        let name = if add {
            "add_revenue"
        } else {
            "subtract_revenue"
        };
        let id = if own_id {
            format!(r#""id": "{}-{:012}", "#, self.name, self.lines)
        } else {
            String::new()
        };
        let amount = i64::try_from(micros).unwrap_or_default();
        let value = Micros::from(amount);
        let line = format!(
            r#"{{{id}"userId": "{user}", "name": "{name}", "value": {value}}}
"#
        );
        let total = expected.entry(user).or_default();
        total.0 += if add { amount } else { -amount };
        total.1 += 1;
        line
    }

    /// Sends to any of the servers: an event counts once, whichever of them got it before.
    fn send(&mut self, ports: &[u16], trial: &mut Trial) -> anyhow::Result<()> {
        let port = ports[trial.below(ports.len())];
        let batch = 1 + trial.random.u64(..200);
        let child = trial
            .command(&self.name)?
            .arg("send")
            .arg(self.file(&trial.dir))
            .args([
                "--to",
                &format!("http://127.0.0.1:{port}"),
                "--batch",
                &batch.to_string(),
                "--retry-for",
                "200ms",
            ])
            // The ids are made of the name and the line's number, so each event counts once.
            .args(["--source", &format!("{}-{}", self.name, self.files)])
            .spawn()
            .context("cannot start a sender")?;
        self.running = Some(child);
        Ok(())
    }

    /// 0: all is acknowledged. After any other status the sender is started again.
    fn ended(&mut self, status: ExitStatus, dir: &Path) -> anyhow::Result<()> {
        self.running = None;
        ensure!(
            status.code() != Some(3),
            "{} reports that valid events were refused; see its log",
            self.name
        );
        if status.success() {
            self.done = true;
            fs::remove_file(self.file(dir)).context("cannot remove a file that was sent")?;
        }
        Ok(())
    }
}
