//! File operations of a program as recorded by strace, replayed on the simulated disk up to any
//! call.
//!
//! Every call that can change a file is traced; a call that the simulated disk does not support
//! fails the test instead of being left out. Lock files and SQLite's `-shm` are not replayed: they
//! contain nothing that is used after the process has ended.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use tallyline::data_dir::disk::Disk;

use super::harness::{Server, arg, quiet_environment};
use super::sim_disk::SimDisk;

/// All calls that change files, sync them, or send a response.
const CALLS: &str = "trace=open,openat,creat,write,pwrite64,writev,pwritev,pwritev2,truncate,ftruncate,\
    fallocate,fsync,fdatasync,syncfs,sync_file_range,rename,renameat,renameat2,link,linkat,unlink,unlinkat,\
    mkdir,mkdirat,rmdir,copy_file_range,sendfile,sendto,sendmsg";

/// The path of the directory on the simulated disk.
pub(crate) const ROOT: &str = "data";

/// One change of a file or directory, or one response.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Deed {
    /// Opened with `O_CREAT`: the file exists from then on, and may have existed before.
    Create(PathBuf),
    Write(PathBuf, u64, Vec<u8>),
    SetLen(PathBuf, u64),
    /// A completed fsync or fdatasync of a file or a directory.
    Sync(PathBuf),
    /// syncfs: every file.
    SyncAll,
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    MakeDir(PathBuf),
    /// `HTTP/1.1 202` was sent.
    Ack,
}

impl fmt::Debug for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(path) => write!(f, "create {}", path.display()),
            Self::Write(path, at, bytes) => {
                write!(f, "write {} {at}+{}", path.display(), bytes.len())
            }
            Self::SetLen(path, len) => write!(f, "cut {} {len}", path.display()),
            Self::Sync(path) => write!(f, "sync {}", path.display()),
            Self::SyncAll => f.write_str("sync all"),
            Self::Rename(from, to) => write!(f, "rename {} {}", from.display(), to.display()),
            Self::Remove(path) => write!(f, "remove {}", path.display()),
            Self::MakeDir(path) => write!(f, "mkdir {}", path.display()),
            Self::Ack => f.write_str("ack"),
        }
    }
}

/// `tallyline ARGS...` under strace, which writes to `log`.
pub(crate) fn traced(log: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-y", "-xx", "-s", "10000000", "-e", CALLS]);
    command.args(["-e", "signal=none", "-o", arg(log)]);
    command.arg(env!("CARGO_BIN_EXE_tallyline")).args(args);
    quiet_environment(&mut command);
    command
}

/// Sends a signal to a traced server, the child of strace; its pid is in the lock file.
#[track_caller]
pub(crate) fn signal_traced(server: &Server, signal: Signal) {
    let lock = std::fs::read_to_string(server.data.join("serve.lock")).unwrap();
    let pid = lock
        .split([' ', ','])
        .nth(1)
        .and_then(|pid| pid.parse().ok());
    let pid = pid.and_then(Pid::from_raw).expect("`process PID, ...`");
    kill_process(pid, signal).unwrap();
}

/// Stops a traced server; strace ends with it.
#[track_caller]
pub(crate) fn stop_traced(server: Server) {
    signal_traced(&server, Signal::TERM);
    server.process.finish().expect(0);
}

/// The recorded changes of files in `dir`, in the kernel's order, with [`ROOT`] as the directory.
pub(crate) fn deeds(log: &Path, dir: &Path) -> Vec<Deed> {
    let text = std::fs::read_to_string(log).unwrap();
    let calls = calls(&text);
    let deed = |call: &String| Call::read(call, dir)?.deed();
    calls.iter().filter_map(deed).collect()
}

/// The recorded calls, each complete. A call that was interrupted by a call of another thread is
/// where it began; a sync is where it ended, since it has no effect before.
fn calls(text: &str) -> Vec<String> {
    let mut begun: HashMap<&str, (usize, &str)> = HashMap::new();
    let mut calls = Vec::new();
    for line in text.lines() {
        let Some((thread, call)) = line.split_once(' ') else {
            continue;
        };
        let call = call.trim_start();
        if let Some(beginning) = call.strip_suffix("<unfinished ...>") {
            begun.insert(thread, (calls.len(), beginning));
            calls.push(String::new());
        } else if let Some(resumed) = call.strip_prefix("<... ") {
            let (name, end) = resumed.split_once(" resumed>").unwrap();
            let (place, beginning) = begun.remove(thread).unwrap();
            let whole = format!("{beginning}{end}");
            if name.ends_with("sync") || name == "syncfs" {
                calls.push(whole);
            } else {
                calls[place] = whole;
            }
        } else {
            calls.push(call.to_owned());
        }
    }
    calls
}

/// A call that returned without an error.
struct Call<'a> {
    name: &'a str,
    args: Vec<&'a str>,
    result: u64,
    dir: &'a Path,
}

impl<'a> Call<'a> {
    fn read(text: &'a str, dir: &'a Path) -> Option<Self> {
        let (name, rest) = text.split_once('(')?;
        let (args, result) = rest.rsplit_once(" = ")?;
        let result = result.split([' ', '<']).next()?.parse().ok()?;
        let args = args.trim_end().strip_suffix(')')?.split(", ").collect();
        Some(Self {
            name,
            args,
            result,
            dir,
        })
    }

