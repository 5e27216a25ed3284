//! The link against brokers that do as the test says.

use super::*;
use tokio::net::TcpListener;

/// A broker that does as the test says. CONNECT is read, CONNACK sent with these properties.
async fn scripted(listener: &TcpListener, properties: &[u8]) -> (TcpStream, Vec<u8>) {
    let (mut socket, _) = listener.accept().await.expect("loopback accepts");
    let connect = read_packet(&mut socket).await;
    assert_eq!(connect[0], 0x10, "the first packet is CONNECT");
    let length = u8::try_from(properties.len()).expect("a test's properties are short");
    let mut connack = vec![0x20, length + 3, 0, 0, length];
    connack.extend(properties);
    socket.write_all(&connack).await.expect("the link reads");
    (socket, connect)
}

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback has a free port");
    let port = listener.local_addr().expect("a bound listener has an address").port();
    (listener, port)
}

/// Byte of the connect flags, behind the one-byte length of a short CONNECT.
fn clean_start(connect: &[u8]) -> bool {
    let flags = connect.windows(5).position(|window| window == b"MQTT\x05").expect("MQTT 5") + 5;
    connect[flags] & 0b10 != 0
}

const SERVER_KEEP_ALIVE_1_S: &[u8] = &[19, 0, 1];
const SERVER_KEEP_ALIVE_0_S: &[u8] = &[19, 0, 0];

#[tokio::test]
async fn a_broker_that_ignores_our_packet_limit_loses_its_session() {
    let (listener, port) = listener().await;
    let mut small = options(port, "cam", &[]);
    small.packet_bytes_max = 1024;
    let mut link = start(small);
    let (mut socket, connect) = scripted(&listener, &[]).await;
    assert!(!clean_start(&connect));
    socket.write_all(&[0x30, 0x80, 0x20]).await.expect("the link reads");
    let reason = down(&mut link).await;
    assert!(reason.contains("sent a packet of 4096 bytes") && reason.contains("retained"), "{reason}");
    let (_socket, connect) = scripted(&listener, &[]).await;
    assert!(clean_start(&connect));
}

#[tokio::test]
async fn a_broker_that_acknowledges_nothing_is_left() {
    let (listener, port) = listener().await;
    let mut link = start(options(port, "cam", &[]));
    let (mut socket, _) = scripted(&listener, SERVER_KEEP_ALIVE_1_S).await;
    let answering = async {
        while let Some(packet) = next_packet(&mut socket).await {
            if packet[0] == 0xc0 {
                socket.write_all(&[0xd0, 0]).await.expect("the link reads");
            }
        }
        std::future::pending().await
    };
    let watching = async {
        up(&mut link).await;
        link.send(message(1, "t/x", "x")).expect("there is room");
        let reason = down(&mut link).await;
        assert!(reason.contains("acknowledges no message"), "{reason}");
        assert_eq!(link.pending(), 0);
    };
    tokio::select! {
        () = watching => {}
        () = answering => {}
    }
}

#[tokio::test]
async fn a_broker_that_falls_silent_is_left() {
    let (listener, port) = listener().await;
    let mut link = start(options(port, "cam", &[]));
    let (_socket, _) = scripted(&listener, SERVER_KEEP_ALIVE_1_S).await;
    up(&mut link).await;
    let reason = down(&mut link).await;
    assert!(reason.contains("network between"), "{reason}");
}

#[tokio::test]
async fn a_server_keep_alive_of_zero_does_not_make_the_link_ping_without_pause() {
    let (listener, port) = listener().await;
    let mut link = start(options(port, "cam", &[]));
    let (mut socket, _) = scripted(&listener, SERVER_KEEP_ALIVE_0_S).await;
    up(&mut link).await;
    let first = timeout(SOON, read_packet(&mut socket)).await.expect("the one ping the client library owes");
    assert_eq!(first[0], 0xc0);
    socket.write_all(&[0xd0, 0]).await.expect("the link reads");
    // the next is due after the configured 60 s
    assert!(timeout(Duration::from_millis(500), read_packet(&mut socket)).await.is_err());
}

#[tokio::test]
async fn acknowledgements_out_of_order_find_their_messages() {
    let (listener, port) = listener().await;
    let mut options = options(port, "cam", &[]);
    options.in_flight_max = 3;
    let mut link = start(options);
    let (mut socket, _) = scripted(&listener, &[]).await;
    up(&mut link).await;
    for token in 1..=3 {
        link.send(message(token, "t/x", "x")).expect("there is room");
    }
    for _ in 1..=3 {
        assert_eq!(read_packet(&mut socket).await[0], 0x32);
    }
    // 2 before 1: the next message gets the packet id 1, which is still in use, and is held
    socket.write_all(&[0x40, 2, 0, 2]).await.expect("the link reads");
    sent(&mut link, 2).await;
    link.send(message(4, "t/x", "x")).expect("there is room");
    socket.write_all(&[0x40, 2, 0, 3]).await.expect("the link reads");
    sent(&mut link, 3).await;
    socket.write_all(&[0x40, 2, 0, 1]).await.expect("the link reads");
    sent(&mut link, 1).await;
    assert_eq!(read_packet(&mut socket).await[0], 0x32);
    assert_eq!(link.pending(), 1);
    socket.write_all(&[0x40, 2, 0, 1]).await.expect("the link reads");
    sent(&mut link, 4).await;
    assert_eq!(link.pending(), 0);
}
