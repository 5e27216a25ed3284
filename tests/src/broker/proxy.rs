//! A TCP relay that breaks connections on demand.
//!
//! Duty: stands between a client and a broker on loopback, counts MQTT packets and bytes in both directions
//! by their fixed headers, and cuts, stalls or drops. With TLS it sees no packets: then only
//! [`Proxy::cut`], [`Proxy::restore`] and [`Proxy::stall`] mean anything.
//! A client's goodbye reaches the broker before the connection that it makes next: else the broker would end the old
//! one, and what was relayed would be a matter of luck.
//! Bound: two threads and 128 KiB per connection.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A relay from a port of its own to another on 127.0.0.1; everything ends when it is dropped.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    drop_after: AtomicU64,
    stall_at: AtomicU64,
    cut: AtomicBool,
    ended: AtomicBool,
    stalled: Mutex<bool>,
    moved: Condvar,
    sockets: Mutex<Vec<TcpStream>>,
    connections: AtomicU64,
    drops: AtomicU64,
    packets: AtomicU64,
    by_clients: Way,
    by_broker: Way,
}

/// What went one way.
#[derive(Default)]
struct Way {
    publishes: AtomicU64,
    bytes: AtomicU64,
}

impl Way {
    fn counted(&self) -> (u64, u64) {
        (self.publishes.load(SeqCst), self.bytes.load(SeqCst))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, SeqCst);
        self.unstall();
        self.shared.close_all();
        // wakes the accepting thread, which then sees the end
        let _woken = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok();
    }
}

impl Proxy {
    /// Starts a relay to a port on 127.0.0.1.
    pub fn start(to_port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
        let port = listener.local_addr().expect("a bound listener has an address").port();
        let shared = Arc::new(Shared { stall_at: AtomicU64::new(u64::MAX), ..Shared::default() });
        let accepting = shared.clone();
        thread::spawn(move || accept(&listener, to_port, &accepting));
        Self { port, shared }
    }

    /// The port on 127.0.0.1 that clients connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Drops each connection after this many packets, both directions together; 0 never does.
    pub fn drop_after_packets(&self, count: u64) {
        self.shared.drop_after.store(count, SeqCst);
    }

    /// Breaks all connections and refuses new ones.
    pub fn cut(&self) {
        self.shared.cut.store(true, SeqCst);
        self.shared.close_all();
    }

    /// Lets connections through again.
    pub fn restore(&self) {
        self.shared.cut.store(false, SeqCst);
    }

    /// Keeps connections open and moves nothing.
    pub fn stall(&self) {
        *self.shared.stalled.lock().expect("no thread panics with the lock") = true;
    }

    /// Keeps connections open and moves nothing once so many more bytes have gone through, both directions
    /// together, to within one read of 64 KiB in each.
    pub fn stall_after_bytes(&self, count: u64) {
        self.shared.stall_at.store(self.bytes() + count, SeqCst);
    }

    /// Whether nothing is moved.
    pub fn is_stalled(&self) -> bool {
        self.shared.is_stalled()
    }

    /// Moves everything on.
    pub fn unstall(&self) {
        *self.shared.stalled.lock().expect("no thread panics with the lock") = false;
        self.shared.moved.notify_all();
    }

    /// Connections relayed so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(SeqCst)
    }

    /// Connections dropped because of [`Proxy::drop_after_packets`].
    pub fn drops(&self) -> u64 {
        self.shared.drops.load(SeqCst)
    }

    /// Whole MQTT packets relayed, both directions.
    pub fn packets(&self) -> u64 {
        self.shared.packets.load(SeqCst)
    }

    /// Bytes relayed, both directions.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes()
    }

    /// Publishes, and bytes of all packets, relayed from clients.
    pub fn sent_by_clients(&self) -> (u64, u64) {
        self.shared.by_clients.counted()
    }

    /// Publishes, and bytes of all packets, relayed from the broker.
    pub fn sent_by_broker(&self) -> (u64, u64) {
        self.shared.by_broker.counted()
    }
}

impl Shared {
    fn bytes(&self) -> u64 {
        self.by_clients.bytes.load(SeqCst) + self.by_broker.bytes.load(SeqCst)
    }

    fn close_all(&self) {
        for socket in self.sockets.lock().expect("no thread panics with the lock").drain(..) {
            // it may be closed already
            let _closed = socket.shutdown(Shutdown::Both).is_ok();
        }
    }

    fn is_stalled(&self) -> bool {
        *self.stalled.lock().expect("no thread panics with the lock")
    }

    fn wait_while_stalled(&self) {
        let stalled = self.stalled.lock().expect("no thread panics with the lock");
        drop(self.moved.wait_while(stalled, |stalled| *stalled).expect("no thread panics with the lock"));
    }
}

