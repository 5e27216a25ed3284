//! The node's Ed25519 key, the public keys of its peers, and password files.
//!
//! Duty: make, write, read and check them. Refuses: secrets that others than the owner may read,
//! writing over or through anything that exists. Bound: 1 KiB of any such file.
//! Fails: [`KeyError`], which says what to do. Secrets are never printed.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64ct::{Base64, Encoding};
use ed25519_dalek::{SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

const SECRET_BYTES_MAX: u64 = 1_024;
const PREFIX: &str = "ed25519:";

/// Why there is no key or password.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not there, or not for us.
    #[error("secret {} cannot be read: {reason}; `larder init` makes a node's key", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
    /// Others than its owner may read it.
    #[error("secret {} has mode {mode:04o} and is open to others: chmod 600 {}", path.display(), path.display())]
    Loose {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Not a key.
    #[error("{} holds no node key: it needs 32 bytes as 44 characters of base64 or 64 of hex", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// Not a password.
    #[error("{} holds no password: it needs one line of text, at most 1,023 bytes", path.display())]
    NoPassword {
        /// The file.
        path: PathBuf,
    },
    /// Could not be written; an existing file is never touched.
    #[error("{} cannot be written: {reason}", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
    /// The kernel gave no random bytes.
    #[error("the kernel gives no random bytes: {0}")]
    Entropy(getrandom::Error),
}

/// A node's secret key.
pub struct NodeKey(SigningKey);

impl NodeKey {
    /// Makes a new one from the kernel's entropy.
    ///
    /// # Errors
    /// [`KeyError::Entropy`].
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(KeyError::Entropy)?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// Reads one from a file that only its owner may read.
    ///
    /// # Errors
    /// Unreadable, open to others, or no key.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let text = read_secret(path, || KeyError::NoKey { path: path.to_owned() })?;
        let seed = decode(text.trim()).ok_or_else(|| KeyError::NoKey { path: path.to_owned() })?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// Writes it to a new file of mode 0600 and syncs file and folder.
    ///
    /// # Errors
    /// [`KeyError::Unwritable`], also when anything of that name exists, a dangling link included.
    pub fn write_new(&self, path: &Path) -> Result<(), KeyError> {
        let text = Base64::encode_string(self.0.as_bytes()) + "\n";
        write_new(path, text.as_bytes(), 0o600)
            .map_err(|reason| KeyError::Unwritable { path: path.to_owned(), reason })
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// For signing.
    #[must_use]
    pub fn signing(&self) -> &SigningKey {
        &self.0
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey(public {})", self.public())
    }
}

/// A node's public key; as text `ed25519:` and 44 characters of base64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(VerifyingKey);

/// A text that is no public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a public key: it needs \"ed25519:\" and 44 characters of base64, as `larder init` prints it")]
pub struct NoPublicKey;

impl PublicKey {
    /// For checking signatures.
    #[must_use]
    pub fn verifying(&self) -> &VerifyingKey {
        &self.0
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

impl FromStr for PublicKey {
    type Err = NoPublicKey;

    /// Weak keys, under which a signature can hold for more than one message, are refused too.
    fn from_str(text: &str) -> Result<Self, NoPublicKey> {
        let bytes = text.strip_prefix(PREFIX).and_then(decode).ok_or(NoPublicKey)?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| NoPublicKey)?;
        if key.is_weak() { Err(NoPublicKey) } else { Ok(Self(key)) }
    }
}

impl TryFrom<String> for PublicKey {
    type Error = NoPublicKey;

    fn try_from(text: String) -> Result<Self, NoPublicKey> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", Base64::encode_string(self.0.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Reads a password: one line, without its end, from a file that only its owner may read.
///
/// # Errors
/// Unreadable, open to others, empty or too long.
pub fn read_password(path: &Path) -> Result<String, KeyError> {
    let refused = || KeyError::NoPassword { path: path.to_owned() };
    let text = read_secret(path, refused)?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() || line.contains(['\n', '\0']) { Err(refused()) } else { Ok(line.to_owned()) }
}

fn read_secret(path: &Path, refused: impl Fn() -> KeyError) -> Result<String, KeyError> {
    let unreadable = |reason| KeyError::Unreadable { path: path.to_owned(), reason };
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.mode() & 0o7777;
    if mode & 0o077 != 0 && !is_credential(path) {
        return Err(KeyError::Loose { path: path.to_owned(), mode });
    }
    let mut bytes = Vec::new();
    file.take(SECRET_BYTES_MAX).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 == SECRET_BYTES_MAX {
        return Err(refused());
    }
    String::from_utf8(bytes).map_err(|_| refused())
}

/// Whether systemd guards the file: it lets the service in by an access list, which shows as a group's right.
fn is_credential(path: &Path) -> bool {
    std::env::var_os("CREDENTIALS_DIRECTORY").is_some_and(|folder| path.parent() == Some(Path::new(&folder)))
}

fn decode(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    match text.len() {
        44 => (Base64::decode(text, &mut bytes).ok()?.len() == bytes.len()).then_some(bytes),
        64 => {
            for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().as_chunks::<2>().0) {
                let [high, low] = digits.map(|digit| char::from(digit).to_digit(16));
                *byte = u8::try_from(high? * 16 + low?).ok()?;
            }
            Some(bytes)
        }
        _ => None,
    }
}

/// Makes a file that must not exist yet, not even as a link, and syncs it and its folder.
pub(super) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn write(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_key_reads_back_as_it_was_written_and_only_for_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        let key = NodeKey::generate().unwrap();
        key.write_new(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(NodeKey::load(&path).unwrap().public(), key.public());
        assert!(!format!("{key:?}").contains(fs::read_to_string(&path).unwrap().trim()));
    }

    #[test]
    fn a_key_in_hex_is_read_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        write(&path, &"0f".repeat(32), 0o400);
        assert_eq!(NodeKey::load(&path).unwrap().signing().as_bytes(), &[15; 32]);
    }

    #[test]
    fn a_key_open_to_others_is_refused_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        for mode in [0o640, 0o604, 0o660, 0o644] {
            write(&path, &"0f".repeat(32), mode);
            let error = NodeKey::load(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("{mode:04o}")) && error.contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        for text in ["", "short", &"zz".repeat(32), &"A".repeat(44), &"0f".repeat(600)] {
            write(&path, text, 0o600);
            assert!(matches!(NodeKey::load(&path), Err(KeyError::NoKey { .. })), "{text}");
        }
        let absent = NodeKey::load(&dir.path().join("absent")).unwrap_err().to_string();
        assert!(absent.contains("larder init"), "{absent}");
    }

    #[test]
    fn nothing_that_exists_is_written_over_or_through() {
        let dir = tempfile::tempdir().unwrap();
        let (taken, link) = (dir.path().join("taken"), dir.path().join("link"));
        fs::write(&taken, "precious").unwrap();
        symlink(dir.path().join("elsewhere"), &link).unwrap();
        let key = NodeKey::generate().unwrap();
        for path in [&taken, &link] {
            assert!(matches!(key.write_new(path), Err(KeyError::Unwritable { .. })));
        }
        assert_eq!(fs::read_to_string(&taken).unwrap(), "precious");
        assert!(!dir.path().join("elsewhere").exists());
    }

    #[test]
    fn a_public_key_reads_back_and_a_damaged_or_weak_one_does_not() {
        let text = NodeKey::generate().unwrap().public().to_string();
        assert_eq!(text.parse::<PublicKey>().unwrap().to_string(), text);
        let weak = format!("ed25519:{}", Base64::encode_string(&[0; 32]));
        for bad in [&text[1..], &text[..text.len() - 1], "ed25519:", &weak] {
            assert_eq!(bad.parse::<PublicKey>(), Err(NoPublicKey), "{bad}");
        }
    }

    #[test]
    fn a_password_is_one_line_of_a_private_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        write(&path, "open sesame\n", 0o600);
        assert_eq!(read_password(&path).unwrap(), "open sesame");
        for text in ["", "\n", "two\nlines\n"] {
            write(&path, text, 0o600);
            assert!(matches!(read_password(&path), Err(KeyError::NoPassword { .. })), "{text:?}");
        }
        write(&path, "open sesame", 0o644);
        assert!(matches!(read_password(&path), Err(KeyError::Loose { .. })));
    }
}
