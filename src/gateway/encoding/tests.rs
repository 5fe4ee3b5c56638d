//! Against what other encoders write, whole and byte by byte.

use std::io::Write;

use axum::http::HeaderValue;
use flate2::{
    Compression, GzBuilder,
    write::{DeflateEncoder, GzEncoder, ZlibEncoder},
};

use super::*;

const TEXT: &[u8] = br#"{"model":"r","messages":[{"role":"user","content":"why why why why"}]}"#;

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut to = GzEncoder::new(vec![], Compression::default());
    to.write_all(text).unwrap();
    to.finish().unwrap()
}

fn zlib(text: &[u8]) -> Vec<u8> {
    let mut to = ZlibEncoder::new(vec![], Compression::default());
    to.write_all(text).unwrap();
    to.finish().unwrap()
}

fn raw(text: &[u8], level: u32) -> Vec<u8> {
    let mut to = DeflateEncoder::new(vec![], Compression::new(level));
    to.write_all(text).unwrap();
    to.finish().unwrap()
}

fn zstandard(text: &[u8]) -> Vec<u8> {
    zstd::encode_all(text, 3).unwrap()
}

/// Decodes a body that comes in pieces of `piece` bytes, into a buffer of `room`.
fn decode(codings: &[Coding], body: &[u8], piece: usize, room: usize) -> io::Result<Vec<u8>> {
    let mut decoder = Decoder::new(codings, usize::MAX)?;
    let mut pieces = body.chunks(piece);
    let (mut all, mut into) = (vec![], vec![0; room]);
    loop {
        match decoder.read(&mut into)? {
            Decoded::Bytes(read) => all.extend_from_slice(&into[..read]),
            Decoded::Hungry => match pieces.next() {
                Some(piece) => decoder.feed(Bytes::copy_from_slice(piece)),
                None => decoder.end(),
            },
            Decoded::Working => {}
            Decoded::End => return Ok(all),
        }
    }
}

fn headers(values: &[&str]) -> HeaderMap {
    let value = |text: &&str| (header::CONTENT_ENCODING, HeaderValue::from_str(text).unwrap());
    values.iter().map(value).collect()
}

#[test]
fn a_body_is_the_same_in_whatever_pieces_it_comes_and_is_read() {
    let large: Vec<u8> = (0..300_000_u32).flat_map(|i| i.wrapping_mul(i).to_le_bytes()).collect();
    for text in [TEXT, &large, b""] {
        let cases = [
            (vec![Coding::Gzip], gzip(text)),
            (
                vec![Coding::Gzip],
                [gzip(&text[..text.len() / 2]), gzip(&text[text.len() / 2..])].concat(),
            ),
            (vec![Coding::Deflate], zlib(text)),
            (vec![Coding::Deflate], raw(text, 6)),
            (vec![Coding::Deflate], raw(text, 0)),
            (vec![Coding::Zstd], zstandard(text)),
            (vec![Coding::Zstd], [zstandard(text), zstandard(b"")].concat()),
            (vec![Coding::Deflate, Coding::Gzip], gzip(&zlib(text))),
            (vec![Coding::Zstd, Coding::Gzip, Coding::Zstd], zstandard(&gzip(&zstandard(text)))),
        ];
        for (codings, body) in cases {
            for (piece, room) in [(1, 1 << 16), (7, 11), (4096, 100), (usize::MAX, 1 << 20)] {
                if text.len() > 1000 && piece < 100 {
                    continue;
                }
                let decoded = decode(&codings, &body, piece, room).unwrap();
                assert!(decoded == text, "{codings:?} in pieces of {piece} into {room}");
            }
        }
    }
}

#[test]
fn a_header_of_gzip_may_hold_anything_that_it_may() {
    let mut to = GzBuilder::new()
        .filename("a name")
        .comment("a comment")
        .extra(vec![7; 300])
        .write(vec![], Compression::fast());
    to.write_all(TEXT).unwrap();
    let full = to.finish().unwrap();
    assert_eq!(decode(&[Coding::Gzip], &full, 1, 50).unwrap(), TEXT);
    let padded = [full, vec![0; 512]].concat();
    assert_eq!(decode(&[Coding::Gzip], &padded, 100, 50).unwrap(), TEXT);
}

#[test]
fn a_stream_is_read_as_far_as_it_was_flushed() {
    let mut to = GzEncoder::new(vec![], Compression::default());
    let mut decoder = Decoder::new(&[Coding::Gzip], usize::MAX).unwrap();
    let mut into = [0; 1 << 12];
    for event in ["data: 1\n\n", "data: 2\n\n", "data: [DONE]\n\n"] {
        to.write_all(event.as_bytes()).unwrap();
        to.flush().unwrap();
        decoder.feed(Bytes::from(std::mem::take(to.get_mut())));
        let Decoded::Bytes(read) = decoder.read(&mut into).unwrap() else { panic!("{event}") };
        assert_eq!(&into[..read], event.as_bytes());
        // However often it is asked.
        for _ in 0..40 {
            assert_eq!(decoder.read(&mut into).unwrap(), Decoded::Hungry);
        }
    }
}