fn accept(listener: &TcpListener, to_port: u16, shared: &Arc<Shared>) {
    let mut uplinks: Vec<(TcpStream, JoinHandle<()>)> = Vec::new();
    for client in listener.incoming() {
        if shared.ended.load(SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        if shared.cut.load(SeqCst) {
            continue;
        }
        uplinks.retain(|(_, pump)| !pump.is_finished());
        for (_, pump) in uplinks.iter().filter(|(client, _)| is_closed(client)) {
            while !pump.is_finished() && !shared.is_stalled() {
                thread::sleep(Duration::from_millis(1));
            }
        }
        let Ok(broker) = TcpStream::connect((Ipv4Addr::LOCALHOST, to_port)) else { continue };
        shared.connections.fetch_add(1, SeqCst);
        let packets = Arc::new(AtomicU64::new(0));
        let ways: [fn(&Shared) -> &Way; 2] = [|shared| &shared.by_clients, |shared| &shared.by_broker];
        let [uplink, _] =
            [(&client, &broker, ways[0]), (&broker, &client, ways[1])].map(|(from, to, way)| {
                let clone = |socket: &TcpStream| socket.try_clone().expect("a socket can be shared");
                from.set_nodelay(true).expect("TCP sockets have this option");
                shared.sockets.lock().expect("no thread panics with the lock").push(clone(from));
                let (from, to, shared, packets) = (clone(from), clone(to), shared.clone(), packets.clone());
                thread::spawn(move || pump(from, to, &shared, way(&shared), &packets))
            });
        uplinks.push((client, uplink));
    }
}

/// Whether the other end sends no more.
fn is_closed(socket: &TcpStream) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::RDHUP)];
    poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

fn pump(mut from: TcpStream, mut to: TcpStream, shared: &Shared, way: &Way, packets: &AtomicU64) {
    let mut buffer = vec![0; 64 * 1024];
    let mut frames = Frames::default();
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        shared.wait_while_stalled();
        let mut chunk = &buffer[..read];
        while !chunk.is_empty() {
            let (used, whole) = frames.advance(chunk);
            if to.write_all(&chunk[..used]).is_err() {
                break;
            }
            way.bytes.fetch_add(used as u64, SeqCst);
            if shared.bytes() >= shared.stall_at.load(SeqCst) {
                shared.stall_at.store(u64::MAX, SeqCst);
                *shared.stalled.lock().expect("no thread panics with the lock") = true;
            }
            chunk = &chunk[used..];
            if !whole {
                continue;
            }
            shared.packets.fetch_add(1, SeqCst);
            way.publishes.fetch_add(u64::from(frames.kind == PUBLISH), SeqCst);
            let limit = shared.drop_after.load(SeqCst);
            if packets.fetch_add(1, SeqCst) + 1 == limit {
                shared.drops.fetch_add(1, SeqCst);
                chunk = &[];
                // either end may be closed already
                let _closed = from.shutdown(Shutdown::Both).is_ok() & to.shutdown(Shutdown::Both).is_ok();
            }
        }
    }
    let _closed = from.shutdown(Shutdown::Both).is_ok() & to.shutdown(Shutdown::Both).is_ok();
}

/// Finds the ends of MQTT packets in a stream that comes in pieces.
#[derive(Default)]
struct Frames {
    kind: u8,
    header: Vec<u8>,
    body_left: usize,
}

const PUBLISH: u8 = 3;

impl Frames {
    /// How many bytes belong to the current packet, and whether they complete it.
    fn advance(&mut self, chunk: &[u8]) -> (usize, bool) {
        if self.body_left > 0 {
            let used = self.body_left.min(chunk.len());
            self.body_left -= used;
            return (used, self.body_left == 0);
        }
        if self.header.is_empty() {
            self.kind = chunk[0] >> 4;
        }
        self.header.push(chunk[0]);
        let length_bytes = &self.header[1..];
        let length_ends = length_bytes.last().is_some_and(|byte| byte & 0x80 == 0);
        if !length_ends && length_bytes.len() < 4 {
            return (1, false);
        }
        let digits = length_bytes.iter().rev();
        self.body_left = digits.fold(0, |length, byte| length << 7 | usize::from(byte & 0x7f));
        self.header.clear();
        (1, self.body_left == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_counted_however_the_stream_is_cut() {
        let mut stream = vec![0xc0, 0, 0x30, 0x81, 0x01];
        stream.extend([7; 129]);
        stream.extend([0xe0, 2, 0, 0]);
        for piece in 1..stream.len() {
            let (mut frames, mut count, mut publishes) = (Frames::default(), 0, 0);
            for mut chunk in stream.chunks(piece) {
                while !chunk.is_empty() {
                    let (used, whole) = frames.advance(chunk);
                    chunk = &chunk[used..];
                    count += usize::from(whole);
                    publishes += usize::from(whole && frames.kind == PUBLISH);
                }
            }
            assert_eq!((count, publishes), (3, 1), "in pieces of {piece}");
        }
    }
}
