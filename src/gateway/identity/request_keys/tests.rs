use super::*;

const DAY: i64 = 24 * 3600;
const START: i64 = 1_800_000_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn stored(keys: &[(&str, u8)]) -> Stored {
    keys.iter().map(|(name, byte)| ((*name).to_owned(), vec![*byte; KEY])).collect()
}

fn knowing(keys: &[(&str, u8)], now: i64) -> RequestKeys {
    let known = RequestKeys::default();
    assert!(known.set(&stored(keys), at(now)).is_empty());
    known
}

#[test]
fn a_text_that_one_replica_signs_another_verifies_and_a_changed_one_nobody() {
    let (one, other) = (knowing(&[("1", 7)], START), knowing(&[("1", 7)], START));
    let stranger = knowing(&[("1", 8)], START);
    let signature = one.sign(Purpose::Id, b"text");
    assert!(other.verify(Purpose::Id, b"text", &signature).is_some());
    assert!(other.verify(Purpose::Id, b"texu", &signature).is_none());
    assert!(other.verify(Purpose::Vote, b"text", &signature).is_none(), "of another kind");
    assert!(stranger.verify(Purpose::Id, b"text", &signature).is_none());
    for bit in 0..SIGNATURE * 8 {
        let mut changed = signature;
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(other.verify(Purpose::Id, b"text", &changed).is_none());
    }
}

#[test]
fn a_new_key_signs_when_every_replica_has_read_it_and_the_old_one_still_verifies() {
    let (old, new) = ((START - 8 * DAY).to_string(), START.to_string());
    let early = knowing(&[(&old, 1)], START);
    let late = knowing(&[(&old, 1), (&new, 2)], START + 59);
    let signature = late.sign(Purpose::Id, b"x");
    assert!(early.verify(Purpose::Id, b"x", &signature).is_some(), "it has not read the new one");
    let settled = knowing(&[(&old, 1), (&new, 2)], START + 60);
    let signature = settled.sign(Purpose::Id, b"x");
    assert!(early.verify(Purpose::Id, b"x", &signature).is_none());
    assert!(late.verify(Purpose::Id, b"x", &signature).is_some());
    let earlier = early.sign(Purpose::Id, b"x");
    assert!(settled.verify(Purpose::Id, b"x", &earlier).is_some());
}

#[test]
fn before_shared_keys_are_read_a_process_signs_with_its_own() {
    let keys = RequestKeys::default();
    let signature = keys.sign(Purpose::Id, b"x");
    assert!(keys.verify(Purpose::Id, b"x", &signature).is_some());
    assert!(RequestKeys::default().verify(Purpose::Id, b"x", &signature).is_none());
    keys.set(&stored(&[("1", 7)]), at(START));
    assert!(keys.verify(Purpose::Id, b"x", &signature).is_some(), "it was handed out");
}

#[test]
fn keys_that_are_gone_or_spoiled_leave_those_in_force_that_were_read() {
    let keys = knowing(&[("1", 7)], START);
    let signature = keys.sign(Purpose::Id, b"x");
    assert!(keys.set(&Stored::new(), at(START)).is_empty());
    let short = Stored::from([("1".to_owned(), vec![7; KEY - 1])]);
    assert_eq!(keys.set(&short, at(START)), ["1"]);
    assert!(knowing(&[("1", 7)], START).verify(Purpose::Id, b"x", &signature).is_some());
    assert_eq!(keys.sign(Purpose::Id, b"x"), signature);
}

#[test]
fn a_key_is_made_when_there_is_none_and_every_week_and_verifies_for_a_month_more() {
    let mut keys = rotated(&Stored::new(), at(START), [0; KEY]).unwrap();
    assert_eq!(keys, stored(&[(&START.to_string(), 0)]));
    assert_eq!(rotated(&keys, at(START + 7 * DAY - 1), [1; KEY]), None);
    for week in 1..20 {
        keys = rotated(&keys, at(START + week * 7 * DAY), [week as u8; KEY]).unwrap();
        assert!(keys.len() <= 6, "{}", keys.len());
    }
    let now = START + 19 * 7 * DAY;
    // A key's successor was made a week after it.
    let oldest: i64 = keys.keys().next().unwrap().parse().unwrap();
    assert!(oldest + 7 * DAY > now - 30 * DAY && oldest <= now - 30 * DAY, "{}", now - oldest);
}

