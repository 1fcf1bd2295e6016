//! Replies of unknown length, which are produced while the client reads them.

use super::*;

#[test]
fn a_stream_is_sent_in_chunks_and_the_connection_is_kept() {
    let fixture = Fixture::start(Limits::default());
    let mut client = fixture.connect();
    client.send("GET /stream HTTP/1.1\r\nHost: h\r\n\r\nHEAD /stream HTTP/1.1\r\nHost: h\r\n\r\n");
    let (status, headers, _) = client.full_answer();
    assert_eq!(status, 200);
    let coded = "transfer-encoding: chunked".to_owned();
    assert!(headers.contains(&coded), "{headers:?}");
    assert!(
        !headers
            .iter()
            .any(|line| line.starts_with("content-length"))
    );
    let expected = "2\r\n0;\r\n2\r\n1;\r\n2\r\n2;\r\n3\r\nend\r\n0\r\n\r\n";
    let mut body = vec![0; expected.len()];
    client.reader.read_exact(&mut body).expect("the body");
    assert_eq!(String::from_utf8_lossy(&body), expected);
    let (status, headers, _) = client.full_answer();
    assert!(
        status == 200 && headers.contains(&coded),
        "HEAD has no body: {headers:?}"
    );
    assert_eq!(client.ask("GET /ok"), (200, "/ok 0".into()));
    // A client of HTTP/1.0 does not know chunks: the end of the connection ends the body.
    let mut old = fixture.connect();
    old.send("GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let (status, headers, _) = old.full_answer();
    assert_eq!(status, 200);
    assert!(
        headers.contains(&"connection: close".to_owned()),
        "{headers:?}"
    );
    let mut body = String::new();
    old.reader.read_to_string(&mut body).expect("the body");
    assert_eq!(body, "0;1;2;end");
    fixture.stop();
}

#[test]
fn a_stream_that_cannot_be_continued_ends_without_its_last_chunk() {
    let fixture = Fixture::start(Limits::default());
    for path in ["/stream-fails", "/stream-panics"] {
        let mut client = fixture.connect();
        client.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert_eq!(client.full_answer().0, 200);
        let mut body = String::new();
        client.reader.read_to_string(&mut body).expect("the body");
        assert_eq!(body, "2\r\n0;\r\n", "{path}");
        fixture.serves();
    }
    fixture.stop();
}

#[test]
fn a_stream_waits_for_its_client_and_ends_with_it() {
    let fixture = Fixture::start(Limits::default());
    let produced = || fixture.fake.produced.load(Ordering::SeqCst);
    let mut client = fixture.connect();
    client.send("GET /endless HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.full_answer().0, 200);
    // The client reads nothing. Other requests use the threads that produce.
    for _ in 0..200 {
        assert_eq!(
            fixture.connect().ask("GET /lookup"),
            (200, "/lookup 0".into())
        );
    }
    let waiting = produced();
    assert!(waiting < 100, "{waiting} MiB for the buffers of the kernel");
    fixture.until("only its connection is left", |figures| {
        figures.connections == 1
    });
    // It continues when the client reads.
    let mut some = vec![0; 1 << 20];
    let start = Instant::now();
    while produced() < waiting + 20 {
        client.reader.read_exact(&mut some).expect("more");
        assert!(start.elapsed() < PATIENCE);
    }
    drop(client);
    fixture.until("the connection is closed", |figures| {
        figures.connections == 0
    });
    let last = produced();
    for _ in 0..20 {
        fixture.serves();
    }
    assert!(
        produced() <= last + 1,
        "nothing is produced for a closed connection"
    );
    fixture.stop();
}
