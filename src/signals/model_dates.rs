//! When models end, by files that others keep, read again when they change.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use futures::Stream;
use jiff::civil::Date;
use tokio::sync::watch;

use crate::rollout::retirement::dates::Dates;

/// How often the files are looked after.
const RELOAD: Duration = Duration::from_secs(15);
/// Larger files are no lists of models: LiteLLM's has two megabytes.
const LARGEST: u64 = 32 << 20;

/// What the files say, as last read.
#[derive(Debug, Default)]
pub struct ModelDates {
    paths: Vec<PathBuf>,
    known: ArcSwap<Dates>,
    /// The hash of what was read.
    read: Mutex<Option<u64>>,
    changed: watch::Sender<()>,
}

impl ModelDates {
    /// Reads the files for the first time; none says nothing.
    ///
    /// # Errors
    /// One can not be read, or has no date of a model: the file and what to do.
    pub fn open(paths: Vec<PathBuf>) -> Result<Arc<Self>, String> {
        let dates = Self { paths, ..Self::default() };
        dates.reload()?;
        Ok(Arc::new(dates))
    }

    /// When a model ends, as an LLMDeployment names it and its provider.
    pub fn of(&self, provider: &str, model: &str) -> Option<Date> {
        self.known.load().of(provider, model)
    }

    /// Reads the files again if they have changed; answers whether they say something else now.
    ///
    /// # Errors
    /// One can not be read, or has no date of a model; what was read before stays.
    pub fn reload(&self) -> Result<bool, String> {
        let texts: Vec<String> =
            self.paths.iter().map(|path| text(path)).collect::<Result<_, _>>()?;
        let mut hasher = DefaultHasher::new();
        texts.hash(&mut hasher);
        let found = Some(hasher.finish());
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if *read == found {
            return Ok(false);
        }
        let mut now = Dates::default();
        for (path, text) in self.paths.iter().zip(&texts) {
            now.merge(Dates::read(text).map_err(|why| format!("{}: {why}", path.display()))?);
        }
        *read = found;
        let is_new = **self.known.load() != now;
        if is_new {
            tracing::info!(models = now.len(), "--model-dates: the days on which models end");
            self.known.store(Arc::new(now));
            self.changed.send_replace(());
        }
        Ok(is_new)
    }

    /// Reads the files now and then, without end. What is wrong is told once.
    pub async fn follow(self: Arc<Self>) {
        let mut told = None;
        loop {
            if self.paths.is_empty() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(RELOAD).await;
            match tokio::task::block_in_place(|| self.reload()) {
                Ok(_) => told = None,
                Err(error) if told.as_ref() != Some(&error) => {
                    tracing::warn!("--model-dates: what was read before stays: {error}");
                    told = Some(error);
                }
                Err(_) => {}
            }
        }
    }

    /// A tick whenever the files have come to say something else.
    pub fn changes(&self) -> impl Stream<Item = ()> + Send + 'static {
        futures::stream::unfold(self.changed.subscribe(), |mut changed| async move {
            match changed.changed().await {
                Ok(()) => Some(((), changed)),
                // Nothing changes any more.
                Err(_) => std::future::pending().await,
            }
        })
    }
}

fn text(path: &Path) -> Result<String, String> {
    let why = |why: std::io::Error| format!("{} can not be read: {why}", path.display());
    let size = fs::metadata(path).map_err(why)?.len();
    if size > LARGEST {
        return Err(format!("{} has {size} bytes; at most {LARGEST} are read", path.display()));
    }
    fs::read_to_string(path).map_err(why)
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::*;

    fn listed(date: &str) -> String {
        format!(r#"{{"gpt-5": {{"litellm_provider": "openai", "deprecation_date": "{date}"}}}}"#)
    }

    #[test]
    fn a_file_that_changes_counts_and_one_that_breaks_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dates.json");
        let error = ModelDates::open(vec![path.clone()]).unwrap_err();
        assert!(error.contains("dates.json can not be read"), "{error}");
        fs::write(&path, listed("2026-12-11")).unwrap();
        let dates = ModelDates::open(vec![path.clone()]).unwrap();
        let ends = || dates.of("openai", "gpt-5").map(|date| date.to_string());
        assert_eq!(ends().as_deref(), Some("2026-12-11"));
        let mut changes = std::pin::pin!(dates.changes());
        assert_eq!(dates.reload(), Ok(false));
        assert_eq!(changes.next().now_or_never(), None);
        fs::write(&path, listed("2027-01-14")).unwrap();
        assert_eq!(dates.reload(), Ok(true));
        assert_eq!(changes.next().now_or_never(), Some(Some(())));
        for broken in ["", "{}", "{\"gpt-5\": "] {
            fs::write(&path, broken).unwrap();
            assert!(dates.reload().unwrap_err().contains("dates.json: "));
        }
        fs::remove_file(&path).unwrap();
        assert!(dates.reload().is_err());
        assert_eq!(ends().as_deref(), Some("2027-01-14"));
    }
}
