use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;

fn moments(pairs: &[(f64, f64)]) -> Moments {
    let sum = |of: &dyn Fn(f64, f64) -> f64| pairs.iter().map(|(x, y)| of(*x, *y)).sum::<f64>();
    let products = Products {
        x: [sum(&|x, _| x), sum(&|x, _| x * x), sum(&|x, _| x * x * x)],
        y: [sum(&|_, y| y), sum(&|_, y| y * y), sum(&|_, y| y * y * y)],
        both: [sum(&|x, y| x * y), sum(&|x, y| x * x * y), sum(&|x, y| x * y * y)],
    };
    Moments::from_sums(pairs.len() as u64, products).unwrap()
}

fn mean_of(values: &[f64]) -> Mean {
    let sum = |power: i32| values.iter().map(|v| v.powi(power)).sum::<f64>();
    Mean::from_sums(values.len() as u64, sum(1), sum(2), sum(3)).unwrap()
}

fn drawn(n: usize, slope: f64, noise: f64, seed: u64) -> Vec<(f64, f64)> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut each = || {
        let x = (4.0 * rng.random::<f64>() - 2.0).exp();
        (x, 3.0 + slope * x + noise * rng.random::<f64>().powi(3))
    };
    (0..n).map(|_| each()).collect()
}

#[test]
fn what_is_left_has_the_moments_of_each_residual() {
    let pairs = drawn(400, 0.7, 2.0, 1);
    for (slope, at) in [(0.0, 5.0), (0.7, 0.0), (-0.3, 1.5)] {
        let got = moments(&pairs).residual(slope, at);
        let each: Vec<f64> = pairs.iter().map(|(x, y)| y - slope * (x - at)).collect();
        let want = mean_of(&each);
        for (got, want) in [
            (got.mean, want.mean),
            (got.variance, want.variance),
            (got.third, want.third),
            (got.n, want.n),
        ] {
            assert!((got - want).abs() < 1e-8 * want.abs().max(1.0), "{got} for {want}");
        }
    }
}

#[test]
fn inputs_that_explain_all_leave_no_noise_and_the_ratio() {
    let stable = drawn(500, 2.0, 0.0, 2);
    let canary: Vec<(f64, f64)> =
        drawn(80, 2.0, 0.0, 3).into_iter().map(|(x, y)| (x, 1.2 * y)).collect();
    let plain = moments(&canary).y / moments(&stable).y;
    let adjusted = Adjusted::new(vec![[moments(&canary), moments(&stable)]]).unwrap();
    // At the true ratio both are equal, whichever inputs came to each side.
    let [c, s] = adjusted.means(1.2).unwrap();
    assert!((c.mean - 1.2 * s.mean).abs() < 0.05 * s.mean, "{} {}", c.mean, 1.2 * s.mean);
    assert!((plain - 1.2).abs() > 2.0 * (c.mean / s.mean - 1.2).abs(), "{plain}");
    let noise = |m: &Moments| m.yy;
    assert!(c.variance < 0.05 * noise(&moments(&canary)), "{}", c.variance);
}

#[test]
fn inputs_that_say_nothing_or_are_all_alike_change_nothing() {
    let alike = |n| -> Vec<(f64, f64)> {
        drawn(n, 0.0, 2.0, n as u64).iter().map(|(_, y)| (0.1 + 0.2, *y)).collect()
    };
    assert_eq!(Adjusted::new(vec![[moments(&alike(50)), moments(&alike(400))]]), None);
    assert_eq!(
        Adjusted::new(vec![[moments(&drawn(3, 1.0, 0.0, 1)), moments(&drawn(4, 1.0, 0.0, 2))]]),
        None
    );
    let (canary, stable) = (moments(&drawn(200, 0.0, 2.0, 4)), moments(&drawn(2_000, 0.0, 2.0, 5)));
    let adjusted = Adjusted::new(vec![[canary, stable]]).unwrap();
    let [c, s] = adjusted.means(1.0).unwrap();
    assert!(
        (c.variance
            / mean_of(&drawn(200, 0.0, 2.0, 4).iter().map(|(_, y)| *y).collect::<Vec<_>>())
                .variance
            - 1.0)
            .abs()
            < 0.05
    );
    assert!((c.mean - canary.y).abs() < 0.1 && (s.mean - stable.y).abs() < 0.02);
}

#[test]
fn steps_share_a_slope_and_each_is_compared_within_itself() {
    // Inputs are longer in the second step, on both sides.
    let step = |n: usize, shift: f64, factor: f64, seed| -> Vec<(f64, f64)> {
        let later = |(x, y): (f64, f64)| (x + shift, factor * (y + 2.0 * shift));
        drawn(n, 2.0, 0.5, seed).into_iter().map(later).collect()
    };
    let strata = vec![
        [moments(&step(40, 0.0, 1.1, 6)), moments(&step(760, 0.0, 1.0, 7))],
        [moments(&step(300, 9.0, 1.1, 8)), moments(&step(300, 9.0, 1.0, 9))],
    ];
    let adjusted = Adjusted::new(strata).unwrap();
    assert!((adjusted.slope() - 2.1).abs() < 0.15, "{}", adjusted.slope());
    let [c, s] = adjusted.means(1.1).unwrap();
    assert!((c.mean - 1.1 * s.mean).abs() < 0.1, "{} {}", c.mean, s.mean);
}
