//! Many virtual canaries against given truths: how often a policy rolls back, promotes
//! or stays without an answer, and after how many requests. Randomness comes from a
//! seed: the same seed gives the same answer.

pub mod canary;
pub mod characteristics;
pub mod drawn;
mod draws;
pub mod peers;
pub mod plot;
pub mod truth;
pub mod users;

#[cfg(test)]
mod agreement;
