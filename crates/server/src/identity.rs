//! The server's static X25519 key pair: made on the first start, kept in `server.key` of the data directory.
//!
//! The file holds the private key as 64 hexadecimal digits and is readable by its owner alone. Clients must
//! know the public key beforehand; it is written the same way, in lower case.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rand::CryptoRng;
use shadowland_proto::Identity;
use thiserror::Error;
use zeroize::Zeroizing;

/// Name of the key file in the data directory.
pub const KEY_FILE: &str = "server.key";

/// Bytes of an X25519 key, private or public.
const KEY_BYTES: usize = 32;

/// A server's public key; as text, 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(pub [u8; KEY_BYTES]);

/// Why there is no key; every message is one line.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The file is there but cannot be read.
    #[error("{path}: cannot read the server's key: {source}")]
    Unreadable {
        /// The key file.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// The file holds something else.
    #[error(
        "{path}: not a server key; allowed: 64 hexadecimal digits. Restore it from a backup, or remove it to get \
         a new key, which all clients must then be given"
    )]
    Malformed {
        /// The key file.
        path: String,
    },
    /// The file cannot be made.
    #[error("{path}: cannot keep the server's new key: {source}")]
    Unwritable {
        /// The key file.
        path: String,
        /// What the system says.
        source: io::Error,
    },
}

/// Text that is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a key is 64 hexadecimal digits")]
pub struct NotAKey;

/// Reads the key pair from `data_dir`, or makes one there on the first start.
///
/// # Errors
/// If the file is unreadable or holds something else, or a new one cannot be written. A file that is there is
/// never overwritten.
pub fn load_or_create(data_dir: &Path, rng: &mut dyn CryptoRng) -> Result<Identity, KeyError> {
    let path = data_dir.join(KEY_FILE);
    let name = path.display().to_string();
    match fs::read(&path) {
        Ok(bytes) => {
            let bytes = Zeroizing::new(bytes);
            let text = std::str::from_utf8(&bytes).map_err(|_| KeyError::Malformed { path: name.clone() })?;
            let key = parse_hex(text.trim()).map_err(|_| KeyError::Malformed { path: name.clone() })?;
            warn_if_shared(&path);
            Ok(Identity::from_private_key(&Zeroizing::new(key)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let identity = Identity::generate(rng);
            create(&path, identity.private_key())
                .map_err(|source| KeyError::Unwritable { path: name.clone(), source })?;
            tracing::info!(file = %name, "made a new server key");
            Ok(identity)
        }
        Err(source) => Err(KeyError::Unreadable { path: name, source }),
    }
}

/// The secret key in a file of 64 hexadecimal digits.
pub(crate) fn read_secret(path: &Path) -> io::Result<Result<Zeroizing<[u8; KEY_BYTES]>, NotAKey>> {
    let bytes = Zeroizing::new(fs::read(path)?);
    warn_if_shared(path);
    let key = std::str::from_utf8(&bytes).map_err(|_| NotAKey).and_then(|text| parse_hex(text.trim()));
    Ok(key.map(Zeroizing::new))
}

/// Writes beside the final name first: a crash never leaves half a key there. What one left beside it is in nobody's
/// way, and a key that is there is never replaced.
pub(crate) fn create(path: &Path, key: &[u8; KEY_BYTES]) -> io::Result<()> {
    let mut text = Zeroizing::new(format_hex(key));
    text.push('\n');
    create_file(path, text.as_bytes())
}

/// As [`create`], for any secret.
pub(crate) fn create_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let (new, mut file) = open_beside(path, &options)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    let linked = written.and_then(|()| fs::hard_link(&new, path));
    let _ = fs::remove_file(&new);
    linked
}

/// Writes a file that is no secret, in place of one that is there: whoever reads it finds all of the one or of the other.
/// A device, or a link to a file that is not there yet, is not replaced but written to.
///
/// # Errors
/// If it cannot be written; what is there then stays.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if fs::symlink_metadata(path).is_ok() && !path.is_file() {
        return fs::write(path, bytes);
    }
    // What a link points to is replaced, and not the link.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let (new, mut file) = open_beside(&path, OpenOptions::new().write(true).create_new(true))?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    let replaced = written.and_then(|()| match fs::metadata(&path) {
        Ok(old) => file.set_permissions(old.permissions()),
        Err(_) => Ok(()),
    });
    let replaced = replaced.and_then(|()| fs::rename(&new, &path));
    if replaced.is_err() {
        let _ = fs::remove_file(&new);
    }
    replaced
}

/// A new file beside `path`, with a name that nobody has used.
fn open_beside(path: &Path, options: &OpenOptions) -> io::Result<(PathBuf, fs::File)> {
    let mut number = 0;
    loop {
        let new = path.with_extension(format!("new.{}.{number}", std::process::id()));
        match options.open(&new) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < 1_000 => number += 1,
            opened => return opened.map(|file| (new, file)),
        }
    }
}

#[cfg(unix)]
fn warn_if_shared(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let Ok(metadata) = fs::metadata(path) else { return };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        tracing::warn!(
            file = %path.display(),
            mode = format_args!("{mode:o}"),
            "others on this machine may read this private key; chmod 600 it"
        );
    }
}

