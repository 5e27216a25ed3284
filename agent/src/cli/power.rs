//! `larder power`: the profile in force, what the sensors say, what the node costs; and setting a profile.
//!
//! What has no sensor or no counter is left out, never shown as 0.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{HumanCount, HumanDuration};
use larder_core::power::meter::Costs;
use larder_core::power::report::PowerReport;
use larder_core::request::{Request, Response};

use super::arguments::{Power, PowerSet};
use super::client::Connection;
use super::exit::{CommandError, Exit};
use super::output::{Output, bytes};

/// Reasons for waking that are shown; the rest is summed.
const REASONS_SHOWN: usize = 8;

/// Runs `power`.
pub(super) async fn power(
    arguments: &Power,
    connection: &mut Connection,
    output: &mut Output,
) -> Result<Exit, CommandError> {
    let request = match &arguments.set {
        None => Request::Power,
        Some(PowerSet::Auto) => Request::Profile { profile: None, seconds: None },
        Some(PowerSet::Set { name, time }) => {
            Request::Profile { profile: Some(name.clone()), seconds: time.map(|time| time.as_secs()) }
        }
    };
    loop {
        let answer = connection.ask(request.clone(), output).await?;
        output.answer(&answer)?;
        let Response::Power(report) = answer else { return Err(CommandError::Answer("power")) };
        let Some(every) = arguments.watch else {
            let text = if arguments.set.is_some() { head(&report) } else { table(&report) };
            return output.line(text.trim_end()).map(|()| Exit::OK);
        };
        if !output.json && io::stdout().is_terminal() {
            // home, and clear what is below
            output.write(b"\x1b[H\x1b[J")?;
        }
        output.line(table(&report).trim_end())?;
        tokio::time::sleep(Duration::from_secs(every)).await;
    }
}

/// A duration such as `90s`, `30m`, `2h` or `1d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(char, u64); 4] = [('s', 1), ('m', 60), ('h', 3_600), ('d', 86_400)];
    let wrong = || "a time such as 90s, 30m, 2h or 1d".to_owned();
    let unit = text.chars().last().and_then(|last| UNITS.iter().find(|(unit, _)| *unit == last));
    let (_, seconds) = unit.ok_or_else(wrong)?;
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(*seconds).filter(|&sum| sum > 0).map(Duration::from_secs).ok_or_else(wrong)
}

fn row(text: &mut String, label: &str, value: impl fmt::Display) {
    let _ = writeln!(text, "{label:<12}{value}");
}

/// Which profile, and why.
fn head(report: &PowerReport) -> String {
    let mut text = String::new();
    let why = match (report.because, &report.by_hand) {
        (Some(condition), _) => condition.words().to_owned(),
        (None, Some(by_hand)) => match by_hand.left_ms {
            Some(left_ms) => {
                format!("set by hand, for another {}", HumanDuration(Duration::from_millis(left_ms)))
            }
            None => "set by hand".to_owned(),
        },
        (None, None) => "as configured".to_owned(),
    };
    row(&mut text, "profile", format_args!("{} ({why})", report.profile));
    if report.profile != report.configured {
        row(&mut text, "configured", &report.configured);
    }
    for condition in report.conditions.iter().filter(|condition| report.because != Some(**condition)) {
        row(&mut text, "also", condition.words());
    }
    if let Some(asleep_ms) = report.asleep_ms {
        let next = HumanDuration(Duration::from_millis(asleep_ms));
        row(&mut text, "radio", format_args!("asleep, the next sync window is in {next}"));
    }
    text
}

fn table(report: &PowerReport) -> String {
    let mut text = head(report);
    row(&mut text, "changes", HumanCount(report.changes));
    sensors(&mut text, report);
    costs(&mut text, report);
    reasons(&mut text, &report.total);
    text
}

fn sensors(text: &mut String, report: &PowerReport) {
    if report.sensors_hang {
        row(text, "sensors", "do not answer");
    }
    let readings = &report.readings;
    let mut known = Vec::new();
    let mut add = |known_text: Option<String>| known.extend(known_text);
    add(readings.heat_milli_celsius.map(|heat| format!("{}.{} °C", heat / 1_000, heat.abs() % 1_000 / 100)));
    add(readings.throttled.map(|yes| if yes { "throttled" } else { "not throttled" }.to_owned()));
    add(readings.under_voltage.map(|yes| if yes { "voltage low" } else { "voltage good" }.to_owned()));
    add(readings.battery_percent.map(|percent| format!("battery at {percent} %")));
    add(readings.external_power.map(|yes| if yes { "power from outside" } else { "on battery" }.to_owned()));
    add(readings.power_uw.map(|power| format!("{}.{:02} W", power / 1_000_000, power / 10_000 % 100)));
    add(readings.flash_used_percent.map(|used| format!("{used} % of the flash's life used")));
    if !known.is_empty() {
        row(text, "sensors", known.join(", "));
    }
}

