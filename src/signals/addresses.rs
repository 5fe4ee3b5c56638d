//! Where requests may go. The address of a model is written by whoever may write an
//! LLMDeployment, who must not reach what only this machine can reach: a cloud's
//! metadata service gives credentials away to whoever asks from the right machine.
//!
//! What a name resolves to is judged at every connection, so that a name that changes
//! its mind (DNS rebinding) gains nothing. Loopback and private networks stay allowed:
//! model servers in the cluster live there. Who must not reach *those* is a matter for
//! network policies.

use std::{
    future::Future,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    str::FromStr,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::http::Uri;
use hyper_util::client::legacy::connect::{
    HttpConnector,
    dns::{GaiResolver, Name},
};
use ipnet::IpNet;
use tower_service::Service;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Future1<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

/// Metadata services and the like that live outside of link-local networks.
const METADATA: [IpAddr; 6] = [
    // Alibaba Cloud.
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    // Azure's platform services.
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    // Oracle Cloud, beside 169.254.169.254.
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    // AWS, over IPv6: instances, and pods of EKS.
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    // Google Cloud, over IPv6.
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

/// An address that requests may not go to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} is link-local, a metadata service, or no address of one machine; --allow-upstream permits it"
)]
pub struct Refused(pub IpAddr);

/// Which addresses requests may go to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    allowed: Vec<IpNet>,
}

impl Addresses {
    /// These networks too.
    pub fn allowing(allowed: Vec<IpNet>) -> Self {
        Self { allowed }
    }

    /// Whether requests may go to an address.
    pub fn permits(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let named = |ip| self.allowed.iter().any(|net| net.contains(&ip));
        if named(address) {
            return true;
        }
        match address {
            IpAddr::V4(_) => is_ordinary(address),
            // Translated on the way to an address of IPv4, which is what counts.
            IpAddr::V6(v6) => {
                let mut v4 = carried(v6).into_iter().flatten().map(IpAddr::from);
                is_ordinary(address) && v4.all(|v4| named(v4) || is_ordinary(v4))
            }
        }
    }

    /// Judges a host that a proxy resolves. Only what it says by itself can be judged: an
    /// address in any notation, and the names of metadata services. Where other names lead
    /// is known to the proxy alone.
    ///
    /// # Errors
    /// It is, or is called, what requests may not go to.
    pub fn check_named(&self, host: &str) -> Result<(), Refused> {
        let host = host.trim_end_matches('.');
        if METADATA_NAMES.iter().any(|name| host.eq_ignore_ascii_case(name)) {
            let address = Ipv4Addr::new(169, 254, 169, 254).into();
            return if self.permits(address) { Ok(()) } else { Err(Refused(address)) };
        }
        match in_any_notation(host) {
            Some(address) if !self.permits(address.into()) => Err(Refused(address.into())),
            _ => self.check_host(host),
        }
    }

    /// Judges a host that is an address and not a name.
    ///
    /// # Errors
    /// It is an address that requests may not go to.
    pub fn check_host(&self, host: &str) -> Result<(), Refused> {
        match IpAddr::from_str(host.trim_start_matches('[').trim_end_matches(']')) {
            Ok(address) if !self.permits(address) => Err(Refused(address)),
            _ => Ok(()),
        }
    }
}

/// What metadata services are called by those who do not resolve names themselves.
const METADATA_NAMES: [&str; 3] =
    ["metadata.google.internal", "metadata.goog", "instance-data.ec2.internal"];

/// The address of IPv4 that systems see in a text (`inet_aton`): up to four numbers, in
/// decimal, octal or hexadecimal notation, the last of which fills what is left.
fn in_any_notation(text: &str) -> Option<Ipv4Addr> {
    let number = |part: &str| match part.as_bytes() {
        [b'0', b'x' | b'X', ..] => u32::from_str_radix(&part[2..], 16).ok(),
        [b'0', _, ..] => u32::from_str_radix(&part[1..], 8).ok(),
        [b'0'..=b'9', ..] => part.parse().ok(),
        _ => None,
    };
    let parts: Vec<u32> = text.split('.').map(number).collect::<Option<_>>()?;
    let (last, first) = parts.split_last().filter(|(_, first)| first.len() < 4)?;
    let left = 32 - 8 * u32::try_from(first.len()).ok()?;
    if first.iter().any(|part| *part > 255) || (left < 32 && *last >> left != 0) {
        return None;
    }
    let high = first.iter().fold(0, |high, part| high << 8 | part);
    Some(Ipv4Addr::from(high.checked_shl(left).unwrap_or(0) | last))
}

