//! What the sensors mean: heat, low voltage, a battery in use or nearly empty, worn flash.
//!
//! A condition begins with the first reading that shows it and ends when for the profile's `calm_s` no
//! reading did: a noisy sensor changes the profile once, not at every reading. Between its two thresholds a
//! reading neither begins nor ends anything. A reading far from the last one is not believed before the next
//! one, which is taken a second later, agrees. A sensor that is absent shows nothing.

use core::fmt;

use serde::{Deserialize, Serialize};

/// What the sensors of the machine said; absent where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readings {
    /// The processor's heat, in thousandths of a degree Celsius.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heat_milli_celsius: Option<i64>,
    /// The processor is held back for its heat.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled: Option<bool>,
    /// The supply's voltage is too low.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub under_voltage: Option<bool>,
    /// Power comes from outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_power: Option<bool>,
    /// Charge of the battery.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub battery_percent: Option<u8>,
    /// Power the machine takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_uw: Option<u64>,
    /// Energy the processor has taken since some moment of the past.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_uj: Option<u64>,
    /// Used share of the life of the flash under the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flash_used_percent: Option<u8>,
}

/// A reason to leave the profile that was asked for, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// The supply does not keep up: whatever is written may be the last.
    UnderVoltage,
    /// The processor is too hot, or held back for it.
    Hot,
    /// The battery is nearly empty, and nothing feeds it.
    BatteryLow,
    /// Nothing feeds the machine but its battery.
    OnBattery,
    /// The flash under the store nears its end.
    FlashWorn,
}

impl Condition {
    /// All of them, the strongest first.
    pub const ALL: [Condition; 5] =
        [Self::UnderVoltage, Self::Hot, Self::BatteryLow, Self::OnBattery, Self::FlashWorn];

    /// For people.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::UnderVoltage => "the supply's voltage is low",
            Self::Hot => "the processor is hot",
            Self::BatteryLow => "the battery is low",
            Self::OnBattery => "the machine runs on its battery",
            Self::FlashWorn => "the flash is worn",
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::UnderVoltage => "under_voltage",
            Self::Hot => "hot",
            Self::BatteryLow => "battery_low",
            Self::OnBattery => "on_battery",
            Self::FlashWorn => "flash_worn",
        })
    }
}

/// From where a condition begins, and below where it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thresholds {
    /// Hot from here, in thousandths of a degree Celsius; 0: heat is not judged.
    pub hot_milli_celsius: i64,
    /// Hot no longer below.
    pub cool_milli_celsius: i64,
    /// Low up to here.
    pub battery_low_percent: u8,
    /// Low no longer from here.
    pub battery_ok_percent: u8,
    /// Worn from here.
    pub flash_worn_percent: u8,
}

/// What a reading says of a condition.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sign {
    /// It is so.
    Shown,
    /// Between the thresholds: it goes on if it was so.
    Between,
    /// It is not so, or nobody knows.
    Calm,
}

fn sign(condition: Condition, readings: &Readings, at: &Thresholds) -> Sign {
    let yes = |shown: bool| if shown { Sign::Shown } else { Sign::Calm };
    match condition {
        Condition::UnderVoltage => yes(readings.under_voltage == Some(true)),
        Condition::OnBattery => yes(readings.external_power == Some(false)),
        Condition::FlashWorn => yes(at.flash_worn_percent > 0
            && readings.flash_used_percent.is_some_and(|used| used >= at.flash_worn_percent)),
        Condition::Hot => match readings.heat_milli_celsius.filter(|_| at.hot_milli_celsius > 0) {
            _ if readings.throttled == Some(true) => Sign::Shown,
            Some(heat) if heat >= at.hot_milli_celsius => Sign::Shown,
            Some(heat) if heat >= at.cool_milli_celsius => Sign::Between,
            Some(_) | None => Sign::Calm,
        },
        Condition::BatteryLow => match readings.battery_percent {
            _ if readings.external_power == Some(true) => Sign::Calm,
            Some(percent) if percent <= at.battery_low_percent => Sign::Shown,
            Some(percent) if percent < at.battery_ok_percent => Sign::Between,
            Some(_) | None => Sign::Calm,
        },
    }
}

