//! Numbers for people.

use godwit_shared::model::{Millis, UnixMillis};

/// How long ago, in one short word: `12s`, `3m`, `5h`, `12d`.
pub(crate) fn age(since: UnixMillis, now: UnixMillis) -> String {
    let seconds = since.until(now).0 / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{minutes}m"),
        7_200..172_800 => format!("{hours}h"),
        _ => format!("{days}d"),
    }
}

/// `3m ago (2026-01-02T03:04:05.000Z)`.
pub(crate) fn moment(at: UnixMillis, now: UnixMillis) -> String {
    format!("{} ago ({at})", age(at, now))
}

/// A time that is left or was taken, in whole seconds from 10 s on.
pub(crate) fn span(time: Millis) -> String {
    if (10_000..60_000).contains(&time.0) {
        return format!("{} s", time.0 / 1000);
    }
    time.to_string()
}

/// `part` of `whole` in percent, at most 100.
pub(crate) fn percent(part: u64, whole: u64) -> u8 {
    if whole == 0 {
        return 0;
    }
    let share = u128::from(part) * 100 / u128::from(whole);
    u8::try_from(share.min(100)).unwrap_or(100)
}

/// `1 VM`, `2 VMs`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    if number == 1 {
        format!("1 {noun}")
    } else {
        format!("{number} {noun}s")
    }
}

/// The end of an id: enough to tell a few thousand apart, short enough to type.
pub(crate) fn short_id(id: impl std::fmt::Display) -> String {
    let text = id.to_string();
    text.get(text.len().saturating_sub(8)..)
        .unwrap_or(&text)
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_one_short_word() {
        let now = UnixMillis(10_000_000_000);
        for (ago, text) in [
            (0, "0s"),
            (119_999, "119s"),
            (120_000, "2m"),
            (7_200_000, "2h"),
            (172_800_000, "2d"),
        ] {
            assert_eq!(age(UnixMillis(now.0 - ago), now), text);
        }
        assert_eq!(age(now.after(Millis(5)), now), "0s");
    }

    #[test]
    fn percentages_stay_within_their_bounds() {
        assert_eq!(percent(0, 0), 0);
        assert_eq!(percent(1, 3), 33);
        assert_eq!(percent(u64::MAX, 1), 100);
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
    }
}
