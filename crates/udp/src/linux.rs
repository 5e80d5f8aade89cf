//! The batched system calls of Linux, and all the `unsafe` code of this crate.
//!
//! Every pointer that the kernel gets is made from a live borrow right before the call and is not used after
//! it. The headers that hold them between calls are scratch memory: allocated once, overwritten before each use.
#![allow(
    unsafe_code,
    reason = "recvmmsg, sendmmsg and two socket options have no safe interface in the standard library"
)]

use std::io;
use std::mem::{offset_of, size_of};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use libc::{c_int, c_void, iovec, mmsghdr, sockaddr_in, sockaddr_in6, socklen_t};
use socket2::{SockRef, Socket};

use crate::DATAGRAM;
use crate::batch::{Arrival, Departure};

/// Headers that one `recvmmsg` writes to.
#[derive(Debug)]
pub(crate) struct RecvScratch(Headers);

/// Headers that one `sendmmsg` reads.
#[derive(Debug)]
pub(crate) struct SendScratch {
    headers: Headers,
    /// For every message the length of its segments; empty where datagrams are not joined.
    segments: Box<[SegmentLength]>,
}

#[derive(Debug)]
struct Headers {
    messages: Box<[mmsghdr]>,
    vectors: Box<[iovec]>,
    names: Box<[RawAddress]>,
}

// SAFETY: the raw pointers in `messages` and `vectors` are dangling between calls; `recv` and `send`, which hold
// `&mut` to them, set every pointer that the kernel will follow before each call.
unsafe impl Send for Headers {}

impl RecvScratch {
    pub(crate) fn new(slots: usize) -> Self {
        Self(Headers::new(slots))
    }
}

impl SendScratch {
    pub(crate) fn new(slots: usize) -> Self {
        Self { headers: Headers::new(slots), segments: Box::default() }
    }

    pub(crate) fn joining(slots: usize) -> Self {
        Self { segments: vec![SegmentLength::new(); slots].into_boxed_slice(), ..Self::new(slots) }
    }
}

/// Most datagrams that are joined: `UDP_MAX_SEGMENTS` of the kernels until 6.9, and twice that since.
const MOST_JOINED: usize = 64;
/// Most bytes that are joined: an IP packet, with its headers, has at most 65,535.
const MOST_JOINED_BYTES: usize = 65_000;

/// The control message that tells the kernel where to take a joined message apart (`UDP_SEGMENT`, udp(7)).
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct SegmentLength {
    header: libc::cmsghdr,
    bytes: u16,
}

const _: () = {
    // SAFETY: they compute with their argument, and nothing else.
    let (len, space) = unsafe { (libc::CMSG_LEN(0), libc::CMSG_SPACE(size_of::<u16>() as u32)) };
    assert!(offset_of!(SegmentLength, bytes) == len as usize);
    assert!(size_of::<SegmentLength>() == space as usize);
};

impl SegmentLength {
    fn new() -> Self {
        // SAFETY: cmsghdr is plain old data for which all zeroes is a value.
        let mut header: libc::cmsghdr = unsafe { std::mem::zeroed() };
        header.cmsg_level = libc::SOL_UDP;
        header.cmsg_type = libc::UDP_SEGMENT;
        header.cmsg_len = (offset_of!(Self, bytes) + size_of::<u16>()) as _;
        Self { header, bytes: 0 }
    }
}

/// How many datagrams from the front can be joined: for the same destination and as long as the first, which only
/// the last may be shorter than. The first byte has to be the same, too: a receiver on this machine gets what is
/// joined as one, and where sockets share its address the first datagram's ConnectionId decides for all.
fn joinable(buffers: &[[u8; DATAGRAM]], departures: &[Departure]) -> usize {
    let (first, tag) = (departures[0], buffers[0][0]);
    if first.len == 0 {
        return 1;
    }
    let most = MOST_JOINED.min(MOST_JOINED_BYTES / first.len).min(departures.len());
    let mut joined = 1;
    while joined < most {
        let next = departures[joined];
        if next.to != first.to || next.len > first.len || next.len == 0 || buffers[joined][0] != tag {
            break;
        }
        joined += 1;
        if next.len < first.len {
            break;
        }
    }
    joined
}

