//! When a model ends, and what people are told of that, and when.
//!
//! Providers end models on a date, and announce it weeks or months before. What is told changes
//! only at thresholds, because a message that counts down would be a write to the API server a
//! day for each backend: the message has the date, and its reason says how near that is.

pub mod dates;

use jiff::{
    Timestamp, ToSpan,
    civil::Date,
    tz::{Offset, TimeZone},
};

use crate::api::{
    LLMDeploymentSpec,
    conditions::Condition,
    llm_deployment::{Retirement, RetirementSource},
};

/// Gateways report that the backend has no such model.
pub const MODEL_GONE: &str = "ModelGone";
/// That is over.
pub const MENDED: &str = "Mended";

/// How near the end is: so many days are left, at most, and the reason that says so.
const THRESHOLDS: [(i32, &str); 4] = [
    (0, "Retired"),
    (7, "RetiresWithin7Days"),
    (30, "RetiresWithin30Days"),
    (60, "RetiresWithin60Days"),
];
/// The reason while more days are left.
const LATER: &str = "RetiresLater";

/// Every reason that is given here.
pub const REASONS: [&str; 7] =
    [MODEL_GONE, MENDED, LATER, THRESHOLDS[0].1, THRESHOLDS[1].1, THRESHOLDS[2].1, THRESHOLDS[3].1];

/// What the condition `ModelRetirement` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Something has to be done.
    pub warns: bool,
    /// One CamelCase word.
    pub reason: &'static str,
    /// A sentence that changes only when the reason, the date or the source of it does.
    pub message: String,
}

/// What people are told once, when it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Whether it is bad news.
    pub warning: bool,
    /// One CamelCase word.
    pub reason: &'static str,
    /// A sentence.
    pub note: String,
}

/// When the model of a backend ends. What a person has written comes before what the server
/// tells, and that before what a file says (`filed`): `told` is none when the server did not say
/// which models it has, and then what it told `before` stays.
pub fn retirement(
    spec: &LLMDeploymentSpec,
    told: Option<Option<Date>>,
    before: Option<&Retirement>,
    filed: Option<Date>,
) -> Option<Retirement> {
    if let Some(date) = spec.retires_on {
        return Some(Retirement { date, source: RetirementSource::Spec });
    }
    let by_server = match told {
        Some(date) => date.map(|date| Retirement { date, source: RetirementSource::Server }),
        None => before.filter(|before| before.source == RetirementSource::Server).cloned(),
    };
    by_server.or_else(|| Some(Retirement { date: filed?, source: RetirementSource::File }))
}

/// The days until a date (in UTC); 0 on the day itself, and less after that.
pub fn days_left(date: Date, now: Timestamp) -> i32 {
    let today = Offset::UTC.to_datetime(now).date();
    // Both are within the years that the calendar has.
    today.until(date).map_or(0, |span| span.get_days())
}

/// What to do in a cluster.
pub fn migrate(model: &str) -> String {
    format!(
        "`serinus models` lists who uses it, and `serinus migrate --from {model} --to MODEL` \
         writes what moves them to another model"
    )
}

/// What is to be said of a backend's model now, and what to do; none when nothing is known of
/// its end.
pub fn finding(
    model: &str,
    retirement: Option<&Retirement>,
    is_gone: bool,
    what_to_do: &str,
    now: Timestamp,
) -> Option<Finding> {
    if is_gone {
        let date = retirement.map(|known| format!(" ({}: {})", source(known.source), known.date));
        let date = date.unwrap_or_default();
        let message = format!(
            "gateways report that the server has no model {model}, or not for the API key that \
             it is asked with{date}: {what_to_do}"
        );
        return Some(Finding { warns: true, reason: MODEL_GONE, message });
    }
    let Retirement { date, source: by } = *retirement?;
    let left = days_left(date, now);
    let (_, reason) =
        THRESHOLDS.iter().find(|(days, _)| left <= *days).copied().unwrap_or((i32::MAX, LATER));
    let ends = if left > 0 { "ends" } else { "has ended" };
    let from = source(by);
    let message = format!("the model {model} {ends} on {date}, says {from}: {what_to_do}");
    Some(Finding { warns: reason != LATER, reason, message })
}

