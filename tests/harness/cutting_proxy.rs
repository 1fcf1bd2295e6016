//! A TCP proxy that cuts connections to PostgreSQL: before a COMMIT is forwarded, after it was forwarded and
//! before its answer is, or at a random byte.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// A running proxy. Its threads end with their connections; the listener ends on drop.
pub(crate) struct CuttingProxy {
    pub(crate) port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    target: AtomicU16,
    cutting: AtomicBool,
    closed: AtomicBool,
    before_commit: AtomicU64,
    after_commit: AtomicU64,
    at_random: AtomicU64,
    random: Mutex<fastrand::Rng>,
}

/// When a connection is cut.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// When the client has sent this many COMMITs: the last one is not forwarded.
    BeforeCommit(u32),
    /// The same, but it is forwarded, and its answer is not.
    AfterCommit(u32),
    /// After this many bytes from the client.
    FromClient(usize),
    /// After this many bytes from the server.
    FromServer(usize),
}

impl CuttingProxy {
    /// Forwards to a port of this machine; cuts nothing until [`CuttingProxy::cut`].
    pub(crate) fn start(target: u16, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            target: AtomicU16::new(target),
            cutting: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            before_commit: AtomicU64::new(0),
            after_commit: AtomicU64::new(0),
            at_random: AtomicU64::new(0),
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.closed.load(Ordering::SeqCst) {
                    return;
                }
                let target = accepting.target.load(Ordering::SeqCst);
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else {
                    continue;
                };
                forward(client, server, &accepting);
            }
        });
        Self { port, shared }
    }

    /// New connections go to another port.
    pub(crate) fn switch_to(&self, target: u16) {
        self.shared.target.store(target, Ordering::SeqCst);
    }

    /// Whether new connections are cut.
    pub(crate) fn cut(&self, cutting: bool) {
        self.shared.cutting.store(cutting, Ordering::SeqCst);
    }

    /// Connections cut before a COMMIT, after one, and elsewhere.
    pub(crate) fn cuts(&self) -> (u64, u64, u64) {
        let load = |count: &AtomicU64| count.load(Ordering::SeqCst);
        let shared = &self.shared;
        (
            load(&shared.before_commit),
            load(&shared.after_commit),
            load(&shared.at_random),
        )
    }

    /// The URL of a database behind it.
    pub(crate) fn url(&self, database: &str) -> String {
        format!(
            "postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable",
            self.port
        )
    }
}

impl Drop for CuttingProxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        let _wake = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    /// When the next connection is cut; `None` if never.
    fn next_cut(&self) -> Option<Cut> {
        if !self.cutting.load(Ordering::SeqCst) {
            return None;
        }
        let mut random = self.random.lock().unwrap();
        Some(match random.u8(0..4) {
            0 => Cut::BeforeCommit(random.u32(1..4)),
            1 => Cut::AfterCommit(random.u32(1..4)),
            // The log-in takes about 100 bytes from the client and 400 from the server.
            2 => Cut::FromClient(random.usize(0..8_000)),
            _ => Cut::FromServer(random.usize(0..4_000)),
        })
    }
}

fn forward(client: TcpStream, server: TcpStream, shared: &Arc<Shared>) {
    let cut = shared.next_cut();
    let both = Arc::new((client, server));
    for from_client in [true, false] {
        let (both, shared) = (Arc::clone(&both), Arc::clone(shared));
        thread::spawn(move || {
            let counter = if from_client {
                pump_client(&both, cut, &shared)
            } else {
                pump_server(&both, cut, &shared)
            };
            if let Some(counter) = counter {
                counter.fetch_add(1, Ordering::SeqCst);
            }
            let _closed = both.0.shutdown(Shutdown::Both);
            let _closed = both.1.shutdown(Shutdown::Both);
        });
    }
}

type Both = (TcpStream, TcpStream);

/// Forwards to the server until a connection ends or is cut; returns the counter of a cut.
fn pump_client<'s>(both: &Both, cut: Option<Cut>, shared: &'s Shared) -> Option<&'s AtomicU64> {
    let (mut client, mut server) = (&both.0, &both.1);
    let mut block = vec![0; 64 << 10];
    let (mut bytes, mut commits) = (0, 0);
    loop {
        let count = client.read(&mut block).ok().filter(|&count| count > 0)?;
        let block = &block[..count];
        bytes += count;
        // A simple query; the client sends it in one piece.
        let commit = block.windows(7).any(|window| window == b"COMMIT\0");
        commits += u32::from(commit);
        match cut {
            Some(Cut::BeforeCommit(after)) if commit && commits >= after => {
                return Some(&shared.before_commit);
            }
            Some(Cut::AfterCommit(after)) if commit && commits >= after => {
                // The client's side ends first, so that the answer does not reach it.
                let _closed = client.shutdown(Shutdown::Both);
                server.write_all(block).ok()?;
                // Wait for the answer, so that the commit is certain.
                let _answer = server.read(&mut [0; 512]);
                return Some(&shared.after_commit);
            }
            Some(Cut::FromClient(after)) if bytes >= after => {
                let _half = server.write_all(&block[..count / 2]);
                return Some(&shared.at_random);
            }
            _ => server.write_all(block).ok()?,
        }
    }
}

fn pump_server<'s>(both: &Both, cut: Option<Cut>, shared: &'s Shared) -> Option<&'s AtomicU64> {
    let (mut client, mut server) = (&both.0, &both.1);
    let mut block = vec![0; 64 << 10];
    let mut bytes = 0;
    loop {
        let count = server.read(&mut block).ok().filter(|&count| count > 0)?;
        bytes += count;
        if matches!(cut, Some(Cut::FromServer(after)) if bytes >= after) {
            let _half = client.write_all(&block[..count / 2]);
            return Some(&shared.at_random);
        }
        client.write_all(&block[..count]).ok()?;
    }
}
