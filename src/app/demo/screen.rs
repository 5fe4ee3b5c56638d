//! The live view: stages, weights, evidence closing in on its margins, what users saw,
//! and what happened. Bars take what room there is; at 80 × 24 no word or figure is cut.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize},
    text::{Line, Span},
    widgets::{Block, Cell, Paragraph, Row, Table},
};

use super::View;
use crate::{
    api::{
        CanaryPolicySpec, PromptReleaseStatus,
        prompt_release::{MetricStatus, Phase, VariantRole, Verdict},
    },
    app::evidence_bar,
    prompt::short,
};

/// The longest bars, in characters.
const BAR: usize = 37;
const WEIGHT_BAR: usize = 30;
/// What a border takes of a width.
const BORDERS: u16 = 2;
/// Columns of the evidence besides its bars: metric, stable, canary, verdict.
const COLUMNS: [u16; 4] = [10, 17, 17, 10];

pub(super) fn draw(frame: &mut Frame<'_>, view: &View) {
    let metrics = view.status.analysis.len().clamp(3, 8) as u16;
    let [head, top, evidence, events] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(7),
        Constraint::Length(metrics + 4),
        Constraint::Min(4),
    ])
    .areas(frame.area());
    header(frame, head, view);
    let [stages_area, users_area] =
        Layout::horizontal([Constraint::Percentage(55), Constraint::Percentage(45)]).areas(top);
    stages(frame, stages_area, view);
    users(frame, users_area, view);
    table(frame, evidence, &view.status);
    happenings(frame, events, view);
}

fn header(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let phase = format!(" {:?} ", view.status.phase);
    let lines = vec![
        Line::from(vec![
            "Serinus ".bold().yellow(),
            Span::styled(phase, Style::new().fg(Color::Black).bg(colour(view.status.phase))),
            Span::raw(format!("  {:>3} s  ", view.elapsed.as_secs())),
            "q quits".dim(),
        ]),
        Line::from(view.caption.as_str()).italic(),
    ];
    frame.render_widget(Paragraph::new(lines), area);
}

fn colour(phase: Phase) -> Color {
    match phase {
        Phase::Stable => Color::Green,
        Phase::RollingBack | Phase::RolledBack => Color::Red,
        Phase::Held | Phase::AwaitingApproval | Phase::Pending => Color::Yellow,
        _ => Color::Cyan,
    }
}

fn stages(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let mut lines = vec![Line::from(stage_line(&view.status, view.policy.as_ref()))];
    let room = usize::from(area.width.saturating_sub(BORDERS + 29)).min(WEIGHT_BAR);
    for variant in &view.status.routing.variants {
        let filled = usize::try_from(variant.weight).unwrap_or(0) * room / 100;
        let colour = if variant.role == VariantRole::Canary { Color::Yellow } else { Color::Green };
        let name = view.names.get(&variant.revision).map_or("", String::as_str);
        lines.push(Line::from(vec![
            Span::raw(format!("{:<10} {name:<12}", short(&variant.revision))),
            Span::styled("█".repeat(filled), Style::new().fg(colour)),
            Span::raw("░".repeat(room - filled)).dim(),
            Span::raw(format!(" {:>3} %", variant.weight)),
        ]));
    }
    frame.render_widget(
        Paragraph::new(lines).block(Block::bordered().title(" stages and traffic ")),
        area,
    );
}

fn stage_line(
    status: &PromptReleaseStatus,
    policy: Option<&CanaryPolicySpec>,
) -> Vec<Span<'static>> {
    let Some((canary, policy)) = status.canary.as_ref().zip(policy) else {
        return vec!["no canary runs".dim()];
    };
    let at = usize::try_from(canary.step).unwrap_or(0);
    let mut spans = vec![];
    for (i, step) in policy.steps.iter().enumerate() {
        let name = match (step.weight, &step.shadow) {
            (Some(weight), _) => format!("{weight} %"),
            (None, Some(shadow)) => format!("shadow {} %", shadow.percent),
            (None, None) => "approval".to_owned(),
        };
        spans.push(stage(name, i, at));
    }
    spans.push(stage("bake".to_owned(), policy.steps.len(), at));
    spans
}

fn stage(name: String, index: usize, at: usize) -> Span<'static> {
    match index.cmp(&at) {
        std::cmp::Ordering::Less => format!("✓ {name}  ").green(),
        std::cmp::Ordering::Equal => format!("▶ {name}  ").yellow().add_modifier(Modifier::BOLD),
        std::cmp::Ordering::Greater => format!("· {name}  ").dim(),
    }
}

fn users(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let users = &view.users;
    let errors =
        if users.errors == 0 { "0".green() } else { users.errors.to_string().red().bold() };
    let mut lines = vec![
        Line::from(format!("{} answers", users.answers)),
        Line::from(vec![Span::raw("errors seen by users: "), errors]),
    ];
    for (revision, count) in &users.by_revision {
        let name = view.names.get(revision).map_or("", String::as_str);
        lines.push(Line::from(format!("{} {name:<12} {count:>8}", short(revision))));
    }
    frame.render_widget(
        Paragraph::new(lines).block(Block::bordered().title(" what users saw ")),
        area,
    );
}

