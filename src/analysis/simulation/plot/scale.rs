//! From values to pixels, with ticks on round numbers.

/// Beyond this a picture says nothing, and differences of doubles would overflow.
const LARGEST: f64 = 1e15;

/// The value, kept within what can be drawn.
pub fn tame(value: f64) -> f64 {
    value.clamp(-LARGEST, LARGEST)
}

/// A linear axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    low: f64,
    high: f64,
    step: f64,
    from: f64,
    to: f64,
    percent: bool,
}

impl Scale {
    /// The range of `values` with about `ticks` ticks; 0 to 1 without values.
    pub fn around(values: impl Iterator<Item = f64>, ticks: f64) -> Self {
        let (low, high) =
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        let (low, high) = if low > high { (0.0, 1.0) } else { widened(low, high) };
        let step = round_step((high - low) / ticks);
        Self { low, high, step, from: 0.0, to: 1.0, percent: false }
    }

    /// The pixels of both ends.
    pub fn onto(self, from: f64, to: f64) -> Self {
        Self { from, to, ..self }
    }

    /// Both ends moved out to a tick; ticks are written as percent if asked.
    pub fn rounded(self, percent: bool) -> Self {
        let low = (self.low / self.step + 1e-9).floor() * self.step;
        let high = (self.high / self.step - 1e-9).ceil() * self.step;
        Self { low, high, percent, ..self }
    }

    /// The pixel of a value. Values outside are drawn at the end.
    pub fn at(&self, value: f64) -> f64 {
        let part = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        self.from + part * (self.to - self.from)
    }

    /// The ticks and their texts.
    pub fn ticks(&self) -> Vec<(f64, String)> {
        let first = (self.low / self.step).round();
        let count = ((self.high - self.low) / self.step).round().clamp(0.0, 20.0) as u32;
        (0..=count)
            .map(|i| {
                let value = (first + f64::from(i)) * self.step;
                (value, self.written(value))
            })
            .collect()
    }

    fn written(&self, value: f64) -> String {
        let (value, step, unit) = if self.percent {
            (100.0 * value, 100.0 * self.step, " %")
        } else {
            (value, self.step, "")
        };
        // Rounding keeps a tick at zero from being written as -0.
        let value = if value.abs() < step / 2.0 { 0.0 } else { value };
        if !(1e-5..1e6).contains(&step) {
            return format!("{value:.1e}{unit}");
        }
        let decimals = (-(step.log10() + 1e-9).floor()).max(0.0) as usize;
        format!("{value:.decimals$}{unit}")
    }
}

/// A single value gets room on both sides, in proportion to its size.
fn widened(low: f64, high: f64) -> (f64, f64) {
    let least = 1e-9 * low.abs().max(high.abs()).max(1e-3);
    if high - low > least {
        return (low, high);
    }
    let room = if low == 0.0 { 1.0 } else { low.abs() / 2.0 };
    (low - room, high + room)
}

/// 1, 2 or 5 times a power of ten, not below `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let part = step / power;
    let digit = [1.0, 2.0, 5.0].into_iter().find(|d| part <= d + 1e-9).unwrap_or(10.0);
    digit * power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(low: f64, high: f64, percent: bool) -> Vec<String> {
        let scale = Scale::around([low, high].into_iter(), 6.0).rounded(percent);
        scale.ticks().into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(texts(0.0, 0.97, true), ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]);
        assert_eq!(texts(0.012, 0.05, true), ["1 %", "2 %", "3 %", "4 %", "5 %"]);
        assert_eq!(texts(0.0, 0.02, true)[1], "0.5 %");
        assert_eq!(texts(-3.0, 7.0, false), ["-4", "-2", "0", "2", "4", "6", "8"]);
    }

    #[test]
    fn any_range_has_a_bounded_number_of_ticks() {
        for (low, high) in [(0.0, 0.0), (5.0, 5.0), (-1e15, 1e15), (0.0, 1e-300), (1e9, 1e9 + 1.0)]
        {
            let ticks = texts(low, high, false);
            assert!((2..=21).contains(&ticks.len()), "{low} {high}: {ticks:?}");
            assert!(!ticks.concat().contains("NaN") && !ticks.concat().contains("inf"));
        }
    }

    #[test]
    fn values_outside_stay_on_the_axis() {
        let scale = Scale::around([0.0, 1.0].into_iter(), 5.0).onto(100.0, 200.0);
        assert_eq!(scale.at(-3.0), 100.0);
        assert_eq!(scale.at(0.5), 150.0);
        assert_eq!(scale.at(9.0), 200.0);
    }
}
