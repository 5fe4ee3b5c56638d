use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use proptest::prelude::*;

use super::*;

const KEY: &str = "sk-proj-AbC0123456789_xyz/+=&\"q";

mod escaped;

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
        16 => format!("\\x{byte:02x}"),
        17 => format!("\\\\{byte:03o}"),
        18 => format!("={byte:02X}"),
        19 => format!("&amp;#{byte};"),
        20 => format!("%u{byte:04x}"),
        21 => format!("\\u0026#x{byte:x};"),
        22 => format!("\\u{{{byte:x}}}"),
        23 => format!("\\u{{{byte:06X}}}"),
        24 => format!("\\\\x{{{byte:x}}}"),
        25 => format!("\\U{byte:08x}"),
        26 => format!("\\{byte:03o}"),
        27 => format!("&amp;amp;#X{byte:04X};"),
        28 => format!("\\\\\\\\\\\\\\\\u{byte:04x}"),
        29 => format!("\\{byte:o}"),
        _ => c.to_string(),
    }
}

/// How many ways there are.
const WAYS: usize = 30;

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
    forms.extend([1, 2, 4, 5, 11, 12, 13].map(all));
    forms.extend((15..22).map(all));
    forms.extend((0..22).map(few));
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

/// Keys with a long row of letters and digits and without any, long ones and short ones,
/// one that repeats itself, and one that reads like escapes.
const KEYS: [&str; 10] = [
    KEY,
    "sk-0123456789abcdefABCDEFxyzXYZ",
    "sk-live-51Habcdefghijkl0987654321mnopqrstuvwxyzKLMNOPQRSTUV0246813579abcdefXYZ",
    "Zm9+b2J+hcmJ+hei+Bxd+XV4+IGZ+vbyB/iYXI/9yZW/Q1NjM/nZGZ==",
    "a+b+c+d+e+f+g+h1i+j2k+l3m",
    "Zq7/xT+9",
    "12345678",
    "a1a1a1a1a1a1a1a1a1a1a2",
    "000000000000000000000001",
    "k=32-%25%2541&amp;&#38;\\\\u0041\\n\"=3D 7+7",
];

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
    let repeated = "0000000000000001".repeat(8);
    let secrets = of(&[&secret, &repeated]);
    for piece in [
        "0123456789ab",
        "\\",
        "%25",
        "&#48;",
        "\\u0030",
        "0",
        "\0",
        "&amp;#48;",
        "x30",
        "30 ",
        "48,",
        "30  |",
        "48 ",
        "48\n",
        "48,\"1\":",
        "3000",
        "MDEyMzQ1\n",
        "=30",
        "0\\u0030",
        "0=\n",
        "\\\"",
        "&amp;",
        "\\u{30}",
    ] {
        let text = piece.repeat((1 << 20) / piece.len());
        assert!(secrets.text(&text) == text, "{piece}");
    }
}

/// A key as they are made, whose bytes have hexadecimal digits of all kinds.
const LONG: &str = "sk-proj-Zq7/xT+9bVn2Lw8Rk4Yd1Hs6Gf3Jm0PcAeUiOy5tBz";

fn each(key: &str, spelled: impl FnMut(u8) -> String) -> String {
    key.bytes().map(spelled).collect()
}

fn joined(key: &str, between: &str, spelled: impl Fn(u8) -> String) -> String {
    key.bytes().map(spelled).collect::<Vec<_>>().join(between)
}

/// In lines of this length.
fn folded(text: &str, length: usize, line_break: &str) -> String {
    let lines = text.as_bytes().chunks(length).map(String::from_utf8_lossy);
    lines.collect::<Vec<_>>().join(line_break)
}

/// That of each form of a key nothing is left, however the text is cut.
fn all_are_found(key: &str, forms: &[String]) {
    let secrets = Arc::new(of(&[key]));
    for form in forms {
        let text = format!("{{\"error\": \"bad: {form}, sent\"}} ({form})\n");
        let found = secrets.text(&text);
        let expected = text.replace(form, REDACTED);
        // Of a text that was encoded with others, these may be left, and a prefix.
        assert_eq!(found.matches(REDACTED).count(), 2, "{form} in {found}");
        assert!(found.len() < expected.len() + 2 * 80, "{form} in {found}");
        for length in [1, 2, 3, 7, 64, 100] {
            assert_eq!(in_pieces(&secrets, &text, length), found, "{form} in {length}s");
        }
    }
}

