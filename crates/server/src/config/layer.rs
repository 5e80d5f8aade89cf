//! Where raw values come from: a TOML file, variables, the command line.

use std::fmt;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::ConfigError;
use super::settings::{Literal, SETTINGS, VARIABLE_PREFIX};

/// Where a value stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a file.
    File {
        /// The file.
        path: String,
        /// Line, from 1.
        line: usize,
    },
    /// In a variable of the environment.
    Variable(String),
    /// On the command line.
    Argument(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File { path, line } => write!(f, "{path}:{line}"),
            Place::Variable(name) => write!(f, "variable {name}"),
            Place::Argument(name) => write!(f, "argument {name}"),
        }
    }
}

/// What one source says, unchecked.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    entries: Vec<(String, Literal, Place)>,
}

impl Layer {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, or is not TOML.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: name.clone(), source })?;
        Self::from_toml(&name, &text)
    }

    /// Reads the text of a file; `path` is for messages.
    ///
    /// # Errors
    /// If it is not TOML.
    pub fn from_toml(path: &str, text: &str) -> Result<Self, ConfigError> {
        let line_of = |offset: usize| 1 + text[..offset.min(text.len())].matches('\n').count();
        let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            line: line_of(error.span().map_or(0, |span| span.start)),
            // One line, whatever the parser makes of it.
            message: error.message().replace('\n', "; "),
        })?;
        let mut entries = Vec::new();
        for (section, value) in table.get_ref() {
            if let DeValue::Table(settings) = value.get_ref() {
                for (name, value) in settings {
                    let place = Place::File { path: path.to_owned(), line: line_of(name.span().start) };
                    let key = format!("{}.{}", section.get_ref(), name.get_ref());
                    entries.push((key, literal(value.get_ref(), &text[value.span()]), place));
                }
            } else {
                let place = Place::File { path: path.to_owned(), line: line_of(section.span().start) };
                let literal = literal(value.get_ref(), &text[value.span()]);
                entries.push((section.get_ref().to_string(), literal, place));
            }
        }
        // The parser sorts by name; mistakes are reported from the top of the file.
        entries.sort_by_key(|(_, _, place)| match place {
            Place::File { line, .. } => *line,
            Place::Variable(_) | Place::Argument(_) => 0,
        });
        Ok(Self { entries })
    }

    /// Takes the variables that belong to a setting, and those that would belong to one of a known section if there
    /// were one: a mistake that is to be named. Others with the same prefix are left alone: container platforms make
    /// such names for services, and they are no mistake of anybody's.
    #[must_use]
    pub fn from_variables(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut entries: Vec<_> = variables
            .into_iter()
            .filter(|(name, _)| name.starts_with(VARIABLE_PREFIX))
            .filter_map(|(name, value)| {
                let key = key_of_variable(&name)?;
                Some((key, Literal::Unquoted(value), Place::Variable(name)))
            })
            .collect();
        entries.sort_by(|one, other| one.0.cmp(&other.0));
        Self { entries }
    }

    /// Adds a value from the command line: `argument` is what the user typed to give it.
    pub fn push_argument(&mut self, argument: &str, key: &str, value: &str) {
        let place = Place::Argument(argument.to_owned());
        self.entries.push((key.to_owned(), Literal::Unquoted(value.to_owned()), place));
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, &Literal, &Place)> {
        self.entries.iter().map(|(key, literal, place)| (key.as_str(), literal, place))
    }
}

/// The setting of a variable, or what would be one of a known section.
fn key_of_variable(name: &str) -> Option<String> {
    if let Some(setting) = SETTINGS.iter().find(|setting| setting.variable() == name) {
        return Some(setting.key.to_owned());
    }
    let (section, rest) = name.strip_prefix(VARIABLE_PREFIX)?.split_once('_')?;
    let section = section.to_ascii_lowercase();
    // Container platforms name the ports of a service `SERVER` so.
    let of_a_service = ["SERVICE_", "PORT"].iter().any(|made| rest.starts_with(made));
    let known = SETTINGS.iter().any(|setting| setting.section() == section);
    (known && !of_a_service).then(|| format!("{section}.{}", rest.to_ascii_lowercase()))
}

fn literal(value: &DeValue<'_>, written: &str) -> Literal {
    let whole = |digits: &str, radix| i64::from_str_radix(digits, radix).ok();
    let parsed = match value {
        DeValue::String(text) => Some(Literal::Text(text.to_string())),
        DeValue::Integer(number) => whole(number.as_str(), number.radix()).map(Literal::Whole),
        DeValue::Float(number) => number.as_str().parse().ok().map(Literal::Number),
        _ => None,
    };
    // On one line in messages, also when it is a long list.
    parsed.unwrap_or_else(|| Literal::Other(written.split_whitespace().collect::<Vec<_>>().join(" ")))
}
