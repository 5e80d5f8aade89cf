//! What congestion control promises, measured over a simulated bottleneck.

use shadowland_client::conditioner::Conditions;
use shadowland_proto::{Congestion, TransportConfig};
use shadowland_simtest::bottleneck::{self, Measured};

/// 1 Mbit/s, a queue of 100 ms, 40 ms there and back.
const NARROW: Conditions =
    Conditions { latency_ms: 20.0, bandwidth_kbit_s: 1_000.0, queue_ms: 100.0, ..Conditions::PERFECT };

fn measure(congestion: Congestion, link: Conditions, sessions: usize) -> Measured {
    let transport = TransportConfig { congestion, ..TransportConfig::default() };
    bottleneck::run(1, link, &transport, sessions, 30).unwrap()
}

#[test]
fn by_delay_the_link_is_used_and_its_queue_stays_short() {
    let measured = measure(Congestion::Delay, NARROW, 1);
    assert!(measured.used > 0.85, "{measured:?}");
    assert!(measured.queue_mean_ms < 50.0, "{measured:?}");
    assert!(measured.overhead <= 1.10, "{measured:?}");
    // By loss the queue is what fills.
    assert!(measure(Congestion::Loss, NARROW, 1).queue_mean_ms > measured.queue_mean_ms);
}

#[test]
fn two_sessions_share_a_link_evenly() {
    let measured = measure(Congestion::Delay, NARROW, 2);
    let (first, second) = (measured.goodput_kbit_s[0], measured.goodput_kbit_s[1]);
    assert!(first.min(second) > 0.7 * first.max(second), "{measured:?}");
    assert!(measured.used > 0.85 && measured.queue_mean_ms < 50.0, "{measured:?}");
}

#[test]
fn loss_that_is_no_congestion_does_not_slow_down_who_goes_by_delay() {
    let lossy = Conditions { loss: 0.05, latency_ms: 50.0, bandwidth_kbit_s: 5_000.0, ..NARROW };
    let by_delay = measure(Congestion::Delay, lossy, 1);
    let by_loss = measure(Congestion::Loss, lossy, 1);
    assert!(by_delay.goodput_kbit_s[0] > 2.0 * by_loss.goodput_kbit_s[0]);
}

#[test]
fn messages_of_512_bytes_cost_a_tenth_more_at_most() {
    for loss in [0.0, 0.01] {
        let link = Conditions { loss, bandwidth_kbit_s: 10_000.0, ..NARROW };
        let measured = measure(Congestion::Delay, link, 1);
        assert!(measured.overhead <= 1.10, "at {loss}: {measured:?}");
    }
}