#[test]
fn base64_is_found_across_the_ends_of_its_lines() {
    let mut forms = vec![];
    for line_break in ["\n", "\r\n", "\\n", "\\r\\n", "\\\\n", "\n    ", "%0D%0A", "&#10;"] {
        for before in ["", "a", "Bearer ", "{\"headers\":{\"authorization\":\"Bearer "] {
            let text = BASE64_STANDARD.encode(format!("{before}{LONG}\"}}}}"));
            for length in [16, 20, 21, 63, 64, 76] {
                forms.push(folded(&text, length, line_break));
            }
            let twice = BASE64_STANDARD.encode(&text);
            forms.push(folded(&twice, 76, line_break));
        }
    }
    all_are_found(LONG, &forms);
}

#[test]
fn hexadecimal_digits_are_found_in_lines_in_lists_and_in_dumps() {
    for key in [LONG, KEY, "kZ-mN-0123456789-jklo"] {
        let mut forms = vec![];
        for between in [",", ", ", "  "] {
            forms.push(joined(key, between, |b| format!("{b:02x}")));
            forms.push(joined(key, between, |b| format!("{b:02X}")));
        }
        for between in ["\",\"", "\", \"", "\\\", \\\"", "', '", "','"] {
            forms.push(joined(key, between, |b| format!("{b:02x}")));
        }
        for between in ["", " ", ":", "-", ",", ", ", "  ", "\n", "\\n", ",\n    "] {
            forms.push(joined(key, between, |b| format!("0x{b:02x}")));
            forms.push(joined(key, between, |b| format!("0x{b:02X}")));
        }
        let once = joined(key, "", |b| format!("{b:02x}"));
        let spaced = joined(key, " ", |b| format!("{b:02X}"));
        for line_break in ["\n", "\r\n", "\\n", "\\\\n"] {
            for length in [16, 32, 60, 64, 76] {
                forms.push(folded(&once, length, line_break));
            }
            for length in [24, 48, 47] {
                forms.push(folded(&spaced, length, line_break));
            }
        }
        // Words of two bytes.
        forms.push(folded(&once, 4, " "));
        // Of UTF-16.
        for units in [|b: u8| [b, 0], |b: u8| [0, b]] {
            let wide = |between: &str, digits: fn(u8) -> String| {
                let bytes = key.bytes().flat_map(units);
                bytes.map(digits).collect::<Vec<_>>().join(between)
            };
            forms.push(wide("", |b| format!("{b:02x}")));
            forms.push(wide("", |b| format!("{b:02X}")));
            forms.push(wide(" ", |b| format!("{b:02x}")));
            forms.push(wide(":", |b| format!("{b:02X}")));
            forms.push(folded(&wide("", |b| format!("{b:02x}")), 4, " "));
        }
        all_are_found(key, &forms);
        let secrets = Arc::new(of(&[key]));
        for shift in 0..16 {
            let bytes = ["x".repeat(shift).as_bytes(), key.as_bytes()].concat();
            for (line_break, side) in [("\n", "|"), ("\\n", "|"), ("\n", "")] {
                let rows = bytes.chunks(16).enumerate().map(|(row, bytes)| {
                    let digits = bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>();
                    let (first, second) = digits.split_at(digits.len().min(8));
                    let digits = format!("{}  {}", first.join(" "), second.join(" "));
                    let text = String::from_utf8_lossy(bytes).replace('"', "\\\"");
                    format!("{:08x}  {digits:49} {side}{text}{side}", row * 16)
                });
                let dump = rows.collect::<Vec<_>>().join(line_break);
                let text = format!("{{\"error\": \"bad: {dump}\"}}");
                let found = secrets.text(&text);
                assert_eq!(found.matches(REDACTED).count(), 1, "{found}");
                assert!(!found.contains(&key[key.len() - 8..]), "{found}");
                assert!(found.ends_with("\"}"), "{found}");
            }
        }
    }
}

