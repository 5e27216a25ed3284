//! Why a connection ended, in plain words: what happened and what to do.
//!
//! Duty: every error of the client library, of TLS and of the socket becomes one sentence that
//! names the broker, and one [`Ended`] for the back-off. Holds no state and no secrets.

use super::backoff::Ended;
use super::options::{CONNECT_SECONDS_MAX, LinkOptions};
use rumqttc::v5::mqttbytes::Error as PacketError;
use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, DisconnectReasonCode, PubAckReason};
use rumqttc::v5::{ConnectionError, StateError, TlsError};
use std::io;
use std::time::Duration;

/// Closes this soon after Up count as kicks.
const KICK_UP_MAX: Duration = Duration::from_secs(10);
/// From this many kicks in a row on, another client with the same id is the likely cause.
const KICKS_SUSPICIOUS: u32 = 2;

/// How one connection ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// The client library gave up.
    Error(Box<ConnectionError>),
    /// The broker does not let this node subscribe.
    SubscriptionRefused { filter: String, code: String },
    /// Nothing happened for too long, not even a ping.
    Silent,
    /// Pings are answered, messages are not acknowledged.
    Unacknowledged,
}

/// What the connection had reached when it ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reached {
    pub(super) up_for: Option<Duration>,
    pub(super) progress: bool,
    /// Quick closes in a row before this one.
    pub(super) kicks: u32,
}

#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) words: String,
    pub(super) ended: Ended,
    /// The broker sent a packet above our limit: its session has to go, or it sends it for ever.
    pub(super) oversized: bool,
    pub(super) kicked: bool,
}

impl Verdict {
    fn new(words: String, ended: Ended) -> Self {
        Self { words, ended, oversized: false, kicked: false }
    }
}

/// Judges the end of a connection.
pub(super) fn judge(ending: &Ending, reached: Reached, options: &LinkOptions) -> Verdict {
    let broken = Ended::Broken { up_for: reached.up_for.unwrap_or_default() };
    let broker = format!("{}:{}", options.host, options.port);
    match ending {
        Ending::Silent => Verdict::new(
            format!(
                "the broker at {broker} took and sent nothing for too long: the network between is likely gone"
            ),
            broken,
        ),
        Ending::Unacknowledged => Verdict::new(
            format!(
                "the broker at {broker} answers pings but acknowledges no message: look at its log and its limits"
            ),
            broken,
        ),
        Ending::SubscriptionRefused { filter, code } => Verdict::new(
            format!(
                "the broker at {broker} refuses the subscription to {filter:?} ({code}): allow it in the broker's ACL"
            ),
            Ended::Refused,
        ),
        Ending::Error(error) => judge_error(error, reached, options, &broker),
    }
}

fn judge_error(error: &ConnectionError, reached: Reached, options: &LinkOptions, broker: &str) -> Verdict {
    let broken = Ended::Broken { up_for: reached.up_for.unwrap_or_default() };
    match error {
        ConnectionError::Timeout(_) => Verdict::new(
            format!(
                "the broker at {broker} did not answer within {CONNECT_SECONDS_MAX} s: check the address, the firewall, and that [mqtt] ca fits the port"
            ),
            broken,
        ),
        ConnectionError::Tls(error) => Verdict::new(tls_words(error, broker, options), broken),
        ConnectionError::Io(error) => judge_io(error, reached, options, broker),
        ConnectionError::ConnectionRefused(code) => refused(*code, options, broker),
        ConnectionError::NotConnAck(_) => Verdict::new(
            format!("what answers at {broker} does not speak MQTT 5: check [mqtt] port"),
            Ended::Refused,
        ),
        ConnectionError::RequestsDone => Verdict::new("the link was closed".to_owned(), broken),
        ConnectionError::MqttState(error) => judge_state(error, reached, options, broker),
    }
}

