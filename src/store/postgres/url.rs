//! Parses the URL of `--database`, which has the form that libpq and psql accept.
//!
//! An error never quotes the part of the URL that may contain a password.

use std::path::PathBuf;
use std::time::Duration;

use ::postgres::Config;
use ::postgres::config::{
    ChannelBinding, Host, LoadBalanceHosts, SslNegotiation, TargetSessionAttrs,
};
use percent_encoding::percent_decode_str;

use super::Environment;
use super::tls::{Mode, Roots, Ssl};

/// The sockets of Debian's and most other packages.
const SOCKET_DIR: &str = "/var/run/postgresql";
/// A host that does not answer must not stop the processor for long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection whose other end does not acknowledge data for this long is closed.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);
const KEEPALIVES_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVES_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVES_RETRIES: u32 = 3;

/// A parsed URL.
#[derive(Clone)]
pub(super) struct Url {
    /// The parameters of the connection, without a password from a file or the environment.
    pub(super) config: Config,
    pub(super) ssl: Ssl,
    /// The file in the format of `.pgpass`; `None` for the default one.
    pub(super) passfile: Option<PathBuf>,
    /// A file that contains only the password.
    pub(super) password_file: Option<PathBuf>,
    /// The URL without its password.
    pub(super) shown: String,
}

impl Url {
    /// Parses a URL; `environment` returns the values of PGUSER, PGSSLMODE and the like, which apply where
    /// the URL does not have the parameter.
    pub(super) fn parse(text: &str, environment: Environment<'_>) -> Result<Self, String> {
        let rest = ["postgres://", "postgresql://"]
            .iter()
            .find_map(|scheme| text.strip_prefix(scheme))
            .ok_or("it must be a URL such as postgres://USER@HOST/DATABASE")?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        // An unencoded / or ? in a password would end up here, and then in messages.
        if database.contains('@') || query.contains('@') {
            return Err("there is an @ after the host; in a password, write / as %2F, ? as %3F, @ as %40 and % as %25".to_owned());
        }
        let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let mut parser = Parser::new();
        let (user, password) = match user.split_once(':') {
            Some((user, password)) => (user, Some(decode("password", password)?)),
            None => (user, None),
        };
        parser.hosts(hosts)?;
        if !user.is_empty() {
            parser.set("user", decode("user", user)?)?;
        }
        if !database.is_empty() {
            parser.set("dbname", decode("database", database)?)?;
        }
        let mut shown_query = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair
                .split_once('=')
                .ok_or("a parameter after the ? has no =; write NAME=VALUE&NAME=VALUE")?;
            let name = decode("name of a parameter", name)?;
            parser.set(&name, decode(&name, value)?)?;
            if name != "password" {
                shown_query.push(pair);
            }
        }
        if let Some(password) = password {
            parser.config.password(password);
        }
        let at = if user.is_empty() { "" } else { "@" };
        let slash = if rest.contains('/') { "/" } else { "" };
        let mut shown = format!("postgres://{user}{at}{hosts}{slash}{database}");
        if !shown_query.is_empty() {
            shown = format!("{shown}?{}", shown_query.join("&"));
        }
        parser.finish(shown, environment)
    }

    /// The first host and port, and the database, as `.pgpass` names them.
    pub(super) fn place(&self) -> (String, u16, String) {
        let host = match self.config.get_hosts().first() {
            Some(Host::Tcp(host)) => host.clone(),
            // As libpq does, for the default directory of sockets.
            _ => "localhost".to_owned(),
        };
        let port = self.config.get_ports().first().copied().unwrap_or(5432);
        let user = self.config.get_user().unwrap_or_default();
        let database = self.config.get_dbname().unwrap_or(user).to_owned();
        (host, port, database)
    }
}

fn decode(what: &str, text: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| format!("the {what} is not UTF-8"))?;
    if decoded.contains('\0') {
        return Err(format!("the {what} contains a NUL"));
    }
    Ok(decoded.into_owned())
}

/// Collects parameters.
struct Parser {
    config: Config,
    ssl: Ssl,
    mode: Option<Mode>,
    passfile: Option<PathBuf>,
    password_file: Option<PathBuf>,
    hosts: usize,
    ports: usize,
    attrs: bool,
}