impl Headers {
    fn new(slots: usize) -> Self {
        // SAFETY: mmsghdr is plain old data for which all zeroes (null pointers, zero lengths) is a value.
        let message: mmsghdr = unsafe { std::mem::zeroed() };
        let vector = iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        Self {
            messages: vec![message; slots].into_boxed_slice(),
            vectors: vec![vector; slots].into_boxed_slice(),
            names: vec![RawAddress::EMPTY; slots].into_boxed_slice(),
        }
    }

    /// Points the vector of `index` to `len` bytes at `base`.
    fn point(&mut self, index: usize, base: *mut c_void, len: usize) {
        self.vectors[index] = iovec { iov_base: base, iov_len: len };
    }

    /// Points a message's header to its name and to the vectors of a run.
    fn describe(&mut self, message: usize, name_len: socklen_t, vectors: Range<usize>) {
        let header = &mut self.messages[message].msg_hdr;
        header.msg_name = (&raw mut self.names[message]).cast();
        header.msg_namelen = name_len;
        header.msg_iov = self.vectors[vectors.clone()].as_mut_ptr();
        header.msg_iovlen = vectors.len() as _;
        header.msg_control = ptr::null_mut();
        header.msg_controllen = 0;
        header.msg_flags = 0;
    }
}

/// One `recvmmsg`: fills `buffers` and `arrivals` from the front.
pub(crate) fn recv(
    socket: &impl AsRawFd,
    buffers: &mut [[u8; DATAGRAM]],
    arrivals: &mut [Arrival],
    scratch: &mut RecvScratch,
) -> io::Result<usize> {
    let headers = &mut scratch.0;
    let slots = buffers.len().min(headers.messages.len());
    for (index, buffer) in buffers[..slots].iter_mut().enumerate() {
        headers.point(index, buffer.as_mut_ptr().cast(), DATAGRAM);
        headers.describe(index, size_of::<RawAddress>() as socklen_t, index..index + 1);
    }
    // SAFETY: the first `slots` messages were just pointed to live memory of the stated lengths, which the
    // borrows of `buffers` and `scratch` keep alive and unshared until the call returns.
    let received = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            headers.messages.as_mut_ptr(),
            slots as u32,
            libc::MSG_DONTWAIT,
            ptr::null_mut(),
        )
    };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    for (index, arrival) in arrivals[..received].iter_mut().enumerate() {
        let message = &headers.messages[index];
        *arrival = Arrival {
            from: headers.names[index].to_std(),
            len: (message.msg_len as usize).min(DATAGRAM),
            passed_over: message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        };
    }
    Ok(received)
}

/// One `sendmmsg`: takes datagrams from the front and returns how many.
pub(crate) fn send(
    socket: &impl AsRawFd,
    buffers: &[[u8; DATAGRAM]],
    departures: &[Departure],
    scratch: &mut SendScratch,
) -> io::Result<usize> {
    let messages = describe(buffers, departures, scratch);
    // SAFETY: the first `messages` messages were just pointed to live memory of the stated lengths, which the
    // borrows keep alive until the call returns; the kernel writes to nothing but `messages`.
    let sent = unsafe {
        let first = scratch.headers.messages.as_mut_ptr();
        libc::sendmmsg(socket.as_raw_fd(), first, messages as u32, libc::MSG_DONTWAIT)
    };
    let Ok(sent) = usize::try_from(sent) else {
        let error = io::Error::last_os_error();
        let was_joined = scratch.headers.messages[0].msg_hdr.msg_iovlen > 1;
        if was_joined && matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIO)) {
            // So says a kernel that does not know the control message, and a device that cannot take messages
            // apart. The datagrams leave one by one, now and from now on.
            scratch.segments = Box::default();
            return send(socket, buffers, departures, scratch);
        }
        return Err(error);
    };
    Ok(scratch.headers.messages[..sent]
        .iter()
        .map(|message| -> usize { message.msg_hdr.msg_iovlen as _ })
        .sum())
}

