//! What labels, taints and the like may be called: one rule for specs, for the
//! settings of nodes, and for what operators give to nodes.

/// Longest value of a label, in bytes.
pub const MAX_LABEL_VALUE: usize = 256;
/// Longest key of a label.
const MAX_LABEL_KEY: usize = 128;

/// Whether a label, or what is named like one, may be called that: 1 to 128
/// letters, digits, `-`, `_`, `.` and `/`.
pub fn label_key(key: &str) -> bool {
    named(key, MAX_LABEL_KEY, b"-_./")
}

/// Whether it can be a label's value: at most 256 printable bytes.
pub fn label_value(value: &str) -> bool {
    value.len() <= MAX_LABEL_VALUE && !value.chars().any(char::is_control)
}

/// Whether it is 1 to `longest` letters, digits, `-`, `_` and `.`.
pub fn token(text: &str, longest: usize) -> bool {
    named(text, longest, b"-_.")
}

fn named(text: &str, longest: usize, also: &[u8]) -> bool {
    let fine = |b: u8| b.is_ascii_alphanumeric() || also.contains(&b);
    (1..=longest).contains(&text.len()) && text.bytes().all(fine)
}