#[test]
fn what_is_broken_off_changed_or_something_else_is_an_error() {
    for (coding, body) in [
        (Coding::Gzip, gzip(TEXT)),
        (Coding::Deflate, zlib(TEXT)),
        (Coding::Deflate, raw(TEXT, 6)),
        (Coding::Zstd, zstandard(TEXT)),
    ] {
        for cut in 0..body.len() {
            let decoded = decode(&[coding], &body[..cut], 9, 64);
            assert!(decoded.is_err(), "{coding:?} after {cut} of {}", body.len());
        }
        assert!(decode(&[coding], TEXT, 9, 64).is_err(), "{coding:?} of something else");
        let followed = [&body[..], b"and more"].concat();
        assert!(decode(&[coding], &followed, 9, 64).is_err(), "{coding:?} with more behind it");
    }
    let mut changed = gzip(TEXT);
    let at = changed.len() - 6;
    changed[at] ^= 1;
    assert!(decode(&[Coding::Gzip], &changed, 9, 64).is_err(), "its checksum");
}

#[test]
fn what_unfolds_is_read_in_pieces_and_a_window_has_its_bound() {
    let zeros = vec![0; 64 << 20];
    for (coding, body) in [(Coding::Gzip, gzip(&zeros)), (Coding::Zstd, zstandard(&zeros))] {
        assert!(body.len() < 1 << 17, "{}", body.len());
        let mut decoder = Decoder::new(&[coding], usize::MAX).unwrap();
        decoder.feed(Bytes::from(body));
        let mut into = vec![0; 1 << 12];
        for _ in 0..200 {
            let decoded = decoder.read(&mut into);
            assert!(matches!(decoded, Ok(Decoded::Bytes(1..=4096) | Decoded::Working)));
        }
    }
    let mut wide = zstd::stream::Encoder::new(vec![], 3).unwrap();
    wide.window_log(27).unwrap();
    wide.write_all(&zeros[..1 << 20]).unwrap();
    assert!(decode(&[Coding::Zstd], &wide.finish().unwrap(), 1 << 12, 1 << 12).is_err());
}

/// Bits as deflate writes them: the least significant first.
fn bits(fields: &[(u32, u32)], times: usize) -> Vec<u8> {
    let (mut all, mut held, mut count) = (vec![], 0_u32, 0);
    for (value, width) in fields.iter().copied().cycle().take(fields.len() * times) {
        held |= value << count;
        count += width;
        while count >= 8 {
            all.push(held.to_le_bytes()[0]);
            held >>= 8;
            count -= 8;
        }
    }
    all
}

/// Beginnings of bodies that are decoded to nothing, of at least `length` bytes each.
fn hollow(length: usize) -> Vec<(&'static str, Coding, Vec<u8>)> {
    let repeated = |piece: &[u8]| piece.repeat(length / piece.len() + 1);
    // A block's header, then its end.
    let fixed = [(0, 1), (1, 2), (0, 7)];
    // The lengths of three codes: of 18 ("so many zeros") and 1 for the lengths of the others;
    // of the end of the block; of one distance. Then the end.
    let lengths = [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1].map(|length| (length, 3));
    let own = [&[(0, 1), (2, 2), (0, 5), (0, 5), (14, 4)], &lengths[..], &[(1, 1), (127, 7)]];
    let own = [own.concat(), vec![(1, 1), (107, 7), (0, 1), (0, 1), (0, 1)]].concat();
    let named = GzBuilder::new().comment(vec![b'x'; 8000]).write(vec![], Compression::fast());
    let skipped = [
        &[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0][..],
        &[0x50, 0x2a, 0x4d, 0x18, 100, 0, 0, 0],
        &[7; 100],
    ];
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, 0x58];
    vec![
        ("members", Coding::Gzip, repeated(&gzip(b""))),
        ("members with comments", Coding::Gzip, repeated(&named.finish().unwrap())),
        ("padding", Coding::Gzip, [gzip(b""), vec![0; length]].concat()),
        ("stored blocks", Coding::Deflate, repeated(&[0, 0, 0, 0xff, 0xff])),
        ("blocks", Coding::Deflate, bits(&fixed, length)),
        ("blocks with codes of their own", Coding::Deflate, bits(&own, length / 10)),
        ("frames", Coding::Zstd, repeated(&zstandard(b""))),
        ("skipped frames", Coding::Zstd, repeated(&skipped.concat())),
        ("blocks of zstd", Coding::Zstd, [&frame[..], &[0; 3].repeat(length / 3)].concat()),
    ]
}

