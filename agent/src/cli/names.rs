//! `larder ls`, `rm` and `fetch`: what there is, what goes, what shall come.
//!
//! Bound: one page of names at a time. Of several names each is tried; each failure is reported.

use std::fmt;

use larder_core::id::BlockId;
use larder_core::name::Name;
use larder_core::request::{Listed, Request, Response, Target};

use super::arguments::List;
use super::client::Connection;
use super::exit::{CommandError, Exit};
use super::output::{Output, bytes, count};

const DAY_S: i64 = 86_400;

/// The names that begin with a prefix, page by page.
pub(super) struct Pages<'a> {
    prefix: &'a str,
    after: Option<Name>,
    is_last: bool,
}

impl<'a> Pages<'a> {
    pub(super) fn of(prefix: &'a str) -> Self {
        Self { prefix, after: None, is_last: false }
    }

    /// The next page, and after which name the one behind it begins.
    pub(super) async fn next(
        &mut self,
        connection: &mut Connection,
        output: &mut Output,
    ) -> Result<Option<(Vec<Listed>, Option<Name>)>, CommandError> {
        if self.is_last {
            return Ok(None);
        }
        let request = Request::List { prefix: self.prefix.to_owned(), after: self.after.take() };
        let Response::Names { objects, next } = connection.ask(request, output).await? else {
            return Err(CommandError::Answer("ls"));
        };
        (self.is_last, self.after) = (next.is_none(), next.clone());
        Ok(Some((objects, next)))
    }
}

/// Runs `ls`.
pub(super) async fn list(
    arguments: &List,
    connection: &mut Connection,
    output: &mut Output,
) -> Result<Exit, CommandError> {
    let mut pages = Pages::of(&arguments.prefix);
    while let Some((objects, next)) = pages.next(connection, output).await? {
        for object in &objects {
            if arguments.long {
                output.line(Long(object))?;
            } else {
                output.line(object.name.as_str())?;
            }
        }
        output.answer(&Response::Names { objects, next })?;
    }
    Ok(Exit::OK)
}

/// Runs `rm`.
pub(super) async fn remove(
    targets: &[Target],
    connection: &mut Connection,
    output: &mut Output,
) -> Result<Exit, CommandError> {
    let mut exit = Exit::OK;
    for target in targets {
        let request = match target {
            Target::Name(name) => Request::Remove { name: name.clone() },
            Target::Cid(cid) => Request::Erase { cid: *cid },
        };
        match connection.ask(request, output).await {
            Ok(response) => {
                output.answer(&response)?;
                if let Response::Removed { name } = response {
                    output.remark(format_args!("deleted {}", name.as_str()))?;
                } else if let Response::Erased { cid, blocks } = response {
                    output.remark(format_args!("deleted {} of {cid}", count(blocks, "block")))?;
                } else {
                    return Err(CommandError::Answer("rm"));
                }
            }
            Err(error @ CommandError::Failed(_)) => exit = exit.or(output.problem(&error)),
            Err(error) => return Err(error),
        }
    }
    Ok(exit)
}

/// Runs `fetch`.
pub(super) async fn fetch(
    targets: &[Target],
    connection: &mut Connection,
    output: &mut Output,
) -> Result<Exit, CommandError> {
    let mut exit = Exit::OK;
    for target in targets {
        match connection.ask(Request::Fetch { target: target.clone() }, output).await {
            Ok(response) => {
                output.answer(&response)?;
                if let Response::Fetched { object } = response {
                    output.remark(format_args!("{}  {}", object.cid, object.name.as_str()))?;
                } else if let Response::Queued { waiting } = response {
                    let waiting = count(waiting.into(), "request");
                    let queued = "will be asked for when there is a link";
                    output.remark(format_args!("{target} {queued}; {waiting} waiting"))?;
                } else {
                    return Err(CommandError::Answer("fetch"));
                }
            }
            Err(error @ CommandError::Failed(_)) => exit = exit.or(output.problem(&error)),
            Err(error) => return Err(error),
        }
    }
    Ok(exit)
}

/// One object on one line.
struct Long<'a>(&'a Listed);

impl fmt::Display for Long<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Listed { name, cid, meta, origin, conflict_of } = self.0;
        let (mode, size, time) = (meta.mode & 0o7777, bytes(meta.size), Time(meta.mtime_ms));
        let cid: &BlockId = cid;
        write!(f, "{mode:04o} {size:>11} {time} {origin} {cid} {}", name.as_str())?;
        match conflict_of {
            Some(of) => write!(f, " (conflict over {})", of.as_str()),
            None => Ok(()),
        }
    }
}

/// Milliseconds since 1970 as date and time in UTC.
struct Time(i64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.div_euclid(1000);
        let (days, second) = (seconds.div_euclid(DAY_S), seconds.rem_euclid(DAY_S));
        let (year, month, day) = date(days);
        let (hour, minute) = (second / 3600, second / 60 % 60);
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02}", second % 60)
    }
}

/// The Gregorian date of a day since 1970, by Howard Hinnant's `civil_from_days`: years begin in March, so
/// that the day of the leap comes last, and 400 of them always have 146,097 days.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use larder_core::binding::Meta;

    use super::*;

    #[test]
    fn times_are_shown_in_utc_before_and_after_1970_and_on_leap_days() {
        let cases = [
            (0, "1970-01-01 00:00:00"),
            (-1, "1969-12-31 23:59:59"),
            (951_782_399_999, "2000-02-28 23:59:59"),
            (951_782_400_000, "2000-02-29 00:00:00"),
            (4_107_542_400_000, "2100-03-01 00:00:00"),
            (1_700_000_000_000, "2023-11-14 22:13:20"),
        ];
        for (ms, text) in cases {
            assert_eq!(Time(ms).to_string(), text);
        }
        // any time a peer may claim is shown somehow
        let _ = (Time(i64::MIN).to_string(), Time(i64::MAX).to_string());
    }

    #[test]
    fn a_long_line_says_all_that_is_known() {
        let object = Listed {
            name: Name::parse("a/b").unwrap(),
            cid: BlockId::of(b""),
            meta: Meta { size: 2048, mtime_ms: 0, mode: 0o100_644 },
            origin: "cam".parse().unwrap(),
            conflict_of: Some(Name::parse("a").unwrap()),
        };
        let line = Long(&object).to_string();
        assert!(line.starts_with("0644    2.00 KiB 1970-01-01 00:00:00 cam bafkr4"), "{line}");
        assert!(line.ends_with(" a/b (conflict over a)"), "{line}");
    }
}
