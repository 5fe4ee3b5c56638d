//! Why an answer ended, in the words of every server: what they mean.

/// What a reason means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The model said what it had to say, or calls a tool.
    Good,
    /// A limit on tokens cut it off.
    Length,
    /// A filter stopped it, or the model refused.
    Safety,
    /// The server gave up: aborted, out of time, cut from the network.
    Failed,
    /// What the model wrote to call a tool is no call.
    MalformedCall,
    /// A word that Serinus does not know.
    Unknown,
}

/// Of servers with an API of OpenAI's shape, and of those behind proxies that hand their
/// own words on; without prefixes, case and punctuation.
const WORDS: [(Ending, &[&str]); 5] = [
    (
        Ending::Good,
        &[
            "stop",
            "stopped",
            "stopsequence",
            "stopsequences",
            "stopstring",
            "stopstrings",
            "stoptoken",
            "stopword",
            "stopwords",
            "stopcriteria",
            "eos",
            "eostoken",
            "eosfound",
            "eot",
            "eottoken",
            "endid",
            "endoftext",
            "endofturn",
            "endofsequence",
            "endturn",
            "turnend",
            "complete",
            "completed",
            "completion",
            "finish",
            "finished",
            "end",
            "ended",
            "done",
            "normal",
            "natural",
            "success",
            "succeeded",
            "toolcall",
            "toolcalls",
            "tooluse",
            "functioncall",
            "functioncalls",
            "functioncalling",
            "pauseturn",
            "matchedstop",
            "answer",
        ],
    ),
    (
        Ending::Length,
        &[
            "length",
            "lengthlimit",
            "limit",
            "maxlength",
            "maxlen",
            "maxtoken",
            "maxtokens",
            "maxtokensreached",
            "maxtokenlimit",
            "maxnewtokens",
            "maxoutputtoken",
            "maxoutputtokens",
            "maxoutputreached",
            "maxcompletiontokens",
            "maxgeneratedtokens",
            "tokenlimit",
            "tokenslimit",
            "tokenlimitreached",
            "outputlimit",
            "outputlength",
            "modellength",
            "maxmodellength",
            "maxmodellen",
            "contextlength",
            "contextlengthexceeded",
            "contextlimit",
            "context",
            "contextwindow",
            "contextwindowexceeded",
            "modelcontextwindowexceeded",
            "contextsizeexceeded",
            "errorlimit",
            "exceedlength",
            "truncated",
            "lengthcapped",
            "maxcontext",
            "maxcontextlength",
            "maxseqlen",
            "maxsequencelength",
        ],
    ),
    (
        Ending::Safety,
        &[
            "contentfilter",
            "contentfiltered",
            "contentfiltering",
            "contentpolicy",
            "contentpolicyviolation",
            "contentblocked",
            "contentmoderation",
            "contentrisk",
            "filter",
            "filtered",
            "safety",
            "unsafe",
            "safetyfilter",
            "safetyblocked",
            "moderation",
            "moderated",
            "flagged",
            "prohibited",
            "prohibitedcontent",
            "blocked",
            "blocklist",
            "recitation",
            "copyright",
            "spii",
            "pii",
            "sensitive",
            "sensitiveinfo",
            "sensitivecontent",
            "refusal",
            "refuse",
            "refused",
            "guardrail",
            "guardrails",
            "guardrailintervened",
            "guardrailsintervened",
            "guardrailblocked",
            "errortoxic",
            "toxic",
            "toxicity",
            "imagesafety",
            "imageprohibitedcontent",
            "imagerecitation",
            "modelarmor",
            "jailbreak",
            "datainspectionfailed",
            "policyviolation",
            "violation",
            "risk",
        ],
    ),
    (
        Ending::Failed,
        &[
            "abort",
            "aborted",
            "cancel",
            "canceled",
            "cancelled",
            "cancellation",
            "usercancel",
            "clientcancel",
            "clientdisconnect",
            "clientdisconnected",
            "disconnect",
            "disconnected",
            "interrupt",
            "interrupted",
            "preempted",
            "evicted",
            "timeout",
            "timedout",
            "timelimit",
            "maxtime",
            "deadline",
            "deadlineexceeded",
            "error",
            "errored",
            "err",
            "fail",
            "failed",
            "failure",
            "fault",
            "exception",
            "crash",
            "crashed",
            "internalerror",
            "internalservererror",
            "servererror",
            "networkerror",
            "upstreamerror",
            "providererror",
            "modelerror",
            "engineerror",
            "streamerror",
            "streaminterrupted",
            "connectionerror",
            "network",
            "resource",
            "resources",
            "resourceexhausted",
            "insufficientresources",
            "insufficientsystemresource",
            "insufficientsystemresources",
            "outofmemory",
            "oom",
            "overload",
            "overloaded",
            "unavailable",
            "serviceunavailable",
            "ratelimit",
            "ratelimited",
            "notfinished",
            "unfinished",
            "unexpectedtoolcall",
            "toomanytoolcalls",
            "missingthoughtsignature",
            "malformedresponse",
            "malformedmodeloutput",
            "language",
            "noimage",
            "imageother",
            "load",
            "unload",
            "repetition",
            "repetitiondetected",
        ],
    ),
    (
        Ending::MalformedCall,
        &[
            "malformedfunctioncall",
            "malformedfunctioncalls",
            "malformedtoolcall",
            "malformedtoolcalls",
            "malformedtooluse",
            "invalidtoolcall",
            "invalidfunctioncall",
        ],
    ),
];

