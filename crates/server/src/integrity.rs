//! Tables of integrity keys on the server's side: a directory with one file for each client version that may play.
//!
//! `shadowland integrity generate` makes a table. The same file goes into this directory and into the client's build.
//! Several tables let players of an older version go on while a new one is rolled out.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use shadowland_proto::{IntegrityTable, IntegrityTables, NotATable};
use thiserror::Error;

use crate::identity;

/// How names of tables end; other files of the directory are not looked at.
pub const TABLE_SUFFIX: &str = "table";

/// Why tables of integrity keys cannot be used; every message is one line.
#[derive(Debug, Error)]
pub enum IntegrityError {
    /// The directory or a file of it cannot be read.
    #[error(
        "{path}: cannot read tables of integrity keys: {source}; `shadowland integrity generate` makes one (the directory is \
         security.integrity_tables)"
    )]
    Unreadable {
        /// The directory or file.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// A file is no table.
    #[error("{path}: {source}")]
    Malformed {
        /// The file.
        path: String,
        /// What it should be.
        source: NotATable,
    },
    /// Two files are for the same version.
    #[error("{path}: another table is for client version {version} too; allowed: one for each version")]
    Twice {
        /// The file that was read last.
        path: String,
        /// The version.
        version: u16,
    },
    /// There is no table.
    #[error(
        "{path}: no table of integrity keys; allowed: at least one file `*.{TABLE_SUFFIX}`, as `shadowland integrity \
         generate` makes them, or security.integrity = \"off\""
    )]
    Empty {
        /// The directory.
        path: String,
    },
    /// A new table cannot be kept.
    #[error("{path}: cannot keep the new table: {source}; allowed: a file that is not there yet")]
    Unwritable {
        /// The file.
        path: String,
        /// What the system says.
        source: io::Error,
    },
}

/// Reads a table.
///
/// # Errors
/// If the file cannot be read or holds something else.
pub fn load_table(path: &Path) -> Result<IntegrityTable, IntegrityError> {
    let name = || path.display().to_string();
    let bytes = fs::read(path).map_err(|source| IntegrityError::Unreadable { path: name(), source })?;
    IntegrityTable::from_bytes(&bytes).map_err(|source| IntegrityError::Malformed { path: name(), source })
}

/// Reads all tables of a directory.
///
/// # Errors
/// If there is none, one is something else, or two are for the same version.
pub fn load_tables(directory: &Path) -> Result<Arc<IntegrityTables>, IntegrityError> {
    let name = directory.display().to_string();
    let unreadable = |source| IntegrityError::Unreadable { path: name.clone(), source };
    let mut tables: Vec<IntegrityTable> = Vec::new();
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_none_or(|suffix| suffix != TABLE_SUFFIX) {
            continue;
        }
        let table = load_table(&path)?;
        let version = table.version();
        if tables.iter().any(|other| other.version() == version) {
            return Err(IntegrityError::Twice { path: path.display().to_string(), version });
        }
        tables.push(table);
    }
    IntegrityTables::new(tables).map(Arc::new).ok_or(IntegrityError::Empty { path: name })
}

/// Keeps a new table where nothing is yet, readable by its owner alone.
///
/// # Errors
/// If it cannot be written, or something is there.
pub fn keep_table(path: &Path, table: &IntegrityTable) -> Result<(), IntegrityError> {
    identity::create_file(path, &table.to_bytes())
        .map_err(|source| IntegrityError::Unwritable { path: path.display().to_string(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use std::num::NonZeroU16;

    fn table(version: u16) -> IntegrityTable {
        IntegrityTable::generate(
            NonZeroU16::new(version).unwrap(),
            &mut StdRng::seed_from_u64(version.into()),
        )
    }

    #[test]
    fn a_directory_of_tables_is_read_and_mistakes_are_named() {
        let directory = std::env::temp_dir().join(format!("shadowland-integrity-{}", std::process::id()));
        let missing = load_tables(&directory).unwrap_err().to_string();
        assert!(missing.contains("cannot read tables"), "{missing}");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("README"), "not a table").unwrap();
        let empty = load_tables(&directory).unwrap_err().to_string();
        assert!(empty.contains("no table of integrity keys; allowed: "), "{empty}");

        keep_table(&directory.join("6.table"), &table(6)).unwrap();
        keep_table(&directory.join("7.table"), &table(7)).unwrap();
        let again = keep_table(&directory.join("7.table"), &table(8)).unwrap_err().to_string();
        assert!(again.contains("cannot keep the new table"), "{again}");
        let tables = load_tables(&directory).unwrap();
        assert_eq!(tables.versions().collect::<Vec<_>>(), [6, 7]);
        assert_eq!(tables.of(7), Some(&table(7)));

        keep_table(&directory.join("copy.table"), &table(7)).unwrap();
        let twice = load_tables(&directory).unwrap_err().to_string();
        assert!(twice.contains("for client version 7 too"), "{twice}");
        fs::remove_file(directory.join("copy.table")).unwrap();
        fs::write(directory.join("8.table"), [1, 2, 3]).unwrap();
        let broken = load_tables(&directory).unwrap_err().to_string();
        assert!(broken.contains("8.table: not a table of integrity keys; allowed: 8202 bytes"), "{broken}");
        fs::remove_dir_all(directory).unwrap();
    }
}
