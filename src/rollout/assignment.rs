//! The deterministic choice of a variant for one request.
//!
//! `u = hash(release uid, canary revision, sticky key) / 2^64`, canary when
//! `u < weight`. No state is shared: every gateway computes the same answer.
//! Raising the weight only moves keys from stable to canary, and every new canary
//! draws a fresh cut of users because its revision is part of the hash.

use xxhash_rust::xxh3::Xxh3Default;

/// Whether the sticky key belongs to the canary at `weight` percent (0 to 100).
pub fn is_canary(uid: &str, canary_revision: &str, sticky_key: &str, weight: u32) -> bool {
    position(uid, canary_revision, sticky_key) < f64::from(weight.min(100)) / 100.0
}

/// The key's place in [0, 1).
pub fn position(uid: &str, canary_revision: &str, sticky_key: &str) -> f64 {
    let mut hash = Xxh3Default::new();
    for part in [uid, canary_revision, sticky_key] {
        // The length keeps ("ab", "c") and ("a", "bc") apart.
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    // 53 bits are what a double holds exactly, so that the result stays below 1.
    (hash.digest() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Sticky keys are counted in so many groups, to see how alike the requests of one key are.
pub const GROUPS: usize = 32;

/// The group of a sticky key, below [`GROUPS`]: the same in every gateway, and
/// independent of which variant the key got.
pub fn group(uid: &str, sticky_key: &str) -> u8 {
    (position(uid, "group", sticky_key) * GROUPS as f64) as u8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What two gateways say of 100,000 users, and how many of them move.
    #[test]
    fn a_hundred_thousand_keys_split_as_told_and_alike_everywhere() {
        let keys: Vec<String> = (0..100_000).map(|i| format!("user-{i}")).collect();
        let on = |revision: &str, weight| -> Vec<bool> {
            keys.iter().map(|key| is_canary("uid", revision, key, weight)).collect()
        };
        let mut before = on("rev", 0);
        for weight in [1, 5, 25, 50, 75, 99, 100] {
            let now = on("rev", weight);
            assert_eq!(now, on("rev", weight), "no state is needed to say so");
            let share = f64::from(weight) / 100.0;
            let (expected, sigma) = (100_000.0 * share, (100_000.0 * share * (1.0 - share)).sqrt());
            let count = now.iter().filter(|canary| **canary).count() as f64;
            assert!((count - expected).abs() <= 4.5 * sigma, "{count} of 100,000 at {weight} %");
            let back = before.iter().zip(&now).filter(|(old, new)| **old && !**new).count();
            assert_eq!(back, 0, "raising the weight moves nobody back to stable");
            before = now;
        }
        // The next canary draws anew: half of each half.
        let (first, second) = (on("rev", 50), on("next", 50));
        let both = first.iter().zip(&second).filter(|(a, b)| **a && **b).count() as f64;
        assert!((both - 25_000.0).abs() <= 4.5 * (100_000.0 * 0.25 * 0.75_f64).sqrt(), "{both}");
    }

    proptest! {
        #[test]
        fn raising_the_weight_only_moves_keys_to_the_canary(key in ".*", low in 0_u32..=100, more in 0_u32..=100) {
            if is_canary("uid", "rev", &key, low) {
                prop_assert!(is_canary("uid", "rev", &key, low.saturating_add(more)));
            }
            prop_assert!(!is_canary("uid", "rev", &key, 0));
            prop_assert!(is_canary("uid", "rev", &key, 100));
        }
    }

    #[test]
    fn the_share_of_keys_is_the_weight() {
        for weight in [1, 5, 25, 50, 95] {
            let n = 100_000;
            let hits = (0..n).filter(|i| is_canary("uid", "rev", &i.to_string(), weight)).count();
            let share = hits as f64 / f64::from(n);
            let expected = f64::from(weight) / 100.0;
            let six_sigma = 6.0 * (expected * (1.0 - expected) / f64::from(n)).sqrt();
            assert!((share - expected).abs() < six_sigma, "{weight}%: {share}");
        }
    }

    #[test]
    fn every_canary_draws_a_fresh_cut_of_users() {
        let both = (0..10_000)
            .filter(|i| {
                let key = i.to_string();
                is_canary("uid", "a", &key, 50) && is_canary("uid", "b", &key, 50)
            })
            .count();
        assert!((2_200..2_800).contains(&both), "{both} of 10000 keys are in both halves");
    }
}
