//! Mean costs at equal inputs: what is known of a request before it is answered explains a
//! part of its cost, and is taken out of both sides alike.
//!
//! A linear control variate (CUPED: Deng, Xu, Kohavi and Walker, WSDM 2013). The slope is that
//! within sides and steps, of all of them together. That inputs are spread alike over both
//! sides, because requests are drawn by chance, is all that it assumes: a line that fits badly
//! takes out less noise, and its slope is no source of error that counts (Lin, Annals of Applied
//! Statistics 7, 2013).
//!
//! A ratio of means is tested as mean(canary) − f mean(stable) = 0. With f times the slope on
//! the canary's side, the mean of the inputs drops out of it, which is known too little.

use super::{mean::Mean, stratified};

/// Means and central moments up to the third of x and y together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moments {
    /// How many pairs.
    pub n: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
    yy: f64,
    xxx: f64,
    xxy: f64,
    xyy: f64,
    yyy: f64,
}

/// Sums of x and y, and of their products.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Products {
    /// Of x, x² and x³.
    pub x: [f64; 3],
    /// Of y, y² and y³.
    pub y: [f64; 3],
    /// Of xy, x²y and xy².
    pub both: [f64; 3],
}

impl Moments {
    /// From `n` pairs; none below two, or when the sums are not numbers.
    pub fn from_sums(n: u64, sums: Products) -> Option<Self> {
        let count = n as f64;
        let of = |sums: [f64; 3]| sums.map(|sum| sum / count);
        let ([x, x2, x3], [y, y2, y3]) = (of(sums.x), of(sums.y));
        let [xy, x2y, xy2] = of(sums.both);
        let moments = Self {
            n: count,
            x,
            y,
            xx: (x2 - x * x).max(0.0),
            xy: xy - x * y,
            yy: (y2 - y * y).max(0.0),
            xxx: x3 - 3.0 * x * x2 + 2.0 * x.powi(3),
            xxy: x2y - y * x2 - 2.0 * x * xy + 2.0 * x * x * y,
            xyy: xy2 - x * y2 - 2.0 * y * xy + 2.0 * y * y * x,
            yyy: y3 - 3.0 * y * y2 + 2.0 * y.powi(3),
        };
        let all = [moments.xxx, moments.xxy, moments.xyy, moments.yyy];
        (n >= 2 && all.iter().all(|m| m.is_finite())).then_some(moments)
    }

    /// Of y − `slope` (x − `at`).
    fn residual(&self, slope: f64, at: f64) -> Mean {
        let (s, n) = (slope, self.n);
        let variance = (self.yy - 2.0 * s * self.xy + s * s * self.xx).max(0.0) * n / (n - 1.0);
        let third = self.yyy - 3.0 * s * self.xyy + 3.0 * s * s * self.xxy - s.powi(3) * self.xxx;
        // As in `Mean::from_sums`: beyond it is rounding.
        let most = variance.powf(1.5) * n.sqrt();
        let mean = self.y - s * (self.x - at);
        Mean { n, mean, variance, third: third.clamp(-most, most), unequal: 1.0 }
    }
}

/// Both sides of each step, canary's and stable's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Adjusted {
    strata: Vec<[Moments; 2]>,
    slope: f64,
    /// The mean input.
    at: f64,
    /// What the choice of the slope takes off the variance that is left.
    chosen: f64,
}

impl Adjusted {
    /// None where the inputs do not differ, or there are too few to tell a slope.
    pub fn new(strata: Vec<[Moments; 2]>) -> Option<Self> {
        let each = || strata.iter().flatten();
        let sum = |of: fn(&Moments) -> f64| each().map(|m| m.n * of(m)).sum::<f64>();
        let n: f64 = each().map(|m| m.n).sum();
        let free = n - each().count() as f64;
        let (xx, xy, x) = (sum(|m| m.xx), sum(|m| m.xy), sum(|m| m.x));
        // Rounding makes differences of what is the same.
        let is_spread = xx > 1e-9 * sum(|m| m.x * m.x);
        let (slope, chosen) = (xy / xx, free / (free - 1.0));
        (is_spread && free >= 10.0 && slope.is_finite()).then(|| Self {
            slope,
            at: x / n,
            chosen,
            strata,
        })
    }

    /// How much y grows with x.
    pub fn slope(&self) -> f64 {
        self.slope
    }

    /// The mean of x.
    pub fn at(&self) -> f64 {
        self.at
    }

    /// The means at equal inputs of canary and stable, to be compared as canary = `factor` stable.
    pub fn means(&self, factor: f64) -> Option<[Mean; 2]> {
        let of = |moments: &Moments, factor: f64| {
            let mean = moments.residual(factor * self.slope, self.at);
            Mean { variance: mean.variance * self.chosen, ..mean }
        };
        let mut each = self.strata.iter().map(|[c, s]| [of(c, factor), of(s, 1.0)]);
        // Of one the weights are nothing but rounding.
        if self.strata.len() == 1 { each.next() } else { stratified::means(each) }
    }

    /// The strata of all.
    pub fn strata(&self) -> &[[Moments; 2]] {
        &self.strata
    }
}

#[cfg(test)]
mod tests;
