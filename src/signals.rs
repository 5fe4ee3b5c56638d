//! Where evidence comes from, and where requests may go.

pub mod addresses;
pub mod api_server;
pub mod cause;
pub mod endpoints;
pub mod gateways;
pub mod index;
pub mod keyring;
pub mod links;
pub mod model_dates;
pub mod prometheus;
pub mod proof;
pub mod report;
pub mod spending;
pub mod tried;
pub mod watch;