#[test]
fn what_was_encoded_in_two_ways_is_found() {
    let mut forms = vec![];
    let escaped = [
        LONG.replace('/', "%2F").replace('+', "%2B"),
        each(LONG, |b| format!("%{b:02X}")),
        each(LONG, |b| format!("%{b:02x}")),
        each(LONG, |b| format!("\\u{b:04x}")),
        each(LONG, |b| format!("\\\\u{b:04x}")),
        LONG.replace('/', "\\/"),
        each(LONG, |b| format!("{b:02x}")),
        each(LONG, |b| format!("{b:02X}")),
        each(LONG, |b| format!("{}\0", char::from(b))),
    ];
    for before in ["", "a", "ab", "Bearer "] {
        for text in &escaped {
            let text = BASE64_STANDARD.encode(format!("{before}{text}\0}}"));
            forms.push(folded(&text, 76, "\\n"));
            forms.push(text);
        }
        let base64 = BASE64_STANDARD.encode(format!("{before}{LONG}}}"));
        forms.push(joined(&base64, "", |b| format!("{b:02x}")));
        forms.push(joined(&base64, " ", |b| format!("{b:02X}")));
        forms.push(base64.replace('/', "%2F").replace('+', "%2B").replace('=', "%3D"));
    }
    all_are_found(LONG, &forms);
}

#[test]
fn entities_without_an_end_and_escaped_once_more_are_found() {
    let mut forms = vec![];
    for ampersand in ["&", "&amp;", "&amp;amp;", "\\u0026", "\\u0026amp;", "&#38;", "&#x26;"] {
        forms.push(each(LONG, |b| format!("{ampersand}#{b};")));
        forms.push(each(LONG, |b| format!("{ampersand}#{b:05};")));
        forms.push(each(LONG, |b| format!("{ampersand}#x{b:X};")));
        forms.push(each(LONG, |b| format!("{ampersand}#{b}")));
        forms.push(each(LONG, |b| format!("{ampersand}#x{b:x}")));
        forms.push(LONG.replace('/', &format!("{ampersand}sol;")));
        forms.push(LONG.replace('/', &format!("{ampersand}#47;")));
    }
    all_are_found(LONG, &forms);
}

#[test]
fn escapes_of_programming_languages_and_mails_and_lists_of_numbers_are_found() {
    for key in [LONG, KEY] {
        let mut forms = vec![
            each(key, |b| format!("%u{b:04x}")),
            each(key, |b| format!("%u{b:04X}")),
            each(key, |b| format!("={b:02X}")),
            key.replace('=', "=3D").replace('+', "=2B"),
            key.replace('+', "=\r\n+"),
        ];
        for backslashes in ["\\", "\\\\", "\\\\\\\\"] {
            forms.push(each(key, |b| format!("{backslashes}x{b:02x}")));
            forms.push(each(key, |b| format!("{backslashes}x{b:02X}")));
            forms.push(each(key, |b| format!("{backslashes}{b:03o}")));
            forms.push(each(key, |b| format!("{backslashes}u{{{b:x}}}")));
            forms.push(each(key, |b| format!("{backslashes}U{b:08x}")));
        }
        for between in [",", ", ", ",\n    ", ",\\n  ", ",\r\n\t"] {
            forms.push(format!(
                "{{\"type\":\"Buffer\",\"data\":[{}]}}",
                joined(key, between, |b| b.to_string())
            ));
        }
        // As Go prints them, and one in each line.
        for between in [" ", "\t", "\n", "\r\n", "\\n", "\\r\\n", "\\\\n"] {
            forms.push(format!("[{}]", joined(key, between, |b| b.to_string())));
        }
        // A typed array as JSON.stringify writes it, also indented and within JSON.
        for (quote, colon, between) in [
            ("\"", ":", ","),
            ("\"", ": ", ", "),
            ("'", ": ", ", "),
            ("\"", ": ", ",\n        "),
            ("\\\"", ":", ","),
            ("\\\"", ": ", ",\\n        "),
            ("\\\\\\\"", ":", ","),
        ] {
            let numbers = key.bytes().enumerate();
            let fields = numbers.map(|(at, b)| format!("{quote}{at}{quote}{colon}{b}"));
            forms.push(format!("{{{}}}", fields.collect::<Vec<_>>().join(between)));
        }
        all_are_found(key, &forms);
    }
}

