//! Request ids: what a vote says about the answer that it is for.
//!
//! `release-revision-generation-kind-rest`, in lower-case hexadecimal of fixed widths but
//! for the generation; `rest` ends with the signature over all before it. An id is
//! accepted in exactly the form in which it was printed: everything but the signature is
//! signed as text, and of a signature there is one spelling.

use std::fmt::Write;

use crate::gateway::identity::request_keys::{
    Key, Purpose, RequestKeys, SIGNATURE, printed, signature,
};

/// What a request is to the evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) enum Kind {
    /// A fair draw.
    Evidence,
    /// A fair draw that a shadow gets a copy of.
    Copied,
    /// The copy.
    Shadow,
    /// No evidence.
    Other,
}

impl Kind {
    const ALL: [(char, Self); 4] =
        [('e', Self::Evidence), ('p', Self::Copied), ('s', Self::Shadow), ('o', Self::Other)];

    fn letter(self) -> char {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or('o', |(letter, _)| *letter)
    }

    fn of(letter: char) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == letter).map(|(_, kind)| *kind)
    }
}

/// An id by its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RequestId<'a> {
    /// The short hash of the release.
    pub release: u32,
    /// The beginning of the variant's revision.
    pub revision: &'a str,
    /// The routing generation.
    pub generation: i64,
    pub kind: Kind,
    /// The group of its sticky key.
    pub group: Option<u8>,
    /// The process that answered.
    pub instance: u32,
    /// Shared by a request and its copy, and by nothing else.
    pub unique: u64,
    /// Its number among the evidence of its variant in that process; hidden by that process.
    pub serial: u32,
    /// Who asked, as a short hash of the party; 0 is nobody in particular.
    pub party: u32,
}

/// Hex digits of the part that ends an id: instance, unique, serial, party, signature.
const REST: usize = 8 + 16 + 8 + 8 + 2 * SIGNATURE;

impl<'a> RequestId<'a> {
    /// Prints it, signed.
    pub(super) fn print(&self, key: &Key) -> String {
        let mut text = String::with_capacity(128);
        let Self { release, revision, generation, instance, unique, serial, party, .. } = self;
        let kind = self.kind.letter();
        // Writing to a string does not fail.
        let _ = write!(text, "{release:08x}-{revision}-{generation:x}-{kind}");
        if let Some(group) = self.group {
            let _ = write!(text, "{group:02x}");
        }
        let _ = write!(text, "-{instance:08x}{unique:016x}{serial:08x}{party:08x}");
        let signed = printed(&key.sign_id(text.as_bytes()));
        text.push_str(&signed);
        text
    }

    /// Reads an id that one of `keys` signed, and says which.
    pub(super) fn read(text: &'a str, keys: &RequestKeys) -> Option<(Self, std::sync::Arc<Key>)> {
        let (signed, proof) = text.split_at_checked(text.len().checked_sub(2 * SIGNATURE)?)?;
        let key = keys.verify(Purpose::Id, signed.as_bytes(), &signature(proof)?)?;
        Some((Self::parse(text)?, key))
    }

    /// Reads what [`Self::print`] wrote, whoever signed it.
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split('-');
        let release = u32::try_from(hex(parts.next()?)?).ok()?;
        let revision = parts.next()?;
        let generation = i64::from_str_radix(parts.next()?, 16).ok()?;
        let kind = parts.next()?;
        let (letter, group) = kind.split_at_checked(1)?;
        let kind = Kind::of(letter.chars().next()?)?;
        let group = match group {
            "" => None,
            group => Some(u8::try_from(hex(group)?).ok()?),
        };
        let rest = parts.next().filter(|rest| rest.len() == REST)?;
        let part = |from: usize, to: usize| hex(rest.get(from..to)?);
        let id = Self {
            release,
            revision,
            generation,
            kind,
            group,
            instance: u32::try_from(part(0, 8)?).ok()?,
            unique: u64::try_from(part(8, 24)?).ok()?,
            serial: u32::try_from(part(24, 32)?).ok()?,
            party: u32::try_from(part(32, 40)?).ok()?,
        };
        parts.next().is_none().then_some(id)
    }
}

/// Lower-case hexadecimal, without a sign.
fn hex(text: &str) -> Option<u128> {
    let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let fits = !text.is_empty() && text.bytes().all(is_digit);
    fits.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn keys() -> RequestKeys {
        let keys = RequestKeys::default();
        keys.set(&[("1".to_owned(), vec![7; 32])].into(), Timestamp::UNIX_EPOCH);
        keys
    }

    fn id() -> RequestId<'static> {
        RequestId {
            release: 0xa1,
            revision: "9f3a00bb11",
            generation: 12,
            kind: Kind::Copied,
            group: Some(3),
            instance: 0x1234_5678,
            unique: 0xabcd,
            serial: 17,
            party: 0xffff_ffff,
        }
    }

    #[test]
    fn what_is_printed_is_read_back() {
        for (kind, group, generation) in [
            (Kind::Copied, Some(3), 12),
            (Kind::Other, None, 0),
            (Kind::Shadow, Some(31), i64::MAX),
        ] {
            let id = RequestId { kind, group, generation, ..id() };
            let text = id.print(&keys().signing());
            assert_eq!(RequestId::read(&text, &keys()).unwrap().0, id, "{text}");
            assert!(text.len() <= 130, "{}", text.len());
        }
    }

    #[test]
    fn no_other_spelling_and_no_other_content_is_accepted() {
        let text = id().print(&keys().signing());
        let mut others = vec![
            text.to_uppercase(),
            format!("{text} "),
            format!(" {text}"),
            format!("+{text}"),
            format!("0{text}"),
            text.replacen("-c-", "-0c-", 1),
            text.replacen("-c-", "-+c-", 1),
            text.replacen("-c-", "-C-", 1),
            text.replacen("-c-", "-d-", 1),
            text.replacen("-p03", "-p3", 1),
            text.replacen("-p03", "-e03", 1),
            text.replacen("-p03", "-p+3", 1),
            text.replacen("9f3a", "9f3b", 1),
            text[..text.len() - 1].to_owned(),
            text[..text.len() - 32].to_owned(),
            format!("{text}0"),
            format!("{text}-0"),
            text.replace('-', "_"),
            "é".repeat(40),
            String::new(),
            "-".repeat(64),
        ];
        let (body, signature) = text.split_at(text.len() - 32);
        others.push(format!("{body}{}", signature.to_uppercase()));
        others.push(format!("{body}+{}", &signature[1..]));
        others.push(format!("{body}{}", "0".repeat(32)));
        for other in others.iter().filter(|other| **other != text) {
            assert!(RequestId::read(other, &keys()).is_none(), "{other}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_is_made_up_is_accepted(text in "\\PC{0,140}", cut in 0..110_usize, put in "[0-9a-f-]{1,3}") {
            proptest::prop_assert!(RequestId::read(&text, &keys()).is_none());
            let mut changed = id().print(&keys().signing());
            let known = changed.clone();
            let cut = cut.min(changed.len() - put.len());
            changed.replace_range(cut..cut + put.len(), &put);
            proptest::prop_assert!(changed == known || RequestId::read(&changed, &keys()).is_none());
        }
    }
}
