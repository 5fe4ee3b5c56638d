//! The body that goes upstream: the application's own, with the prompt laid over it.
//! What the prompt does not set is copied byte for byte.

mod overlay;

use std::{borrow::Cow, ops::Range, sync::Arc};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value};

pub(super) use self::overlay::Overlay;
use super::{
    budget::{Account, BODY_COPIES, Class, Held, SMALL},
    renderer::{Effort, Refused, Renderer, costly},
    routes::Target,
};
use crate::{
    api::prompt_version::Role,
    openai::{
        Operation,
        answer::Answer,
        error::ApiError,
        request::{self, Malformed, Request},
    },
    prompt::Template,
};

/// Characters that are kept of the name of a user or a conversation.
const LONGEST_NAME: usize = 256;
/// Values that the variables of one request may hold: each takes far more memory than text.
const MOST_VALUES: usize = 100_000;
/// The prompts of a list together, each with the release's own before it, in bytes.
const LARGEST_PROMPTS: usize = 32 << 20;

/// A request as far as the gateway reads it.
#[derive(Debug)]
pub(super) struct Asked {
    pub operation: Operation,
    /// The route, where the path names it.
    deployment: Option<String>,
    pub request: Request,
    /// The inputs of the prompt, an object.
    pub variables: Value,
    /// What these take beside the body that they came in.
    _held: Held,
    pub stream: bool,
    /// The application wants to see the usage at the end of a stream.
    pub wants_usage: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Ours {
    variables: Option<Value>,
}

/// More input is not told apart: an image, most of all, is much longer than it costs.
const MOST_INPUT: usize = 1 << 20;

/// What an application asks of vectors.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WantedVectors {
    /// How many numbers each has to have.
    pub length: Option<usize>,
    /// They have to be lists of numbers, and not base64, for which OpenAI's clients ask.
    pub in_numbers: bool,
}

