//! Failures that a device reports asynchronously, and their messages.

use crate::error::RuntimeError;
use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

/// Failures that wgpu reports by callback: errors outside of any error scope, and the loss of the device.
#[derive(Debug, Default)]
pub(crate) struct Incidents {
    /// Reason of the loss, once the device is lost.
    pub(crate) lost: Mutex<Option<String>>,
    /// Messages of errors outside of any scope that have not been returned yet.
    pub(crate) uncaptured: Mutex<Vec<String>>,
}

/// Locks a mutex, even if a thread panicked while it held the lock.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Incidents {
    pub(crate) fn watch(device: &wgpu::Device) -> Arc<Self> {
        let incidents = Arc::new(Self::default());
        let sink = Arc::clone(&incidents);
        device
            .on_uncaptured_error(Arc::new(move |error: wgpu::Error| locked(&sink.uncaptured).push(error.to_string())));
        let sink = Arc::clone(&incidents);
        device.set_device_lost_callback(move |reason, message| {
            let mut lost = locked(&sink.lost);
            let message = one_line(&message);
            if !message.is_empty() {
                *lost = Some(message);
            } else if lost.is_none() {
                // wgpu gives no message if the device was destroyed.
                *lost = Some(format!("{reason:?}, without a message"));
            }
        });
        incidents
    }

    /// Marks the device as lost, for this reason unless it was lost before, and returns the loss as an error.
    pub(crate) fn lose(&self, reason: String) -> RuntimeError {
        RuntimeError::Lost { reason: locked(&self.lost).get_or_insert(reason).clone() }
    }

    /// Returns the loss of the device as an error, if it is lost.
    pub(crate) fn loss(&self) -> Option<RuntimeError> {
        locked(&self.lost).clone().map(|reason| RuntimeError::Lost { reason })
    }
}

/// Returns the message of a caught panic on one line.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.map_or_else(|| "without a message".to_owned(), one_line)
}

/// Replaces every run of white space by one space.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::panic_message;

    #[test]
    fn messages_of_panics_are_kept_on_one_line() {
        assert_eq!(panic_message(&"two\n  lines"), "two lines");
        assert_eq!(panic_message(&format!("number {}", 1)), "number 1");
        assert_eq!(panic_message(&1_u32), "without a message");
    }
}
