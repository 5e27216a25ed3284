//! `--embedded-broker`: a small MQTT 5 broker in process, for a site without one and for the demo.
//!
//! Duty: what the product needs and no more: QoS 0 and 1, retained messages, wills, sessions that
//! outlive a connection, expiry, response topics and correlation data, packets up to 128 KiB; one
//! login or client certificates, and with certificates the same access rules as
//! `packaging/mosquitto` (`access`).
//! Refuses: plain TCP beyond loopback, MQTT 3, QoS 2, topic aliases, shared subscriptions,
//! subscription identifiers, will delays (a will is published at once).
//! Bound: every number in `hub`; what does not fit in a client's queue is dropped and counted.
//! State lives in memory: a restart forgets it, and the layers above build it again.
//! Fails: by closing the one connection that misbehaves, with a reason code.
//!
//! Why not rumqttd 0.20, tried and measured: one publish to a topic that starts with a letter
//! beyond ASCII panics its router thread and the broker is dead (`topic[..1]` in its `matches`);
//! two connections with a client id it dislikes (`a+b`) poison a lock and no client gets in again;
//! of 150 retained messages a new subscriber received 100; a refused login is a closed socket
//! without a CONNACK; the client's packet limit is not read; TLS is a second rustls (0.22) without
//! client certificates unless a further feature changes the topic rules, and one stalled
//! handshake stops all others; it cannot be stopped. No other broker crate is both kept and small
//! enough for a Pi Zero. The packet formats here are rumqttc's, which the link needs anyway.

mod access;
mod connection;
mod hub;

pub use hub::Counters;

use super::options::{LinkOptionsError, certificates, private_key};
use connection::Gate;
use hub::{Hub, SESSIONS_MAX};
use rumqttc::tokio_rustls::TlsAcceptor;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time;

/// A client that connects has this long for TLS and CONNECT.
const ENTRY_WITHIN: Duration = Duration::from_secs(10);

/// PEM files of a broker that takes clients by certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddedTls {
    /// The authority that signs the nodes' certificates.
    pub ca: PathBuf,
    /// The broker's own certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What the broker needs to know.
#[derive(Clone)]
pub struct EmbeddedOptions {
    /// Where it listens; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Absent: plain TCP, which is allowed on loopback only.
    pub tls: Option<EmbeddedTls>,
    /// The one user and password it asks for, if any.
    pub login: Option<(String, String)>,
}

impl fmt::Debug for EmbeddedOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let login = self.login.as_ref().map(|(user, _)| (user, "<hidden>"));
        formatter
            .debug_struct("EmbeddedOptions")
            .field("listen", &self.listen)
            .field("tls", &self.tls)
            .field("login", &login)
            .finish()
    }
}

/// Why the broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// Plain TCP would carry the data over a network in the clear.
    #[error(
        "the embedded broker is to listen on {listen} without TLS: set ca, certificate and key of [mqtt], or listen on 127.0.0.1"
    )]
    PlainBeyondLoopback {
        /// The address as given.
        listen: SocketAddr,
    },
    /// The address is taken or not there.
    #[error(
        "the embedded broker cannot listen on {listen}: {source}; choose another address for [mqtt] listen"
    )]
    Listen {
        /// The address as given.
        listen: SocketAddr,
        /// What the kernel says.
        source: io::Error,
    },
    /// A certificate or key cannot be used.
    #[error("the embedded broker's TLS: {0}")]
    Pem(#[from] LinkOptionsError),
    /// Certificate and key do not fit together.
    #[error("the embedded broker's TLS cannot use {path:?}: {why}")]
    Tls {
        /// The certificate file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// A running broker. Dropping it closes every connection.
pub struct Embedded {
    address: SocketAddr,
    hub: Arc<Mutex<Hub>>,
    gate: Arc<Gate>,
    acceptor: Option<TlsAcceptor>,
    task: Option<JoinHandle<()>>,
}

impl fmt::Debug for Embedded {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Embedded").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Embedded {
    /// Starts the broker in the current tokio runtime.
    pub async fn start(options: EmbeddedOptions) -> Result<Self, EmbeddedError> {
        if options.tls.is_none() && !options.listen.ip().is_loopback() {
            return Err(EmbeddedError::PlainBeyondLoopback { listen: options.listen });
        }
        let acceptor = options.tls.as_ref().map(acceptor).transpose()?;
        let mut embedded = Self {
            address: options.listen,
            hub: Arc::new(Mutex::new(Hub::new(acceptor.is_some()))),
            gate: Arc::new(Gate::new(options.login)),
            acceptor,
            task: None,
        };
        embedded.restore().await?;
        Ok(embedded)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it did so far.
    pub fn counters(&self) -> Counters {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner).counters()
    }

    /// Closes every connection and stops listening; sessions and retained messages stay.
    pub async fn cut(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            // an aborted task ends with an error that says so
            let _aborted = task.await.is_err();
        }
    }

    /// Listens again after [`Embedded::cut`], on the same address.
    pub async fn restore(&mut self) -> Result<(), EmbeddedError> {
        self.cut().await;
        let refused = |source| EmbeddedError::Listen { listen: self.address, source };
        let listener = TcpListener::bind(self.address).await.map_err(refused)?;
        self.address = listener.local_addr().map_err(refused)?;
        let accept = accept(listener, self.acceptor.clone(), self.hub.clone(), self.gate.clone());
        self.task = Some(tokio::spawn(accept));
        Ok(())
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, hub: Arc<Mutex<Hub>>, gate: Arc<Gate>) {
    // dropped with this task, and every connection with it
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) if connections.len() < SESSIONS_MAX => stream,
            Ok((stream, from)) => {
                tracing::warn!(%from, "the embedded broker has no room for another connection");
                drop(stream);
                continue;
            }
            Err(error) => {
                // out of descriptors: others have to close first
                tracing::warn!(%error, "the embedded broker cannot accept a connection");
                time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        connections.spawn(enter(stream, tls.clone(), hub.clone(), gate.clone()));
    }
}

async fn enter(stream: TcpStream, tls: Option<TlsAcceptor>, hub: Arc<Mutex<Hub>>, gate: Arc<Gate>) {
    // without it small answers wait for the peer's delayed acknowledgement
    let _best_effort = stream.set_nodelay(true).is_ok();
    let Some(tls) = tls else {
        return connection::serve(stream, None, hub, gate).await;
    };
    match time::timeout(ENTRY_WITHIN, tls.accept(stream)).await {
        Ok(Ok(stream)) => {
            let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let name = certificate.and_then(|certificate| access::common_name(certificate));
            match name {
                Some(name) => connection::serve(stream, Some(name), hub, gate).await,
                None => tracing::warn!("a client's certificate names no node: its subject needs a CN"),
            }
        }
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake with the embedded broker failed"),
        Err(_) => tracing::debug!("a TLS handshake with the embedded broker took too long"),
    }
}

fn acceptor(tls: &EmbeddedTls) -> Result<TlsAcceptor, EmbeddedError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("ca", &tls.ca)? {
        roots.add(certificate).map_err(|error| unusable(&tls.ca, &error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| unusable(&tls.ca, &error))?;
    let chain = certificates("certificate", &tls.certificate)?;
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&tls.certificate, &error))?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, private_key("key", &tls.key)?)
        .map_err(|error| unusable(&tls.certificate, &error))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn unusable(path: &Path, why: &dyn fmt::Display) -> EmbeddedError {
    EmbeddedError::Tls { path: path.to_owned(), why: why.to_string() }
}