fn is_ordinary(address: IpAddr) -> bool {
    let own = match address {
        // 0.0.0.0/8 is "this machine" to some systems.
        IpAddr::V4(v4) => v4.octets()[0] == 0 || v4.is_link_local() || v4.is_broadcast(),
        // fe80::/10, and fec0::/10, which was once the same.
        IpAddr::V6(v6) => v6.is_unspecified() || v6.segments()[0] & 0xff80 == 0xfe80,
    };
    !own && !address.is_multicast() && !METADATA.contains(&address)
}

/// The addresses of IPv4 that one of IPv6 may lead to: compatible (`::/96`), translated
/// (`::ffff:0:0:0/96`, RFC 2765), NAT64 (`64:ff9b::/96`, and `64:ff9b:1::/48` with the address
/// in either of the places of RFC 6052), 6to4 (`2002::/16`), the server and the client of
/// Teredo (`2001::/32`), and ISATAP (`::5efe` before the address). Mapped ones are canonical
/// already.
fn carried(address: Ipv6Addr) -> [Option<Ipv4Addr>; 2] {
    let s = address.segments();
    let v4 = |high: u16, low: u16| Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    match s {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => [None, None],
        [0, 0, 0, 0, 0, 0, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => [v4(high, low), None],
        // Of the second place, eight bits in the middle mean nothing.
        [0x64, 0xff9b, 1, first, middle, last, high, low] => {
            [v4(high, low), v4(first, middle << 8 | last >> 8)]
        }
        [0x2002, high, low, ..] => [v4(high, low), None],
        [0x2001, 0, high, low, _, _, client_high, client_low] => {
            [v4(high, low), v4(!client_high, !client_low)]
        }
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => [v4(high, low), None],
        _ => [None, None],
    }
}

/// Why no address is left, if that is why a connection failed.
pub fn refused<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Refused> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(refused) = error.downcast_ref() {
            return Some(refused);
        }
        cause = error.source();
    }
    None
}

/// Resolves names to addresses that requests may go to.
#[derive(Clone)]
pub struct Resolver {
    addresses: Arc<Addresses>,
    system: GaiResolver,
}

impl Resolver {
    /// Over the system's resolver.
    pub fn new(addresses: Arc<Addresses>) -> Self {
        Self { addresses, system: GaiResolver::new() }
    }

    fn resolve(&self, name: Name) -> Future1<std::vec::IntoIter<SocketAddr>> {
        let (addresses, found) = (self.addresses.clone(), self.system.clone().call(name));
        Box::pin(async move { Ok(only_permitted(&addresses, found.await?)?.into_iter()) })
    }
}

/// Those that are permitted; an error when that leaves none.
fn only_permitted(
    addresses: &Addresses,
    found: impl Iterator<Item = SocketAddr>,
) -> Result<Vec<SocketAddr>, Refused> {
    let (permitted, others): (Vec<_>, Vec<_>) = found.partition(|a| addresses.permits(a.ip()));
    match others.first() {
        Some(refused) if permitted.is_empty() => Err(Refused(refused.ip())),
        _ => Ok(permitted),
    }
}

/// For hyper.
impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = BoxError;
    type Future = Future1<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        self.resolve(name)
    }
}

/// For reqwest.
impl reqwest::dns::Resolve for Resolver {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let resolver = self.clone();
        let name = Name::from_str(name.as_str());
        Box::pin(async move {
            let found: Box<dyn Iterator<Item = SocketAddr> + Send> =
                Box::new(Self::resolve(&resolver, name?).await?);
            Ok(found)
        })
    }
}

/// Connects to permitted addresses only, whether a URI has a name or an address.
#[derive(Clone)]
pub struct Connector {
    addresses: Arc<Addresses>,
    http: HttpConnector<Resolver>,
}

impl Connector {
    /// `adjust` sets timeouts and socket options.
    pub fn new(
        addresses: Arc<Addresses>,
        adjust: impl FnOnce(&mut HttpConnector<Resolver>),
    ) -> Self {
        let mut http = HttpConnector::new_with_resolver(Resolver::new(addresses.clone()));
        adjust(&mut http);
        Self { addresses, http }
    }
}

