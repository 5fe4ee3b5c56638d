//! The words and numbers by which servers say what went wrong.

use std::time::Duration;

use serde_json::{Map, Value};

pub(super) use crate::openai::reason::plain;

/// A status by parts of the words for programs, the first that fits.
const BY_WORD: [(u16, &[&str]); 13] = [
    (
        400,
        &[
            "contextlength",
            "contextwindow",
            "contextsize",
            "maxtokens",
            "tokenlimitexceeded",
            "toomanytokens",
            "prompttoolong",
            "stringtoolong",
            "stringabovemaxlength",
            "inputtoolong",
            "contentfilter",
            "contentpolicy",
            "responsibleai",
            "datainspection",
            "moderation",
        ],
    ),
    (402, &["insufficientbalance", "insufficientcredits", "paymentrequired", "arrearage"]),
    (
        429,
        &[
            "ratelimit",
            "ratequota",
            "toomanyrequests",
            "throttl",
            "quota",
            "resourceexhausted",
            "requestlimit",
            "limitrequests",
            "limitburst",
            "limitexceeded",
            "concurrencylimit",
            "engineoverloaded",
        ],
    ),
    (
        503,
        &[
            "overload",
            "unavailable",
            "capacity",
            "serverbusy",
            "systembusy",
            "modelbusy",
            "modelnotready",
            "modelloading",
            "notready",
        ],
    ),
    (504, &["timeout", "timedout", "deadlineexceeded"]),
    (
        401,
        &[
            "authentication",
            "unauthorized",
            "unauthenticated",
            "invalidapikey",
            "incorrectapikey",
            "invalidtoken",
            "missingtoken",
        ],
    ),
    (403, &["permission", "forbidden", "accessdenied", "notallowed", "modelnotopen"]),
    (404, &["notfound", "notexist", "doesnotexist", "unknownmodel", "unknownurl"]),
    (410, &["decommissioned", "deprecated", "retired", "gone"]),
    (413, &["toolarge"]),
    (422, &["unprocessable", "validation"]),
    (
        400,
        &[
            "invalidrequest",
            "badrequest",
            "invalidargument",
            "invalidparam",
            "invalidvalue",
            "invalidtype",
            "invalidprompt",
            "invalidinput",
            "invalidmodel",
            "invalidimage",
            "invalidformat",
            "invalidschema",
            "failedprecondition",
            "outofrange",
            "missingrequired",
            "missingparameter",
            "unsupported",
            "parametererror",
        ],
    ),
    (500, &["internal", "servererror", "apierror", "unknownerror"]),
];

pub(super) fn status_by_word(words: &[String]) -> Option<u16> {
    let has = |parts: &[&str]| words.iter().any(|w| parts.iter().any(|part| w.contains(part)));
    BY_WORD.iter().find(|(_, parts)| has(parts)).map(|(status, _)| *status)
}

/// A status by what is said to people, where nothing is said to programs. Only what can
/// mean nothing else.
pub(super) fn status_by_sentence(sentence: &str) -> Option<u16> {
    const BY_SENTENCE: [(u16, &[&str]); 4] = [
        (
            400,
            &[
                "maximum context length",
                "context length exceeded",
                "exceeds the context",
                "exceed context size",
                "exceeds context size",
                "exceeds the available context",
                "context window",
                "maximum allowed input length",
                "is too long",
            ],
        ),
        (429, &["rate limit", "too many requests", "quota exceeded", "requests per minute"]),
        (
            503,
            &["overloaded", "is currently loading", "temporarily unavailable", "try again later"],
        ),
        (504, &["timed out", "timeout"]),
    ];
    let has = |parts: &[&str]| parts.iter().any(|part| sentence.contains(part));
    BY_SENTENCE.iter().find(|(_, parts)| has(parts)).map(|(status, _)| *status)
}

/// A field, and which status its numbers from one to another stand for.
type Numbers = (&'static str, &'static [(u64, u64, u16)]);

