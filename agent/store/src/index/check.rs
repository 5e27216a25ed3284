//! The check in front of what lies in redb, which checks no page it reads.

/// Bytes of the check.
pub(super) const CHECK_BYTES: usize = 4;

/// A body behind its check, which covers the key too.
pub(super) fn sealed(key: &[u8], body: &[u8]) -> Vec<u8> {
    [&check(key, body).to_le_bytes(), body].concat()
}

/// What stands behind a check that fits.
pub(super) fn unsealed<'a>(key: &[u8], bytes: &'a [u8]) -> Result<&'a [u8], redb::Error> {
    let fitting =
        bytes.split_first_chunk().filter(|(found, body)| u32::from_le_bytes(**found) == check(key, body));
    fitting.map(|(_, body)| body).ok_or_else(damaged)
}

/// Something is not what was written.
pub(super) fn damaged() -> redb::Error {
    redb::Error::Corrupted("an entry does not pass its check".into())
}

fn check(key: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), body)
}
