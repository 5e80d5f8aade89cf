//! Which CPUs threads run on.

use std::str::FromStr;

/// CPUs by their numbers, as in "2-5,8".
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuList(Vec<usize>);

/// Not a list of CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a list of CPUs such as \"2-5,8\"")]
pub struct NotCpus;

/// Above every number that the kernel gives (`CPU_SETSIZE`).
const CPUS_MAX: usize = 1_024;

impl CpuList {
    /// The CPU of the thread with this number: one after the other, and again from the front. `None` when the list
    /// is empty: the thread may run anywhere.
    #[must_use]
    pub fn of(&self, thread: usize) -> Option<usize> {
        (!self.0.is_empty()).then(|| self.0[thread % self.0.len()])
    }

    /// Those that this process may not use.
    #[must_use]
    pub fn forbidden(&self) -> Vec<usize> {
        let allowed = system::allowed();
        self.0.iter().copied().filter(|cpu| !allowed.contains(cpu)).collect()
    }

    /// The list of all that this process may use.
    #[must_use]
    pub fn allowed() -> Self {
        Self(system::allowed())
    }
}

/// Keeps the calling thread on one CPU.
///
/// # Errors
/// What the system says; `Unsupported` where it has no such thing (anything but Linux).
pub(crate) fn pin(cpu: usize) -> std::io::Result<()> {
    system::pin(cpu)
}

impl FromStr for CpuList {
    type Err = NotCpus;

    /// Numbers and ranges between commas; nothing is the empty list.
    fn from_str(text: &str) -> Result<Self, NotCpus> {
        let mut cpus = Vec::new();
        for part in text.split(',').map(str::trim).filter(|_| !text.trim().is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.trim().parse().map_err(|_| NotCpus);
            let (first, last): (usize, usize) = (number(first)?, number(last)?);
            if first > last || last >= CPUS_MAX {
                return Err(NotCpus);
            }
            cpus.extend(first..=last);
        }
        Ok(Self(cpus))
    }
}

impl std::fmt::Display for CpuList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, cpu) in self.0.iter().enumerate() {
            write!(f, "{}{cpu}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(target_os = "linux")]
mod system {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    pub(super) fn allowed() -> Vec<usize> {
        let set = sched_getaffinity(None).unwrap_or_default();
        (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect()
    }

    pub(super) fn pin(cpu: usize) -> std::io::Result<()> {
        let mut set = CpuSet::new();
        set.set(cpu);
        Ok(sched_setaffinity(None, &set)?)
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    pub(super) fn allowed() -> Vec<usize> {
        Vec::new()
    }

    pub(super) fn pin(_cpu: usize) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        let list = |text: &str| text.parse::<CpuList>().map(|list| list.0);
        assert_eq!(list(""), Ok(vec![]));
        assert_eq!(list(" 3 "), Ok(vec![3]));
        assert_eq!(list("2-5, 8,0"), Ok(vec![2, 3, 4, 5, 8, 0]));
        for wrong in ["x", "1,", "5-2", "-1", "1-", "1024", "0-99999999999", "1 2"] {
            assert_eq!(list(wrong), Err(NotCpus), "{wrong}");
        }
    }

    #[test]
    fn threads_take_turns() {
        let list: CpuList = "4-5".parse().unwrap();
        assert_eq!([0, 1, 2].map(|thread| list.of(thread)), [Some(4), Some(5), Some(4)]);
        assert_eq!(CpuList::default().of(3), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_stays_where_it_is_put() {
        let allowed = CpuList::allowed();
        assert_eq!(allowed.forbidden(), []);
        let last = *allowed.0.last().unwrap();
        let found = std::thread::spawn(move || {
            pin(last).unwrap();
            CpuList::allowed().0
        });
        assert_eq!(found.join().unwrap(), [last]);
        assert_eq!(CpuList(vec![CPUS_MAX - 1]).forbidden(), [CPUS_MAX - 1]);
    }
}
