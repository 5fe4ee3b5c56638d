//! A real model for the demo: whether it can be reached is found out before the story begins.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail, ensure};
use reqwest::{StatusCode, redirect::Policy};

use crate::{
    api::{
        SecretText,
        url::{has_credentials, shown},
    },
    signals::cause::innermost,
};

/// A server that has something to say says it sooner.
const PATIENCE: Duration = Duration::from_secs(15);

/// Which model answers.
#[derive(clap::Args)]
#[group(id = "demo_endpoint")]
pub struct Options {
    /// An OpenAI-compatible endpoint instead of the simulated model, up to and with /v1.
    #[arg(long, requires = "model")]
    url: Option<String>,
    /// The model's name there.
    #[arg(long, requires = "url")]
    model: Option<String>,
    /// The environment variable that holds the endpoint's API key, for example
    /// OPENAI_API_KEY.
    #[arg(long, requires = "url", value_name = "VARIABLE", conflicts_with = "key_file")]
    key_env: Option<String>,
    /// A file with the endpoint's API key.
    #[arg(long, requires = "url", value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// A model that can be reached.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub url: String,
    pub model: String,
    pub key: Option<SecretText>,
}

impl Options {
    /// The endpoint, after it has answered; none for the simulated model.
    ///
    /// # Errors
    /// There is no key where one should be, or nobody answers as a model does.
    pub(super) async fn reached(self) -> anyhow::Result<Option<Endpoint>> {
        let key = self.key()?;
        let Some(url) = self.url else { return Ok(None) };
        ensure!(
            !has_credentials(&url),
            "--url may hold no user and no password: name the key with --key-env or --key-file"
        );
        let url = url.trim_end_matches('/').to_owned();
        let model = self.model.unwrap_or_default();
        ask(&url, key.as_ref()).await?;
        Ok(Some(Endpoint { url, model, key }))
    }

    fn key(&self) -> anyhow::Result<Option<SecretText>> {
        let text = match (&self.key_env, &self.key_file) {
            (Some(name), _) => std::env::var(name).with_context(|| {
                format!("--key-env {name}: set this environment variable to the API key")
            })?,
            (None, Some(file)) => std::fs::read_to_string(file)
                .with_context(|| format!("--key-file {} can not be read", file.display()))?,
            (None, None) => return Ok(None),
        };
        let text = text.trim().to_owned();
        ensure!(!text.is_empty(), "the API key of --key-env or --key-file is empty");
        Ok(Some(SecretText::from(text)))
    }
}

/// Asks for the list of models, which every such server has or refuses.
async fn ask(url: &str, key: Option<&SecretText>) -> anyhow::Result<()> {
    let shown = shown(url);
    let client = reqwest::Client::builder().timeout(PATIENCE).redirect(Policy::none()).build()?;
    let mut request = client.get(format!("{url}/models"));
    if let Some(key) = key {
        request = request.bearer_auth(key.expose());
    }
    let status = match request.send().await {
        Ok(answer) => answer.status(),
        Err(error) if error.is_builder() => {
            bail!("--url {shown} is no address: write for example http://127.0.0.1:8000/v1")
        }
        Err(error) if error.is_timeout() => {
            bail!("{shown} did not answer within {} s: is it up?", PATIENCE.as_secs())
        }
        Err(error) => {
            bail!(
                "{shown} can not be reached ({}): is it up, is the address right?",
                innermost(&error)
            )
        }
    };
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if key.is_none() => {
            bail!("{shown} wants an API key: name it with --key-env or --key-file")
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            bail!("{shown} refuses the API key ({status})")
        }
        status if status.is_server_error() => bail!("{shown}/models answered {status}"),
        // Not every server has a list.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    fn options(url: String) -> Options {
        Options { url: Some(url), model: Some("m".to_owned()), key_env: None, key_file: None }
    }

    /// The error of an endpoint that answers so.
    async fn told(answer: &'static str, key_file: Option<PathBuf>) -> Option<String> {
        crate::app::process::install_tls();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/", listener.local_addr().unwrap());
        let serving = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 1024];
            let read = stream.read(&mut head).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&head[..read]).into_owned()
        };
        let asking = Options { key_file, ..options(url) }.reached();
        let (asked, head) = tokio::join!(asking, serving);
        assert!(head.starts_with("GET /v1/models "), "{head}");
        asked.err().map(|error| format!("{error:#}"))
    }

    #[tokio::test]
    async fn an_endpoint_that_can_not_be_used_is_told_before_the_story_begins() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gone = format!("http://{}/v1", listener.local_addr().unwrap());
        drop(listener);
        crate::app::process::install_tls();
        for (url, says) in [
            (gone.as_str(), "can not be reached"),
            ("http://ada:lovelace@127.0.0.1:9/v1", "--key-env"),
            ("127.0.0.1", "is no address"),
        ] {
            let error = format!("{:#}", options(url.to_owned()).reached().await.unwrap_err());
            assert!(error.contains(says) && !error.contains("lovelace"), "{url}: {error}");
        }
        for url in crate::api::url::tests::WITH {
            let error = format!("{:#}", options(url.to_owned()).reached().await.unwrap_err());
            assert!(error.contains("--key-env") && !error.contains("love"), "{url:?}: {error}");
        }
        let empty = "HTTP/1.1 401 x\r\ncontent-length: 0\r\n\r\n";
        assert!(told(empty, None).await.unwrap().contains("wants an API key"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "sk-planted\n").unwrap();
        let path = Some(file.path().to_owned());
        assert!(told(empty, path.clone()).await.unwrap().contains("refuses the API key"));
        let broken = "HTTP/1.1 503 x\r\ncontent-length: 0\r\n\r\n";
        assert!(told(broken, None).await.unwrap().contains("503"));
        for fine in [
            "HTTP/1.1 200 x\r\ncontent-length: 2\r\n\r\n{}",
            "HTTP/1.1 404 x\r\ncontent-length: 0\r\n\r\n",
        ] {
            assert_eq!(told(fine, path.clone()).await, None);
        }
    }

    #[tokio::test]
    async fn a_key_that_is_not_there_is_told() {
        let missing = Options {
            key_env: Some("SERINUS_NO_SUCH_KEY".into()),
            ..options("http://m/v1".into())
        };
        let error = format!("{:#}", missing.reached().await.unwrap_err());
        assert!(error.contains("--key-env SERINUS_NO_SUCH_KEY"), "{error}");
        let missing =
            Options { key_file: Some("/no/such/key".into()), ..options("http://m/v1".into()) };
        let error = format!("{:#}", missing.reached().await.unwrap_err());
        assert!(error.contains("--key-file /no/such/key"), "{error}");
    }
}