/// Makes messages of datagrams, and returns how many.
fn describe(buffers: &[[u8; DATAGRAM]], departures: &[Departure], scratch: &mut SendScratch) -> usize {
    let SendScratch { headers, segments } = scratch;
    let slots = buffers.len().min(headers.messages.len());
    let (mut messages, mut done) = (0, 0);
    while done < slots {
        let joined =
            if segments.is_empty() { 1 } else { joinable(&buffers[done..slots], &departures[done..slots]) };
        for index in done..done + joined {
            // The kernel only reads through this pointer; the C type knows no const.
            let base = buffers[index].as_ptr().cast_mut().cast();
            headers.point(index, base, departures[index].len.min(DATAGRAM));
        }
        let (name, name_len) = RawAddress::from_std(departures[done].to);
        headers.names[messages] = name;
        headers.describe(messages, name_len, done..done + joined);
        if joined > 1 {
            let length = &mut segments[messages];
            length.bytes = departures[done].len as u16;
            let header = &mut headers.messages[messages].msg_hdr;
            header.msg_control = (&raw mut *length).cast();
            header.msg_controllen = size_of::<SegmentLength>() as _;
        }
        messages += 1;
        done += joined;
    }
    messages
}

/// Whether a send error would meet every datagram, whatever its destination.
pub(crate) fn is_about_the_socket(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EBADF | libc::ENOTSOCK | libc::EFAULT | libc::ENOSYS | libc::EOPNOTSUPP | libc::EPIPE)
    )
}

pub(crate) fn set_reuse_port(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_port(true)
}

pub(crate) fn set_recv_buffer(socket: &Socket, bytes: usize) -> io::Result<()> {
    socket.set_recv_buffer_size(bytes)?;
    if granted(socket.recv_buffer_size()?)? < bytes {
        // Beyond `net.core.rmem_max` only for a process with CAP_NET_ADMIN; without it the limit stands.
        let _ = set_int(socket, libc::SO_RCVBUFFORCE, bytes);
    }
    Ok(())
}

pub(crate) fn set_send_buffer(socket: &Socket, bytes: usize) -> io::Result<()> {
    socket.set_send_buffer_size(bytes)?;
    if granted(socket.send_buffer_size()?)? < bytes {
        // As above, for `net.core.wmem_max`.
        let _ = set_int(socket, libc::SO_SNDBUFFORCE, bytes);
    }
    Ok(())
}

/// Bytes granted, from what the kernel tells: it doubles every request for its own bookkeeping (socket(7)).
#[allow(clippy::unnecessary_wraps, reason = "the face is the same on every system")]
pub(crate) fn granted(told: usize) -> io::Result<usize> {
    Ok(told / 2)
}

