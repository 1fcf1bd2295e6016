//! Helpers of all tests: a temporary directory, the binary, waiting with a deadline.

pub(crate) mod cutting_proxy;
pub(crate) mod http;
pub(crate) mod postgres;
pub(crate) mod recount;
pub(crate) mod server;
pub(crate) mod suite;

use std::fmt;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tallyline::data_dir::Directory;
use tallyline::data_dir::disk::RealDisk;
use tallyline::data_dir::segment::ACTIVE_FILE;

pub(crate) use recount::{Totals, database, recount, recount_files};
pub(crate) use server::Server;

/// The deadline of a condition, long enough for a loaded machine with two cores. A passing test
/// does not wait this long.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Sets a flag when it is dropped, by a panic, too. The threads of a scope that run until then would otherwise
/// run for ever when the test fails.
pub(crate) struct SetAtEnd<'f>(pub(crate) &'f AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Polls `condition` until it returns `Some`. Only this function sleeps, and only between two
/// polls.
#[track_caller]
pub(crate) fn until<T>(
    patience: Duration,
    what: &str,
    mut condition: impl FnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = condition() {
            return answer;
        }
        assert!(
            Instant::now() < deadline,
            "waited {patience:?} in vain: {what}"
        );
        thread::sleep(Duration::from_millis(2));
    }
}

/// A directory in memory if such a file system exists: tests create hundreds of them, and a sync
/// there costs nothing.
pub(crate) fn scratch_dir() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let root = if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    tempfile::tempdir_in(root).unwrap()
}

/// A temporary directory of one test, deleted on drop. `data()` is the data directory in it.
pub(crate) struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::Builder::new()
                .prefix("tallyline-test-")
                .tempdir()
                .unwrap(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    /// Writes a file here (beside the data directory) and returns its path.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }
}

/// A path as an argument.
pub(crate) fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `tallyline ARGS...`, independent of the environment of this machine.
pub(crate) fn tallyline(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tallyline"));
    command.args(args);
    quiet_environment(&mut command);
    if let Some(url) = suite::database_of(args) {
        command.env("TALLYLINE_DATABASE", url);
        // Tests of retention prune at once.
        command.env("TALLYLINE_FAILOVER_WINDOW", "0s");
    }
    command
}

/// Removes the environment variables that would change the behaviour of the program.
pub(crate) fn quiet_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TALLYLINE_") {
            command.env_remove(name);
        }
    }
    command.env("NO_COLOR", "1");
}

/// The outcome of a finished command.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            code,
            stdout,
            stderr,
        } = self;
        write!(
            f,
            "exit code {code:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}"
        )
    }
}

impl Ran {
    /// Fails the test unless the exit code was `code`.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }
}

/// Runs `tallyline ARGS...` to its end.
#[track_caller]
pub(crate) fn run(args: &[&str]) -> Ran {
    Process::start(&mut tallyline(args)).finish()
}

/// Runs `tallyline ARGS...` with `input` on stdin.
#[track_caller]
pub(crate) fn run_with_input(args: &[&str], input: &[u8]) -> Ran {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(input).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    Process::start(tallyline(args).stdin(Stdio::from(file))).finish()
}

/// A running command whose output goes to files, so that no pipe can fill up. Killed on drop; its
/// stderr is printed if the test failed.
pub(crate) struct Process {
    child: Child,
    status: Option<ExitStatus>,
    stdout: tempfile::NamedTempFile,
    stderr: tempfile::NamedTempFile,
}

