//! What a link needs to know, checked before anything connects.
//!
//! Duty: [`Plan::new`] turns raw options into a plan that cannot fail for a reason known now.
//! Refuses: plain TCP beyond loopback, keep-alives the client library cannot hold, client
//! certificates without a key, certificate files that do not parse, IPv6 literals with TLS.
//! Bound: in-flight messages and packet size, both ways, announced to the broker.
//! Fails: by [`LinkOptionsError`], which names the setting and what it may be.

use super::backoff::BackoffOptions;
use super::{Air, Outgoing, PACKET_BYTES_MAX, Qos};
use bytes::Bytes;
use rumqttc::v5::MqttOptions;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnectProperties, Filter, LastWill};
use rumqttc::{NetworkOptions, TlsConfiguration, Transport};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The client library pings no more often than this.
const KEEP_ALIVE_MIN: Duration = Duration::from_secs(5);
/// The field in CONNECT has 16 bits of seconds.
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(65_535);
/// Address look-up, TCP, TLS and CONNECT together; a slow radio link needs a while.
pub(super) const CONNECT_SECONDS_MAX: u64 = 20;
const IN_FLIGHT_MAX: u16 = 1024;

/// PEM files for TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsOptions {
    /// The authority that signed the broker's certificate; no other is trusted.
    pub ca: PathBuf,
    /// This node's certificate, where the broker asks for one.
    pub certificate: Option<PathBuf>,
    /// The certificate's private key.
    pub key: Option<PathBuf>,
}

/// The message the broker publishes when this node vanishes without a goodbye.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Will {
    /// Where it is published.
    pub topic: String,
    /// Its content.
    pub payload: Bytes,
    /// Whether the broker keeps it for those who subscribe later.
    pub retain: bool,
}

/// Everything one link needs.
#[derive(Clone)]
pub struct LinkOptions {
    /// The broker's name or address.
    pub host: String,
    /// The broker's port.
    pub port: u16,
    /// Absent: plain TCP, which is allowed to this machine only.
    pub tls: Option<TlsOptions>,
    /// The node's name towards the broker; must be its own.
    pub client_id: String,
    /// User and password, where the broker asks for them.
    pub login: Option<(String, String)>,
    /// A ping goes out this often; 5 s to 65,535 s.
    pub keep_alive: Duration,
    /// The first connection drops what the broker kept from an earlier run.
    pub clean_start: bool,
    /// How long the broker keeps subscriptions and queued messages of a vanished node.
    pub session_expiry: Duration,
    /// Messages on their way at once, in each direction; 1 to 1,024.
    pub in_flight_max: u16,
    /// The largest packet, in each direction; at most [`PACKET_BYTES_MAX`].
    pub packet_bytes_max: usize,
    /// Topic filters, subscribed at QoS 1 before the link counts as up.
    pub subscriptions: Vec<String>,
    /// Published by the broker when the node vanishes.
    pub will: Option<Will>,
    /// Waits between connections.
    pub backoff: BackoffOptions,
    /// Where it is counted what goes over the air.
    pub air: Air,
}

impl LinkOptions {
    /// Options for a broker that asks for nothing, with the project's defaults.
    pub fn new(host: impl Into<String>, port: u16, client_id: impl Into<String>) -> Self {
        Self {
            host: host.into(),
            port,
            tls: None,
            client_id: client_id.into(),
            login: None,
            keep_alive: Duration::from_secs(60),
            clean_start: false,
            session_expiry: Duration::from_secs(3600),
            in_flight_max: 32,
            packet_bytes_max: PACKET_BYTES_MAX,
            subscriptions: Vec::new(),
            will: None,
            backoff: BackoffOptions::default(),
            air: Air::default(),
        }
    }
}

