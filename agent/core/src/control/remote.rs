//! Commands over MQTT: JSON for people and home automation, signed with Ed25519.
//!
//! The envelope names signer, receiver, counter and expiry; the signature covers all of them and the
//! body's text as it stands, so that nobody has to agree on how JSON is written. A receiver obeys a
//! counter once. See `docs/protocol.md`.

use crate::id::NodeName;
use crate::limits::{COMMAND_BYTES_MAX, COMMAND_SKEW_MS, MESSAGE_BYTES_MAX};
use crate::message::Channel;
use crate::seal::Between;
use crate::time::CLOCK_UNSET_MS;
use ed25519_dalek::{SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

/// A signed command or answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// The signer; its configured key is the key id.
    pub from: NodeName,
    /// The receiver.
    pub to: NodeName,
    /// Of a command: greater than any the receiver has obeyed from this signer. Of an answer: the command's.
    pub counter: u64,
    /// Unix milliseconds after which the command is void; 0 in answers.
    pub expires_ms: i64,
    /// The request or response, as JSON text.
    pub body: String,
    /// Ed25519, in hexadecimal, of the text `docs/protocol.md` gives.
    pub signature: String,
}

/// Why an envelope is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Over the limit.
    #[error("the command has {0} bytes, {COMMAND_BYTES_MAX} are the limit")]
    Large(usize),
    /// Not the JSON that is expected.
    #[error("the command does not parse: {0}")]
    Malformed(String),
    /// Named another sender or receiver than its topic.
    #[error("the command names other nodes than its topic")]
    Nodes,
    /// Not signed by the configured key of the signer, or altered.
    #[error("the signature is not of the sender's configured key")]
    Signature,
    /// Too late.
    #[error("the command has expired; check both clocks")]
    Expired,
}

impl Envelope {
    /// A signed envelope around `body`.
    pub fn seal(key: &SigningKey, between: Between<'_>, counter: u64, expires_ms: i64, body: String) -> Self {
        let text = signed_text(counter, expires_ms, &body);
        let signature = hex(&between.sign(key, text.as_bytes()));
        Envelope { from: between.from.clone(), to: between.to.clone(), counter, expires_ms, body, signature }
    }

    /// The envelope's JSON.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an envelope holds only text and numbers")
    }

    /// Reads an envelope and checks everything but counter and expiry.
    pub fn open(bytes: &[u8], key: &VerifyingKey, between: Between<'_>) -> Result<Self, EnvelopeError> {
        let bytes_max =
            if between.channel == Channel::Answer { MESSAGE_BYTES_MAX } else { COMMAND_BYTES_MAX };
        if bytes.len() > bytes_max {
            return Err(EnvelopeError::Large(bytes.len()));
        }
        let envelope: Envelope =
            serde_json::from_slice(bytes).map_err(|error| EnvelopeError::Malformed(error.to_string()))?;
        if envelope.from != *between.from || envelope.to != *between.to {
            return Err(EnvelopeError::Nodes);
        }
        let signature = unhex(&envelope.signature).ok_or(EnvelopeError::Signature)?;
        let text = signed_text(envelope.counter, envelope.expires_ms, &envelope.body);
        between.verify(key, text.as_bytes(), &signature).map_err(|_| EnvelopeError::Signature)?;
        Ok(envelope)
    }

    /// Whether a command is in time. A clock before 2020 was never set and can not judge.
    pub fn check_expiry(&self, wall_ms: i64) -> Result<(), EnvelopeError> {
        let far = self.expires_ms > wall_ms.saturating_add(24 * 3_600_000);
        let past = self.expires_ms.saturating_add(COMMAND_SKEW_MS) < wall_ms;
        if wall_ms >= CLOCK_UNSET_MS && (past || far) {
            return Err(EnvelopeError::Expired);
        }
        Ok(())
    }
}

fn signed_text(counter: u64, expires_ms: i64, body: &str) -> String {
    format!("{counter}\n{expires_ms}\n{}", blake3::hash(body.as_bytes()).to_hex())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 64]> {
    let mut bytes = [0; 64];
    if text.len() != 128 || !text.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_altered_envelope_is_refused_and_an_old_one_expires() {
        let key = SigningKey::from_bytes(&[3; 32]);
        let (from, to): (NodeName, NodeName) = ("master".parse().unwrap(), "cam".parse().unwrap());
        let between = Between { fleet: "f", from: &from, to: &to, channel: Channel::Command };
        let now_ms = 1_800_000_000_000;
        let envelope = Envelope::seal(&key, between, 7, now_ms + 30_000, r#"{"do":"status"}"#.into());
        let opened = Envelope::open(&envelope.encode(), &key.verifying_key(), between).unwrap();
        assert_eq!(opened, envelope);
        assert_eq!(opened.check_expiry(now_ms), Ok(()));
        assert_eq!(opened.check_expiry(now_ms + 3_600_000), Err(EnvelopeError::Expired));
        assert_eq!(opened.check_expiry(0), Ok(()));
        for never in [i64::MIN, i64::MAX] {
            let envelope = Envelope { expires_ms: never, ..envelope.clone() };
            assert_eq!(envelope.check_expiry(now_ms), Err(EnvelopeError::Expired));
        }
        for altered in [
            Envelope { counter: 8, ..envelope.clone() },
            Envelope { expires_ms: now_ms + 1, ..envelope.clone() },
            Envelope { body: r#"{"do":"verify"}"#.into(), ..envelope.clone() },
            Envelope { signature: "00".repeat(64), ..envelope.clone() },
        ] {
            let refused = Envelope::open(&altered.encode(), &key.verifying_key(), between);
            assert_eq!(refused, Err(EnvelopeError::Signature));
        }
    }
}
