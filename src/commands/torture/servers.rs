//! The servers under test, each with a data directory.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use super::trial::{PATIENCE, Trial};

/// Those that do not run are `None`. The others are killed when this is dropped.
pub(super) struct Servers(Vec<Option<Server>>);

struct Server {
    child: Child,
    port: u16,
}

impl Servers {
    pub(super) fn new(count: usize) -> Self {
        Self((0..count).map(|_| None).collect())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Starts the servers that do not run. Returns the ports of all.
    pub(super) fn serving(&mut self, trial: &mut Trial) -> anyhow::Result<Vec<u16>> {
        (0..self.0.len()).map(|at| self.port(at, trial)).collect()
    }

    /// The port of a server, which is started if it does not run.
    fn port(&mut self, at: usize, trial: &mut Trial) -> anyhow::Result<u16> {
        let log = trial.log(&server_name(at));
        if let Some(server) = &mut self.0[at] {
            match server.child.try_wait()? {
                None => return Ok(server.port),
                Some(status) => bail!(
                    "the server ended unexpectedly ({status}); see {}",
                    log.display()
                ),
            }
        }
        let port_file = trial.dir.join(format!("port{at}"));
        drop(fs::remove_file(&port_file));
        let began = Instant::now();
        let mut child = trial
            .command(&server_name(at))?
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(["--rotate-size", "256KiB", "--flush-interval", "50ms"])
            .args(["--rotate-interval", "1s", "--data-dir"])
            .arg(trial.data_dir(at))
            .arg("--port-file")
            .arg(&port_file)
            .spawn()
            .context("cannot start the server")?;
        let port = await_port(&mut child, &port_file, began, &log)?;
        trial.figures.starts += 1;
        trial.figures.slowest_start = trial.figures.slowest_start.max(began.elapsed());
        self.0[at] = Some(Server { child, port });
        Ok(port)
    }

    /// Kills all servers, or one.
    pub(super) fn kill(&mut self, all: bool, trial: &mut Trial) -> anyhow::Result<()> {
        let one = trial.random.u64(..self.0.len() as u64);
        for (at, server) in self.0.iter_mut().enumerate() {
            if !all && at as u64 != one {
                continue;
            }
            if let Some(mut server) = server.take() {
                server.child.kill()?;
                server.child.wait()?;
                trial.figures.server_kills += 1;
            }
        }
        Ok(())
    }

    /// Stops all servers with SIGTERM.
    pub(super) fn stop(&mut self, trial: &Trial) -> anyhow::Result<()> {
        for at in 0..self.0.len() {
            let Some(mut server) = self.0[at].take() else {
                continue;
            };
            let pid = rustix::process::Pid::from_child(&server.child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
            let status = server.child.wait()?;
            // 1: events are not applied, because the shared database is away. `apply_rest` applies them.
            let may_fail = trial.database.is_some() && status.code() == Some(1);
            ensure!(
                status.success() || may_fail,
                "the server ended with {status} after SIGTERM; see {}",
                trial.log(&server_name(at)).display()
            );
        }
        Ok(())
    }

    /// Applies what the servers could not apply before they stopped, because the shared database was away.
    pub(super) fn apply_rest(&self, trial: &Trial) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let log = trial.log("process");
        let log = log.display();
        let mut waits = false;
        for at in 0..self.0.len() {
            let data_dir = trial.data_dir(at);
            let mut process = trial.command("process")?;
            process.args(["process", "--data-dir"]).arg(&data_dir);
            while !process.status()?.success() {
                let dir = data_dir.display();
                ensure!(
                    Instant::now() < deadline,
                    "cannot apply the events of {dir}; see {log}"
                );
                if !waits {
                    tracing::warn!("waiting until the events can be applied; see {log}");
                    waits = true;
                }
                std::thread::sleep(Duration::from_millis(200));
            }
        }
        Ok(())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for server in self.0.iter_mut().flatten() {
            drop(server.child.kill());
            drop(server.child.wait());
        }
    }
}

/// The name of a server's log.
fn server_name(at: usize) -> String {
    match at {
        0 => "server".to_owned(),
        at => format!("server-{}", at + 1),
    }
}

/// Waits until a server that was started at `began` has written its port.
fn await_port(
    child: &mut Child,
    port_file: &Path,
    began: Instant,
    log: &Path,
) -> anyhow::Result<u16> {
    loop {
        let text = fs::read_to_string(port_file).ok();
        if let Some(port) = text.and_then(|text| text.trim().parse().ok()) {
            return Ok(port);
        }
        if let Some(status) = child.try_wait()? {
            bail!(
                "the server could not start ({status}); see {}",
                log.display()
            );
        }
        ensure!(
            began.elapsed() < PATIENCE,
            "the server did not start in time; see {}",
            log.display()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}