fn source(source: RetirementSource) -> &'static str {
    match source {
        RetirementSource::Spec => "spec.retiresOn",
        RetirementSource::Server => "the server's list of models",
        RetirementSource::File => "the file of --model-dates",
    }
}

/// When the finding becomes another one by itself.
pub fn changes_at(date: Date, now: Timestamp) -> Option<Timestamp> {
    let next = |days: i32| {
        let day = date.checked_sub(days.days()).ok()?;
        Some(day.to_zoned(TimeZone::UTC).ok()?.timestamp())
    };
    THRESHOLDS.iter().filter_map(|(days, _)| next(*days)).filter(|at| *at > now).min()
}

/// What of a finding is new to people who were told what the condition `before` says. A reason
/// is told when it begins, so each threshold once, whoever leads.
pub fn news(before: Option<&Condition>, now: Option<&Finding>) -> Option<News> {
    let reason = before.map_or("", |condition| condition.reason.as_str());
    let is_gone = now.is_some_and(|now| now.reason == MODEL_GONE);
    if reason == MODEL_GONE && !is_gone {
        let note = "no gateway reports any more that the server has no such model".to_owned();
        return Some(News { warning: false, reason: MENDED, note });
    }
    let Finding { warns, reason: new, message } = now?;
    let is_new = *warns && reason != *new;
    is_new.then(|| News { warning: true, reason: new, note: message.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::conditions::{self, types::MODEL_RETIREMENT};

    fn on(date: &str) -> Retirement {
        Retirement { date: date.parse().unwrap(), source: RetirementSource::Spec }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn what_a_person_wrote_comes_before_what_the_server_tells() {
        let written =
            LLMDeploymentSpec { retires_on: Some("2027-01-14".parse().unwrap()), ..<_>::default() };
        let plain = LLMDeploymentSpec::default();
        let told = |date: &str| Some(Some(date.parse().unwrap()));
        let server = |date: &str| Retirement {
            date: date.parse().unwrap(),
            source: RetirementSource::Server,
        };
        let early = told("2026-12-11");
        let retirement = |spec, told, before| retirement(spec, told, before, None);
        assert_eq!(retirement(&written, early, None), Some(on("2027-01-14")));
        assert_eq!(retirement(&plain, early, None), Some(server("2026-12-11")));
        // A server that does not answer does not take its date back; one that has none does.
        let before = server("2026-12-11");
        assert_eq!(retirement(&plain, None, Some(&before)), Some(before.clone()));
        assert_eq!(retirement(&plain, Some(None), Some(&before)), None);
        // What was in the spec and is not any more does not stay.
        assert_eq!(retirement(&plain, None, Some(&on("2027-01-14"))), None);
    }

    #[test]
    fn a_file_counts_where_neither_a_person_nor_the_server_says_anything() {
        let written =
            LLMDeploymentSpec { retires_on: Some("2027-01-14".parse().unwrap()), ..<_>::default() };
        let plain = LLMDeploymentSpec::default();
        let day = |date: &str| date.parse::<Date>().unwrap();
        let filed = Some(day("2027-03-01"));
        let by = |spec, told, before: Option<&Retirement>| {
            retirement(spec, told, before, filed).unwrap().source
        };
        let server = Retirement { date: day("2026-12-11"), source: RetirementSource::Server };
        assert_eq!(by(&written, None, None), RetirementSource::Spec);
        assert_eq!(by(&plain, Some(Some(day("2026-12-11"))), None), RetirementSource::Server);
        assert_eq!(by(&plain, None, Some(&server)), RetirementSource::Server);
        assert_eq!(by(&plain, Some(None), Some(&server)), RetirementSource::File);
        assert_eq!(by(&plain, None, None), RetirementSource::File);
        // It is taken out of the file.
        let was = Retirement { date: day("2027-03-01"), source: RetirementSource::File };
        assert_eq!(retirement(&plain, None, Some(&was), None), None);
    }

    /// Looks at a backend every hour from `from` on for `days`, through restarts: only the
    /// condition is kept. Answers what was told, and how often the condition was written.
    fn lived(date: &str, from: &str, days: i64) -> (Vec<(String, &'static str)>, usize) {
        let (start, retirement) = (at(from), on(date));
        let (mut conditions, mut told, mut writes) = (vec![], vec![], 0);
        for hour in 0..days * 24 {
            let now = start + hour.hours();
            let found = finding("gpt-4o", Some(&retirement), false, "move", now).unwrap();
            let before = conditions::find(&conditions, MODEL_RETIREMENT).cloned();
            if let Some(news) = news(before.as_ref(), Some(&found)) {
                told.push((now.strftime("%Y-%m-%d").to_string(), news.reason));
            }
            let said = (found.reason, found.message.as_str());
            conditions::set_one(&mut conditions, MODEL_RETIREMENT, found.warns, said, 1, now);
            writes += usize::from(before != conditions.first().cloned());
        }
        (told, writes)
    }

    #[test]
    fn each_threshold_is_told_once_and_nothing_is_written_between() {
        let (told, writes) = lived("2027-01-14", "2026-10-01T05:00:00Z", 130);
        let expected = [
            ("2026-11-15", "RetiresWithin60Days"),
            ("2026-12-15", "RetiresWithin30Days"),
            ("2027-01-07", "RetiresWithin7Days"),
            ("2027-01-14", "Retired"),
        ];
        assert_eq!(told, expected.map(|(day, reason)| (day.to_owned(), reason)));
        assert_eq!(writes, 5, "the first, and one a threshold");
    }

    #[test]
    fn a_date_that_is_near_when_it_becomes_known_is_told_once() {
        let (told, writes) = lived("2027-01-14", "2027-01-01T05:00:00Z", 3);
        assert_eq!(told, [("2027-01-01".to_owned(), "RetiresWithin30Days")]);
        assert_eq!(writes, 1);
    }

    #[test]
    fn the_next_look_is_when_the_finding_changes() {
        let date = "2027-01-14".parse().unwrap();
        for (now, next) in [
            ("2026-01-01T00:00:00Z", Some("2026-11-15T00:00:00Z")),
            ("2026-11-15T00:00:00Z", Some("2026-12-15T00:00:00Z")),
            ("2027-01-07T01:00:00Z", Some("2027-01-14T00:00:00Z")),
            ("2027-01-14T00:00:00Z", None),
        ] {
            assert_eq!(changes_at(date, at(now)), next.map(at), "{now}");
            let reason =
                |now| finding("m", Some(&on("2027-01-14")), false, "move", now).unwrap().reason;
            let Some(next) = next.map(at) else { continue };
            assert_eq!(reason(next - 1.seconds()), reason(at(now)), "{now}");
            assert_ne!(reason(next), reason(at(now)), "{now}");
        }
    }

    #[test]
    fn a_model_that_is_gone_is_told_when_that_begins_and_when_it_is_over() {
        let now = at("2026-11-29T00:00:00Z");
        let gone = finding("m", None, true, &migrate("m"), now).unwrap();
        assert_eq!((gone.reason, gone.warns), (MODEL_GONE, true));
        assert!(gone.message.contains("serinus migrate --from m"), "{}", gone.message);
        let mut conditions = vec![];
        let said = (gone.reason, gone.message.as_str());
        conditions::set_one(&mut conditions, MODEL_RETIREMENT, true, said, 1, now);
        let before = conditions.first();
        assert_eq!(news(None, Some(&gone)).unwrap().reason, MODEL_GONE);
        assert_eq!(news(before, Some(&gone)), None);
        assert_eq!(news(before, None).unwrap().reason, MENDED);
        assert_eq!(finding("m", None, false, "move", now), None);
    }
}
