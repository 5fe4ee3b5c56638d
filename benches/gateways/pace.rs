//! A metronome that keeps microseconds. The timer of tokio counts whole milliseconds, and
//! a sleeping thread is woken up to 50 µs late; both are more than what is measured here.

use std::{
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// Ticks at a constant rate.
pub struct Metronome {
    timer: AsyncFd<OwnedFd>,
    /// When the first tick is due.
    pub started: Instant,
}

impl Metronome {
    /// Ticks first after `wait`, then each `period`. Needs a runtime.
    #[expect(
        deprecated,
        reason = "the timer is owned and closed here alone, which is what the unsafe successor asks for"
    )]
    pub fn new(wait: Duration, period: Duration) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let times = Itimerspec { it_interval: timespec(period), it_value: timespec(wait) };
        let started = Instant::now() + wait;
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &times)?;
        Ok(Self { timer: AsyncFd::new(timer)?, started })
    }

    /// Waits for the next tick; says how many there were since the last call.
    pub async fn ticks(&mut self) -> io::Result<u64> {
        loop {
            let mut ready = self.timer.readable().await?;
            let mut count = [0; 8];
            let read = ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut count)?));
            match read {
                Ok(read) => return read.map(|_| u64::from_ne_bytes(count)),
                Err(_not_yet) => {}
            }
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    // A timer of zero would be switched off.
    let duration = duration.max(Duration::from_nanos(1));
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
