//! The HTTP server: it ingests events and returns totals.
//!
//! The composition root starts a [`Server`] with an [`App`] (what it serves) and an [`HttpConfig`]
//! (its settings), and stops it. The modules:
//!
//! - [`engine`]: HTTP on the wire; it owns all threads but one (see [`history`]) and documents their rules
//! - [`routes`]: the handlers of all paths
//! - [`intake`], [`cloudevents`]: the formats of event bodies
//! - [`problem`]: the format of errors
//! - [`auth`]: tokens, hosts and origins
//! - [`counters`], [`metrics`]: the server's counters, and all metrics in the Prometheus format
//! - [`history`], [`refused`]: the counters of the last 15 minutes; the newest refused requests
//! - [`page`]: the status page
//!
//! The server appends to the journal, reads the database and waits for positions of
//! [`Progress`]. It does not depend on the processor, which applies the events.

mod auth;
pub mod cloudevents;
pub mod counters;
pub mod engine;
mod history;
pub mod intake;
pub mod metrics;
mod node_json;
mod page;
mod problem;
mod refused;
mod routes;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

pub use auth::{Access, AuthError, is_loopback};
use auth::{Listening, Tokens};
pub use engine::Limits;
use engine::{Blocking, Engine, EngineError};
use history::Sampler;
#[cfg(feature = "postgres")]
pub(crate) use node_json::NodeJson;
use refused::RefusedRequests;
use routes::{Files, Inner, Lookups, Routes};
use uuid::Uuid;

use crate::data_dir::disk::Disk;
use crate::health::Health;
use crate::journal::Journal;
use crate::other_nodes::NodeWaits;
use crate::progress::Progress;
use crate::store::Readers;

/// The settings of a [`Server`].
#[derive(Debug)]
pub struct HttpConfig {
    /// The address to listen on; port 0 chooses a free port.
    pub listen: SocketAddr,
    /// The host name that the address was configured with; accepted as `Host`, like the address.
    /// `None` if the address was given in digits.
    pub host_name: Option<String>,
    /// Whether requests need a token.
    pub access: Access,
    /// Bounds of the engine. [`Limits::body_bytes_max`] holds for a body as sent, and for a compressed
    /// body also after decompression.
    pub limits: Limits,
}

/// The parts of the program that the server uses.
pub struct App {
    /// Stores the events of requests.
    pub journal: Journal,
    /// Reads totals and segments from the database.
    pub readers: Readers,
    /// Reports the applied positions.
    pub progress: Arc<Progress>,
    /// Waits for positions of other nodes; `None` if the database is not shared.
    pub other_nodes: Option<Arc<NodeWaits>>,
    /// The reasons of `/readyz`. The server sets and clears the topic `http`.
    pub health: Arc<Health>,
    /// The file system, for `/segments` and the metrics.
    pub disk: Arc<dyn Disk>,
    /// The path of the data directory.
    pub data_dir: PathBuf,
    /// Returns the number of log lines that could not be written.
    pub lost_log_lines: fn() -> u64,
    /// The identifier of the data directory, which stays the same when the directory is moved.
    pub directory: Uuid,
}

/// Why a [`Server`] cannot start.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address is not a loopback address, and neither tokens nor [`Access::Anyone`] are configured.
    #[error(
        "cannot serve {0} without a token: other machines can reach this address; give --token-file FILE, or --no-auth to allow every client"
    )]
    Exposed(SocketAddr),
    /// The token file cannot be used.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The engine cannot start.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The thread that samples the counters cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

/// A running server. It serves until [`Self::stop`]; dropping it does not stop it.
pub struct Server {
    engine: Engine,
    inner: Arc<Inner>,
    _sampler: Sampler,
}

impl Server {
    /// Starts the server. When this returns, the port answers.
    pub fn start(config: HttpConfig, app: App) -> Result<Self, HttpError> {
        let tokens = match &config.access {
            Access::TokenFile(path) => Some(Tokens::read(path)?),
            Access::Loopback | Access::Anyone => None,
        };
        let address = config.listen;
        if config.access == Access::Loopback && !is_loopback(address.ip()) {
            return Err(HttpError::Exposed(address));
        }
        let inner = Arc::new(Inner {
            journal: app.journal,
            progress: app.progress,
            other_nodes: app.other_nodes,
            health: app.health,
            readers: Blocking::new(app.readers),
            lookups: Lookups::default(),
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
            history: Arc::default(),
            refused: RefusedRequests::default(),
            body_bytes_max: config.limits.body_bytes_max,
            stopping: AtomicBool::new(false),
            started_at: SystemTime::now(),
        });
        let routes = Routes {
            inner: Arc::clone(&inner),
        };
        let (history, of) = (Arc::clone(&inner.history), Arc::clone(&inner));
        let sampler = Sampler::start(history, move || routes::status::sample(&of))
            .map_err(HttpError::Thread)?;
        let engine = Engine::start(config.listen, config.limits, Arc::new(routes))?;
        Ok(Self {
            engine,
            inner,
            _sampler: sampler,
        })
    }

    /// The bound address; its port is never 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.engine.local_addr()
    }

    /// Reads the token file again and returns the number of valid tokens, or `None` if the server
    /// has no token file. After an error the tokens stay as they were.
    pub fn reload_tokens(&self) -> Result<Option<usize>, AuthError> {
        self.inner.tokens.as_ref().map(Tokens::reload).transpose()
    }

    /// Stops accepting, answers the requests of accepted connections, and closes all connections.
    /// The journal and the processor must still run, because handlers wait for them. Takes at most
    /// [`Limits::drain_time`] and 1.5 s.
    pub fn stop(self) {
        self.inner.stopping.store(true, Ordering::Relaxed);
        self.engine.stop();
    }
}
