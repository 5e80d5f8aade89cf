//! The committed corpus goes through its targets without findings, with any toolchain.

#![expect(clippy::print_stderr, reason = "what a test prints is shown when it fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use shadowland_fuzzing::TARGETS;

fn fuzz(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz").join(folder)
}

/// The files of a folder, with their names.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("an entry"))
        .map(|entry| {
            (entry.file_name().into_string().expect("a name"), fs::read(entry.path()).expect("a file"))
        })
        .collect();
    files.sort();
    files
}

#[test]
fn the_corpus_goes_through_without_findings() {
    let mut bytes = 0;
    for (name, target) in TARGETS {
        let inputs = files(&fuzz("corpus").join(name));
        assert!(inputs.len() >= 20, "{name} has a corpus");
        for (file, input) in inputs {
            // What the test prints when it fails: the last one is the input.
            eprintln!("fuzz/corpus/{name}/{file}");
            target(&input);
            bytes += input.len();
        }
    }
    assert!(bytes < 1 << 20, "the corpus has {bytes} bytes: make it smaller");
}

/// A script that ends at once, and one that says the same thing for ever.
#[test]
fn dull_scripts_go_through_without_findings() {
    for (name, target) in TARGETS {
        eprintln!("{name}");
        target(&[]);
        for byte in 0..=32 {
            target(&[byte; 200]);
        }
    }
}

#[test]
fn every_target_can_be_fuzzed() {
    let there: BTreeSet<_> = files(&fuzz("fuzz_targets")).into_iter().map(|(name, _)| name).collect();
    let wanted: BTreeSet<_> = TARGETS.iter().map(|(name, _)| format!("{name}.rs")).collect();
    assert_eq!(there, wanted);
    for (name, source) in files(&fuzz("fuzz_targets")) {
        let name = name.trim_end_matches(".rs");
        let source = String::from_utf8(source).expect("text");
        assert!(source.contains(&format!("::{name}(data)")), "{name}.rs calls its target");
    }
}