    /// The path of an argument (a name or a descriptor), if it is in the directory.
    fn path(&self, arg: usize) -> Option<PathBuf> {
        let text = self.args.get(arg)?;
        if text.ends_with("(deleted)") {
            return None;
        }
        let quoted = text.split(['"', '<', '>']).nth(1)?;
        let path = PathBuf::from(String::from_utf8(unescaped(quoted)).ok()?);
        if is_passing(&path) {
            return None;
        }
        Some(Path::new(ROOT).join(path.strip_prefix(self.dir).ok()?))
    }

    fn number(&self, arg: usize) -> u64 {
        let text = self.args[arg].trim_end();
        text.parse().unwrap_or_else(|_| panic!("{text}"))
    }

    /// The change that the call made in the directory.
    fn deed(&self) -> Option<Deed> {
        let answer = |name| matches!(name, "write" | "sendto" | "writev" | "sendmsg");
        match self.name {
            name @ ("open" | "openat") => {
                let first = usize::from(name == "openat");
                let path = self.path(first)?;
                let flags = self.args[first + 1];
                assert!(!flags.contains("O_TRUNC"), "cannot replay {flags}");
                flags.contains("O_CREAT").then_some(Deed::Create(path))
            }
            "pwrite64" => {
                let path = self.path(0)?;
                let mut bytes = unescaped(self.args[1].trim_matches('"'));
                bytes.truncate(usize::try_from(self.result).unwrap());
                assert_eq!(
                    bytes.len() as u64,
                    self.result,
                    "the log contains all bytes"
                );
                Some(Deed::Write(path, self.number(3), bytes))
            }
            "ftruncate" => Some(Deed::SetLen(self.path(0)?, self.number(1))),
            "fsync" | "fdatasync" => Some(Deed::Sync(self.path(0)?)),
            "syncfs" => Some(Deed::SyncAll),
            "rename" => self.renamed(self.path(0), self.path(1)),
            "renameat2" => self.renamed(self.path(1), self.path(3)),
            "unlink" => Some(Deed::Remove(self.path(0)?)),
            "mkdir" => Some(Deed::MakeDir(self.path(0)?)),
            name if answer(name) && self.path(0).is_none() => {
                let acknowledged = self.args.get(1)?.contains(&escaped("HTTP/1.1 202"));
                acknowledged.then_some(Deed::Ack)
            }
            name => {
                let here = (0..self.args.len()).find_map(|arg| self.path(arg));
                assert!(here.is_none(), "cannot replay {name} of {here:?}");
                None
            }
        }
    }

    fn renamed(&self, from: Option<PathBuf>, to: Option<PathBuf>) -> Option<Deed> {
        match (from, to) {
            (Some(from), Some(to)) => Some(Deed::Rename(from, to)),
            (None, None) => None,
            (from, to) => panic!("{} in or out: {from:?} {to:?}", self.name),
        }
    }
}

/// Decodes `\x41\x42` to bytes.
fn unescaped(hex: &str) -> Vec<u8> {
    let byte = |pair| u8::from_str_radix(pair, 16).unwrap_or_else(|_| panic!("{pair}"));
    hex.split("\\x").skip(1).map(byte).collect()
}

fn escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("\\x{byte:02x}")).collect()
}

/// Whether this is a lock file or SQLite's `-shm`.
fn is_passing(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    name.ends_with("-shm") || path.extension().is_some_and(|ending| ending == "lock")
}

/// The current content of the directory as a disk on which everything is durable.
pub(crate) fn disk_of(dir: &Path) -> SimDisk {
    let disk = SimDisk::with_dir(Path::new(ROOT));
    copy_in(&disk, dir, Path::new(ROOT));
    disk
}

fn copy_in(disk: &SimDisk, from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, at) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            disk.create_dir(&at).unwrap();
            copy_in(disk, &path, &at);
        } else if !is_passing(&path) {
            let file = disk.create_new(&at).unwrap();
            file.write_all_at(&std::fs::read(&path).unwrap(), 0)
                .unwrap();
            file.sync_data().unwrap();
        }
    }
    disk.sync_dir(to).unwrap();
}

/// Writes the files of the disk to an empty directory.
pub(crate) fn write_out(disk: &SimDisk, dir: &Path) {
    for (path, bytes) in disk.contents() {
        let path = dir.join(path.strip_prefix(ROOT).unwrap());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

/// Replays the change on the disk.
pub(crate) fn repeat(disk: &SimDisk, deed: &Deed) {
    let open = |path| {
        disk.open(path)
            .unwrap_or_else(|_| panic!("no {}", path.display()))
    };
    match deed {
        Deed::Create(path) => {
            if disk.content(path).is_none() {
                disk.create_new(path).unwrap();
            }
        }
        Deed::Write(path, at, bytes) => open(path).write_all_at(bytes, *at).unwrap(),
        Deed::SetLen(path, len) => open(path).set_len(*len).unwrap(),
        Deed::Sync(path) if disk.is_dir(path) => disk.sync_dir(path).unwrap(),
        Deed::Sync(path) => open(path).sync_data().unwrap(),
        Deed::SyncAll => assert!(disk.sync_file_system(Path::new(ROOT)).unwrap()),
        Deed::Rename(from, to) => disk.rename_over(from, to).unwrap(),
        Deed::Remove(path) => disk.remove(path).unwrap(),
        Deed::MakeDir(path) => disk.create_dir(path).unwrap(),
        Deed::Ack => {}
    }
}