impl Process {
    /// Starts it; stdin is empty unless the command was given another one.
    pub(crate) fn start(command: &mut Command) -> Self {
        let stdout = tempfile::NamedTempFile::new().unwrap();
        let stderr = tempfile::NamedTempFile::new().unwrap();
        let child = command
            .stdout(stdout.reopen().unwrap())
            .stderr(stderr.reopen().unwrap())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self {
            child,
            status: None,
            stdout,
            stderr,
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.stdout.path()).unwrap()).into_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.stderr.path()).unwrap()).into_owned()
    }

    /// Its exit status, if it has exited.
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().unwrap();
        }
        self.status
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Sends SIGKILL and waits for the exit.
    pub(crate) fn kill(&mut self) {
        if self.exited().is_none() {
            self.child.kill().unwrap();
            self.status = Some(self.child.wait().unwrap());
        }
    }

    /// Waits until it exits by itself.
    #[track_caller]
    pub(crate) fn finish(self) -> Ran {
        self.finish_within(PATIENCE * 5)
    }

    /// [`Process::finish`] of a command that takes longer.
    #[track_caller]
    pub(crate) fn finish_within(mut self, patience: Duration) -> Ran {
        let status = until(patience, "the command ends by itself", || self.exited());
        Ran {
            code: status.code(),
            stdout: self.stdout(),
            stderr: self.stderr(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let log = self.stderr();
            let lines: Vec<_> = log.lines().collect();
            let from = lines.len().saturating_sub(60);
            eprintln!(
                "--- stderr of process {}:\n{}\n---",
                self.id(),
                lines[from..].join("\n")
            );
        }
    }
}

/// The names directly in a directory, sorted; empty if it does not exist.
pub(crate) fn names_in(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Every file at or below a directory, sorted.
pub(crate) fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for name in names_in(dir) {
        let path = dir.join(name);
        // A file may be renamed between the listing and this call.
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => files.extend(files_below(&path)),
            Ok(_) => files.push(path),
            Err(_) => {}
        }
    }
    files
}

/// The number of newlines in a file.
pub(crate) fn lines_in(path: &Path) -> usize {
    let bytes = fs::read(path).unwrap();
    bytes.iter().filter(|&&byte| byte == b'\n').count()
}

/// The workload of `tallyline generate`, in a file.
pub(crate) fn generated(scratch: &Scratch, events: u64, users: u64, seed: u64) -> PathBuf {
    let path = scratch.path().join(format!("workload-{seed}.jsonl"));
    let status = tallyline(&[
        "generate",
        "--events",
        &events.to_string(),
        "--users",
        &users.to_string(),
        "--seed",
        &seed.to_string(),
    ])
    .stdout(File::create(&path).unwrap())
    .status()
    .unwrap();
    assert!(status.success(), "generate: {status}");
    path
}

/// A position without the node that nodes of a shared database add to it.
pub(crate) fn without_node(position: &str) -> &str {
    position
        .split_once('@')
        .map_or(position, |(position, _)| position)
}

/// One line that adds `value` to `user`; the user is encoded as JSON.
pub(crate) fn event(user: &str, value: u64) -> String {
    let user = serde_json::Value::from(user);
    format!("{{\"userId\":{user},\"name\":\"add_revenue\",\"value\":{value}}}\n")
}

/// An event of `user` of value 1 that counts once, however often it is sent.
pub(crate) fn event_with_id(id: &str) -> String {
    format!("{{\"id\":\"{id}\",\"userId\":\"user\",\"name\":\"add_revenue\",\"value\":1}}\n")
}

/// Copies the files of a directory tree.
pub(crate) fn copy_tree(from: &Path, to: &Path) {
    for path in files_below(from) {
        let target = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&path, &target).unwrap();
    }
}

/// Appends lines to the active file as the server would: if the last segment was sealed, to a new
/// one, with the label in its first line.
pub(crate) fn append_to_active(data: &Path, lines: &str) {
    let active = data.join(ACTIVE_FILE);
    let mut directory = Directory::read(&RealDisk, data).unwrap().unwrap();
    let mut text = fs::read_to_string(&active).unwrap_or_else(|_| {
        directory = directory.next(directory.number + 1);
        String::new()
    });
    let starts = text.is_empty();
    text.push_str(lines);
    if starts {
        let label = String::from_utf8(directory.label().encode().into()).unwrap();
        text.insert_str(text.find('\n').unwrap(), &label);
        directory.started = true;
        directory.write(&RealDisk, data).unwrap();
    }
    fs::write(active, text).unwrap();
}
