//! The walls between the crates, as cargo sees them: renamed and target-specific dependencies included. Who may use whom
//! is the table in `docs/ARCHITECTURE.md`.

use std::process::Command;

use serde_json::Value;

const ARCHITECTURE: &str = include_str!("../../../docs/ARCHITECTURE.md");

/// Crates that neither do I/O nor look at a clock, and what of the outside they therefore never use.
const SANS_IO: &[&str] = &["prefetch", "wire", "proto", "world"];
const IO: &[&str] = &["getrandom", "libc", "mio", "quinn-udp", "rustix", "socket2", "tokio", "tracing"];
/// The simulation and the formats know nothing of cryptography.
const WITHOUT_CRYPTO: &[&str] = &["prefetch", "wire", "world"];
const CRYPTO: &[&str] = &["aws-lc-rs", "ring", "snow", "chacha20poly1305", "x25519-dalek"];

/// What each crate of the workspace may use of the others: the names in the two columns of the table.
fn arrows() -> Vec<(&'static str, Vec<&'static str>)> {
    let table = ARCHITECTURE.split("### Who may use whom").nth(1).expect("the table is there");
    let rows =
        table.split("\n## ").next().into_iter().flat_map(str::lines).filter(|line| line.starts_with("| `"));
    let rows = rows.map(|row| {
        let mut names = row.split('`').skip(1).step_by(2);
        (names.next().expect("a row starts with a name"), names.collect())
    });
    rows.collect()
}

/// A crate's normal and build dependencies, on all targets.
fn dependencies(package: &Value) -> Vec<&str> {
    let all = package["dependencies"].as_array().expect("a list");
    let used = all.iter().filter(|dependency| dependency["kind"] != "dev");
    used.map(|dependency| dependency["name"].as_str().expect("a name")).collect()
}

fn is_ours(name: &str) -> bool {
    name.starts_with("shadowland-")
}

#[test]
fn dependencies_point_only_where_they_may() {
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs: it runs this test");
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: Value = serde_json::from_slice(&metadata.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("a list");
    let arrows = arrows();
    let workspace = packages.iter().filter(|package| package["name"].as_str().is_some_and(is_ours));
    assert_eq!(workspace.count(), arrows.len(), "every crate has its row");
    for (name, allowed) in &arrows {
        let full_name = format!("shadowland-{name}");
        let package = packages.iter().find(|package| package["name"] == full_name.as_str());
        let package = package.unwrap_or_else(|| panic!("no crate {full_name}"));
        for used in dependencies(package) {
            if let Some(other) = used.strip_prefix("shadowland-") {
                assert!(allowed.contains(&other), "{name} must not use {other}");
            }
            assert!(!(SANS_IO.contains(name) && IO.contains(&used)), "{name} is sans-IO and uses {used}");
            let crypto = WITHOUT_CRYPTO.contains(name) && CRYPTO.contains(&used);
            assert!(!crypto, "{name} knows nothing of cryptography and uses {used}");
        }
    }
}
