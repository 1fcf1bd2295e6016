//! Ending a connection whose socket the library keeps to itself.
//!
//! Defect 3 again: there is no way to close a connection from outside the library, so a stalled
//! upload or a client that never reads would hold its threads for as long as it likes. Its socket
//! is a descriptor of this process, though, whose number `/proc` tells, and Linux (5.6) lends a
//! process its own descriptors by number (`pidfd_getfd`), in safe code. We borrow the socket that has
//! the peer's address and shut it down; whoever is blocked in it then wakes with an end of file. The
//! filters of containers forbid that call: there we send the descriptor to ourselves (`SCM_RIGHTS`).
//! Where there is no `/proc`, the sockets' own timeouts remain.
//!
//! Only sockets are ever borrowed: closing a borrowed descriptor of a *file* would drop the
//! process's POSIX locks on it, and `SQLite`'s with them. What turns out to be no socket after all
//! (its number was given out anew in between) is left open rather than closed.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixDatagram;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use socket2::{SockFilter, SockRef};

/// Which socket: unique among those that are open.
pub(super) type Inode = u64;

/// A packet filter of one instruction, `BPF_RET | BPF_K` (`linux/filter.h`): one byte of each segment
/// is let through, and the kernel never cuts off its header.
const HEADER_ONLY: SockFilter = SockFilter::new(0x06, 0, 0, 1);

/// A connection that was found, as a descriptor of our own.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) inode: Inode,
    socket: TcpStream,
}

impl Found {
    /// Whether its client is still there.
    pub(super) fn is_connected(&self) -> bool {
        self.socket.peer_addr().is_ok()
    }

    /// Ends it for good. A client that sends and never looks, with the window full, would learn of
    /// an orderly end after a minute; of a reset it learns at once.
    pub(super) fn reset(self) {
        let _best_effort = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
        let _gone_already = self.socket.shutdown(Shutdown::Both);
    }

    /// Has nothing more come from it. A socket that is shut down for reading takes what comes all the
    /// same, and whoever reads faster than the client sends, and is never at the end just then, reads on:
    /// twenty thousand requests were seen. So all that comes is cut down to its TCP header, for
    /// acknowledgements of what is written to it. Where that can't be, it is shut down altogether.
    fn deafen(&self) {
        let filtered = SockRef::from(&self.socket).attach_filter(&[HEADER_ONLY]);
        let how = if filtered.is_ok() {
            Shutdown::Read
        } else {
            Shutdown::Both
        };
        let _gone_already = self.socket.shutdown(how);
        let _what_is_left_is_not_much = drained(&self.socket);
    }

    /// The same, with what was received and not yet read.
    fn reset_unread(self) {
        let _gone_already = self.socket.shutdown(Shutdown::Read);
        let _what_is_left_is_not_much = drained(&self.socket);
        self.reset();
    }
}

/// Finds and ends connections of one listening port.
#[derive(Debug)]
pub(super) struct Sever {
    port: u16,
    /// `None` where the system does not lend.
    lender: Option<Lender>,
}

/// Gives out this process's descriptors by number.
#[derive(Debug)]
enum Lender {
    /// The process itself.
    Process(OwnedFd),
    /// One end to send from and one to receive at, a message at a time. Many who lend at once, as in a
    /// flood, wait for each other: a flood is shed within seconds instead of moments.
    Mail(Mutex<(UnixDatagram, UnixDatagram)>),
}

impl Lender {
    fn new() -> io::Result<Self> {
        std::fs::read_dir("/proc/self/fd")?;
        if let Ok(process) = pidfd_open(getpid(), PidfdFlags::empty()) {
            let number = process.as_raw_fd();
            let lender = Self::Process(process);
            if lender.lend(number).is_ok() {
                return Ok(lender);
            }
        }
        Self::by_mail()
    }

    fn by_mail() -> io::Result<Self> {
        let (from, to) = UnixDatagram::pair()?;
        from.set_nonblocking(true)?;
        to.set_nonblocking(true)?;
        Ok(Self::Mail(Mutex::new((from, to))))
    }

