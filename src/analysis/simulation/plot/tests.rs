use super::*;

fn rising(name: &str, scale: f64) -> Series {
    let points = (0..=10)
        .map(|i| {
            let x = f64::from(i) / 200.0;
            let y = 1.0 - (-x * scale).exp();
            (x, y, (y - 0.04).max(0.0), (y + 0.04).min(1.0))
        })
        .collect();
    Series { name: name.to_owned(), points }
}

fn example() -> String {
    let axes = Axes {
        title: "Rolled back, by how much worse the canary is",
        x_label: "true difference of the error rates",
        y_label: "canaries rolled back",
        x_percent: true,
        y_percent: true,
    };
    let names = ["Serinus", "Argo Rollouts (bad ≤ 5 %, failureLimit 3)"];
    let more = ["Flagger (bad ≤ 1 %, threshold 10)", "Kayenta (ratio ≥ 1, once)"];
    let series: Vec<Series> = names
        .iter()
        .chain(&more)
        .zip([60.0, 35.0, 25.0, 15.0])
        .map(|(name, scale)| rising(name, scale))
        .collect();
    chart(&axes, &series)
}

fn outcomes() -> String {
    let bars = [
        ("Serinus, equal", [0.04, 0.11, 0.85]),
        ("Serinus, worse by 3 points", [0.93, 0.06, 0.01]),
        ("Argo Rollouts (bad ≤ 5 %, failureLimit 3), equal", [0.41, 0.0, 0.59]),
        ("Flagger (bad ≤ 1 %, threshold 10), equal", [0.91, 0.03, 0.06]),
        ("Kayenta (ratio ≥ 1, every 10), equal", [0.08, 0.0, 0.92]),
    ];
    stacked(
        "What became of 1,000 canaries",
        "share of canaries",
        &bars.map(|(label, shares)| (label.to_owned(), shares)),
    )
}

/// Every element is closed in order, and no text has a bare `<` or `&`.
fn assert_well_formed(svg: &str) {
    let mut open = vec![];
    for piece in svg.split('<').skip(1) {
        let (tag, text) = piece.split_once('>').expect("a tag ends");
        assert_eq!(tag.matches('"').count() % 2, 0, "quotes of <{tag}>");
        let bare = text.split('&').skip(1).any(|t| !t.contains(';'));
        assert!(!bare, "a bare & in {text:?}");
        let name = tag.split(' ').next().unwrap_or_default();
        if let Some(closed) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(closed));
        } else if !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?} stay open");
}

fn assert_finite(svg: &str) {
    assert!(!svg.contains("NaN") && !svg.contains("inf\"") && !svg.contains("inf,"), "{svg}");
}

#[test]
fn the_examples_are_well_formed() {
    for svg in [example(), outcomes()] {
        assert_well_formed(&svg);
        assert_finite(&svg);
    }
}

#[test]
fn every_series_has_a_line_a_band_and_a_name() {
    let svg = example();
    // Each series: one line and one swatch of the legend.
    assert_eq!(svg.matches("<polyline").count(), 8);
    assert_eq!(svg.matches("fill-opacity").count(), 4);
    for colour in &COLOURS[..4] {
        assert!(svg.contains(&format!("stroke=\"{colour}\"")), "{colour}");
    }
    assert!(svg.contains("Serinus</text>"));
    assert!(svg.contains("failureLimit 3)</text>"));
}

#[test]
fn percent_axes_say_so() {
    let svg = example();
    assert!(svg.contains(">100 %<") && svg.contains(">5 %<"));
}

#[test]
fn more_series_than_colours_differ_by_dashes() {
    let series: Vec<Series> = (0..9).map(|i| rising(&format!("rule {i}"), 20.0)).collect();
    let svg = chart(&Axes::default(), &series);
    assert_eq!(svg.matches("stroke-dasharray").count(), 4);
}

#[test]
fn extreme_values_stay_in_the_picture() {
    let wild = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN, 0.0, 1e-300];
    let points: Vec<_> =
        wild.iter().flat_map(|a| wild.iter().map(move |b| (*a, *b, *b, *a))).collect();
    for y_percent in [false, true] {
        let axes = Axes { y_percent, x_percent: !y_percent, ..Axes::default() };
        let series = Series { name: "<wild> & \"free\"\u{0}".to_owned(), points: points.clone() };
        let svg = chart(&axes, &[series]);
        assert_well_formed(&svg);
        assert_finite(&svg);
        assert!(svg.contains("&lt;wild&gt; &amp; &quot;free&quot;"));
    }
}

#[test]
fn nothing_to_draw_says_no_data() {
    for series in [
        vec![],
        vec![Series::default()],
        vec![Series { name: "gone".to_owned(), points: vec![(f64::NAN, 0.1, 0.0, 0.2)] }],
    ] {
        let svg = chart(&Axes::default(), &series);
        assert_well_formed(&svg);
        assert_finite(&svg);
        assert!(svg.contains("no data"));
    }
    assert!(stacked("t", "x", &[]).contains("no data"));
}

#[test]
fn one_point_has_a_whisker_and_no_band() {
    let series = Series { name: "one".to_owned(), points: vec![(0.1, 0.5, 0.4, 0.6)] };
    let svg = chart(&Axes::default(), &[series]);
    assert_eq!(svg.matches("fill-opacity").count(), 0);
    assert!(svg.contains("stroke-width=\"1.2\""));
    assert_finite(&svg);
}

#[test]
fn bars_never_leave_the_axis() {
    let bars = [
        ("nothing".to_owned(), [f64::NAN, -1.0, f64::INFINITY]),
        ("too much".to_owned(), [1.0, 1.0, 2.0]),
    ];
    let svg = stacked("a < b", "share", &bars);
    assert_well_formed(&svg);
    assert_finite(&svg);
    assert_eq!(svg.matches(">33 %<").count(), 3);
}

#[test]
fn many_bars_make_a_taller_picture() {
    let bars: Vec<_> = (0..40).map(|i| (format!("rule {i}"), [0.2, 0.3, 0.5])).collect();
    let svg = stacked("t", "x", &bars);
    assert!(svg.contains("height=\"1114\""), "{}", &svg[..120]);
    for i in 0..40 {
        assert!(svg.contains(&format!(">rule {i}<")));
    }
}
