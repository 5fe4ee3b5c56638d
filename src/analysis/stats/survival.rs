//! The share of requests that wait longer than a time, when not all waits were seen to
//! their end.
//!
//! A request that its user gave up after 5 s, that failed, or that is still open is
//! censored: it waited at least so long. To leave it out favours the side whose requests
//! are slow; to count it as fast or slow is a guess. The estimate of Kaplan and Meier
//! (Nonparametric estimation from incomplete observations, JASA 53, 1958) uses it for as
//! long as it was seen, on intervals as in a life table (Cutler and Ederer, Journal of
//! Chronic Diseases 8, 1958); its variance is Greenwood's (1926).
//!
//! Assumes that requests leave for reasons that say nothing of how much longer they would
//! have waited. That holds by design for open requests, because sides are drawn by chance
//! and looked at together. It does not for users who lose patience early: their number is
//! compared for itself.

use std::collections::BTreeMap;

use super::proportion::Share;

/// Counts by the index of an interval of time.
pub type Histogram = BTreeMap<u8, u64>;

/// Waits of one side: those whose end was seen, and those that were left before it, each
/// by the interval in which that happened.
#[derive(Clone, Copy, Debug)]
pub struct Waits<'a> {
    /// Waits that ended.
    pub ended: &'a Histogram,
    /// Waits that were left.
    pub left: &'a Histogram,
    /// Waits that go on.
    pub open: &'a Histogram,
}

impl Waits<'_> {
    /// How many there are.
    pub fn total(&self) -> f64 {
        // The sum of no floats is -0, which people would read.
        self.histograms().flat_map(BTreeMap::values).fold(0.0, |sum, n| sum + *n as f64)
    }

    fn histograms(&self) -> impl Iterator<Item = &Histogram> {
        std::iter::once(self.ended).chain(self.censored())
    }

    fn censored(&self) -> impl Iterator<Item = &Histogram> {
        [self.left, self.open].into_iter()
    }

    fn left_in(&self, interval: u8) -> f64 {
        self.censored().filter_map(|h| h.get(&interval)).map(|n| *n as f64).sum()
    }

    /// Those that do not go on and are known to be faster or slower than interval `last`. Later
    /// there may be more of them, and never fewer.
    pub fn closed(&self, last: u8) -> Share {
        let sum = |counts: &mut dyn Iterator<Item = (&u8, &u64)>| {
            counts.fold(0.0, |sum, (_, n)| sum + *n as f64)
        };
        let after = last.saturating_add(1);
        let fast = sum(&mut self.ended.range(..after));
        let bad = sum(&mut self.ended.range(after..).chain(self.left.range(after..)));
        Share { n: fast + bad, bad }
    }

    /// How many are known to have waited longer than interval `last`.
    pub fn beyond(&self, last: u8) -> f64 {
        let beyond =
            |h: &Histogram| h.range(last.saturating_add(1)..).map(|(_, n)| *n as f64).sum::<f64>();
        self.histograms().map(beyond).sum()
    }

    /// The share that waits longer than interval `last`, as a number of requests that would
    /// tell as much had all been seen to their end, and the slow ones among them. Nobody
    /// (n = 0) when no request is known to be faster or slower.
    pub fn slower_than(&self, last: u8) -> Share {
        if self.censored().all(|h| h.range(..=last).next().is_none()) {
            return Share { n: self.total(), bad: self.beyond(last) };
        }
        let (mut at_risk, mut survival, mut greenwood) = (self.total(), 1.0, 0.0);
        let mut fast = 0.0;
        for interval in 0..=last {
            let ended = self.ended.get(&interval).copied().unwrap_or_default() as f64;
            let left = self.left_in(interval);
            // Who leaves within an interval is counted for half of it.
            let exposed = at_risk - left / 2.0;
            if ended > 0.0 && exposed > 0.0 {
                let ended = ended.min(exposed);
                survival *= 1.0 - ended / exposed;
                if exposed > ended {
                    greenwood += ended / (exposed * (exposed - ended));
                }
            }
            fast += ended;
            at_risk -= ended + left;
        }
        let known = fast + self.beyond(last);
        if known <= 0.0 {
            return Share::default();
        }
        let variance = survival * survival * greenwood;
        let spread = survival * (1.0 - survival);
        let n = if variance > 0.0 && spread > 0.0 { spread / variance } else { known };
        let n = n.clamp(known.min(self.total()), self.total().max(known));
        Share { n, bad: survival * n }
    }

    /// The first interval beyond which no more than a share of `1 - q` waits. Where that
    /// many leave before their wait could end, the last one beyond which `least` requests
    /// are known to have waited. None without any.
    pub fn quantile(&self, q: f64, least: f64, intervals: u8) -> Option<u8> {
        let reached = (0..intervals).find(|i| {
            let share = self.slower_than(*i);
            share.n > 0.0 && share.bad <= (1.0 - q) * share.n * (1.0 + 1e-9)
        });
        let known = |i: u8| self.beyond(i) >= least;
        match reached {
            // Beyond it nobody is known to wait: what would be compared there is who left.
            Some(i) if known(i) || self.left_in(i) == 0.0 => Some(i),
            _ => (0..intervals).rev().find(|i| known(*i)),
        }
    }
}

#[cfg(test)]
mod tests;
