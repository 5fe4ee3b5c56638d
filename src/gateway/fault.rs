//! Whose fault it is that a model did not answer: one pure function of the status and of
//! what the model says, whether the status is that of HTTP or was told within a 200.

use crate::openai::complaint::Complaint;

/// The code of a failure because of a model that is gone: in logs, metrics and answers.
pub(super) const MODEL_GONE: &str = "upstream_model_gone";

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The application's: the same request is refused again.
    Application,
    /// This gateway's own key is refused, or wants to be paid for.
    Key,
    /// The model is not there any more, or not for this key.
    ModelGone,
    /// There is nothing at the backend's address that answers such requests.
    NoSuchPath,
    /// The server has too much to do, or is not there for the moment: it has done nothing.
    Busy,
    /// The server failed, and nobody knows how far it got; asking again may help.
    Failed,
    /// The same, where asking again does not help.
    FailedForGood,
}

impl Fault {
    /// Of an answer with this status, which says this.
    pub(super) fn of(status: u16, complaint: &Complaint) -> Self {
        match status {
            410 => Self::ModelGone,
            // 401 is what LiteLLM answers to a key that may use other models.
            _ if matches!(status, 400 | 401 | 403 | 404 | 422)
                && complaint.is_about_the_model() =>
            {
                Self::ModelGone
            }
            400 | 404 if complaint.is_about_the_version() => Self::NoSuchPath,
            400 | 404 | 409 if complaint.is_about_loading() => Self::Busy,
            401 | 402 | 407 => Self::Key,
            400 if complaint.is_about_the_account() => Self::Key,
            403 if is_about_the_key(complaint) => Self::ModelGone,
            // A reference is all of a request that can be missing.
            404 if complaint.is_about_a_reference()
                || complaint.is_about_an_ability()
                || complaint.has_a_word_of_its_own() =>
            {
                Self::Application
            }
            300..400 | 404 | 405 | 501 | 505 => Self::NoSuchPath,
            408 | 499 => Self::FailedForGood,
            425 | 429 => Self::Busy,
            400..500 => Self::Application,
            // Of them 520 to 530 are what proxies tell of servers behind them.
            503 | 521..=523 | 529 | 530 => Self::Busy,
            500 | 502 | 504 | 520 | 524 => Self::Failed,
            _ => Self::FailedForGood,
        }
    }

    /// Whether another attempt may help, and does nothing twice that matters.
    pub(super) fn is_repeatable(self) -> bool {
        matches!(self, Self::Busy | Self::Failed)
    }

    /// Whether the model has done nothing.
    pub(super) fn is_untouched(self) -> bool {
        !matches!(self, Self::Failed | Self::FailedForGood)
    }
}