/// Which conditions hold, each with the moment a reading last upheld it.
#[derive(Debug, Default)]
pub(super) struct Conditions([Option<u64>; Condition::ALL.len()]);

impl Conditions {
    /// Takes readings in that are believed.
    pub(super) fn judge(&mut self, now_ms: u64, readings: &Readings, at: &Thresholds, calm_ms: u64) {
        for (held, condition) in self.0.iter_mut().zip(Condition::ALL) {
            *held = match (sign(condition, readings, at), *held) {
                (Sign::Shown, _) | (Sign::Between, Some(_)) => Some(now_ms),
                (Sign::Calm, Some(since_ms)) if now_ms.saturating_sub(since_ms) < calm_ms => Some(since_ms),
                (Sign::Between | Sign::Calm, _) => None,
            };
        }
    }

    /// Those that hold, the strongest first.
    pub(super) fn held(&self) -> impl Iterator<Item = Condition> {
        Condition::ALL.into_iter().zip(self.0).filter_map(|(condition, held)| held.map(|_| condition))
    }
}

/// A jump of the heat that needs a second reading.
const HEAT_JUMP_MILLI_CELSIUS: u64 = 15_000;
/// A jump of the charge that needs a second reading.
const CHARGE_JUMP_PERCENT: u64 = 10;
/// Second readings in a row after which a sensor that never agrees with itself is left as it was believed.
const DOUBTS_MAX: u32 = 3;

/// Believes a sensor that jumps only when two readings in a row agree.
#[derive(Debug, Default)]
pub(super) struct Belief {
    heat: Level,
    charge: Level,
    doubts: u32,
}

/// One value: what is believed, and what was read last.
#[derive(Debug, Default)]
struct Level {
    believed: Option<u64>,
    read: Option<u64>,
}

impl Level {
    /// The value to go by, and whether it is in doubt.
    fn take(&mut self, read: Option<u64>, jump: u64) -> (Option<u64>, bool) {
        let near = |one: Option<u64>| one.zip(read).is_some_and(|(one, other)| one.abs_diff(other) <= jump);
        let believed = read.is_none() || self.believed.is_none() || near(self.believed) || near(self.read);
        self.read = read;
        if believed {
            self.believed = read;
        }
        (self.believed, !believed)
    }
}

