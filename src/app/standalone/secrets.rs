//! Secrets without a cluster: manifests of the folder, and the environment. A field that
//! a manifest does not have, or a Secret that has no manifest, is looked for in the
//! environment, so that the folder can do without secrets.

use std::collections::BTreeMap;

use super::{manifests::Manifests, object_key_of};
use crate::{
    api::{
        SecretText,
        keys::CLIENT_KEY_LABEL,
        llm_deployment::{SecretKeyRef, TLS_CERTIFICATE, TLS_KEY},
        manifest::Secrets,
    },
    gateway::{
        identity::{ClientKey, Keys, Owner},
        notices::Notice,
    },
};

/// The environment variable that stands for one key of a Secret.
pub fn secret_variable(name: &str, key: &str) -> String {
    format!("SERINUS_SECRET_{name}_{key}")
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
        .collect()
}

/// The same variable as messages name it: without the key where somebody may have written the
/// secret itself in its place.
pub(super) fn variable_in_words(wanted: &SecretKeyRef) -> String {
    if [TLS_CERTIFICATE, TLS_KEY].contains(&wanted.key.as_str()) {
        return secret_variable(&wanted.name, &wanted.key);
    }
    let begins = secret_variable(&wanted.name, "");
    format!("{begins}<KEY> (that key in capitals, with _ for all but letters and digits)")
}

fn from_environment(name: &str, key: &str) -> Option<SecretText> {
    let set = std::env::var(secret_variable(name, key)).ok();
    // `KEY= serinus standalone` sets none, and nor does `KEY=" "`.
    set.map(SecretText::from).filter(|text| !text.is_blank())
}

/// One key of a Secret.
pub(super) fn secret(
    manifests: &Manifests,
    namespace: &str,
    wanted: &SecretKeyRef,
) -> Option<SecretText> {
    let written = manifests.secret(namespace, &wanted.name);
    let written = written.and_then(|secret| secret.fields.get(&wanted.key)).cloned();
    written.or_else(|| from_environment(&wanted.name, &wanted.key))
}

/// The client keys of the folder, and what is wrong with others. Who owns the folder
/// owns the gateway, so every key may permit every route.
pub(super) fn client_keys(manifests: &Manifests) -> (Keys, Vec<Notice>) {
    let (mut keys, mut problems) = (vec![], vec![]);
    for secret in manifests.secrets().filter(|secret| is_client_key(secret)) {
        let (_, name) = object_key_of(&secret.metadata);
        let mut fields: BTreeMap<String, Vec<u8>> = secret
            .fields
            .iter()
            .map(|(field, text)| (field.clone(), text.expose().as_bytes().to_vec()))
            .collect();
        if !fields.contains_key("key")
            && let Some(key) = from_environment(&name, "key")
        {
            fields.insert("key".to_owned(), key.expose().as_bytes().to_vec());
        }
        match ClientKey::read(Owner::Gateway, &name, &fields) {
            Ok(key) => keys.push(key),
            Err(error) => problems.push(invalid(&name, &error.to_string())),
        }
    }
    let (keys, doubles) = Keys::new(keys);
    let double =
        |name: String| invalid(&name, "another Secret has the same key, this one is not used");
    problems.extend(doubles.into_iter().map(double));
    (keys, problems)
}

fn invalid(name: &str, why: &str) -> Notice {
    Notice::new(format!("Secret {name}"), "InvalidClientKey", why)
}

fn is_client_key(secret: &Secrets) -> bool {
    let labels = secret.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(CLIENT_KEY_LABEL)).is_some_and(|value| value == "true")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_the_variable_and_only_keys_that_serinus_chose() {
        let variable = |key: &str| {
            variable_in_words(&SecretKeyRef { name: "open-ai".to_owned(), key: key.to_owned() })
        };
        assert_eq!(variable("tls.key"), "SERINUS_SECRET_OPEN_AI_TLS_KEY");
        let told = variable("9f2c7d1e8a4b6c3d");
        assert!(told.starts_with("SERINUS_SECRET_OPEN_AI_<KEY> (that key in capitals"), "{told}");
        assert!(!told.to_lowercase().contains("9f2c"), "{told}");
    }
}
