//! Is there an HTTP server at the address? No key is sent: the operator reads no
//! Secrets, so also a refusal to answer without one is an answer.

use std::time::Duration;

/// Longer than any server needs to say something.
const PATIENCE: Duration = Duration::from_secs(5);
/// One lost packet is no outage.
const ATTEMPTS: usize = 3;

/// Asks `{base}/models`. Answers a sentence, good or bad.
pub(super) async fn probe(client: &reqwest::Client, base: &str) -> Result<String, String> {
    let mut last = String::new();
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        match client.get(format!("{base}/models")).timeout(PATIENCE).send().await {
            Ok(answer) if answer.status().as_u16() < 500 => {
                return Ok(format!("{base} answers"));
            }
            Ok(answer) => last = format!("{base}/models answered {}", answer.status().as_u16()),
            Err(error) if error.is_timeout() => {
                last = format!("{base} did not answer within {} s", PATIENCE.as_secs());
            }
            Err(error) => last = format!("{base} can not be reached: {}", root_cause(&error)),
        }
    }
    Err(last)
}

/// The innermost reason, which is the one that helps.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