impl WantedVectors {
    /// Whether an answer's vectors are of that kind.
    pub(super) fn are_those_of(self, answer: &Answer) -> bool {
        let are_so_long = self.length.zip(answer.vector_length).is_none_or(|(a, b)| a == b);
        let are_numbers = !self.in_numbers || !answer.in_base64;
        are_so_long && are_numbers
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StreamOptions {
    include_usage: Option<bool>,
}

impl Asked {
    /// How many choices, or vectors, it asks for; none where that can not be told.
    pub(super) fn wanted(&self) -> Option<usize> {
        let number = |name| serde_json::from_slice::<usize>(self.request.raw(name)?).ok();
        match self.operation {
            Operation::Chat => number("n"),
            Operation::Completions => {
                let prompts = self.request.raw("prompt").map_or(Some(1), request::inputs);
                Some(number("n").unwrap_or(1).saturating_mul(prompts?))
            }
            Operation::Embeddings => request::inputs(self.request.raw("input")?),
            Operation::Responses => None,
        }
    }

    /// What the vectors have to be like that it asks for.
    pub(super) fn vectors(&self) -> WantedVectors {
        if self.operation != Operation::Embeddings {
            return WantedVectors::default();
        }
        // Numbers of another size, or bits, are packed: how long they are then is another matter.
        let packs = ["embedding_type", "embedding_types", "embed_dtype", "output_dtype"];
        if packs.iter().any(|name| self.request.raw(name).is_some()) {
            return WantedVectors::default();
        }
        let length = self.request.raw("dimensions");
        let length = length.and_then(|json| serde_json::from_slice(json).ok());
        let encoding = self.request.raw("encoding_format");
        let in_base64 = encoding.is_some_and(|json| json == b"\"base64\"");
        WantedVectors { length: length.filter(|n| *n > 0), in_numbers: !in_base64 }
    }

    /// Reads a body with at most so many messages; what it takes beside the body is `held`.
    ///
    /// # Errors
    /// What is wrong with it, in OpenAI's shape.
    pub(super) fn read(
        operation: Operation,
        deployment: Option<String>,
        body: Bytes,
        most_messages: usize,
        mut held: Held,
    ) -> Result<Self, ApiError> {
        let request = Request::parse(body).map_err(|error| match &error {
            Malformed::Twice(name) => {
                ApiError::new(400, "invalid_json", error.to_string()).at(name.clone())
            }
            Malformed::NotAnObject(_) => ApiError::new(400, "invalid_json", error.to_string()),
            Malformed::TooDeep(_) => ApiError::new(400, "json_too_deep", error.to_string()),
        })?;
        let variables = variables(&request, &mut held)?;
        for (field, wanted) in [("messages", Operation::Chat), ("tools", operation)] {
            let given = request.raw(field).filter(|_| operation == wanted);
            if given.is_some_and(|raw| request::elements(raw).is_none()) {
                let code = if field == "tools" { "invalid_tools" } else { "invalid_messages" };
                return Err(ApiError::new(400, code, format!("{field} must be an array")).at(field));
            }
        }
        // Some servers take a text or a number for a boolean. What they make of it would not be
        // what is made of it here: a stream that nobody waits for.
        for field in ["stream", "background"] {
            if request.flag(field).is_none() {
                let message = format!("{field} must be true or false");
                return Err(ApiError::new(400, "invalid_type", message).at(field));
            }
        }
        bounded(operation, &request, most_messages)?;
        let stream = operation != Operation::Embeddings && request.is_true("stream");
        let options = request.raw("stream_options");
        let options: StreamOptions =
            options.and_then(|raw| serde_json::from_slice(raw).ok()).unwrap_or_default();
        let wants_usage = options.include_usage == Some(true);
        Ok(Self { operation, deployment, request, variables, _held: held, stream, wants_usage })
    }

    /// The name of the route that is asked for.
    pub(super) fn route(&self) -> Option<Cow<'_, str>> {
        match &self.deployment {
            Some(name) => Some(Cow::Borrowed(name)),
            None => self.request.text("model"),
        }
    }

    /// Who asks, as the application tells it.
    pub(super) fn user(&self) -> Option<String> {
        let user = self.request.text("user").or_else(|| self.request.text("safety_identifier"));
        user.map(short)
    }

    /// The conversation that a response goes on with.
    pub(super) fn conversation(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Conversation {
            id: String,
        }
        self.request.text("conversation").map(short).or_else(|| {
            let raw = self.request.raw("conversation")?;
            serde_json::from_slice(raw).ok().map(|Conversation { id }| short(id.into()))
        })
    }

    /// How much the application and its users say, in KiB: what costs are compared by. What
    /// models and tools said before is left out: it differs between variants.
    pub(super) fn input_kib(&self) -> f64 {
        let field = match self.operation {
            Operation::Chat => "messages",
            Operation::Responses | Operation::Embeddings => "input",
            Operation::Completions => "prompt",
        };
        let said = self.request.raw(field).map_or(0, request::said);
        let variables = self.request.raw("serinus").map_or(0, <[u8]>::len);
        (said + variables).min(MOST_INPUT) as f64 / 1024.0
    }

    /// A stream of this request may carry an event that the application does not expect.
    pub(super) fn hides_usage(&self) -> bool {
        self.stream && !self.wants_usage && self.operation != Operation::Responses
    }
}

fn short(text: Cow<'_, str>) -> String {
    text.chars().take(LONGEST_NAME).collect()
}

/// A short body can hold many messages, each of which costs whoever reads it.
fn bounded(operation: Operation, request: &Request, most: usize) -> Result<(), ApiError> {
    let field = match operation {
        Operation::Chat => "messages",
        Operation::Responses => "input",
        // Each gets the release's prompt before it.
        Operation::Completions => "prompt",
        Operation::Embeddings => return Ok(()),
    };
    let Some(list) = request.raw(field) else { return Ok(()) };
    // An element is a byte and a comma at least: most requests need not be counted.
    if list.len() / 2 > most && request::count(list).is_some_and(|count| count > most) {
        let message = format!(
            "{field} has more than {most} elements, which is all that this gateway takes \
             (--max-messages)"
        );
        return Err(ApiError::new(400, "too_many_messages", message).at(field));
    }
    Ok(())
}

fn variables(request: &Request, held: &mut Held) -> Result<Value, ApiError> {
    let invalid =
        |message: &str| ApiError::new(400, "invalid_variables", message).at("serinus.variables");
    let Some(ours) = request.raw("serinus") else { return Ok(Value::Object(Map::new())) };
    // A value is a byte and a comma at least: most requests need not be counted.
    if ours.len() / 2 > MOST_VALUES && request::values(ours) > MOST_VALUES {
        return Err(invalid(&format!("the variables hold more than {MOST_VALUES} values")));
    }
    // Their text is counted with the body.
    let takes = request::parsed(ours).saturating_sub(ours.len());
    if !held.may_ever_be(takes + request.len() * BODY_COPIES) {
        return Err(invalid(&format!(
            "the variables take {} MiB of memory, which is more than this gateway has for one \
             client (--memory): send fewer values",
            takes >> 20
        )));
    }
    if takes > SMALL {
        held.grow_to(takes)?;
    }
    let ours: Ours = serde_json::from_slice(ours)
        .map_err(|_| invalid("serinus must be an object with variables"))?;
    match ours.variables {
        None => Ok(Value::Object(Map::new())),
        Some(variables @ Value::Object(_)) => Ok(variables),
        Some(_) => Err(invalid("serinus.variables must be an object")),
    }
}

/// A body that goes upstream.
pub(super) struct Prepared {
    pub body: Bytes,
    /// Where in it the messages, the prompt or the input is.
    pub input: Range<usize>,
    /// What it takes beyond the body that came.
    pub held: Held,
}

/// A message of the release's prompt.
type Message<'a> = (Role, Cow<'a, str>);

