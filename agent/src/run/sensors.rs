//! The sensors, read beside the loop.
//!
//! A driver may take its time or never answer, so a thread of its own reads: what hangs is this thread and
//! neither the loop nor the disk's. The core asks again only after an answer. Bound: one reading under way.

use crate::config::Config;
use larder_core::message::Input;
use larder_core::power::conditions::Readings;
use larder_hal::sensors::{Labels, Sensors};
use std::sync::mpsc as blocking;
use std::time::Instant;
use tokio::sync::mpsc;

const STACK_BYTES: usize = 256 << 10;

/// The loop's side of the thread.
pub(super) struct Reader {
    orders: blocking::SyncSender<()>,
    readings: mpsc::Receiver<Readings>,
}

impl Reader {
    /// Starts the thread. It ends with the reader, unless a sensor holds it: then with the process.
    pub(super) fn start(config: &Config) -> std::io::Result<Self> {
        let board = &config.board.value;
        let labels = Labels {
            thermal_zones: board.thermal_zones.clone(),
            power_rails: board.power_rails.clone(),
            pmic: board.pmic,
        };
        let device = rustix::fs::stat(&config.store).ok().map(|stat| stat.st_dev);
        let device = device.map(|device| (rustix::fs::major(device), rustix::fs::minor(device)));
        let mut sensors = Sensors::new(&config.machine_root, labels, device);
        let (orders, taken) = blocking::sync_channel(1);
        let (give, readings) = mpsc::channel(1);
        let body = move || {
            let mut last = Instant::now();
            while taken.recv().is_ok() {
                let now = Instant::now();
                let read = sensors.read(now - last);
                last = now;
                if give.blocking_send(core(read)).is_err() {
                    break;
                }
            }
        };
        std::thread::Builder::new().name("larder-sensors".into()).stack_size(STACK_BYTES).spawn(body)?;
        Ok(Reader { orders, readings })
    }

    /// Has the sensors read once.
    pub(super) fn read(&self) {
        // Full only while the last reading is under way, and the core does not ask then.
        let _ = self.orders.try_send(());
    }

    /// The next readings. Cancel safe.
    pub(super) async fn next(&mut self) -> Input {
        match self.readings.recv().await {
            Some(readings) => Input::Sensed(readings),
            None => std::future::pending().await,
        }
    }
}

fn core(read: larder_hal::sensors::Readings) -> Readings {
    Readings {
        heat_milli_celsius: read.heat_milli_celsius,
        throttled: read.throttled,
        under_voltage: read.under_voltage,
        external_power: read.external_power,
        battery_percent: read.battery_percent,
        power_uw: read.power_uw,
        energy_uj: read.energy_uj,
        flash_used_percent: read.flash_used_percent,
    }
}
