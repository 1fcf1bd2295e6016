//! The kernel's list of our connections, with how much was read from each.
//!
//! Defect 3 again: the library reads a head, or the size of a chunk, into memory for as long as it
//! goes on, and says nothing meanwhile. Linux tells any process (`NETLINK_SOCK_DIAG`, what `ss`
//! uses) how many bytes a connection received and how many of them still wait to be read; the
//! rest is in the library's hands. Where the system does not tell, the time limits remain.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::sever::Inode;

/// A connection as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) inode: Inode,
    pub(super) peer: SocketAddr,
    /// Bytes that were received and read.
    pub(super) read: u64,
    /// Bytes that were received and wait to be read.
    pub(super) waiting: u64,
}

/// Asks the kernel about the connections of one listening port.
#[derive(Debug)]
pub(super) struct Diag {
    socket: Socket,
    request: Vec<u8>,
}

const AF_NETLINK: i32 = 16;
const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
/// The attribute that holds `struct tcp_info`.
const INET_DIAG_INFO: u16 = 2;
/// All states but that of a listener.
const STATES: u32 = 0xfff & !(1 << 10);
/// Where `struct tcp_info` has `tcpi_bytes_received`.
const BYTES_RECEIVED: usize = 128;
/// `struct inet_diag_msg`, which the attributes follow.
const MESSAGE_BYTES: usize = 72;
/// The kernel answers at once; a look must not hold the usher up should it not.
const PATIENCE: Duration = Duration::from_millis(250);

impl Diag {
    /// For the connections of the listener at `local`; `None` where the system does not tell.
    pub(super) fn new(local: SocketAddr) -> Option<Self> {
        let open = || -> io::Result<Self> {
            let netlink = Protocol::from(NETLINK_SOCK_DIAG);
            let socket = Socket::new(Domain::from(AF_NETLINK), Type::RAW, Some(netlink))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            let request = request(local);
            let mut diag = Self { socket, request };
            diag.connections()?;
            Ok(diag)
        };
        open()
            .inspect_err(|error| {
                tracing::info!(%error, "the system does not tell how much was read from connections; endless heads end by time only");
            })
            .ok()
    }

    /// All connections now.
    pub(super) fn connections(&mut self) -> io::Result<Vec<Connection>> {
        self.socket.write_all(&self.request)?;
        let mut found = Vec::new();
        let mut datagram = vec![0; 64 << 10];
        loop {
            let bytes = self.socket.read(&mut datagram)?;
            let mut rest = &datagram[..bytes];
            while let Some((kind, message)) = next(&mut rest, 16, header) {
                match kind {
                    NLMSG_DONE => return Ok(found),
                    NLMSG_ERROR => return Err(io::ErrorKind::Unsupported.into()),
                    _ => found.extend(connection(message)),
                }
            }
        }
    }
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn request(local: SocketAddr) -> Vec<u8> {
    let family = if local.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut request = Vec::with_capacity(72);
    request.extend_from_slice(&72_u32.to_ne_bytes());
    request.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
    request.extend_from_slice(&[0; 8]); // sequence number, whose
    request.extend_from_slice(&[family, IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1), 0]);
    request.extend_from_slice(&STATES.to_ne_bytes());
    request.extend_from_slice(&local.port().to_be_bytes());
    request.extend_from_slice(&[0; 2 + 32 + 4]); // any peer, any address, any interface
    request.extend_from_slice(&[0xff; 8]); // no particular socket
    request
}

/// Takes the next piece off `rest`: what kind it is, and what follows its head. Both netlink
/// messages and their attributes begin with their own length, and are padded to four bytes.
fn next<'a>(
    rest: &mut &'a [u8],
    head: usize,
    read: fn(&[u8]) -> Option<(usize, u16)>,
) -> Option<(u16, &'a [u8])> {
    let (length, kind) = read(rest)?;
    let content = rest.get(head..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, content))
}

fn header(bytes: &[u8]) -> Option<(usize, u16)> {
    Some((usize::try_from(u32_at(bytes, 0)?).ok()?, u16_at(bytes, 4)?))
}

fn attribute(bytes: &[u8]) -> Option<(usize, u16)> {
    Some((usize::from(u16_at(bytes, 0)?), u16_at(bytes, 2)?))
}

fn connection(message: &[u8]) -> Option<Connection> {
    let port = u16::from_be_bytes(array(message, 6)?);
    let peer = if *message.first()? == AF_INET {
        SocketAddr::new(IpAddr::from(array::<4>(message, 24)?), port)
    } else {
        let ip = Ipv6Addr::from(array::<16>(message, 24)?);
        let local_only = ip.is_unicast_link_local();
        let interface = u32_at(message, 40).filter(|_| local_only);
        SocketAddrV6::new(ip, port, 0, interface.unwrap_or(0)).into()
    };
    let waiting = u64::from(u32_at(message, 56)?);
    // Without one it is not accepted yet, and nobody's to look after.
    let inode = u32_at(message, 68).filter(|&inode| inode != 0)?;
    let mut attributes = message.get(MESSAGE_BYTES..)?;
    while let Some((kind, info)) = next(&mut attributes, 4, attribute) {
        if kind == INET_DIAG_INFO {
            let received = u64::from_ne_bytes(array(info, BYTES_RECEIVED)?);
            return Some(Connection {
                inode: inode.into(),
                peer,
                read: received.saturating_sub(waiting),
                waiting,
            });
        }
    }
    None
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn it_tells_who_is_connected_and_how_much_was_read() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(local) else {
                continue; // no IPv6 here
            };
            let local = listener.local_addr().expect("an address");
            let Some(mut diag) = Diag::new(local) else {
                return; // the system does not tell; nothing to be seen here
            };
            assert_eq!(diag.connections().expect("none"), []);
            let mut client = TcpStream::connect(local).expect("connected");
            let (mut accepted, peer) = listener.accept().expect("accepted");
            client.write_all(&[b'x'; 1000]).expect("sent");
            accepted.read_exact(&mut [0; 600]).expect("read");
            let found = diag.connections().expect("one");
            let [connection] = found[..] else {
                panic!("one connection: {found:?}");
            };
            assert_eq!(connection.peer, peer);
            assert_eq!((connection.read, connection.waiting), (600, 400));
            let found = super::super::sever::Sever::new(local).find(peer);
            assert!(found.is_none_or(|found| found.inode == connection.inode));
        }
    }
}
