use super::*;

fn status(json: &str) -> Option<u16> {
    Complaint::read(json.as_bytes()).status
}

#[test]
fn the_status_is_found_wherever_servers_tell_it() {
    for (expected, body) in [
        // OpenRouter, vLLM old and new, LiteLLM, llama.cpp, Hugging Face.
        (502, r#"{"error":{"message":"Provider returned error","code":502,"metadata":{}}}"#),
        (
            400,
            r#"{"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}"#,
        ),
        (
            400,
            r#"{"error":{"object":"error","message":"not multimodal","type":"BadRequestError","code":400}}"#,
        ),
        (
            429,
            r#"{"error":{"message":"litellm.RateLimitError","type":"throttling_error","code":"429"}}"#,
        ),
        (503, r#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#),
        (503, r#"{"error":"Model x is currently loading","estimated_time":20.0}"#),
        (422, r#"{"error":"Input validation error","error_type":"validation"}"#),
        // OpenAI and Anthropic, by their types.
        (
            429,
            r#"{"error":{"message":"slow down","type":"requests","code":"rate_limit_exceeded"}}"#,
        ),
        (
            400,
            r#"{"error":{"message":"too long","type":"invalid_request_error","code":"context_length_exceeded"}}"#,
        ),
        (
            400,
            r#"{"error":{"message":"no","type":"invalid_request_error","param":"n","code":null}}"#,
        ),
        (
            404,
            r#"{"error":{"message":"no","type":"invalid_request_error","code":"model_not_found"}}"#,
        ),
        (503, r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#),
        (429, r#"{"type":"error","error":{"type":"rate_limit_error","message":"slow down"}}"#),
        (401, r#"{"type":"error","error":{"type":"authentication_error","message":"no"}}"#),
        // Google, AWS, Azure, Databricks, Cohere, FastAPI, Moonshot.
        (429, r#"[{"error":{"code":429,"message":"Quota","status":"RESOURCE_EXHAUSTED"}}]"#),
        (503, r#"{"error":{"message":"no","status":"UNAVAILABLE"}}"#),
        (429, r#"{"__type":"com.amazon#ThrottlingException","message":"Too many tokens"}"#),
        (422, r#"{"__type":"ValidationException","message":"no"}"#),
        (429, r#"{"statusCode":429,"message":"Rate limit is exceeded. Try again in 6 seconds."}"#),
        (429, r#"{"error_code":"REQUEST_LIMIT_EXCEEDED","message":"no"}"#),
        (503, r#"{"error_code":"TEMPORARILY_UNAVAILABLE","message":"no"}"#),
        (429, r#"{"error":{"message":"busy","type":"engine_overloaded_error"}}"#),
        // DashScope, MiniMax, Baidu, Zhipu.
        (
            429,
            r#"{"code":"Throttling.RateQuota","message":"Requests rate limit exceeded","request_id":"r"}"#,
        ),
        (400, r#"{"code":"DataInspectionFailed","message":"inappropriate"}"#),
        (500, r#"{"code":"InternalError.Algo","message":"inference failed","request_id":"r"}"#),
        (429, r#"{"base_resp":{"status_code":1002,"status_msg":"rate limit"}}"#),
        (400, r#"{"base_resp":{"status_code":2013,"status_msg":"invalid params"}}"#),
        (429, r#"{"error_code":336501,"error_msg":"Rate limit reached for RPM"}"#),
        (400, r#"{"error_code":336007,"error_msg":"the max length of current question is 2000"}"#),
        (429, r#"{"error":{"code":"1302","message":"concurrency"}}"#),
        (404, r#"{"error":{"code":"1211","message":"no"}}"#),
        // A proxy's problem, and what is said to people alone.
        (503, r#"{"type":"about:blank","title":"Service Unavailable","status":503}"#),
        (429, r#"{"error":"Rate limit exceeded"}"#),
        (400, r#"{"error":"This model's maximum context length is 10 tokens"}"#),
    ] {
        assert_eq!(status(body), Some(expected), "{body}");
    }
    for body in [
        r#"{"error":"model not found"}"#,
        r#"{"error":{"message":"boom"}}"#,
        "{}",
        "null",
        "<html>",
        "",
    ] {
        assert_eq!(status(body), None, "{body}");
    }
}

#[test]
fn the_time_to_wait_is_found_in_the_body() {
    let wait = |json: &str| Complaint::read(json.as_bytes()).retry_after;
    let millis = |n| Some(Duration::from_millis(n));
    for (body, expected) in [
        (r#"{"error":{"message":"m","retry_after":2}}"#, millis(2000)),
        (r#"{"error":{"message":"m","retry_after_ms":20}}"#, millis(20)),
        (r#"{"error":{"message":"m","metadata":{"headers":{"Retry-After":"7"}}}}"#, millis(7000)),
        (r#"{"error":"loading","estimated_time":1.5}"#, millis(1500)),
        (
            r#"{"error":{"code":429,"details":[{"@type":"x"},{"@type":"RetryInfo","retryDelay":"34s"}]}}"#,
            millis(34_000),
        ),
        (
            r#"{"error":{"message":"Rate limit reached. Please try again in 7.66s. Visit"}}"#,
            millis(7660),
        ),
        (r#"{"error":{"message":"Please try again in 1m2.5s."}}"#, millis(62_500)),
        (r#"{"error":{"message":"Please try again in 20ms."}}"#, millis(20)),
        (r#"{"error":{"message":"Please retry after 6 seconds."}}"#, millis(6000)),
        (r#"{"error":{"message":"try again in a while"}}"#, None),
        (r#"{"error":{"message":"m","retry_after":-1}}"#, None),
        (r#"{"error":{"message":"m","retry_after":1e300}}"#, None),
    ] {
        assert_eq!(wait(body), expected, "{body}");
    }
}

#[test]
fn an_event_that_is_an_error_may_be_a_text() {
    let told = Complaint::told(b"engine died");
    assert_eq!((told.message.as_str(), told.status, told.is_read), ("engine died", None, true));
    assert_eq!(Complaint::told(b"rate limit exceeded").status, Some(429));
    assert_eq!(Complaint::told(br#"{"code":500,"details":"engine died"}"#).status, Some(500));
    assert!(Complaint::told(b"").is_read && !Complaint::read(b"engine died").is_read);
}
