//! A request to stop: by a signal, or because a part failed. Wakes everyone who waits on it.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};

/// Cheap to clone; all clones stop together.
#[derive(Clone, Debug)]
pub struct Shutdown {
    /// Dropped to stop: a channel without senders wakes all its receivers.
    held: Arc<Mutex<Option<Sender<Infallible>>>>,
    stopped: Receiver<Infallible>,
}

impl Default for Shutdown {
    fn default() -> Self {
        let (held, stopped) = bounded(0);
        Self {
            held: Arc::new(Mutex::new(Some(held))),
            stopped,
        }
    }
}

impl Shutdown {
    /// Stops at the first SIGINT or SIGTERM; a second one ends the process at once, as if
    /// neither were caught.
    pub fn on_signals() -> io::Result<Self> {
        let stop = Self::default();
        let armed = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register_conditional_default(signal, Arc::clone(&armed))?;
            signal_hook::flag::register(signal, Arc::clone(&armed))?;
        }
        let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
        let asked = stop.clone();
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                if signals.forever().next().is_some() {
                    asked.request();
                }
            })?;
        Ok(stop)
    }

    /// Asks everyone to stop.
    pub fn request(&self) {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    /// Whether to stop.
    pub fn requested(&self) -> bool {
        self.stopped.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Waits that long, or until asked to stop: true if so.
    pub fn wait(&self, time: Duration) -> bool {
        self.stopped.recv_timeout(time) == Err(RecvTimeoutError::Disconnected)
    }

    /// For `select!`: becomes ready when asked to stop, and never carries anything.
    pub fn channel(&self) -> &Receiver<Infallible> {
        &self.stopped
    }
}

/// A write past the limit on file sizes (`ulimit -f`) fails with EFBIG from now on, as on a full disk;
/// unless its signal is caught, it ends the process.
pub fn outlive_file_size_limit() -> io::Result<()> {
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
    Ok(())
}

/// SIGHUP as messages: read again what can be read again.
pub fn reloads() -> io::Result<Receiver<()>> {
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP])?;
    let (sender, reloads) = bounded(1);
    std::thread::Builder::new()
        .name("reloads".to_owned())
        .spawn(move || {
            for _signal in &mut signals {
                // One that waits already will read what this one is about.
                let _waiting = sender.try_send(());
            }
        })?;
    Ok(reloads)
}
