//! How an operator asks for a report, and a gateway tells it, so that neither takes the
//! other for somebody else (`docs/decisions/0014`).
//!
//! Both hold the keys that sign request ids. From each of them a key for reports is derived
//! (one block of HKDF-Expand, RFC 5869), so that nothing that is signed for one purpose is
//! good for the other. A question carries a time, a number that is used once, and an
//! HMAC-SHA256 over all that the gateway reads of it. The answer carries one over that
//! number, the status, and length and digest of the body, made with the question's key: an
//! answer to another question, a changed one and one that somebody else made up are told
//! apart from the right one. The head of an answer proves itself before its body is read:
//! who does not hold the key makes nobody read more than a head.
//!
//! What is said is not hidden: who sits between reads it, and can keep it back.

use jiff::Timestamp;
use ring::{digest, hmac};

use crate::api::keys::SIGNATURE_HEADER;

/// The header of a question with its time and its number: `SECONDS NONCE`.
pub const ASKED_HEADER: &str = "x-serinus-asked";
/// The header of an answer with length and SHA-256 of its body: `BYTES HEX`.
pub const DIGEST_HEADER: &str = "x-serinus-digest";
/// How far the clocks of both sides may differ, in seconds: as for tokens.
pub const SKEW_SECONDS: i64 = 60;

/// From which a key is derived: another meaning of what is signed is another label.
const LABEL: &[u8] = b"serinus.dev reports 1";

/// The number of a question, used once.
pub type Nonce = [u8; 16];

/// A key that signs questions and answers.
#[derive(Clone)]
pub struct ReportKey(hmac::Key);

/// What is asked, as both sides see it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The method.
    pub method: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// The leader's term, empty when no leader asks.
    pub leader: &'a str,
}

/// A question that was signed, and what its answer must fit.
pub struct Asking {
    key: ReportKey,
    asked: String,
    signature: String,
}

/// With what a gateway signs the answer to a question.
#[derive(Clone)]
pub struct Proof {
    key: ReportKey,
    asked: String,
}

/// Why an answer is nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unproven {
    /// It has no signature.
    #[error("it is not signed")]
    Unsigned,
    /// Its signature fits neither the question nor the key.
    #[error("its signature is not that of a gateway that was asked this")]
    Foreign,
}

/// The body that a proven head announces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// Its bytes.
    pub length: usize,
    digest: String,
}

impl ReportKey {
    /// The key for reports that belongs to a key of request ids.
    pub fn derive(from: &[u8]) -> Self {
        let from = hmac::Key::new(hmac::HMAC_SHA256, from);
        let block = hmac::sign(&from, &[LABEL, &[1]].concat());
        Self(hmac::Key::new(hmac::HMAC_SHA256, block.as_ref()))
    }

    /// Signs a question.
    pub fn ask(&self, request: &Request<'_>, now: Timestamp, nonce: Nonce) -> Asking {
        let asked = format!("{} {}", now.as_second(), hex(&nonce));
        let signature = hex(hmac::sign(&self.0, &question(request, &asked)).as_ref());
        Asking { key: self.clone(), asked, signature }
    }

    /// With what to sign the answer, if this key has signed the question.
    pub fn proof(&self, request: &Request<'_>, asked: &str, signature: &str) -> Option<Proof> {
        let signature = unhex::<32>(signature)?;
        hmac::verify(&self.0, &question(request, asked), &signature).ok()?;
        Some(Proof { key: self.clone(), asked: asked.to_owned() })
    }
}

impl Asking {
    /// The headers of the question.
    pub fn headers(&self) -> [(&'static str, &str); 2] {
        [(ASKED_HEADER, &self.asked), (SIGNATURE_HEADER, &self.signature)]
    }

    /// Whether the head of an answer is of a gateway that got this question, and what body it
    /// announces.
    ///
    /// # Errors
    /// It is not, and nothing of it means anything.
    pub fn admit(
        &self,
        status: u16,
        digest: Option<&str>,
        signature: Option<&str>,
    ) -> Result<Announced, Unproven> {
        let (Some(digest), Some(signature)) = (digest, signature) else {
            return Err(Unproven::Unsigned);
        };
        let signature = unhex::<32>(signature).ok_or(Unproven::Foreign)?;
        hmac::verify(&self.key.0, &answer(&self.asked, status, digest), &signature)
            .map_err(|_| Unproven::Foreign)?;
        let announced = digest.split_once(' ').and_then(|(length, digest)| {
            Some(Announced { length: length.parse().ok()?, digest: digest.to_owned() })
        });
        announced.ok_or(Unproven::Foreign)
    }
}

impl Announced {
    /// Whether this is the body.
    pub fn is(&self, body: &[u8]) -> bool {
        body.len() == self.length && digest_of(body) == self.digest
    }
}

impl Proof {
    /// The headers that prove an answer.
    pub fn headers(&self, status: u16, body: &[u8]) -> [(&'static str, String); 2] {
        let digest = format!("{} {}", body.len(), digest_of(body));
        let signature = hmac::sign(&self.key.0, &answer(&self.asked, status, &digest));
        [(DIGEST_HEADER, digest), (SIGNATURE_HEADER, hex(signature.as_ref()))]
    }

    /// When the question was asked, and its number; none when the header says neither.
    pub fn asked(&self) -> Option<(Timestamp, Nonce)> {
        let (seconds, nonce) = self.asked.split_once(' ')?;
        Some((Timestamp::from_second(seconds.parse().ok()?).ok()?, unhex(nonce)?))
    }
}

fn question(request: &Request<'_>, asked: &str) -> Vec<u8> {
    let Request { method, target, leader } = request;
    text(&["question", asked, method, target, leader])
}

fn answer(asked: &str, status: u16, digest: &str) -> Vec<u8> {
    text(&["answer", asked, &status.to_string(), digest])
}

/// Parts with their lengths, so that none of them reads as two.
fn text(parts: &[&str]) -> Vec<u8> {
    let mut text = vec![];
    for part in parts {
        text.extend_from_slice(&(part.len() as u64).to_le_bytes());
        text.extend_from_slice(part.as_bytes());
    }
    text
}

fn digest_of(body: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, body).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; N];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: Request<'_> = Request { method: "GET", target: "/report", leader: "7" };

