//! The forms that are looked for, one a line, so that a new one is a new line.
//!
//! Forms of tokens are from what their issuers publish about them (their documentation, or
//! their entry at GitHub's secret scanning partner program). A form that is not of one
//! issuer alone is confirmed by a checksum or by what stands around it.

use super::{Kind, checks};

/// How a match is confirmed.
#[derive(Clone, Copy)]
pub(super) enum Check {
    /// The form says it all.
    Sure,
    /// By itself.
    Of(fn(&str) -> bool),
    /// So much of it, from its beginning.
    Part(fn(&str) -> Option<usize>),
    /// By what is before it, too.
    After(fn(&str, &str) -> bool),
}

/// A form: its kind, its expression, and what confirms it. What is taken out is the group
/// `it`, or else the whole match.
pub(super) struct Form(pub Kind, pub &'static str, pub Check);

/// All, in the order in which they win.
pub(super) const FORMS: &[Form] = &[
    // Keys in armour. Cut off, all that follows is taken for the key.
    Form(
        Kind::Secret,
        r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----(?s:.*?)(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|\z)",
        Check::Sure,
    ),
    Form(Kind::Secret, r"(?i)\bbearer[\s:=]{1,3}(?-i:[A-Za-z0-9._~+/=-]{12,})", Check::Of(bearer)),
    Form(Kind::Secret, r"(?i)\bbasic\s{1,3}(?P<it>[A-Za-z0-9+/]{10,}={0,2})", Check::Of(basic)),
    Form(
        Kind::Secret,
        r#"(?i)\bauthorization["'\]]{0,2}\s{0,3}[:=]\s{0,3}["']?(?:[a-z0-9-]+ )?(?P<it>[A-Za-z0-9._~+/=-]{12,})"#,
        Check::Of(checks::is_token),
    ),
    Form(
        Kind::Secret,
        r#"(?i)\b(?:set-)?cookie["']?:\s{0,3}["']?(?P<it>[^\s"'][^\n"']{6,})"#,
        Check::Of(checks::has_digit),
    ),
    Form(
        Kind::Secret,
        r#"(?i)\bcurl [^\n]*?(?:-u|--user)[ =]["']?[^\s:"']+:(?P<it>[^\s"']+)"#,
        Check::Sure,
    ),
    // JSON Web Tokens, signed or not.
    Form(Kind::Secret, r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*", Check::Sure),
    // OpenAI, Anthropic, DeepSeek, OpenRouter, Stripe, Langfuse, LiteLLM.
    Form(Kind::Secret, r"\b(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,}", Check::Of(checks::has_digit)),
    Form(Kind::Secret, r"\b(?:sk|pk|rk)_(?:live|test|prod)_[A-Za-z0-9]{10,}", Check::Sure),
    Form(Kind::Secret, r"\bwhsec_[A-Za-z0-9+/=]{20,}", Check::Sure),
    // AWS: ids, session tokens, and secret keys, which have no mark of their own.
    Form(
        Kind::Secret,
        r"\b(?:A3T[A-Z0-9]|AKIA|ASIA|ABIA|ACCA|AROA|AIDA)[A-Z0-9]{16}\b",
        Check::Sure,
    ),
    Form(
        Kind::Secret,
        r"(?:^|[^A-Za-z0-9/+=_.-])(?P<it>[A-Za-z0-9/+]{40})(?:$|[^A-Za-z0-9/+=_-])",
        Check::Of(checks::is_random),
    ),
    // GitHub, GitLab.
    Form(Kind::Secret, r"\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_[A-Za-z0-9_]{22,}", Check::Sure),
    Form(
        Kind::Secret,
        r"\bgl(?:pat|dt|rt|cbt|ptt|ft|oas|agent|soat|imt|ffct)-[A-Za-z0-9_=-]{20,}",
        Check::Sure,
    ),
    // Slack, also its webhooks.
    Form(
        Kind::Secret,
        r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}|\bxapp-\d-[A-Za-z0-9-]{20,}",
        Check::Sure,
    ),
    Form(
        Kind::Secret,
        r"hooks\.slack\.com/(?:services|workflows|triggers)/(?P<it>[A-Za-z0-9/+]{20,})",
        Check::Sure,
    ),
    // Discord, Telegram, Teams.
    Form(
        Kind::Secret,
        r"discord(?:app)?\.com/api/webhooks/(?P<it>\d{15,}/[A-Za-z0-9_-]{40,})",
        Check::Sure,
    ),
    Form(
        Kind::Secret,
        r"\b[MNO][A-Za-z0-9_-]{23,27}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,38}",
        Check::Sure,
    ),
    Form(Kind::Secret, r"\b\d{8,10}:AA[A-Za-z0-9_-]{32,34}", Check::Sure),
    // Google.
    Form(
        Kind::Secret,
        r"\bAIza[0-9A-Za-z_-]{35}|\bGOCSPX-[A-Za-z0-9_-]{20,}|\bya29\.[A-Za-z0-9_-]{20,}",
        Check::Sure,
    ),
    // Those who serve models and data.
    Form(Kind::Secret, r"\bhf_[A-Za-z0-9]{30,}|\bapi_org_[A-Za-z0-9]{30,}", Check::Sure),
    Form(
        Kind::Secret,
        r"\bgsk_[A-Za-z0-9]{20,}|\bxai-[A-Za-z0-9]{20,}|\bpplx-[A-Za-z0-9]{30,}",
        Check::Sure,
    ),
    Form(
        Kind::Secret,
        r"\bnvapi-[A-Za-z0-9_-]{30,}|\br8_[A-Za-z0-9]{30,}|\bfw_[A-Za-z0-9]{20,}",
        Check::Sure,
    ),
    Form(
        Kind::Secret,
        r"\bdapi[a-f0-9]{32}\b|\blsv2_(?:pt|sk)_[a-f0-9]{32}_[a-f0-9]{10}\b|\btvly-[A-Za-z0-9-]{20,}",
        Check::Sure,
    ),
    Form(
        Kind::Secret,
        r"\bEAA[A-Za-z0-9]{60,}|\brzp_(?:live|test)_[A-Za-z0-9]{10,}|\b1//0[A-Za-z0-9_-]{40,}",
        Check::Sure,
    ),
    Form(
        Kind::Secret,
        r"(?i)\bX-Amz-(?:Signature|Security-Token|Credential)=(?P<it>[A-Za-z0-9+/=_-]{16,})",
        Check::Sure,
    ),
    // Registries of packages and images.
    Form(
        Kind::Secret,
        r"\bnpm_[A-Za-z0-9]{36}|\bpypi-[A-Za-z0-9_-]{50,}|\brubygems_[a-f0-9]{48}|\bdckr_[po]at_[A-Za-z0-9_-]{20,}",
        Check::Sure,
    ),
    // Mail and messages.
    Form(
        Kind::Secret,
        r"\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}|\bkey-[0-9a-f]{32}\b|\b[0-9a-f]{32}-us\d{1,2}\b",
        Check::Sure,
    ),
    Form(Kind::Secret, r"\b(?:SK|AC)[0-9a-f]{32}\b", Check::Sure),
    // Clouds and platforms.
    Form(
        Kind::Secret,
        r"(?i)\bAccountKey=(?P<it>[A-Za-z0-9+/]{40,}={0,2})|[?&]sig=[A-Za-z0-9+/=]{30,}",
        Check::Sure,
    ),
    Form(Kind::Secret, r"[A-Za-z0-9_~.]{3}\dQ~[A-Za-z0-9_~.-]{31,34}", Check::Sure),
    Form(
        Kind::Secret,
        r"\bdo[opr]_v1_[a-f0-9]{64}|\bhv[sbr]\.[A-Za-z0-9_-]{20,}|\bdp\.(?:pt|st|sa|ct|scim|audit)\.[A-Za-z0-9]{30,}",
        Check::Sure,
    ),
    Form(
        Kind::Secret,
        r"\bshp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}|\bsq0[a-z]{3}-[A-Za-z0-9_-]{22,}|\bEAAA[A-Za-z0-9_-]{56,}",
        Check::Sure,
    ),
    Form(
        Kind::Secret,
        r"\bgl(?:c|sa)_[A-Za-z0-9_+/=]{20,}|\bNRAK-[A-Z0-9]{27}|\bsntry[su]_[A-Za-z0-9_+/=-]{20,}",
        Check::Sure,
    ),
    Form(
        Kind::Secret,
        r"\blin_api_[A-Za-z0-9]{30,}|\bntn_[A-Za-z0-9]{40,}|\bsecret_[A-Za-z0-9]{40,}|\bfigd_[A-Za-z0-9_-]{30,}",
        Check::Sure,
    ),
    Form(
        Kind::Secret,
        r"\bPMAK-[a-f0-9]{24}-[a-f0-9]{34}|\bATATT3[A-Za-z0-9_=-]{20,}|\bsbp_[a-f0-9]{40}|\bpscale_[a-z]+_[A-Za-z0-9_.-]{32,}",
        Check::Sure,
    ),
    Form(Kind::Secret, r"\bAGE-SECRET-KEY-1[A-Z0-9]{58}", Check::Sure),
    // The password in an address.
    Form(
        Kind::Secret,
        r#"(?i)\b[a-z][a-z0-9+.-]{1,20}://[^\s/?\#:@"'<>]*:(?P<it>[^\s/?\#@"'<>]+)@"#,
        Check::Sure,
    ),
    // What is assigned to a password, key or token.
    Form(
        Kind::Secret,
        r#"(?i)(?:password|passwd|pwd|passphrase|passwort|kennwort)=(?P<it>[^\s"',;&<>]{6,128})"#,
        Check::Of(checks::is_password),
    ),
    Form(Kind::Secret, ASSIGNED, Check::Of(checks::is_value)),
    // Mail addresses: as they are, with a name in quotes, on this machine, in words.
    Form(
        Kind::Email,
        r"(?i)[\p{L}\p{N}._%+'-]+@[\p{L}\p{N}](?:[\p{L}\p{N}-]*[\p{L}\p{N}])?(?:\.[\p{L}\p{N}-]+)*\.(?:\p{L}{2,}|xn--[a-z0-9-]{2,})",
        Check::Of(checks::is_mail),
    ),
    // What follows a quote that ends a text of JSON is none of a name.
    Form(Kind::Email, r#"(?i)"[^"@\s:,}\]][^"@\n]*"@[\p{L}\p{N}.-]+\.\p{L}{2,}"#, Check::Sure),
    Form(Kind::Email, r"(?i)[\p{L}\p{N}._%+'-]+@localhost\b", Check::Sure),
    Form(
        Kind::Email,
        r"(?i)[\p{L}\p{N}._%+'-]+ @ [a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}\b|[\p{L}\p{N}._%+'-]+@ [a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}\b",
        Check::Of(checks::is_mail),
    ),
    Form(
        Kind::Email,
        r"(?i)[\p{L}\p{N}._%+-]+ ?[(\[{<] ?at ?[)\]}>] ?[\p{L}\p{N}-]+(?:(?:\.| ?[(\[{<] ?dot ?[)\]}>] ?| dot )[\p{L}\p{N}-]{2,})+",
        Check::Sure,
    ),
    Form(Kind::Email, r"(?i)\b[a-z0-9._%+-]+ at [a-z0-9-]+(?: dot [a-z0-9-]{2,})+\b", Check::Sure),
    // Bank accounts, by their checksum.
    Form(
        Kind::Iban,
        r"(?i)\b[A-Z]{2}\d{2}(?:[ .-]{0,2}[A-Z0-9]){11,30}",
        Check::Part(checks::iban),
    ),
    // Social security numbers of the US.
    Form(Kind::Ssn, r"(?:^|[^\d-])(?P<it>\d{3}-\d{2}-\d{4})(?:$|[^\d-])", Check::Of(checks::ssn)),
    Form(
        Kind::Ssn,
        r"(?:^|[^\d -])[ ]?(?P<it>\d{3} \d{2} \d{4})(?:$|[^\d -]| [^\d])",
        Check::Of(checks::ssn),
    ),
    Form(
        Kind::Ssn,
        r#"(?i)(?:\bssn|social[ _-]?security)[a-z \t"':=.\#_-]{0,24}(?P<it>\d{3}[ .-]?\d{2}[ .-]?\d{4})\b"#,
        Check::Of(checks::ssn),
    ),
    // Telephone numbers: international, of North America, and what is said to be one.
    Form(
        Kind::Phone,
        r"\+\d{1,3}(?:[ .\-/]?\(?\d{1,4}\)?){2,6}\b",
        Check::Of(checks::international),
    ),
    Form(
        Kind::Phone,
        r"\b00 ?[1-9]\d{0,2}[ .\-/]\(?\d{1,4}\)?(?:[ .\-/]?\d{1,4}){1,5}\b",
        Check::Of(checks::international),
    ),
    Form(
        Kind::Phone,
        r"(?:\b1[ .-]?)?\([2-9]\d{2}\) ?\d{3}[ .-]?\d{4}\b|(?:\b1[ .-])?\b[2-9]\d{2}[.-]\d{3}[.-]\d{4}\b",
        Check::Of(checks::north_american),
    ),
    Form(Kind::Phone, r"(?:\b1 )?\b[2-9]\d{2} \d{3}[ -]\d{4}\b", Check::Of(checks::north_american)),
    Form(
        Kind::Phone,
        r"\b0[1-9](?:[ .]\d{2}){4}\b|\(0[1-9]\d{1,4}\) ?\d{2,4}[ -]?\d{2,6}\b|\b0[1-9]\d{1,4}[ /]\d{3,4} ?\d{3,4}\b",
        Check::Of(is_national),
    ),
    Form(Kind::Phone, SAID_TO_BE_A_PHONE, Check::Of(is_long)),
    Form(Kind::Phone, r"\b[2-9]\d{9}\b", Check::After(checks::alone)),
];

/// `api_key: "…"`, `--token=…`, `the password is …`.
const ASSIGNED: &str = concat!(
    r"(?i-u:password|passwd|pwd|passphrase|passwort|kennwort|secret|token|credentials?",
    r"|api[_. -]?key|access[_. -]?key|private[_. -]?key(?:[_. -]?id)?|auth[_. -]?key|encryption[_. -]?key",
    r"|account[_. -]?key|subscription[_. -]?key|secret[_. -]?access[_. -]?key|x-functions-key)",
    r#"["'\]]{0,2}\s{0,3}(?::=|=>|==?|:|\s(?i-u:is|ist|lautet|was)\s)\s{0,3}["']{0,2}"#,
    r#"(?P<it>[^\s"',;<>]{6,128})"#,
);

/// `phone: …`, `call me at …`.
const SAID_TO_BE_A_PHONE: &str = concat!(
    r"\b(?i-u:phones?|telephone|telefon|tel|mobile|cell|fax|handy|whatsapp|call(?: me| us)?)",
    r#"(?i-u:[_ ]?(?:number|no|nr))?\.?["']{0,1}\s{0,2}(?i-u:is|at|on|under|:|=)?\s{0,2}["']{0,1}"#,
    r"(?P<it>\+?\(?\d[\d ().\-/]{5,20}\d)\b",
);

/// Names of JSON fields, what belongs to which is looked for in the light of the name.
pub(super) const TELLING_NAMES: &str = concat!(
    r"(?i)pass(?:word|wd|phrase|wort)?$|pwd|kennwort|secret|token|credential|key|ssn|social",
    r"|phone|tel|mobile|cell|fax|handy",
);
/// Of these, those of secrets.
pub(super) const SECRET_NAMES: &str = concat!(
    r"(?i)(?:^|[_.-])(?:pass|password|passwd|passphrase|pwd|passwort|kennwort|secret|token|credentials?",
    r"|api[_.-]?key|access[_.-]?key|secret[_.-]?key|private[_.-]?key|auth[_.-]?key|authorization)$",
    r"|(?:apiKey|accessKey|secretKey|privateKey|accessToken|authToken|refreshToken|clientSecret)$",
);

/// The length of account numbers by country (the register of ISO 13616).
#[rustfmt::skip]
pub(super) const COUNTRIES: [(&str, usize); 89] = [
    ("AD", 24), ("AE", 23), ("AL", 28), ("AT", 20), ("AZ", 28), ("BA", 20), ("BE", 16), ("BG", 22),
    ("BH", 22), ("BI", 27), ("BR", 29), ("BY", 28), ("CH", 21), ("CR", 22), ("CY", 28), ("CZ", 24),
    ("DE", 22), ("DJ", 27), ("DK", 18), ("DO", 28), ("EE", 20), ("EG", 29), ("ES", 24), ("FI", 18),
    ("FK", 18), ("FO", 18), ("FR", 27), ("GB", 22), ("GE", 22), ("GI", 23), ("GL", 18), ("GR", 27),
    ("GT", 28), ("HN", 28), ("HR", 21), ("HU", 28), ("IE", 22), ("IL", 23), ("IQ", 23), ("IS", 26),
    ("IT", 27), ("JO", 30), ("KW", 30), ("KZ", 20), ("LB", 28), ("LC", 32), ("LI", 21), ("LT", 20),
    ("LU", 20), ("LV", 21), ("LY", 25), ("MC", 27), ("MD", 24), ("ME", 22), ("MK", 19), ("MN", 20),
    ("MR", 27), ("MT", 31), ("MU", 30), ("NI", 28), ("NL", 18), ("NO", 15), ("OM", 23), ("PK", 24),
    ("PL", 28), ("PS", 29), ("PT", 25), ("QA", 29), ("RO", 24), ("RS", 22), ("RU", 33), ("SA", 24),
    ("SC", 31), ("SD", 18), ("SE", 24), ("SI", 19), ("SK", 24), ("SM", 27), ("SO", 23), ("ST", 25),
    ("SV", 28), ("TL", 23), ("TN", 24), ("TR", 26), ("UA", 29), ("VA", 22), ("VG", 24), ("XK", 20),
    ("YE", 30),
];

fn bearer(text: &str) -> bool {
    text.get(6..).is_some_and(checks::is_token)
}

/// Base64 of a name and a password.
fn basic(text: &str) -> bool {
    use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
    let plain = BASE64_STANDARD_NO_PAD.decode(text.trim_end_matches('=')).unwrap_or_default();
    std::str::from_utf8(&plain).is_ok_and(|plain| plain.contains(':'))
}

fn is_national(text: &str) -> bool {
    (9..=12).contains(&text.bytes().filter(u8::is_ascii_digit).count())
}

fn is_long(text: &str) -> bool {
    (7..=15).contains(&text.bytes().filter(u8::is_ascii_digit).count())
}
