//! The check of a complete answer.

use crate::{
    audit::record::CheckResult,
    openai::{
        answer::{Answer, Call},
        reason::Ending,
    },
    prompt::{Template, Tools, Verdict},
};

/// What is wrong with a complete answer, the gravest first. What is not judged comes after
/// all that is certainly wrong.
pub(super) fn check(
    answer: &Answer,
    template: &Template,
    tools: impl FnOnce() -> Tools,
) -> CheckResult {
    let ending = answer.ending();
    if answer.refused || ending == Some(Ending::Safety) {
        CheckResult::Refused
    } else if ending == Some(Ending::Length) {
        CheckResult::Truncated
    } else if ending == Some(Ending::MalformedCall)
        || (!answer.calls.is_empty() && !all_fit(&answer.calls, &tools()))
    {
        CheckResult::ToolCall
    } else if is_under_way(answer) {
        CheckResult::UnknownReason
    } else if !answer.tool_call && answer.text.trim().is_empty() {
        if answer.unread { CheckResult::Unread } else { CheckResult::Empty }
    } else if !answer.tool_call && !answer.cut && !template.accepts(&answer.text) {
        CheckResult::Schema
    } else if ending == Some(Ending::Unknown) {
        CheckResult::UnknownReason
    } else {
        CheckResult::Passed
    }
}

/// A response that goes on in the background: there is nothing to judge yet.
fn is_under_way(answer: &Answer) -> bool {
    matches!(answer.finish_reason.as_deref(), Some("queued" | "in_progress"))
}

/// Whether what the calls hold is JSON of the tools' schemas.
fn all_fit(calls: &[Call], tools: &Tools) -> bool {
    calls.iter().filter(|call| !call.cut).all(|call| {
        // Of a function without parameters many models write nothing.
        let arguments = if call.arguments.trim().is_empty() { "{}" } else { &call.arguments };
        tools.judge(&call.name, arguments) != Verdict::Unfit
    })
}

#[cfg(test)]
mod tests;
