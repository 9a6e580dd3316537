//! How an envelope becomes the bytes of a file: as it is, compressed, or encrypted.
//!
//! What a file is, its first bytes say; so a plain state is loaded by a program that compresses from now
//! on, and the other way.

use std::borrow::Cow;
use std::io;

use super::envelope::Damage;

/// What a zstd frame begins with (RFC 8878).
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// What an age file begins with (age-encryption.org/v1).
const AGE: &[u8] = b"age-encryption.org/v1";

/// What is done to an envelope before it is stored.
#[derive(Clone, Default)]
pub struct Codec {
    /// Compress with zstd.
    #[cfg(feature = "compression")]
    pub compress: bool,
    /// Encrypt with age, to this key; what is loaded is decrypted with it.
    #[cfg(feature = "encryption")]
    pub key: Option<age::x25519::Identity>,
}

impl Codec {
    /// The bytes of the file.
    pub fn encode(&self, envelope: Vec<u8>) -> io::Result<Vec<u8>> {
        let bytes = envelope;
        #[cfg(feature = "compression")]
        let bytes = if self.compress {
            zstd::encode_all(&bytes[..], zstd::DEFAULT_COMPRESSION_LEVEL)?
        } else {
            bytes
        };
        #[cfg(feature = "encryption")]
        let bytes = match &self.key {
            Some(key) => age::encrypt(&key.to_public(), &bytes).map_err(io::Error::other)?,
            None => bytes,
        };
        Ok(bytes)
    }

    /// The envelope in a file.
    pub fn decode<'a>(&self, bytes: &'a [u8]) -> Result<Cow<'a, [u8]>, Damage> {
        let mut bytes = Cow::Borrowed(bytes);
        if bytes.starts_with(AGE) {
            bytes = Cow::Owned(self.decrypted(&bytes)?);
        }
        if bytes.starts_with(&ZSTD) {
            bytes = Cow::Owned(decompressed(&bytes)?);
        }
        Ok(bytes)
    }

    #[cfg(feature = "encryption")]
    fn decrypted(&self, bytes: &[u8]) -> Result<Vec<u8>, Damage> {
        let Some(key) = &self.key else {
            return Err(Damage::Unreadable("it is encrypted, and no key was given".to_owned()));
        };
        age::decrypt(key, bytes).map_err(|error| Damage::Malformed(error.to_string()))
    }

    #[cfg(not(feature = "encryption"))]
    fn decrypted(&self, _bytes: &[u8]) -> Result<Vec<u8>, Damage> {
        Err(Damage::Unreadable(
            "it is encrypted, and this program was built without that".to_owned(),
        ))
    }
}

#[cfg(feature = "compression")]
fn decompressed(bytes: &[u8]) -> Result<Vec<u8>, Damage> {
    zstd::decode_all(bytes).map_err(|error| Damage::Malformed(error.to_string()))
}

#[cfg(not(feature = "compression"))]
fn decompressed(_bytes: &[u8]) -> Result<Vec<u8>, Damage> {
    Err(Damage::Unreadable("it is compressed, and this program was built without that".to_owned()))
}

#[cfg(all(test, feature = "compression", feature = "encryption"))]
mod tests {
    use super::*;

    #[test]
    fn what_is_compressed_and_encrypted_is_read_again_and_by_no_other_key() {
        let envelope = b"{\"format\":\"managed-state\"}".repeat(100);
        let key = age::x25519::Identity::generate();
        let codec = Codec { compress: true, key: Some(key) };
        let stored = codec.encode(envelope.clone()).unwrap();
        assert!(stored.starts_with(AGE) && stored.len() < envelope.len());
        assert_eq!(&*codec.decode(&stored).unwrap(), &envelope[..]);
        let other = Codec { compress: true, key: Some(age::x25519::Identity::generate()) };
        assert!(other.decode(&stored).is_err() && Codec::default().decode(&stored).is_err());
        // One that encrypts nothing yet is read all the same.
        assert_eq!(&*codec.decode(&envelope).unwrap(), &envelope[..]);
    }
}
