//! The check of a complete answer.

use crate::{
    audit::record::CheckResult,
    openai::{
        answer::{Answer, Call, Other},
        reason::Ending,
        visible::is_blank,
    },
    prompt::{Template, Tools, Verdict},
};

/// What is wrong with a complete answer to a request for so many choices, the gravest first. What
/// is not judged comes after all that is certainly wrong. The first choice is read whole, of the
/// others is known how they ended and whether they say anything.
pub(super) fn check(
    answer: &Answer,
    wanted: usize,
    template: &Template,
    tools: impl FnOnce() -> Tools,
) -> CheckResult {
    let is_another = |other: fn(&Other) -> bool| answer.others.iter().any(other);
    let ends = |ending| {
        answer.ending() == Some(ending)
            || answer.others.iter().any(|other| other.ending == Some(ending))
    };
    let says_nothing = !answer.tool_call && is_blank(&answer.text);
    let fewer = answer.first.is_some() && answer.choices() < wanted;
    if answer.refused || is_another(|other| other.refused) || ends(Ending::Safety) {
        CheckResult::Refused
    } else if ends(Ending::Length) {
        CheckResult::Truncated
    } else if ends(Ending::MalformedCall)
        || (!answer.calls.is_empty() && !all_fit(&answer.calls, &tools()))
    {
        CheckResult::ToolCall
    } else if is_under_way(answer) {
        CheckResult::UnknownReason
    } else if (says_nothing && answer.unread) || is_another(|other| !other.speaks && other.unread) {
        CheckResult::Unread
    } else if says_nothing || fewer || is_another(|other| !other.speaks) {
        CheckResult::Empty
    } else if !answer.tool_call && !answer.cut && !template.accepts(&answer.text) {
        CheckResult::Schema
    } else if ends(Ending::Unknown) {
        CheckResult::UnknownReason
    } else {
        CheckResult::Passed
    }
}

/// A response that goes on in the background: there is nothing to judge yet.
fn is_under_way(answer: &Answer) -> bool {
    matches!(answer.finish_reason.as_deref(), Some("queued" | "in_progress"))
}

/// Whether the calls name a function, and what they hold is an object of JSON that fits the tools'
/// schemas.
fn all_fit(calls: &[Call], tools: &Tools) -> bool {
    calls.iter().filter(|call| !call.cut).all(|call| {
        if call.unfit || is_blank(&call.name) {
            return false;
        }
        // Of a function without parameters many models write nothing.
        let arguments = if call.arguments.trim().is_empty() { "{}" } else { &call.arguments };
        arguments.trim_start().starts_with('{')
            && tools.judge(&call.name, arguments) != Verdict::Unfit
    })
}

#[cfg(test)]
mod tests;
