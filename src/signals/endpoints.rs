//! Where the pods of a Service are: EndpointSlices, read once for everybody.

use std::net::SocketAddr;

use k8s_openapi::api::discovery::v1::{EndpointPort, EndpointSlice};

/// The label of a slice with the name of its Service.
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// One pod of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// It wants new connections.
    pub ready: bool,
    /// It answers, though it may be about to stop.
    pub serving: bool,
}

/// The pods of slices at the first port that is `wanted`. What is not an IP address is
/// left out.
pub fn endpoints<'a>(
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    wanted: impl Fn(&EndpointPort) -> bool,
) -> Vec<Endpoint> {
    let mut found = vec![];
    for slice in slices {
        let port = slice.ports.iter().flatten().find(|port| wanted(port));
        let Some(port) = port.and_then(|p| u16::try_from(p.port?).ok()) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            // What is not said counts as yes.
            let ready = conditions.ready.unwrap_or(true);
            let serving = conditions.serving.or(conditions.ready).unwrap_or(true);
            let ip = endpoint.addresses.first().and_then(|a| a.parse().ok());
            found.extend(ip.map(|ip| Endpoint {
                address: SocketAddr::new(ip, port),
                ready,
                serving,
            }));
        }
    }
    found.sort_by_key(|e| e.address);
    found.dedup_by_key(|e| e.address);
    found
}

/// The pods that new requests should go to: the ready ones, or while there are none those
/// that still answer.
pub fn for_requests(endpoints: &[Endpoint]) -> Vec<SocketAddr> {
    let of = |wanted: fn(&Endpoint) -> bool| -> Vec<SocketAddr> {
        endpoints.iter().filter(|e| wanted(e)).map(|e| e.address).collect()
    };
    let ready = of(|e| e.ready);
    if ready.is_empty() { of(|e| e.serving) } else { ready }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slices() -> Vec<EndpointSlice> {
        serde_json::from_value(json!([
            {"addressType": "IPv4", "metadata": {},
             "ports": [{"name": "http", "port": 8080}, {"name": "admin", "port": 8081}],
             "endpoints": [
                {"addresses": ["10.0.0.1"], "conditions": {"ready": true, "serving": true}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": false}},
                {"addresses": ["10.0.0.4"], "conditions": {}},
             ]},
            {"addressType": "IPv6", "metadata": {}, "ports": [{"name": "admin", "port": 8081}],
             "endpoints": [{"addresses": ["fd00::1"]}]},
            {"addressType": "FQDN", "metadata": {}, "ports": [{"name": "admin", "port": 8081}],
             "endpoints": [{"addresses": ["pod.example"]}]},
            {"addressType": "IPv4", "metadata": {}, "ports": [{"name": "http", "port": 8080}],
             "endpoints": [{"addresses": ["10.0.0.9"]}]},
        ]))
        .unwrap()
    }

    fn texts(addresses: impl IntoIterator<Item = SocketAddr>) -> Vec<String> {
        addresses.into_iter().map(|a| a.to_string()).collect()
    }

    #[test]
    fn pods_are_found_at_the_wanted_port_and_told_apart() {
        let slices = slices();
        let found = endpoints(&slices, |p| p.name.as_deref() == Some("admin"));
        let serving = found.iter().filter(|e| e.serving).map(|e| e.address);
        assert_eq!(
            texts(serving),
            ["10.0.0.1:8081", "10.0.0.2:8081", "10.0.0.4:8081", "[fd00::1]:8081"]
        );
        assert_eq!(
            texts(for_requests(&found)),
            ["10.0.0.1:8081", "10.0.0.4:8081", "[fd00::1]:8081"]
        );
    }

    #[test]
    fn pods_that_stop_still_get_requests_while_there_are_no_others() {
        let address: SocketAddr = "10.0.0.1:1".parse().unwrap();
        let stopping = Endpoint { address, ready: false, serving: true };
        assert_eq!(for_requests(&[stopping]), [address]);
        assert!(for_requests(&[Endpoint { serving: false, ..stopping }]).is_empty());
    }
}
