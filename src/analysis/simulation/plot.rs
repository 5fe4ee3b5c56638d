//! Pictures of a simulation as SVG text: operating characteristics as lines with
//! confidence bands, and shares of outcomes as stacked bars.
//!
//! The colours are those of Okabe and Ito (Color Universal Design, 2008), which people
//! with any kind of colour vision can tell apart; yellow is left out because it is
//! hard to see on white. Series also differ by the shape of their marks. The legend
//! has its own column, so it never covers data. Values that are not finite are left
//! out, and every text is escaped, so the result is always well-formed.

mod bars;
mod scale;
mod svg;

pub use bars::stacked;
use scale::Scale;
use svg::{Anchor, Svg};

/// The size of a chart in pixels. Bars may be taller.
const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 520.0;
/// The plot area; the legend is to its right.
const LEFT: f64 = 78.0;
const RIGHT: f64 = 652.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 456.0;
const LEGEND: f64 = 676.0;
/// Characters of one legend line that fit beside the plot.
const LEGEND_CHARACTERS: usize = 28;
/// Ticks wanted on an axis.
const TICKS: f64 = 6.0;

/// Okabe and Ito without yellow; blue comes first, as it has the best contrast.
const COLOURS: [&str; 7] =
    ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"];

/// The texts of a chart and how its axes are written.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Axes<'a> {
    pub title: &'a str,
    pub x_label: &'a str,
    pub y_label: &'a str,
    /// x is a share, written as percent.
    pub x_percent: bool,
    /// y is a share: written as percent, on an axis from 0 to at most 100 %.
    pub y_percent: bool,
}

/// One line of a chart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// What the legend says.
    pub name: String,
    /// x, y, and the lower and upper bound of y.
    pub points: Vec<(f64, f64, f64, f64)>,
}

/// Lines with confidence bands and whiskers, 900 by 520 pixels.
pub fn chart(axes: &Axes, series: &[Series]) -> String {
    let usable: Vec<Vec<Point>> = series.iter().map(points).collect();
    let (x, y) = scales(axes, &usable);
    let mut svg = Svg::new(WIDTH, HEIGHT, axes.title);
    frame(&mut svg, axes, &x, &y);
    for (i, points) in usable.iter().enumerate() {
        band(&mut svg, points, &x, &y, COLOURS[i % COLOURS.len()]);
    }
    for (i, points) in usable.iter().enumerate() {
        line(&mut svg, points, &x, &y, i);
    }
    if usable.iter().all(Vec::is_empty) {
        let middle = ((LEFT + RIGHT) / 2.0, (TOP + BOTTOM) / 2.0);
        svg.text(middle, Anchor::Middle, 15.0, "#666666", "no data");
    }
    legend(&mut svg, series);
    svg.finish()
}

/// A point whose values are finite.
#[derive(Clone, Copy, Debug)]
struct Point {
    x: f64,
    y: f64,
    low: f64,
    high: f64,
}

/// What can be drawn of a series, from left to right.
fn points(series: &Series) -> Vec<Point> {
    let mut points: Vec<Point> = series
        .points
        .iter()
        .filter(|(x, y, ..)| x.is_finite() && y.is_finite())
        .map(|&(x, y, low, high)| {
            let or_y = |bound: f64| if bound.is_finite() { bound } else { y };
            let [x, y, low, high] = [x, y, or_y(low), or_y(high)].map(scale::tame);
            Point { x, y, low: low.min(y), high: high.max(y) }
        })
        .collect();
    points.sort_by(|a, b| a.x.total_cmp(&b.x));
    points
}

fn scales(axes: &Axes, usable: &[Vec<Point>]) -> (Scale, Scale) {
    let all = || usable.iter().flatten();
    let x = Scale::around(all().map(|p| p.x), TICKS).onto(LEFT, RIGHT);
    let bounds = all().flat_map(|p| [p.low, p.high]);
    let y = if axes.y_percent {
        Scale::around(bounds.map(|v| v.clamp(0.0, 1.0)).chain([0.0, 0.05]), TICKS)
    } else {
        Scale::around(bounds, TICKS)
    };
    (x.rounded(axes.x_percent), y.rounded(axes.y_percent).onto(BOTTOM, TOP))
}

