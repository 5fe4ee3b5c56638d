//! One metric's evidence as a line of text: where the difference may lie, and where
//! the margins are.

use crate::api::prompt_release::{MetricStatus, Sample};

/// Draws `metric` on `width` characters: `├──●──┤` is where the difference may lie,
/// `H` the harm margin (wholly to its right fails), `A` the accept margin (wholly to
/// its left passes), `|` no difference. Empty without an interval.
pub fn draw(metric: &MetricStatus, width: usize) -> String {
    let (Some([lower, upper]), Some(difference)) = (metric.interval, metric.difference) else {
        return String::new();
    };
    let Some(last) = width.checked_sub(1) else { return String::new() };
    let reach = 2.5 * metric.accept.max(1e-6);
    let column = |value: f64| {
        let share = (value.clamp(-reach, reach) + reach) / (2.0 * reach);
        (share * last as f64).round() as usize
    };
    let mut cells = vec![' '; width];
    let (from, to) = (column(lower), column(upper));
    cells[from..=to].fill('─');
    cells[column(0.0)] = '|';
    cells[column(metric.harm)] = 'H';
    cells[column(metric.accept)] = 'A';
    cells[from] = if lower < -reach { '◂' } else { '├' };
    cells[to] = if upper > reach { '▸' } else { '┤' };
    cells[column(difference)] = '●';
    cells.into_iter().collect()
}

/// What one side contributed.
pub fn side(metric: &MetricStatus, sample: &Sample) -> String {
    if sample.count == 0 {
        return "-".to_owned();
    }
    metric.unit.sample(*sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_shows_the_interval_between_its_margins() {
        let metric = MetricStatus {
            difference: Some(0.0),
            interval: Some([-0.05, 0.02]),
            harm: 0.05,
            accept: 0.1,
            ..MetricStatus::default()
        };
        let bar = draw(&metric, 41);
        assert_eq!(bar.chars().count(), 41);
        let at = |c: char| bar.chars().position(|x| x == c).unwrap();
        assert!(
            at('├') < at('●') && at('●') < at('┤') && at('┤') < at('H') && at('H') < at('A'),
            "{bar}"
        );
    }

    #[test]
    fn any_numbers_draw_something_of_the_right_width() {
        for interval in
            [[-1.0, 1.0], [0.5, 100.0], [-1.0, -0.9], [f64::NEG_INFINITY, f64::INFINITY]]
        {
            let metric = MetricStatus {
                difference: Some(interval[1]),
                interval: Some(interval),
                ..MetricStatus::default()
            };
            for width in [0, 1, 2, 30] {
                assert_eq!(draw(&metric, width).chars().count(), width);
            }
        }
        assert_eq!(draw(&MetricStatus::default(), 30), "");
    }
}
