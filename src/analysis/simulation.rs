//! What a simulation of many virtual canaries needs beside Serinus' own judging: the
//! rules of peers on the same streams, and pictures of the result.

pub mod peers;
pub mod plot;
