//! Login tokens on the server's side: the keys that may sign them, and which account plays where.
//!
//! The file of public keys has one key of 64 hexadecimal digits on each line; empty lines and what follows a `#` do
//! not count. Several keys let an account service change its own without a pause.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shadowland_proto::{Playing, Slot, TokenSigner};
use thiserror::Error;

use crate::identity::{self, NotAKey, PublicKey};

/// Why keys for login tokens cannot be used; every message is one line.
#[derive(Debug, Error)]
pub enum TokenKeyError {
    /// The file cannot be read.
    #[error(
        "{path}: cannot read the keys for login tokens: {source}; `shadowland token keygen` makes one, and prints the \
         public key that belongs in the file security.token_keys"
    )]
    Unreadable {
        /// The file.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// A line is no key.
    #[error("{path}:{line}: {source}")]
    Malformed {
        /// The file.
        path: String,
        /// Line, from 1.
        line: usize,
        /// What it should be.
        source: NotAKey,
    },
    /// There is no key in it.
    #[error("{path}: no key; allowed: at least one, as `shadowland token keygen` prints it")]
    Empty {
        /// The file.
        path: String,
    },
    /// A new key cannot be kept.
    #[error("{path}: cannot keep the new key: {source}; allowed: a file that is not there yet")]
    Unwritable {
        /// The file.
        path: String,
        /// What the system says.
        source: io::Error,
    },
}

/// Reads the public keys whose tokens a server accepts.
///
/// # Errors
/// If there is none, or something that is none.
pub fn load_keys(path: &Path) -> Result<Vec<[u8; 32]>, TokenKeyError> {
    let name = path.display().to_string();
    let text = fs::read_to_string(path)
        .map_err(|source| TokenKeyError::Unreadable { path: name.clone(), source })?;
    let mut keys = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let key: PublicKey = line.parse().map_err(|source| TokenKeyError::Malformed {
            path: name.clone(),
            line: index + 1,
            source,
        })?;
        keys.push(key.0);
    }
    if keys.is_empty() { Err(TokenKeyError::Empty { path: name }) } else { Ok(keys) }
}

/// Reads the secret key that `shadowland token issue` signs with.
///
/// # Errors
/// If the file cannot be read or holds something else.
pub fn load_signer(path: &Path) -> Result<TokenSigner, TokenKeyError> {
    let name = path.display().to_string();
    let seed = identity::read_secret(path)
        .map_err(|source| TokenKeyError::Unreadable { path: name.clone(), source })?
        .map_err(|source| TokenKeyError::Malformed { path: name, line: 1, source })?;
    Ok(TokenSigner::from_seed(&seed))
}

/// Keeps a new secret key where nothing is yet, readable by its owner alone.
///
/// # Errors
/// If it cannot be written, or something is there.
pub fn keep_signer(path: &Path, signer: &TokenSigner) -> Result<(), TokenKeyError> {
    let failed = |source| TokenKeyError::Unwritable { path: path.display().to_string(), source };
    identity::create(path, signer.seed()).map_err(failed)
}

/// Which session plays as which account: the newest wins. Shared by all workers, and asked only when a session
/// begins or ends and once a tick.
#[derive(Debug)]
pub(crate) struct Accounts {
    playing: Mutex<BTreeMap<u64, Slot>>,
    /// By worker: its sessions that were replaced by a newer one.
    replaced: Box<[Mutex<Vec<Slot>>]>,
}

impl Playing for Accounts {
    fn plays(&self, account: u64) -> bool {
        lock(&self.playing).contains_key(&account)
    }
}

impl Accounts {
    pub(crate) fn new(workers: usize) -> Arc<Self> {
        let replaced = (0..workers).map(|_| Mutex::default()).collect();
        Arc::new(Self { playing: Mutex::default(), replaced })
    }

    /// A session has confirmed its keys and plays as `account` from here on.
    pub(crate) fn begin(&self, account: u64, session: Slot) {
        let older = lock(&self.playing).insert(account, session);
        if let Some(older) = older.filter(|older| *older != session)
            && let Some(replaced) = self.replaced.get(usize::from(older.worker()))
        {
            lock(replaced).push(older);
        }
    }

    /// A session is over.
    pub(crate) fn end(&self, account: u64, session: Slot) {
        let mut playing = lock(&self.playing);
        if playing.get(&account) == Some(&session) {
            playing.remove(&account);
        }
    }

    /// The sessions of a worker that were replaced since it last asked.
    pub(crate) fn take_replaced(&self, worker: usize) -> Vec<Slot> {
        self.replaced.get(worker).map(|replaced| std::mem::take(&mut *lock(replaced))).unwrap_or_default()
    }
}

/// A thread that panicked with the lock left nothing half-done: every change is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(name: &str, text: &str) -> Result<Vec<[u8; 32]>, String> {
        let path = std::env::temp_dir().join(format!("shadowland-tokens-{name}-{}", std::process::id()));
        fs::write(&path, text).unwrap();
        let keys =
            load_keys(&path).map_err(|error| error.to_string().replace(path.to_str().unwrap(), "FILE"));
        fs::remove_file(path).unwrap();
        keys
    }

    #[test]
    fn keys_stand_on_lines_and_mistakes_are_named() {
        let key = "ab".repeat(32);
        let text = format!("# old\n{key}\n\n  {key}  # new\n");
        assert_eq!(load("good", &text), Ok(vec![[0xab; 32]; 2]));
        assert_eq!(
            load("bad", &format!("{key}\n12\n")),
            Err("FILE:2: a key is 64 hexadecimal digits".to_owned())
        );
        assert!(load("empty", "# nothing\n").unwrap_err().starts_with("FILE: no key; allowed: "));
        let missing = load_keys(Path::new("/nonexistent/keys")).unwrap_err().to_string();
        assert!(missing.starts_with("/nonexistent/keys: cannot read"), "{missing}");
    }
}