/// The names of stored keys, in days after the start.
fn days(stored: &Stored) -> Vec<i64> {
    stored.keys().map(|name| (name.parse::<i64>().unwrap() - START) / DAY).collect()
}

#[test]
fn a_process_whose_clock_is_ahead_drops_no_key_and_stops_no_rotation() {
    let of = |days: &[i64]| -> Stored {
        days.iter().map(|day| ((START + day * DAY).to_string(), vec![*day as u8; KEY])).collect()
    };
    let before = of(&[-22, -15, -8, -1]);
    for ahead in [31, 365, 3_650] {
        let mut keys = rotated(&before, at(START + ahead * DAY), [9; KEY]).unwrap();
        assert_eq!(days(&keys), [-22, -15, -8, -1, ahead], "all are in use where clocks are right");
        let theirs = RequestKeys::default();
        theirs.set(&keys, at(START));
        let signs = knowing(&[(&(START - DAY).to_string(), 255)], START);
        let signature = signs.sign(Purpose::Id, b"x");
        assert!(theirs.verify(Purpose::Id, b"x", &signature).is_some());
        assert_eq!(theirs.sign(Purpose::Id, b"x"), signature, "with the newest of now");
        // With the clock right, as if it were not there.
        assert_eq!(rotated(&keys, at(START + 6 * DAY - 1), [1; KEY]), None);
        for week in 0..4 {
            let day = 6 + 7 * week;
            keys = rotated(&keys, at(START + day * DAY), [week as u8; KEY]).unwrap();
            assert!(days(&keys).contains(&day) && days(&keys).contains(&ahead));
            // As without it, a key goes 30 days after its successor came.
            let oldest = days(&keys)[0];
            assert!(oldest + 7 > day - 30, "{oldest} on day {day}");
        }
    }
    // Keys of the future alone: one of now is made, and signs.
    let keys = rotated(&of(&[365, 372]), at(START), [5; KEY]).unwrap();
    assert_eq!(days(&keys), [0, 365, 372]);
    // A clock that is off by minutes is none that is wrong.
    let soon = stored(&[(&(START + 600).to_string(), 1)]);
    assert_eq!(rotated(&soon, at(START), [5; KEY]), None);
}

#[test]
fn keys_that_people_made_are_theirs_to_replace() {
    let theirs = stored(&[("a", 1), ("b", 2)]);
    assert_eq!(rotated(&theirs, at(START), [9; KEY]), None);
    let keys = knowing(&[("a", 1), ("b", 2)], START);
    let signature = keys.sign(Purpose::Id, b"x");
    for one in [("a", 1), ("b", 2)] {
        let mine = knowing(&[one], START).sign(Purpose::Id, b"x");
        assert!(keys.verify(Purpose::Id, b"x", &mine).is_some());
    }
    assert!(keys.verify(Purpose::Id, b"x", &signature).is_some());
    let mixed = stored(&[("a", 1), (&START.to_string(), 2)]);
    let next = rotated(&mixed, at(START + 8 * DAY), [9; KEY]).unwrap();
    assert!(next.contains_key("a") && next.len() == 3);
}

#[test]
fn what_is_printed_tells_no_key() {
    assert_eq!(format!("{:?}", knowing(&[("1", 7)], START)), "RequestKeys(1)");
}

/// Prints what an id costs; `cargo test --release -- --ignored --nocapture cost_of`.
#[test]
#[ignore = "prints a figure for people"]
fn cost_of_a_signature() {
    let keys = knowing(&[("1", 7)], START);
    let text = [b'a'; 60];
    let began = std::time::Instant::now();
    for _ in 0..1_000_000 {
        std::hint::black_box(keys.sign(Purpose::Id, std::hint::black_box(&text)));
    }
    println!("{:.0} ns a signature", began.elapsed().as_nanos() as f64 / 1e6);
}