#[test]
fn a_text_of_wide_characters_is_read_as_one_of_narrow_ones() {
    let secrets = Arc::new(of(&[LONG]));
    let units: [fn(u8) -> Vec<u8>; 4] =
        [|b| vec![b, 0], |b| vec![0, b], |b| vec![b, 0, 0, 0], |b| vec![0, 0, 0, b]];
    let wide =
        |text: &str, unit: fn(u8) -> Vec<u8>| -> Vec<u8> { text.bytes().flat_map(unit).collect() };
    for form in [
        LONG.to_owned(),
        BASE64_STANDARD.encode(format!("Bearer {LONG}.")),
        each(LONG, |b| format!("\\u{b:04x}")),
        each(LONG, |b| format!("%{b:02X}")),
    ] {
        for unit in units {
            let text = wide(&format!("{{\"message\": \"bad {form}\"}}"), unit);
            let found = secrets.without(&text).unwrap();
            let narrow: Vec<u8> = found.iter().copied().filter(|byte| *byte != 0).collect();
            let narrow = String::from_utf8(narrow).unwrap();
            assert_eq!(narrow.matches(REDACTED).count(), 1, "{narrow}");
            assert!(!narrow.contains("Lw8Rk4Yd"), "{narrow}");
            // It can still be read.
            assert_eq!(found, wide(&narrow, unit));
            for length in [1, 2, 3, 5, 64] {
                let (mut passing, mut out) = (Passing::new(secrets.clone()), vec![]);
                for piece in text.chunks(length) {
                    out.extend(passing.next(Bytes::copy_from_slice(piece)));
                }
                out.extend(passing.end());
                assert_eq!(out, found, "{narrow} in {length}s");
            }
        }
    }
    let zeros = [b"sk-proj-".as_slice(), &[0; 1 << 16]].concat();
    let mut passing = Passing::new(secrets);
    assert_eq!(passing.next(zeros.clone().into()), zeros, "no text is as wide");
}

#[test]
fn numbers_dumps_and_base64_of_others_stay() {
    let secrets = Arc::new(of(&[LONG, "org-abcdefgh12345678"]));
    let other = LONG.replace("Zq7", "Aq7");
    for text in [
        joined(&other, ", ", |b| b.to_string()),
        joined(&other, " ", |b| b.to_string()),
        joined(&other, ",\"7\":", |b| b.to_string()),
        "115 107\n45 \"1\":115,\"2\":107,\"".to_owned(),
        joined(&other, ", ", |b| format!("0x{b:02x}")),
        joined(&other, "", |b| format!("{b:02x}")),
        each(&other, |b| format!("\\x{b:02x}")),
        each(&other, |b| format!("&amp;#{b};")),
        folded(&BASE64_STANDARD.encode(&other), 20, "\n"),
        "In 1973 the 73 6b  of them were 115, 107, 45 and x=73 &amp;#039; \\x73".to_owned(),
        "\0\0 \0a".to_owned(),
    ] {
        assert_eq!(secrets.text(&text), text);
        for length in [1, 3, 50] {
            assert_eq!(in_pieces(&secrets, &text, length), text, "in {length}s");
        }
    }
}

proptest! {
    #[test]
    fn wherever_the_text_is_cut_no_secret_passes_and_the_rest_does(
        words in prop::collection::vec(prop_oneof![
            3 => "[ a-z%&\\\\\"\n+]{0,12}",
            1 => (0..KEY.len()).prop_map(|end| KEY[..end].to_owned()),
            2 => prop::collection::vec(0..WAYS, KEY.len()).prop_map(|ways| {
                KEY.bytes().zip(ways).map(|(byte, way)| spelled(byte, way)).collect::<String>()
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
