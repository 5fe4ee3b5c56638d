//! The live view: stages, weights, evidence closing in on its margins, what users saw,
//! and what happened.

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

const BAR: usize = 37;

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
    for variant in &view.status.routing.variants {
        let filled = usize::try_from(variant.weight).unwrap_or(0) * 30 / 100;
        let colour = if variant.role == VariantRole::Canary { Color::Yellow } else { Color::Green };
        let name = view.names.get(&variant.revision).map_or("", String::as_str);
        lines.push(Line::from(vec![
            Span::raw(format!("{:<10} {name:<12}", short(&variant.revision))),
            Span::styled("█".repeat(filled), Style::new().fg(colour)),
            Span::raw("░".repeat(30 - filled)).dim(),
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
    let mut lines = vec![Line::from(vec![
        Span::raw(format!("{} answers, errors seen by users: ", users.answers)),
        errors,
    ])];
    for (revision, count) in &users.by_revision {
        let name = view.names.get(revision).map_or("", String::as_str);
        lines.push(Line::from(format!("{} {name:<12} {count:>6} answers", short(revision))));
    }
    frame.render_widget(
        Paragraph::new(lines).block(Block::bordered().title(" what users saw ")),
        area,
    );
}

fn table(frame: &mut Frame<'_>, area: Rect, status: &PromptReleaseStatus) {
    let header =
        Row::new(["metric", "stable", "canary", "worse by: H harm, A accept", "", "verdict"])
            .bold();
    let rows = status.analysis.iter().map(row);
    let widths = [
        Constraint::Length(9),
        Constraint::Length(17),
        Constraint::Length(17),
        Constraint::Length(BAR as u16),
        Constraint::Length(1),
        Constraint::Min(10),
    ];
    let block = Block::bordered()
        .title(" evidence: passes when the interval is left of A, fails when it is right of H ");
    frame.render_widget(Table::new(rows, widths).header(header).block(block), area);
}

fn row(metric: &MetricStatus) -> Row<'static> {
    let style = match metric.verdict {
        Verdict::Pass => Style::new().fg(Color::Green),
        Verdict::Fail => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
        _ => Style::new(),
    };
    Row::new([
        Cell::from(metric.metric.clone()),
        Cell::from(evidence_bar::side(metric, &metric.stable)),
        Cell::from(evidence_bar::side(metric, &metric.canary)),
        Cell::from(evidence_bar::draw(metric, BAR)),
        Cell::from(""),
        Cell::from(evidence_bar::word(metric.verdict)),
    ])
    .style(style)
}

fn happenings(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let room = usize::from(area.height.saturating_sub(2));
    let skip = view.happenings.len().saturating_sub(room);
    let lines: Vec<Line<'_>> = view
        .happenings
        .iter()
        .skip(skip)
        .map(|(seconds, happening)| {
            let text = format!("{seconds:>3} s  {}: {}", happening.reason, happening.note);
            if happening.warning { Line::from(text).red() } else { Line::from(text) }
        })
        .collect();
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" events ")), area);
}
