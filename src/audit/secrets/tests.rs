use base64::prelude::BASE64_STANDARD;
use proptest::prelude::*;

use super::*;

const KEY: &str = "sk-proj-AbC0123456789_xyz/+=&\"q";

fn of(secrets: &[&str]) -> Secrets {
    Secrets::new(secrets.iter().copied())
}

/// One character in each spelling.
fn spelled(byte: u8, way: usize) -> String {
    let c = char::from(byte);
    match way {
        0 if c == '"' => "\\\"".to_owned(),
        1 => format!("\\u{byte:04x}"),
        2 => format!("\\u{byte:04X}"),
        3 => format!("\\\\u{byte:04x}"),
        4 => format!("%{byte:02X}"),
        5 => format!("%{byte:02x}"),
        6 => format!("%25{byte:02X}"),
        7 => format!("&#{byte};"),
        8 => format!("&#x{byte:X};"),
        9 if c.is_ascii_punctuation() => format!("\\{c}"),
        10 if c.is_ascii_punctuation() => format!("\\\\\\{c}"),
        11 => format!("&#{byte:07};"),
        12 => format!("&#x{byte:05x};"),
        13 => format!("\\\\\\\\u{byte:04x}"),
        14 if c == '/' => "&sol;".to_owned(),
        14 if c == '_' => "&lowbar;".to_owned(),
        14 if c == '-' => "&hyphen;".to_owned(),
        15 => format!("%2525{byte:02x}"),
        _ => c.to_string(),
    }
}

/// Through pieces of this length.
fn in_pieces(secrets: &Arc<Secrets>, text: &str, length: usize) -> String {
    let mut passing = Passing::new(secrets.clone());
    let mut out = vec![];
    for piece in text.as_bytes().chunks(length) {
        out.extend(passing.next(Bytes::copy_from_slice(piece)));
    }
    out.extend(passing.end());
    String::from_utf8(out).unwrap()
}

#[test]
fn a_secret_is_found_in_whatever_form_a_server_quotes_it() {
    let secrets = Arc::new(of(&[KEY]));
    let json = serde_json::Value::from(KEY).to_string();
    let twice = serde_json::Value::from(json.as_str()).to_string();
    let all = |way| KEY.bytes().map(|byte| spelled(byte, way)).collect::<String>();
    let few = |way| {
        let each =
            KEY.bytes().map(|b| spelled(b, if b.is_ascii_alphanumeric() { 99 } else { way }));
        each.collect::<String>()
    };
    let mut forms = vec![KEY.to_owned(), json, twice, BASE64_STANDARD.encode(KEY)];
    forms.push(BASE64_STANDARD.encode(format!("user:{KEY}")));
    forms.push(BASE64_STANDARD.encode(format!("a:{KEY}:b")));
    forms.push(BASE64_URL_SAFE_NO_PAD.encode(format!("Bearer {KEY}")));
    forms.push(KEY.bytes().map(|byte| format!("{byte:02x}")).collect());
    forms.push(KEY.bytes().map(|byte| format!("{byte:02X}:")).collect());
    forms.push(KEY.bytes().map(|byte| format!("{byte:02x} ")).collect());
    for before in ["", "a", "ab", "user:"] {
        let once = BASE64_STANDARD.encode(format!("{before}{KEY}"));
        forms.push(BASE64_STANDARD.encode(&once));
        forms.push(BASE64_URL_SAFE_NO_PAD.encode(format!("Basic {once}")));
        forms.push(BASE64_STANDARD.encode(format!("b: {once}")));
    }
    forms.extend([1, 2, 4, 5, 11, 12, 13, 15].map(all));
    forms.extend((0..16).map(few));
    for form in forms {
        let text = format!("{{\"error\": \"Incorrect key {form}, sent as header\"}} {form}\n");
        let found = secrets.text(&text);
        assert_eq!(found.matches(REDACTED).count(), 2, "{form} in {found}");
        assert!(!found.contains("0123456789"), "{found}");
        for length in [1, 2, 3, 7, 64] {
            assert_eq!(in_pieces(&secrets, &text, length), found, "{form} in {length}s");
        }
    }
}