impl fmt::Debug for LinkOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let login = self.login.as_ref().map(|(user, _)| (user, "<hidden>"));
        formatter
            .debug_struct("LinkOptions")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("tls", &self.tls)
            .field("client_id", &self.client_id)
            .field("login", &login)
            .field("keep_alive", &self.keep_alive)
            .field("clean_start", &self.clean_start)
            .field("session_expiry", &self.session_expiry)
            .field("in_flight_max", &self.in_flight_max)
            .field("packet_bytes_max", &self.packet_bytes_max)
            .field("subscriptions", &self.subscriptions)
            .field("will", &self.will.as_ref().map(|will| &will.topic))
            .field("backoff", &self.backoff)
            .field("air", &self.air.numbers())
            .finish()
    }
}

/// Why options cannot become a link.
#[derive(Debug, thiserror::Error)]
pub enum LinkOptionsError {
    /// Plain TCP would carry the data over a network in the clear.
    #[error(
        "[mqtt] host {host:?} is not this machine and there is no TLS: set [mqtt] ca (and certificate and key), or use 127.0.0.1, ::1 or localhost"
    )]
    PlainBeyondLoopback {
        /// The host as given.
        host: String,
    },
    /// The TLS layer of the client library takes names and IPv4 addresses only.
    #[error(
        "[mqtt] host {host:?} is an IPv6 address, which does not work with TLS here: set [mqtt] host to the name in the broker's certificate"
    )]
    Ipv6WithTls {
        /// The host as given.
        host: String,
    },
    /// The host is no name and no address.
    #[error("[mqtt] host {host:?} is neither a host name nor an address")]
    Host {
        /// The host as given.
        host: String,
    },
    /// A number is out of its range.
    #[error("[mqtt] {key} is {value}: it must be {allowed}")]
    Range {
        /// The setting.
        key: &'static str,
        /// What it was.
        value: u64,
        /// What it may be.
        allowed: &'static str,
    },
    /// The client id or a topic is unusable.
    #[error("[mqtt] {key} {value:?} cannot be used: {why}")]
    Text {
        /// The setting.
        key: &'static str,
        /// What it was.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// One of certificate and key is missing.
    #[error("[mqtt] certificate and key belong together: set both or neither")]
    HalfIdentity,
    /// A PEM file cannot be used.
    #[error("[mqtt] {key} {path:?} cannot be used: {why}")]
    Pem {
        /// The setting.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// Checked options; the only thing a link can be made from.
#[derive(Clone)]
pub struct Plan {
    options: LinkOptions,
    tls: Option<Arc<rustls::ClientConfig>>,
}

impl fmt::Debug for Plan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Plan").field(&self.options).finish()
    }
}

impl Plan {
    /// Checks the options and reads the certificates.
    pub fn new(options: LinkOptions) -> Result<Self, LinkOptionsError> {
        check_host(&options)?;
        check_numbers(&options)?;
        check_texts(&options)?;
        let tls = options.tls.as_ref().map(client_config).transpose()?.map(Arc::new);
        Ok(Self { options, tls })
    }

    /// The options the plan was made from.
    pub fn options(&self) -> &LinkOptions {
        &self.options
    }

    /// The client library's options for one connection.
    pub(super) fn connection(&self, clean_start: bool) -> MqttOptions {
        let options = &self.options;
        let bare_ipv6 = options.host.parse::<Ipv6Addr>().is_ok();
        let host = if bare_ipv6 { format!("[{}]", options.host) } else { options.host.clone() };
        let mut connection = MqttOptions::new(&options.client_id, host, options.port);
        connection.set_keep_alive(options.keep_alive);
        connection.set_clean_start(clean_start);
        connection.set_connection_timeout(CONNECT_SECONDS_MAX);
        connection.set_outgoing_inflight_upper_limit(options.in_flight_max);
        let mut properties = ConnectProperties::new();
        properties.receive_maximum = Some(options.in_flight_max);
        properties.max_packet_size = Some(packet_bytes_max(options));
        properties.session_expiry_interval = Some(whole_seconds(options.session_expiry));
        connection.set_connect_properties(properties);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        connection.set_network_options(network);
        if let Some((user, password)) = &options.login {
            connection.set_credentials(user, password);
        }
        if let Some(will) = &options.will {
            let (topic, payload) = (will.topic.clone(), will.payload.to_vec());
            connection.set_last_will(LastWill::new(topic, payload, QoS::AtLeastOnce, will.retain, None));
        }
        if let Some(tls) = &self.tls {
            connection.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls.clone())));
        }
        connection
    }

    /// What is subscribed to, for the client library.
    pub(super) fn filters(&self) -> Vec<Filter> {
        let filters = self.options.subscriptions.iter();
        filters.map(|filter| Filter::new(filter, QoS::AtLeastOnce)).collect()
    }
}