fn judge_state(error: &StateError, reached: Reached, options: &LinkOptions, broker: &str) -> Verdict {
    let broken = Ended::Broken { up_for: reached.up_for.unwrap_or_default() };
    match error {
        StateError::Io(error) | StateError::Deserialization(PacketError::Io(error)) => {
            judge_io(error, reached, options, broker)
        }
        StateError::ConnectionAborted => closed(reached, options, broker),
        StateError::ServerDisconnect { reason_code, reason_string } => {
            disconnected(*reason_code, reason_string.as_deref(), reached, options, broker)
        }
        StateError::Deserialization(PacketError::PayloadSizeLimitExceeded { pkt_size, max }) => Verdict {
            oversized: true,
            ..Verdict::new(
                format!(
                    "the broker at {broker} sent a packet of {pkt_size} bytes although this node takes {max}: its session is dropped; find the sender, and delete the message there if it is retained"
                ),
                broken,
            )
        },
        StateError::AwaitPingResp => Verdict::new(
            format!("the broker at {broker} did not answer a ping: the network between is likely gone"),
            broken,
        ),
        StateError::CollisionTimeout | StateError::Unsolicited(_) => Verdict::new(
            format!(
                "the broker at {broker} acknowledges messages in a confused order ({error}): the connection is made anew"
            ),
            broken,
        ),
        other @ (StateError::Coversion(_)
        | StateError::InvalidState
        | StateError::WrongPacket
        | StateError::EmptySubscription
        | StateError::Deserialization(_)
        | StateError::InvalidAlias { .. }
        | StateError::OutgoingPacketTooLarge { .. }
        | StateError::IncomingPacketTooLarge { .. }
        | StateError::ConnFail { .. }) => Verdict::new(
            format!("the broker at {broker} and this node misunderstand each other ({other})"),
            broken,
        ),
    }
}

/// The broker closed the connection and gave no reason that the client library understands.
fn closed(reached: Reached, options: &LinkOptions, broker: &str) -> Verdict {
    let Some(up_for) = reached.up_for else {
        return Verdict::new(
            format!(
                "the broker at {broker} closed the connection before answering: check the login, that it speaks MQTT 5, and that [mqtt] ca fits the port"
            ),
            Ended::Broken { up_for: Duration::ZERO },
        );
    };
    let words = format!("the broker at {broker} closed the connection");
    if up_for > KICK_UP_MAX {
        return Verdict::new(words, Ended::Broken { up_for });
    }
    let kicks = reached.kicks + 1;
    if kicks < KICKS_SUSPICIOUS {
        return Verdict { kicked: true, ..Verdict::new(words, Ended::Broken { up_for }) };
    }
    let words = format!(
        "{words} soon after it was made, {kicks} times in a row: either another agent uses the client id {:?} too (give each node its own name), or the network between breaks",
        options.client_id
    );
    Verdict { kicked: true, ..Verdict::new(words, Ended::Kicked { progress: reached.progress }) }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "foreign errors without end; the rest is shown as it is")]
fn judge_io(error: &io::Error, reached: Reached, options: &LinkOptions, broker: &str) -> Verdict {
    let broken = Ended::Broken { up_for: reached.up_for.unwrap_or_default() };
    if let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return Verdict::new(rustls_words(inner, broker, options), Ended::Refused);
    }
    let text = error.to_string();
    let words = match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            format!(
                "nothing listens at {broker}: start the broker there, or correct [mqtt] host and [mqtt] port"
            )
        }
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            return closed(reached, options, broker);
        }
        _ if text.contains("lookup") || text.contains("resolve") => {
            format!(
                "the name {:?} cannot be resolved ({text}): check [mqtt] host and the network's DNS",
                options.host
            )
        }
        _ => format!("the connection to the broker at {broker} failed: {text}"),
    };
    Verdict::new(words, broken)
}

#[expect(clippy::wildcard_enum_match_arm, reason = "foreign errors without end; the rest is shown as it is")]
fn tls_words(error: &TlsError, broker: &str, options: &LinkOptions) -> String {
    match error {
        TlsError::TLS(inner) => rustls_words(inner, broker, options),
        TlsError::Io(io_error) => match io_error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(inner) => rustls_words(inner, broker, options),
            None => format!(
                "TLS with the broker at {broker} failed ({io_error}): check that [mqtt] port is its TLS port"
            ),
        },
        other => format!("TLS with the broker at {broker} failed: {other}"),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "foreign errors without end; the rest is shown as it is")]