impl Belief {
    /// The readings to go by, and whether another reading shall settle a doubt soon.
    pub(super) fn weigh(&mut self, mut readings: Readings) -> (Readings, bool) {
        // Kelvin, so that it is never below zero
        const ZERO_CELSIUS: i64 = 273_150;
        let kelvin = readings.heat_milli_celsius.and_then(|heat| u64::try_from(heat + ZERO_CELSIUS).ok());
        let (heat, heat_doubted) = self.heat.take(kelvin, HEAT_JUMP_MILLI_CELSIUS);
        readings.heat_milli_celsius =
            heat.and_then(|heat| i64::try_from(heat).ok()).map(|heat| heat - ZERO_CELSIUS);
        let (charge, charge_doubted) =
            self.charge.take(readings.battery_percent.map(u64::from), CHARGE_JUMP_PERCENT);
        readings.battery_percent = charge.and_then(|percent| u8::try_from(percent).ok());
        self.doubts = if heat_doubted || charge_doubted { self.doubts + 1 } else { 0 };
        (readings, (1..=DOUBTS_MAX).contains(&self.doubts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Thresholds = Thresholds {
        hot_milli_celsius: 80_000,
        cool_milli_celsius: 70_000,
        battery_low_percent: 20,
        battery_ok_percent: 30,
        flash_worn_percent: 80,
    };

    fn heat(celsius: i64) -> Readings {
        Readings { heat_milli_celsius: Some(celsius * 1000), ..Readings::default() }
    }

    #[test]
    fn a_condition_begins_at_once_and_ends_after_the_calm() {
        let mut conditions = Conditions::default();
        let mut held = |now_ms, readings: Readings| {
            conditions.judge(now_ms, &readings, &AT, 1_000);
            conditions.held().collect::<Vec<_>>()
        };
        assert_eq!(held(0, heat(79)), [], "between: nothing begins");
        assert_eq!(held(10, heat(80)), [Condition::Hot]);
        assert_eq!(held(2_000, heat(75)), [Condition::Hot], "between: it goes on");
        assert_eq!(held(2_500, heat(60)), [Condition::Hot]);
        assert_eq!(held(2_999, Readings::default()), [Condition::Hot], "absent is calm, not cold");
        assert_eq!(held(3_000, heat(60)), []);
        let throttled = Readings { throttled: Some(true), ..heat(40) };
        assert_eq!(held(4_000, throttled), [Condition::Hot], "a frozen sensor does not hide the throttling");
    }

    #[test]
    fn each_condition_begins_and_ends_by_its_own_sign() {
        let none = Readings::default;
        let charge = |percent| Readings { battery_percent: Some(percent), ..none() };
        let flash = |used| Readings { flash_used_percent: Some(used), ..none() };
        let volts = |low| Readings { under_voltage: Some(low), ..none() };
        let fed = |fed| Readings { external_power: Some(fed), ..none() };
        for (condition, shown, calm) in [
            (Condition::UnderVoltage, volts(true), volts(false)),
            (Condition::Hot, heat(80), heat(69)),
            (Condition::BatteryLow, charge(20), charge(30)),
            (Condition::OnBattery, fed(false), fed(true)),
            (Condition::FlashWorn, flash(80), flash(79)),
        ] {
            for calm in [calm, none()] {
                let mut conditions = Conditions::default();
                for (now_ms, readings, held) in
                    [(0, calm, false), (1, shown, true), (1_000, calm, true), (1_001, calm, false)]
                {
                    conditions.judge(now_ms, &readings, &AT, 1_000);
                    let expected: &[Condition] = if held { &[condition] } else { &[] };
                    assert_eq!(conditions.held().collect::<Vec<_>>(), expected, "{condition} at {now_ms}");
                }
            }
        }
    }

    #[test]
    fn mains_back_ends_what_the_battery_began() {
        let mut conditions = Conditions::default();
        let on = |external_power, battery_percent| Readings {
            external_power: Some(external_power),
            battery_percent: Some(battery_percent),
            ..Readings::default()
        };
        conditions.judge(0, &on(false, 12), &AT, 1_000);
        assert_eq!(conditions.held().collect::<Vec<_>>(), [Condition::BatteryLow, Condition::OnBattery]);
        conditions.judge(500, &on(true, 12), &AT, 1_000);
        assert_eq!(conditions.held().count(), 2);
        conditions.judge(1_000, &on(true, 12), &AT, 1_000);
        assert_eq!(conditions.held().count(), 0);
    }

    #[test]
    fn a_jump_is_believed_when_it_is_read_twice() {
        let mut belief = Belief::default();
        let charge = |percent| Readings { battery_percent: Some(percent), ..Readings::default() };
        assert_eq!(belief.weigh(charge(81)), (charge(81), false));
        assert_eq!(belief.weigh(charge(3)), (charge(81), true));
        assert_eq!(belief.weigh(charge(80)), (charge(80), false), "it was a glitch");
        assert_eq!(belief.weigh(charge(4)), (charge(80), true));
        assert_eq!(belief.weigh(charge(5)), (charge(5), false), "it is so");
        for (percent, again) in [(90, true), (40, true), (70, true), (20, false), (60, false)] {
            assert_eq!(belief.weigh(charge(percent)), (charge(5), again), "it agrees with nothing");
        }
        assert_eq!(belief.weigh(Readings::default()), (Readings::default(), false), "it has vanished");
        assert_eq!(belief.weigh(charge(60)), (charge(60), false), "and come back");
    }
}
