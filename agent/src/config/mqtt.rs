//! The link as configured. TLS is what `[mqtt] ca` makes it; without, only loopback is spoken to.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::error::{ConfigError, Origin, Sourced};
use super::places::Environment;
use super::raw::{Layers, RawMqtt};
use super::{refused, schema};

const PORT_PLAIN: u16 = 1_883;
const PORT_TLS: u16 = 8_883;

/// The link to the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mqtt {
    /// Name or address of the broker.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Absent: plain, which is allowed on loopback alone.
    pub tls: Option<Tls>,
    /// How to log in, if the broker asks.
    pub login: Option<Login>,
    /// Where a broker in this process listens, if there is to be one. Its certificate and
    /// authority are those of [`Mqtt::tls`].
    pub embedded: Option<SocketAddr>,
}

/// Certificates, as PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The authority that signed the other side's certificate.
    pub ca: PathBuf,
    /// This side's certificate and key.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// A login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The user.
    pub user: String,
    /// The file with the password, which only its owner may read ([`super::read_password`]).
    pub password_file: Option<PathBuf>,
}

pub(super) fn check(layers: &Layers, environment: &Environment) -> Result<Option<Mqtt>, ConfigError> {
    if layers.0.iter().all(|layer| layer.raw.mqtt.is_none()) {
        return Ok(None);
    }
    let tls = tls(layers, environment)?;
    let given_port = layers.pick_mqtt(|raw| raw.port.as_ref());
    if let Some(zero) = given_port.clone().filter(|port| port.value == 0) {
        return Err(refused(zero.from, "mqtt", "port", "0".to_owned()));
    }
    let port_default = if tls.is_some() { PORT_TLS } else { PORT_PLAIN };
    let embedded =
        embedded(layers, tls.as_ref(), given_port.as_ref().map_or(port_default, |port| port.value))?;
    let port = given_port.map_or(embedded.map_or(port_default, |listen| listen.port()), |port| port.value);
    Ok(Some(Mqtt {
        host: host(layers, tls.as_ref(), embedded)?,
        port,
        login: login(layers, environment)?,
        tls,
        embedded,
    }))
}

fn tls(layers: &Layers, environment: &Environment) -> Result<Option<Tls>, ConfigError> {
    let ca = layers.pick_path(|raw| mqtt(raw)?.ca.as_ref());
    let certificate = layers.pick_path(|raw| mqtt(raw)?.certificate.as_ref());
    let key =
        layers.pick_path(|raw| mqtt(raw)?.key.as_ref()).map(|key| key.map(|key| environment.secret(key)));
    let lacks = |given: &Sourced<PathBuf>, name: &str, why: &str| ConfigError::Missing {
        from: given.from.clone(),
        key: schema::named("mqtt", name),
        why: why.to_owned(),
    };
    let own = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (Some(certificate), None) => return Err(lacks(&certificate, "key", "a certificate needs its key")),
        (None, Some(key)) => return Err(lacks(&key, "certificate", "a key needs its certificate")),
        (None, None) => None,
    };
    match (ca, own) {
        (Some(ca), own) => {
            Ok(Some(Tls { ca: ca.value, own: own.map(|(certificate, key)| (certificate.value, key.value)) }))
        }
        (None, Some((certificate, _))) => {
            Err(lacks(&certificate, "ca", "it names the authority whose certificates are trusted"))
        }
        (None, None) => Ok(None),
    }
}

fn mqtt(raw: &super::raw::Raw) -> Option<&RawMqtt> {
    raw.mqtt.as_ref().map(toml::Spanned::get_ref)
}

fn embedded(layers: &Layers, tls: Option<&Tls>, port: u16) -> Result<Option<SocketAddr>, ConfigError> {
    let wanted = layers.pick_mqtt(|raw| raw.embedded_broker.as_ref()).is_some_and(|given| given.value);
    if !wanted {
        return Ok(None);
    }
    let Some(listen) = layers.pick_mqtt(|raw| raw.listen.as_ref()) else {
        return Ok(Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)));
    };
    let secured = tls.is_some_and(|tls| tls.own.is_some());
    if !listen.value.ip().is_loopback() && !secured {
        return Err(ConfigError::Plaintext {
            from: listen.from,
            key: "[mqtt] listen",
            address: listen.value.to_string(),
            needed: "ca, certificate and key",
        });
    }
    Ok(Some(listen.value))
}

fn host(layers: &Layers, tls: Option<&Tls>, embedded: Option<SocketAddr>) -> Result<String, ConfigError> {
    let Some(host) = layers.pick_mqtt(|raw| raw.host.as_ref()) else {
        return match embedded {
            Some(listen) if !listen.ip().is_unspecified() => Ok(listen.ip().to_string()),
            Some(_) => Ok(Ipv4Addr::LOCALHOST.to_string()),
            None => Err(ConfigError::Missing {
                from: layers
                    .pick(|raw| raw.mqtt.as_ref())
                    .map_or(Origin::Machine("[mqtt]"), |table| table.from),
                key: schema::named("mqtt", "host"),
                why: "name the broker, or set embedded_broker = true".to_owned(),
            }),
        };
    };
    if host.value.is_empty() || host.value.contains(|c: char| c.is_whitespace() || c == '/') {
        return Err(refused(host.from, "mqtt", "host", format!("{:?}", host.value)));
    }
    if tls.is_none() && !is_loopback(&host.value) {
        return Err(ConfigError::Plaintext {
            from: host.from,
            key: "[mqtt] host",
            address: host.value,
            needed: "ca to the certificate authority's file",
        });
    }
    Ok(host.value)
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn login(layers: &Layers, environment: &Environment) -> Result<Option<Login>, ConfigError> {
    let user = layers.pick_mqtt(|raw| raw.user.as_ref());
    let password = layers.pick_path(|raw| mqtt(raw)?.password_file.as_ref());
    match (user, password) {
        (Some(user), password) => Ok(Some(Login {
            user: user.value,
            password_file: password.map(|path| environment.secret(path.value)),
        })),
        (None, Some(password)) => Err(ConfigError::Missing {
            from: password.from,
            key: schema::named("mqtt", "user"),
            why: "a password needs its user".to_owned(),
        }),
        (None, None) => Ok(None),
    }
}
