use proptest::prelude::*;

use super::*;
use crate::api::manifest;

#[test]
fn credentials_in_a_text_are_found_and_nothing_else() {
    for (text, expected) in [
        ("https://ada:pw@host/v1", "https://[redacted]@host/v1"),
        ("https://ada@host:8443", "https://[redacted]@host:8443"),
        ("https://:pw@host", "https://[redacted]@host"),
        ("redis://ada:p@ss@host/0", "redis://[redacted]@host/0"),
        ("a http://x:y@h, and https://z:w@i.", "a http://[redacted]@h, and https://[redacted]@i."),
        ("https://ada:p%40w@[::1]:1/v1?a=b", "https://[redacted]@[::1]:1/v1?a=b"),
        ("http://ada:p/w@host/v1 is odd", "http://[redacted] is odd"),
        ("http://ada:pw%40host/v1", "http://[redacted]"),
        ("http://ada:pw%40host:9/v1 is", "http://[redacted] is"),
        ("http://ada:1%40host:9", "http://[redacted]"),
        ("http://ada:p?w@host/v1", "http://[redacted]"),
        ("http://ada:p#w@host", "http://[redacted]"),
        ("://ada:pw@host", "://[redacted]@host"),
        ("at http:///ada:pw@host/v1", "at http:///[redacted]@host/v1"),
        ("at http:/ada:pw@host/v1", "at http:/[redacted]@host/v1"),
        ("at HTTP:ada:pw@host, so", "at HTTP:[redacted]@host, so"),
        (r"at http:\\ada:pw@host/v1", r"at http:\\[redacted]@host/v1"),
        (r"at http://CORP\ada:pw@host/v1", "at http://[redacted]@host/v1"),
    ] {
        assert_eq!(without_credentials(text), expected);
    }
    for text in [
        "https://host/@cf/model",
        "https://host:8443/@cf/model",
        "https://[::1]/v1",
        "https://[::1]:80/v1",
        "https://host:/v1",
        "https://host/v1?to=a@b",
        "mail ada@example.org",
        "https://host \"a@b\"",
        "failed: mail:ada@example.org, http: it@example.org",
        "://",
        "",
    ] {
        assert_eq!(without_credentials(text), text);
    }
}

/// Addresses in which `lovelace` is a password, or the name of a user.
pub(crate) const WITH: [&str; 49] = [
    "https://ada:lovelace@host/v1",
    "https://lovelace@host:8443",
    "https://:lovelace@host",
    "https://ada:lovelace@[::1]:1/v1?a=b",
    "redis://ada:p@lovelace@host/0",
    // Slashes of any number, forwards or backwards, or none.
    "http:///ada:lovelace@host/v1",
    "http:////ada:lovelace@host/v1",
    "http:/ada:lovelace@host/v1",
    "http:ada:lovelace@host/v1",
    "http:lovelace@host/v1",
    r"http:\\ada:lovelace@host/v1",
    r"http:\ada:lovelace@host/v1",
    r"http:/\ada:lovelace@host/v1",
    r"http://\/ada:lovelace@host/v1",
    r"http://CORP\ada:lovelace@host/v1",
    "http:/ /ada:lovelace@host/v1",
    // What clients leave out.
    "http:/\t/ada:lovelace@host/v1",
    "ht\ntp://ada:lovelace@host/v1",
    "http://ada:love\r\nlace@host/v1",
    "http://ada:lovelace%4\n0host/v1",
    "  http://ada:lovelace@host/v1",
    "\u{1}http://ada:lovelace@host/v1",
    // Schemes in capitals, others, and none.
    "HTTP://ada:lovelace@host/v1",
    "hTtPs:///ada:lovelace@host",
    "ftp://ada:lovelace@host",
    "//ada:lovelace@host/v1",
    "ada:lovelace@host/v1",
    "lovelace@host",
    "://ada:lovelace@host",
    // The @ encoded, wide, or elsewhere.
    "http://ada:lovelace%40host/v1",
    "http://lovelace%40host/v1",
    "http://ada%3Alovelace@host/v1",
    "http://ada:lovelace%2540host/v1",
    "http://ada:lovelace\u{ff20}host/v1",
    "http://ada:12%40host:9",
    "http://[ada:lovelace@host/v1",
    "http://ada:lovelace@[::",
    "http://ada:lovelace@host:99999",
    // A password that ends what is before the path.
    "http://ada:love/lace@host/v1",
    "http://ada:love?lace@host/v1",
    "http://ada:love#lace@host",
    "http://ada:lovelace",
    "http:///ada:love/lace@host/v1",
    // A second address in the first.
    "https://http://ada:lovelace@host/v1",
    "/http://ada:lovelace@host",
    "./http://ada:lovelace@host",
    "https://host/proxy/https://ada:lovelace@host",
    "https://host?to=http://ada:lovelace@host",
    "https://host#http://ada:lovelace%40host",
];

