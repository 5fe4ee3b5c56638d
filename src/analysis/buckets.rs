//! The shared scale of latencies: every gateway counts into the same buckets, so
//! that counts add up and any bucket bound can serve as a frozen threshold.
//!
//! Bounds grow by 15 % from 5 ms to beyond two minutes: a threshold is at most
//! 15 % away from the quantile that it stands for.

/// How many buckets there are; the last one has no upper bound.
pub const BUCKETS: u8 = 75;

const FIRST: f64 = 0.005;
const GROWTH: f64 = 1.15;

/// Computed once, by multiplication only, so that every machine has the same bounds.
const BOUNDS: [f64; BUCKETS as usize] = {
    let mut bounds = [f64::INFINITY; BUCKETS as usize];
    let (mut i, mut bound) = (0, FIRST);
    while i + 1 < BUCKETS as usize {
        bounds[i] = bound;
        bound *= GROWTH;
        i += 1;
    }
    bounds
};

/// The upper bound of bucket `index`, in seconds; infinite for the last.
pub fn bound(index: u8) -> f64 {
    BOUNDS.get(usize::from(index)).copied().unwrap_or(f64::INFINITY)
}

/// The bucket that `seconds` falls into: the first whose bound is not smaller.
pub fn index(seconds: f64) -> u8 {
    // Not a number and negative values count as the smallest.
    if seconds.is_nan() || seconds <= FIRST {
        return 0;
    }
    BOUNDS.partition_point(|bound| *bound < seconds) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_latency_falls_into_the_bucket_that_bounds_it() {
        for i in 0..BUCKETS - 1 {
            assert_eq!(index(bound(i)), i);
            assert_eq!(index(bound(i) * 1.0001), i + 1);
        }
        assert_eq!((index(f64::NAN), index(-1.0), index(1e9)), (0, 0, BUCKETS - 1));
        assert!(bound(BUCKETS - 2) > 120.0);
    }
}
