//! Secrets of which any characters are escaped.

use super::*;

/// Numbers that are the same each time.
fn numbers(mut seed: u64) -> impl FnMut(usize) -> usize {
    move |below| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    }
}

/// That nothing but the key is taken from a text that quotes it like this.
fn is_taken(secrets: &Arc<Secrets>, quoted: &str) {
    let expected = format!("{{\"error\": \"key {REDACTED}, sent\"}}\n");
    let text = expected.replace(REDACTED, quoted);
    assert_eq!(secrets.text(&text), expected, "{quoted}");
    for length in [1, 2, 7] {
        assert_eq!(in_pieces(secrets, &text, length), expected, "{quoted} in {length}s");
    }
}

#[test]
fn a_secret_is_found_whichever_one_of_its_characters_is_escaped() {
    for key in KEYS {
        let secrets = Arc::new(of(&[key]));
        for (at, byte) in key.bytes().enumerate() {
            for way in 0..WAYS {
                let (before, after) = (&key[..at], &key[at + 1..]);
                is_taken(&secrets, &format!("{before}{}{after}", spelled(byte, way)));
            }
            is_taken(&secrets, &format!("{}{}", &key[..at], each(&key[at..], |b| spelled(b, 1))));
            is_taken(&secrets, &format!("{}{}", each(&key[..at], |b| spelled(b, 4)), &key[at..]));
            if at > 0 {
                is_taken(&secrets, &format!("{}=\r\n{}", &key[..at], &key[at..]));
                is_taken(&secrets, &format!("{}=\n{}", &key[..at], &key[at..]));
            }
        }
    }
}

#[test]
fn a_secret_is_found_in_any_mix_of_plain_and_escaped_characters() {
    for (seed, key) in KEYS.into_iter().enumerate() {
        let (secrets, mut number) = (Arc::new(of(&[key])), numbers(seed as u64));
        for _ in 0..100 {
            let (escaped, one) = (1 + number(10), number(WAYS));
            for is_one in [true, false] {
                let mix = each(key, |byte| {
                    let way = if is_one { one } else { number(WAYS) };
                    spelled(byte, if number(10) < escaped { way } else { WAYS })
                });
                is_taken(&secrets, &mix);
            }
        }
    }
}

#[test]
fn base64_is_found_whichever_of_its_characters_are_escaped() {
    for key in [KEY, LONG] {
        let (secrets, mut number) = (Arc::new(of(&[key])), numbers(7));
        for before in ["", "a", "ab", "Bearer "] {
            let text = BASE64_STANDARD.encode(format!("{before}{key}"));
            for way in 0..WAYS {
                let marks =
                    each(&text, |b| spelled(b, if b.is_ascii_alphanumeric() { WAYS } else { way }));
                let mut some = |text: &str| {
                    each(text, |b| spelled(b, if number(3) == 0 { way } else { WAYS }))
                };
                let (first, second) = text.split_at(text.len() / 2);
                let lines = format!("{}\\n{}", some(first), some(second));
                let some = some(&text);
                for quoted in [each(&text, |b| spelled(b, way)), marks, some, lines] {
                    let text = format!("{{\"error\": \"key {quoted}, sent\"}}\n");
                    let found = secrets.text(&text);
                    assert_eq!(found.matches(REDACTED).count(), 1, "{quoted} in {found}");
                    // What is encoded together with the bytes around the key may be left.
                    assert!(found.len() < 80 + 16 * 16, "{quoted} in {found}");
                    for length in [1, 2, 7] {
                        assert_eq!(in_pieces(&secrets, &text, length), found, "in {length}s");
                    }
                }
            }
        }
    }
}

#[test]
fn most_of_a_secret_is_one_whichever_of_its_characters_are_escaped() {
    let key = "sk-live-0123456789abcdef";
    let (secrets, mut number) = (Arc::new(of(&[key])), numbers(3));
    for known in 0..key.len() {
        for _ in 0..40 {
            let text = each(&key[..known], |b| spelled(b, number(2 * WAYS)));
            let expected = if known >= SHORTEST_WORD { REDACTED } else { &text };
            for behind in ["", " and", "*"] {
                let text = format!("key {text}{behind}");
                let expected = format!("key {expected}{behind}");
                assert_eq!(secrets.text(&text), expected);
                for length in [1, 2, 7] {
                    assert_eq!(in_pieces(&secrets, &text, length), expected, "in {length}s");
                }
            }
        }
    }
    let mut passing = Passing::new(secrets);
    assert_eq!(passing.hear("it is \\u0073k-l"), Heard::Begun(9));
    assert!(!passing.shows_most());
    assert_eq!(passing.hear("ive-&#48;1234&"), Heard::Begun(23));
    assert!(passing.shows_most());
    assert_eq!(passing.hear("#53;6789%61bcde\\x6"), Heard::Begun(41));
    assert_eq!(passing.hear("6."), Heard::Secret);
}

#[test]
fn ordinary_escapes_and_those_of_other_secrets_stay() {
    // Of a key that repeats itself, most is in others.
    let repeat = |key: &str| key.contains("a1a1") || key.contains("0000");
    let keys = KEYS.into_iter().filter(|key| key.len() > SHORTEST_WORD && !repeat(key));
    let secrets = Arc::new(Secrets::new(keys.clone()));
    let mut texts = vec![
        r#"{"a": "one\ntwo \"three\"\tfour\\five \/six\u002F \u4e2d\u6587 \u00e4\u000a"}"#
            .to_owned(),
        "https://a.example/?q=a%20b%2Fc&lt=3&amp;d=%E4%B8%AD&x=3D&y=1+1=2".to_owned(),
        "if (a&&b || c%2==0) { s = \"&amp;&quot;&#39;&#x27;\"; r'\\d+\\.\\w\\-\\1' }".to_owned(),
        "C:\\users\\x41\\073 \\101 $\\sum_{k=0}\\%$ 100%, 50%25 \\\\ \\\\\\\\ &&&& %%%% ===="
            .to_owned(),
        "a line=\r\nand a half=20of=\nan=C3=A4 mail, a1=\na1 0=\n0".to_owned(),
        "sk-\\u0030sk-%30sk-&#48; k=3=3D-%25%25 a+\\u0062+c \\u0030\\u0030\\u0030 a\\u0031a1"
            .to_owned(),
    ];
    let mut number = numbers(5);
    for key in keys {
        for other in [3, key.len() / 3] {
            // In another place than in its base64, which is not most of the key.
            let text = key
                .bytes()
                .enumerate()
                .map(|(at, byte)| spelled(if at == other { b'!' } else { byte }, number(2 * WAYS)));
            texts.push(text.collect());
        }
    }
    for text in texts {
        assert_eq!(secrets.text(&text), text);
        for length in [1, 2, 7, 64] {
            assert_eq!(in_pieces(&secrets, &text, length), text, "in {length}s");
        }
    }
}
