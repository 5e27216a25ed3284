//! Identities: what a block and a node are called.
//!
//! A block's name is the BLAKE3 hash of its bytes, shown as a CIDv1 so that IPFS tools can name the same
//! bytes. A node's name is one level of an MQTT topic. Both refuse text that is not exactly the form they
//! print, with an error that says what is wrong; both are capped before anything is decoded.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use larder_kernels::{Level, hash_many};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// The longest text that is looked at as a CID: room for a wrong but well-meant one with a 64-byte hash.
const CID_TEXT_BYTES_MAX: usize = 160;
/// The multicodec number of raw bytes.
const CODEC_RAW: u64 = 0x55;
/// The multihash number of BLAKE3.
const HASH_BLAKE3: u64 = 0x1e;
/// The longest node name in bytes.
pub const NODE_NAME_BYTES_MAX: usize = 64;

/// The name of a block: the BLAKE3 hash of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub [u8; 32]);

/// Why a text is not a block's name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CidError {
    /// Longer than any CID.
    #[error("a CID has at most {CID_TEXT_BYTES_MAX} characters, this has {0}")]
    TooLong(usize),
    /// Not a CID at all.
    #[error("`{text}` is not a CID: {why}")]
    Malformed {
        /// What was given.
        text: String,
        /// What the decoder says.
        why: String,
    },
    /// A CID of another kind of content.
    #[error("`{text}` names content of codec {codec:#x}; Larder names raw blocks (codec 0x55)")]
    Codec {
        /// What was given.
        text: String,
        /// The codec it names.
        codec: u64,
    },
    /// A CID by another hash.
    #[error("`{text}` uses hash {code:#x} of {bytes} bytes; Larder uses BLAKE3 (0x1e) of 32 bytes")]
    Hash {
        /// What was given.
        text: String,
        /// The hash function it names.
        code: u64,
        /// The length of its digest.
        bytes: u8,
    },
    /// The right block, written in another way.
    #[error("`{text}` has to be written as {canonical}")]
    NotCanonical {
        /// What was given.
        text: String,
        /// The one accepted form.
        canonical: BlockId,
    },
}

impl BlockId {
    /// The name of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> BlockId {
        BlockId(*blake3::hash(bytes).as_bytes())
    }

    /// The names of many blocks, in their order. Small ones are hashed side by side, at this level.
    #[must_use]
    pub fn of_many(level: Level, blocks: &[Bytes]) -> Vec<BlockId> {
        let blocks: Vec<&[u8]> = blocks.iter().map(Bytes::as_ref).collect();
        let mut hashes = vec![[0; 32]; blocks.len()];
        hash_many(level, &blocks, &mut hashes);
        hashes.into_iter().map(BlockId).collect()
    }

    /// The first eight hex digits of the hash: for people, and for names of conflicting copies.
    #[must_use]
    pub fn short(&self) -> String {
        self.0[..4].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn cid(&self) -> cid::Cid {
        let hash =
            multihash::Multihash::wrap(HASH_BLAKE3, &self.0).expect("32 bytes fit a 64-byte multihash");
        cid::Cid::new_v1(CODEC_RAW, hash)
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.cid().to_string())
    }
}

impl fmt::Debug for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockId({})", self.short())
    }
}

impl FromStr for BlockId {
    type Err = CidError;

    fn from_str(text: &str) -> Result<BlockId, CidError> {
        if text.len() > CID_TEXT_BYTES_MAX {
            return Err(CidError::TooLong(text.len()));
        }
        let cid = cid::Cid::try_from(text)
            .map_err(|why| CidError::Malformed { text: text.to_owned(), why: why.to_string() })?;
        let hash = cid.hash();
        let wrong_hash = || CidError::Hash { text: text.to_owned(), code: hash.code(), bytes: hash.size() };
        if hash.code() != HASH_BLAKE3 {
            return Err(wrong_hash());
        }
        let digest = hash.digest().try_into().map_err(|_| wrong_hash())?;
        if cid.codec() != CODEC_RAW {
            return Err(CidError::Codec { text: text.to_owned(), codec: cid.codec() });
        }
        let id = BlockId(digest);
        // The decoder takes other bases and ignores bytes behind the hash: one block, one text.
        if id.to_string() != text {
            return Err(CidError::NotCanonical { text: text.to_owned(), canonical: id });
        }
        Ok(id)
    }
}

impl Serialize for BlockId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for BlockId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<BlockId, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(BlockId)
        }
    }
}

/// The name of a node: 1 to 64 bytes of `a-z 0-9 . _ -`, starting with a letter or digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(Arc<str>);

/// Why a text is not a node's name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NodeNameError {
    /// Nothing at all.
    #[error("a node's name is empty; it needs 1 to {NODE_NAME_BYTES_MAX} characters of a-z 0-9 . _ -")]
    Empty,
    /// Too long.
    #[error("a node's name has at most {NODE_NAME_BYTES_MAX} bytes, this has {0}")]
    TooLong(usize),
    /// Starts with a mark.
    #[error("node name `{0}` has to start with a letter a-z or a digit")]
    Start(String),
    /// Holds something that can not be in a topic level.
    #[error("node name `{name}` holds {character:?}; allowed are a-z 0-9 . _ -")]
    Character {
        /// What was given.
        name: String,
        /// The first character that is not allowed.
        character: char,
    },
}