fn rustls_words(error: &rustls::Error, broker: &str, options: &LinkOptions) -> String {
    let advice = match error {
        rustls::Error::InvalidCertificate(
            rustls::CertificateError::UnknownIssuer | rustls::CertificateError::BadSignature,
        ) => "its certificate is not signed by the authority in [mqtt] ca",
        rustls::Error::InvalidCertificate(
            rustls::CertificateError::NotValidForName
            | rustls::CertificateError::NotValidForNameContext { .. },
        ) => "its certificate is for another name: set [mqtt] host to the name in it",
        rustls::Error::InvalidCertificate(
            rustls::CertificateError::Expired
            | rustls::CertificateError::ExpiredContext { .. }
            | rustls::CertificateError::NotValidYet
            | rustls::CertificateError::NotValidYetContext { .. },
        ) => "its certificate is out of date: renew it, or set this machine's clock",
        rustls::Error::InvalidCertificate(_) => "its certificate is not acceptable",
        rustls::Error::AlertReceived(_)
            if options.tls.as_ref().is_some_and(|tls| tls.certificate.is_none()) =>
        {
            "it asks for a client certificate: set [mqtt] certificate and key"
        }
        rustls::Error::AlertReceived(_) => {
            "it does not accept this node's certificate: have it signed by the authority the broker trusts"
        }
        rustls::Error::InvalidMessage(_) => "it does not speak TLS on this port: correct [mqtt] port",
        _ => "the two sides do not agree",
    };
    format!("TLS with the broker at {broker} failed: {advice} ({error})")
}

fn refused(code: ConnectReturnCode, options: &LinkOptions, broker: &str) -> Verdict {
    let busy = Ended::Broken { up_for: Duration::ZERO };
    let who = match &options.login {
        Some((user, _)) => format!("user {user:?}"),
        None => "no user".to_owned(),
    };
    let (words, ended) = match code {
        ConnectReturnCode::BadUserNamePassword
        | ConnectReturnCode::NotAuthorized
        | ConnectReturnCode::BadAuthenticationMethod => (
            format!(
                "the broker at {broker} refuses the login ({who}): check [mqtt] user, password_file and certificate"
            ),
            Ended::Refused,
        ),
        ConnectReturnCode::BadClientId | ConnectReturnCode::ClientIdentifierNotValid => (
            format!(
                "the broker at {broker} refuses the client id {:?}: it must be the name it knows this node by",
                options.client_id
            ),
            Ended::Refused,
        ),
        ConnectReturnCode::RefusedProtocolVersion | ConnectReturnCode::UnsupportedProtocolVersion => {
            (format!("the broker at {broker} does not speak MQTT 5: use one that does"), Ended::Refused)
        }
        ConnectReturnCode::Banned => (format!("the broker at {broker} has banned this node"), Ended::Refused),
        ConnectReturnCode::ServiceUnavailable
        | ConnectReturnCode::ServerUnavailable
        | ConnectReturnCode::ServerBusy
        | ConnectReturnCode::ConnectionRateExceeded
        | ConnectReturnCode::QuotaExceeded => {
            (format!("the broker at {broker} is too busy ({code:?}): raise its limits if this stays"), busy)
        }
        ConnectReturnCode::UseAnotherServer | ConnectReturnCode::ServerMoved => {
            (format!("the broker at {broker} has moved: set [mqtt] host to the new one"), Ended::Refused)
        }
        ConnectReturnCode::Success
        | ConnectReturnCode::UnspecifiedError
        | ConnectReturnCode::MalformedPacket
        | ConnectReturnCode::ProtocolError
        | ConnectReturnCode::ImplementationSpecificError
        | ConnectReturnCode::TopicNameInvalid
        | ConnectReturnCode::PacketTooLarge
        | ConnectReturnCode::PayloadFormatInvalid
        | ConnectReturnCode::RetainNotSupported
        | ConnectReturnCode::QoSNotSupported => (
            format!(
                "the broker at {broker} refuses the connection ({code:?}): it must allow QoS 1, retained messages and wills"
            ),
            Ended::Refused,
        ),
    };
    Verdict::new(words, ended)
}

