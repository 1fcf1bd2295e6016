//! A simulated disk in memory that loses unsynced changes, for model tests of everything durable.
//!
//! [`SimDisk`] executes each call at once, as a page cache does, and records what a power cut may
//! undo. [`SimDisk::power_cut`] returns the disk after a power cut; the seed decides what is left:
//! - In each file, every 512-byte sector written since the last `sync_data` has its content of then,
//!   or after any of those writes, or zeros where nothing was written before. The length is that after
//!   any prefix of the changes of length.
//! - In each directory, a prefix of the creations, renames and removals since the last `sync_dir` is
//!   left. A rename from one directory to another is atomic.
//!
//! A failed `sync_data` loses those bytes permanently: a later success does not make them durable,
//! although reads still return them (as on Linux). Every call is a step. The power can be turned off
//! before any step, so that a test can go through all boundaries.

mod inode;
mod seeds;
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use tallyline::data_dir::disk::{Disk, DiskDir, DiskFile, FileStat, Identity};

use self::inode::{Inode, Left};
pub(crate) use self::seeds::{Choices, for_seeds};

const EIO: i32 = 5;

/// The kinds of calls that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Create,
    Open,
    Rename,
    Remove,
    SyncDir,
    CreateDir,
    Write,
    SyncData,
    SetLen,
    Look,
}

/// The target of a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Node {
    File(usize),
    Dir,
}

/// A change of names that a power cut may undo, and the directories that it changes.
#[derive(Clone)]
struct NameChange {
    dirs: Vec<PathBuf>,
    removed: Option<PathBuf>,
    added: Option<(PathBuf, Node)>,
}

type Names = BTreeMap<PathBuf, Node>;

#[derive(Default)]
struct State {
    /// The directory that existed from the beginning.
    root: PathBuf,
    inodes: Vec<Inode>,
    names: Names,
    durable_names: Names,
    unsynced_names: Vec<NameChange>,
    steps: u64,
    /// Every step from this one on fails: the power is off.
    power_off_at: Option<u64>,
    /// A call of this kind, counted down to 0, that fails, and its errno.
    fault: Option<(Call, u64, i32)>,
    /// Total bytes that all files may have.
    capacity: Option<usize>,
    /// What was removed since the beginning, including what a power cut restored.
    removed: Vec<(PathBuf, Vec<u8>)>,
    log: Vec<String>,
}

/// The disk; clones share it.
#[derive(Clone, Default)]
pub(crate) struct SimDisk {
    state: Arc<Mutex<State>>,
}

struct SimDir {
    state: Arc<Mutex<State>>,
    path: PathBuf,
}

struct SimFile {
    state: Arc<Mutex<State>>,
    inode: usize,
}

/// Which unsynced changes a power cut leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// None.
    Nothing,
    /// All bytes, but no name that was created, changed or removed.
    Bytes,
    /// All names, but no byte and no length.
    Names,
    /// Some of each.
    Some(u64),
}

/// Distinguishes a power cut from one failed call, which has an errno.
fn is_power_off(error: &io::Error) -> bool {
    error.raw_os_error().is_none()
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).to_owned()
}

impl State {
    /// Every call starts here: the power may be off, or this call may be the one that fails.
    fn step(&mut self, call: Call, what: impl FnOnce() -> String) -> io::Result<()> {
        if self.power_off_at.is_some_and(|off| self.steps >= off) {
            return Err(io::Error::other("the power is off"));
        }
        self.steps += 1;
        self.log.push(format!("{call:?} {}", what()));
        if let Some((kind, left, error)) = &mut self.fault
            && *kind == call
        {
            if *left == 0 {
                let error = *error;
                self.fault = None;
                self.log.push("FAULT".into());
                return Err(io::Error::from_raw_os_error(error));
            }
            *left -= 1;
        }
        Ok(())
    }

    fn change_names(&mut self, change: NameChange) {
        apply(&mut self.names, &change);
        self.unsynced_names.push(change);
    }

