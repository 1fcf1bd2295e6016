//! Input in other formats than JSON Lines: over HTTP, in `send` and in `process`, one error names the
//! format and gives a command; nothing is stored.

use std::fs;
use std::path::Path;

use super::harness::http::Request;
use super::harness::{Ran, Scratch, Server, arg, event, run, run_with_input};

const ONE: &str = r#"{"userId":"u","name":"add_revenue","value":1}"#;

/// A file that is not JSON Lines.
struct Case {
    content: Vec<u8>,
    /// The name of the format in each message.
    what: &'static str,
    /// Part of the advice of `send` and `process`; `NAME` stands for the file.
    cure: &'static str,
    /// Part of the advice over HTTP.
    http: &'static str,
    /// Whether `process FILE` converts it.
    converted: bool,
}

fn case(
    content: impl Into<Vec<u8>>,
    what: &'static str,
    cure: &'static str,
    http: &'static str,
) -> Case {
    Case {
        content: content.into(),
        what,
        cure,
        http,
        converted: false,
    }
}

fn utf_16(text: &str) -> Vec<u8> {
    let units = std::iter::once(0xfeff).chain(text.encode_utf16());
    units.flat_map(u16::to_le_bytes).collect()
}

fn cases() -> Vec<Case> {
    let converted = |case: Case| Case {
        converted: true,
        ..case
    };
    let pretty = ONE.replace(',', ",\n  ");
    vec![
        case(
            "userId,name,value\nu,add_revenue,1\nv,add_revenue,2\n",
            "CSV",
            "`tail -n +2 NAME | jq -Rc ",
            "jq -Rc ",
        ),
        case(
            "\"userId\",\"name\",\"value\"\n\"u\",\"add_revenue\",\"1\"\n",
            "CSV",
            "write each record as a JSON object",
            "write each record as a JSON object",
        ),
        case(
            format!("{{\"events\":[{ONE},{ONE}]}}\n"),
            "a JSON object with the events in an array",
            "`jq -c '.events[]' NAME > NEW.jsonl`",
            "`jq -c '.events[]' FILE | curl --data-binary @- URL`",
        ),
        // The last element is an event on a line of its own.
        case(
            format!("{{\n\"data\": [\n{ONE},\n{ONE}\n]\n}}\n"),
            "a JSON object with the events in an array",
            "`jq -c '.data[]' NAME > NEW.jsonl`",
            "`jq -c '.data[]' FILE | curl --data-binary @- URL`",
        ),
        case(
            "userId=u&name=add_revenue&value=1",
            "form encoding",
            "`curl -d '{\"userId\": ",
            "`curl -d '{\"userId\": ",
        ),
        case(
            utf_16(&format!("{ONE}\n{ONE}\n")),
            "UTF-16 text",
            "`iconv -f UTF-16 -t UTF-8 NAME > NEW.jsonl`",
            "iconv -f UTF-16",
        ),
        converted(case(
            format!("{ONE}{ONE}{ONE}"),
            "JSON objects without line ends between them",
            "`jq -c . NAME > NEW.jsonl`",
            "use `--data-binary @FILE`",
        )),
        converted(case(
            format!("{pretty}\n{pretty}\n"),
            "JSON objects over several lines",
            "`jq -c . NAME > NEW.jsonl`",
            "`jq -c . FILE | curl --data-binary @- URL`",
        )),
        case(
            "PK\u{3}\u{4}...",
            "a zip archive",
            "`unzip -p NAME > NEW.jsonl`",
            "unzip -p FILE",
        ),
    ]
}

#[test]
fn another_format_is_named_once_over_http() {
    // Fails if a body in another format gets an error for each line, or if an element of a wrapped
    // array is stored.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    for case in cases() {
        let shown = String::from_utf8_lossy(&case.content).into_owned();
        for (target, statuses) in [
            ("/liveEvent", [400, 422]),
            ("/liveEvent?invalid=skip", [422, 422]),
        ] {
            let reply = server.post(target, &case.content);
            assert!(
                statuses.contains(&reply.status),
                "{shown}: {}",
                reply.text()
            );
            let problem = reply.json();
            let detail = problem["detail"].as_str().unwrap();
            let expected = format!("the body looks like {}; nothing was stored; ", case.what);
            assert!(
                detail.starts_with(&expected) && detail.contains(case.http),
                "{shown}: {detail}"
            );
            assert_eq!(
                problem["errors"].as_array().map(Vec::len),
                Some(1),
                "{problem}"
            );
        }
    }
    // What curl makes of `-F file=@events.jsonl`, and gzip without its header.
    let form = format!(
        "--X\r\nContent-Disposition: form-data; name=\"f\"; filename=\"e\"\r\n\r\n{ONE}\r\n--X--\r\n"
    );
    let problem = server.post("/liveEvent", form).json();
    // The event between the boundaries is valid, so the boundaries are what is wrong.
    assert_eq!(problem["status"], 400, "{problem}");
    let problem = server
        .post("/liveEvent", [0x1f, 0x8b, 8, 0, 0])
        .problem(400);
    assert!(
        problem["detail"]
            .as_str()
            .unwrap()
            .contains("Content-Encoding: gzip"),
        "{problem}"
    );
    let two = server
        .post("/liveEvent", format!("[{ONE}]\n[{ONE}]"))
        .problem(400);
    assert!(
        two["detail"].as_str().unwrap().contains("jq -c '.[]'"),
        "{two}"
    );
    let status = server.assert_balanced();
    assert_eq!(status["lines"], 0, "{status}");
    // A line that is a list of events, among events: reported as a line, and the others are stored.
    let mixed = format!("{{\"events\":[{ONE}]}}\n{ONE}\n");
    let reply = server.ask(&Request::new("POST", "/liveEvent?invalid=skip").body(&mixed));
    assert_eq!(reply.expect(202).json()["accepted"], 1);
}

