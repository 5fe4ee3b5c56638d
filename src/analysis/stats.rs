//! Numbers in, numbers out.

pub mod adjusted;
pub mod anytime;
pub mod clustered;
pub mod difference;
pub mod exact;
pub mod mean;
pub mod normal;
pub mod paired;
pub mod proportion;
pub mod sequential;
pub mod spending;
pub mod stratified;
pub mod student;
pub mod survival;
