//! How far both sides of a metric are apart: the statistics that are compared with critical
//! values, and the differences that these allow.

use super::{Comparison, Freedom, HARM_FREEDOM, Measured};
use crate::{
    analysis::{
        judge::effect::Effects,
        stats::{
            difference::invert_near,
            mean::{self, Doubt, Mean},
            paired,
            proportion::{self, Share},
            stratified, student,
        },
    },
    api::prompt_release::Unit,
};

impl Measured {
    /// How many independent observations the smaller side is worth.
    pub(in crate::analysis::judge) fn smallest_side(&self) -> f64 {
        let Effects { canary, stable } = self.effects;
        let [of_canary, of_stable] = self.seen.unwrap_or_default();
        let canary = (self.canary.count as f64 / canary.own.factor).max(of_canary);
        canary.min((self.stable.count as f64 / stable.own.factor).max(of_stable))
    }

    /// How many observations the smaller side has.
    pub(in crate::analysis::judge) fn smallest_count(&self) -> f64 {
        self.stable.count.min(self.canary.count) as f64
    }

    /// Canary's and stable's mean cost at equal inputs, to be compared as canary = `factor`
    /// stable, where inputs are known.
    pub(in crate::analysis::judge) fn at_equal_inputs(&self, factor: f64) -> Option<[Mean; 2]> {
        self.adjusted.as_ref()?.means(factor)
    }

    /// How much worse the canary looks.
    pub(in crate::analysis::judge) fn difference(&self) -> Option<f64> {
        match self.comparison {
            Comparison::Shares(..) | Comparison::Pairs(_) => {
                Some(self.canary.value - self.stable.value)
            }
            Comparison::Differences(mean, None) => Some(-mean.mean),
            Comparison::Means(..) if self.adjusted.is_some() => {
                let [canary, stable] = self.at_equal_inputs(1.0)?;
                Some(canary.mean / stable.mean - 1.0).filter(|d| d.is_finite())
            }
            Comparison::Means(..) | Comparison::Differences(..) => match self.unit {
                Unit::Relative if self.stable.value > 0.0 => {
                    Some(self.canary.value / self.stable.value - 1.0).filter(|d| d.is_finite())
                }
                Unit::Relative => None,
                _ => Some(self.stable.value - self.canary.value),
            },
            Comparison::Value(_) | Comparison::Nothing => None,
        }
    }

    /// The statistic that shows harm: large when the canary is worse by more than `delta`.
    pub(in crate::analysis::judge) fn z_harm(&self, delta: f64) -> f64 {
        self.harm(delta, Freedom::AtLooks)
    }

    /// The same at every collection: one busy user makes a difference sooner or later.
    pub(in crate::analysis::judge) fn z_watched(&self, delta: f64) -> f64 {
        self.harm(delta, Freedom::All)
    }

    fn harm(&self, delta: f64, freedom: Freedom) -> f64 {
        let z_of = |it: &Self| it.scaled(it.z(delta, Doubt::Stable), Doubt::Stable, freedom);
        let (z, answered) = (z_of(self), self.as_if_answered());
        answered.map_or(z, |answered| z.max(z_of(&answered)))
    }

    /// The same, as if each request that a breaker turned away from the canary had been answered.
    /// The canary never looks worse by that, and its real failures keep their weight, however few
    /// probes there were. None if no request was turned away.
    fn as_if_answered(&self) -> Option<Self> {
        let Comparison::Shares(canary, stable) = self.comparison else { return None };
        let (own, before) = self.asked.split_last().filter(|_| self.probes > 1.0)?;
        let answered = |all: Share, asked: &Share| Share { bad: asked.bad.min(all.bad), ..all };
        let earlier = self.earlier.iter().zip(before);
        let Effects { canary: of_canary, stable: of_stable } = self.effects;
        Some(Self {
            comparison: Comparison::Shares(answered(canary, own), stable),
            earlier: earlier.map(|([c, s], asked)| [answered(*c, asked), *s]).collect(),
            effects: Effects { canary: of_canary.without(self.probes), stable: of_stable },
            asked: vec![],
            ..self.clone()
        })
    }

    /// A statistic as the standard normal deviate that is as rare.
    fn scaled(&self, z: f64, doubt: Doubt, freedom: Freedom) -> f64 {
        let known = self.freedom(doubt);
        student::deviate(z, if freedom == Freedom::All { known } else { known.max(HARM_FREEDOM) })
    }

    /// The canary's requests that no breaker turned away, where one did: how many there are, and
    /// their failures among as many as they are worth.
    pub(in crate::analysis::judge) fn asked_alone(&self) -> Option<(f64, Share)> {
        let asked = Some(&self.asked).filter(|asked| self.probes > 1.0 && !asked.is_empty())?;
        let add = |all: Share, one: &Share| Share { n: all.n + one.n, bad: all.bad + one.bad };
        let all = asked.iter().fold(Share::default(), add);
        Some((all.n, all.deflated(self.effects.canary.without(self.probes).own.factor)))
    }

    /// The degrees of freedom of the difference's variance; infinite without a design effect.
    pub(in crate::analysis::judge) fn freedom(&self, doubt: Doubt) -> f64 {
        let [canary, stable] = self.effects.under(doubt);
        let variances = match self.comparison {
            Comparison::Shares(c, s) => {
                let each = || self.earlier.iter().copied().chain([[c, s]]);
                [0, 1].map(|side| {
                    let share = each().fold(Share::default(), |all, pair| Share {
                        n: all.n + pair[side].n,
                        bad: all.bad + pair[side].bad,
                    });
                    let p = (share.bad + 0.5) / (share.n + 1.0);
                    p * (1.0 - p) / share.n.max(1.0)
                })
            }
            Comparison::Means(c, s) => {
                let [c, s] = self.at_equal_inputs(1.0).unwrap_or([c, s]);
                [c.variance / c.n.max(1.0), s.variance / s.n.max(1.0)]
            }
            Comparison::Pairs(_) | Comparison::Differences(..) => return canary.freedom,
            Comparison::Value(_) | Comparison::Nothing => return f64::INFINITY,
        };
        let [of_canary, of_stable] = variances;
        student::freedom_of_sum([
            (of_canary * canary.factor, canary.freedom),
            (of_stable * stable.factor, stable.freedom),
        ])
    }

