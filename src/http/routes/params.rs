//! Query parameters. An unknown parameter is an error, because a misspelt `ack=` would otherwise give a
//! weaker acknowledgement than requested.

use std::time::Duration;

use percent_encoding::percent_decode;

use crate::data_dir::node_position::NodePosition;
use crate::http::problem::Problem;

/// The query parameters of a request.
#[derive(Debug)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    /// Parses a query. Each parameter must be one of `known` and may occur once.
    pub(super) fn parse(query: &str, known: &[&str]) -> Result<Self, Problem> {
        let mut params: Vec<(String, String)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decoded(name)?, decoded(value)?);
            if !known.contains(&name.as_str()) {
                let known = known.join(", ");
                let detail = match known.as_str() {
                    "" => "this path has no query parameters".to_owned(),
                    known => format!("unknown query parameter; this path has {known}"),
                };
                return Err(Problem::new(400, detail));
            }
            if params.iter().any(|(before, _)| *before == name) {
                return Err(Problem::new(400, format!("{name} is given twice")));
            }
            params.push((name, value));
        }
        Ok(Self(params))
    }

    /// The value of a parameter; `None` if it is not given.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == name)?;
        Some(&found.1)
    }

    /// The duration `wait`, such as `5s`, at most `max`.
    pub(super) fn wait(&self, default: Duration, max: Duration) -> Result<Duration, Problem> {
        let Some(text) = self.get("wait") else {
            return Ok(default);
        };
        match humantime::parse_duration(text) {
            Ok(wait) if wait <= max => Ok(wait),
            _ => Err(Problem::new(
                400,
                format!(
                    "wait is a duration such as 500ms or 5s, at most {}",
                    humantime::format_duration(max)
                ),
            )),
        }
    }

    /// The value of a parameter as a position, such as `42-1834`, perhaps with a node.
    pub(super) fn position(&self, name: &str) -> Result<Option<NodePosition>, Problem> {
        let position = self.get(name).map(str::parse::<NodePosition>).transpose();
        position.map_err(|error| Problem::new(400, format!("{name}: {error}")))
    }

    /// The whole number `limit`, from 1 to `max`.
    pub(super) fn limit(&self, default: u32, max: u32) -> Result<u32, Problem> {
        match self.get("limit").map(str::parse) {
            None => Ok(default),
            Some(Ok(limit)) if (1..=max).contains(&limit) => Ok(limit),
            Some(_) => {
                let detail = format!("limit is a whole number from 1 to {max}");
                Err(Problem::new(400, detail))
            }
        }
    }

    /// The choice that a parameter names; the first choice if it is not given.
    pub(super) fn one_of<T: Copy>(
        &self,
        name: &str,
        choices: &[(&'static str, T)],
    ) -> Result<T, Problem> {
        let Some(given) = self.get(name) else {
            return Ok(choices[0].1);
        };
        let found = choices.iter().find(|(choice, _)| *choice == given);
        found.map(|(_, value)| *value).ok_or_else(|| {
            let choices: Vec<_> = choices.iter().map(|(choice, _)| *choice).collect();
            Problem::new(400, format!("{name} is one of {}", choices.join(", ")))
        })
    }
}

fn decoded(text: &str) -> Result<String, Problem> {
    decode(&text.replace('+', " "))
        .ok_or_else(|| Problem::new(400, "the query is not percent-encoded UTF-8"))
}

/// Percent-decodes a text. `None` if a `%` is not followed by two hexadecimal digits, or the result is not
/// UTF-8.
pub(super) fn decode(text: &str) -> Option<String> {
    let broken = text.match_indices('%').any(|(at, _)| {
        let digits = text.as_bytes().get(at + 1..at + 3);
        !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    });
    if broken {
        return None;
    }
    let decoded = percent_decode(text.as_bytes()).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_unknown_ones_are_errors() {
        let params = Params::parse("a=caf%C3%A9+x&b=%2B&&c", &["a", "b", "c"]).expect("params");
        assert_eq!(params.get("a"), Some("café x"));
        assert_eq!(params.get("b"), Some("+"));
        assert_eq!(params.get("c"), Some(""));
        assert_eq!(params.get("d"), None);
        for bad in ["x=1", "a=1&a=2", "a=%zz", "a=%4", "a=%ff", "%61%=1"] {
            assert!(Params::parse(bad, &["a"]).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wait_is_bounded() {
        let wait = |query: &str| {
            let params = Params::parse(query, &["wait"]).expect("params");
            params
                .wait(Duration::from_secs(5), Duration::from_mins(1))
                .ok()
        };
        assert_eq!(wait(""), Some(Duration::from_secs(5)));
        assert_eq!(wait("wait=250ms"), Some(Duration::from_millis(250)));
        assert_eq!(wait("wait=1m"), Some(Duration::from_mins(1)));
        assert_eq!(wait("wait=0s"), Some(Duration::ZERO));
        for bad in ["wait=61s", "wait=", "wait=5", "wait=-5s", "wait=soon"] {
            assert_eq!(wait(bad), None, "{bad}");
        }
    }
}
