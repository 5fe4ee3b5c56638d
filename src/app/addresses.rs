//! The flag that permits addresses which are refused otherwise.

use ipnet::IpNet;

use crate::signals::addresses::Addresses;

/// Where models may be.
#[derive(clap::Args)]
#[group(id = "addresses")]
pub struct Options {
    /// Networks that models may be in although they are link-local or a metadata service,
    /// for example 169.254.10.0/24.
    #[arg(long, value_delimiter = ',', value_name = "CIDR")]
    allow_upstream: Vec<IpNet>,
}

impl Options {
    /// The addresses.
    pub fn build(&self) -> Addresses {
        Addresses::allowing(self.allow_upstream.clone())
    }
}