#[test]
fn json_stays_json_around_it() {
    for way in 0..11 {
        let key: String = KEY
            .bytes()
            .map(|b| {
                if b.is_ascii_alphanumeric() || way == 9 {
                    char::from(b).to_string()
                } else {
                    spelled(b, way)
                }
            })
            .collect();
        // What is no escape of JSON can not be within JSON.
        let text = format!(r#"{{"a": "\"{key}\"", "b": "\\{key}\\", "c": "\\\"{key}"}}"#);
        if serde_json::from_str::<serde_json::Value>(&text).is_err() {
            continue;
        }
        let found = of(&[KEY]).text(&text).into_owned();
        assert_eq!(found.matches(REDACTED).count(), 3, "{found}");
        assert!(serde_json::from_str::<serde_json::Value>(&found).is_ok(), "{found}");
    }
}

#[test]
fn words_and_short_secrets_are_left_alone() {
    let words = ["sk-1234", "EMPTY", "not-needed", "lm-studio", "no-key-required", "", "none"];
    let secrets = of(&words);
    assert!(secrets.is_empty());
    let text = "an answer: sk-1234, not-needed, no-key-required";
    assert_eq!(secrets.text(text), text);
    assert!(is_searched("sk-12345") && is_searched("a-word-of-sixteen"));
}

#[test]
fn a_secret_of_which_every_character_is_spelled_alike_is_found() {
    let secrets = of(&["sk-up-Zk3v9QmX7tR2wLp8Yd4N"]);
    let spellings: [fn(u8) -> String; 13] = [
        |b| format!("\\u{b:04x}"),
        |b| format!("\\\\u{b:04X}"),
        |b| format!("%{b:02x}"),
        |b| format!("%{b:02X}"),
        |b| format!("%25{b:02X}"),
        |b| format!("&#{b};"),
        |b| format!("&#x{b:x};"),
        |b| format!("&#x{b:X};"),
        |b| format!("&#{b:05};"),
        |b| format!("&#x{b:06X};"),
        |b| format!("\\\\\\\\u{b:04x}"),
        |b| format!("\\\\\\\\\\\\\\\\u{b:04x}"),
        |b| format!("%2525{b:02x}"),
    ];
    for spelled in spellings {
        let key: String = "sk-up-Zk3v9QmX7tR2wLp8Yd4N".bytes().map(spelled).collect();
        assert_eq!(secrets.text(&format!("x {key} y")), format!("x {REDACTED} y"));
    }
}

#[test]
fn a_part_of_a_secret_and_what_is_like_it_stay() {
    let secrets = Arc::new(of(&["sk-live-0123456789abcdef", "org-abcdefgh12345678"]));
    for text in [
        "Incorrect API key provided: sk-live-01234****cdef.",
        "sk-live-0123456X",
        "org-abcdefgh123",
        "\\u0073k-live-0123456",
        "%73%6b-%",
        "&#115;&",
        "\\",
    ] {
        assert_eq!(secrets.text(text), text);
        for length in [1, 3, 50] {
            assert_eq!(in_pieces(&secrets, text, length), text, "in {length}s");
        }
    }
    assert_eq!(
        secrets.text("sk-live-0123456789abcdefsk-live-0123456789abcdef org-abcdefgh12345678"),
        format!("{REDACTED}{REDACTED} {REDACTED}")
    );
}

#[test]
fn most_of_a_secret_is_one_wherever_a_server_cuts_its_message() {
    let secrets = Arc::new(of(&["sk-live-0123456789abcdef"]));
    for (text, found) in [
        ("key sk-live-0123456789abcde", "key [redacted:secret]"),
        ("key sk-live-01234567…", "key [redacted:secret]…"),
        ("key sk-live-01234567%", "key [redacted:secret]%"),
        ("key sk-live-01234567****", "key [redacted:secret]****"),
        ("\\u0073k-live-0123456789abcde\\", "[redacted:secret]\\"),
        ("key sk-live-0123456…", "key sk-live-0123456…"),
    ] {
        assert_eq!(secrets.text(text), found);
        for length in [1, 3, 20, 50] {
            assert_eq!(in_pieces(&secrets, text, length), found, "in {length}s");
        }
    }
    let shown = of(&["abcdefgh1"]);
    assert_eq!(shown.text("abcdefgh"), "abcdefgh", "of a short one the beginning is a word");
}

#[test]
fn nothing_is_kept_back_but_what_may_be_a_secret() {
    let secrets = Arc::new(of(&[KEY]));
    let mut passing = Passing::new(secrets);
    let event =
        Bytes::from_static(b"data: {\"choices\":[{\"delta\":{\"content\":\"sk-proj\"}}]}\n\n");
    assert_eq!(passing.next(event.clone()), event);
    assert!(passing.is_empty(), "an event goes on when it is there");
    assert_eq!(passing.next(Bytes::from_static(b"data: sk-pro")), "data: ");
    assert_eq!(passing.next(Bytes::from_static(b"mise\n\n")), "sk-promise\n\n");
}

#[test]
fn a_secret_in_the_words_of_several_events_is_heard() {
    let mut passing = Passing::new(Arc::new(of(&[KEY])));
    assert_eq!(passing.hear("your key is: "), Heard::Nothing);
    assert_eq!(passing.hear("sk-proj-"), Heard::Begun(8));
    assert_eq!(passing.hear("AbC0123456789"), Heard::Begun(21));
    assert_eq!(passing.hear("_xyz/+=&\"q!"), Heard::Secret);
    let mut passing = Passing::new(Arc::new(of(&[KEY])));
    assert_eq!(passing.hear("sk-proj-AbC"), Heard::Begun(11));
    assert_eq!(passing.hear("acia"), Heard::Nothing);
}

#[test]
fn the_search_takes_no_longer_for_an_answer_made_to_slow_it() {
    // Steps, not time: around each anchor no more is compared than the secret is long.
    let secret = "0123456789abcdef".repeat(8);
    let secrets = of(&[&secret]);
    for piece in ["0123456789ab", "\\", "%25", "&#48;", "\\u0030", "0"] {
        let text = piece.repeat((1 << 20) / piece.len());
        assert_eq!(secrets.text(&text), text, "{piece}");
    }
}

proptest! {
    #[test]
    fn wherever_the_text_is_cut_no_secret_passes_and_the_rest_does(
        words in prop::collection::vec(prop_oneof![
            3 => "[ a-z%&\\\\\"\n+]{0,12}",
            1 => (0..KEY.len()).prop_map(|end| KEY[..end].to_owned()),
            2 => prop::collection::vec(0..16_usize, KEY.len()).prop_map(|ways| {
                // A few characters as they are, by which it is found.
                let each = KEY.bytes().zip(ways).enumerate();
                each.map(|(at, (byte, way))| if (8..21).contains(&at) {
                    char::from(byte).to_string()
                } else {
                    spelled(byte, way)
                }).collect::<String>()
            }),
        ], 0..8),
        mut cuts in prop::collection::vec(0..600_usize, 0..9),
    ) {
        let secrets = Arc::new(of(&[KEY]));
        let text = words.concat();
        let whole = secrets.text(&text);
        prop_assert!(!whole.contains(KEY), "{whole}");
        cuts.sort_unstable();
        let (mut passing, mut from, mut out) = (Passing::new(secrets), 0, vec![]);
        for cut in cuts.into_iter().filter(|cut| *cut < text.len()).chain([text.len()]) {
            out.extend(passing.next(Bytes::copy_from_slice(&text.as_bytes()[from..cut])));
            from = cut;
        }
        out.extend(passing.end());
        let out = String::from_utf8_lossy(&out).into_owned();
        prop_assert!(!out.contains(KEY), "{out}");
        prop_assert_eq!(out.matches(REDACTED).count(), whole.matches(REDACTED).count());
    }
}
