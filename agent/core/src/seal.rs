//! Signatures on what nodes say to each other.
//!
//! A sync message travels as one version byte, an Ed25519 signature of 64 bytes and the body. The
//! signature covers the fleet, both nodes and the inbox, so a message can not be replayed to another
//! node. Replays to the same node are harmless: every sync step may be repeated. Blocks are not signed:
//! they verify by their own name.

use crate::id::NodeName;
use crate::message::Channel;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

/// Version of what is sealed; a receiver reads the older ones too, and drops any other.
pub const SEAL_VERSION: u8 = 3;
const HEAD: usize = 1 + 64;

/// What a signature is bound to, beside the body.
#[derive(Clone, Copy, Debug)]
pub struct Between<'a> {
    /// The fleet of both.
    pub fleet: &'a str,
    /// The signer.
    pub from: &'a NodeName,
    /// The receiver.
    pub to: &'a NodeName,
    /// The inbox.
    pub channel: Channel,
}

impl Between<'_> {
    fn text(&self, body: &[u8]) -> Vec<u8> {
        let head = format!("larder/1/{}\n{}\n{}\n{}\n", self.channel.level(), self.fleet, self.from, self.to);
        let mut text = head.into_bytes();
        text.extend_from_slice(body);
        text
    }

    /// A signature of `body`.
    pub fn sign(&self, key: &SigningKey, body: &[u8]) -> [u8; 64] {
        key.sign(&self.text(body)).to_bytes()
    }

    /// Whether `signature` is `key`'s, of `body`.
    pub fn verify(&self, key: &VerifyingKey, body: &[u8], signature: &[u8; 64]) -> Result<(), SealError> {
        key.verify_strict(&self.text(body), &Signature::from_bytes(signature))
            .map_err(|_| SealError::Signature)
    }
}

/// Why a sealed message is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Too short to hold a signature.
    #[error("the message is too short to be signed")]
    Short,
    /// Another version.
    #[error(
        "the message has seal version {0}, this node reads version {SEAL_VERSION}; upgrade the older node"
    )]
    Version(u8),
    /// Not signed by the configured key of the sender, or altered.
    #[error("the signature is not of the sender's configured key")]
    Signature,
}

/// `body`, signed.
pub fn seal(key: &SigningKey, between: Between<'_>, body: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(HEAD + body.len());
    sealed.push(SEAL_VERSION);
    sealed.extend_from_slice(&between.sign(key, body));
    sealed.extend_from_slice(body);
    sealed
}

/// The version and the body of a sealed message, if `key` signed it for this receiver.
pub fn open<'m>(
    key: &VerifyingKey,
    between: Between<'_>,
    sealed: &'m [u8],
) -> Result<(u8, &'m [u8]), SealError> {
    let (head, body) = sealed.split_at_checked(HEAD).ok_or(SealError::Short)?;
    if !(1..=SEAL_VERSION).contains(&head[0]) {
        return Err(SealError::Version(head[0]));
    }
    let signature: &[u8; 64] = head[1..].try_into().map_err(|_| SealError::Short)?;
    between.verify(key, body, signature)?;
    Ok((head[0], body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> (NodeName, NodeName, NodeName) {
        ("a".parse().unwrap(), "b".parse().unwrap(), "c".parse().unwrap())
    }

    #[test]
    fn a_sealed_message_opens_only_for_its_receiver_and_unaltered() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let (a, b, c) = names();
        let between = |to| Between { fleet: "f", from: &a, to, channel: Channel::Sync };
        let sealed = seal(&key, between(&b), b"body");
        assert_eq!(open(&key.verifying_key(), between(&b), &sealed), Ok((SEAL_VERSION, &b"body"[..])));
        assert_eq!(open(&key.verifying_key(), between(&c), &sealed), Err(SealError::Signature));
        for at in 1..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert!(open(&key.verifying_key(), between(&b), &altered).is_err(), "byte {at}");
        }
        assert_eq!(open(&key.verifying_key(), between(&b), &sealed[..64]), Err(SealError::Short));
    }
}
