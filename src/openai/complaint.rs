//! What a server says went wrong, in the body of an error or within an answer. Each
//! server has a form of its own: this reads all of them into one.

mod words;

use std::time::Duration;

use serde_json::{Map, Value};

use super::mend;

/// Larger bodies are no errors that somebody wrote.
const LARGEST: usize = 1 << 20;
/// Objects within each other.
const DEEPEST: usize = 5;

/// What a server says went wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Complaint {
    /// The HTTP status that it told, by a number or by a word.
    pub status: Option<u16>,
    /// The sentence for people; empty without one.
    pub message: String,
    /// The request's field at fault.
    pub param: Option<String>,
    /// When to ask again.
    pub retry_after: Option<Duration>,
    /// It was read: JSON that says something of an error.
    pub is_read: bool,
    /// The words for programs (types and codes), in lower case without punctuation.
    words: Vec<String>,
}

/// Fields that hold the error, or more of it.
const WITHIN: [&str; 17] = [
    "choices",
    "error",
    "errors",
    "err",
    "Error",
    "ERROR",
    "detail",
    "details",
    "fault",
    "exception",
    "base_resp",
    "ResponseMetadata",
    "response",
    "header",
    "metadata",
    "headers",
    "body",
];
const STATUSES: [&str; 11] = [
    "status_code",
    "statusCode",
    "http_status",
    "httpStatus",
    "http_code",
    "httpCode",
    "HttpCode",
    "code",
    "Code",
    "status",
    "error_code",
];
const KINDS: [&str; 12] = [
    "type",
    "error_type",
    "errorType",
    "__type",
    "code",
    "Code",
    "error_code",
    "errorCode",
    "errcode",
    "status",
    "reason",
    "name",
];
const MESSAGES: [&str; 17] = [
    "message",
    "Message",
    "msg",
    "error_msg",
    "error_message",
    "errorMessage",
    "err_msg",
    "errmsg",
    "status_msg",
    "faultstring",
    "detail",
    "details",
    "error",
    "description",
    "title",
    "exception",
    "errors",
];

impl Complaint {
    /// Reads the body of an error, or an answer or event that is one.
    pub fn read(json: &[u8]) -> Self {
        let value = if json.len() > LARGEST { None } else { value(json) };
        match value {
            Some(value) => Self::of(&value),
            None => Self::default(),
        }
    }

    /// What is told by an event that is an error, whatever it holds: JSON, or a text.
    pub fn told(data: &[u8]) -> Self {
        let complaint = Self::read(data);
        if complaint.is_read {
            return complaint;
        }
        let message = String::from_utf8_lossy(&data[..data.len().min(512)]).trim().to_owned();
        let status = words::status_by_sentence(&message.to_lowercase());
        Self { message, status, is_read: true, ..Self::default() }
    }