fn set_int(socket: &Socket, option: c_int, value: usize) -> io::Result<()> {
    let value = c_int::try_from(value).unwrap_or(c_int::MAX);
    // SAFETY: the option's value is a c_int, and the pointer and length describe a live one.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            size_of::<c_int>() as socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Datagrams that the kernel dropped at this socket, most often because its receive buffer was full.
pub(crate) fn kernel_drops(socket: &impl AsRawFd) -> io::Result<u64> {
    // SK_MEMINFO_DROPS is the last of SK_MEMINFO_VARS values (linux/sock_diag.h).
    const DROPS: usize = 8;
    let mut values = [0_u32; DROPS + 1];
    let mut len = size_of_val(&values) as socklen_t;
    // SAFETY: the pointers and the length describe live values, of which the kernel fills at most `len` bytes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(u64::from(values[DROPS])) } else { Err(io::Error::last_os_error()) }
}

/// Attaches [`STEERING`] to the group of sockets that share the address.
pub(crate) fn steer_by_connection_id(socket: &(impl AsRawFd + AsFd)) -> io::Result<()> {
    if !SockRef::from(socket).reuse_port()? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the socket does not share its address"));
    }
    let program = libc::sock_fprog { len: STEERING.len() as u16, filter: STEERING.as_ptr().cast_mut() };
    // SAFETY: the option's value is a sock_fprog; the kernel copies the program, which it only reads, before
    // the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Answers the index of a socket; an index without a socket makes the kernel use its own hash. Offset 0 is the
/// first byte of the datagram's payload (`run_bpf_filter` in net/core/sock_reuseport.c).
#[rustfmt::skip]
const STEERING: [libc::sock_filter; 7] = {
    use libc::{BPF_ABS, BPF_B, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_LEN, BPF_RET, BPF_W};
    const BPF_A: u32 = 0x10;
    const HASH: u32 = u32::MAX;
    // A load beyond the end would end the program with 0, and thereby choose worker 0: ask for the length first.
    [
        instruction(BPF_LD | BPF_W | BPF_LEN, 0, 0, 0), // 0: a = length
        instruction(BPF_JMP | BPF_JGE | BPF_K, 0, 4, 4), // 1: a < 4, too short for a ConnectionId: go to 6
        instruction(BPF_LD | BPF_W | BPF_ABS, 0, 0, 0), // 2: a = ConnectionId
        instruction(BPF_JMP | BPF_JEQ | BPF_K, 2, 0, 0), // 3: a == 0, no session yet: go to 6
        instruction(BPF_LD | BPF_B | BPF_ABS, 0, 0, 0), // 4: a = its lowest byte, the first on the wire
        instruction(BPF_RET | BPF_A, 0, 0, 0), // 5: return a
        instruction(BPF_RET | BPF_K, 0, 0, HASH), // 6
    ]
};

const fn instruction(code: u32, jump_true: u8, jump_false: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: jump_true, jf: jump_false, k }
}

/// A `sockaddr_in6`, or a `sockaddr_in` at the beginning of one: half the size of `sockaddr_storage`, and read
/// and written without `unsafe`, because the IPv4 address has the place of the flow information.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
struct RawAddress(sockaddr_in6);

const _: () = {
    assert!(offset_of!(sockaddr_in, sin_family) == offset_of!(sockaddr_in6, sin6_family));
    assert!(offset_of!(sockaddr_in, sin_port) == offset_of!(sockaddr_in6, sin6_port));
    assert!(offset_of!(sockaddr_in, sin_addr) == offset_of!(sockaddr_in6, sin6_flowinfo));
};

impl RawAddress {
    const EMPTY: Self = Self(sockaddr_in6 {
        sin6_family: 0,
        sin6_port: 0,
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
        sin6_scope_id: 0,
    });

    /// The address for the kernel and its length there.
    fn from_std(address: SocketAddr) -> (Self, socklen_t) {
        let mut raw = Self::EMPTY;
        raw.0.sin6_port = address.port().to_be();
        match address {
            SocketAddr::V4(v4) => {
                raw.0.sin6_family = libc::AF_INET as libc::sa_family_t;
                raw.0.sin6_flowinfo = u32::from_ne_bytes(v4.ip().octets());
                (raw, size_of::<sockaddr_in>() as socklen_t)
            }
            SocketAddr::V6(v6) => {
                raw.0.sin6_family = libc::AF_INET6 as libc::sa_family_t;
                raw.0.sin6_flowinfo = v6.flowinfo();
                raw.0.sin6_addr.s6_addr = v6.ip().octets();
                raw.0.sin6_scope_id = v6.scope_id();
                (raw, size_of::<sockaddr_in6>() as socklen_t)
            }
        }
    }

