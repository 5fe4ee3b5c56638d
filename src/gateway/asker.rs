//! Who asks, and on whose account: with authentication a client is a team or a tenant, with
//! however many keys, as it is for the evidence. Without authentication a client is an
//! address, because nothing else tells one application from another.

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use super::{budget::Account, identity::Client};
use crate::audit::record::Caller;

/// Whoever may choose its IPv6 address chooses the last 64 bits of it.
const IPV6_HOST: u128 = u64::MAX as u128;

/// Somebody whose request is answered.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    /// None without authentication.
    pub client: Option<Arc<Client>>,
    /// What it holds of the memory.
    pub account: Arc<Account>,
}

impl Asker {
    /// Who it is on records.
    pub(super) fn caller(&self) -> Option<Arc<Caller>> {
        self.client.as_ref().map(|client| client.caller.clone())
    }
}

/// By what name a client's account is known.
pub(super) fn account_name(client: Option<&Client>, from: IpAddr) -> Cow<'_, str> {
    match (client, from.to_canonical()) {
        (Some(client), _) => Cow::Borrowed(&client.caller.party),
        (None, IpAddr::V6(address)) => {
            let network = Ipv6Addr::from_bits(address.to_bits() & !IPV6_HOST);
            Cow::Owned(format!("{network}/64"))
        }
        (None, address) => Cow::Owned(address.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_authentication_a_client_is_an_address_or_a_network_of_ipv6() {
        for (from, name) in [
            ("10.0.0.7", "10.0.0.7"),
            ("::ffff:10.0.0.7", "10.0.0.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
            ("::1", "::/64"),
        ] {
            assert_eq!(account_name(None, from.parse().unwrap()), name);
        }
    }
}
