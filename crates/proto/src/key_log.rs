//! The key log: every key of every session in a file, so that captures can be read while something is debugged.
//!
//! A line a key, whenever a session or a rekey makes one: `CLIENT_TO_SERVER` or `SERVER_TO_CLIENT`, the ConnectionId (8
//! hexadecimal digits), the number of the key (0 after the handshake, one more with each rekey), the key (64 digits).
//! `tools/wireshark/shadowland.lua` reads it. Whoever has the file reads what its sessions say: it is off unless
//! somebody asks for it, and whoever turns it on says so.

use std::fmt::{self, Write as _};
use std::fs::OpenOptions;
#[cfg(unix)]
use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use zeroize::Zeroizing;

use crate::crypto::key_schedule::{Secret, SessionKeys};

/// The variable that names the file of servers and clients that are asked to log their keys.
pub const KEY_LOG_VARIABLE: &str = "SHADOWLAND_KEYLOGFILE";

/// Where keys are logged; shared by all sessions of a process.
pub struct KeyLog(Mutex<Box<dyn Write + Send>>);

impl KeyLog {
    /// Logs to `sink`, with one write per session and rekey. What it refuses is lost.
    #[must_use]
    pub fn new(sink: impl Write + Send + 'static) -> Self {
        Self(Mutex::new(Box::new(sink)))
    }

    /// Logs to the end of a file, which is made if need be, readable by its owner alone. If others could read one that
    /// was there, they cannot any more; of pipes and devices that is left to whoever made them.
    ///
    /// # Errors
    /// If the file cannot be written to, or kept from others.
    pub fn append(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.append(true).create(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(path)?;
        #[cfg(unix)]
        keep_from_others(&file)?;
        Ok(Self::new(file))
    }
}

#[cfg(unix)]
fn keep_from_others(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.permissions().mode() & 0o077 == 0 {
        return Ok(());
    }
    let kept = file.set_permissions(Permissions::from_mode(0o600));
    kept.map_err(|error| {
        let text = format!("others may read it, and that cannot be changed ({error}); name another file");
        io::Error::new(error.kind(), text)
    })
}

impl fmt::Debug for KeyLog {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("KeyLog")
    }
}

/// The key log of one session.
pub(crate) struct SessionKeyLog {
    log: Arc<KeyLog>,
    connection_id: u32,
}

impl SessionKeyLog {
    pub(crate) fn new(log: &Arc<KeyLog>, connection_id: u32) -> Self {
        Self { log: Arc::clone(log), connection_id }
    }

    /// Logs the keys with this number, before anything is sealed with them.
    pub(crate) fn note(&self, number: u32, keys: &SessionKeys) {
        // Room for both lines, so that no copy of a key is left behind by growing.
        let mut lines = Zeroizing::new(String::with_capacity(256));
        self.line(&mut lines, "CLIENT_TO_SERVER", number, &keys.client_to_server);
        self.line(&mut lines, "SERVER_TO_CLIENT", number, &keys.server_to_client);
        // A thread that panicked with the lock left whole lines, or what a full disk leaves too.
        let mut sink = self.log.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The session is worth more than its log.
        let _ = sink.write_all(lines.as_bytes()).and_then(|()| sink.flush());
    }

    fn line(&self, lines: &mut String, label: &str, number: u32, key: &Secret) {
        let _ = write!(lines, "{label} {:08x} {number} ", self.connection_id);
        for byte in key.iter() {
            let _ = write!(lines, "{byte:02x}");
        }
        lines.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_a_key_and_the_file_is_its_owners() {
        let path = std::env::temp_dir().join(format!("shadowland-key-log-{}", std::process::id()));
        let key = |byte| Zeroizing::new([byte; 32]);
        let keys = SessionKeys { client_to_server: key(1), server_to_client: key(0xab), chain: key(3) };
        // The second time it is there, and others may read it.
        for number in 0..2 {
            #[cfg(unix)]
            if number == 1 {
                std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o664)).unwrap();
            }
            let log = Arc::new(KeyLog::append(&path).unwrap());
            SessionKeyLog::new(&log, 0x0100_0a02).note(number, &keys);
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let (to_server, to_client) = ("01".repeat(32), "ab".repeat(32));
        let expected: Vec<_> = (0..2)
            .flat_map(|number| {
                [
                    format!("CLIENT_TO_SERVER 01000a02 {number} {to_server}"),
                    format!("SERVER_TO_CLIENT 01000a02 {number} {to_client}"),
                ]
            })
            .collect();
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        std::fs::remove_file(path).unwrap();
    }
}
