//! The few shapes that the charts are made of, as SVG 1.1 text.

/// Where a text's position is.
#[derive(Clone, Copy, Debug)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

impl Anchor {
    fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Middle => "middle",
            Self::End => "end",
        }
    }
}

/// A picture that grows by one element a line.
#[derive(Debug)]
pub struct Svg {
    lines: Vec<String>,
}

impl Svg {
    /// A white picture; `title` is what screen readers say.
    pub fn new(width: f64, height: f64, title: &str) -> Self {
        let lines = vec![
            format!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" \
                 height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" \
                 font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\">"
            ),
            format!("<title>{}</title>", escaped(title)),
            format!("<rect width=\"{width:.0}\" height=\"{height:.0}\" fill=\"#FFFFFF\"/>"),
        ];
        Self { lines }
    }

    pub fn finish(mut self) -> String {
        self.lines.push("</svg>\n".to_owned());
        self.lines.join("\n")
    }

    pub fn text(&mut self, at: (f64, f64), anchor: Anchor, size: f64, colour: &str, text: &str) {
        self.lines.push(format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{}\" font-size=\"{size:.1}\" \
             fill=\"{colour}\">{}</text>",
            at.0,
            at.1,
            anchor.name(),
            escaped(text)
        ));
    }

    /// A text that reads from bottom to top, centred at `at`.
    pub fn upright(&mut self, at: (f64, f64), size: f64, colour: &str, text: &str) {
        self.lines.push(format!(
            "<text transform=\"translate({:.1} {:.1}) rotate(-90)\" text-anchor=\"middle\" \
             font-size=\"{size:.1}\" fill=\"{colour}\">{}</text>",
            at.0,
            at.1,
            escaped(text)
        ));
    }

    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
        self.lines.push(format!(
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" \
             stroke-width=\"{width:.1}\"/>",
            from.0, from.1, to.0, to.1
        ));
    }

    pub fn rect(&mut self, at: (f64, f64), size: (f64, f64), colour: &str) {
        self.lines.push(format!(
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>",
            at.0, at.1, size.0, size.1
        ));
    }

    /// A line through all points; `dashes` is empty for a solid one.
    pub fn path(&mut self, points: impl Iterator<Item = (f64, f64)>, colour: &str, dashes: &str) {
        let points = listed(points);
        let dashes = if dashes.is_empty() {
            String::new()
        } else {
            format!(" stroke-dasharray=\"{dashes}\"")
        };
        self.lines.push(format!(
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" \
             stroke-width=\"2.2\" stroke-linejoin=\"round\"{dashes}/>"
        ));
    }

    /// A closed area through which the grid and other areas can be seen.
    pub fn area(&mut self, points: impl Iterator<Item = (f64, f64)>, colour: &str) {
        let points = listed(points);
        self.lines.push(format!(
            "<polygon points=\"{points}\" fill=\"{colour}\" fill-opacity=\"0.15\"/>"
        ));
    }

    /// A circle, square, triangle or diamond, by turns.
    pub fn mark(&mut self, (x, y): (f64, f64), index: usize, colour: &str) {
        let corners: &[(f64, f64)] = match index % 4 {
            0 => {
                self.lines.push(format!(
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.8\" fill=\"{colour}\"/>"
                ));
                return;
            }
            1 => &[(-3.5, -3.5), (3.5, -3.5), (3.5, 3.5), (-3.5, 3.5)],
            2 => &[(0.0, -4.8), (4.4, 3.4), (-4.4, 3.4)],
            _ => &[(0.0, -5.0), (5.0, 0.0), (0.0, 5.0), (-5.0, 0.0)],
        };
        let points = listed(corners.iter().map(|(dx, dy)| (x + dx, y + dy)));
        self.lines.push(format!("<polygon points=\"{points}\" fill=\"{colour}\"/>"));
    }
}

fn listed(points: impl Iterator<Item = (f64, f64)>) -> String {
    points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ")
}

/// Text for element content. Characters that XML 1.0 forbids become spaces.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{FFFE}' | '\u{FFFF}') => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// The text in at most `most` lines of `limit` characters, broken at spaces; the rest
/// is cut and marked.
pub fn wrapped(text: &str, limit: usize, most: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let Some(line) = lines.last_mut() else { break };
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= limit {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    let cut = lines.len() > most;
    lines.truncate(most);
    let last = lines.len().saturating_sub(1);
    for (i, line) in lines.iter_mut().enumerate() {
        if line.chars().count() > limit || (cut && i == last) {
            *line = line.chars().take(limit.saturating_sub(1)).chain(['…']).collect();
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_escaped() {
        assert_eq!(escaped("a<b & \"c\">\u{1}"), "a&lt;b &amp; &quot;c&quot;&gt; ");
    }

    #[test]
    fn long_names_are_wrapped_then_cut() {
        assert_eq!(
            wrapped("Flagger (bad ≤ 1 %, threshold 10)", 20, 3),
            ["Flagger (bad ≤ 1 %,", "threshold 10)"]
        );
        assert_eq!(wrapped(&"x".repeat(50), 10, 3), ["xxxxxxxxx…"]);
        assert_eq!(wrapped("a b c d e", 3, 1), ["a …"]);
        assert_eq!(wrapped("", 10, 3), [""]);
    }
}
