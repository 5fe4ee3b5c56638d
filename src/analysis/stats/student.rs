//! Student's t distribution, seen from the normal one: a statistic whose variance was estimated
//! with few degrees of freedom as the standard normal deviate that is as rare.

/// The standard normal deviate with about the tail that `t` has with `freedom` degrees of
/// freedom (Wallace, Annals of Mathematical Statistics 30, 1959: the error of the deviate is
/// below 0.06 from 2 degrees on, and falls fast). With less than one it counts as one.
pub fn deviate(t: f64, freedom: f64) -> f64 {
    if !freedom.is_finite() || !t.is_finite() {
        return t;
    }
    let freedom = freedom.max(1.0);
    let root = (freedom * (t * t / freedom).ln_1p()).sqrt();
    ((8.0 * freedom + 1.0) / (8.0 * freedom + 3.0) * root).copysign(t)
}

/// The statistic whose [`deviate`] is `z`.
pub fn statistic(z: f64, freedom: f64) -> f64 {
    if !freedom.is_finite() || !z.is_finite() {
        return z;
    }
    let freedom = freedom.max(1.0);
    let root = z * (8.0 * freedom + 3.0) / (8.0 * freedom + 1.0);
    (freedom * (root * root / freedom).exp_m1()).sqrt().copysign(z)
}

/// The degrees of freedom of a sum of estimated variances, given as (variance, degrees)
/// (Satterthwaite, Biometrics Bulletin 2, 1946; Welch, Biometrika 34, 1947).
pub fn freedom_of_sum(parts: [(f64, f64); 2]) -> f64 {
    let sum: f64 = parts.iter().map(|(variance, _)| variance).sum();
    let uncertain: f64 =
        parts.iter().map(|(variance, freedom)| variance * variance / freedom.max(1e-9)).sum();
    let freedom = sum * sum / uncertain;
    if freedom.is_nan() { f64::INFINITY } else { freedom }
}

#[cfg(test)]
mod tests {
    use statrs::distribution::{ContinuousCDF, StudentsT};

    use super::*;
    use crate::analysis::stats::normal::upper_quantile;

    #[test]
    fn a_deviate_is_as_rare_as_the_statistic() {
        for freedom in [2.0, 4.5, 10.0, 31.0, 300.0] {
            for t in [0.5_f64, 1.0, 1.7, 2.5, 4.0, 6.0] {
                let exact = upper_quantile(StudentsT::new(0.0, 1.0, freedom).unwrap().sf(t));
                let ours = deviate(t, freedom);
                assert!((ours - exact).abs() < 0.06, "{t} with {freedom}: {ours}, {exact}");
                assert_eq!(deviate(-t, freedom), -ours);
                assert!((statistic(ours, freedom) - t).abs() < 1e-9);
            }
        }
        assert_eq!(deviate(3.0, f64::INFINITY), 3.0);
        assert_eq!(deviate(f64::INFINITY, 5.0), f64::INFINITY);
    }

    #[test]
    fn a_sum_is_known_as_well_as_its_larger_part() {
        assert_eq!(freedom_of_sum([(1.0, 10.0), (1.0, 10.0)]), 20.0);
        assert!((freedom_of_sum([(1.0, 10.0), (1e-9, 3.0)]) - 10.0).abs() < 1e-6);
        assert_eq!(freedom_of_sum([(1.0, f64::INFINITY), (1.0, 10.0)]), 40.0);
        assert_eq!(freedom_of_sum([(0.0, 5.0), (0.0, 5.0)]), f64::INFINITY);
    }
}