impl Service<Uri> for Connector {
    type Response = <HttpConnector<Resolver> as Service<Uri>>::Response;
    type Error = BoxError;
    type Future = Future1<Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(ready!(self.http.poll_ready(cx))?))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        if let Err(refused) = self.addresses.check_host(uri.host().unwrap_or_default()) {
            return Box::pin(async { Err(refused.into()) });
        }
        let connecting = self.http.call(uri);
        Box::pin(async { Ok(connecting.await?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    const REFUSED: [&str; 32] = [
        "169.254.169.254",
        "169.254.0.1",
        "169.254.170.2",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "0.0.0.0",
        "0.1.2.3",
        "224.0.0.1",
        "239.255.255.250",
        "255.255.255.255",
        "::",
        "fe80::1",
        "febf::1",
        "fec0::1",
        "ff02::1",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "::ffff:169.254.169.254",
        "::ffff:0.0.0.0",
        "::169.254.169.254",
        "64:ff9b::169.254.169.254",
        "2002:a9fe:a9fe::",
        "2002:a9fe:a9fe::1",
        "64:ff9b:1::a9fe:a9fe",
        "64:ff9b:1:a9fe:a9:fe00::",
        "2001:0:a9fe:a9fe::1",
        "2001:0:808:808::5601:5601",
        "::ffff:0:169.254.169.254",
        "fd00::5efe:169.254.169.254",
        "2001:db8::200:5efe:100.100.100.200",
    ];

    const PERMITTED: [&str; 14] = [
        "127.0.0.1",
        "::1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "fd00::1",
        "8.8.8.8",
        "2606:4700::1111",
        "64:ff9b::8.8.8.8",
        "64:ff9b:1:808:8:800:808:808",
        "2001:0:808:808::f7f7:f7f7",
        "2001:4860:4860::8888",
        "169.253.255.255",
    ];

    #[test]
    fn metadata_and_link_local_are_refused_in_every_spelling_and_model_servers_are_not() {
        let addresses = Addresses::default();
        for text in REFUSED {
            assert!(!addresses.permits(ip(text)), "{text}");
            let host = if text.contains(':') { format!("[{text}]") } else { text.to_owned() };
            assert_eq!(addresses.check_host(&host), Err(Refused(ip(text))), "{text}");
        }
        for text in PERMITTED {
            assert!(addresses.permits(ip(text)), "{text}");
        }
        assert_eq!(addresses.check_host("metadata.google.internal"), Ok(()), "names are resolved");
    }

    #[test]
    fn behind_a_proxy_what_a_host_says_by_itself_is_judged_in_every_notation() {
        let addresses = Addresses::default();
        for host in [
            "169.254.169.254",
            "169.254.169.254.",
            "2852039166",
            "0xa9fea9fe",
            "0xA9.0xfe.0251.0376",
            "169.254.43518",
            "169.16689662",
            "0",
            "[fe80::1]",
            "[::ffff:169.254.169.254]",
            "metadata.google.internal",
            "Metadata.Google.Internal.",
        ] {
            assert!(addresses.check_named(host).is_err(), "{host}");
        }
        for host in ["api.openai.com", "10.0.0.1", "0x7f.1", "1.2.3.4.5", "256.1", "08.1", "a"] {
            assert_eq!(addresses.check_named(host), Ok(()), "{host}");
        }
        let allowed = Addresses::allowing(vec!["169.254.169.254/32".parse().unwrap()]);
        assert_eq!(allowed.check_named("metadata.google.internal"), Ok(()));
        assert_eq!(allowed.check_named("0xa9fea9fe"), Ok(()));
    }

    #[test]
    fn what_is_allowed_by_name_is_permitted_and_nothing_beside_it() {
        let addresses = Addresses::allowing(vec!["169.254.10.0/24".parse().unwrap()]);
        assert!(addresses.permits(ip("169.254.10.7")));
        assert!(addresses.permits(ip("::ffff:169.254.10.7")));
        assert!(addresses.permits(ip("64:ff9b::169.254.10.7")));
        assert!(addresses.permits(ip("::ffff:0:169.254.10.7")));
        assert!(!addresses.permits(ip("::ffff:0:169.254.11.7")));
        assert!(!addresses.permits(ip("169.254.11.7")));
    }

    #[test]
    fn a_name_with_a_refused_address_among_others_is_reached_at_the_others_only() {
        let found = |texts: &[&str]| {
            let all: Vec<_> = texts.iter().map(|t| SocketAddr::new(ip(t), 80)).collect();
            only_permitted(&Addresses::default(), all.into_iter())
        };
        assert_eq!(found(&["169.254.169.254", "10.0.0.1"]).unwrap().len(), 1);
        assert_eq!(found(&["169.254.169.254"]), Err(Refused(ip("169.254.169.254"))));
        assert_eq!(found(&[]), Ok(vec![]), "an empty answer is the resolver's business");
    }

    #[tokio::test]
    async fn no_connection_is_made_to_a_refused_address_whichever_way_it_is_written() {
        let mut connector = Connector::new(Arc::default(), |_| ());
        // Numbers in other notations are names to a URI and addresses to the system.
        for host in ["169.254.169.254", "[fe80::1]", "0.0.0.0", "0", "2852039166", "0xa9fea9fe"] {
            let uri: Uri = format!("http://{host}/latest/meta-data").parse().unwrap();
            let error = connector.call(uri).await.err().unwrap();
            assert!(refused(error.as_ref()).is_some(), "{host}: {error}");
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in ["127.0.0.1", "localhost"] {
            let uri: Uri = format!("http://{host}:{port}/").parse().unwrap();
            assert!(connector.call(uri).await.is_ok(), "{host}");
        }
    }
}
