//! The walls between the crates, as cargo sees them: renamed and target-specific dependencies included. The table in
//! `docs/ARCHITECTURE.md` is checked by the server's tests.

use std::process::Command;

use serde_json::Value;

/// What each crate of the workspace may use of the others.
const ARROWS: &[(&str, &[&str])] = &[
    ("prefetch", &[]),
    ("wire", &[]),
    ("udp", &[]),
    ("proto", &["prefetch", "wire"]),
    ("world", &["prefetch", "wire"]),
    ("client", &["wire", "proto"]),
    ("bots", &["wire", "proto", "udp", "client"]),
    ("server", &["wire", "proto", "udp", "world", "bots"]),
    ("simtest", &["wire", "proto", "world", "client", "server"]),
    ("fuzzing", &["wire", "proto", "client", "server", "simtest"]),
];

/// Crates that neither do I/O nor look at a clock, and what of the outside they therefore never use.
const SANS_IO: &[&str] = &["prefetch", "wire", "proto", "world"];
const IO: &[&str] = &["getrandom", "libc", "mio", "quinn-udp", "rustix", "socket2", "tokio", "tracing"];
/// The simulation and the formats know nothing of cryptography.
const WITHOUT_CRYPTO: &[&str] = &["prefetch", "wire", "world"];
const CRYPTO: &[&str] = &["aws-lc-rs", "ring", "snow", "chacha20poly1305", "x25519-dalek"];

/// A crate's normal and build dependencies, on all targets.
fn dependencies(package: &Value) -> Vec<&str> {
    let all = package["dependencies"].as_array().expect("a list");
    let used = all.iter().filter(|dependency| dependency["kind"] != "dev");
    used.map(|dependency| dependency["name"].as_str().expect("a name")).collect()
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
    for (name, allowed) in ARROWS {
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