#[cfg(not(unix))]
fn warn_if_shared(_path: &Path) {}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format_hex(&self.0))
    }
}

impl FromStr for PublicKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        parse_hex(text).map(Self)
    }
}

fn format_hex(key: &[u8; KEY_BYTES]) -> String {
    // Room for the line end too, so that no copy of a private key is left behind by growing.
    let mut text = String::with_capacity(2 * KEY_BYTES + 1);
    for byte in key {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(digit.into(), 16).expect("a digit is below 16"));
        }
    }
    text
}

fn parse_hex(text: &str) -> Result<[u8; KEY_BYTES], NotAKey> {
    if text.len() != 2 * KEY_BYTES {
        return Err(NotAKey);
    }
    let mut key = [0; KEY_BYTES];
    for (byte, pair) in key.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |byte: u8| char::from(byte).to_digit(16).ok_or(NotAKey);
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("shadowland-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn load(directory: &Directory, seed: u64) -> Result<Identity, KeyError> {
        load_or_create(&directory.0, &mut StdRng::seed_from_u64(seed))
    }

    #[test]
    fn the_first_start_makes_a_key_and_the_next_finds_it() {
        let directory = Directory::new("key-kept");
        let first = load(&directory, 1).unwrap();
        assert_eq!(load(&directory, 2).unwrap().public_key(), first.public_key());
        assert_eq!(fs::read_dir(&directory.0).unwrap().count(), 1, "nothing but the key is left");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(directory.0.join(KEY_FILE)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn what_a_crash_left_is_in_nobodys_way_and_a_key_is_never_replaced() {
        let directory = Directory::new("key-crash");
        fs::create_dir_all(&directory.0).unwrap();
        let path = directory.0.join(KEY_FILE);
        let left = path.with_extension(format!("new.{}.0", std::process::id()));
        fs::write(&left, "half").unwrap();
        let first = load(&directory, 1).unwrap();
        let other = create(&path, &[7; KEY_BYTES]).unwrap_err();
        assert_eq!(other.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(load(&directory, 2).unwrap().public_key(), first.public_key());
        assert_eq!(fs::read_dir(&directory.0).unwrap().count(), 2, "the key, and what the crash left");
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_not_replaced() {
        use std::os::unix::fs::{FileTypeExt, symlink};
        let directory = Directory::new("no-file");
        fs::create_dir_all(&directory.0).unwrap();
        let [socket, link, target] = ["socket", "link", "target"].map(|name| directory.0.join(name));
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        // A socket takes no bytes by its name.
        assert!(replace_file(&socket, b"text").is_err());
        assert!(fs::symlink_metadata(&socket).unwrap().file_type().is_socket());
        symlink("target", &link).unwrap();
        for text in ["a file that was not there", "and one that was"] {
            replace_file(&link, text.as_bytes()).unwrap();
            assert!(link.is_symlink());
            assert_eq!(fs::read_to_string(&target).unwrap(), text);
        }
        assert_eq!(fs::read_dir(&directory.0).unwrap().count(), 3, "nothing is left beside them");
    }

    #[test]
    fn what_is_not_a_key_is_named_and_left_alone() {
        let digits = "0123456789abcdef".repeat(4);
        for content in
            [&b""[..], b"short", &[0xff; 64], format!("{digits}0").as_bytes(), "g".repeat(64).as_bytes()]
        {
            let directory = Directory::new("key-malformed");
            fs::create_dir_all(&directory.0).unwrap();
            let path = directory.0.join(KEY_FILE);
            fs::write(&path, content).unwrap();
            let message = load(&directory, 1).unwrap_err().to_string();
            assert!(
                message.starts_with(&format!("{}: not a server key; allowed: ", path.display())),
                "{message}"
            );
            assert_eq!(message.lines().count(), 1);
            assert_eq!(fs::read(&path).unwrap(), content);
        }
    }

    #[test]
    fn an_unreadable_file_and_an_unwritable_directory_are_named() {
        let directory = Directory::new("key-unreadable");
        // A directory in the file's place: nobody can read it as a file, not even root.
        fs::create_dir_all(directory.0.join(KEY_FILE)).unwrap();
        let message = load(&directory, 1).unwrap_err().to_string();
        assert!(message.contains("server.key: cannot read the server's key: "), "{message}");

        let file = directory.0.join("file");
        fs::write(&file, "").unwrap();
        let message =
            load_or_create(&file.join("data"), &mut StdRng::seed_from_u64(1)).unwrap_err().to_string();
        assert!(message.contains("server.key: cannot "), "{message}");
    }

    #[test]
    fn keys_are_64_hexadecimal_digits() {
        let text = "00ff".repeat(16);
        assert_eq!(text.parse::<PublicKey>().unwrap().to_string(), text);
        assert_eq!(text.to_uppercase().parse::<PublicKey>().unwrap().to_string(), text);
        for bad in
            ["", "00", &"0".repeat(63), &"0".repeat(65), &format!("+{}", "0".repeat(63)), &"é".repeat(32)]
        {
            assert_eq!(bad.parse::<PublicKey>(), Err(NotAKey), "{bad:?}");
        }
    }
}