fn packet_bytes_max(options: &LinkOptions) -> u32 {
    u32::try_from(options.packet_bytes_max).unwrap_or(u32::MAX)
}

fn whole_seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

/// 127.0.0.0/8, ::1 and the name that always means them.
pub(super) fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn check_host(options: &LinkOptions) -> Result<(), LinkOptionsError> {
    let host = options.host.clone();
    let ipv6 = host.contains(':');
    if ipv6 && host.trim_matches(['[', ']']).parse::<Ipv6Addr>().is_err() {
        return Err(LinkOptionsError::Host { host });
    }
    match &options.tls {
        None if !is_loopback(&host) => Err(LinkOptionsError::PlainBeyondLoopback { host }),
        Some(_) if ipv6 => Err(LinkOptionsError::Ipv6WithTls { host }),
        Some(_) if rustls::pki_types::ServerName::try_from(host.as_str()).is_err() => {
            Err(LinkOptionsError::Host { host })
        }
        Some(_) | None => Ok(()),
    }
}

fn check_numbers(options: &LinkOptions) -> Result<(), LinkOptionsError> {
    let range = |key, value, allowed| Err(LinkOptionsError::Range { key, value, allowed });
    if options.port == 0 {
        return range("port", 0, "1 to 65535");
    }
    if options.keep_alive < KEEP_ALIVE_MIN || options.keep_alive > KEEP_ALIVE_MAX {
        return range("keep_alive", options.keep_alive.as_secs(), "5 to 65535 seconds");
    }
    if options.in_flight_max == 0 || options.in_flight_max > IN_FLIGHT_MAX {
        return range("in_flight_max", options.in_flight_max.into(), "1 to 1024");
    }
    if options.packet_bytes_max < 1024 || options.packet_bytes_max > PACKET_BYTES_MAX {
        return range("packet_bytes_max", options.packet_bytes_max as u64, "1024 to 131072 bytes");
    }
    let BackoffOptions { min, max, .. } = options.backoff;
    if min < Duration::from_millis(1) || max < min || max > Duration::from_secs(86_400) {
        return range("backoff.max", max.as_secs(), "at least backoff.min and at most a day");
    }
    Ok(())
}

fn check_texts(options: &LinkOptions) -> Result<(), LinkOptionsError> {
    let text = |key, value: &str, why| Err(LinkOptionsError::Text { key, value: value.to_owned(), why });
    let id = options.client_id.as_str();
    if id.is_empty() || id.len() > 256 || id.contains(['\0', '/', '+', '#']) {
        return text("client_id", id, "it must be 1 to 256 bytes without '/', '+', '#' and NUL");
    }
    if options.subscriptions.len() > 64 {
        return text("subscriptions", &options.subscriptions[64], "there may be 64 of them");
    }
    for filter in &options.subscriptions {
        if filter.len() > 1024 || filter.contains('\0') || !rumqttc::v5::mqttbytes::valid_filter(filter) {
            return text("subscriptions", filter, "it is no topic filter of up to 1024 bytes");
        }
    }
    let Some(will) = &options.will else { return Ok(()) };
    if !valid_topic(&will.topic) {
        return text("will", &will.topic, "it is no topic");
    }
    if will.payload.len() > 4096 {
        return text("will", &will.topic, "its content may take 4096 bytes");
    }
    Ok(())
}

/// A topic to publish on.
pub(super) fn valid_topic(topic: &str) -> bool {
    !topic.is_empty() && topic.len() <= 65_535 && !topic.contains(['+', '#', '\0'])
}

