//! What attributes are called, by whom: the one table of names.
//!
//! A fact of a request has several names, because who reads spans do not agree. `gen_ai`
//! are OpenTelemetry's conventions for generative AI (still in development; as of the
//! registry of 2026 in its own repository). The others are added for readers that look for
//! names of their own: `openinference` for Arize Phoenix, `langfuse` and `mlflow` for what
//! those read beside the conventions (prompt linkage, cost). Facts that only Serinus
//! knows are `serinus.*` and always there.

use std::str::FromStr;

/// Who understands a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// Everybody: Serinus' own names and the stable ones of OpenTelemetry.
    Always,
    /// OpenTelemetry's conventions for generative AI.
    GenAi,
    /// OpenInference, as Arize Phoenix reads it.
    OpenInference,
    /// Langfuse.
    Langfuse,
    /// MLflow.
    Mlflow,
}

impl FromStr for Set {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "gen_ai" => Ok(Self::GenAi),
            "openinference" => Ok(Self::OpenInference),
            "langfuse" => Ok(Self::Langfuse),
            "mlflow" => Ok(Self::Mlflow),
            other => Err(format!(
                "there are no names {other}: choose among gen_ai, openinference, langfuse and mlflow"
            )),
        }
    }
}

/// What is known of a request, in the form in which it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fact {
    RequestId,
    Release,
    Route,
    Revision,
    Role,
    Reason,
    Generation,
    Prompt,
    PromptVersion,
    /// The number at the end of the PromptVersion's name.
    PromptNumber,
    Backend,
    Provider,
    Team,
    Caller,
    Outcome,
    Check,
    Cached,
    Cost,
    /// `{"total": …}` as JSON.
    CostJson,
    /// `total_cost` in a map.
    CostMap,
    Operation,
    /// OpenInference's word for it.
    OpenInferenceKind,
    /// Langfuse's word for it.
    LangfuseKind,
    Model,
    /// The model that has answered, or else the one that was asked.
    AnyModel,
    /// Only of requests that are no embeddings.
    ChatModel,
    /// Only of embeddings.
    EmbeddingModel,
    ServedModel,
    ResponseId,
    FinishReason,
    /// In a list of one.
    FinishReasons,
    Streamed,
    FirstToken,
    /// The instant, as JSON.
    FirstTokenAt,
    PerOutputToken,
    ServerAddress,
    ServerPort,
    Status,
    Error,
    InputTokens,
    OutputTokens,
    TotalTokens,
    CachedTokens,
    CacheWriteTokens,
    ReasoningTokens,
    /// Counts as JSON.
    UsageJson,
    Input,
    Output,
    InputMime,
    OutputMime,
    InputMessages,
    OutputMessages,
    /// One attribute for each field of each message; the name is the prefix.
    InputFlat,
    /// As `InputFlat`.
    OutputFlat,
    User,
    Conversation,
}

use self::{
    Fact as F,
    Set::{Always, GenAi, Langfuse, Mlflow, OpenInference},
};