/// Decodes until it is refused: the refusal, and an upper bound of the bytes that all codings
/// have read and written.
fn refused(codings: &[Coding], body: &[u8], largest: usize) -> (String, u64) {
    let mut decoder = Decoder::new(codings, largest).unwrap();
    decoder.feed(Bytes::copy_from_slice(body));
    decoder.end();
    let (mut turns, mut into) = (1, vec![0; 1 << 10]);
    loop {
        match decoder.read(&mut into) {
            Ok(Decoded::Bytes(_)) => {}
            Ok(Decoded::Working) => turns += 1,
            Ok(ended) => return (format!("{ended:?}"), turns * TURN),
            Err(error) => return (error.to_string(), turns * TURN),
        }
    }
}

#[test]
fn what_is_decoded_to_nothing_is_refused_after_a_megabyte_however_it_is_made() {
    for (what, coding, body) in hollow(4 << 20) {
        let (error, work) = refused(&[coding], &body, usize::MAX);
        assert!(error.contains("longer than 4 times"), "{what}: {error}");
        assert!(work <= 2 * FREE, "{what}: {work}");
        // A few bytes that become that much in between.
        let (once, twice) = (gzip(&body), gzip(&gzip(&body)));
        for (codings, body) in
            [(vec![coding, Coding::Gzip], once), (vec![coding, Coding::Gzip, Coding::Gzip], twice)]
        {
            let (error, work) = refused(&codings, &body, usize::MAX);
            assert!(error.contains("1 MiB longer than"), "{what}: {error}");
            assert!(work <= 4 * FREE, "{what} in {codings:?}: {work}");
        }
    }
}

#[test]
fn what_passes_between_two_codings_is_bounded_by_what_came_and_by_the_largest_body() {
    let text: Vec<u8> = (0..3 << 20).map(|i: u32| (i / 100 % 251).to_le_bytes()[0]).collect();
    let inner = raw(&text, 0);
    let chain = [Coding::Deflate, Coding::Gzip];
    let thin = gzip(&inner);
    assert!(thin.len() < inner.len() / 20, "{}", thin.len());
    let (error, work) = refused(&chain, &thin, usize::MAX);
    assert!(error.contains("between its codings"), "{error}");
    assert!(work < 6 << 20, "{work}");
    let mut to = GzEncoder::new(vec![], Compression::none());
    to.write_all(&inner).unwrap();
    let thick = to.finish().unwrap();
    assert_eq!(refused(&chain, &thick, inner.len()).0, "End");
    assert!(refused(&chain, &thick, inner.len() - 1).0.contains("between its codings"));
}

#[test]
fn honest_bodies_in_many_members_frames_and_flushes_are_read() {
    let text: Vec<u8> = (0..2_u32 << 20)
        .map(|i| b"{\"model\": 0123456789, \n}"[(i.wrapping_mul(i) >> 7) as usize % 24])
        .collect();
    let in_members = |of: usize| text.chunks(of).flat_map(gzip).collect::<Vec<u8>>();
    let in_frames = |of: usize| text.chunks(of).flat_map(zstandard).collect::<Vec<u8>>();
    let mut flushed = GzEncoder::new(vec![], Compression::default());
    for event in text.chunks(20) {
        flushed.write_all(event).unwrap();
        flushed.flush().unwrap();
    }
    for (coding, body) in [
        // As bgzip writes.
        (Coding::Gzip, in_members(64 << 10)),
        // Lines of a log, and events of a stream, each by itself.
        (Coding::Gzip, in_members(100)),
        (Coding::Gzip, in_members(20)),
        (Coding::Gzip, flushed.finish().unwrap()),
        (Coding::Zstd, in_frames(20)),
    ] {
        assert!(decode(&[coding], &body, 1 << 14, 1 << 16).unwrap() == text, "{}", body.len());
    }
    // A flush says nothing and keeps a stream alive.
    let slow = [[0, 0, 0, 0xff, 0xff].repeat(100_000), raw(TEXT, 6)].concat();
    assert_eq!(decode(&[Coding::Deflate], &slow, 1 << 10, 1 << 16).unwrap(), TEXT);
}

#[test]
fn names_of_codings_have_no_case_and_come_in_chains() {
    for (values, expected) in [
        (&["gzip"][..], Ok(vec![Coding::Gzip])),
        (&["X-GZIP"], Ok(vec![Coding::Gzip])),
        (&[" Deflate , identity, ZSTD"], Ok(vec![Coding::Deflate, Coding::Zstd])),
        (&["deflate", "gzip"], Ok(vec![Coding::Deflate, Coding::Gzip])),
        (&["identity"], Ok(vec![])),
        (&[""], Ok(vec![])),
        (&[], Ok(vec![])),
        (&["br"], Err(Unreadable::Unknown("br".to_owned()))),
        (&["gzip, br"], Err(Unreadable::Unknown("br".to_owned()))),
        (&["gzip,gzip,gzip,gzip"], Err(Unreadable::TooMany)),
    ] {
        assert_eq!(codings(&headers(values)), expected, "{values:?}");
    }
}
