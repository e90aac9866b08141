//! Joining what was seen of a log with what is read anew.
//!
//! After a lost connection the console sends its scrollback again: the end of
//! what was printed already, and after it what was missed. [`Seen`] keeps the
//! end of what was printed and finds where the new part begins. After a move
//! to another node the scrollback begins anew; then nothing overlaps and all of
//! it is new.
//!
//! Carriage returns do not count: a log that was read as lines has lost them.

/// How much of what was printed is kept.
const KEPT: usize = 64 * 1024;

/// Fewer bytes than this may be alike by chance (a prompt, a line end).
const CHANCE: usize = 16;

/// The end of what was printed, without carriage returns.
#[derive(Debug, Default)]
pub(super) struct Seen {
    tail: Vec<u8>,
}

impl Seen {
    /// Notes that `bytes` were printed.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.tail
            .extend(bytes.iter().filter(|byte| **byte != b'\r'));
        let surplus = self.tail.len().saturating_sub(KEPT);
        self.tail.drain(..surplus);
    }

    /// The part of `fresh` that was not printed yet, and notes it.
    ///
    /// `fresh` is a piece of the same log that ends later: some prefix of it
    /// agrees with the end of what was printed, over the whole length of the
    /// shorter of both. Of several such prefixes the longest is taken.
    pub(super) fn news<'a>(&mut self, fresh: &'a [u8]) -> &'a [u8] {
        let (places, bytes): (Vec<usize>, Vec<u8>) = fresh
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte != b'\r')
            .map(|(place, byte)| (place, *byte))
            .unzip();
        let known = (1..=bytes.len())
            .rev()
            .find(|&end| self.ends_like(&bytes[..end]))
            .map_or(0, |end| places[end - 1] + 1);
        let news = &fresh[known..];
        self.add(news);
        news
    }

    fn ends_like(&self, prefix: &[u8]) -> bool {
        let length = prefix.len().min(self.tail.len());
        let complete = length == self.tail.len() || length >= CHANCE;
        length > 0
            && complete
            && self.tail[self.tail.len() - length..] == prefix[prefix.len() - length..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(from: u32, to: u32) -> Vec<u8> {
        (from..to)
            .flat_map(|n| format!("count {n}\r\n").into_bytes())
            .collect()
    }

    #[test]
    fn what_was_missed_is_printed_once() {
        for (first, again, news) in [
            (count(0, 50), count(20, 60), count(50, 60)), // it goes on
            (count(20, 50), count(0, 60), count(50, 60)), // more scrollback than was seen
            (count(0, 50), count(20, 50), Vec::new()),    // nothing happened
            (count(0, 50), count(60, 70), count(60, 70)), // too much was missed
            (Vec::new(), count(0, 5), count(0, 5)),       // nothing was seen
            (count(0, 50), Vec::new(), Vec::new()),       // a new log, still empty
        ] {
            let mut seen = Seen::default();
            seen.add(&first);
            assert_eq!(seen.news(&again), news);
        }
    }

    #[test]
    fn a_line_end_alone_is_no_overlap() {
        let mut seen = Seen::default();
        seen.add(&count(0, 100));
        assert_eq!(seen.news(b"\nlogin: "), b"\nlogin: ");
    }

    #[test]
    fn a_log_read_as_lines_is_known_again() {
        let mut seen = Seen::default();
        seen.add(b"booting the kernel\nlogin as root");
        let news = seen.news(b"booting the kernel\r\nlogin as root\r\n# ");
        assert_eq!(news, b"\r\n# ");
    }

    #[test]
    fn only_the_end_is_kept() {
        let mut seen = Seen::default();
        for _ in 0..10 {
            seen.add(&vec![b'x'; KEPT / 2]);
        }
        assert_eq!(seen.tail.len(), KEPT);
    }
}
