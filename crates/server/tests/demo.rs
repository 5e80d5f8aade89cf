//! The demo from beginning to end: server, sockets, bots, and the comparison of their views with the truth.

use std::ops::ControlFlow;
use std::time::Duration;

use shadowland_server::config::Config;
use shadowland_server::demo::{self, DemoOptions, Phase};

#[test]
fn everybody_plays_and_sees_the_truth() {
    let options = DemoOptions { players: 30, measured: Duration::from_secs(2), send_hz: 30, net: None };
    let mut phases = Vec::new();
    let report = demo::run(Config::default(), &options, &mut |progress| {
        if phases.last() != Some(&progress.phase) {
            phases.push(progress.phase);
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(report.is_good(), "{report:?}");
    assert_eq!((report.connected, report.converged, report.disconnects, report.errors), (30, 30, 0, 0));
    let all = [Phase::Joining, Phase::WarmingUp, Phase::Measuring, Phase::Settling, Phase::Comparing];
    assert_eq!(phases, all);
    // Wide bounds: the machine that runs tests may be busy.
    assert!(report.tick_hz > 30.0, "{report:?}");
    assert!(report.packets_in_per_s > 300.0 && report.packets_out_per_s > 600.0, "{report:?}");
    assert!(report.bytes_out_per_player_per_s > 100.0, "{report:?}");
    assert!(report.tick_p50_ms > 0.0 && report.tick_p50_ms <= report.tick_p99_ms, "{report:?}");
    let (p50, p99) = (report.update_latency_p50_ms, report.update_latency_p99_ms);
    assert!(p50 > 0.0 && p50 <= p99, "{report:?}");
    if cfg!(target_os = "linux") {
        assert!(report.server_cpu_cores > 0.0 && report.bots_cpu_cores > 0.0, "{report:?}");
    }
}

/// What comes of a demo of two players that is broken off in a phase.
fn broken_off(phase: Phase) -> demo::Report {
    let options = DemoOptions { players: 2, measured: Duration::from_secs(600), send_hz: 60, net: None };
    demo::run(Config::default(), &options, &mut |progress| {
        if progress.phase == phase { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .unwrap()
}

#[test]
fn a_demo_that_is_broken_off_reports_what_was_measured() {
    let report = broken_off(Phase::Measuring);
    assert!(report.is_good() && report.packets_out_per_s > 0.0, "{report:?}");

    let report = broken_off(Phase::WarmingUp);
    assert_eq!((report.connected, report.converged), (2, 0), "views are not compared");
    assert_eq!((report.tick_hz, report.packets_out_per_s, report.bots_cpu_cores), (0.0, 0.0, 0.0));
    assert!(!serde_json::to_string(&report).unwrap().contains("null"), "{report:?}");
}

#[test]
fn more_players_than_a_server_has_are_refused_at_once() {
    let error = demo::adapt(Config::default(), 60_001).unwrap_err().to_string();
    assert_eq!(error, "a demo with 60001 players cannot be: a server has at most 60000");
    assert!(demo::adapt(Config::default(), 60_000).is_ok());
}

#[test]
fn the_report_has_exactly_the_documented_keys() {
    let options = DemoOptions { players: 1, measured: Duration::from_millis(200), send_hz: 60, net: None };
    let report = demo::run(Config::default(), &options, &mut |_| ControlFlow::Continue(())).unwrap();
    let line = serde_json::to_string(&report).unwrap();
    let keys: Vec<_> = line.split('"').skip(1).step_by(2).collect();
    assert_eq!(
        keys,
        [
            "players",
            "connected",
            "converged",
            "tick_hz",
            "tick_p50_ms",
            "tick_p99_ms",
            "tick_overruns",
            "update_latency_p50_ms",
            "update_latency_p99_ms",
            "packets_in_per_s",
            "packets_out_per_s",
            "bytes_out_per_player_per_s",
            "server_cpu_cores",
            "bots_cpu_cores",
            "disconnects",
            "errors",
        ]
    );
}

#[test]
fn players_on_a_bad_network_see_the_truth_too() {
    let mut config = Config::default();
    config.world.npcs = 0;
    let net = "mobile".parse().ok();
    let options = DemoOptions { players: 20, measured: Duration::from_secs(2), send_hz: 60, net };
    let report = demo::run(config, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((report.connected, report.disconnects, report.errors), (20, 0, 0), "{report:?}");
    assert_eq!(report.converged, 20, "{report:?}");
    // 45 ms one way, less 20 of jitter at the best.
    assert!(report.update_latency_p50_ms > 25.0, "{report:?}");
}