/// A 403 that speaks of what the key may do, not of what was said.
fn is_about_the_key(complaint: &Complaint) -> bool {
    !complaint.is_about_content() && complaint.is_about_permission()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of bodies as servers send them.
    #[test]
    fn whose_fault_it_is_shows_in_status_and_words() {
        use Fault::{Application, Busy, Failed, FailedForGood, Key, ModelGone, NoSuchPath};
        for (fault, status, body) in [
            (Key, 401, r#"{"error":{"message":"Incorrect API key provided"}}"#),
            (Key, 402, r#"{"error":{"message":"Insufficient Balance"}}"#),
            // Anthropic, OpenAI and Gemini.
            (
                Key,
                400,
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or purchase credits."}}"#,
            ),
            (
                Key,
                400,
                r#"{"error":{"message":"Billing hard limit has been reached","type":"billing_limit_user_error","code":"billing_hard_limit_reached"}}"#,
            ),
            (
                Key,
                400,
                r#"[{"error":{"code":400,"message":"API key not valid. Please pass a valid API key.","status":"INVALID_ARGUMENT"}}]"#,
            ),
            (
                Application,
                400,
                r#"{"error":{"message":"This model's maximum context length is 8192 tokens","code":"context_length_exceeded"}}"#,
            ),
            (
                Application,
                400,
                r#"{"error":{"message":"Unsupported parameter: 'max_tokens' is not supported with this model.","param":"max_tokens","code":"unsupported_parameter"}}"#,
            ),
            (
                Application,
                400,
                r#"{"object":"error","message":"The model is not multimodal.","type":"BadRequestError","code":400}"#,
            ),
            (
                Application,
                400,
                r#"{"error":{"message":"'functions' is deprecated for this model","param":"functions"}}"#,
            ),
            (
                Application,
                422,
                r#"{"detail":[{"loc":["body","n"],"msg":"value is not a valid integer","type":"type_error.integer"}]}"#,
            ),
            (Application, 413, "<html>413 too large</html>"),
            (Application, 404, r#"{"error":{"message":"no such file","code":"file_gone"}}"#),
            (
                NoSuchPath,
                404,
                r#"{"error":{"message":"Invalid URL (POST /v1/x)","type":"invalid_request_error","param":null,"code":null}}"#,
            ),
            (
                Application,
                404,
                r#"{"error":{"message":"Previous response with id 'resp_1' not found.","type":"invalid_request_error","param":"previous_response_id","code":"previous_response_not_found"}}"#,
            ),
            (
                Application,
                403,
                r#"{"error":{"code":403,"message":"Your input was flagged: violence","metadata":{"reasons":["violence"]}}}"#,
            ),
            (Application, 403, "<html>Forbidden</html>"),
            (Application, 409, r#"{"error":{"message":"conflict"}}"#),
            // What a model can not do, and what else a sentence about one may be about.
            (
                Application,
                404,
                r#"{"error":{"message":"No endpoints found that support image input","code":404}}"#,
            ),
            (
                Application,
                404,
                r#"{"error":{"message":"No endpoints found that support tool use. To learn more about provider routing, visit: https://openrouter.ai/docs","code":404}}"#,
            ),
            (
                Application,
                400,
                r#"{"code":"invalid-argument","error":"The model grok-imagine-image is an image model and is therefore not available on this endpoint. Please use a compatible endpoint."}"#,
            ),
            (
                Application,
                400,
                r#"{"error":{"message":"With the model m, temperature 0.2 is not allowed"}}"#,
            ),
            (
                Application,
                400,
                r#"{"error":{"message":"model m: temperature 3.0 is invalid, must be in [0,2]"}}"#,
            ),
            (
                Application,
                400,
                r#"{"error":{"message":"This model only takes audio; text is not supported by provider"}}"#,
            ),
            (
                Application,
                404,
                r#"{"error":{"message":"Tool 'search' not found for model m","type":"not_found"}}"#,
            ),
            (
                Application,
                400,
                r#"{"error":{"message":"Model m requires alternating roles; two user turns are not allowed"}}"#,
            ),
            // Not loaded, paused, or to be called by another name.
            (ModelGone, 400, r#"{"detail":"No models are currently loaded."}"#),
            (ModelGone, 400, r#"{"error":"Model unloaded."}"#),
            (
                ModelGone,
                400,
                r#"{"error":"Bad Request: The endpoint is paused, ask a maintainer to restart it"}"#,
            ),
            (
                ModelGone,
                400,
                r#"{"message":"Invocation of model ID anthropic.claude-3 with on-demand throughput isn't supported. Retry your request with the ID or ARN of an inference profile that contains this model."}"#,
            ),
            (ModelGone, 404, r#"{"error":"The model m was sunset on 2026-01-01"}"#),
            (ModelGone, 404, r#"{"error":{"message":"The model m was shut down."}}"#),
            (ModelGone, 404, r#"{"error":{"message":"model: gpt-image-1 not found"}}"#),
            // OpenAI, vLLM, Ollama, Azure, Anthropic, Groq, xAI, Mistral, DeepSeek, Together.
            (
                ModelGone,
                404,
                r#"{"error":{"message":"The model `gpt-4-0314` has been deprecated, learn more here","type":"invalid_request_error","code":"model_not_found"}}"#,
            ),
            (
                ModelGone,
                404,
                r#"{"object":"error","message":"The model `m` does not exist.","type":"NotFoundError","param":null,"code":404}"#,
            ),
            (ModelGone, 404, r#"{"error":"model 'llama2' not found, try pulling it first"}"#),
            (
                ModelGone,
                404,
                r#"{"error":{"code":"DeploymentNotFound","message":"The API deployment for this resource does not exist."}}"#,
            ),
            (
                ModelGone,
                404,
                r#"{"type":"error","error":{"type":"not_found_error","message":"model: claude-1"}}"#,
            ),
            (
                ModelGone,
                400,
                r#"{"error":{"message":"The model `mixtral-8x7b-32768` has been decommissioned and is no longer supported.","code":"model_decommissioned"}}"#,
            ),
            (
                ModelGone,
                404,
                r#"{"code":"Some requested entity was not found","error":"The model grok-beta does not exist or your team does not have access to it."}"#,
            ),
            (
                ModelGone,
                400,
                r#"{"object":"error","message":"Invalid model: mistral-tiny","type":"invalid_model","code":"1500"}"#,
            ),
            (
                ModelGone,
                400,
                r#"{"error":{"message":"Model Not Exist","type":"invalid_request_error"}}"#,
            ),
            (
                ModelGone,
                400,
                r#"{"error":{"message":"Unable to access non-serverless model x","code":"model_not_available"}}"#,
            ),
            (ModelGone, 404, r#"{"message":"The model version has reached the end of its life."}"#),
            (
                ModelGone,
                404,
                r#"{"error_code":"RESOURCE_DOES_NOT_EXIST","message":"The given endpoint does not exist, please retry after checking the specified endpoint"}"#,
            ),
            (ModelGone, 404, r#"{"error":{"message":"No endpoints found for x/y.","code":404}}"#),
            (
                ModelGone,
                404,
                r#"[{"error":{"code":404,"message":"models/gemini-1.0-pro is not found for API version v1main","status":"NOT_FOUND"}}]"#,
            ),
            (ModelGone, 410, ""),
            // Bedrock (rig#2309 and lgtmaybe#70 have recorded both), LiteLLM (litellm#9663 and
            // the `ProxyErrorTypes` of its proxy), Vertex AI (truefoundry/models#946), a gateway
            // of keys (truefoundry/models#949), OpenAI of keys without the model.
            (ModelGone, 400, r#"{"message":"The provided model identifier is invalid."}"#),
            (
                ModelGone,
                400,
                r#"{"error":{"message":"/chat/completions: Invalid model name passed in model=m. Call `/v1/models` to view available models for your key.","type":"invalid_request_error","param":"model","code":"400"}}"#,
            ),
            (
                ModelGone,
                401,
                r#"{"error":{"message":"key not allowed to access model. This key can only access models=['n']. Tried to access m","type":"key_model_access_denied","param":"model","code":"401"}}"#,
            ),
            (
                ModelGone,
                404,
                r#"[{"error":{"code":404,"message":"Publisher Model `projects/p/locations/global/publishers/google/models/m` was not found or your project does not have access to it. Please ensure you are using a valid model version.","status":"NOT_FOUND"}}]"#,
            ),
            (
                ModelGone,
                403,
                r#"{"status":"failure","message":"User u is not authorized to access model m or model does not exist","error":{"message":"User u is not authorized to access model m or model does not exist","type":"AuthorizationError","code":"403"}}"#,
            ),
            (
                ModelGone,
                403,
                r#"{"error":{"message":"You are not allowed to sample from this model","type":"invalid_request_error","param":null,"code":null}}"#,
            ),
            (
                Key,
                401,
                r#"{"error":{"message":"You have insufficient permissions for this operation. Missing scopes: model.request.","type":"invalid_request_error","param":null,"code":"missing_scope"}}"#,
            ),
            (
                ModelGone,
                403,
                r#"{"error":{"message":"Project `p` does not have access to model `gpt-5`","type":"invalid_request_error","code":"model_not_found"}}"#,
            ),
            (ModelGone, 403, r#"{"code":"Model.AccessDenied","message":"Model access denied."}"#),
            (
                ModelGone,
                403,
                r#"{"__type":"AccessDeniedException","message":"You don't have access to the model with the specified model ID."}"#,
            ),
            (
                ModelGone,
                403,
                r#"{"type":"error","error":{"type":"permission_error","message":"Your API key does not have permission to use the specified resource"}}"#,
            ),
            // OpenRouter (openrouter-examples#74), LM Studio, and a gateway (9router#1187).
            (
                ModelGone,
                400,
                r#"{"error":{"message":"claude-sonnet-4-6 is not a valid model ID","code":400}}"#,
            ),
            (
                ModelGone,
                400,
                r#"{"error":{"message":"No models loaded. Please load a model in the developer page","type":"invalid_request_error","param":"model"}}"#,
            ),
            (
                ModelGone,
                400,
                r#"{"message":"Invalid model. Please select a different model to continue.","reason":"INVALID_MODEL_ID"}"#,
            ),
            // Azure: the address names a version (spring-ai#2424, aider-desk#460).
            (
                NoSuchPath,
                400,
                r#"{"error":{"code":"BadRequest","message":"Model {modelName} is enabled only for api versions 2024-12-01-preview and later"}}"#,
            ),
            (
                NoSuchPath,
                400,
                r#"{"error":{"code":"BadRequest","message":"API version not supported"}}"#,
            ),
            (NoSuchPath, 400, r#"{"error":{"code":"UnsupportedApiVersion","message":"no"}}"#),
            (Busy, 409, r#"{"error":"model is loading"}"#),
            (Busy, 400, r#"{"error":{"message":"Loading model","type":"unavailable_error"}}"#),
            (Application, 400, r#"{"error":{"message":"error loading the image: not a PNG"}}"#),
            (Application, 409, r#"{"error":{"message":"the file is being uploaded"}}"#),
            (Application, 400, r#"{"error":{"message":"the tool is being loaded"}}"#),
            (NoSuchPath, 404, "<html>nginx 404</html>"),
            (NoSuchPath, 404, r#"{"detail":"Not Found"}"#),
            (NoSuchPath, 404, "404 page not found"),
            (
                NoSuchPath,
                404,
                r#"{"error":{"message":"Invalid URL (POST /chat/completions)","type":"invalid_request_error"}}"#,
            ),
            (NoSuchPath, 405, r#"{"detail":"Method Not Allowed"}"#),
            (NoSuchPath, 307, ""),
            (NoSuchPath, 501, ""),
            (Busy, 429, r#"{"error":{"message":"Rate limit reached for model x"}}"#),
            (Busy, 503, "busy"),
            (
                Busy,
                529,
                r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
            ),
            (Busy, 521, ""),
            (Busy, 522, ""),
            (Busy, 523, ""),
            (Failed, 500, r#"{"error":{"message":"boom"}}"#),
            (Failed, 502, "<html>Bad Gateway</html>"),
            (Failed, 504, ""),
            (Failed, 520, ""),
            (Failed, 524, ""),
            (FailedForGood, 408, ""),
            (FailedForGood, 507, ""),
        ] {
            let found = Fault::of(status, &Complaint::read(body.as_bytes()));
            assert_eq!(found, fault, "{status} {body}");
        }
    }
}