impl Parser {
    fn new() -> Self {
        let mut config = Config::new();
        config
            .application_name("tallyline")
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_user_timeout(TCP_USER_TIMEOUT)
            .keepalives_idle(KEEPALIVES_IDLE)
            .keepalives_interval(KEEPALIVES_INTERVAL)
            .keepalives_retries(KEEPALIVES_RETRIES);
        Self {
            config,
            ssl: Ssl::default(),
            mode: None,
            passfile: None,
            password_file: None,
            hosts: 0,
            ports: 0,
            attrs: false,
        }
    }

    /// `host:port,host:port`; each may be missing.
    fn hosts(&mut self, hosts: &str) -> Result<(), String> {
        if hosts.is_empty() {
            return Ok(());
        }
        let mut ports = Vec::new();
        for one in hosts.split(',') {
            let (host, port) = match one.strip_prefix('[') {
                Some(rest) => {
                    let (host, rest) = rest
                        .split_once(']')
                        .ok_or("an IPv6 address has no closing ]")?;
                    (host, rest.strip_prefix(':').unwrap_or(rest))
                }
                None => one.split_once(':').unwrap_or((one, "")),
            };
            ports.push(port);
            if !host.is_empty() {
                self.host(&decode("host", host)?);
            } else if hosts.contains(',') {
                return Err("a host of the list is empty".to_owned());
            }
        }
        if ports.iter().any(|port| !port.is_empty()) {
            self.port_list(&ports)?;
        }
        Ok(())
    }

    fn host(&mut self, host: &str) {
        self.hosts += 1;
        self.config.host(host);
    }