fn table(frame: &mut Frame<'_>, area: Rect, status: &PromptReleaseStatus) {
    let [metric, stable, canary, verdict] = COLUMNS;
    let gaps = COLUMNS.len() as u16;
    let room = area.width.saturating_sub(BORDERS + gaps + COLUMNS.iter().sum::<u16>());
    let bar = usize::from(room).min(BAR);
    let worse = if bar < 26 { "H harm, A accept" } else { "worse by: H harm, A accept" };
    let header = Row::new(["metric", "stable", "canary", worse, "verdict"]).bold();
    let rows = status.analysis.iter().map(|metric| row(metric, bar));
    let lengths = [metric, stable, canary, bar as u16, verdict];
    let widths = lengths.map(Constraint::Length);
    let block = Block::bordered()
        .title(" evidence: passes when the interval is left of A, fails when it is right of H ");
    frame.render_widget(Table::new(rows, widths).header(header).block(block), area);
}

fn row(metric: &MetricStatus, bar: usize) -> Row<'static> {
    let style = match metric.verdict {
        Verdict::Pass => Style::new().fg(Color::Green),
        Verdict::Fail => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
        _ => Style::new(),
    };
    Row::new([
        Cell::from(metric.metric.clone()),
        Cell::from(evidence_bar::side(metric, &metric.stable)),
        Cell::from(evidence_bar::side(metric, &metric.canary)),
        Cell::from(evidence_bar::draw(metric, bar)),
        Cell::from(metric.verdict.word()),
    ])
    .style(style)
}

fn happenings(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let room = usize::from(area.height.saturating_sub(2));
    let width = usize::from(area.width.saturating_sub(BORDERS));
    let lines: Vec<Line<'_>> = view
        .happenings
        .iter()
        .flat_map(|(seconds, happening)| {
            let text = format!("{seconds:>3} s  {}: {}", happening.reason, happening.note);
            let coloured = move |line| {
                if happening.warning { Line::from(line).red() } else { Line::from(line) }
            };
            wrapped(&text, width).into_iter().map(coloured)
        })
        .collect();
    let skip = lines.len().saturating_sub(room);
    let lines: Vec<Line<'_>> = lines.into_iter().skip(skip).collect();
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" events ")), area);
}

/// Lines of at most `width` characters, broken between words; all but the first indented.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    const INDENT: &str = "       ";
    let mut lines: Vec<String> = vec![];
    for (i, word) in text.split_inclusive(' ').enumerate() {
        let fits = |line: &String| line.chars().count() + word.trim_end().chars().count() <= width;
        match lines.last_mut().filter(|line| fits(line)) {
            Some(line) => line.push_str(word),
            None if i == 0 => lines.push(word.to_owned()),
            None => lines.push(format!("{INDENT}{word}")),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::{Terminal, backend::TestBackend};

    use super::{super::Seen, *};
    use crate::{
        api::prompt_release::{RoutedVariant, Sample},
        app::standalone::Happening,
    };

    const NOTE: &str = "errors: canary 34.2 % of 1234, stable 1.1 % of 12345: worse by more than the harm margin of 2.0 %, first seen on answer 41";

    fn view() -> View {
        let metric = |name: &str| MetricStatus {
            metric: name.into(),
            stable: Sample { value: 0.123, count: 12_345 },
            canary: Sample { value: 0.456, count: 1_234 },
            difference: Some(0.0),
            interval: Some([-0.02, 0.06]),
            harm: 0.02,
            accept: 0.05,
            verdict: Verdict::Inconclusive,
            ..MetricStatus::default()
        };
        let routed = |revision: &str, role, weight| RoutedVariant {
            revision: revision.into(),
            role,
            weight,
            copies: None,
        };
        let mut status = PromptReleaseStatus {
            analysis: ["errors", "ttft", "checks", "refusals"].map(metric).into(),
            ..PromptReleaseStatus::default()
        };
        status.routing.variants = vec![
            routed("1111111111", VariantRole::Stable, 75),
            routed("2222222222", VariantRole::Canary, 25),
        ];
        let happening = Happening {
            at: jiff::Timestamp::UNIX_EPOCH,
            release: "default/support".into(),
            warning: true,
            reason: "RolledBack".into(),
            note: NOTE.into(),
        };
        View {
            caption: String::new(),
            elapsed: Duration::from_secs(61),
            status,
            policy: None,
            names: [("1111111111", "support-v1"), ("2222222222", "support-v2")]
                .map(|(revision, name)| (revision.to_owned(), name.to_owned()))
                .into(),
            users: Seen {
                answers: 12_345,
                errors: 678,
                by_revision: [("1111111111".to_owned(), 12_000)].into(),
                last_error: None,
            },
            happenings: vec![(61, happening)],
        }
    }

    #[test]
    fn no_word_or_figure_is_cut_however_large_the_window_is() {
        for (width, height) in [(80, 24), (100, 30), (200, 60)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| draw(frame, &view())).unwrap();
            let screen = terminal.backend().to_string();
            for whole in [
                "12345 answers",
                "errors seen by users: 678",
                " 75 %",
                " 25 %",
                "12.3 % of 12345",
                "45.6 % of 1234",
                "12000 ",
                "H harm, A accept",
                "no answer",
                "refusals",
            ] {
                assert!(screen.contains(whole), "{width} × {height}: {whole} in\n{screen}");
            }
            let margin = screen.lines().find(|line| line.contains("ttft")).unwrap();
            assert!(margin.contains('H') && margin.contains('A'), "{screen}");
            let words = screen.replace(['│', '"', '\n'], " ");
            let words: Vec<&str> = words.split_whitespace().collect();
            let note: Vec<&str> = NOTE.split_whitespace().collect();
            assert!(words.windows(note.len()).any(|w| w == note), "{screen}");
        }
    }
}
