//! What the documents say about settings and about the walls between the crates, and the example in the README,
//! is what is in the code.

use shadowland_server::config::settings::{SETTINGS, Setting};

const CONFIGURATION: &str = include_str!("../../../docs/CONFIGURATION.md");
const ARCHITECTURE: &str = include_str!("../../../docs/ARCHITECTURE.md");

/// A file of the workspace.
fn read(path: &str) -> String {
    let path = format!("{}/../../{path}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A setting's row in its section's table.
fn row(setting: &Setting) -> String {
    // The one default that depends on the machine.
    let default = match setting.key {
        "network.workers" => "half of the cores".to_owned(),
        _ => format!("`{}`", (setting.default)()),
    };
    let Setting { meaning, kind, .. } = setting;
    format!("| `{}` | {default} | {} | {meaning} |", setting.name(), kind.allowed())
}

#[test]
fn every_setting_is_documented_as_it_is() {
    let mut rows = 0;
    let mut sections = CONFIGURATION.split("\n### `[").skip(1).peekable();
    for setting in SETTINGS {
        let heading = format!("{}]`\n", setting.section());
        let section = loop {
            let section = sections.peek().unwrap_or_else(|| panic!("no section for {}", setting.key));
            if section.starts_with(&heading) {
                break section;
            }
            sections.next();
        };
        assert!(section.contains(&row(setting)), "the row of {} is\n{}", setting.key, row(setting));
        rows += 1;
    }
    let documented = CONFIGURATION.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(documented, rows, "a setting is in the document but not in the server");
}

#[test]
fn the_example_of_a_file_is_accepted() {
    use shadowland_server::config::{Effective, Layer};
    let example = CONFIGURATION.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let layer = Layer::from_toml("docs/CONFIGURATION.md", example).unwrap();
    Effective::from_layers(&[layer]).unwrap();
}

/// The examples are compiled with the tests; the README shows parts of them.
#[test]
fn the_readme_shows_examples_that_compile() {
    let readme = read("README.md");
    let shown = readme.split("```rust\n").skip(1).map(|part| part.split("```").next().unwrap());
    let examples = ["crates/client/examples/who_is_in_sight.rs", "crates/server/examples/game.rs"];
    assert_eq!(shown.clone().count(), examples.len());
    for (example, shown) in examples.into_iter().zip(shown) {
        assert!(read(example).contains(shown), "the README shows something else than {example}");
    }
}

/// The arrows between the crates point only where the table says. What only tests use is not looked at.
#[test]
fn crates_use_only_what_they_may() {
    let table = ARCHITECTURE.split("### Who may use whom").nth(1).unwrap().split("\n## ").next().unwrap();
    let crates = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    for entry in std::fs::read_dir(crates).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let row = table.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
        let row = row.unwrap_or_else(|| panic!("no row for {name}"));
        let manifest: toml::Table = read(&format!("crates/{name}/Cargo.toml")).parse().unwrap();
        let used = manifest.get("dependencies").map(|used| used.as_table().unwrap().keys());
        for used in used.into_iter().flatten().filter_map(|used| used.strip_prefix("shadowland-")) {
            assert!(row.contains(&format!("`{used}`")), "{name} must not use {used}");
        }
    }
}