    fn to_std(self) -> SocketAddr {
        let port = u16::from_be(self.0.sin6_port);
        if c_int::from(self.0.sin6_family) == libc::AF_INET {
            let ip = Ipv4Addr::from(self.0.sin6_flowinfo.to_ne_bytes());
            SocketAddr::V4(SocketAddrV4::new(ip, port))
        } else {
            let ip = Ipv6Addr::from(self.0.sin6_addr.s6_addr);
            SocketAddr::V6(SocketAddrV6::new(ip, port, self.0.sin6_flowinfo, self.0.sin6_scope_id))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_through_the_kernels_form() {
        for text in ["1.2.3.4:5", "255.255.255.255:65535", "[::1]:3565", "[fe80::1%7]:9"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(RawAddress::from_std(address).0.to_std(), address, "{text}");
        }
    }

    fn departing(lengths: &[usize], to: SocketAddr) -> (Vec<[u8; DATAGRAM]>, Vec<Departure>) {
        let numbered = (0..lengths.len()).map(|number| {
            let mut buffer = [number as u8; DATAGRAM];
            buffer[0] = 7;
            buffer
        });
        (numbered.collect(), lengths.iter().map(|&len| Departure { to, len }).collect())
    }

    /// Datagrams of each message.
    fn joined(scratch: &SendScratch) -> Vec<usize> {
        scratch.headers.messages.iter().map(|message| message.msg_hdr.msg_iovlen).collect()
    }

    #[test]
    fn what_is_joined_arrives_as_single_datagrams() {
        let local = "127.0.0.1:0".parse().unwrap();
        let bind = || mio::net::UdpSocket::bind(local).unwrap();
        let (here, there) = (bind(), bind());
        let lengths = [50, 50, 50, 20, 50, 0, 0, 60, 60, 1_200, 1_200];
        let (mut buffers, departures) = departing(&lengths, there.local_addr().unwrap());
        buffers[8][0] = 8;
        let mut scratch = SendScratch::joining(16);
        assert_eq!(send(&here, &buffers, &departures, &mut scratch).unwrap(), lengths.len());
        assert_eq!(
            joined(&scratch)[..7],
            [4, 1, 1, 1, 1, 1, 2],
            "a shorter one is the last, and others begin otherwise"
        );

        let nobody = Arrival { from: local, len: 0, passed_over: false };
        let (mut slots, mut arrivals) = ([[0; DATAGRAM]; 16], [nobody; 16]);
        let received = recv(&there, &mut slots, &mut arrivals, &mut RecvScratch::new(16)).unwrap();
        assert_eq!(received, lengths.len());
        for (number, (arrival, slot)) in arrivals.iter().zip(&slots).take(received).enumerate() {
            let len = arrival.len;
            assert_eq!((len, &slot[..len]), (lengths[number], &buffers[number][..len]), "datagram {number}");
        }
    }

    #[test]
    fn no_more_is_joined_than_the_kernel_takes() {
        let to = "127.0.0.1:9".parse().unwrap();
        for (len, most) in [(1, 64), (1_000, 64), (1_200, 54)] {
            let (buffers, departures) = departing(&[len; 100], to);
            assert_eq!(joinable(&buffers, &departures), most, "of {len} bytes");
        }
        let (buffers, mut departures) = departing(&[10; 3], to);
        departures[2].to = "127.0.0.1:10".parse().unwrap();
        assert_eq!(joinable(&buffers, &departures), 2);
    }

    #[test]
    fn where_joined_datagrams_are_refused_they_leave_one_by_one() {
        let here = mio::net::UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        // The kernel says the same of port 0 as of a control message that it does not know.
        let (buffers, departures) = departing(&[50; 4], "127.0.0.1:0".parse().unwrap());
        let mut scratch = SendScratch::joining(4);
        let refused = send(&here, &buffers, &departures, &mut scratch).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
        assert_eq!(joined(&scratch), [1; 4]);
        assert!(scratch.segments.is_empty());
    }
}
