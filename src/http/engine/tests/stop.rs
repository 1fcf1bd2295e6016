//! Stopping the engine.

use super::*;

#[test]
fn a_stop_answers_what_was_accepted_and_ends_every_connection() {
    let fixture = Fixture::start(Limits::default());
    let addr = fixture.addr;
    let mut idle = fixture.connect();
    assert_eq!(idle.ask("GET /a"), (200, "/a 0".into()));
    let mut held = fixture.connect();
    held.send("GET /held HTTP/1.1\r\nHost: h\r\n\r\nGET /a HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.until("it is taken", |figures| figures.in_flight == 1);
    let fake = Arc::clone(&fixture.fake);
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| fixture.stop());
        while TcpStream::connect(addr).is_ok() {
            assert!(start.elapsed() < PATIENCE, "refused in the end");
            std::thread::yield_now();
        }
        let request = fake.held.lock().expect("unpoisoned").pop().expect("held");
        echo(request);
        assert_eq!(held.answer(), (200, "/held 0".into()));
        let (status, headers, _) = held.full_answer();
        assert_eq!(status, 200);
        assert!(headers.contains(&"connection: close".into()), "{headers:?}");
    });
    assert!(start.elapsed() < Duration::from_secs(5));
    held.ends();
    idle.ends();
}

#[test]
fn a_stop_does_not_wait_for_a_handler_that_blocks() {
    let fixture = Fixture::start(Limits {
        drain_time: Duration::from_millis(50),
        ..Limits::default()
    });
    let fake = Arc::clone(&fixture.fake);
    let busy = fake.held.lock().expect("unpoisoned");
    let mut client = fixture.connect();
    client.send("GET /held HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.until("the handler has it", |figures| figures.in_flight == 1);
    let (stopped, stops) = mpsc::channel();
    std::thread::spawn(move || {
        fixture.stop();
        stopped.send(()).expect("the test waits");
    });
    stops.recv_timeout(PATIENCE).expect("stopped");
    drop(busy);
    client.ends();
}

#[test]
fn a_stop_under_load_ends_within_its_time() {
    let fixture = Fixture::start(Limits::default());
    let addr = fixture.addr;
    std::thread::scope(|scope| {
        let (ready, all_ready) = mpsc::channel();
        for _ in 0..16 {
            let ready = ready.clone();
            scope.spawn(move || {
                let mut client = Client::connect(addr);
                for i in 0_u64.. {
                    if i == 20 {
                        ready.send(()).expect("the test waits");
                    }
                    let sent = client
                        .stream
                        .write_all(b"GET /later HTTP/1.1\r\nHost: h\r\n\r\n");
                    let mut first = [0; 1];
                    if sent.is_err() || client.reader.read_exact(&mut first).is_err() {
                        return;
                    }
                    client.reader.read_until(b'/', &mut Vec::new()).ok();
                    let (mut line, mut closes) = (String::new(), false);
                    while client.reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                        closes |= line.contains("Connection: close");
                        line.clear();
                    }
                    client.reader.read_exact(&mut [0; 8]).ok();
                    if closes {
                        return;
                    }
                }
            });
        }
        for _ in 0..16 {
            all_ready.recv().expect("ready");
        }
        let start = Instant::now();
        fixture.stop();
        assert!(start.elapsed() < Duration::from_secs(5));
    });
}
