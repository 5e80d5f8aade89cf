//! The server's sockets: one per worker, as good as the system gives them, and what it did give.

use std::fmt;
use std::io;

use shadowland_udp::{Options, UdpSocket};

use crate::config::{Config, Steering};
use crate::server::StartError;

/// What the system gave the sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketTruth {
    /// Bytes of kernel buffer for arriving datagrams, of each socket; `None` where the system does not tell.
    pub recv_buffer_bytes: Option<usize>,
    /// The same for departing datagrams.
    pub send_buffer_bytes: Option<usize>,
    /// How datagrams find the worker that owns their session.
    pub steering: Steered,
}

/// How datagrams find the worker that owns their session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steered {
    /// There is one worker.
    Alone,
    /// The kernel hands them to it.
    ByKernel,
    /// The kernel spreads them by address, and workers pass them on.
    ByWorkers,
}

impl fmt::Display for SocketTruth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = |bytes: Option<usize>| bytes.map_or("unknown".to_owned(), |bytes| bytes.to_string());
        let steered = match self.steering {
            Steered::Alone => "there is one worker",
            Steered::ByKernel => "the kernel brings datagrams to their worker",
            Steered::ByWorkers => "workers pass datagrams on to each other",
        };
        let (recv, send) = (bytes(self.recv_buffer_bytes), bytes(self.send_buffer_bytes));
        write!(f, "each socket has {recv} bytes of buffer for receiving and {send} for sending; {steered}")
    }
}

/// One socket per worker; fewer where the system cannot share an address.
pub(crate) fn bind(config: &Config) -> Result<(Vec<UdpSocket>, SocketTruth), StartError> {
    let network = &config.network;
    let options = |reuse_port| Options {
        reuse_port,
        recv_buffer_bytes: Some(network.recv_buffer_bytes),
        send_buffer_bytes: Some(network.send_buffer_bytes),
    };
    let failed = |source| StartError::Bind { address: network.listen, source };

    // Alone first, also when the address will be shared: another server that shares it would not be noticed,
    // and get half of our players.
    let alone = UdpSocket::bind(network.listen, &options(false)).map_err(failed)?;
    let truth = SocketTruth {
        recv_buffer_bytes: alone.granted_recv_buffer_bytes().ok(),
        send_buffer_bytes: alone.granted_send_buffer_bytes().ok(),
        steering: Steered::Alone,
    };
    warn_of_small_buffers(&truth, &options(false));
    if network.workers == 1 {
        return Ok((vec![alone], truth));
    }
    let address = alone.local_addr().map_err(failed)?;
    drop(alone);
    let shared: io::Result<Vec<_>> =
        (0..network.workers).map(|_| UdpSocket::bind(address, &options(true))).collect();
    match shared {
        Ok(sockets) => {
            let steering = steer(&sockets, network.steering);
            Ok((sockets, SocketTruth { steering, ..truth }))
        }
        Err(error) => {
            tracing::warn!(
                %error,
                "{} workers cannot share an address here (SO_REUSEPORT): going on with one; set network.workers = 1 \
                 if that is meant",
                network.workers
            );
            Ok((vec![UdpSocket::bind(address, &options(false)).map_err(failed)?], truth))
        }
    }
}

fn steer(sockets: &[UdpSocket], wanted: Steering) -> Steered {
    if wanted == Steering::Workers {
        return Steered::ByWorkers;
    }
    match sockets[0].steer_by_connection_id() {
        Ok(()) => Steered::ByKernel,
        Err(error) => {
            tracing::warn!(
                %error,
                "the kernel does not bring datagrams to their worker (SO_ATTACH_REUSEPORT_CBPF): workers pass them \
                 on, which costs a little for players whose address changes; set network.steering = \"workers\" if \
                 that is meant"
            );
            Steered::ByWorkers
        }
    }
}

/// Warns when the kernel grants less than was asked for, and says what helps.
fn warn_of_small_buffers(truth: &SocketTruth, asked: &Options) {
    for (name, limit, asked, granted) in [
        ("network.recv_buffer_bytes", "net.core.rmem_max", asked.recv_buffer_bytes, truth.recv_buffer_bytes),
        ("network.send_buffer_bytes", "net.core.wmem_max", asked.send_buffer_bytes, truth.send_buffer_bytes),
    ] {
        if let (Some(asked), Some(granted)) = (asked, granted)
            && granted < asked
        {
            tracing::warn!(
                asked,
                granted,
                "the kernel grants less than {name}, and loses datagrams in bursts that do not fit: allow it with \
                 `sysctl -w {limit}={asked}`, give the server CAP_NET_ADMIN, or ask for less"
            );
        }
    }
}
