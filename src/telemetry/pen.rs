//! Lines onto a stream that may be full, gone or standing still: used only by threads that do
//! nothing else, because a write may wait for ever.

use std::{
    fs::File,
    io::{self, ErrorKind, Write},
    os::fd::{AsFd, OwnedFd},
};

use memchr::memchr_iter;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

/// Standard output or standard error, without the lock and the buffer of the standard library:
/// whoever waits for the reader holds nothing that others need, and a line that could not be
/// written does not come back with the next one.
pub struct Stream(File);

impl Stream {
    /// Standard error.
    ///
    /// # Errors
    /// The process may not have another file.
    pub fn stderr() -> io::Result<Self> {
        Ok(Self::of(io::stderr().as_fd().try_clone_to_owned()?))
    }

    /// Standard output.
    ///
    /// # Errors
    /// The process may not have another file.
    pub fn stdout() -> io::Result<Self> {
        Ok(Self::of(io::stdout().as_fd().try_clone_to_owned()?))
    }

    pub(super) fn of(descriptor: OwnedFd) -> Self {
        Self(File::from(descriptor))
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                // Another process of the same terminal or pipe may have made it non-blocking.
                Err(error) if error.kind() == ErrorKind::WouldBlock => until_it_takes(&self.0)?,
                done => return done,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn until_it_takes(file: &File) -> io::Result<()> {
    match poll(&mut [PollFd::new(file, PollFlags::OUT)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Lines that were not written, and why.
#[derive(Debug)]
pub(super) struct Unwritten {
    pub lines: u64,
    pub error: io::Error,
}

/// How many lines a text has.
pub(super) fn count(text: &[u8]) -> u64 {
    memchr_iter(b'\n', text).count() as u64
}

/// Writes lines, and counts those that were not written whole.
#[derive(Debug, Default)]
pub(super) struct Pen {
    /// The stream ends in the middle of a line.
    torn: bool,
}

impl Pen {
    /// Writes whole lines. After a line of which only a part could be written, the next ones
    /// begin on a line of their own.
    ///
    /// # Errors
    /// Not all could be written.
    pub fn write(&mut self, out: &mut impl Write, lines: &[u8]) -> Result<(), Unwritten> {
        let mut left = lines;
        while self.torn || !left.is_empty() {
            let next: &[u8] = if self.torn { b"\n" } else { left };
            let error = match out.write(next) {
                Ok(0) => ErrorKind::WriteZero.into(),
                Ok(_) if self.torn => {
                    self.torn = false;
                    continue;
                }
                Ok(written) => {
                    left = &left[written..];
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            let written = &lines[..lines.len() - left.len()];
            self.torn |= written.last().is_some_and(|byte| *byte != b'\n');
            return Err(Unwritten { lines: count(left), error });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with room for so many bytes.
    struct Disk {
        bytes: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // A system call takes as much as it can.
            let taken = bytes.len().min(self.room).min(3);
            self.room -= taken;
            self.bytes.extend_from_slice(&bytes[..taken]);
            match taken {
                0 => Err(ErrorKind::StorageFull.into()),
                taken => Ok(taken),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_were_not_written_whole_are_counted_and_the_next_begin_on_their_own() {
        let (mut pen, mut disk) = (Pen::default(), Disk { bytes: vec![], room: 8 });
        let unwritten = pen.write(&mut disk, b"one\ntwo two\nthree\n").unwrap_err();
        assert_eq!(unwritten.lines, 2);
        assert_eq!(pen.write(&mut disk, b"four\n").unwrap_err().lines, 1);
        disk.room = 100;
        pen.write(&mut disk, b"five\nsix\n").unwrap();
        assert_eq!(disk.bytes, b"one\ntwo \nfive\nsix\n");
    }

    #[test]
    fn every_line_is_written_or_counted_wherever_the_room_ends() {
        let text = b"a\nbb\n\nccc\n";
        for room in 0..=text.len() {
            let (mut pen, mut disk) = (Pen::default(), Disk { bytes: vec![], room });
            let lost = pen.write(&mut disk, text).err().map_or(0, |unwritten| unwritten.lines);
            assert_eq!(lost + count(&disk.bytes), count(text), "{room}");
            disk.room = 100;
            pen.write(&mut disk, b"end\n").unwrap();
            assert!(disk.bytes.ends_with(b"\nend\n") || disk.bytes == b"end\n", "{room}");
        }
    }
}