    fn key(byte: u8) -> ReportKey {
        ReportKey::derive(&[byte; 32])
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn asking() -> Asking {
        key(1).ask(&GET, now(), [9; 16])
    }

    /// What a gateway with `key` makes of a question.
    fn proof(key: &ReportKey, request: &Request<'_>, asking: &Asking) -> Option<Proof> {
        let [(_, asked), (_, signature)] = asking.headers();
        key.proof(request, asked, signature)
    }

    #[test]
    fn a_question_is_known_by_who_holds_its_key_and_as_it_was_asked() {
        let asking = asking();
        let known = proof(&key(1), &GET, &asking).unwrap();
        assert_eq!(known.asked(), Some((now(), [9; 16])));
        assert!(proof(&key(2), &GET, &asking).is_none(), "another key");
        for other in [
            Request { method: "HEAD", ..GET },
            Request { target: "/report?", ..GET },
            Request { target: "/repor", leader: "t7", ..GET },
            Request { leader: "", ..GET },
            Request { leader: "8", ..GET },
        ] {
            assert!(proof(&key(1), &other, &asking).is_none(), "{other:?}");
        }
        let [(_, asked), (_, signature)] = asking.headers();
        let later = asked.replacen("18", "19", 1);
        let other_number = asked.replace("09", "08");
        for (asked, signature) in [
            (later.as_str(), signature),
            (other_number.as_str(), signature),
            (asked, ""),
            (asked, &signature[2..]),
            (asked, &"0".repeat(64)),
            (asked, &"é".repeat(32)),
        ] {
            assert!(key(1).proof(&GET, asked, signature).is_none(), "{asked} {signature}");
        }
    }

    #[test]
    fn an_answer_is_proven_by_who_was_asked_and_as_it_was_told() {
        let asking = asking();
        let proof_of_it = proof(&key(1), &GET, &asking).unwrap();
        let [(_, digest), (_, signature)] = proof_of_it.headers(200, b"counts");
        let admit =
            |asking: &Asking, status, d: &str, s: &str| asking.admit(status, Some(d), Some(s));
        let announced = admit(&asking, 200, &digest, &signature).unwrap();
        assert_eq!(announced.length, 6);
        assert!(announced.is(b"counts"));
        for changed in [&b"countz"[..], b"count", b"countss", b""] {
            assert!(!announced.is(changed), "{changed:?}");
        }
        let foreign = Err(Unproven::Foreign);
        assert_eq!(admit(&asking, 401, &digest, &signature), foreign, "another status");
        assert_eq!(admit(&asking, 200, &digest.replacen('6', "7", 1), &signature), foreign);
        let next = key(1).ask(&GET, now(), [8; 16]);
        assert_eq!(admit(&next, 200, &digest, &signature), foreign, "of another question");
        let other = Proof { key: key(2), asked: proof_of_it.asked.clone() };
        let [(_, digest), (_, signature)] = other.headers(200, b"counts");
        assert_eq!(admit(&asking, 200, &digest, &signature), foreign, "by another key");
        // The question's own signature is not one of an answer.
        let [_, (_, mirrored)] = asking.headers();
        assert_eq!(admit(&asking, 200, &digest, mirrored), foreign);
        assert_eq!(asking.admit(200, Some(&digest), None), Err(Unproven::Unsigned));
        assert_eq!(asking.admit(200, None, Some(&signature)), Err(Unproven::Unsigned));
    }

    #[test]
    fn a_key_of_reports_is_not_the_key_that_it_comes_from() {
        let from = hmac::Key::new(hmac::HMAC_SHA256, &[1; 32]);
        let [(_, asked), _] = asking().headers().map(|(name, text)| (name, text.to_owned()));
        let signed = hex(hmac::sign(&from, &question(&GET, &asked)).as_ref());
        assert!(key(1).proof(&GET, &asked, &signed).is_none());
    }
}
