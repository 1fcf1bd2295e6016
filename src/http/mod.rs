//! The front door: events in over HTTP, totals out.
//!
//! [`Server`] is all that the composition root needs: start it with an [`App`] (what it serves)
//! and an [`HttpConfig`] (how), ask where it listens, stop it. Inside, [`engine`] is the wire,
//! [`routes`] the calls, [`intake`] and [`cloudevents`] what a body means, [`problem`] how errors
//! look, [`auth`] who may ask, [`counters`] what is counted, [`metrics`] how that is shown to
//! machines and [`page`] to people. Threads and their rules are told in [`engine`].
//!
//! The front door knows the journal and the store, and nothing of who applies what it takes.

mod auth;
pub mod cloudevents;
pub mod counters;
pub mod engine;
pub mod intake;
pub mod metrics;
mod page;
mod problem;
mod routes;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

pub use auth::{Access, AuthError, TOKEN_BYTES_MAX, is_loopback};
use auth::{Listening, Tokens};
pub use counters::Counters;
use engine::{Blocking, Engine, EngineError};
pub use engine::{Figures, Limits, Listen};
use routes::{Files, Inner, Routes};
use uuid::Uuid;

use crate::data_dir::disk::Disk;
use crate::health::Health;
use crate::journal::Journal;
use crate::progress::Progress;
use crate::store::Readers;

/// How to serve.
#[derive(Debug)]
pub struct HttpConfig {
    /// Where to listen.
    pub listen: Listen,
    /// The host name that stands for that address, if one was asked for: a `Host` like the address.
    pub host_name: Option<String>,
    /// Who may ask.
    pub access: Access,
    /// Bounds; [`Limits::body_bytes_max`] holds for a body as sent and, if it was, as inflated.
    pub limits: Limits,
}

/// What is served.
pub struct App {
    /// Takes the events.
    pub journal: Journal,
    /// Reads the totals.
    pub readers: Readers,
    /// Tells what was applied.
    pub progress: Arc<Progress>,
    /// Tells what is broken; the topic `http` is ours.
    pub health: Arc<Health>,
    /// Looks at the files, for `/segments` and the metrics.
    pub disk: Arc<dyn Disk>,
    /// Where they lie.
    pub data_dir: PathBuf,
    /// How many log lines could not be written.
    pub lost_log_lines: fn() -> u64,
    /// The name of that directory, wherever it is moved to.
    pub directory: Uuid,
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Anyone on the network could write, and nobody said that this is meant.
    #[error(
        "{0} can be reached from other machines, and no token is asked for: give --token-file FILE, or --no-auth if that is meant"
    )]
    Exposed(SocketAddr),
    /// The tokens.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// A running server. Stop it with [`Self::stop`]; dropped, it goes on serving.
pub struct Server {
    engine: Engine,
    inner: Arc<Inner>,
}

impl Server {
    /// Starts serving. When it returns, the port answers.
    pub fn start(config: HttpConfig, app: App) -> Result<Self, HttpError> {
        let tokens = match &config.access {
            Access::TokenFile(path) => Some(Tokens::read(path)?),
            Access::Loopback | Access::Anyone => None,
        };
        let address = match &config.listen {
            Listen::Address(address) => *address,
            Listen::Bound(listener) => listener.local_addr().map_err(EngineError::Listener)?,
        };
        if config.access == Access::Loopback && !is_loopback(address.ip()) {
            return Err(HttpError::Exposed(address));
        }
        let inner = Arc::new(Inner {
            journal: app.journal,
            progress: app.progress,
            health: app.health,
            readers: Blocking::new(app.readers),
            files: Blocking::new(Files {
                disk: app.disk,
                data_dir: app.data_dir,
            }),
            tokens,
            listening: Listening {
                ip: address.ip(),
                name: config.host_name,
            },
            directory: app.directory,
            lost_log_lines: app.lost_log_lines,
            counters: Arc::default(),
            body_bytes_max: config.limits.body_bytes_max,
            stopping: AtomicBool::new(false),
            started_at: SystemTime::now(),
        });
        let routes = Routes {
            inner: Arc::clone(&inner),
        };
        let engine = Engine::start(config.listen, config.limits, Arc::new(routes))?;
        Ok(Self { engine, inner })
    }

    /// Where it listens, with the port that was picked.
    pub fn local_addr(&self) -> SocketAddr {
        self.engine.local_addr()
    }

    /// What it counts.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.inner.counters)
    }

    /// Figures of the engine.
    pub fn figures(&self) -> Figures {
        self.engine.figures()
    }

    /// Reads the token file again; says how many tokens are in force now, `None` without a token
    /// file. On an error those in force stay.
    pub fn reload_tokens(&self) -> Result<Option<usize>, AuthError> {
        self.inner.tokens.as_ref().map(Tokens::reload).transpose()
    }

    /// Stops accepting, answers what was accepted, ends all connections. The journal and the
    /// progress must still be running. Takes at most [`Limits::drain_time`] and a second and a half.
    pub fn stop(self) {
        self.inner.stopping.store(true, Ordering::Relaxed);
        self.engine.stop();
    }
}
