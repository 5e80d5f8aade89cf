//! What the documents say about the server's settings is what the server does.

use shadowland_server::config::settings::{SETTINGS, Setting};

const CONFIGURATION: &str = include_str!("../../../docs/CONFIGURATION.md");

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