/// The body that goes upstream.
///
/// # Errors
/// The variables do not fit the prompt, the prompt can not be filled in, there is no room for
/// what it becomes, or the request does not fit the operation.
pub(super) async fn body(
    renderer: &Renderer,
    target: &Target,
    asked: &Asked,
    account: &Arc<Account>,
    effort: Effort,
) -> Result<Prepared, Refused> {
    let mut held = account.nothing(Class::Bodies);
    let prompt = match asked.operation {
        Operation::Embeddings => vec![],
        _ => filled(renderer, target, asked, &mut held, effort).await?,
    };
    fits_before_each(&prompt, asked).map_err(Refused::Request)?;
    let made = |(_, text): &Message<'_>| if let Cow::Owned(text) = text { text.len() } else { 0 };
    let texts: usize = prompt.iter().map(made).sum();
    // The application's variables are not sent on.
    let variables = asked.request.raw("serinus").map_or(0, <[u8]>::len);
    let written = written(&prompt, asked).saturating_sub(variables);
    make_room(&mut held, texts.saturating_add(written), asked)?;
    let (body, input) = around(&prompt, target, asked).map_err(Refused::Request)?;
    let more = body.len().saturating_sub(asked.request.len());
    held.shrink_to(if more > SMALL { more } else { 0 });
    Ok(Prepared { body, input, held })
}

/// Takes what is about to be written. What finds no room in an idle gateway never does.
fn make_room(held: &mut Held, bytes: usize, asked: &Asked) -> Result<(), Refused> {
    if bytes <= SMALL {
        return Ok(());
    }
    let own = asked.request.len().saturating_mul(BODY_COPIES);
    if !held.may_ever_be(bytes.saturating_add(own)) {
        return Err(costly("becomes more than this gateway's memory holds for one client"));
    }
    held.grow_to(bytes).map_err(Refused::Room)
}

