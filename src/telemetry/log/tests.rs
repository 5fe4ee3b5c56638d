use std::{io::ErrorKind, sync::mpsc};

use super::*;

/// Longer than any test should take: only whoever fails waits for it.
const LONG: Duration = Duration::from_secs(60);

/// What a reader has read, and when it reads.
#[derive(Clone, Default)]
struct Reader(Arc<(Mutex<Reading>, Condvar)>);

#[derive(Default)]
struct Reading {
    text: Vec<u8>,
    /// Writes that are waiting or were answered.
    asked: usize,
    stands_still: bool,
    fails: Option<ErrorKind>,
}

impl Reader {
    fn set(&self, change: impl FnOnce(&mut Reading)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.0.lock().unwrap().text.clone()).unwrap()
    }

    /// Until the log's thread has written, or waits for this reader, so often.
    fn asked(&self, times: usize) {
        let few = |reading: &mut Reading| reading.asked < times;
        let guard = self.0.0.lock().unwrap();
        assert!(!self.0.1.wait_timeout_while(guard, LONG, few).unwrap().1.timed_out());
    }

    fn log(&self) -> Log {
        Log::start(self.clone(), |log, lost| log.put(format!("{lost} lost\n").as_bytes())).unwrap()
    }
}

impl Write for Reader {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut reading = self.0.0.lock().unwrap();
        reading.asked += 1;
        self.0.1.notify_all();
        let mut reading = self.0.1.wait_while(reading, |r| r.stands_still).unwrap();
        if let Some(kind) = reading.fails {
            return Err(kind.into());
        }
        reading.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_was_put_in_is_written_in_order_before_the_end() {
    let reader = Reader::default();
    let log = reader.log();
    let lines: String = (0..2000).map(|i| format!("line {i}\n")).collect();
    lines.split_inclusive('\n').for_each(|line| log.put(line.as_bytes()));
    assert!(log.written(LONG));
    assert_eq!(reader.text(), lines);
    assert_eq!(log.lost().all(), 0);
}

#[test]
fn a_reader_that_stands_still_costs_lines_which_are_counted_and_told_and_nobodys_time() {
    let reader = Reader::default();
    reader.set(|r| r.stands_still = true);
    let log = reader.log();
    log.put(b"first\n");
    reader.asked(1);
    // All of these return although nothing is read.
    let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
    (0..1024 + 7).for_each(|_| log.put(&line));
    assert_eq!(log.lost().counts(), [("queue_full", 7), ("unwritten", 0)]);
    assert!(!log.written(Duration::ZERO), "nor does the end wait for ever");
    reader.set(|r| r.stands_still = false);
    assert!(log.written(LONG));
    let text = reader.text();
    assert_eq!(count(text.as_bytes()), 1 + 1024 + 1);
    assert!(text.ends_with("\n7 lost\n"), "what is missing is told where it is missing");
    log.put(b"next\n");
    assert!(log.written(LONG));
    assert!(reader.text().ends_with("\n7 lost\nnext\n"), "and once");
}

#[test]
fn lines_that_can_not_be_written_end_nothing_and_are_told_when_they_can_again() {
    for kind in [ErrorKind::BrokenPipe, ErrorKind::StorageFull, ErrorKind::FileTooLarge] {
        let reader = Reader::default();
        reader.set(|r| r.fails = Some(kind));
        let log = reader.log();
        for line in ["one\n", "two\nof two\n"] {
            log.put(line.as_bytes());
            assert!(log.written(LONG), "{kind}: the thread goes on");
        }
        assert_eq!(log.lost().counts(), [("queue_full", 0), ("unwritten", 3)], "{kind}");
        reader.set(|r| r.fails = None);
        log.put(b"three\n");
        assert!(log.written(LONG));
        assert_eq!(reader.text(), "three\n3 lost\n", "{kind}");
    }
}

#[test]
fn threads_that_log_at_once_lose_nothing_and_mix_no_lines() {
    let reader = Reader::default();
    let log = reader.log();
    thread::scope(|scope| {
        for name in ["a", "b", "c", "d"] {
            let log = &log;
            scope.spawn(move || {
                let line = format!("{}\n", name.repeat(50));
                (0..500).for_each(|_| log.put(line.as_bytes()));
            });
        }
    });
    assert!(log.written(LONG));
    let text = reader.text();
    assert_eq!(text.lines().count(), 2000);
    let whole = |line: &str| line.len() == 50 && line.bytes().all(|b| b == line.as_bytes()[0]);
    assert!(text.lines().all(whole));
}

#[test]
fn a_line_longer_than_the_queue_is_written_when_nothing_else_waits() {
    let reader = Reader::default();
    let log = reader.log();
    let line = [b"x".repeat(2 * WAITING), b"\n".to_vec()].concat();
    log.put(&line);
    assert!(log.written(LONG));
    assert_eq!((reader.text().len(), log.lost().all()), (line.len(), 0));
}

#[test]
fn what_is_written_at_once_is_whole_lines_that_fit_into_a_pipe_together() {
    let short = b"0123456789\n".repeat(1000);
    let long = [b"y".repeat(5000), b"\n".to_vec()].concat();
    let text = [short, long, b"end\nno end".to_vec()].concat();
    let parts: Vec<&[u8]> = together(&text).collect();
    assert_eq!(parts.concat(), text);
    assert!(parts.iter().rev().skip(1).all(|part| part.ends_with(b"\n")));
    assert!(parts.iter().all(|part| part.len() <= TOGETHER || count(part) == 1));
    assert!(parts.len() < 8, "{}", parts.len());
}

/// What the `tracing` of this process would do, with one worker that serves requests.
#[test]
fn events_of_tracing_never_fail_and_never_wait() {
    let reader = Reader::default();
    reader.set(|r| r.stands_still = true);
    let log = reader.log();
    for json in [false, true] {
        let logs = tracing_subscriber::fmt().with_ansi(false).with_writer(log.clone());
        let work = || (0..20_000).for_each(|i| tracing::warn!(i, "not here"));
        if json {
            tracing::subscriber::with_default(logs.json().finish(), work);
        } else {
            tracing::subscriber::with_default(logs.finish(), work);
        }
    }
    let lost = log.lost().all();
    assert!(lost > 0);
    reader.set(|r| r.stands_still = false);
    assert!(log.written(LONG));
    let text = reader.text();
    let events = text.lines().filter(|line| line.contains("not here")).count() as u64;
    assert_eq!(events + lost, 40_000, "each event is in the log or counted");
    assert!(text.ends_with(&format!("\n{lost} lost\n")));
}

#[test]
fn a_real_pipe_that_was_made_non_blocking_by_others_is_waited_for_by_the_log_alone() {
    let (mut reader, writer) = io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    let stream = super::super::pen::Stream::of(writer.into());
    let log = Log::start(stream, |_, _| {}).unwrap();
    let (line, lines) = ([b"z".repeat(99), b"\n".to_vec()].concat(), 5000);
    (0..lines).for_each(|_| log.put(&line));
    let (done, ended) = mpsc::channel();
    thread::spawn(move || {
        let mut text = vec![0; line.len() * lines];
        io::Read::read_exact(&mut reader, &mut text).unwrap();
        done.send(text).unwrap();
    });
    let text = ended.recv_timeout(LONG).unwrap();
    assert_eq!(count(&text), lines as u64);
    assert_eq!(log.lost().all(), 0);
}