/// A cost by name, how it is read and how it is written.
type Cost = (&'static str, fn(&Costs) -> Option<u64>, fn(u64) -> String);

const COSTS: [Cost; 8] = [
    ("wake-ups", |costs| costs.wake_ups, plain),
    ("of the loop", |costs| Some(costs.wakes_sum()), plain),
    ("syncs", |costs| costs.syncs, plain),
    ("to flash", |costs| costs.flash_bytes, bytes),
    ("messages", |costs| Some(costs.air.messages_sent + costs.air.messages_received), plain),
    ("on air", |costs| Some(costs.air.bytes_sent + costs.air.bytes_received), bytes),
    ("CPU", |costs| costs.cpu_ms, |ms| format!("{} ms", HumanCount(ms))),
    ("energy", |costs| costs.millijoules, |mj| format!("{} J", HumanCount(mj / 1_000))),
];

fn plain(value: u64) -> String {
    HumanCount(value).to_string()
}

/// One line a cost: since the start, in the present and the last hour, and hour by hour as a chart.
fn costs(text: &mut String, report: &PowerReport) {
    let up = HumanDuration(Duration::from_millis(report.total.ms)).to_string();
    let _ = writeln!(text, "\n{:<12}{:>14}{:>14}{:>14}  by the hour", "", up, "this hour", "last hour");
    for (label, of, written) in COSTS {
        let Some(total) = of(&report.total) else { continue };
        let shown = |costs: Option<&Costs>| costs.and_then(of).map_or_else(|| "-".to_owned(), written);
        let hours = report.hours.iter().chain([&report.this_hour]).map(|hour| of(hour).unwrap_or(0));
        let _ = writeln!(
            text,
            "{label:<12}{:>14}{:>14}{:>14}  {}",
            written(total),
            shown(Some(&report.this_hour)),
            shown(report.hours.last()),
            chart(&hours.collect::<Vec<_>>())
        );
    }
}

/// A bar a value, in eighths of the greatest.
fn chart(values: &[u64]) -> String {
    const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = values.iter().copied().max().unwrap_or(0).max(1);
    let bar = |value: &u64| {
        let eighths = (u128::from(*value) * 8).div_ceil(u128::from(most));
        BARS[usize::try_from(eighths).unwrap_or(8).min(8)]
    };
    values.iter().map(bar).collect()
}

fn reasons(text: &mut String, total: &Costs) {
    let mut reasons: Vec<(&String, &u64)> = total.wakes.iter().collect();
    reasons.sort_by_key(|&(why, count)| (std::cmp::Reverse(count), why));
    let more: u64 = reasons.iter().skip(REASONS_SHOWN).map(|(_, count)| **count).sum();
    let _ = writeln!(text, "\nwoken by");
    for (why, count) in reasons.into_iter().take(REASONS_SHOWN) {
        let _ = writeln!(text, "  {why:<30}{:>10}", plain(*count));
    }
    if more > 0 {
        let _ = writeln!(text, "  {:<30}{:>10}", "other reasons", plain(more));
    }
}

#[cfg(test)]
mod tests {
    use larder_core::power::conditions::{Condition, Readings};
    use larder_core::power::report::ByHand;
    use larder_core::request::AirNumbers;

    use super::*;

    #[test]
    fn a_time_reads_as_people_write_it() {
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7_200)));
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        for nonsense in
            ["", "h", "2", "-1h", "0m", "2 h", "1é", "99999999999999999999d", "999999999999999999d"]
        {
            assert!(duration(nonsense).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn a_chart_is_as_high_as_its_greatest_value_and_shows_the_least() {
        assert_eq!(chart(&[0, 1, 400, 800]), " ▁▄█");
        assert_eq!(chart(&[0, 0]), "  ");
        assert_eq!(chart(&[u64::MAX, u64::MAX / 2]), "█▄");
    }

    #[test]
    fn the_table_shows_what_there_is_and_nothing_that_is_not() {
        let air = AirNumbers { bytes_sent: 2_048, ..AirNumbers::default() };
        let hour = Costs { ms: 3_600_000, syncs: Some(3), air, ..Costs::default() };
        let mut report = PowerReport {
            profile: "frugal".into(),
            configured: "usual".into(),
            because: Some(Condition::BatteryLow),
            conditions: vec![Condition::BatteryLow, Condition::OnBattery],
            asleep_ms: Some(60_000),
            readings: Readings { heat_milli_celsius: Some(-2_500), ..Readings::default() },
            total: hour.clone(),
            hours: vec![hour],
            ..PowerReport::default()
        };
        report.total.wakes.insert("sensors".into(), 1_234);
        let text = table(&report);
        for line in [
            "profile     frugal (the battery is low)",
            "configured  usual",
            "also        the machine runs on its battery",
            "radio       asleep, the next sync window is in 60 seconds",
            "sensors     -2.5 °C\n",
            "syncs                    3             -             3  █",
            "on air            2.00 KiB",
            "sensors                            1,234",
        ] {
            assert!(text.contains(line), "{line:?} is missing in:\n{text}");
        }
        assert!(!text.contains("energy") && !text.contains("CPU") && !text.contains("to flash"), "{text}");
        report.because = None;
        report.by_hand = Some(ByHand { profile: "frugal".into(), left_ms: Some(7_200_000) });
        assert!(head(&report).contains("frugal (set by hand, for another 2 hours)"), "{}", head(&report));
    }
}
