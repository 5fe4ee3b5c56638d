//! Who may ask for a gateway's report. It tells what was counted, and being asked by a
//! leader is a gateway's sign that a judge is alive: neither is for everybody.
//!
//! Operators prove each question by a key of request ids (`signals::proof`). A question
//! counts once and for [`SKEW_SECONDS`]: a copy of it is no sign of a leader. People may look
//! with a token of a file; what they are told is the same, and means nothing to a rollout.

use std::{
    collections::HashSet,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use axum::http::HeaderMap;
use jiff::Timestamp;

use super::{credential, keys::digest, same};
use crate::{
    openai::error::ApiError,
    signals::proof::{Nonce, Proof, SKEW_SECONDS},
};

/// How often the file of tokens is read.
const RELOAD: Duration = Duration::from_secs(5);
/// So many questions of a span are remembered; more than ten a second of ten operators are
/// a mistake.
const MOST: usize = 20_000;
/// A question may come this long before its time or after it: so long it is remembered.
const SPAN: i64 = 2 * SKEW_SECONDS;

/// The questions that were answered, so that none is answered twice.
#[derive(Default)]
pub(in crate::gateway) struct Asked(Mutex<Spans>);

#[derive(Default)]
struct Spans {
    /// When `recent` was begun, in seconds since 1970.
    since: i64,
    recent: HashSet<Nonce>,
    before: HashSet<Nonce>,
}

impl Asked {
    /// Whether a question that is proven counts now, which it does no more from then on.
    ///
    /// # Errors
    /// 401: it is not of now, or was asked before.
    pub(in crate::gateway) fn admit(&self, proof: &Proof, now: Timestamp) -> Result<(), ApiError> {
        let refuse = |why: String| Err(ApiError::new(401, "question_refused", why));
        let Some((at, nonce)) = proof.asked() else {
            return refuse("the question says neither its time nor its number".to_owned());
        };
        let ahead = at.as_second().saturating_sub(now.as_second());
        if ahead.abs() > SKEW_SECONDS {
            return refuse(format!(
                "the clocks of operator and gateway differ by {} s, and may by {SKEW_SECONDS}: \
                 set the clocks of their nodes",
                ahead.abs()
            ));
        }
        let mut spans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if (now.as_second() - spans.since).abs() >= SPAN {
            spans.before = std::mem::take(&mut spans.recent);
            spans.since = now.as_second();
        }
        if spans.recent.len() >= MOST {
            return refuse(format!("more than {MOST} questions within {SPAN} s"));
        }
        if spans.before.contains(&nonce) || !spans.recent.insert(nonce) {
            return refuse("this question was asked before".to_owned());
        }
        Ok(())
    }
}

/// # Errors
/// 401: who asks shows no token of the file, or there is no file.
pub(in crate::gateway) fn admit_person(
    people: Option<&Arc<TokenFile>>,
    headers: &HeaderMap,
) -> Result<(), ApiError> {
    let shown = credential(headers);
    if people.zip(shown).is_some_and(|(file, token)| file.holds(token)) {
        return Ok(());
    }
    let message = "this is for operators, which sign their questions, and for people with a token \
        of the file that --admin-token-file names, sent as \"Authorization: Bearer TOKEN\"";
    Err(ApiError::new(401, "not_an_operator", message))
}

/// Tokens in a file, one a line, any of which counts; read again when the file changes.
pub struct TokenFile {
    path: PathBuf,
    digests: ArcSwap<Vec<[u8; 32]>>,
}

/// Tells no token.
impl fmt::Debug for TokenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenFile").field("path", &self.path).finish_non_exhaustive()
    }
}
impl TokenFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// It can not be read, or has no token.
    pub fn open(path: PathBuf) -> std::io::Result<Arc<Self>> {
        let file = Self { digests: ArcSwap::default(), path };
        file.reload()?;
        Ok(Arc::new(file))
    }

    /// Reads the file again.
    ///
    /// # Errors
    /// It can not be read, or has no token; what was read before stays.
    pub fn reload(&self) -> std::io::Result<()> {
        let text = std::fs::read_to_string(&self.path)?;
        let tokens: Vec<_> =
            text.lines().map(str::trim).filter(|l| !l.is_empty()).map(digest).collect();
        if tokens.is_empty() {
            let message = format!("{} has no token: write one a line", self.path.display());
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, message));
        }
        self.digests.store(Arc::new(tokens));
        Ok(())
    }

    /// Reads the file now and then, without end.
    pub async fn follow(self: Arc<Self>) {
        loop {
            tokio::time::sleep(RELOAD).await;
            if let Err(error) = tokio::task::block_in_place(|| self.reload()) {
                tracing::warn!("--admin-token-file: {error}");
            }
        }
    }

    fn holds(&self, token: &str) -> bool {
        let shown = digest(token);
        // All are compared, so that time does not tell which one it was.
        self.digests.load().iter().fold(false, |found, known| same(known, &shown) | found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signals::proof::{ReportKey, Request};

    const START: i64 = 1_800_000_000;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(START + second).unwrap()
    }

    /// A question that was asked at this second.
    fn asked(second: i64, nonce: u8) -> Proof {
        let key = ReportKey::derive(&[1; 32]);
        let request = Request { method: "GET", target: "/", leader: "1" };
        let asking = key.ask(&request, at(second), [nonce; 16]);
        let [(_, asked), (_, signature)] = asking.headers();
        key.proof(&request, asked, signature).unwrap()
    }

    #[test]
    fn a_question_counts_once_and_for_a_minute_whichever_clock_is_ahead() {
        let known = Asked::default();
        for (second, now, counts) in
            [(0, 0, true), (0, 60, true), (60, 0, true), (0, 61, false), (61, 0, false)]
        {
            let admitted = Asked::default().admit(&asked(second, 1), at(now));
            assert_eq!(admitted.is_ok(), counts, "asked at {second}, read at {now}");
        }
        assert!(known.admit(&asked(60, 1), at(0)).is_ok());
        // As long as its time is right it is remembered.
        for now in [0, 1, 59, 60, 119, 120] {
            let error = known.admit(&asked(60, 1), at(now)).unwrap_err();
            assert_eq!(error.message, "this question was asked before", "at {now}");
        }
        assert!(known.admit(&asked(60, 1), at(121)).unwrap_err().message.contains("clocks"));
        assert!(known.admit(&asked(60, 2), at(60)).is_ok(), "another one");
    }

    #[test]
    fn what_is_remembered_is_bounded_and_forgotten_in_time() {
        let known = Asked::default();
        let spans = |known: &Asked| {
            let spans = known.0.lock().unwrap();
            (spans.recent.len(), spans.before.len())
        };
        known.admit(&asked(0, 1), at(0)).unwrap();
        known.0.lock().unwrap().recent.extend((0..MOST as u128).map(|n| (n << 8).to_le_bytes()));
        assert!(known.admit(&asked(0, 2), at(0)).unwrap_err().message.contains("more than"));
        assert!(known.admit(&asked(SPAN, 2), at(SPAN)).is_ok());
        known.admit(&asked(2 * SPAN, 3), at(2 * SPAN)).unwrap();
        assert_eq!(spans(&known), (1, 1));
    }

    #[test]
    fn people_need_a_token_of_the_file_and_without_a_file_there_are_none() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "one-token\n\nother-token\n").unwrap();
        let file = TokenFile::open(file.path().to_owned()).unwrap();
        for (shown, counts) in [
            ("Bearer one-token", true),
            ("Bearer other-token", true),
            ("Bearer one", false),
            ("Bearer ", false),
        ] {
            let headers: HeaderMap =
                [("authorization".parse().unwrap(), shown.parse().unwrap())].into_iter().collect();
            assert_eq!(admit_person(Some(&file), &headers).is_ok(), counts, "{shown}");
            assert!(admit_person(None, &headers).is_err());
        }
        assert!(admit_person(Some(&file), &HeaderMap::new()).is_err());
    }
}
