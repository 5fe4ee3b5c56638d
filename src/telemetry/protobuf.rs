//! Writing protobuf messages straight into bytes.
//!
//! A span has about thirty attributes whose keys are known at compile time. Generated
//! types would own a string for each key and value and be walked twice (length, then
//! bytes), which costs ten times as much as writing them; the wire format is fixed for
//! ever, and the tests read what is written with OpenTelemetry's own generated types.

/// A message under construction.
#[derive(Default)]
pub(super) struct Message {
    bytes: Vec<u8>,
}

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const BYTES: u32 = 2;
const FIXED32: u32 = 5;

impl Message {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes) }
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn tag(&mut self, field: u32, kind: u32) {
        self.varint(u64::from(field << 3 | kind));
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    pub(super) fn uint(&mut self, field: u32, value: u64) {
        self.tag(field, VARINT);
        self.varint(value);
    }

    pub(super) fn fixed32(&mut self, field: u32, value: u32) {
        self.tag(field, FIXED32);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn fixed64(&mut self, field: u32, value: u64) {
        self.tag(field, FIXED64);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn double(&mut self, field: u32, value: f64) {
        self.fixed64(field, value.to_bits());
    }

    pub(super) fn bytes(&mut self, field: u32, value: &[u8]) {
        self.tag(field, BYTES);
        self.varint(value.len() as u64);
        self.bytes.extend_from_slice(value);
    }

    pub(super) fn string(&mut self, field: u32, value: &str) {
        self.bytes(field, value.as_bytes());
    }

    /// Bytes of the message or string that is being written.
    pub(super) fn raw(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
    }

    /// A message within the message. Its length comes first and is known last, so room
    /// for one byte is left and made wider when that is not enough.
    pub(super) fn message(&mut self, field: u32, write: impl FnOnce(&mut Self)) {
        self.tag(field, BYTES);
        let at = self.bytes.len();
        self.bytes.push(0);
        write(self);
        let mut length = self.bytes.len() - at - 1;
        if let Some(first) = self.bytes.get_mut(at).filter(|_| length < 0x80) {
            *first = length as u8;
            return;
        }
        let (mut wide, mut used) = ([0_u8; 10], 0);
        for byte in &mut wide {
            *byte = length as u8 & 0x7f;
            length >>= 7;
            used += 1;
            if length == 0 {
                break;
            }
            *byte |= 0x80;
        }
        self.bytes.splice(at..=at, wide.into_iter().take(used));
    }
}

/// Reads the varint at the start of `bytes`: the value, and what follows.
fn read_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f).checked_shl(7 * index as u32)?;
        if byte & 0x80 == 0 {
            return Some((value, bytes.get(index + 1..)?));
        }
    }
    None
}

/// What a field holds, of the two kinds that are read.
pub(super) enum Field<'a> {
    Uint(u64),
    Bytes(&'a [u8]),
}

/// Finds the last field of this number in a message; none when the bytes are no message.
pub(super) fn read(mut bytes: &[u8], field: u32) -> Option<Field<'_>> {
    let mut found = None;
    while !bytes.is_empty() {
        let (tag, rest) = read_varint(bytes)?;
        let value = match tag as u32 & 7 {
            VARINT => {
                let (value, rest) = read_varint(rest)?;
                bytes = rest;
                Field::Uint(value)
            }
            BYTES => {
                let (length, rest) = read_varint(rest)?;
                let (value, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
                bytes = rest;
                Field::Bytes(value)
            }
            FIXED64 => {
                bytes = rest.get(8..)?;
                continue;
            }
            FIXED32 => {
                bytes = rest.get(4..)?;
                continue;
            }
            _ => return None,
        };
        if tag >> 3 == u64::from(field) {
            found = Some(value);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_within_messages_know_their_length_however_long_they_are() {
        for length in [0, 1, 125, 126, 127, 128, 129, 300, 16_381, 16_384, 70_000, 3_000_000] {
            let text = "x".repeat(length);
            let mut outer = Message::default();
            outer.message(7, |inner| inner.string(1, &text));
            outer.uint(3, 300);
            let bytes = outer.into_bytes();
            let Some(Field::Bytes(inner)) = read(&bytes, 7) else { panic!("{length}: no field") };
            let Some(Field::Bytes(read_back)) = read(inner, 1) else { panic!("{length}: no text") };
            assert_eq!(read_back, text.as_bytes());
            assert!(matches!(read(&bytes, 3), Some(Field::Uint(300))), "{length}: what follows");
        }
    }

    #[test]
    fn what_is_no_message_is_not_read() {
        assert!(read(&[0x0a, 0x05, 1, 2], 1).is_none(), "cut off");
        assert!(read(&[0x0f], 1).is_none(), "no such kind");
        assert!(read(&[0x80; 12], 1).is_none(), "no varint ends");
    }
}