impl Ending {
    /// What a server means by this word.
    pub fn of(reason: &str) -> Self {
        let word = plain(reason);
        let word = ["finishreason", "stopreason", "endreason", "reason"]
            .iter()
            .find_map(|prefix| word.strip_prefix(prefix).filter(|rest| !rest.is_empty()))
            .unwrap_or(&word);
        WORDS
            .iter()
            .find(|(_, words)| words.contains(&word))
            .map_or(Self::Unknown, |(ending, _)| *ending)
    }
}

/// Whether a server says by it that there is no reason yet.
pub(super) fn is_none(reason: &str) -> bool {
    matches!(plain(reason).as_str(), "" | "null" | "none" | "nil" | "undefined")
}

/// Whether a word, as the type of an object, means that something failed: what it ends with says
/// so, as in `InternalServerError`, or the code of gRPC that it is.
pub(super) fn means_a_failure(word: &str) -> bool {
    const ENDS: [&str; 14] = [
        "error",
        "exception",
        "failed",
        "failure",
        "fault",
        "timeout",
        "unavailable",
        "exceeded",
        "exhausted",
        "overloaded",
        "aborted",
        "abort",
        "denied",
        "internal",
    ];
    let word = plain(word);
    ENDS.iter().any(|end| word.ends_with(end))
}

/// Letters and digits, in lower case.
pub(super) fn plain(word: &str) -> String {
    word.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_servers_mean_what_they_document() {
        for (ending, words) in [
            (
                Ending::Good,
                "stop STOP eos eos_token end_turn stop_sequence tool_calls tool_use TOOL_CALL \
                 function_call COMPLETE FINISH_REASON_STOP normal pause_turn end-turn Stop",
            ),
            (
                Ending::Length,
                "length max_tokens MAX_TOKENS max_output_tokens model_length ERROR_LIMIT \
                 max_completion_tokens token_limit model_context_window_exceeded \
                 FINISH_REASON_MAX_TOKENS Max-Tokens MaxTokens",
            ),
            (
                Ending::Safety,
                "content_filter content_filtered safety SAFETY PROHIBITED_CONTENT RECITATION \
                 BLOCKLIST SPII sensitive refusal guardrail_intervened ERROR_TOXIC IMAGE_SAFETY \
                 MODEL_ARMOR content-filter",
            ),
            (
                Ending::Failed,
                "abort network_error error ERROR timeout cancelled USER_CANCEL time_limit \
                 insufficient_system_resource UNEXPECTED_TOOL_CALL malformed_model_output \
                 not_finished",
            ),
            (Ending::MalformedCall, "MALFORMED_FUNCTION_CALL malformed_tool_use"),
            (Ending::Unknown, "OTHER FINISH_REASON_UNSPECIFIED unknown banana 1"),
        ] {
            for word in words.split_whitespace() {
                assert_eq!(Ending::of(word), ending, "{word}");
            }
        }
        assert_eq!(Ending::of("max tokens"), Ending::Length);
        assert_eq!(Ending::of("FinishReason.SAFETY"), Ending::Safety);
    }

    #[test]
    fn no_word_means_two_things_and_all_are_plain() {
        let all: Vec<&str> = WORDS.iter().flat_map(|(_, words)| *words).copied().collect();
        for (at, word) in all.iter().enumerate() {
            assert!(!all[..at].contains(word), "{word}");
            assert_eq!(plain(word), *word);
        }
    }

    #[test]
    fn words_that_mean_a_failure_are_told_from_those_of_progress() {
        for word in "InternalServerError server_error ThrottlingException UNAVAILABLE INTERNAL \
                     rate_limit_exceeded RESOURCE_EXHAUSTED DEADLINE_EXCEEDED failed ABORTED"
            .split_whitespace()
        {
            assert!(means_a_failure(word), "{word}");
        }
        for word in ["status", "progress", "queued", "running", "ok", "error_free", "warning", ""] {
            assert!(!means_a_failure(word), "{word}");
        }
    }

    #[test]
    fn no_reason_yet_has_several_spellings() {
        assert!(["", " ", "null", "None"].iter().all(|word| is_none(word)));
        assert!(!is_none("stop"));
    }
}
