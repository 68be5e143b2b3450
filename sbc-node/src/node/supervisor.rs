//! What systemd is told (sd_notify): ready, reloading, stopping, and that the shards still turn.
//! Without `NOTIFY_SOCKET` in the environment nothing is told to nobody.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::Context;

/// The way to the supervisor.
#[derive(Clone)]
pub(super) struct Supervisor {
    socket: Option<Arc<(UnixDatagram, SocketAddr)>>,
    /// How often it wants to hear of us.
    watchdog: Option<Duration>,
}

impl Supervisor {
    /// As the environment says; a socket that cannot be used is logged, not fatal.
    pub(super) fn of_environment() -> Supervisor {
        let path = std::env::var("NOTIFY_SOCKET").ok();
        let usec = std::env::var("WATCHDOG_USEC").ok();
        // A watchdog that is meant for another process (our parent's) is not ours to feed.
        let pid = std::env::var("WATCHDOG_PID").ok();
        let ours = pid.is_none_or(|pid| pid == std::process::id().to_string());
        Supervisor::new(path.as_deref(), usec.as_deref().filter(|_| ours))
    }

    fn new(path: Option<&str>, watchdog_usec: Option<&str>) -> Supervisor {
        let socket = path.and_then(|path| match open(path) {
            Ok(socket) => Some(Arc::new(socket)),
            Err(error) => {
                tracing::warn!(%error, path, "NOTIFY_SOCKET cannot be used");
                None
            }
        });
        let usec: Option<u64> = watchdog_usec.and_then(|usec| usec.parse().ok());
        let watchdog = usec.filter(|usec| *usec > 0).map(Duration::from_micros);
        Supervisor { socket, watchdog }
    }

    fn tell(&self, what: &str) {
        let Some(socket) = &self.socket else { return };
        let (socket, address) = (&socket.0, &socket.1);
        if let Err(error) = socket.send_to_addr(what.as_bytes(), address) {
            tracing::debug!(%error, what, "the supervisor was not told");
        }
    }

    pub(super) fn ready(&self) {
        self.tell("READY=1\nSTATUS=taking calls");
    }

    /// Followed by [`Supervisor::ready`] when it is done.
    pub(super) fn reloading(&self) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()));
    }

    /// `within` is how long it may take at most.
    pub(super) fn stopping(&self, within: Duration) {
        let usec = within.as_micros();
        self.tell(&format!("STOPPING=1\nSTATUS=waiting for calls\nEXTEND_TIMEOUT_USEC={usec}"));
    }

    /// Says that all is well, twice as often as asked for, as long as every shard turns.
    pub(super) async fn feed(self, context: Arc<Context>) {
        let Some(watchdog) = self.watchdog else { return };
        let mut ticks = tokio::time::interval(watchdog / 2);
        loop {
            ticks.tick().await;
            match context.stuck_shard().await {
                None => self.tell("WATCHDOG=1"),
                Some(shard) => tracing::error!(shard, "a shard does not turn"),
            }
        }
    }
}

fn open(path: &str) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 512];
        let length = socket.recv(&mut bytes).expect("a datagram");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    #[test]
    fn a_supervisor_hears_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).expect("bind");
        let name = format!("sbc-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("name");
        let by_name = UnixDatagram::bind_addr(&address).expect("bind");
        for (socket, place) in
            [(by_path, path.to_string_lossy().into_owned()), (by_name, format!("@{name}"))]
        {
            let supervisor = Supervisor::new(Some(&place), Some("10000000"));
            assert_eq!(supervisor.watchdog, Some(Duration::from_secs(10)));
            supervisor.ready();
            assert_eq!(received(&socket), "READY=1\nSTATUS=taking calls");
            supervisor.reloading();
            assert!(received(&socket).starts_with("RELOADING=1\nMONOTONIC_USEC="));
            supervisor.stopping(Duration::from_secs(35));
            let told = received(&socket);
            assert!(told.starts_with("STOPPING=1\n"), "{told}");
            assert!(told.ends_with("EXTEND_TIMEOUT_USEC=35000000"), "{told}");
        }
    }

    #[test]
    fn nobody_there_is_no_trouble() {
        Supervisor::new(None, None).ready();
        Supervisor::new(Some("/no/such/socket"), Some("x")).ready();
    }
}