    /// Another descriptor of what `number` is; an error where it is none.
    fn lend(&self, number: RawFd) -> io::Result<OwnedFd> {
        let ends = match self {
            Self::Process(process) => {
                return Ok(pidfd_getfd(process, number, PidfdGetfdFlags::empty())?);
            }
            Self::Mail(ends) => ends.lock().unwrap_or_else(PoisonError::into_inner),
        };
        let (from, to) = &*ends;
        let byte = [IoSlice::new(&[0])];
        let rights = [ControlMessage::ScmRights(&[number])];
        sendmsg::<()>(from.as_raw_fd(), &byte, &rights, MsgFlags::empty(), None)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut received = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let into = &mut [IoSliceMut::new(&mut byte)];
        recvmsg(to, into, &mut received, RecvFlags::CMSG_CLOEXEC)?;
        let lent = received.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut lent) => lent.next(),
            _ => None,
        });
        lent.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Sever {
    /// For the connections of the listener at `local`.
    pub(super) fn new(local: SocketAddr) -> Self {
        let lender = Lender::new();
        if let Err(error) = &lender {
            tracing::warn!(%error, "hostile connections can't be ended before their time-outs");
        }
        Self {
            port: local.port(),
            lender: lender.ok(),
        }
    }

    /// Whether connections can be ended from here at all.
    pub(super) fn works(&self) -> bool {
        self.lender.is_some()
    }

    /// Shuts `peer`'s connection down, if it is found.
    pub(super) fn peer(&self, peer: SocketAddr, how: Shutdown) -> Option<Found> {
        let found = self.find(peer)?;
        found.socket.shutdown(how).is_ok().then_some(found)
    }

    /// Has nothing more read from `peer`, what was received and not yet read included: the library
    /// would go on for as long as there is any. What is written to it still gets there.
    pub(super) fn deafen(&self, peer: SocketAddr) {
        if let Some(found) = self.find(peer) {
            found.deafen();
        }
    }

    /// `peer`'s connection.
    pub(super) fn find(&self, peer: SocketAddr) -> Option<Found> {
        let mut found = None;
        self.sockets(|socket, inode| {
            let theirs = socket.peer_addr().is_ok_and(|addr| addr == peer);
            found = theirs.then_some(Found { inode, socket });
            theirs
        });
        found
    }

    /// All sockets that this process has open, of whatever kind.
    pub(super) fn open() -> HashSet<Inode> {
        let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
            return HashSet::new();
        };
        let links = entries.flatten().flat_map(|e| std::fs::read_link(e.path()));
        links
            .filter_map(|link| {
                let text = link.to_str()?.strip_prefix("socket:[")?;
                text.strip_suffix(']')?.parse().ok()
            })
            .collect()
    }

    /// All connections of the port, each with its peer.
    pub(super) fn list(&self) -> Vec<(Inode, SocketAddr)> {
        let mut list = Vec::new();
        self.sockets(|socket, inode| {
            list.extend(socket.peer_addr().ok().map(|peer| (inode, peer)));
            false
        });
        // The library has two descriptors of each.
        list.sort_unstable_by_key(|(inode, _)| *inode);
        list.dedup_by_key(|(inode, _)| *inode);
        list
    }

    /// Ends those connections for good: one inode is one connection, whoever has its peer's
    /// address by now.
    pub(super) fn connections(&self, inodes: &[Inode]) {
        self.sockets(|socket, inode| {
            if inodes.contains(&inode) {
                Found { inode, socket }.reset();
            }
            false
        });
    }

    /// Shuts down every connection of the port.
    pub(super) fn all(&self) {
        self.sockets(|socket, _| {
            // The listener has no peer.
            if socket.peer_addr().is_ok() {
                let _gone_already = socket.shutdown(Shutdown::Both);
            }
            false
        });
    }

    /// The same, with what was received and not yet read: nothing more is read of any.
    pub(super) fn all_unread(&self) {
        self.sockets(|socket, inode| {
            if socket.peer_addr().is_ok() {
                Found { inode, socket }.reset_unread();
            }
            false
        });
    }

    /// Calls `visit` with each socket of the port until it returns true.
    fn sockets(&self, mut visit: impl FnMut(TcpStream, Inode) -> bool) {
        let Some(lender) = &self.lender else {
            return;
        };
        let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
            return;
        };
        for entry in entries.flatten() {
            let is_socket = std::fs::read_link(entry.path()).is_ok_and(|target| {
                target
                    .as_os_str()
                    .as_encoded_bytes()
                    .starts_with(b"socket:")
            });
            let number = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            let (true, Some(number)) = (is_socket, number) else {
                continue;
            };
            let Ok(borrowed) = lender.lend(number) else {
                continue;
            };
            let Some((socket, inode)) = surely_socket(borrowed) else {
                continue;
            };
            let ours = socket
                .local_addr()
                .is_ok_and(|addr| addr.port() == self.port);
            if ours && visit(socket, inode) {
                return;
            }
        }
    }
}