    fn of(value: &Value) -> Self {
        let mut objects = vec![];
        gather(value, 0, &mut objects);
        // What lies within is more exact than what is around it.
        objects.reverse();
        let all = |names: &'static [&'static str]| {
            let objects = &objects;
            names.iter().flat_map(move |name| objects.iter().filter_map(|o| o.get(*name)))
        };
        let names = objects.iter().flat_map(|object| object.keys());
        let exceptions = names.filter(|name| is_exception(name)).map(|name| words::plain(name));
        let words: Vec<String> = all(&KINDS)
            .filter_map(|value| match value {
                Value::String(text) => Some(words::plain(text)),
                _ => None,
            })
            .chain(exceptions)
            .filter(|word| !word.is_empty())
            .collect();
        let alone = match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        };
        let texts = all(&MESSAGES).filter_map(text);
        let message =
            texts.chain(alone).find(|text| !text.trim().is_empty()).unwrap_or_default().to_owned();
        let sentence = message.to_lowercase();
        let status = all(&STATUSES)
            .find_map(http_status)
            .or_else(|| objects.iter().find_map(|o| words::status_of_own_number(o)))
            .or_else(|| words::status_by_word(&words))
            .or_else(|| words::status_by_sentence(&sentence));
        Self {
            status,
            param: all(&["param"]).find_map(Value::as_str).map(str::to_owned),
            retry_after: retry_after(&objects).or_else(|| words::wait(&sentence)),
            is_read: !message.is_empty() || !words.is_empty() || status.is_some(),
            message,
            words,
        }
    }

    /// The model is not there any more, or not for us: retired, never deployed, not permitted.
    pub fn is_about_the_model(&self) -> bool {
        let about_another_field = self.param.as_ref().is_some_and(|p| p != "model");
        !about_another_field && words::model_is_gone(&self.words, &self.message.to_lowercase())
    }

    /// What the request refers to is not there: a response, a conversation, a file.
    pub fn is_about_a_reference(&self) -> bool {
        words::reference_is_gone(&self.words, &self.message.to_lowercase())
    }

    /// A word for programs says more than that something was not found: a server that does
    /// not know the path has none.
    pub fn has_a_word_of_its_own(&self) -> bool {
        const PLAIN: [&str; 12] = [
            "404",
            "error",
            "notfound",
            "notfounderror",
            "resourcenotfound",
            "invalidrequesterror",
            "badrequesterror",
            "servererror",
            "internalservererror",
            "apierror",
            "invalidurl",
            "unknownurl",
        ];
        self.words.iter().any(|word| !PLAIN.contains(&word.as_str()))
    }

    /// A model of which something is asked that it can not do.
    pub fn is_about_an_ability(&self) -> bool {
        let sentence = self.message.to_lowercase();
        ["that support ", "not support ", "that can handle"].iter().any(|s| sentence.contains(s))
    }

    /// Somebody may not do this, or may not use that.
    pub fn is_about_permission(&self) -> bool {
        words::permission_is_missing(&self.words, &self.message.to_lowercase())
    }

    /// What was said is refused, whoever would say it.
    pub fn is_about_content(&self) -> bool {
        words::content_is_refused(&self.words, &self.message.to_lowercase())
    }

    /// The version of the interface that the backend's address names is too old for the model, or
    /// unknown: Azure tells so with status 400.
    pub fn is_about_the_version(&self) -> bool {
        const SAID: [&str; 3] =
            ["api version not supported", "api version is not supported", "only for api versions"];
        let sentence = self.message.to_lowercase();
        SAID.iter().any(|said| sentence.contains(said))
            || self.words.iter().any(|word| word == "unsupportedapiversion")
    }

    /// The model is not there yet.
    pub fn is_about_loading(&self) -> bool {
        const SAID: [&str; 4] =
            ["loading model", "is loading", "currently loading", "being loaded"];
        const ENDED: [&str; 2] = ["failed", "error loading"];
        let sentence = self.message.to_lowercase();
        let has = |parts: &[&str]| parts.iter().any(|part| sentence.contains(part));
        sentence.contains("model") && has(&SAID) && !has(&ENDED)
    }

    /// Whether it speaks of the account or the key that was sent: Anthropic and OpenAI tell of an
    /// account without money, and Gemini of a wrong key, with status 400.
    pub fn is_about_the_account(&self) -> bool {
        const SAID: [&str; 6] = [
            "credit balance is too low",
            "billing hard limit",
            "billing_hard_limit",
            "api key not valid",
            "api key expired",
            "insufficient credits",
        ];
        let sentence = self.message.to_lowercase();
        SAID.iter().any(|said| sentence.contains(said)) && !self.is_about_content()
    }
}

/// A text, or the first of a list.
fn text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.as_array()?.first()?.as_str())
}

fn value(json: &[u8]) -> Option<Value> {
    let json = mend::trimmed(json);
    let mended = || serde_json::from_slice(&mend::mend(json)?.json).ok();
    serde_json::from_slice(json).ok().or_else(mended)
}

/// Whether a field of this name holds an error, as in the streams of Bedrock.
fn is_exception(name: &str) -> bool {
    name.ends_with("Exception")
}

/// The object and those within it, from the outside in.
fn gather<'a>(value: &'a Value, depth: usize, out: &mut Vec<&'a Map<String, Value>>) {
    match value {
        Value::Object(object) if depth < DEEPEST => {
            out.push(object);
            for name in WITHIN {
                if let Some(inner) = object.get(name) {
                    gather(inner, depth + 1, out);
                }
            }
            for (_, inner) in object.iter().filter(|(name, _)| is_exception(name)) {
                gather(inner, depth + 1, out);
            }
        }
        Value::Array(list) if depth < DEEPEST => {
            for one in list.iter().take(4) {
                gather(one, depth + 1, out);
            }
        }
        _ => {}
    }
}

/// A number, or a text of digits, that is the status of an error.
fn http_status(value: &Value) -> Option<u16> {
    let number = match value {
        Value::Number(number) => number.as_f64().filter(|n| n.fract() == 0.0)? as u16,
        Value::String(text) => {
            let digits = text.trim();
            digits.parse().ok().filter(|_| digits.len() == 3)?
        }
        _ => return None,
    };
    (400..600).contains(&number).then_some(number)
}

fn retry_after(objects: &[&Map<String, Value>]) -> Option<Duration> {
    const SECONDS: [&str; 7] = [
        "retry_after",
        "retryAfter",
        "retry_after_seconds",
        "retry-after",
        "Retry-After",
        "retryAfterSeconds",
        "estimated_time",
    ];
    const MILLIS: [&str; 3] = ["retry_after_ms", "retryAfterMs", "retry-after-ms"];
    let number = |value: &Value| match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().trim_end_matches('s').parse().ok(),
        _ => None,
    };
    let find = |names: &[&str], unit: f64| {
        let found = |o: &&Map<String, Value>| names.iter().find_map(|name| number(o.get(*name)?));
        let seconds = objects.iter().find_map(found)? * unit;
        Duration::try_from_secs_f64(seconds).ok()
    };
    find(&MILLIS, 1e-3).or_else(|| find(&SECONDS, 1.0)).or_else(|| find(&["retryDelay"], 1.0))
}

#[cfg(test)]
mod tests;
