//! How many sockets a process may open.

/// How many more files, sockets among them, the process may open. If that is less than `wanted`, its soft limit is
/// raised first, as far as `wanted` needs and the hard limit allows.
///
/// `usize::MAX` where the system does not tell (anything but Linux).
#[must_use]
pub fn room_for_sockets(wanted: usize) -> usize {
    system::room(wanted)
}

#[cfg(target_os = "linux")]
mod system {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    pub(super) fn room(wanted: usize) -> usize {
        // What is open now, the directory that is being read among it.
        let open = std::fs::read_dir("/proc/self/fd").map_or(64, Iterator::count) as u64;
        let limit = getrlimit(Resource::Nofile);
        let needed = open.saturating_add(wanted as u64);
        let mut current = limit.current.unwrap_or(u64::MAX);
        if current < needed {
            let raised = needed.min(limit.maximum.unwrap_or(u64::MAX));
            let asked = Rlimit { current: Some(raised), maximum: limit.maximum };
            if setrlimit(Resource::Nofile, asked).is_ok() {
                current = raised;
            }
        }
        usize::try_from(current.saturating_sub(open)).unwrap_or(usize::MAX)
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    pub(super) fn room(_wanted: usize) -> usize {
        usize::MAX
    }
}
