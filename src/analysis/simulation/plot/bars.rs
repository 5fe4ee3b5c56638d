//! Shares of outcomes as horizontal bars: horizontal, because rules have long names.

use super::{
    HEIGHT, WIDTH,
    svg::{Anchor, Svg, wrapped},
};

const LEFT: f64 = 236.0;
const RIGHT: f64 = 862.0;
const TOP: f64 = 88.0;
/// Below the bars: ticks and the label.
const FOOT: f64 = 66.0;
/// The least height of a bar with its gap, and the most.
const ROW: (f64, f64) = (24.0, 64.0);
/// Characters of a label's line that fit beside the bars.
const NAME_CHARACTERS: usize = 32;
/// A part of the bar as large as this has room for its number and the unit.
const ROOMY: f64 = 0.07;
/// From here on there is room for the number alone.
const NARROW: f64 = 0.015;

/// The outcomes in the order of the shares, with the colours of bar and number.
const OUTCOMES: [(&str, &str, &str); 3] = [
    ("rolled back", "#D55E00", "#000000"),
    ("inconclusive", "#CFCFCF", "#000000"),
    ("promoted", "#0072B2", "#FFFFFF"),
];

/// Bars of the shares rolled back, inconclusive and promoted, each 0 to 1. What is not
/// a share counts as 0; shares that sum to more than 1 are scaled down. The picture is
/// 900 by 520 pixels, or taller for many bars.
pub fn stacked(title: &str, x_label: &str, bars: &[(String, [f64; 3])]) -> String {
    let count = bars.len().max(1) as f64;
    let row = ((HEIGHT - TOP - FOOT) / count).clamp(ROW.0, ROW.1);
    let bottom = TOP + row * count;
    let mut svg = Svg::new(WIDTH, (bottom + FOOT).max(HEIGHT), title);
    svg.text((24.0, 30.0), Anchor::Start, 17.0, "#111111", title);
    legend(&mut svg);
    axis(&mut svg, bottom, x_label);
    for (i, (label, shares)) in bars.iter().enumerate() {
        let middle = TOP + row * (i as f64 + 0.5);
        name(&mut svg, label, middle, row);
        bar(&mut svg, &tame(shares), middle, row * 0.72);
    }
    if bars.is_empty() {
        let at = ((LEFT + RIGHT) / 2.0, (TOP + bottom) / 2.0);
        svg.text(at, Anchor::Middle, 15.0, "#666666", "no data");
    }
    svg.finish()
}

/// Above the bars, so that it covers none.
fn legend(svg: &mut Svg) {
    for (i, (outcome, colour, _)) in OUTCOMES.iter().enumerate() {
        let left = LEFT + 140.0 * i as f64;
        svg.rect((left, 52.0), (14.0, 14.0), colour);
        svg.text((left + 21.0, 64.0), Anchor::Start, 13.0, "#222222", outcome);
    }
}

fn axis(svg: &mut Svg, bottom: f64, x_label: &str) {
    for tick in 0..=5 {
        let part = f64::from(tick) / 5.0;
        let at = x(part);
        svg.line((at, TOP), (at, bottom + 5.0), "#E3E3E3", 1.0);
        let text = format!("{:.0} %", 100.0 * part);
        svg.text((at, bottom + 21.0), Anchor::Middle, 13.0, "#333333", &text);
    }
    svg.line((LEFT, bottom), (RIGHT, bottom), "#555555", 1.0);
    let middle = (LEFT + RIGHT) / 2.0;
    svg.text((middle, bottom + 46.0), Anchor::Middle, 14.0, "#111111", x_label);
}

fn x(part: f64) -> f64 {
    LEFT + part * (RIGHT - LEFT)
}

/// The label, in as many lines as the row has room for.
fn name(svg: &mut Svg, label: &str, middle: f64, row: f64) {
    let room = ((row / 15.0) as usize).max(1);
    let lines = wrapped(label, NAME_CHARACTERS, room);
    let first = middle + 4.5 - 7.5 * (lines.len() as f64 - 1.0);
    for (i, text) in lines.iter().enumerate() {
        svg.text((LEFT - 12.0, first + 15.0 * i as f64), Anchor::End, 12.5, "#222222", text);
    }
}

fn bar(svg: &mut Svg, shares: &[f64; 3], middle: f64, height: f64) {
    let mut start = 0.0;
    for (share, (_, colour, ink)) in shares.iter().zip(OUTCOMES) {
        if *share > 0.0 {
            let width = x(start + share) - x(start);
            svg.rect((x(start), middle - height / 2.0), (width, height), colour);
        }
        number(svg, *share, (x(start + share / 2.0), middle), ink);
        start += share;
    }
}

/// The share in percent, smaller in a narrow part of the bar.
fn number(svg: &mut Svg, share: f64, (x, middle): (f64, f64), ink: &str) {
    let percent = format!("{:.0}", 100.0 * share);
    if share >= ROOMY {
        svg.text((x, middle + 4.5), Anchor::Middle, 12.5, ink, &format!("{percent} %"));
    } else if share >= NARROW {
        svg.text((x, middle + 3.5), Anchor::Middle, 10.0, ink, &percent);
    }
}

fn tame(shares: &[f64; 3]) -> [f64; 3] {
    let shares = shares.map(|s| if s.is_finite() { s.clamp(0.0, 1.0) } else { 0.0 });
    let sum: f64 = shares.iter().sum();
    shares.map(|s| s / sum.max(1.0))
}
