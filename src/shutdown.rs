//! The shutdown token: requested by a signal, or by a component that failed. It wakes every thread
//! that waits for it. Also the other signals that the program handles.

use std::convert::Infallible;
use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};

/// A request to shut down, shared by all its clones. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Shutdown {
    /// `None` once shutdown was requested: a channel without senders wakes all its receivers.
    sender: Arc<Mutex<Option<Sender<Infallible>>>>,
    receiver: Receiver<Infallible>,
}

impl Default for Shutdown {
    fn default() -> Self {
        let (sender, receiver) = bounded(0);
        Self {
            sender: Arc::new(Mutex::new(Some(sender))),
            receiver,
        }
    }
}

impl Shutdown {
    /// A token that the first SIGINT or SIGTERM requests. A second signal terminates the process at
    /// once, which is the default action of both signals.
    ///
    /// # Errors
    /// A signal handler cannot be installed, or the thread `signals` cannot be started.
    pub fn on_signals() -> io::Result<Self> {
        Self::on(&[SIGINT, SIGTERM])
    }

    /// As [`Self::on_signals`], and also on SIGHUP, which a terminal sends when it is closed. Under
    /// `nohup`, which has it ignored, SIGHUP has no effect.
    ///
    /// # Errors
    /// As for [`Self::on_signals`].
    pub fn on_signals_and_hangup() -> io::Result<Self> {
        if is_ignored(SIGHUP) {
            return Self::on_signals();
        }
        Self::on(&[SIGINT, SIGTERM, SIGHUP])
    }

    fn on(stopping: &[i32]) -> io::Result<Self> {
        let shutdown = Self::default();
        let armed = Arc::new(AtomicBool::new(false));
        for &signal in stopping {
            signal_hook::flag::register_conditional_default(signal, Arc::clone(&armed))?;
            signal_hook::flag::register(signal, Arc::clone(&armed))?;
        }
        let mut signals = signal_hook::iterator::Signals::new(stopping)?;
        let requested = shutdown.clone();
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                if signals.forever().next().is_some() {
                    requested.request();
                }
            })?;
        Ok(shutdown)
    }

    /// Requests the shutdown. A second call has no effect.
    pub fn request(&self) {
        self.sender
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    /// Whether the shutdown was requested.
    pub fn requested(&self) -> bool {
        self.receiver.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Waits until the shutdown is requested, for at most `time`; true if it was requested.
    pub fn wait(&self, time: Duration) -> bool {
        self.receiver.recv_timeout(time) == Err(RecvTimeoutError::Disconnected)
    }

    /// A channel for `select!`. It carries no message and is disconnected by the request.
    pub fn channel(&self) -> &Receiver<Infallible> {
        &self.receiver
    }
}

/// Catches SIGXFSZ, so that a write past the file size limit (`ulimit -f`) fails with EFBIG and is
/// handled like a full disk. Without this, the signal terminates the process.
///
/// # Errors
/// The signal handler cannot be installed.
pub fn outlive_file_size_limit() -> io::Result<()> {
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
    Ok(())
}

/// Whether the process was started with the signal ignored.
fn is_ignored(signal: i32) -> bool {
    let status = crate::data_dir::disk::read_to_string(Path::new("/proc/self/status"));
    let status = status.unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

/// Which of stdin, stdout and stderr are terminals. A closed terminal is none.
fn terminals() -> [bool; 3] {
    [
        io::stdin().is_terminal(),
        io::stdout().is_terminal(),
        io::stderr().is_terminal(),
    ]
}

/// A channel with a message for each SIGHUP, the request to reload files. A signal that arrives while
/// a message is queued adds none. If the signal came because the terminal of the process was closed,
/// the shutdown is requested instead.
///
/// # Errors
/// The signal handler cannot be installed, or the thread `reloads` cannot be started.
pub fn reloads(shutdown: &Shutdown) -> io::Result<Receiver<()>> {
    let at_start = terminals();
    let shutdown = shutdown.clone();
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP])?;
    let (sender, reloads) = bounded(1);
    std::thread::Builder::new()
        .name("reloads".to_owned())
        .spawn(move || {
            for _signal in &mut signals {
                if at_start != terminals() {
                    tracing::warn!("the terminal was closed");
                    shutdown.request();
                    return;
                }
                // The reload of a queued message comes after this signal as well.
                let _full = sender.try_send(());
            }
        })?;
    Ok(reloads)
}