/// Addresses without any.
const WITHOUT: [&str; 24] = [
    "https://host/v1",
    "https://host/@cf/model",
    "https://host:8443/@cf/model",
    "https://host/v1/models/claude@20240620:rawPredict",
    "https://host/v1/ada:lovelace@host",
    "https://host/a%40b",
    "https://host/v1?to=a@b",
    "https://host?to=ada:b@c",
    "https://host#a@b",
    "https://host:/v1",
    "https://host:8443",
    "https://host:8443?a=b:c@d",
    "https://[::1]/v1",
    "https://[::1]:80/v1",
    "https://[fe80::1%25eth0]:80/v1",
    "http:///host/@cf/model",
    "HTTP://HOST:80/v1",
    "  https://host:80 ",
    "localhost:8081",
    "10.0.0.1:8081/a@b",
    "[::1]:8081",
    "host/a@b",
    "://",
    "",
];

#[test]
fn credentials_of_an_address_are_found_in_every_spelling() {
    for url in WITH {
        assert!(has_credentials(url), "{url:?}");
        assert_eq!(shown(url), REDACTED, "{url:?}");
    }
    for url in WITHOUT {
        assert!(!has_credentials(url), "{url:?}");
    }
    assert_eq!(shown("http://host:80/v1"), "http://host:80/v1");
    assert_eq!(shown("http://host/v1?api_key=lovelace#a"), "http://host/v1?[redacted]");
}

#[test]
fn a_text_of_many_addresses_is_read_once() {
    for text in ["http:", "http:[", "http:a", "x://"] {
        let many = text.repeat(1 << 18);
        // Of a quadratic search nobody would see the end.
        without_credentials(&many);
    }
}

/// What the rules of the API server say to an LLMDeployment with this address or proxy.
fn refused(field: &str, url: &str) -> Option<String> {
    let url = serde_json::Value::from(url);
    let place = match field {
        "endpoint" => format!("endpoint: {{url: {url}}}"),
        _ => format!("endpoint: {{url: \"http://m/v1\"}}, proxy: {{url: {url}}}"),
    };
    let text = format!(
        "apiVersion: serinus.dev/v1alpha1\nkind: LLMDeployment\nmetadata: {{name: b}}\n\
         spec: {{provider: vllm, model: m, {place}}}"
    );
    manifest::parse(&text).err().map(|e| e.to_string())
}

#[test]
fn the_api_server_refuses_the_same_and_tells_nothing_of_it() {
    for field in ["endpoint", "proxy"] {
        for url in WITH {
            let message = refused(field, url).unwrap_or_default();
            assert!(message.contains(&format!("spec.{field}.url")), "{url:?}: {message}");
            assert!(!message.contains("love"), "{url:?}: {message}");
        }
    }
    let taken = WITHOUT.iter().filter(|url| refused("endpoint", url).is_none()).count();
    assert!(taken >= 9, "of what has none, what is an address of HTTP is taken: {taken}");
    let rule = no_credentials_in("self.url");
    for url in WITH.iter().filter(|url| !url.contains(['\t', '\r', '\n'])) {
        assert!(!by_rule(&rule, url), "{url:?}");
    }
    for url in WITHOUT {
        assert!(by_rule(&rule, url), "{url:?}");
    }
}

/// What a rule in CEL says of an address, without the schema before it.
fn by_rule(rule: &str, url: &str) -> bool {
    let schema = serde_json::json!({"type": "object", "properties": {"url": {"type": "string"}},
        "x-kubernetes-validations": [{"rule": rule}]});
    let compiled = kube::core::cel::compile_schema(&schema);
    let value = serde_json::json!({"url": url});
    kube::core::cel::validate_compiled(&compiled, &value, None).is_ok()
}

proptest! {
    #[test]
    fn no_spelling_has_credentials_for_a_client_and_none_for_us(
        url in r"[ \t\n\x01]{0,2}([hH]ttps?|ftp|redis)?:?[/\\\t ]{0,4}[a:@%40\[\]\\.\t1/?# ]{0,12}(/v1)?"
    ) {
        let read = reqwest::Url::parse(&url).ok();
        let has = read.is_some_and(|url| !url.username().is_empty() || url.password().is_some());
        prop_assert!(!has || has_credentials(&url), "{url:?}");
        let read = url.parse::<axum::http::Uri>().ok();
        let has = read.and_then(|uri| Some(uri.authority()?.as_str().contains('@')));
        prop_assert!(has != Some(true) || has_credentials(&url), "{url:?}");
    }
}

#[test]
fn a_message_can_name_an_address_without_its_path() {
    for (url, shown) in [
        ("https://m:8443/v1/zq7Kp2Lm9X", "https://m:8443"),
        ("http://m", "http://m"),
        ("http://m?key=zq7Kp2Lm9X", "http://m"),
        ("m/zq7Kp2Lm9X", "m"),
        ("https://ada:zq7Kp2Lm9X@m/v1", REDACTED),
    ] {
        assert_eq!(without_path(url), shown, "{url}");
    }
}
