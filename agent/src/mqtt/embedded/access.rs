//! Who may publish and read what, by the name in the client's certificate.
//!
//! Duty: the rules of `packaging/mosquitto/larder.acl`, as two functions over a topic, and the
//! name itself. Pure. Topics are `larder/1/<fleet>/<node>/<kind>/...`; whatever does not match a
//! rule is forbidden.

/// Whether the node `name` may publish on `topic`.
pub(super) fn may_publish(name: &str, topic: &str) -> bool {
    let Some((node, kind, rest)) = parts(topic) else { return false };
    match kind {
        "state" | "desc" | "tele" => node == name,
        "sync" => rest.split('/').next() == Some(name),
        "cmd" | "resp" => rest == name,
        _ => false,
    }
}

/// Whether the node `name` may read messages on `topic`.
pub(super) fn may_read(name: &str, topic: &str) -> bool {
    parts(topic).is_some_and(|(node, kind, rest)| node == name || (kind == "state" && rest.is_empty()))
}

/// Node, kind, and what follows the kind.
fn parts(topic: &str) -> Option<(&str, &str, &str)> {
    let mut levels = topic.strip_prefix("larder/1/")?.splitn(4, '/');
    let (_fleet, node, kind) = (levels.next()?, levels.next()?, levels.next()?);
    Some((node, kind, levels.next().unwrap_or("")))
}

/// The common name in an X.509 certificate's subject, as Mosquitto's `use_identity_as_username`
/// takes it. The certificate was verified before, so a strange shape here is no name at all.
pub(super) fn common_name(certificate: &[u8]) -> Option<String> {
    // RFC 5280, 4.1: Certificate { TBSCertificate { [0] version, serialNumber, signature, issuer,
    // validity, subject, ... } ... }
    const SEQUENCE: u8 = 0x30;
    const VERSION: u8 = 0xa0;
    let (_, certificate, _) = element(certificate)?;
    let (_, mut rest, _) = element(certificate)?;
    if rest.first() == Some(&VERSION) {
        rest = element(rest)?.2;
    }
    for _ in 0..4 {
        rest = element(rest)?.2;
    }
    let (tag, mut names, _) = element(rest)?;
    if tag != SEQUENCE {
        return None;
    }
    while let Some((_, set, more)) = element(names) {
        if let Some(found) = element(set).and_then(|(_, attribute, _)| common_name_of(attribute)) {
            return Some(found);
        }
        names = more;
    }
    None
}

fn common_name_of(attribute: &[u8]) -> Option<String> {
    /// 2.5.4.3, id-at-commonName
    const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];
    const UTF8_STRING: u8 = 0x0c;
    const PRINTABLE_STRING: u8 = 0x13;
    let (_, identifier, rest) = element(attribute)?;
    let (tag, value, _) = element(rest)?;
    let readable = tag == UTF8_STRING || tag == PRINTABLE_STRING;
    let name = std::str::from_utf8(value).ok()?;
    let usable = !name.is_empty() && !name.contains(['/', '+', '#', '\0']);
    (identifier == COMMON_NAME && readable && usable).then(|| name.to_owned())
}

/// One DER element: its tag, its content and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_publishes_for_itself_only() {
        for topic in ["state", "desc", "tele", "tele/power"] {
            assert!(may_publish("cam", &format!("larder/1/farm/cam/{topic}")), "{topic}");
            assert!(!may_publish("cam", &format!("larder/1/farm/hub/{topic}")), "{topic}");
        }
        assert!(may_publish("cam", "larder/1/farm/hub/sync/cam/data"));
        assert!(may_publish("cam", "larder/1/farm/hub/cmd/cam"));
        assert!(may_publish("cam", "larder/1/farm/hub/resp/cam"));
        for topic in [
            "larder/1/farm/hub/sync/other/data",
            "larder/1/farm/hub/cmd/other",
            "larder/1/farm/cam/cmd/other",
            "larder/1/farm/cam",
            "larder/2/farm/cam/state",
            "cam",
            "",
        ] {
            assert!(!may_publish("cam", topic), "{topic}");
        }
    }

    #[test]
    fn a_node_reads_its_own_topics_and_every_state() {
        assert!(may_read("cam", "larder/1/farm/cam/sync/hub/data"));
        assert!(may_read("cam", "larder/1/farm/hub/state"));
        assert!(!may_read("cam", "larder/1/farm/hub/tele"));
        assert!(!may_read("cam", "larder/1/farm/hub/sync/other/data"));
    }

    #[test]
    fn torn_certificates_name_nobody() {
        let bytes = [0x30, 0x82, 0xff, 0xff, 0x30, 0x03, 0x02, 0x01];
        for length in 0..bytes.len() {
            assert_eq!(common_name(&bytes[..length]), None);
        }
    }
}