fn assert_told(ran: &Ran, file: &Path, case: &Case) {
    let cure = case.cure.replace("NAME", arg(file));
    assert!(
        ran.stderr.contains(case.what) && ran.stderr.contains(&cure),
        "{cure}: {ran}"
    );
    assert_eq!(ran.stderr.matches(case.what).count(), 1, "{ran}");
}

#[test]
fn another_format_is_named_once_by_send_and_process() {
    // Fails if `send` uploads such a file, or `process` records its lines as rejected.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let offline = scratch.path().join("offline");
    let mut applied = 0;
    for (number, case) in cases().iter().enumerate() {
        let file = scratch.file(&format!("case-{number}.txt"), &case.content);
        let ran = run(&["send", arg(&file), "--to", &server.url()]).expect(1);
        assert_told(&ran, &file, case);
        let piped = run_with_input(&["send", "-", "--to", &server.url()], &case.content).expect(1);
        assert!(piped.stderr.contains(case.what), "{piped}");
        let ran = run(&["process", arg(&file), "--data-dir", arg(&offline)]);
        if case.converted {
            let ran = ran.expect(0);
            assert!(ran.stdout.contains("0 rejected"), "{ran}");
            applied += 1;
        } else {
            assert_told(&ran.expect(1), &file, case);
        }
    }
    assert_eq!(applied, 2);
    assert_eq!(server.counter("received"), 0);
}

#[test]
fn an_input_without_events_is_not_sent_to_its_end() {
    // Fails if every line of a file that fails from its first line on is uploaded or recorded, if the
    // corrected file is then refused, or if a few invalid lines at the start stop a valid file.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let url = server.url();
    let text = ONE.replace("value", "amount") + "\n";
    let file = scratch.file("bad.jsonl", text.repeat(20_000));
    let ran = run(&["send", arg(&file), "--to", &url]).expect(1);
    assert!(
        ran.stderr
            .contains("none of its first 1,000 lines is a valid event"),
        "{ran}"
    );
    let last = ran.stdout.lines().last();
    assert_eq!(
        last,
        Some("FAILED: 1,000 lines sent, all refused; nothing was stored"),
        "{ran}"
    );
    assert_eq!(server.counter("refused"), 1_000);
    let ran = run_with_input(&["send", "-", "--to", &url], &fs::read(&file).unwrap()).expect(1);
    assert!(ran.stderr.contains("cannot send -: none of"), "{ran}");
    // With --rejects all of it is sent.
    let rejects = scratch.path().join("rejects.jsonl");
    let ran = run(&["send", arg(&file), "--to", &url, "--rejects", arg(&rejects)]).expect(3);
    assert!(ran.stdout.contains("20,000 events"), "{ran}");
    fs::write(&file, event("u", 1).repeat(2_000)).unwrap();
    run(&["send", arg(&file), "--to", &url]).expect(0);
    let late = scratch.file("late.jsonl", text.repeat(700) + &event("u", 1));
    run(&["send", arg(&late), "--to", &url]).expect(3);
    assert_eq!(server.counter("accepted"), 2_001);

    let bad = scratch.file("offline.jsonl", text.repeat(20_000));
    let data = scratch.path().join("offline");
    let ran = run(&["process", arg(&bad), "--data-dir", arg(&data)]).expect(1);
    assert!(
        ran.stderr
            .contains("none of its first 1000 lines is a valid event (line 1: "),
        "{ran}"
    );
    assert!(
        ran.stderr.contains(arg(&data.join("events_offline.jsonl"))),
        "{ran}"
    );
    fs::rename(&bad, data.join("events_offline.jsonl")).unwrap();
    let ran = run(&["process", "--data-dir", arg(&data)]).expect(3);
    assert!(ran.stdout.contains("20,000 rejected"), "{ran}");
}
