use std::{fs, path::Path};

use serde::Deserialize;
use serde_json::json;

use super::*;

/// Compiled once: that takes a while.
static ALL: LazyLock<Redaction> = LazyLock::new(|| Redaction::new(&Kind::ALL, &[]).unwrap());

fn all() -> &'static Redaction {
    &ALL
}

/// The texts of a kind: `tests/fixtures/redaction/README.md`.
#[derive(Deserialize)]
struct Texts {
    found: Vec<Entry>,
    kept: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Entry {
    Text(String),
    Part { text: String, hides: String },
}

impl Entry {
    /// The text, and what of it must be gone.
    fn parts(&self) -> (String, String) {
        let (text, hides) = match self {
            Self::Text(text) => (text, text),
            Self::Part { text, hides } => (text, hides),
        };
        (text.replace('¦', ""), hides.replace('¦', ""))
    }
}

fn texts(kind: Kind) -> Texts {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/redaction");
    let text = fs::read_to_string(folder.join(format!("{}.yaml", kind.as_str()))).unwrap();
    serde_yaml_ng::from_str(&text).unwrap()
}

/// A text in a sentence, as it is and in the forms in which it may be written down.
type Disguise = (&'static str, fn(&str) -> String);

const DISGUISES: [Disguise; 6] = [
    ("as it is", |text| text.to_owned()),
    ("JSON", |text| json!({"x": text}).to_string()),
    ("JSON within JSON", |text| json!({"y": json!({"x": text}).to_string()}).to_string()),
    ("escaped", |text| text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect()),
    ("percent-encoded", |text| {
        let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._~".contains(b);
        text.bytes()
            .map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") })
            .collect()
    }),
    ("entities", |text| {
        let plain = |c: &char| c.is_ascii_alphanumeric() || *c == ' ';
        text.chars()
            .map(|c| if plain(&c) { c.to_string() } else { format!("&#{};", u32::from(c)) })
            .collect()
    }),
];

/// Whether what must be hidden is gone, in this disguise too.
fn hides(rules: &Redaction, kind: Kind, entry: &Entry, disguise: fn(&str) -> String) -> bool {
    let (text, hidden) = entry.parts();
    let said = rules.text(&disguise(&format!("x {text} y"))).into_owned();
    // All of it, whatever its first and last signs are.
    let bare = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).collect::<String>();
    let (left, all) = (bare(&Plain::of(&said).text), bare(&hidden));
    said.contains(&format!("[redacted:{}]", kind.as_str())) && !left.contains(&all)
}

#[test]
fn recall_and_precision_are_what_the_documentation_says() {
    let rules = all();
    let (mut misses, mut report) = (vec![], vec![]);
    let (mut right, mut wrong) = (0_u32, vec![]);
    for kind in Kind::ALL {
        let Texts { found, kept } = texts(kind);
        let (mut hit, mut asked) = (0_u32, 0_u32);
        for entry in &found {
            for (name, disguise) in DISGUISES {
                asked += 1;
                if hides(rules, kind, entry, disguise) {
                    hit += 1;
                } else {
                    misses.push(format!("{}: {:?} {name}", kind.as_str(), entry.parts().0));
                }
            }
        }
        right += hit;
        for text in &kept {
            let text = text.replace('¦', "");
            let said = rules.text(&text);
            if said != text {
                wrong.push(format!("{}: {text:?} became {said:?}", kind.as_str()));
            }
        }
        let recall = f64::from(hit) / f64::from(asked);
        report.push(format!("{}: {hit} of {asked} ({:.1} %)", kind.as_str(), recall * 100.0));
        assert!(recall >= 0.95, "{report:?} {misses:#?}");
    }
    let precision = f64::from(right) / (f64::from(right) + wrong.len() as f64);
    assert!(precision >= 0.95, "{precision}: {wrong:#?}");
    // Of the texts that look alike, too, nearly none is touched.
    let kept: usize = Kind::ALL.iter().map(|kind| texts(*kind).kept.len()).sum();
    assert!(wrong.len() * 20 <= kept, "{} of {kept}: {wrong:#?}", wrong.len());
    if std::env::var_os("SERINUS_REPORT").is_some() {
        panic!("{report:#?}\nmissed {misses:#?}\ntouched {wrong:#?} of {kept}");
    }
}

#[test]
fn what_stays_around_it_is_as_it_was() {
    for (text, expected) in [
        ("write to ada.l+x@mail.example.org, soon", "write to [redacted:email], soon"),
        ("card 4111 1111 1111 1111 exp 12/27", "card [redacted:card] exp 12/27"),
        ("pay DE89 3704 0044 0532 0130 00 THE BANK", "pay [redacted:iban] THE BANK"),
        ("GB82WEST12345698765432.", "[redacted:iban]."),
        ("my ssn is 078-05-1120", "my ssn is [redacted:ssn]"),
        ("call +49 (0)89 1234-5678 or (415) 555-2671", "call [redacted:phone] or [redacted:phone]"),
        ("Authorization: Bearer abcdef0123456789ABCDEF", "Authorization: [redacted:secret]"),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY----- end",
            "[redacted:secret] end",
        ),
        ("-----BEGIN PRIVATE KEY-----\nMIIE cut", "[redacted:secret]"),
        (
            "postgres://user:hunter2@db.example.com/x",
            "postgres://user:[redacted:secret]@db.example.com/x",
        ),
        // What nobody sees parts nothing.
        ("a\u{fe0f}da\u{e0041}@mail.\u{34f}example.org", "[redacted:email]"),
        (r#"{"m":"a\u0040b.example"}"#, r#"{"m":"[redacted:email]"}"#),
        ("C:\\users\\new 100 % &amp; é \u{200b}", "C:\\users\\new 100 % &amp; é \u{200b}"),
    ] {
        assert_eq!(all().text(text), expected);
    }
}

#[test]
fn only_the_chosen_rules_and_ones_own_are_applied() {
    let rules = Redaction::new(&[Kind::Email], &[r"PAT-\d+".to_owned()]).unwrap();
    assert_eq!(
        rules.text("PAT-77 a@b.example 078-05-1120 4111111111111111"),
        "[redacted:text] [redacted:email] 078-05-1120 4111111111111111"
    );
    let card = Redaction::new(&[Kind::Card], &[]).unwrap();
    assert_eq!(card.text("a@b.example 4111111111111111"), "a@b.example [redacted:card]");
    assert!(Redaction::new(&[], &["(".to_owned()]).is_err());
    assert!("passport".parse::<Kind>().unwrap_err().to_string().contains("choose among"));
    let empty = Redaction::new(&[], &["x*".to_owned()]).unwrap();
    assert_eq!(empty.text("äxxb"), "ä[redacted:text]b", "nothing is found, which is no text");
    let own = Redaction::new(&Kind::ALL, &["ada".to_owned()]).unwrap();
    assert_eq!(own.text("ada@b.example"), "[redacted:text]@b.example", "one's own counts first");
}

#[test]
fn json_is_redacted_behind_its_escapes_and_stays_json() {
    let mut value: Value = serde_json::from_str(
        r#"{"a": ["x\u0040example.org \"q\""], "n": 4111111111111111, "small": 41, "b": true}"#,
    )
    .unwrap();
    all().json(&mut value);
    assert_eq!(
        value,
        json!({"a": ["[redacted:email] \"q\""], "n": "[redacted:card]", "small": 41, "b": true})
    );
}

#[test]
fn the_name_of_a_field_says_what_its_value_is_and_may_be_one_itself() {
    let mut value = json!({
        "password": "correcthorse", "apiKey": "0123abcd4567", "ssn": "078051120",
        "max_tokens": 2048, "token": "optional", "key": "customer", "phones": ["2125550187"],
        "order": "2125550187", "a@b.example": 1, "c@d.example": 2,
        "inner": {"client_secret": ["s3cr3tvalue"]},
    });
    all().json(&mut value);
    assert_eq!(
        value,
        json!({
            "password": "[redacted:secret]", "apiKey": "[redacted:secret]",
            "ssn": "[redacted:ssn]", "max_tokens": 2048, "token": "optional", "key": "customer",
            "phones": ["[redacted:phone]"], "order": "2125550187",
            "[redacted:email]": 1, "[redacted:email] 9": 2,
            "inner": {"client_secret": ["[redacted:secret]"]},
        })
    );
}

#[test]
fn a_text_made_to_slow_it_is_read_in_one_go() {
    let rules = all();
    for piece in [
        "4111 ",
        "4111-",
        "DE89 3704 ",
        "a@b ",
        "\\u0040",
        "%25",
        "&#64;",
        "password=",
        "+49 ",
        "sk-",
        "\"",
    ] {
        let text = piece.repeat((1 << 16) / piece.len());
        assert!(!rules.text(&text).is_empty(), "{piece}");
    }
}

/// A message of texts, as parts.
fn message(texts: &[&str]) -> Value {
    let part = |text: &&str| json!({"type": "text", "text": text});
    json!([{"role": "user", "content": texts.iter().map(part).collect::<Vec<_>>()}])
}

/// Each text of a kind that is found: what it hides, and a message of two parts that cut it there.
fn in_two_parts(kind: Kind) -> Vec<(String, Value)> {
    let found = texts(kind).found;
    let found = found.iter().filter(|e| hides(all(), kind, e, |text| text.to_owned()));
    let cut = found.map(|entry| {
        let (text, hidden) = entry.parts();
        let start = text.find(&hidden).unwrap();
        let middle = hidden.char_indices().nth(hidden.chars().count() / 2).unwrap().0;
        let (head, tail) = text.split_at(start + middle);
        (hidden, message(&[&format!("x {head}"), &format!("{tail} y")]))
    });
    cut.collect()
}

#[test]
fn what_begins_in_one_part_of_a_message_and_ends_in_another_is_found() {
    let (mut missed, mut asked) = (vec![], 0);
    for kind in Kind::ALL {
        for (hidden, mut said) in in_two_parts(kind) {
            all().json(&mut said);
            asked += 1;
            let part = |i: usize| said[0]["content"][i]["text"].as_str().unwrap().to_owned();
            let left = part(0) + &part(1);
            if left.contains(&hidden) || !left.contains(&format!("[redacted:{}]", kind.as_str())) {
                missed.push(left);
            }
        }
    }
    assert!(missed.len() * 20 <= asked, "{} of {asked}: {missed:#?}", missed.len());
}

/// A text as a model writes it that repeats its request, so many times within JSON.
fn quoted(said: &Value, times: usize) -> String {
    (0..times).fold(said.to_string(), |text, _| json!({"answer": text, "n": 1}).to_string())
}

/// What was quoted so, if the text is still JSON around it.
fn unquoted(text: &str, times: usize) -> Option<Value> {
    let mut value: Value = serde_json::from_str(text).ok()?;
    for _ in 0..times {
        value = serde_json::from_str(value["answer"].as_str()?).ok()?;
    }
    Some(value)
}

#[test]
fn what_lies_in_two_parts_is_found_within_json_too_and_the_json_stays_whole() {
    let (mut missed, mut asked) = (vec![], 0);
    for kind in Kind::ALL {
        for (hidden, said) in in_two_parts(kind) {
            for times in 0..3 {
                asked += 1;
                let told = all().text(&quoted(&said, times)).into_owned();
                let part = |value: &Value, i: usize| {
                    Some(value[0]["content"][i]["text"].as_str()?.to_owned())
                };
                let left = unquoted(&told, times)
                    .and_then(|value| Some(part(&value, 0)? + &part(&value, 1)?));
                let is_gone = left.as_ref().is_some_and(|left| {
                    !left.contains(&hidden)
                        && left.contains(&format!("[redacted:{}]", kind.as_str()))
                });
                if !is_gone {
                    missed.push(told);
                }
            }
        }
    }
    assert!(missed.len() * 20 <= asked, "{} of {asked}: {missed:#?}", missed.len());
}

#[test]
fn an_address_in_two_parts_leaves_neither_half_and_no_gap_in_the_json() {
    let said = message(&["ann.split", "@example.com"]);
    for times in 0..4 {
        let told = all().text(&quoted(&said, times)).into_owned();
        let left = unquoted(&told, times).unwrap();
        assert_eq!(left, message(&["[redacted:email]", "[redacted:email]"]), "{told}");
    }
    // By itself, neither half is one.
    for text in [r#"{"a": "ann", "b": "@example.com"}"#, r#"["x", null, "@example.com"]"#] {
        assert_eq!(all().text(text), text);
    }
    let quoted = r#"write to "ann smith"@example.com now"#;
    assert_eq!(all().text(quoted), "write to [redacted:email] now");
}

#[test]
fn what_is_taken_out_of_a_text_of_json_leaves_it_json() {
    let mut broken = vec![];
    for kind in Kind::ALL {
        for entry in texts(kind).found {
            let (text, _) = entry.parts();
            // Of a key in armour that is cut off, all that follows is taken for the key.
            if text.contains("-----BEGIN") && !text.contains("-----END") {
                continue;
            }
            let said =
                json!({"a": "b", "x": format!("x {text} y"), "@z.example": ["c", "@d.example"]});
            for times in 0..3 {
                let told = all().text(&quoted(&said, times)).into_owned();
                let left = unquoted(&told, times);
                if left.is_none_or(|left| left["@z.example"] != said["@z.example"]) {
                    broken.push(told);
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}: {broken:#?}", broken.len());
}

#[test]
fn secrets_that_are_known_are_taken_out_whatever_their_form_and_wherever_they_are_cut() {
    let (sent, key) = ("4f1c9e7ab2d85360fe19c7ab22d04e55", "client0key0of0nobody");
    let secrets = crate::audit::secrets::Secrets::new([sent]);
    let key_text = crate::api::SecretText::new(key);
    let known = Known { sent: Arc::new(secrets), key: Some(key_text) };
    let own = Redaction::new(&[], &[r"PAT-\S+".to_owned()]).unwrap();
    let rules = own.knowing(&known);
    let mut word = json!({"lettersAloneAreAKeyToo": 1});
    let letters = crate::audit::secrets::Secrets::new(["lettersAloneAreAKeyToo"]);
    own.knowing(&Known { sent: Arc::new(letters), key: None }).json(&mut word);
    assert_eq!(word, json!({"[redacted:secret]": 1}));
    for secret in [sent, key] {
        let (head, tail) = secret.split_at(9);
        assert_eq!(rules.text(&format!("a {secret} b")), "a [redacted:secret] b");
        let escaped: String = secret.bytes().map(|byte| format!("\\u{byte:04x}")).collect();
        assert_eq!(rules.text(&format!("a {escaped} b")), "a [redacted:secret] b");
        let mut said = message(&[&format!("a {head}"), &format!("{tail} b")]);
        let text = quoted(&said, 2);
        rules.json(&mut said);
        assert_eq!(said, message(&["a [redacted:secret]", "[redacted:secret] b"]));
        assert_eq!(unquoted(&rules.text(&text), 2), Some(said));
        let mut names = json!({secret: 1, "n": {secret: secret}});
        rules.json(&mut names);
        assert_eq!(
            names,
            json!({"[redacted:secret]": 1,
            "n": {"[redacted:secret]": "[redacted:secret]"}})
        );
        // Where one's own expression finds more, all of it is taken out.
        assert_eq!(rules.text(&format!("PAT-{secret}-x y")), "[redacted:text] y");
        assert_eq!(own.text(&format!("a {secret}")), format!("a {secret}"), "others know nothing");
    }
}

#[test]
fn a_key_that_looks_like_an_escape_is_taken_out() {
    for key in ["Zq%41k3-client-key-0123456789", "a&amp;b-client-key", r"c\u0041-client-key\n"] {
        let known = Known { key: Some(crate::api::SecretText::new(key)), ..Known::default() };
        let rules = all().knowing(&known);
        assert_eq!(rules.text(&format!("a {key} b")), "a [redacted:secret] b");
    }
}

#[test]
fn of_a_find_that_overlaps_a_known_secret_nothing_is_left() {
    let secrets = crate::audit::secrets::Secrets::new(["hunter2hunter2x"]);
    let known = Known { sent: Arc::new(secrets), key: None };
    let rules = all().knowing(&known);
    let text = "so password=hunter2hunter2xMORE-42 it is";
    assert_eq!(rules.text(text), "so password=[redacted:secret] it is");
    let basic = "Authorization: Basic YWRhOmh1bnRlcjJodW50ZXIyeE1PUkU=, and";
    assert_eq!(rules.text(basic), "Authorization: Basic [redacted:secret], and");
}

#[test]
fn parts_that_say_nothing_together_stay_as_they_are() {
    let kept: Vec<String> = Kind::ALL.into_iter().flat_map(|kind| texts(kind).kept).collect();
    let kept: Vec<String> = kept.iter().map(|text| text.replace('¦', "")).collect();
    let kept: Vec<&String> = kept.iter().filter(|text| all().text(text) == **text).collect();
    let touched = kept.windows(2).filter(|two| {
        let said = message(&[two[0], two[1]]);
        let mut after = said.clone();
        all().json(&mut after);
        after != said
    });
    let touched: Vec<_> = touched.collect();
    assert!(touched.len() * 20 <= kept.len(), "{} of {}: {touched:#?}", touched.len(), kept.len());
    // Something between, another message, or another list: no text in a row.
    let mut apart = json!([
        {"text": "ada@b"}, {"type": "image_url"}, {"text": ".example"},
        {"content": [{"text": "ada@b"}]}, {"content": [{"text": ".example"}]},
        ["ada@b", ".example"],
    ]);
    let before = apart.clone();
    all().json(&mut apart);
    assert_eq!(apart, before);
    let mut three = message(&["write to ada", "@", "b.example, please"]);
    all().json(&mut three);
    let texts = ["write to [redacted:email]", "[redacted:email]", "[redacted:email], please"];
    assert_eq!(three, message(&texts));
}