fn disconnected(
    code: DisconnectReasonCode,
    text: Option<&str>,
    reached: Reached,
    options: &LinkOptions,
    broker: &str,
) -> Verdict {
    let broken = Ended::Broken { up_for: reached.up_for.unwrap_or_default() };
    if code == DisconnectReasonCode::SessionTakenOver {
        let words = format!(
            "another agent took over the session at {broker} with the same client id {:?}: give each node its own name",
            options.client_id
        );
        return Verdict::new(words, Ended::TakenOver);
    }
    let said = text.map(|text| format!(", {text:?}")).unwrap_or_default();
    let advice = if code == DisconnectReasonCode::ServerShuttingDown {
        "it is shutting down"
    } else {
        "look at its log"
    };
    Verdict::new(format!("the broker at {broker} ended the connection ({code:?}{said}): {advice}"), broken)
}

/// Why the broker will not carry one message.
pub(super) fn rejection(reason: PubAckReason, topic_advice: &str) -> String {
    let advice = match reason {
        PubAckReason::NotAuthorized => "allow it in the broker's ACL",
        PubAckReason::QuotaExceeded => "raise the broker's limits",
        PubAckReason::TopicNameInvalid => "the broker does not allow such topics",
        PubAckReason::Success
        | PubAckReason::NoMatchingSubscribers
        | PubAckReason::UnspecifiedError
        | PubAckReason::ImplementationSpecificError
        | PubAckReason::PacketIdentifierInUse
        | PubAckReason::PayloadFormatInvalid => "look at the broker's log",
    };
    format!("the broker rejects {topic_advice} ({reason:?}): {advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER_UP: Reached = Reached { up_for: None, progress: false, kicks: 0 };

    fn verdict(error: ConnectionError, reached: Reached) -> Verdict {
        let mut options = LinkOptions::new("localhost", 1883, "cam-1");
        options.login = Some(("cam".to_owned(), "s3cret".to_owned()));
        judge(&Ending::Error(Box::new(error)), reached, &options)
    }

    #[test]
    fn a_name_that_does_not_resolve_is_named() {
        let error = io::Error::other("failed to lookup address information: Name or service not known");
        let words = verdict(ConnectionError::Io(error), NEVER_UP).words;
        assert!(words.contains("\"localhost\" cannot be resolved") && words.contains("DNS"), "{words}");
    }

    #[test]
    fn refusals_name_the_user_and_never_the_password() {
        for code in [ConnectReturnCode::BadUserNamePassword, ConnectReturnCode::NotAuthorized] {
            let verdict = verdict(ConnectionError::ConnectionRefused(code), NEVER_UP);
            assert!(verdict.words.contains("refuses the login (user \"cam\")"), "{}", verdict.words);
            assert!(!verdict.words.contains("s3cret"));
            assert_eq!(verdict.ended, Ended::Refused);
        }
    }

    #[test]
    fn a_stolen_session_is_told_by_its_reason_code() {
        let error = StateError::ServerDisconnect {
            reason_code: DisconnectReasonCode::SessionTakenOver,
            reason_string: None,
        };
        let verdict = verdict(ConnectionError::MqttState(error), NEVER_UP);
        assert!(verdict.words.contains("\"cam-1\""), "{}", verdict.words);
        assert_eq!(verdict.ended, Ended::TakenOver);
    }

    #[test]
    fn quick_closes_are_suspicious_only_when_they_repeat() {
        let closed = |up_for, kicks| {
            let reached = Reached { up_for: Some(up_for), progress: true, kicks };
            verdict(ConnectionError::MqttState(StateError::ConnectionAborted), reached)
        };
        let first = closed(Duration::from_secs(1), 0);
        assert!(first.kicked && !first.words.contains("client id"), "{}", first.words);
        let second = closed(Duration::from_secs(1), 1);
        assert!(second.kicked && second.words.contains("client id \"cam-1\""), "{}", second.words);
        assert_eq!(second.ended, Ended::Kicked { progress: true });
        assert!(!closed(Duration::from_secs(60), 1).kicked);
    }
}
