//! Numbers in, numbers out.

pub mod difference;
pub mod normal;
pub mod sequential;
pub mod spending;
