//! What the Raspberry Pi 5's power chip says, as the firmware answers [`COMMAND`].

/// Asks for the currents and voltages of all rails.
pub(super) const COMMAND: &str = "pmic_read_adc";

/// Power over all rails: the sum of volt times ampere, from lines such as `VDD_CORE_A current(7)=1.32840000A` and
/// `VDD_CORE_V volt(15)=0.72048570V`.
pub(super) fn power_uw(text: &str) -> Option<u64> {
    let value = |rail: &str, unit: char| {
        let line = text.lines().map(str::trim).find(|line| line.split(' ').next() == Some(rail))?;
        let number: f64 = line.split_once('=')?.1.strip_suffix(unit)?.parse().ok()?;
        (0.0..1_000.0).contains(&number).then_some(number)
    };
    let mut sum = None;
    for line in text.lines() {
        let Some(rail) = line.trim().split(' ').next().and_then(|name| name.strip_suffix("_A")) else {
            continue;
        };
        let power = value(&format!("{rail}_A"), 'A').zip(value(&format!("{rail}_V"), 'V'));
        if let Some((amperes, volts)) = power {
            sum = Some(sum.unwrap_or(0.0) + amperes * volts);
        }
    }
    // far below 2^53: no rail has a kilovolt or a kiloampere
    sum.map(|watts| (watts * 1e6).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORDED: &str = "  3V7_WL_SW_A current(0)=0.08489670A\n  3V3_SYS_A current(1)=0.06050000A\n \
        VDD_CORE_A current(7)=1.50000000A\n     3V7_WL_SW_V volt(8)=3.70000000V\n      3V3_SYS_V volt(9)=3.30000000V\n    \
        VDD_CORE_V volt(15)=0.80000000V\n      EXT5V_V volt(24)=5.15000000V\n       BATT_V volt(25)=0.00244200V";

    #[test]
    fn power_is_the_sum_over_rails_with_current_and_voltage() {
        assert_eq!(power_uw(RECORDED), Some(314_118 + 199_650 + 1_200_000));
    }

    #[test]
    fn an_answer_that_is_none_is_absent() {
        for text in ["", "error=1 error_msg=\"Command not registered\"", "VDD_CORE_A current(7)=1.5A"] {
            assert_eq!(power_uw(text), None, "{text}");
        }
        assert_eq!(power_uw("X_A current(0)=-3A\nX_V volt(1)=1V"), None);
    }
}