/// Fact, who understands the name, name.
const NAMES: &[(Fact, Set, &str)] = &[
    // What only Serinus knows.
    (F::RequestId, Always, "serinus.request.id"),
    (F::Release, Always, "serinus.release"),
    (F::Route, Always, "serinus.route"),
    (F::Revision, Always, "serinus.revision"),
    (F::Role, Always, "serinus.role"),
    (F::Reason, Always, "serinus.assignment.reason"),
    (F::Generation, Always, "serinus.routing.generation"),
    (F::Prompt, Always, "serinus.prompt.name"),
    (F::PromptVersion, Always, "serinus.prompt.version"),
    (F::Backend, Always, "serinus.backend"),
    (F::Team, Always, "serinus.team"),
    (F::Caller, Always, "serinus.caller"),
    (F::Outcome, Always, "serinus.outcome"),
    (F::Check, Always, "serinus.check"),
    (F::Cached, Always, "serinus.cache.hit"),
    (F::Cost, Always, "serinus.cost_usd"),
    (F::PerOutputToken, Always, "serinus.time_per_output_token"),
    // Stable names of OpenTelemetry.
    (F::ServerAddress, Always, "server.address"),
    (F::ServerPort, Always, "server.port"),
    (F::Status, Always, "http.response.status_code"),
    (F::Error, Always, "error.type"),
    // Who uses the application: only with content.
    (F::User, Always, "user.id"),
    (F::Conversation, Always, "session.id"),
    // OpenTelemetry's conventions for generative AI.
    (F::Operation, GenAi, "gen_ai.operation.name"),
    (F::Provider, GenAi, "gen_ai.provider.name"),
    (F::Model, GenAi, "gen_ai.request.model"),
    (F::Streamed, GenAi, "gen_ai.request.stream"),
    (F::Prompt, GenAi, PROMPT_NAME),
    (F::PromptVersion, GenAi, PROMPT_VERSION),
    (F::ServedModel, GenAi, "gen_ai.response.model"),
    (F::ResponseId, GenAi, "gen_ai.response.id"),
    (F::FinishReasons, GenAi, "gen_ai.response.finish_reasons"),
    (F::FirstToken, GenAi, "gen_ai.response.time_to_first_chunk"),
    (F::InputTokens, GenAi, "gen_ai.usage.input_tokens"),
    (F::OutputTokens, GenAi, "gen_ai.usage.output_tokens"),
    (F::CachedTokens, GenAi, "gen_ai.usage.cache_read.input_tokens"),
    (F::CacheWriteTokens, GenAi, "gen_ai.usage.cache_write.input_tokens"),
    // Its name until 2026, which most readers still look for.
    (F::CacheWriteTokens, GenAi, "gen_ai.usage.cache_creation.input_tokens"),
    (F::ReasoningTokens, GenAi, "gen_ai.usage.reasoning.output_tokens"),
    (F::InputMessages, GenAi, "gen_ai.input.messages"),
    (F::OutputMessages, GenAi, "gen_ai.output.messages"),
    (F::Conversation, GenAi, "gen_ai.conversation.id"),
    // OpenInference.
    (F::OpenInferenceKind, OpenInference, "openinference.span.kind"),
    (F::ChatModel, OpenInference, "llm.model_name"),
    (F::EmbeddingModel, OpenInference, "embedding.model_name"),
    (F::Provider, OpenInference, "llm.provider"),
    (F::PromptVersion, OpenInference, "llm.prompt_template.version"),
    (F::FinishReason, OpenInference, "llm.finish_reason"),
    (F::InputTokens, OpenInference, "llm.token_count.prompt"),
    (F::OutputTokens, OpenInference, "llm.token_count.completion"),
    (F::TotalTokens, OpenInference, "llm.token_count.total"),
    (F::CachedTokens, OpenInference, "llm.token_count.prompt_details.cache_read"),
    (F::CacheWriteTokens, OpenInference, "llm.token_count.prompt_details.cache_write"),
    (F::ReasoningTokens, OpenInference, "llm.token_count.completion_details.reasoning"),
    (F::Cost, OpenInference, "llm.cost.total"),
    (F::Input, OpenInference, "input.value"),
    (F::InputMime, OpenInference, "input.mime_type"),
    (F::Output, OpenInference, "output.value"),
    (F::OutputMime, OpenInference, "output.mime_type"),
    (F::InputFlat, OpenInference, "llm.input_messages"),
    (F::OutputFlat, OpenInference, "llm.output_messages"),
    // Langfuse.
    (F::LangfuseKind, Langfuse, "langfuse.observation.type"),
    (F::AnyModel, Langfuse, "langfuse.observation.model.name"),
    (F::Prompt, Langfuse, "langfuse.observation.prompt.name"),
    (F::PromptNumber, Langfuse, "langfuse.observation.prompt.version"),
    (F::UsageJson, Langfuse, "langfuse.observation.usage_details"),
    (F::CostJson, Langfuse, "langfuse.observation.cost_details"),
    (F::FirstTokenAt, Langfuse, "langfuse.observation.completion_start_time"),
    (F::Revision, Langfuse, "langfuse.version"),
    (F::Input, Langfuse, "langfuse.observation.input"),
    (F::Output, Langfuse, "langfuse.observation.output"),
    // MLflow: its cost beside OpenTelemetry's names, and tags that its search finds.
    (F::CostMap, Mlflow, "mlflow.llm.cost"),
    (F::Release, Mlflow, "mlflow.traceTag.serinus.release"),
    (F::Revision, Mlflow, "mlflow.traceTag.serinus.revision"),
    (F::PromptVersion, Mlflow, "mlflow.traceTag.serinus.prompt.version"),
];

const PROMPT_NAME: &str = "gen_ai.prompt.name";
const PROMPT_VERSION: &str = "gen_ai.prompt.version";

/// The names that a process uses.
#[derive(Clone, Debug)]
pub(super) struct Names(Vec<(Fact, &'static str)>);

impl Names {
    pub(super) fn new(sets: &[Set]) -> Self {
        // Langfuse takes whatever begins with `gen_ai.prompt` for the input (an older
        // convention of others), and shows it in the place of the messages.
        let misread =
            |name: &str| sets.contains(&Langfuse) && [PROMPT_NAME, PROMPT_VERSION].contains(&name);
        let rows = NAMES
            .iter()
            .filter(|(_, set, name)| *set == Always || (sets.contains(set) && !misread(name)));
        Self(rows.map(|(fact, _, name)| (*fact, *name)).collect())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Fact, &'static str)> {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_name_is_given_twice() {
        let names: HashSet<&str> = NAMES.iter().map(|(_, _, name)| *name).collect();
        assert_eq!(names.len(), NAMES.len());
    }

    #[test]
    fn sets_add_to_what_is_always_told() {
        let names = |sets: &[Set]| -> Vec<&str> { Names::new(sets).iter().map(|n| n.1).collect() };
        assert!(names(&[]).iter().all(|n| !n.starts_with("gen_ai.") && !n.starts_with("llm.")));
        assert!(names(&[]).contains(&"serinus.revision"));
        let both = names(&[GenAi, OpenInference]);
        assert!(both.contains(&"gen_ai.prompt.version") && both.contains(&"llm.model_name"));
        let langfuse = names(&[GenAi, Langfuse]);
        assert!(!langfuse.iter().any(|n| n.starts_with("gen_ai.prompt")));
        assert!(langfuse.contains(&"langfuse.observation.prompt.name"));
    }

    #[test]
    fn the_words_of_the_option_are_checked() {
        assert_eq!("mlflow".parse(), Ok(Mlflow));
        assert!("otel".parse::<Set>().unwrap_err().contains("choose among"));
    }
}
