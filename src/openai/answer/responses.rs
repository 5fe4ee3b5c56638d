//! Answers of the Responses API, whole and by their events.

use super::{
    Answer, Carried,
    calls::{self, Piece},
    keep, tokens,
    wire::{Body, Incomplete, Item, Rare},
};
use crate::openai::reason::Ending;

impl Answer {
    /// Reads a response as a whole.
    pub(super) fn response(&mut self, body: Body<'_>) {
        let Body { status, output, incomplete_details, mut usage, id, model, .. } = body;
        keep(&mut self.id, id);
        keep(&mut self.model, model);
        self.tokens.absorb(tokens(usage.take()));
        let is_cut = output.0.iter().any(Item::is_cut);
        for item in output.0 {
            self.output_item(item, true);
        }
        let status = status.0.as_deref().unwrap_or_default();
        self.ended_as(status, is_cut, incomplete_details);
    }

    fn output_item(&mut self, item: Item<'_>, speaks: bool) {
        if item.status.0.as_deref() == Some("failed") {
            // The model may go on without what one of its tools did not do, and not without its
            // own words.
            self.failed |= item.kind.0.as_deref() == Some("message");
            return;
        }
        match item.kind.0.as_deref() {
            Some("message") => {
                let content = item.content;
                self.refused |= content.refused;
                self.unread |= content.unread;
                self.tool_call |= content.media;
                if let Some(text) = content.output.0.filter(|_| speaks) {
                    self.say(&text);
                }
            }
            // Thinking is neither text nor a call, and what the server asked its own tools is
            // nothing to anybody yet.
            Some(
                "reasoning"
                | "compaction"
                | "web_search_call"
                | "file_search_call"
                | "code_interpreter_call"
                | "mcp_list_tools"
                | "mcp_call",
            )
            | None => {}
            Some("image_generation_call") => self.tool_call |= item.result.0,
            Some("function_call") => {
                self.tool_call = true;
                let Item { id, call_id, name, arguments, is_unfit, .. } = item;
                // Under `call_id` an application answers.
                let unfit = is_unfit || call_id.0.is_none_or(|id| id.is_empty());
                let known = id.0.as_ref().is_some_and(|id| self.knows_call(id));
                if !known {
                    let piece = Piece { index: None, id: id.0, name: name.0, arguments, unfit };
                    calls::add(&mut self.calls, piece);
                }
            }
            // The application is to do something, by a tool that is not described above:
            // `custom_tool_call`, `shell_call`, `mcp_approval_request`.
            Some(kind) if kind.ends_with("_call") || kind.ends_with("_request") => {
                self.tool_call = true;
            }
            // What came of a call that the server made itself.
            Some(kind) if kind.ends_with("_output") => {}
            Some(_) => self.unread = true,
        }
    }

    fn knows_call(&self, id: &str) -> bool {
        self.calls.iter().any(|call| call.is(id))
    }

    /// Reads one event.
    pub(super) fn responses_event(&mut self, body: Body<'_>) -> Carried {
        let kind = body.kind.0.unwrap_or_default();
        let content = body.delta.filled && kind.ends_with(".delta");
        match kind.as_ref() {
            "response.output_text.delta" => {
                if let Some(text) = body.delta.text.0 {
                    self.say(&text);
                }
            }
            "response.refusal.delta" => self.refused = true,
            // Its arguments are complete.
            "response.output_item.done" => {
                if let Some(item) = body.item {
                    self.output_item(*item, self.text.is_empty());
                }
            }
            _ => {}
        }
        let is_known = kind.starts_with("response.") || matches!(&*kind, "ping" | "keepalive");
        if let Some(response) = body.response {
            self.within(&kind, *response);
        }
        self.understood |= content;
        Carried { content, unread: body.some && !is_known, ..Carried::default() }
    }

    /// The response as an event tells it.
    fn within(&mut self, kind: &str, response: Body<'_>) {
        self.failed |= response.tells_an_error();
        let is_last = matches!(
            kind,
            "response.completed"
                | "response.incomplete"
                | "response.failed"
                | "response.cancelled"
                | "response.canceled"
                | "response.done"
        );
        if !is_last {
            keep(&mut self.id, response.id);
            keep(&mut self.model, response.model);
            return self.tokens.absorb(tokens(response.usage));
        }
        self.done = true;
        // What its events have said is not said again.
        let speaks = self.text.is_empty();
        let Body { status, output, incomplete_details, usage, id, model, .. } = response;
        keep(&mut self.id, id);
        keep(&mut self.model, model);
        self.tokens.absorb(tokens(usage));
        let is_cut = output.0.iter().any(Item::is_cut);
        for item in output.0 {
            self.output_item(item, speaks);
        }
        let status = status.0.as_deref().unwrap_or(kind.trim_start_matches("response."));
        self.ended_as(status, is_cut, incomplete_details);
    }

    /// The status of a response, in the words of chat's finish reasons.
    fn ended_as(&mut self, status: &str, is_cut: bool, incomplete: Rare<Incomplete<'_>>) {
        let reason = match status {
            "completed" | "done" if is_cut => "length",
            "completed" | "done" => "stop",
            "failed" | "cancelled" | "canceled" => {
                self.failed = true;
                "error"
            }
            "incomplete" => {
                let reason = incomplete.and_then(|incomplete| incomplete.reason.0);
                let reason = reason.as_deref().unwrap_or("length");
                return match Ending::of(reason) {
                    Ending::Length => self.finish_reason = Some("length".to_owned()),
                    Ending::Safety => {
                        self.refused = true;
                        self.finish_reason = Some("content_filter".to_owned());
                    }
                    ending => {
                        self.failed |= ending == Ending::Failed;
                        self.finish_reason = Some(reason.to_owned());
                    }
                };
            }
            "" => return,
            // It goes on in the background, or does what Serinus does not know.
            other => other,
        };
        self.finish_reason = Some(reason.to_owned());
    }
}

impl Item<'_> {
    /// What the model itself wrote did not end, though the response did.
    fn is_cut(&self) -> bool {
        self.status.0.as_deref() == Some("incomplete")
            && matches!(self.kind.0.as_deref(), Some("message" | "function_call"))
    }
}
