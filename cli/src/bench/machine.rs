//! Description of what a measurement was made on: device, driver, storage types, clock, commit and date.

use mobilediffusion_kernels::Device;
use mobilediffusion_runtime::Timer;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the lines of a measurement's header as pairs of name and text.
pub(crate) fn describe(device: &Device, timer: Option<&Timer>) -> Vec<(&'static str, String)> {
    let mut lines = match device {
        Device::Cpu(_) => {
            let name = cpu_name().unwrap_or_else(|| std::env::consts::ARCH.to_owned());
            vec![("device", format!("CPU, {name}, {} threads", rayon::current_num_threads()))]
        }
        Device::Gpu(gpu, _) => {
            let adapter = gpu.adapter();
            let device = format!("{} ({}, {})", adapter.name, adapter.kind, adapter.backend);
            vec![("device", device), ("driver", adapter.driver.clone())]
        }
    };
    lines.push(("storage", device.storage().to_string().to_lowercase()));
    lines.push(("clock", timer.map_or("wall clock", Timer::clock).to_owned()));
    lines.extend(commit().map(|commit| ("commit", commit)));
    lines.push(("date", date(SystemTime::now())));
    lines
}

/// Reads the processor's name from `/proc/cpuinfo`, where there is one.
fn cpu_name() -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Returns the commit of the build if `MOBILEDIFFUSION_COMMIT` named one, else that of the current folder's repository.
fn commit() -> Option<String> {
    if let Some(built) = option_env!("MOBILEDIFFUSION_COMMIT") {
        return Some(built.to_owned());
    }
    let output = Command::new("git").args(["describe", "--always", "--dirty"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| format!("{text} (of the current folder)"))
}

/// Formats a time as a date in UTC, `2024-02-29`. Years are counted from March, so that a leap day ends its year.
fn date(now: SystemTime) -> String {
    let days = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / 86_400);
    // Days since 1 March of the year 0, in cycles of 400 years.
    let days = days + 719_468;
    let (cycle, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{day:02}", 400 * cycle + year + carry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_around_leap_days_and_year_ends_are_right() {
        let at = |day: u64| date(UNIX_EPOCH + Duration::from_secs(day * 86_400 + 86_399));
        assert_eq!(at(0), "1970-01-01");
        assert_eq!(at(11_016), "2000-02-29");
        assert_eq!(at(11_017), "2000-03-01");
        assert_eq!(at(19_722), "2023-12-31");
        assert_eq!(at(19_723), "2024-01-01");
    }
}
