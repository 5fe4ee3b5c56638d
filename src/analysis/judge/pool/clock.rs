//! The two clocks of steps that are looks of one test: the time that is spent, and the
//! information that was seen.

/// The part of the later steps' time that a step may take: harm is looked for on, and the error
/// that is left is enough for the later looks.
const OVERRUN: f64 = 0.5;

/// What was seen of one metric in an earlier step of the pool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::analysis::judge) struct Seen {
    /// The step's index in the policy.
    pub step: usize,
    /// Canary samples.
    pub samples: f64,
    /// The variance of one observation, in any unit that all steps share.
    pub variance: f64,
}

/// Where one metric is on its two clocks.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::analysis::judge) struct Clock {
    /// The share of the planned sizes that was seen, 1 or more at the end.
    pub time: f64,
    pub(super) steps: Vec<Lap>,
}

/// The time that steps take, one after the other.
pub(super) struct Course {
    /// When the last of them ended.
    pub end: f64,
    /// The time that is planned for those that are left.
    left: f64,
}

impl Default for Course {
    fn default() -> Self {
        Self { end: 0.0, left: 1.0 }
    }
}

impl Course {
    /// How much of its planned time the next step has: less where one before it took of it.
    pub(super) fn scale(&self) -> f64 {
        ((1.0 - self.end) / self.left.max(1e-9)).min(1.0)
    }

    /// The time of a step that `planned` so much and saw this `part` of its samples. One that does
    /// not end the test leaves most of their time to those after it.
    pub(super) fn lap(&mut self, planned: f64, part: f64, ends: bool) -> f64 {
        let scale = self.scale();
        self.left -= planned;
        let most = (1.0 - self.end - (1.0 - OVERRUN) * self.left.max(0.0) * scale).max(0.0);
        let long = if ends { part * planned * scale } else { (part * planned * scale).min(most) };
        self.end += long;
        long
    }
}

/// One step on the clocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Lap {
    /// When it began, and how long it was.
    pub start: f64,
    pub long: f64,
    /// The information of a unit of time.
    pub rate: f64,
    /// The information that it gave while its clock stood.
    pub standing: f64,
}

impl Clock {
    /// The information at each of `times`, relative to that at the last, which is now.
    pub(in crate::analysis::judge) fn information(&self, times: &[f64]) -> Vec<f64> {
        let at = |time: f64| {
            let of = |lap: &Lap| {
                let later = time > lap.start + lap.long + 1e-12;
                let standing = if later { lap.standing } else { 0.0 };
                (time - lap.start).clamp(0.0, lap.long) * lap.rate + standing
            };
            self.steps.iter().map(of).sum::<f64>()
        };
        let now = self.steps.last().filter(|lap| self.time <= lap.start + lap.long + 1e-12);
        let now = now.map_or(0.0, |lap| lap.standing);
        let all = times.last().map_or(1.0, |time| at(*time) + now);
        let last = times.len().saturating_sub(1);
        times.iter().enumerate().map(|(i, t)| if i == last { 1.0 } else { at(*t) / all }).collect()
    }
}
