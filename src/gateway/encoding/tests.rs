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
    let mut decoder = Decoder::new(codings)?;
    let mut pieces = body.chunks(piece);
    let (mut all, mut into) = (vec![], vec![0; room]);
    loop {
        match decoder.read(&mut into)? {
            Decoded::Bytes(read) => all.extend_from_slice(&into[..read]),
            Decoded::Hungry => match pieces.next() {
                Some(piece) => decoder.feed(Bytes::copy_from_slice(piece)),
                None => decoder.end(),
            },
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
    let mut decoder = Decoder::new(&[Coding::Gzip]).unwrap();
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
        let mut decoder = Decoder::new(&[coding]).unwrap();
        decoder.feed(Bytes::from(body));
        let mut into = vec![0; 1 << 12];
        for _ in 0..100 {
            assert!(matches!(decoder.read(&mut into), Ok(Decoded::Bytes(1..=4096))));
        }
    }
    let mut wide = zstd::stream::Encoder::new(vec![], 3).unwrap();
    wide.window_log(27).unwrap();
    wide.write_all(&zeros[..1 << 20]).unwrap();
    assert!(decode(&[Coding::Zstd], &wide.finish().unwrap(), 1 << 12, 1 << 12).is_err());
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