/// Numbers that are no status of HTTP.
const OWN_NUMBERS: [Numbers; 3] = [
    // MiniMax, and Baidu's Qianfan: their error codes.
    (
        "status_code",
        &[
            (1000, 1000, 500),
            (1001, 1001, 504),
            (1002, 1002, 429),
            (1004, 1004, 401),
            (1008, 1008, 402),
            (1013, 1013, 500),
            (1024, 1024, 500),
            (1026, 1027, 400),
            (1033, 1033, 502),
            (1039, 1041, 429),
            (1042, 1043, 400),
            (2013, 2013, 400),
            (2045, 2045, 429),
            (2049, 2049, 401),
            (2056, 2056, 429),
            (2061, 2061, 403),
        ],
    ),
    (
        "error_code",
        &[
            (1, 1, 500),
            (2, 2, 503),
            (3, 3, 404),
            (4, 4, 429),
            (6, 6, 403),
            (17, 19, 429),
            (100, 100, 400),
            (110, 111, 401),
            (336_000, 336_000, 500),
            (336_001, 336_003, 400),
            (336_004, 336_004, 401),
            (336_005, 336_005, 500),
            (336_006, 336_008, 400),
            (336_100, 336_100, 503),
            (336_103, 336_122, 400),
            (336_200, 336_200, 500),
            (336_501, 336_507, 429),
        ],
    ),
    // Zhipu (four digits) and iFlytek (five).
    (
        "code",
        &[
            (1000, 1004, 401),
            (1110, 1112, 401),
            (1113, 1113, 402),
            (1121, 1121, 403),
            (1200, 1210, 400),
            (1211, 1211, 404),
            (1212, 1215, 400),
            (1220, 1220, 403),
            (1221, 1222, 404),
            (1230, 1230, 500),
            (1231, 1231, 400),
            (1234, 1234, 502),
            (1261, 1261, 400),
            (1300, 1301, 400),
            (1302, 1305, 429),
            (1308, 1312, 429),
            (10_007, 10_007, 429),
            (10_012, 10_012, 500),
            (10_013, 10_014, 400),
            (10_019, 10_019, 400),
            (10_110, 10_110, 503),
            (10_163, 10_163, 400),
            (10_222, 10_222, 502),
            (10_907, 10_907, 400),
            (11_200, 11_200, 401),
            (11_201, 11_203, 429),
        ],
    ),
];

pub(super) fn status_of_own_number(object: &Map<String, Value>) -> Option<u16> {
    OWN_NUMBERS.iter().find_map(|(name, numbers)| {
        let number = match object.get(*name)? {
            Value::Number(number) => number.as_u64()?,
            Value::String(text) => text.trim().parse().ok()?,
            _ => return None,
        };
        let found = numbers.iter().find(|(from, to, _)| (*from..=*to).contains(&number));
        found.map(|(.., status)| *status)
    })
}

const MODEL_IS_GONE: [&str; 22] = [
    "modelnotfound",
    "modelnotexist",
    "modeldoesnotexist",
    "modelnotavailable",
    "modelnotallowed",
    "modelnotopen",
    "modelnotsupported",
    "modelnotactive",
    "modeldecommissioned",
    "modeldeprecated",
    "modelretired",
    "modelaccessdenied",
    "modelpermission",
    "deprecatedmodel",
    "unknownmodel",
    "unavailablemodel",
    "invalidmodelerror",
    "invalidmodelid",
    "deploymentnotfound",
    "endpointnotfound",
    "invalidendpointormodel",
    "resourcedoesnotexist",
];

/// What may be said of a model that is gone, somewhere behind what names it.
const GONE: [&str; 43] = [
    "does not exist",
    "doesn't exist",
    "do not exist",
    "not exist",
    "not found",
    "could not be found",
    "cannot be found",
    "can not be found",
    "no longer available",
    "no longer supported",
    "no longer served",
    "not available",
    "not supported by provider",
    "not accessible",
    "not enabled",
    "decommissioned",
    "deprecated",
    "discontinued",
    "retired",
    "end of life",
    "end of its life",
    "been removed",
    "was removed",
    "not have access",
    "no access",
    "access denied",
    "not authorized",
    "not allowed",
    "not a valid model",
    "is invalid",
    "not deployed",
    "not a chat model",
    "is not permitted",
    "shut down",
    "was sunset",
    "been sunset",
    "is sunset",
    "is paused",
    "scaled to zero",
    "not loaded",
    "unloaded",
    "throughput isn't supported",
    "throughput isn\u{2019}t supported",
];

/// What is said with the model's name behind it.
const GONE_BEFORE: [&str; 20] = [
    "not allowed to sample from this model",
    "unknown model",
    "invalid model",
    "no such model",
    "not a valid model",
    "model not exist",
    "model not found",
    "not found the model",
    "not have access to model",
    "not have access to the model",
    "unable to access model",
    "unable to access non-serverless model",
    "no endpoints found for",
    "no allowed providers",
    "no models loaded",
    "no model loaded",
    "no models are currently loaded",
    "not have access to this model",
    "not authorized to access model",
    "access to the model",
];

const NAMES: [&str; 6] = ["model", "deployment", "engine", "endpoint", "adapter", "function id"];

