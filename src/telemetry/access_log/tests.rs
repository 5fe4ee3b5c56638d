use serde_json::Value;

use super::*;
use crate::{
    audit::record::Content,
    telemetry::{Bounds, fixtures::record},
};

#[test]
fn a_line_says_what_happened_and_nothing_of_what_was_said() {
    let content = Content {
        input: b"secret words".to_vec(),
        output: "more secret words".into(),
        user: Some("ada".into()),
        ..Content::default()
    };
    let record = Record { content: Some(Box::new(content)), ..record() };
    let text = serde_json::to_string(&line(&record)).unwrap();
    assert!(!text.contains("secret") && !text.contains("ada"));
    let line: Value = serde_json::from_str(&text).unwrap();
    for (name, value) in [
        ("at", Value::from("2023-11-14T22:13:20.000Z")),
        ("trace_id", Value::from("01010101010101010101010101010101")),
        ("prompt_version", Value::from("support-answer-v7")),
        ("team", Value::from("web")),
        ("duration_ms", Value::from(1500.0)),
        ("cost_usd", Value::from(0.0042)),
    ] {
        assert_eq!(line[name], value, "{name}");
    }
    assert!(line.get("error").is_none(), "what there is not is left out");
}

#[tokio::test]
async fn lines_are_added_to_the_file_and_what_can_not_be_written_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let bounds = Bounds { records: 10, bytes: 0, batch: 4 };
    let run = async |file: PathBuf| {
        let writer = Writer {
            config: Config { file: Some(file), ratio: 1.0 },
            outbox: Arc::new(Outbox::new(bounds)),
            lost: Arc::default(),
        };
        let lost = writer.lost.clone();
        (0..10).for_each(|_| writer.outbox.put(&Arc::new(record())));
        let stop = CancellationToken::new();
        stop.cancel();
        writer.run(stop, Duration::from_secs(60)).await;
        lost.load(Ordering::Relaxed)
    };
    assert_eq!(run(path.clone()).await, 0);
    assert_eq!(run(path.clone()).await, 0);
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().filter(|l| serde_json::from_str::<Value>(l).is_ok()).count(), 20);
    assert_eq!(run(folder.path().join("no/such/folder.log")).await, 10);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stands_still_costs_lines_and_keeps_nothing_from_ending() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    // To open a pipe that nobody reads waits, as writing to a full one does.
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    let writer = Writer {
        config: Config { file: Some(path.clone()), ratio: 1.0 },
        outbox: Arc::new(Outbox::new(Bounds { records: 10, bytes: 0, batch: 4 })),
        lost: Arc::default(),
    };
    let (lost, outbox) = (writer.lost.clone(), writer.outbox.clone());
    (0..12).for_each(|_| outbox.put(&Arc::new(record())));
    let stop = CancellationToken::new();
    stop.cancel();
    let begun = Instant::now();
    let patience = Duration::from_secs(5);
    let ended = tokio::time::timeout(patience * 3, writer.run(stop, patience)).await;
    // Somebody reads now: whoever still waits goes on.
    let reader = thread::spawn(move || io::copy(&mut open(&path), &mut io::sink()).unwrap());
    assert!(ended.is_ok(), "the end waits for the reader");
    assert_eq!(begun.elapsed(), patience);
    let lost = lost.load(Ordering::Relaxed);
    assert_eq!((lost, outbox.dropped(), outbox.len()), (10, 2, 0), "each line is counted");
    assert!(reader.join().is_ok());
}

fn open(path: &PathBuf) -> std::fs::File {
    std::fs::File::open(path).unwrap()
}

#[test]
fn of_a_sampled_log_only_answered_requests_are_missing() {
    let config = Config { file: None, ratio: 0.0 };
    assert!(!config.tells(&record()));
    assert!(config.tells(&Record { outcome: RecordOutcome::Error, ..record() }));
    assert!(Config { file: None, ratio: 1.0 }.tells(&record()));
}
