//! A cluster as far as a gateway sees it: an API server whose lists never change, and an
//! operator that asks the gateway for its report once a second. A process of its own, so
//! that what it takes is not taken for the gateway's.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use serinus::signals::{
    proof::{ReportKey, Request},
    report::{LEADER_HEADER, REPORT_PATH},
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::interval,
};

use crate::wire::Connection;

/// The key that gateway and operator share.
pub const KEY: &[u8; 32] = b"a key of this bench 0123456789ab";

/// Serves `folder`, which holds a file for each kind of object (`promptreleases.json`),
/// and asks the gateway whose admin address is `admin`. Does not end.
pub async fn serve(address: SocketAddr, folder: PathBuf, admin: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let folder: Arc<Path> = folder.into();
    let mut tasks = JoinSet::new();
    tasks.spawn(judge(admin));
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let connection = Connection::new(accepted?.0)?;
                tasks.spawn(converse(connection, folder.clone()));
            }
            // A watch that was given up.
            Some(_) = tasks.join_next() => {}
        }
    }
}

async fn converse(mut connection: Connection, folder: Arc<Path>) -> io::Result<()> {
    while let Some(mut head) = connection.head().await? {
        connection.body(&mut head.body, |_| ()).await?;
        let line = String::from_utf8_lossy(&head.bytes);
        let path = line.split(' ').nth(1).unwrap_or_default();
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        if query.contains("watch=true") {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
            connection.write(head.as_bytes()).await?;
            // Nothing ever happens; it ends when the watcher goes away.
            connection.head().await?;
            return Ok(());
        }
        let kind = path.rsplit('/').next().unwrap_or_default();
        let list = std::fs::read_to_string(folder.join(format!("{kind}.json")));
        let empty = r#"{"metadata":{"resourceVersion":"1"},"items":[]}"#;
        let body = list.unwrap_or_else(|_| empty.to_owned());
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        connection.write(&[head.as_bytes(), body.as_bytes()].concat()).await?;
    }
    Ok(())
}

/// Takes the evidence, as a leader does.
async fn judge(admin: SocketAddr) -> io::Result<()> {
    let mut ticks = interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        // Until it listens, and after it has ended, there is nothing to take.
        let _ = report(admin).await;
    }
}

/// What the gateway reports.
pub async fn report(admin: SocketAddr) -> io::Result<Vec<u8>> {
    let mut connection = Connection::new(TcpStream::connect(admin).await?)?;
    let asked = Request { method: "GET", target: REPORT_PATH, leader: "1" };
    let asking = ReportKey::derive(KEY).ask(&asked, now()?, rand::random());
    let proof: String =
        asking.headers().iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let request = format!(
        "GET {REPORT_PATH} HTTP/1.1\r\nhost: {admin}\r\n{proof}{LEADER_HEADER}: 1\r\nconnection: close\r\n\r\n"
    );
    connection.write(request.as_bytes()).await?;
    let mut head = connection.head().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let mut body = vec![];
    connection.body(&mut head.body, |bytes| body.extend_from_slice(bytes)).await?;
    Ok(body)
}

/// The wall clock, which the gateway compares.
fn now() -> io::Result<Timestamp> {
    let since = std::time::UNIX_EPOCH.elapsed().map_err(io::Error::other)?;
    Timestamp::try_from(std::time::UNIX_EPOCH + since).map_err(io::Error::other)
}
