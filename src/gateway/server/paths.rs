//! What a path asks for: OpenAI's paths, and what Azure's clients make of them.
//!
//! Azure's clients call `/openai/deployments/NAME/chat/completions`, where the name, and
//! not `model` in the body, says what answers; for the rest, and with its API without
//! versions, they only put `/openai` in front. Their `api-version` says nothing here.

use crate::openai::Operation;

/// The operation, and the route if the path names it.
pub(super) fn operation(path: &str) -> Option<(Operation, Option<String>)> {
    let (deployment, path) = match path.strip_prefix("/openai/deployments/") {
        Some(rest) => {
            let (name, _) = rest.split_once('/').filter(|(name, _)| !name.is_empty())?;
            (Some(decoded(name)), &rest[name.len()..])
        }
        None => (None, below(path)?),
    };
    let operation = Operation::ALL.into_iter().find(|operation| operation.path() == path)?;
    Some((operation, deployment))
}

/// Whether the path is that of the models, or of one and which.
pub(super) fn model(path: &str) -> Option<Option<String>> {
    match below(path)?.strip_prefix("/models")? {
        "" => Some(None),
        rest => rest.strip_prefix('/').map(|name| Some(decoded(name))),
    }
}

/// The path below the version.
fn below(path: &str) -> Option<&str> {
    ["/v1", "/openai/v1", "/openai"]
        .iter()
        .find_map(|base| path.strip_prefix(base).filter(|rest| rest.starts_with('/')))
}

/// Of what a route may be called, clients encode the slash alone.
fn decoded(name: &str) -> String {
    name.replace("%2F", "/").replace("%2f", "/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_openai_and_of_azure_ask_for_the_same() {
        let chat = |name: Option<&str>| Some((Operation::Chat, name.map(str::to_owned)));
        for path in ["/v1/chat/completions", "/openai/v1/chat/completions"] {
            assert_eq!(operation(path), chat(None), "{path}");
        }
        assert_eq!(operation("/openai/deployments/a/chat/completions"), chat(Some("a")));
        assert_eq!(operation("/openai/deployments/a%2Fb/chat/completions"), chat(Some("a/b")));
        assert_eq!(operation("/openai/responses"), Some((Operation::Responses, None)));
        for path in [
            "/v1",
            "/v1/",
            "/v1/chat",
            "/v1chat/completions",
            "/chat/completions",
            "/openai/deployments//chat/completions",
            "/openai/deployments/a",
            "/v1/chat/completions/",
            "/openai/deployments/a/models",
        ] {
            assert_eq!(operation(path), None, "{path}");
        }
    }

    #[test]
    fn models_are_listed_or_named() {
        for path in ["/v1/models", "/openai/v1/models", "/openai/models"] {
            assert_eq!(model(path), Some(None), "{path}");
        }
        assert_eq!(model("/v1/models/team%2Fchat"), Some(Some("team/chat".to_owned())));
        assert_eq!(model("/v1/models/team/chat"), Some(Some("team/chat".to_owned())));
        assert_eq!((model("/v1/modelsx"), model("/models")), (None, None));
    }
}