/// Title, grid, ticks and labels.
fn frame(svg: &mut Svg, axes: &Axes, x: &Scale, y: &Scale) {
    svg.text((LEFT, 30.0), Anchor::Start, 17.0, "#111111", axes.title);
    for (value, text) in y.ticks() {
        let at = y.at(value);
        svg.line((LEFT, at), (RIGHT, at), "#E3E3E3", 1.0);
        svg.text((LEFT - 9.0, at + 4.5), Anchor::End, 13.0, "#333333", &text);
    }
    for (value, text) in x.ticks() {
        let at = x.at(value);
        svg.line((at, BOTTOM), (at, BOTTOM + 5.0), "#555555", 1.0);
        svg.text((at, BOTTOM + 21.0), Anchor::Middle, 13.0, "#333333", &text);
    }
    svg.line((LEFT, BOTTOM), (RIGHT, BOTTOM), "#555555", 1.0);
    svg.line((LEFT, TOP), (LEFT, BOTTOM), "#555555", 1.0);
    let middle = (LEFT + RIGHT) / 2.0;
    svg.text((middle, BOTTOM + 46.0), Anchor::Middle, 14.0, "#111111", axes.x_label);
    svg.upright((20.0, (TOP + BOTTOM) / 2.0), 14.0, "#111111", axes.y_label);
}

/// The area between the bounds.
fn band(svg: &mut Svg, points: &[Point], x: &Scale, y: &Scale, colour: &str) {
    let upper = points.iter().map(|p| (x.at(p.x), y.at(p.high)));
    let lower = points.iter().rev().map(|p| (x.at(p.x), y.at(p.low)));
    if points.len() > 1 {
        svg.area(upper.chain(lower), colour);
    }
}

/// The line, its whiskers and its marks.
fn line(svg: &mut Svg, points: &[Point], x: &Scale, y: &Scale, index: usize) {
    let colour = COLOURS[index % COLOURS.len()];
    svg.path(points.iter().map(|p| (x.at(p.x), y.at(p.y))), colour, dashes(index));
    for point in points {
        let at = x.at(point.x);
        if point.low < point.high {
            svg.line((at, y.at(point.low)), (at, y.at(point.high)), colour, 1.2);
        }
        svg.mark((at, y.at(point.y)), index, colour);
    }
}

/// Lines that share a colour differ by their dashes.
fn dashes(index: usize) -> &'static str {
    ["", "7 4", "2 3"][index / COLOURS.len() % 3]
}

/// The names, in lines that fit. Many series move closer together.
fn legend(svg: &mut Svg, series: &[Series]) {
    let names: Vec<Vec<String>> =
        series.iter().map(|s| svg::wrapped(&s.name, LEGEND_CHARACTERS, 3)).collect();
    let lines: usize = names.iter().map(Vec::len).sum();
    let wanted = 16.0 * lines as f64 + 8.0 * names.len() as f64;
    let shrink = ((HEIGHT - TOP - 12.0) / wanted).min(1.0);
    let mut at = TOP + 8.0;
    for (i, name) in names.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let swatch = [(LEGEND, at - 4.0), (LEGEND + 26.0, at - 4.0)];
        svg.path(swatch.into_iter(), colour, dashes(i));
        svg.mark((LEGEND + 13.0, at - 4.0), i, colour);
        for text in name {
            svg.text((LEGEND + 34.0, at), Anchor::Start, 12.5 * shrink.max(0.6), "#222222", text);
            at += 16.0 * shrink;
        }
        at += 8.0 * shrink;
    }
}

#[cfg(test)]
mod tests;