    fn port_list(&mut self, ports: &[&str]) -> Result<(), String> {
        for port in ports {
            let port = match *port {
                "" => 5432,
                port => port.parse::<u16>().ok().filter(|&port| port > 0).ok_or(
                    "the port is not a number from 1 to 65535; in a password, write : as %3A, / as %2F, ? as %3F, @ as %40 and % as %25",
                )?,
            };
            self.ports += 1;
            self.config.port(port);
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), String> {
        match name {
            "user" => {
                self.config.user(&value);
            }
            "password" => {
                self.config.password(&value);
            }
            "dbname" => {
                self.config.dbname(&value);
            }
            "application_name" => {
                self.config.application_name(&value);
            }
            "options" => {
                self.config.options(&value);
            }
            "host" => value.split(',').for_each(|host| self.host(host)),
            "port" => self.port_list(&value.split(',').collect::<Vec<_>>())?,
            "hostaddr" => {
                for address in value.split(',') {
                    let address = address.parse();
                    self.config
                        .hostaddr(address.map_err(|_| "hostaddr is not an IP address")?);
                }
            }
            "passfile" => self.passfile = Some(value.into()),
            "password_file" => self.password_file = Some(value.into()),
            "connect_timeout" => {
                // 0 waits forever with libpq; here the default applies.
                if let Some(timeout) = seconds(name, &value)? {
                    self.config.connect_timeout(timeout);
                }
            }
            "keepalives" => {
                self.config.keepalives(value != "0");
            }
            "keepalives_idle" => {
                if let Some(idle) = seconds(name, &value)? {
                    self.config.keepalives_idle(idle);
                }
            }
            "keepalives_interval" => {
                if let Some(interval) = seconds(name, &value)? {
                    self.config.keepalives_interval(interval);
                }
            }
            "keepalives_count" => {
                self.config.keepalives_retries(number(name, &value)?);
            }
            "tcp_user_timeout" => {
                let timeout = Duration::from_millis(number(name, &value)?.into());
                self.config.tcp_user_timeout(timeout);
            }
            "client_encoding"
                if ["utf8", "utf-8", "unicode", "auto"].contains(&&*value.to_ascii_lowercase()) => {
            }
            "fallback_application_name" => {}
            "gssencmode" if value == "disable" || value == "prefer" => {}
            _ => return self.set_security(name, &value),
        }
        Ok(())
    }

    /// TLS, and the choice among several hosts.
    fn set_security(&mut self, name: &str, value: &str) -> Result<(), String> {
        match (name, value) {
            ("sslmode", value) => self.mode = Some(Mode::parse(value)?),
            ("sslrootcert", value) => self.ssl.roots = Roots::named(value),
            ("sslcert", value) => self.ssl.certificate = Some(value.into()),
            ("sslkey", value) => self.ssl.key = Some(value.into()),
            ("sslnegotiation", "postgres") => {
                self.config.ssl_negotiation(SslNegotiation::Postgres);
            }
            ("sslnegotiation", "direct") => {
                self.config.ssl_negotiation(SslNegotiation::Direct);
            }
            ("channel_binding", "disable") => {
                self.config.channel_binding(ChannelBinding::Disable);
            }
            ("channel_binding", "prefer") => {
                self.config.channel_binding(ChannelBinding::Prefer);
            }
            ("channel_binding", "require") => {
                self.config.channel_binding(ChannelBinding::Require);
            }
            ("load_balance_hosts", "disable") => {
                self.config.load_balance_hosts(LoadBalanceHosts::Disable);
            }
            ("load_balance_hosts", "random") => {
                self.config.load_balance_hosts(LoadBalanceHosts::Random);
            }
            ("target_session_attrs", "any" | "read-write" | "primary") => self.attrs = true,
            ("target_session_attrs", _) => {
                return Err("target_session_attrs must be any, read-write or primary: all statements go to the primary server".to_owned());
            }
            (
                "client_encoding" | "gssencmode" | "sslnegotiation" | "channel_binding"
                | "load_balance_hosts",
                _,
            ) => {
                return Err(format!(
                    "the value of the parameter {name} is not supported"
                ));
            }
            _ => return Err(format!("unknown parameter {name:?}")),
        }
        Ok(())
    }

    fn finish(mut self, shown: String, environment: Environment<'_>) -> Result<Url, String> {
        if self.hosts == 0 && self.config.get_hostaddrs().is_empty() {
            self.host(if std::path::Path::new(SOCKET_DIR).is_dir() {
                SOCKET_DIR
            } else {
                "localhost"
            });
        }
        let hosts = self.hosts.max(self.config.get_hostaddrs().len());
        if self.ports > 1 && self.ports != hosts {
            return Err(format!("it has {} ports for {hosts} hosts", self.ports));
        }
        // Of several hosts, the one that accepts writes: the primary server.
        if hosts > 1 || self.attrs {
            self.config
                .target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        if self.config.get_user().is_none()
            && let Some(user) = environment("PGUSER")
        {
            self.config.user(&user);
        }
        if self.ssl.roots == Roots::Default
            && let Some(roots) = environment("PGSSLROOTCERT")
        {
            self.ssl.roots = Roots::named(&roots);
        }
        self.ssl.mode = match (self.mode, environment("PGSSLMODE")) {
            (Some(mode), _) => mode,
            (None, Some(mode)) => {
                Mode::parse(&mode).map_err(|error| format!("PGSSLMODE: {error}"))?
            }
            // As libpq does: certificates of the system are useless without a check of the name.
            (None, None) if self.ssl.roots == Roots::System => Mode::VerifyFull,
            (None, None) => Mode::Prefer,
        };
        if self.ssl.roots == Roots::System && self.ssl.mode != Mode::VerifyFull {
            return Err("sslrootcert=system needs sslmode=verify-full".to_owned());
        }
        if self.ssl.certificate.is_some() != self.ssl.key.is_some() {
            return Err("sslcert and sslkey must be given together".to_owned());
        }
        Ok(Url {
            config: self.config,
            ssl: self.ssl,
            passfile: self.passfile,
            password_file: self.password_file,
            shown,
        })
    }
}

fn number(name: &str, value: &str) -> Result<u32, String> {
    let number = value.parse();
    number.map_err(|_| format!("the value of the parameter {name} is not a whole number"))
}

/// A duration in seconds; `None` for 0, which stands for the default.
fn seconds(name: &str, value: &str) -> Result<Option<Duration>, String> {
    let seconds = number(name, value)?;
    Ok((seconds > 0).then(|| Duration::from_secs(seconds.into())))
}

#[cfg(test)]
mod tests;