/// Reads what a socket that was shut down for reading has left, up to a bound; whether that was
/// all. It does not block: with nothing left there is an end of file.
fn drained(mut socket: &TcpStream) -> bool {
    let mut sink = [0; 16 << 10];
    (0..64).any(|_| !matches!(socket.read(&mut sink), Ok(count) if count > 0))
}

/// The descriptor as a socket; anything else is left open for good (see the module's words).
fn surely_socket(borrowed: OwnedFd) -> Option<(TcpStream, Inode)> {
    let file = File::from(borrowed);
    if let Ok(data) = file.metadata()
        && data.file_type().is_socket()
    {
        return Some((TcpStream::from(OwnedFd::from(file)), data.ino()));
    }
    #[expect(
        clippy::mem_forget,
        reason = "closing a borrowed descriptor of a file would drop the process's locks on it"
    )]
    std::mem::forget(file);
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::net::TcpListener;

    #[test]
    fn one_connection_is_ended_and_the_others_live() {
        for lender in [Lender::new, Lender::by_mail] {
            let lender = lender().expect("a lender");
            one_is_ended_by(lender);
        }
    }

    fn one_is_ended_by(lender: Lender) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let port = listener.local_addr().expect("an address").port();
        let lender = Some(lender);
        let sever = Sever { port, lender };
        let addr = listener.local_addr().expect("an address");
        let mut clients = Vec::new();
        let mut accepted = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(addr).expect("connected"));
            accepted.push(listener.accept().expect("accepted").0);
        }
        let victim = clients[1].local_addr().expect("an address");
        assert!(sever.peer(victim, Shutdown::Both).is_some());
        assert_eq!(clients[1].read(&mut [0; 1]).expect("the end"), 0);
        clients[2].set_nonblocking(true).expect("nonblocking");
        assert!(clients[2].read(&mut [0; 1]).is_err(), "still open");
        let nobody = "127.0.0.1:1".parse().expect("an address");
        assert!(sever.peer(nobody, Shutdown::Both).is_none());
        let first = clients[0].local_addr().expect("one");
        let found = sever.peer(first, Shutdown::Write).expect("found");
        assert_eq!(clients[0].read(&mut [0; 1]).expect("the end"), 0);
        accepted[0].set_nonblocking(true).expect("nonblocking");
        assert!(accepted[0].read(&mut [0; 1]).is_err(), "still read from");
        assert!(found.is_connected() && Sever::open().contains(&found.inode));
        sever.connections(&[found.inode]);
        assert_eq!(accepted[0].read(&mut [0; 1]).expect("the end"), 0);
        sever.all();
        clients[2].set_nonblocking(false).expect("blocking");
        assert_eq!(clients[2].read(&mut [0; 1]).expect("the end"), 0);
    }

    #[test]
    fn a_deaf_connection_hears_nothing_more_and_can_be_written_to() {
        // Red if it is only shut down for reading: what comes then is received all the same.
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let sever = Sever::new(listener.local_addr().expect("an address"));
        let mut client =
            TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
        let (mut accepted, peer) = listener.accept().expect("accepted");
        client.write_all(b"unread").expect("sent");
        sever.deafen(peer);
        for _ in 0..3 {
            client.write_all(b"more").expect("sent");
            assert_eq!(accepted.read(&mut [0; 16]).expect("the end"), 0);
            accepted.write_all(b"reply").expect("sent");
            let mut reply = [0; 5];
            client.read_exact(&mut reply).expect("received");
            assert_eq!(&reply, b"reply");
        }
    }
}
