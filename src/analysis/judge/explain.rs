//! Why, in one sentence: what was seen on both sides, how large the difference may be,
//! and which limit that is beyond.

use super::{
    FUTILE, Measured,
    measure::{Comparison, Freedom},
};
use crate::{
    analysis::stats::{anytime::plain_z, mean::Doubt},
    api::{
        canary_policy::PrometheusQuery,
        prompt_release::{MetricStatus, Sample, Unit, Verdict},
    },
};

/// After a look.
pub(super) fn look(measured: &Measured, status: &MetricStatus) -> String {
    let [lower, upper] = status.interval.unwrap_or_default();
    let d = |value: f64| status.unit.difference(value);
    let verdict = match status.verdict {
        Verdict::Fail => {
            format!("worse than the harm margin {}: by at least {}", d(status.harm), d(lower))
        }
        Verdict::Pass => {
            format!("within the accept margin {}: at most {}", d(status.accept), d(upper))
        }
        Verdict::Inconclusive => format!(
            "every sample was seen, and {} to {} is neither beyond {} nor below {}",
            d(lower),
            d(upper),
            d(status.harm),
            d(status.accept)
        ),
        _ => match status.chance {
            Some(chance) if chance < FUTILE => {
                "less than 1 % chance to pass by the horizon".to_owned()
            }
            _ => format!("may still be {} to {}: collecting", d(lower), d(upper)),
        },
    };
    // While it collects, the limits of the test say more than a plain interval.
    let interval = match status.verdict {
        Verdict::Undecided => String::new(),
        _ => interval(measured, status),
    };
    format!("{}{interval}; {verdict}", seen(measured))
}

/// Harm was found by the test without an end, which in a pool is of the step alone.
pub(super) fn open_failure(measured: &Measured, status: &MetricStatus) -> String {
    let harm = status.unit.difference(status.harm);
    let odds = match measured.comparison {
        Comparison::Shares(..) if status.log_e > 0.0 => {
            format!(", the evidence for that is {:.0} to 1", status.log_e.min(30.0).exp())
        }
        _ => String::new(),
    };
    let (seen, interval) = (seen(measured), interval(measured, status));
    let in_step = if status.in_step.is_some() { "in this step alone: " } else { "" };
    format!("{in_step}{seen}{interval}; worse than the harm margin {harm}{odds}")
}

/// The canary turned bad: what it shows `lately`.
pub(super) fn turned(lately: &Measured, status: &MetricStatus) -> String {
    let harm = status.unit.difference(status.harm);
    let (seen, interval) = (seen(lately), interval(lately, status));
    format!("since it began to look worse: {seen}{interval}; worse than the harm margin {harm}")
}

/// A plain value against its limits.
pub(super) fn fixed_rule(value: f64, rule: &PrometheusQuery, streak: i32) -> String {
    let limits: Vec<String> = [("at most", rule.max), ("at least", rule.min)]
        .into_iter()
        .filter_map(|(word, limit)| Some(format!("{word} {}", limit?)))
        .collect();
    let where_ = if streak < 0 { "beyond" } else { "within" };
    let (looks, of) = (streak.unsigned_abs(), rule.consecutive);
    format!(
        "{value} is {where_} its limits ({}), {looks} of {of} looks in a row",
        limits.join(", ")
    )
}

/// `, 95 % interval +1.0 points to +3.3 points`.
fn interval(measured: &Measured, status: &MetricStatus) -> String {
    let z = plain_z(0.95);
    let limit =
        |level: f64| status.unit.difference(measured.limit(Doubt::Neither, Freedom::All, level));
    format!(", 95 % interval {} to {}", limit(z), limit(-z))
}

/// `canary 3.1 % of 1,204, stable 1.0 % of 22,871; difference +2.1 points`.
fn seen(measured: &Measured) -> String {
    let Measured { unit, canary, stable, .. } = *measured;
    let side =
        |sample: Sample| format!("{} of {}", unit.value(sample.value), grouped(sample.count));
    let sides = match measured.comparison {
        Comparison::Differences(..) if unit == Unit::Score => {
            format!("{} pairs", grouped(canary.count))
        }
        _ => {
            let mostly = measured.mostly.as_ref().map(|code| format!(" (mostly {code})"));
            let (canary, stable) = (side(canary), side(stable));
            format!("canary {canary}{}, stable {stable}", mostly.unwrap_or_default())
        }
    };
    let difference =
        measured.difference().map_or_else(|| "unknown".to_owned(), |value| unit.difference(value));
    let alone = measured.at_equal_inputs(1.0).map_or("", |_| " at equal inputs");
    let slower = measured.threshold.map(|t| format!(" slower than {t:.3} s")).unwrap_or_default();
    let effect = measured.effects.larger();
    let alike = if effect > 1.0 {
        let why = if measured.probed { "a breaker's probe" } else { "one user" };
        format!(" (requests of {why} count 1/{effect:.1})")
    } else {
        String::new()
    };
    format!("{sides}{slower}{alike}; difference {difference}{alone}")
}

/// 22871 as 22,871.
fn grouped(count: i64) -> String {
    let digits = count.unsigned_abs().to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(
            [0, 999, 1_204, 22_871, 1_000_000].map(grouped).join(" "),
            "0 999 1,204 22,871 1,000,000"
        );
    }
}