    fn file(&self, path: &Path) -> io::Result<usize> {
        match self.names.get(path) {
            Some(Node::File(inode)) => Ok(*inode),
            Some(Node::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let inode = self.file(from)?;
        if self.names.get(&parent(to)) != Some(&Node::Dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut dirs = vec![parent(from), parent(to)];
        dirs.dedup();
        self.change_names(NameChange {
            dirs,
            removed: Some(from.to_owned()),
            added: Some((to.to_owned(), Node::File(inode))),
        });
        Ok(())
    }

    fn room(&self) -> usize {
        let used: usize = self.inodes.iter().map(|inode| inode.live.len()).sum();
        self.capacity
            .map_or(usize::MAX, |all| all.saturating_sub(used))
    }
}

fn apply(names: &mut Names, change: &NameChange) {
    if let Some(path) = &change.removed {
        names.remove(path);
    }
    if let Some((path, node)) = &change.added {
        names.insert(path.clone(), *node);
    }
}

impl SimDisk {
    /// An empty disk on which `dir` exists durably.
    pub(crate) fn with_dir(dir: &Path) -> Self {
        let disk = Self::default();
        let mut state = disk.lock();
        dir.clone_into(&mut state.root);
        state.names.insert(dir.to_owned(), Node::Dir);
        state.durable_names.insert(dir.to_owned(), Node::Dir);
        drop(state);
        disk
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The number of steps so far.
    pub(crate) fn steps(&self) -> u64 {
        self.lock().steps
    }

    /// All calls in order: `SyncData 3`, `Rename data/a -> data/b`.
    pub(crate) fn log(&self) -> Vec<String> {
        self.lock().log.clone()
    }

    /// Turns the power off before step `step` (the first is 0), permanently.
    pub(crate) fn power_off_at(&self, step: u64) {
        let mut state = self.lock();
        let off = state.power_off_at.filter(|off| *off <= state.steps);
        state.power_off_at = off.or(Some(step));
    }

    /// Makes the call of this kind after `skip` others fail with this errno: a write writes only
    /// half of its bytes, a sync loses its bytes.
    pub(crate) fn fail(&self, call: Call, skip: u64, errno: i32) {
        self.lock().fault = Some((call, skip, errno));
    }

    /// Whether the call that was to fail has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.lock().fault.is_none()
    }

    /// Limits the total bytes of all files.
    pub(crate) fn set_capacity(&self, bytes: Option<usize>) {
        self.lock().capacity = bytes;
    }

    /// The disk after a power cut at this moment. Files that are open on the old disk stay on it.
    pub(crate) fn power_cut(&self, seed: u64) -> Self {
        self.cut(Cut::Some(seed))
    }

    /// As [`Self::power_cut`], with a choice of what is left.
    pub(crate) fn cut(&self, cut: Cut) -> Self {
        let (mut names_left, mut bytes_left) = match cut {
            Cut::Nothing => (Left::None, Left::None),
            Cut::Bytes => (Left::None, Left::All),
            Cut::Names => (Left::All, Left::None),
            Cut::Some(seed) => (
                Left::Some(Choices::new(seed)),
                Left::Some(Choices::new(!seed)),
            ),
        };
        let mut state = self.lock();
        state.power_off_at = Some(0);
        let mut names = state.durable_names.clone();
        let dirs: BTreeSet<_> = state.unsynced_names.iter().flat_map(|c| &c.dirs).collect();
        let mut left: BTreeMap<_, usize> = dirs
            .into_iter()
            .map(|dir| {
                let changes = state.unsynced_names.iter().filter(|c| c.dirs.contains(dir));
                (dir, names_left.of(changes.count()))
            })
            .collect();
        for change in &state.unsynced_names {
            if change.dirs.iter().all(|dir| left[dir] > 0) {
                apply(&mut names, change);
                for dir in &change.dirs {
                    *left.get_mut(dir).unwrap() -= 1;
                }
            } else {
                // A change that is undone in one directory is undone in the other, as are all later
                // ones.
                for dir in &change.dirs {
                    left.insert(dir, 0);
                }
            }
        }
        // The contents of a missing directory are missing; parents come before their entries.
        let mut kept = Names::new();
        for (path, node) in names {
            if path == state.root || kept.get(&parent(&path)) == Some(&Node::Dir) {
                kept.insert(path, node);
            }
        }
        let inodes = state
            .inodes
            .iter()
            .map(|inode| {
                let found = inode.after_cut(&mut bytes_left);
                Inode {
                    live: found.clone(),
                    durable: found,
                    ..Inode::default()
                }
            })
            .collect();
        Self::of(State {
            inodes,
            durable_names: kept.clone(),
            names: kept,
            root: state.root.clone(),
            capacity: state.capacity,
            removed: state.removed.clone(),
            ..State::default()
        })
    }

    /// The disk as the next process finds it after a kill: the page cache is complete, but unsynced
    /// changes are still unsynced.
    pub(crate) fn kill(&self) -> Self {
        let next = self.copy();
        self.lock().power_off_at = Some(0);
        next
    }

    fn of(state: State) -> Self {
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// An independent copy of the disk in the same state.
    pub(crate) fn copy(&self) -> Self {
        let state = self.lock();
        Self::of(State {
            inodes: state.inodes.clone(),
            names: state.names.clone(),
            durable_names: state.durable_names.clone(),
            unsynced_names: state.unsynced_names.clone(),
            root: state.root.clone(),
            capacity: state.capacity,
            removed: state.removed.clone(),
            ..State::default()
        })
    }

    /// Whether a directory exists. Not a step.
    pub(crate) fn is_dir(&self, path: &Path) -> bool {
        self.lock().names.get(path) == Some(&Node::Dir)
    }

    /// The bytes of a file as a reader sees them now; `None` if it does not exist. Not a step.
    pub(crate) fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.lock();
        let inode = state.file(path).ok()?;
        Some(state.inodes[inode].live.clone())
    }

    /// A change by another program while no process of ours runs: the file has this content,
    /// durably. Not a step.
    pub(crate) fn put(&self, path: &Path, bytes: &[u8]) {
        let mut state = self.lock();
        let inode = state.inodes.len();
        state.inodes.push(Inode {
            live: bytes.to_vec(),
            durable: bytes.to_vec(),
            ..Inode::default()
        });
        state.names.insert(path.to_owned(), Node::File(inode));
        state
            .durable_names
            .insert(path.to_owned(), Node::File(inode));
    }

    /// The same for the removal of a file. Not a step.
    pub(crate) fn take_away(&self, path: &Path) {
        let mut state = self.lock();
        state.names.remove(path);
        state.durable_names.remove(path);
    }

    /// Every file with its bytes at this moment. Not a step.
    pub(crate) fn contents(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let state = self.lock();
        let content = |(path, node): (&PathBuf, &Node)| match node {
            Node::File(inode) => Some((path.clone(), state.inodes[*inode].live.clone())),
            Node::Dir => None,
        };
        state.names.iter().filter_map(content).collect()
    }

    /// Every file that was ever removed, with its last bytes. Not a step.
    pub(crate) fn removed(&self) -> Vec<(PathBuf, Vec<u8>)> {
        self.lock().removed.clone()
    }

    /// The path of every file. Not a step.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        self.contents().into_iter().map(|(path, _)| path).collect()
    }

    fn handle(&self, inode: usize) -> Arc<dyn DiskFile> {
        Arc::new(SimFile {
            state: Arc::clone(&self.state),
            inode,
        })
    }
}

impl Disk for SimDisk {
    fn free_files(&self, _dir: &Path) -> io::Result<Option<u64>> {
        Ok(None)
    }

    fn count_again(&self) {}

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.lock();
        state.step(Call::Create, || path.display().to_string())?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if state.names.get(&parent(path)) != Some(&Node::Dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inode = state.inodes.len();
        state.inodes.push(Inode::default());
        state.change_names(NameChange {
            dirs: vec![parent(path)],
            removed: None,
            added: Some((path.to_owned(), Node::File(inode))),
        });
        drop(state);
        Ok(self.handle(inode))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.lock();
        state.step(Call::Open, || path.display().to_string())?;
        let inode = state.file(path)?;
        drop(state);
        Ok(self.handle(inode))
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.open(path)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.step(Call::Rename, || {
            format!("{} -> {}", from.display(), to.display())
        })?;
        if state.names.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.rename(from, to)
    }

    fn rename_over(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.step(Call::Rename, || {
            format!("{} => {}", from.display(), to.display())
        })?;
        state.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.step(Call::Remove, || path.display().to_string())?;
        let inode = state.file(path)?;
        let content = state.inodes[inode].live.clone();
        state.removed.push((path.to_owned(), content));
        state.change_names(NameChange {
            dirs: vec![parent(path)],
            removed: Some(path.to_owned()),
            added: None,
        });
        Ok(())
    }

    fn open_dir(&self, dir: &Path) -> io::Result<Box<dyn DiskDir>> {
        self.lock().step(Call::Open, || dir.display().to_string())?;
        Ok(Box::new(SimDir {
            state: Arc::clone(&self.state),
            path: dir.to_owned(),
        }))
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.step(Call::CreateDir, || dir.display().to_string())?;
        match state.names.get(dir) {
            Some(Node::Dir) => return Ok(()),
            Some(Node::File(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            None => {}
        }
        state.change_names(NameChange {
            dirs: vec![parent(dir)],
            removed: None,
            added: Some((dir.to_owned(), Node::Dir)),
        });
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<(String, bool)>> {
        let mut state = self.lock();
        state.step(Call::Look, || format!("list {}", dir.display()))?;
        let inside = state.names.iter().filter(|(path, _)| parent(path) == dir);
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        Ok(inside
            .map(|(path, node)| (name(path), *node == Node::Dir))
            .collect())
    }

    fn identity(&self, path: &Path) -> io::Result<Option<Identity>> {
        let mut state = self.lock();
        state.step(Call::Look, || format!("identity {}", path.display()))?;
        Ok(state.names.get(path).map(|node| match node {
            Node::File(inode) => (1, *inode as u64),
            Node::Dir => (1, u64::MAX),
        }))
    }

    /// The bytes of all files; names are left to the syncs of their directories.
    fn sync_file_system(&self, _dir: &Path) -> io::Result<bool> {
        let mut state = self.lock();
        let stepped = state.step(Call::SyncData, || "all".to_owned());
        for inode in &mut state.inodes {
            match stepped {
                Ok(()) => inode.sync(),
                Err(ref error) if is_power_off(error) => {}
                Err(_) => {
                    inode.unreported = !inode.unsynced.is_empty();
                    inode.fail_sync();
                }
            }
        }
        stepped.map(|()| true)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let mut state = self.lock();
        state.step(Call::Look, || format!("free {}", dir.display()))?;
        Ok(state.room() as u64)
    }

    fn capacity_bytes(&self, dir: &Path) -> io::Result<u64> {
        let mut state = self.lock();
        state.step(Call::Look, || format!("capacity {}", dir.display()))?;
        Ok(state.capacity.map_or(u64::MAX, |all| all as u64))
    }
}

impl SimFile {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl DiskDir for SimDir {
    fn sync(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.step(Call::SyncDir, || self.path.display().to_string())?;
        // A sync of names also makes durable what happened before in the directories that it
        // changes.
        let mut touched = BTreeSet::from([self.path.clone()]);
        let mut kept = Vec::new();
        let mut synced = Vec::new();
        for change in std::mem::take(&mut state.unsynced_names).into_iter().rev() {
            if change.dirs.iter().any(|dir| touched.contains(dir)) {
                touched.extend(change.dirs.iter().cloned());
                synced.push(change);
            } else {
                kept.push(change);
            }
        }
        for change in synced.iter().rev() {
            apply(&mut state.durable_names, change);
        }
        kept.reverse();
        state.unsynced_names = kept;
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn release_cache(&self, _to: u64) {}

    /// There is one process.
    fn try_lock(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn unlock(&self) {}

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.lock();
        state.step(Call::Look, || format!("read {}", self.inode))?;
        let live = &state.inodes[self.inode].live;
        let from = usize::try_from(offset).unwrap().min(live.len());
        let count = buf.len().min(live.len() - from);
        buf[..count].copy_from_slice(&live[from..from + count]);
        Ok(count)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.lock();
        let offset = usize::try_from(offset).unwrap();
        let room = state.room();
        let stepped = state.step(Call::Write, || format!("{} {offset}", self.inode));
        let inode = &mut state.inodes[self.inode];
        match stepped {
            Err(error) if is_power_off(&error) => Err(error),
            Err(error) => {
                inode.write(&bytes[..bytes.len() / 2], offset);
                Err(error)
            }
            Ok(()) => {
                let grows = (offset + bytes.len()).saturating_sub(inode.live.len());
                let fits = bytes.len() - grows.saturating_sub(room).min(bytes.len());
                inode.write(&bytes[..fits], offset);
                if fits < bytes.len() {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                Ok(())
            }
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.lock();
        let stepped = state.step(Call::SyncData, || self.inode.to_string());
        let inode = &mut state.inodes[self.inode];
        match stepped {
            Ok(()) if std::mem::take(&mut inode.unreported) => {
                return Err(io::Error::from_raw_os_error(EIO));
            }
            Ok(()) => inode.sync(),
            Err(ref error) if is_power_off(error) => {}
            Err(_) => inode.fail_sync(),
        }
        stepped
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.lock();
        state.step(Call::SetLen, || format!("{} {len}", self.inode))?;
        state.inodes[self.inode].set_len(usize::try_from(len).unwrap());
        Ok(())
    }

    fn stat(&self) -> io::Result<FileStat> {
        let mut state = self.lock();
        state.step(Call::Look, || format!("stat {}", self.inode))?;
        let here = Node::File(self.inode);
        Ok(FileStat {
            identity: (1, self.inode as u64),
            size: state.inodes[self.inode].live.len() as u64,
            links: state.names.values().filter(|node| **node == here).count() as u64,
        })
    }
}