/// The prompt before each of the application's own, which may be many.
fn fits_before_each(prompt: &[Message<'_>], asked: &Asked) -> Result<(), ApiError> {
    let own = asked.request.raw("prompt").filter(|_| asked.operation == Operation::Completions);
    let own = own.filter(|raw| raw.starts_with(b"[")).and_then(request::count).unwrap_or(0);
    let before: usize = prompt.iter().map(|(_, text)| text.len()).sum();
    if own.saturating_mul(before) > LARGEST_PROMPTS {
        let message = "the release's prompt before each of so many is too much: send fewer";
        return Err(ApiError::new(400, "prompt_too_large", message).at("prompt"));
    }
    Ok(())
}

/// At least as many bytes as the prompt takes in a body.
fn written(prompt: &[Message<'_>], asked: &Asked) -> usize {
    /// The names around a message.
    const AROUND: usize = 48;
    let once = prompt.iter().map(|(_, text)| escaped(text) + AROUND);
    let once = once.fold(0_usize, usize::saturating_add);
    let prompts = asked.request.raw("prompt").filter(|_| asked.operation == Operation::Completions);
    let times = prompts.filter(|raw| raw.starts_with(b"[")).map_or(1, request::values);
    once.saturating_mul(times)
}

/// At least as many bytes as a text takes as JSON.
fn escaped(text: &str) -> usize {
    let byte = |byte: u8| match byte {
        b'"' | b'\\' => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.bytes().map(byte).sum()
}

async fn filled<'a>(
    renderer: &Renderer,
    target: &'a Target,
    asked: &Asked,
    held: &mut Held,
    effort: Effort,
) -> Result<Vec<Message<'a>>, Refused> {
    let variables = &asked.variables;
    make_room(held, target.template.length(variables), asked)?;
    let messages = target.template.fill(variables).map_err(|e| Refused::inputs(&e))?;
    let texts = match Template::left(&messages, variables) {
        Some(work) => renderer.fill_in(&target.turns, &work, effort).await?,
        None => vec![],
    };
    Ok(Template::whole(messages, texts))
}

/// The application's own request, with the prompt laid over it.
///
/// Also where in it the messages, the prompt or the input is.
fn around(
    prompt: &[Message<'_>],
    target: &Target,
    asked: &Asked,
) -> Result<(Bytes, Range<usize>), ApiError> {
    let Asked { operation, request, .. } = asked;
    let overlay = target.overlay(*operation);
    let mut out = Out { bytes: Vec::with_capacity(request.len() + 512), fields: 0 };
    let prompted = prompted(*operation);
    for (name, value) in request.fields() {
        let named = |other: &str| name == other.as_bytes();
        if named("serinus")
            || named("model")
            || prompted.is_some_and(named)
            || overlay.fields.iter().any(|(field, _)| named(field))
            || overlay.aliases.iter().any(|field| named(field))
            || (named("text") && overlay.format.is_some())
            || (named("tools") && !overlay.tools.is_empty())
            || (named("stream_options") && (asked.hides_usage() || !target.takes_stream_options))
        {
            continue;
        }
        let Some(name) = renamed(target, asked, name) else { continue };
        out.name(name);
        out.bytes.extend_from_slice(value);
    }
    out.name(b"model");
    out.json(&target.model);
    for (name, value) in &overlay.fields {
        out.name(name.as_bytes());
        out.bytes.extend_from_slice(value);
    }
    if !overlay.tools.is_empty() {
        out.name(b"tools");
        let own = request.raw("tools").and_then(request::elements);
        out.array([&overlay.tools, own.unwrap_or_default()]);
    }
    if let Some(format) = &overlay.format {
        out.name(b"text");
        out.object(request.raw("text"), "format", format);
    }
    if asked.hides_usage() && target.takes_stream_options {
        // Without usage there are no tokens and no cost.
        out.name(b"stream_options");
        out.object(request.raw("stream_options"), "include_usage", b"true");
    }
    let start = out.bytes.len();
    match operation {
        Operation::Chat => messages(prompt, asked, "messages", &mut out)?,
        Operation::Responses => messages(prompt, asked, "input", &mut out)?,
        Operation::Completions => completion(prompt, asked, &mut out)?,
        Operation::Embeddings => {}
    }
    // After the comma, the name, its quotes and the colon.
    let named = prompted.map_or(0, |name| name.len() + 4);
    let input = (start + named).min(out.bytes.len())..out.bytes.len();
    out.bytes.push(b'}');
    Ok((Bytes::from(out.bytes), input))
}

/// The name under which a field of the application goes to the backend; none when it goes
/// there under that name already. A model refuses one name of a limit or the other, and
/// both together.
fn renamed<'a>(target: &Target, asked: &Asked, name: &'a [u8]) -> Option<&'a [u8]> {
    let limit = target.token_limit;
    if asked.operation != Operation::Chat || name != limit.other().as_str().as_bytes() {
        return Some(name);
    }
    asked.request.raw(limit.as_str()).is_none().then(|| limit.as_str().as_bytes())
}

/// The field that the prompt's messages go into.
fn prompted(operation: Operation) -> Option<&'static str> {
    match operation {
        Operation::Chat => Some("messages"),
        Operation::Responses => Some("input"),
        Operation::Completions => Some("prompt"),
        Operation::Embeddings => None,
    }
}

/// A JSON object being written.
struct Out {
    bytes: Vec<u8>,
    fields: usize,
}

impl Out {
    fn name(&mut self, name: &[u8]) {
        self.bytes.push(if self.fields == 0 { b'{' } else { b',' });
        self.fields += 1;
        match std::str::from_utf8(name) {
            Ok(name) => self.json(name),
            // Names come from valid JSON.
            Err(_) => self.json(""),
        }
        self.bytes.push(b':');
    }