fn client_config(tls: &TlsOptions) -> Result<rustls::ClientConfig, LinkOptionsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("ca", &tls.ca)? {
        roots.add(certificate).map_err(|error| pem_error("ca", &tls.ca, &error))?;
    }
    // the provider is named here so that no other part of the process has to install one
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| pem_error("ca", &tls.ca, &error))?
        .with_root_certificates(roots);
    match (&tls.certificate, &tls.key) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(certificate), Some(key)) => {
            let chain = certificates("certificate", certificate)?;
            let secret = private_key("key", key)?;
            builder
                .with_client_auth_cert(chain, secret)
                .map_err(|error| pem_error("certificate", certificate, &error))
        }
        (Some(_), None) | (None, Some(_)) => Err(LinkOptionsError::HalfIdentity),
    }
}

fn pem_error(key: &'static str, path: &Path, why: &dyn fmt::Display) -> LinkOptionsError {
    LinkOptionsError::Pem { key, path: path.to_owned(), why: why.to_string() }
}

/// All certificates of a PEM file; at least one.
pub(super) fn certificates(
    key: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, LinkOptionsError> {
    let parsed = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match parsed {
        Ok(found) if found.is_empty() => Err(pem_error(key, path, &"it holds no certificate")),
        Ok(found) => Ok(found),
        Err(error) => Err(pem_error(key, path, &error)),
    }
}

/// The first private key of a PEM file.
pub(super) fn private_key(
    key: &'static str,
    path: &Path,
) -> Result<PrivateKeyDer<'static>, LinkOptionsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| pem_error(key, path, &error))
}

impl Outgoing {
    /// A message that the broker does not keep.
    pub fn new(token: u64, topic: impl Into<String>, payload: impl Into<Bytes>, qos: Qos) -> Self {
        Self { token, topic: topic.into(), payload: payload.into(), qos, retain: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut LinkOptions)) -> String {
        let mut options = LinkOptions::new("localhost", 1883, "cam-1");
        change(&mut options);
        Plan::new(options).expect_err("the options must be refused").to_string()
    }

    #[test]
    fn plain_tcp_is_for_loopback_only() {
        for host in ["localhost", "127.0.0.1", "127.9.8.7", "::1"] {
            Plan::new(LinkOptions::new(host, 1883, "cam-1")).expect("loopback is allowed");
        }
        for host in ["192.168.1.4", "broker.example", "0.0.0.0", "::", "localhost.example", "128.0.0.1"] {
            let message = refused(|options| options.host = host.to_owned());
            assert!(message.contains(host) && message.contains("[mqtt] ca"), "{message}");
        }
    }

    #[test]
    fn numbers_out_of_range_name_the_setting_and_the_range() {
        let message = refused(|options| options.keep_alive = Duration::from_secs(4));
        assert!(message.contains("[mqtt] keep_alive is 4") && message.contains("5 to 65535"), "{message}");
        assert!(refused(|options| options.in_flight_max = 0).contains("[mqtt] in_flight_max"));
        assert!(refused(|options| options.packet_bytes_max = 1 << 20).contains("[mqtt] packet_bytes_max"));
    }

    #[test]
    fn unusable_texts_are_named() {
        assert!(refused(|options| options.client_id = "a/b".to_owned()).contains("\"a/b\""));
        assert!(refused(|options| options.subscriptions = vec!["a/#/b".to_owned()]).contains("a/#/b"));
    }

    #[test]
    fn a_missing_certificate_file_is_named() {
        let tls = TlsOptions { ca: "/nowhere/ca.pem".into(), certificate: None, key: None };
        assert!(refused(|options| options.tls = Some(tls)).contains("/nowhere/ca.pem"));
    }

    #[test]
    fn passwords_do_not_show_in_debug_output() {
        let mut options = LinkOptions::new("localhost", 1883, "cam-1");
        options.login = Some(("cam".to_owned(), "s3cret".to_owned()));
        let shown = format!("{options:?} {:?}", Plan::new(options.clone()).expect("the options are fine"));
        assert!(shown.contains("cam") && !shown.contains("s3cret"), "{shown}");
    }
}
