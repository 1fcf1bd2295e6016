use super::*;

fn parse(text: &str) -> Result<Url, String> {
    Url::parse(text, &|_| None)
}

fn hosts(url: &Url) -> Vec<String> {
    let name = |host: &Host| match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) => path.display().to_string(),
    };
    url.config.get_hosts().iter().map(name).collect()
}

#[test]
fn the_parts_of_a_url_are_those_of_libpq() {
    let url = parse(
        "postgresql://us%40er:p%2Fw@db.example:6432/tallies?sslmode=require&connect_timeout=3",
    )
    .expect("valid");
    assert_eq!(url.config.get_user(), Some("us@er"));
    assert_eq!(url.config.get_password(), Some(&b"p/w"[..]));
    assert_eq!(url.config.get_dbname(), Some("tallies"));
    assert_eq!(url.config.get_ports(), [6432]);
    assert_eq!(
        url.config.get_connect_timeout(),
        Some(&Duration::from_secs(3))
    );
    assert_eq!(url.ssl.mode, Mode::Require);
    assert_eq!(
        url.shown,
        "postgres://us%40er@db.example:6432/tallies?sslmode=require&connect_timeout=3"
    );

    let url = parse("postgres://u@[::1]:5433,b/d").expect("valid");
    assert_eq!(hosts(&url), ["::1", "b"]);
    assert_eq!(url.config.get_ports(), [5433, 5432]);
    assert_eq!(
        url.config.get_target_session_attrs(),
        TargetSessionAttrs::ReadWrite
    );

    let url = parse("postgres:///d?host=/run/pg&port=5999&user=u").expect("valid");
    assert_eq!(hosts(&url), ["/run/pg"]);
    assert_eq!(url.place(), ("localhost".to_owned(), 5999, "d".to_owned()));
    assert_eq!(
        hosts(&parse("postgres://%2Frun%2Fpg/d").expect("valid")),
        ["/run/pg"]
    );
    assert_eq!(hosts(&parse("postgres://").expect("valid")).len(), 1);
}

#[test]
fn no_error_and_no_shown_url_contains_the_password() {
    for (url, valid) in [
        ("postgres://u:secret@h/d", true),
        ("postgres://u:sec@secret@h/d", true),
        ("postgres://u@h/d?password=secret&sslmode=disable", true),
        ("postgres://u:secret/x@h/d", false),
        ("postgres://u:1/secret@h/d", false),
        ("postgres://u:secret?x@h/d", false),
        ("postgres://u:1?secret=x@h/d", false),
        ("postgres://u:%FFsecret@h/d", false),
        ("postgres://u:secret@h:x/d", false),
        ("mysql://u:secret@h/d", false),
        ("postgres://u:secret@h/d?sslmode=secret", false),
        ("postgres://u:secret@h/d?connect_timeout=secret", false),
    ] {
        match parse(url) {
            Ok(parsed) => {
                assert!(valid, "{url} was accepted");
                assert!(!parsed.shown.contains("sec"), "{}", parsed.shown);
                assert!(parsed.config.get_password().is_some());
            }
            Err(error) => {
                assert!(!valid, "{url}: {error}");
                assert!(!error.contains("secret"), "{error}");
            }
        }
    }
}

#[test]
fn the_environment_applies_where_the_url_has_no_parameter() {
    let environment = |name: &str| match name {
        "PGUSER" => Some("env".to_owned()),
        "PGSSLMODE" => Some("require".to_owned()),
        _ => None,
    };
    let url = Url::parse("postgres://h/d", &environment).expect("valid");
    assert_eq!(url.config.get_user(), Some("env"));
    assert_eq!(url.ssl.mode, Mode::Require);
    let url = Url::parse("postgres://u@h/d?sslmode=disable", &environment).expect("valid");
    assert_eq!(url.config.get_user(), Some("u"));
    assert_eq!(url.ssl.mode, Mode::Disable);
}

#[test]
fn what_cannot_work_is_refused() {
    for (url, reason) in [
        ("postgres://h/d?sslmode=allow", "allow"),
        ("postgres://h/d?sslmode=verify", "verify-full"),
        (
            "postgres://h/d?sslrootcert=system&sslmode=require",
            "verify-full",
        ),
        ("postgres://h/d?sslcert=c", "sslkey"),
        ("postgres://h/d?target_session_attrs=standby", "primary"),
        ("postgres://h:0/d", "port"),
        ("postgres://a:1,b:2,/d", "empty"),
        ("postgres://a,b/d?port=1,2,3", "ports"),
        ("postgres://h/d?nonsense=1", "nonsense"),
        ("postgres://h/d?nonsense", "NAME=VALUE"),
        ("postgres://[::1/d", "]"),
    ] {
        let error = parse(url).err().unwrap_or_default();
        assert!(error.contains(reason), "{url}: {error:?}");
    }
}