pub(super) fn model_is_gone(words: &[String], sentence: &str) -> bool {
    if words.iter().any(|w| w == "invalidmodel" || MODEL_IS_GONE.iter().any(|m| w.contains(m))) {
        return true;
    }
    let is_missing = |w: &String| w.contains("notfound") || w.contains("notexist");
    let speaks_of_it = sentence.contains("model") && !names_another(sentence);
    if speaks_of_it && words.iter().any(is_missing) {
        return true;
    }
    if GONE_BEFORE.iter().any(|said| sentence.contains(said)) {
        return true;
    }
    NAMES.iter().any(|name| {
        sentence.match_indices(name).any(|(at, _)| {
            let said = &sentence[at + name.len()..];
            GONE.iter().any(|gone| {
                said.find(gone).is_some_and(|length| is_about_it(&said[..length], gone))
            })
        })
    })
}

/// Whether what lies between the model's name and what is said still speaks of the model.
fn is_about_it(between: &str, gone: &str) -> bool {
    // "This model's maximum …": of what it has, not of itself.
    let of_its_own = between.starts_with("'s ") || between.starts_with("\u{2019}s ");
    // "With model m, a temperature of 3 …", "This model takes audio; text …".
    let within = between.trim_matches(|c: char| c.is_whitespace() || ":,;".contains(c));
    let goes_on = [", ", "; ", ": "].iter().any(|mark| within.contains(mark));
    let negated = gone == "deprecated" && between.ends_with("not ");
    between.len() <= 160 && !of_its_own && !goes_on && !names_another(between) && !negated
}

/// Whether a sentence about a model complains of something else.
fn names_another(sentence: &str) -> bool {
    const OTHERS: [&str; 16] = [
        "parameter",
        "argument",
        "field",
        "image",
        "file",
        "tool",
        "message",
        "response",
        "input",
        "value",
        "feature",
        "context",
        "turn",
        "role",
        // "… and is therefore not available on this endpoint."
        "therefore",
        "thus",
    ];
    // The names of models have such words as parts: "gpt-image-1".
    let is_part = |c: char| c.is_alphanumeric() || "-_./:".contains(c);
    sentence.split(|c: char| !is_part(c)).any(|word| {
        let word = word.trim_matches(|c: char| "-_./:".contains(c));
        OTHERS
            .iter()
            .any(|other| word.strip_prefix(other).is_some_and(|end| matches!(end, "" | "s")))
    })
}

pub(super) fn reference_is_gone(words: &[String], sentence: &str) -> bool {
    const REFERENCES: [&str; 14] = [
        "response",
        "conversation",
        "file",
        "image",
        "item",
        "vector store",
        "vector_store",
        "vectorstore",
        "tool",
        "prompt with id",
        "cached content",
        "cachedcontent",
        "session",
        "thread",
    ];
    let says = |text: &str| REFERENCES.iter().any(|reference| text.contains(reference));
    says(sentence) || words.iter().any(|word| says(word))
}

pub(super) fn permission_is_missing(words: &[String], sentence: &str) -> bool {
    const WORDS: [&str; 6] = [
        "permission",
        "accessdenied",
        "notallowed",
        "unauthorized",
        "unsupportedcountry",
        "forbidden",
    ];
    const SAID: [&str; 5] =
        ["permission", "not authorized", "access denied", "not have access", "key limit"];
    let has = |text: &str, parts: &[&str]| parts.iter().any(|part| text.contains(part));
    has(sentence, &SAID) || words.iter().any(|word| has(word, &WORDS))
}

pub(super) fn content_is_refused(words: &[String], sentence: &str) -> bool {
    const CONTENT: [&str; 9] = [
        "moderation",
        "flagged",
        "contentfilter",
        "content filter",
        "content policy",
        "contentpolicy",
        "safety",
        "sensitive",
        "usage policies",
    ];
    let says = |text: &str| CONTENT.iter().any(|content| text.contains(content));
    says(sentence) || words.iter().any(|word| says(word))
}

/// The time after which a sentence asks to be asked again: "try again in 1m2.5s", "retry
/// after 6 seconds", "in 20ms".
pub(super) fn wait(sentence: &str) -> Option<Duration> {
    const BEFORE: [&str; 7] = [
        "try again in ",
        "try again after ",
        "retry after ",
        "retry in ",
        "retry your request after ",
        "retry your request in ",
        "wait ",
    ];
    let told = BEFORE.iter().find_map(|before| sentence.split_once(before))?.1;
    let (mut rest, mut seconds) = (told, None::<f64>);
    loop {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let Ok(number) = rest[..digits].trim_end_matches('.').parse::<f64>() else { break };
        let after = rest[digits..].trim_start();
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let unit = match &after[..letters] {
            "ms" | "millisecond" | "milliseconds" => 1e-3,
            "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
            "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
            "h" | "hour" | "hours" => 3600.0,
            _ => break,
        };
        seconds = Some(seconds.unwrap_or(0.0) + number * unit);
        rest = &after[letters..];
    }
    Duration::try_from_secs_f64(seconds?).ok()
}
