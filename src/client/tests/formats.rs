//! Arrays, and formats that are refused.

use super::resume::stopped_at;
use super::*;

#[test]
fn arrays_are_sent_element_by_element() {
    let event =
        |n: u64| format!("{{\"userId\": \"u\",\n \"name\": \"add_revenue\", \"value\": {n}\n}}");
    let three: Vec<_> = (1..=3).map(event).collect();
    for text in [
        format!("[{}]", three.join(",")).replace('\n', ""),
        format!("\u{feff}[\n{}\n]\n", three.join(",\n")),
        format!("[\n  {}\n]", three.join("\n  ,\n  ")),
    ] {
        let bench = Bench::new(&text);
        let server = FakeServer::new();
        let flags = ["--source", "s", "--batch", "2", "--connections", "1"];
        let summary = bench.send(&server, &flags);
        assert_eq!(summary.exit(), Exit::Done, "{text}: {summary}");
        let expected = (1..=3).map(|n| (format!("s-{n:012}"), 1)).collect();
        assert_eq!(server.seen().ids(), expected, "{text}");
    }
}

#[test]
fn the_run_of_an_array_continues_and_grows() {
    let array = |count: u64| format!("[\n{}\n]\n", events(count).trim_end().replace('\n', ",\n"));
    let bench = Bench::new(&array(100));
    let flags = ["--batch", "1", "--connections", "1"];
    let (first, one) = stopped_at(&bench, &flags, 20);
    let two = FakeServer::new();
    let second = bench.send(&two, &flags);
    assert_eq!((second.exit(), &second.run), (Exit::Done, &first.run));
    let mut ids = one.seen().ids();
    ids.extend(two.seen().ids());
    assert_eq!(ids.len(), 100);
    assert_eq!(bench.send(&two, &flags).exit(), Exit::Usage);
    fs::write(bench.file(), array(103)).expect("write");
    let third = bench.send(&two, &flags);
    assert_eq!((third.counts.accepted, third.run), (3, first.run));
    assert_eq!(third.lines, 103);
}

#[test]
fn a_broken_array_is_sent_up_to_its_fault_and_reported() {
    let one = events(1);
    let one = one.trim_end();
    for (text, accepted, refused) in [
        (format!("[{one},{one}"), 2, 1),
        (format!("[{one},"), 1, 1),
        (format!("[{one},,{one}]"), 2, 1),
        (format!("[{one} {one},{one}]"), 1, 1),
        (format!("[{one}]\n{one}\nnonsense\n[{one}]"), 3, 1),
    ] {
        let bench = Bench::new(&text);
        let server = FakeServer::new();
        let summary = bench.send(&server, &[]);
        let counts = (summary.counts.accepted, summary.counts.refused);
        assert_eq!(counts, (accepted, refused), "{text}: {summary}");
        assert_eq!(summary.exit(), Exit::Refused);
    }
}

#[test]
fn other_formats_are_refused_before_anything_is_sent() {
    let utf_16: Vec<u8> = events(2)
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut zipped, b"userId,name,value\nu,add_revenue,1\n").expect("zip");
    let zipped = zipped.finish().expect("zip");
    for (bytes, word) in [
        (&b"userId,name,value\nu,add_revenue,1\n"[..], "CSV"),
        (&zipped, "CSV"),
        (&utf_16, "iconv"),
        (b"PK\x03\x04rest", "unzip -p"),
    ] {
        let bench = Bench::new("");
        fs::write(bench.file(), bytes).expect("write");
        let server = FakeServer::new();
        let summary = bench.send(&server, &[]);
        assert_eq!(summary.exit(), Exit::Failed);
        assert!(failure(&summary).contains(word), "{}", failure(&summary));
        assert_eq!(last_line(&summary), "FAILED: nothing was sent");
        let path = bench.path("stdin");
        fs::write(&path, bytes).expect("write");
        let stdin = fs::File::open(path).expect("open");
        let stop = Shutdown::default();
        let mut summary = bench.send(&server, &["--wait", "0s"]);
        let source = InputSource::stream(stdin, &stop).expect("thread");
        let mut config = bench.config(&server, &[]);
        config.state = None;
        let failed = send_once(&config, source, &stop, &mut summary).expect_err("no events");
        assert!(failed.to_string().contains(word), "{failed}");
        assert_eq!(server.seen().bodies.len(), 0);
        assert!(!bench.state().exists());
    }
}