impl NodeName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check_node_name(text: &str) -> Result<(), NodeNameError> {
    if text.len() > NODE_NAME_BYTES_MAX {
        return Err(NodeNameError::TooLong(text.len()));
    }
    let allowed = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    if let Some(character) = text.chars().find(|c| !allowed(c)) {
        return Err(NodeNameError::Character { name: text.to_owned(), character });
    }
    match text.chars().next() {
        None => Err(NodeNameError::Empty),
        Some(first) if first.is_ascii_alphanumeric() => Ok(()),
        Some(_) => Err(NodeNameError::Start(text.to_owned())),
    }
}

impl FromStr for NodeName {
    type Err = NodeNameError;

    fn from_str(text: &str) -> Result<NodeName, NodeNameError> {
        check_node_name(text)?;
        Ok(NodeName(text.into()))
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeName({})", self.0)
    }
}

impl Serialize for NodeName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for NodeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NodeName, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_block_is_shown_as_the_cid_that_ipfs_tools_give_it() {
        // `b` and RFC 4648 base32, in lower case, of 01 55 1e 20 and the hash.
        assert_eq!(
            BlockId::of(b"").to_string(),
            "bafkr4ifpcne3t5pzugtkaqcn5i3nzskjtpfslsnnyejlpte2spfoihzsmi"
        );
        assert_eq!(BlockId::of(b"").short(), "af1349b9");
    }

    proptest! {
        #[test]
        fn a_block_id_survives_text_json_and_postcard(hash: [u8; 32]) {
            let id = BlockId(hash);
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            let json = serde_json::to_string(&id).unwrap();
            prop_assert_eq!(&json, &format!("\"{id}\""));
            prop_assert_eq!(serde_json::from_str::<BlockId>(&json).unwrap(), id);
            prop_assert_eq!(postcard::to_allocvec(&id).unwrap(), hash.to_vec());
            prop_assert_eq!(postcard::from_bytes::<BlockId>(&hash).unwrap(), id);
        }

        #[test]
        fn any_text_is_refused_or_printed_back(text in ".{0,200}") {
            if let Ok(id) = text.parse::<BlockId>() {
                prop_assert_eq!(id.to_string(), text.clone());
            }
            if let Ok(node) = text.parse::<NodeName>() {
                prop_assert_eq!(node.as_str(), text);
            }
        }
    }

    #[test]
    fn each_kind_of_wrong_cid_is_named() {
        let id = BlockId::of(b"larder");
        let hash = multihash::Multihash::wrap(HASH_BLAKE3, &id.0).unwrap();
        let sha256 = multihash::Multihash::wrap(0x12, &id.0).unwrap();
        let short = multihash::Multihash::wrap(HASH_BLAKE3, &id.0[..20]).unwrap();
        let error = |cid: cid::Cid| cid.to_string().parse::<BlockId>().unwrap_err();
        assert!(matches!(error(cid::Cid::new_v1(0x70, hash)), CidError::Codec { codec: 0x70, .. }));
        assert!(matches!(error(cid::Cid::new_v1(CODEC_RAW, sha256)), CidError::Hash { code: 0x12, .. }));
        assert!(matches!(error(cid::Cid::new_v1(CODEC_RAW, short)), CidError::Hash { bytes: 20, .. }));
        let text = id.to_string();
        assert!(matches!(text.to_uppercase().parse::<BlockId>(), Err(CidError::NotCanonical { .. })));
        assert!(matches!("".parse::<BlockId>(), Err(CidError::Malformed { .. })));
        assert!(matches!(text[..20].parse::<BlockId>(), Err(CidError::Malformed { .. })));
        assert_eq!("b".repeat(161).parse::<BlockId>(), Err(CidError::TooLong(161)));
    }

    #[test]
    fn a_node_name_is_one_topic_level() {
        for good in ["a", "0", "cam-7.site_b", &"x".repeat(64)] {
            let node: NodeName = good.parse().unwrap();
            assert_eq!(
                serde_json::from_str::<NodeName>(&serde_json::to_string(&node).unwrap()).unwrap(),
                node
            );
        }
        assert_eq!("".parse::<NodeName>(), Err(NodeNameError::Empty));
        assert_eq!("x".repeat(65).parse::<NodeName>(), Err(NodeNameError::TooLong(65)));
        assert_eq!("-a".parse::<NodeName>(), Err(NodeNameError::Start("-a".into())));
        for bad in ["a/b", "a+", "#", "Cam", "a b", "ä", "a\0"] {
            assert!(matches!(bad.parse::<NodeName>(), Err(NodeNameError::Character { .. })), "{bad:?}");
            assert!(serde_json::from_str::<NodeName>(&serde_json::to_string(bad).unwrap()).is_err());
        }
    }
}
