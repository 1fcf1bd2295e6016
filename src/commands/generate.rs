//! `tallyline generate`: generated events, the same ones for the same arguments.
//!
//! User `n` of N is drawn as `N * u^3` (u uniform in [0, 1)), so that a few users have most of the
//! events. 3 in 10 events subtract; values are whole numbers from 1 to 1000.

use std::io::{self, BufWriter, Write};

use anyhow::Context as _;

use crate::cli::args::GenerateArgs;
use crate::cli::exit::Exit;

/// Writes the events to stdout. A closed pipe is not an error.
pub fn run(args: &GenerateArgs) -> anyhow::Result<Exit> {
    let mut out = BufWriter::with_capacity(1 << 18, io::stdout().lock());
    match write(&mut out, args) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            // Dropping the writer would flush it into the closed pipe again.
            let _unwritten = out.into_parts();
            Ok(Exit::Done)
        }
        written => written
            .context("cannot write to stdout")
            .map(|()| Exit::Done),
    }
}

/// Writes the events to `out`, as JSON Lines.
pub fn write(out: &mut impl Write, args: &GenerateArgs) -> io::Result<()> {
    let mut random = fastrand::Rng::with_seed(args.seed);
    let users = f64::from(args.users.get());
    let mut line = Vec::with_capacity(128);
    for number in 1..=args.events {
        line.clear();
        line.push(b'{');
        if args.ids {
            write!(line, "\"id\": \"generated-{}-{number:012}\", ", args.seed)?;
        }
        line.extend_from_slice(b"\"userId\": \"user");
        let place = random.f64();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 <= place < 1, so this is a whole number below 2^32"
        )]
        digits(&mut line, (users * place * place * place) as u64);
        line.extend_from_slice(if random.u64(..10) < 3 {
            b"\", \"name\": \"subtract_revenue\", \"value\": "
        } else {
            b"\", \"name\": \"add_revenue\", \"value\": "
        });
        digits(&mut line, 1 + random.u64(..1000));
        line.extend_from_slice(b"}\n");
        out.write_all(&line)?;
    }
    out.flush()
}

/// Appends `number` in decimal. `write!` would take five times as long.
fn digits(line: &mut Vec<u8>, mut number: u64) {
    let mut text = [0; 20];
    let mut start = text.len();
    loop {
        start -= 1;
        text[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    line.extend_from_slice(&text[start..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, Kind};
    use std::num::NonZeroU32;

    fn lines(events: u64, users: u32, seed: u64, ids: bool) -> Vec<u8> {
        let args = GenerateArgs {
            events,
            users: NonZeroU32::new(users).expect("some"),
            seed,
            ids,
        };
        let mut out = Vec::new();
        write(&mut out, &args).expect("memory takes all");
        out
    }

    #[test]
    fn the_same_numbers_give_the_same_bytes_and_another_seed_others() {
        assert_eq!(lines(100, 10, 1, false), lines(100, 10, 1, false));
        assert_ne!(lines(100, 10, 1, false), lines(100, 10, 2, false));
        let first = "{\"userId\": \"user";
        assert!(String::from_utf8_lossy(&lines(1, 10, 1, false)).starts_with(first));
    }

    #[test]
    fn the_shape_is_skewed_and_three_in_ten_subtract() {
        let all = lines(20_000, 1000, 1, true);
        let mut subtracted = 0;
        let mut first_eighth = 0;
        let mut ids = std::collections::HashSet::new();
        for line in all
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            let event = Event::parse(line).expect("an event");
            subtracted += u32::from(event.kind == Kind::Subtract);
            let user: u32 = event.user_id["user".len()..].parse().expect("a number");
            assert!(user < 1000);
            first_eighth += u32::from(user < 125); // u^3 < 1/8, so u < 1/2
            assert!(ids.insert(event.id.expect("an id").into_owned()));
        }
        assert_eq!(ids.len(), 20_000);
        assert!((5_500..6_500).contains(&subtracted), "{subtracted}");
        assert!((9_500..10_500).contains(&first_eighth), "{first_eighth}");
    }
}
