//! Server-sent events, without I/O: bytes in, frames out.
//!
//! The grammar is the one of the HTML standard, section 9.2.6: lines end in LF,
//! CR or CRLF, a blank line ends a frame, a line that begins with a colon is a
//! comment (the coordinator's heartbeat).

/// One event of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Frame {
    /// `event:`; empty means `message`.
    pub(crate) event: String,
    /// `data:`, its lines joined.
    pub(crate) data: String,
    /// `id:`, if this frame has one.
    pub(crate) id: Option<String>,
}

/// Longest line that is kept; an event is far below it.
const MAX_LINE: usize = 1 << 20;

/// Turns chunks of a stream into frames.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    line: Vec<u8>,
    after_cr: bool,
    frame: Frame,
    has_data: bool,
    overlong: bool,
}

impl Decoder {
    /// The frames that end in this chunk.
    pub(crate) fn push(&mut self, chunk: &[u8]) -> Vec<Frame> {
        let mut frames = Vec::new();
        for &byte in chunk {
            let after_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => frames.extend(self.end_line()),
                _ if self.line.len() < MAX_LINE => self.line.push(byte),
                _ => self.overlong = true,
            }
        }
        frames
    }

    fn end_line(&mut self) -> Option<Frame> {
        let line = std::mem::take(&mut self.line);
        if std::mem::take(&mut self.overlong) {
            return None;
        }
        if line.is_empty() {
            let frame = std::mem::take(&mut self.frame);
            return std::mem::take(&mut self.has_data).then_some(frame);
        }
        let line = String::from_utf8_lossy(&line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.frame.event),
            "id" => self.frame.id = Some(value.to_owned()),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.frame.data.push('\n');
                }
                self.frame.data.push_str(value);
            }
            _ => {} // A comment, `retry`, or something newer.
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] =
        b": hello\n\nid: 7\nevent: vm.state\ndata: {\"a\":\ndata: 1}\n\r\nid:8\rdata:x\r\rretry: 5\n\nevent: gap\ndata\n\n";

    fn frames(chunks: &[&[u8]]) -> Vec<Frame> {
        let mut decoder = Decoder::default();
        chunks
            .iter()
            .flat_map(|chunk| decoder.push(chunk))
            .collect()
    }

    #[test]
    fn frames_are_the_same_however_the_stream_is_cut() {
        let whole = frames(&[STREAM]);
        assert_eq!(whole.len(), 3, "{whole:?}");
        assert_eq!(whole[0].id.as_deref(), Some("7"));
        assert_eq!(whole[0].event, "vm.state");
        assert_eq!(whole[0].data, "{\"a\":\n1}");
        assert_eq!(whole[1].id.as_deref(), Some("8"));
        assert_eq!(
            (whole[2].event.as_str(), whole[2].data.as_str()),
            ("gap", "")
        );
        for cut in 0..STREAM.len() {
            assert_eq!(frames(&[&STREAM[..cut], &STREAM[cut..]]), whole, "{cut}");
        }
        let bytes: Vec<&[u8]> = STREAM.chunks(1).collect();
        assert_eq!(frames(&bytes), whole);
    }

    #[test]
    fn a_line_without_end_takes_no_memory_without_end() {
        let mut decoder = Decoder::default();
        for _ in 0..40 {
            assert!(decoder.push(&vec![b'x'; 65_536]).is_empty());
        }
        assert!(decoder.line.len() <= MAX_LINE);
        assert_eq!(decoder.push(b"\ndata: y\n\n").len(), 1);
    }
}