    /// The shares of all steps, as the statistic counts them.
    fn strata(&self, (canary, stable): (Share, Share), doubt: Doubt) -> stratified::Shares {
        let effects = self.effects.under(doubt).map(|effect| effect.factor);
        let each = || self.earlier.iter().copied().chain([[canary, stable]]);
        let [of_canary, of_stable] =
            [0, 1].map(|side| each().map(|pair| pair[side].n).sum::<f64>());
        // The half failure of doubt, divided as the requests are.
        let doubted = |share: Share, all: f64, applies: bool, effect: f64| {
            let share = share.deflated(effect);
            let part = if applies && all > 0.0 { share.n / (all / effect) } else { 0.0 };
            Share { n: share.n + part, bad: share.bad + 0.5 * part }
        };
        stratified::Shares::new(each().map(|[c, s]| {
            [
                doubted(c, of_canary, doubt == Doubt::Canary, effects[0]),
                doubted(s, of_stable, doubt == Doubt::Stable, effects[1]),
            ]
        }))
    }

    /// The statistic that shows acceptance: very negative when it is worse by less than `delta`.
    pub(in crate::analysis::judge) fn z_accept(&self, delta: f64) -> f64 {
        self.scaled(self.z(delta, Doubt::Canary), Doubt::Canary, Freedom::All)
    }

    fn z(&self, delta: f64, doubt: Doubt) -> f64 {
        let [of_canary, of_stable] = self.effects.under(doubt).map(|effect| effect.factor);
        match self.comparison {
            Comparison::Shares(c, s) if !self.earlier.is_empty() => {
                self.strata((c, s), doubt).z(delta)
            }
            Comparison::Shares(c, s) => {
                let (c, s) = (c.deflated(of_canary), s.deflated(of_stable));
                match doubt {
                    Doubt::Canary => proportion::shares(c.doubted(), s, delta),
                    Doubt::Stable => proportion::shares(c, s.doubted(), delta),
                    Doubt::Neither => proportion::shares(c, s, delta),
                }
            }
            Comparison::Means(c, s) => {
                let [c, s] = self.at_equal_inputs((1.0 + delta).max(0.0)).unwrap_or([c, s]);
                let (c, s) = (c.deflated(of_canary), s.deflated(of_stable));
                match self.unit {
                    // Both cost nothing: no difference at all.
                    Unit::Relative if c.mean == 0.0 && s.mean == 0.0 => {
                        f64::INFINITY.copysign(-delta)
                    }
                    Unit::Relative => mean::ratio(c, s, delta, doubt),
                    // A lower score is worse.
                    _ if doubt == Doubt::Canary => mean::means(s, c.with_ends(), delta),
                    _ if doubt == Doubt::Stable => mean::means(s.with_ends(), c, delta),
                    _ => mean::means(s, c, delta),
                }
            }
            Comparison::Pairs(pairs) => {
                let pairs = pairs.deflated(of_canary);
                let doubted = if doubt == Doubt::Canary { pairs.doubted() } else { pairs };
                paired::shares(doubted, delta)
            }
            Comparison::Differences(d, Some(s)) if s.mean == 0.0 && d.mean == 0.0 => {
                f64::INFINITY.copysign(-delta)
            }
            Comparison::Differences(d, Some(s)) => {
                paired::relative_mean(d.deflated(of_canary), s.deflated(of_canary), delta)
            }
            Comparison::Differences(d, None) => {
                let d = d.deflated(of_canary);
                // One pair more at the end that speaks against the decision.
                let d = match doubt {
                    Doubt::Canary => d.with(-1.0),
                    Doubt::Stable => d.with(1.0),
                    Doubt::Neither => d,
                };
                paired::mean(d.negated(), delta)
            }
            Comparison::Value(_) | Comparison::Nothing => 0.0,
        }
    }

    /// The difference at which a statistic reaches `level`: a confidence limit.
    pub(in crate::analysis::judge) fn limit(
        &self,
        doubt: Doubt,
        freedom: Freedom,
        level: f64,
    ) -> f64 {
        let (low, high) = self.range();
        let near = self.difference().unwrap_or(0.0);
        let limit = match self.comparison {
            Comparison::Shares(c, s) if !self.earlier.is_empty() => {
                let strata = self.strata((c, s), doubt);
                let z = |delta: f64| self.scaled(strata.z(delta), doubt, freedom);
                invert_near(z, level, low, high, near)
            }
            _ => {
                let z = |delta: f64| self.scaled(self.z(delta, doubt), doubt, freedom);
                invert_near(z, level, low, high, near)
            }
        };
        // The real failures alone may show a larger difference.
        let answered = self.as_if_answered().filter(|_| level > 0.0);
        answered.map_or(limit, |answered| limit.max(answered.limit(doubt, freedom, level)))
    }

    /// The differences that are possible.
    pub(in crate::analysis::judge) fn range(&self) -> (f64, f64) {
        if self.unit == Unit::Relative { (-1.0, 100.0) } else { (-1.0, 1.0) }
    }
}