    fn json(&mut self, text: &str) {
        // Writing into memory does not fail.
        let _ = serde_json::to_writer(&mut self.bytes, text);
    }

    /// The application's own object with one field set.
    fn object(&mut self, own: Option<&[u8]>, field: &str, value: &[u8]) {
        let own = own.and_then(|own| Request::parse(Bytes::copy_from_slice(own)).ok());
        let mut inner = Self { bytes: std::mem::take(&mut self.bytes), fields: 0 };
        for (name, value) in own.iter().flat_map(Request::fields) {
            if name != field.as_bytes() {
                inner.name(name);
                inner.bytes.extend_from_slice(value);
            }
        }
        inner.name(field.as_bytes());
        inner.bytes.extend_from_slice(value);
        inner.bytes.push(b'}');
        self.bytes = inner.bytes;
    }

    fn array<'a>(&mut self, parts: impl IntoIterator<Item = &'a [u8]>) {
        self.bytes.push(b'[');
        let mut first = true;
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            if !std::mem::take(&mut first) {
                self.bytes.push(b',');
            }
            self.bytes.extend_from_slice(part);
        }
        self.bytes.push(b']');
    }
}

/// The prompt's messages, and the application's own after them.
fn messages(
    messages: &[Message<'_>],
    asked: &Asked,
    field: &'static str,
    out: &mut Out,
) -> Result<(), ApiError> {
    out.name(field.as_bytes());
    out.bytes.push(b'[');
    for (index, (role, content)) in messages.iter().enumerate() {
        if index > 0 {
            out.bytes.push(b',');
        }
        out.bytes.extend_from_slice(br#"{"role":""#);
        out.bytes.extend_from_slice(role_name(*role).as_bytes());
        out.bytes.extend_from_slice(br#"","content":"#);
        out.json(content);
        out.bytes.push(b'}');
    }
    let separator = |out: &mut Out| {
        if !messages.is_empty() {
            out.bytes.push(b',');
        }
    };
    match asked.request.raw(field) {
        None => {}
        Some(raw) => match request::elements(raw) {
            Some([]) => {}
            Some(own) => {
                separator(out);
                out.bytes.extend_from_slice(own);
            }
            // A text is what the user says.
            None if raw.starts_with(b"\"") => {
                separator(out);
                out.bytes.extend_from_slice(br#"{"role":"user","content":"#);
                out.bytes.extend_from_slice(raw);
                out.bytes.push(b'}');
            }
            None => {
                let message = format!("{field} must be a text or an array");
                return Err(ApiError::new(400, "invalid_input", message).at(field));
            }
        },
    }
    out.bytes.push(b']');
    Ok(())
}

/// The texts of the prompt's messages, an empty line between them, before each of the
/// application's own prompts.
fn completion(messages: &[Message<'_>], asked: &Asked, out: &mut Out) -> Result<(), ApiError> {
    let texts: Vec<&str> = messages.iter().map(|(_, text)| text.as_ref()).collect();
    let before = texts.join("\n\n");
    let joined = |own: &str| match (before.is_empty(), own.is_empty()) {
        (true, _) => own.to_owned(),
        (_, true) => before.clone(),
        _ => format!("{before}\n\n{own}"),
    };
    let refused = |_| {
        let message = "prompt must be a text or a list of texts: the release's prompt is put before it, which is not possible with tokens";
        ApiError::new(400, "invalid_prompt", message).at("prompt")
    };
    out.name(b"prompt");
    match asked.request.raw("prompt") {
        None => out.json(&before),
        Some(raw) if raw.starts_with(b"[") => {
            let own: Vec<String> = serde_json::from_slice(raw).map_err(refused)?;
            for (index, text) in own.iter().enumerate() {
                out.bytes.push(if index == 0 { b'[' } else { b',' });
                out.json(&joined(text));
            }
            out.bytes.extend_from_slice(if own.is_empty() { b"[]" } else { b"]" });
        }
        Some(raw) => {
            let own: String = serde_json::from_slice(raw).map_err(refused)?;
            out.json(&joined(&own));
        }
    }
    Ok(())
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::Developer => "developer",
        Role::User => "user",
        Role::Assistant => "assistant",
    }
}
