//! What a running server says now and then about those who come and go.

use std::time::{Duration, Instant};

use shadowland_proto::DropReason;
use shadowland_server::stats::WorkerStats;

/// From one line to the next at the least, whatever happens.
const EVERY: Duration = Duration::from_secs(10);

/// Why requests for a session are dropped without an answer.
const REQUEST_DROPS: [DropReason; 6] = [
    DropReason::BadCookie,
    DropReason::StaleCookie,
    DropReason::NetworkRate,
    DropReason::HalfOpenFull,
    DropReason::HandshakeBudget,
    DropReason::HandshakeFailed,
];

/// Says what has changed since it said something.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    told: Counted,
    told_at: Option<Instant>,
}

/// What matters of all workers' counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counted {
    players: u64,
    joined: u64,
    left: u64,
    lost: u64,
    denied: u64,
    denied_for_token: u64,
    dropped: [u64; REQUEST_DROPS.len()],
}

impl Summary {
    /// Logs a line if something has changed and the last line is old enough.
    pub(crate) fn look(&mut self, now: Instant, workers: &[WorkerStats]) {
        let Some(Counted { players, joined, left, lost, denied, denied_for_token, dropped }) =
            self.news(now, Counted::of(workers))
        else {
            return;
        };
        let dropped = reasons(&dropped);
        let denied_for_token = (denied_for_token > 0).then_some(denied_for_token);
        tracing::info!(
            players,
            joined,
            left,
            lost,
            denied,
            denied_for_token,
            dropped = dropped.as_deref(),
            "who came and went"
        );
    }

    /// The players there are, and all else since the last line, if it is time for one.
    fn news(&mut self, now: Instant, counted: Counted) -> Option<Counted> {
        if counted == self.told || self.told_at.is_some_and(|at| now - at < EVERY) {
            return None;
        }
        self.told_at = Some(now);
        let told = std::mem::replace(&mut self.told, counted);
        let mut dropped = counted.dropped;
        dropped.iter_mut().zip(told.dropped).for_each(|(count, told)| *count -= told);
        Some(Counted {
            players: counted.players,
            joined: counted.joined - told.joined,
            left: counted.left - told.left,
            lost: counted.lost - told.lost,
            denied: counted.denied - told.denied,
            denied_for_token: counted.denied_for_token - told.denied_for_token,
            dropped,
        })
    }
}

impl Counted {
    fn of(workers: &[WorkerStats]) -> Self {
        let sum = |counter: fn(&WorkerStats) -> u64| workers.iter().map(counter).sum::<u64>();
        let dropped = |reason| workers.iter().map(|worker| worker.dropped.by(reason)).sum();
        Self {
            players: sum(|worker| worker.players),
            joined: sum(|worker| worker.joined),
            left: sum(|worker| worker.left),
            lost: sum(|worker| worker.lost),
            denied: sum(|worker| worker.denied),
            denied_for_token: dropped(DropReason::BadToken),
            dropped: REQUEST_DROPS.map(dropped),
        }
    }
}

/// Each reason with its count; `None` where nothing was dropped.
fn reasons(dropped: &[u64]) -> Option<String> {
    let counts = dropped.iter().zip(REQUEST_DROPS).filter(|(count, _)| **count > 0);
    let words: Vec<_> = counts.map(|(count, reason)| format!("{count} {reason}")).collect();
    (!words.is_empty()).then(|| words.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_speaks_at_once_and_then_every_ten_seconds_when_something_has_changed() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut summary = Summary::default();
        let mut worker = WorkerStats::default();
        assert_eq!(summary.news(at(0), Counted::of(&[worker])), None);
        (worker.players, worker.joined) = (1, 1);
        let joined = Counted { players: 1, joined: 1, ..Counted::default() };
        assert_eq!(summary.news(at(1), Counted::of(&[worker])), Some(joined));

        // A storm: nothing for ten seconds, then all of it.
        for second in 2..11 {
            worker.joined += 100;
            worker.players += 95;
            worker.left += 3;
            worker.lost += 2;
            worker.denied += 7;
            worker.dropped.count(DropReason::BadToken);
            worker.dropped.count(DropReason::NetworkRate);
            worker.dropped.count(DropReason::BadTag);
            assert_eq!(summary.news(at(second), Counted::of(&[worker])), None);
        }
        let news = summary.news(at(11), Counted::of(&[worker, WorkerStats::default()])).unwrap();
        assert_eq!((news.players, news.joined, news.left, news.lost), (856, 900, 27, 18));
        assert_eq!((news.denied, news.denied_for_token), (63, 9));
        assert_eq!(reasons(&news.dropped).unwrap(), "9 too many requests from its network");

        // What concerns nobody who wants to join changes nothing.
        worker.dropped.count(DropReason::BadTag);
        worker.datagrams_in += 1_000;
        assert_eq!(summary.news(at(60), Counted::of(&[worker])), None);
        assert_eq!(reasons(&[0; REQUEST_DROPS.len()]), None);
    }
}
