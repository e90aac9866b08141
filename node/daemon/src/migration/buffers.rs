//! Buffers that are read into again when nobody holds them any more.
//!
//! What is read from QEMU is sent without a copy, and held by the transport until
//! the peer has acknowledged it. A new buffer for each read would cost as much as
//! encrypting what is in it: the C library gets such sizes from the system anew,
//! which clears them page by page.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Room for what is read from QEMU at once, and its header. A unix socket holds
/// about 200 KiB; less than that at a time stays in a core's cache until it is
/// encrypted.
const SIZE: usize = 128 * 1024;
/// Less than this is copied out: a few bytes do not hold a whole buffer.
const FEW: usize = SIZE / 4;
/// Buffers that are remembered; more are given back to the system. They hold
/// twice what the transport keeps for one connection.
const REMEMBERED: usize = 128;

/// The buffers of one channel.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// Those that were lent, oldest first, each as another handle to it.
    lent: VecDeque<Bytes>,
    /// One that was taken, and is free again at once.
    spare: Option<BytesMut>,
}

impl Buffers {
    /// An empty buffer with room for [`SIZE`] bytes.
    pub(super) fn take(&mut self) -> BytesMut {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        // Acknowledgements come in about the order of sending.
        if self.lent.front().is_some_and(Bytes::is_unique)
            && let Some(Ok(mut free)) = self.lent.pop_front().map(Bytes::try_into_mut)
        {
            free.clear();
            free.reserve(SIZE);
            return free;
        }
        BytesMut::with_capacity(SIZE)
    }

    /// A buffer that is not needed after all.
    pub(super) fn give_back(&mut self, mut buffer: BytesMut) {
        buffer.clear();
        self.spare = Some(buffer);
    }

    /// What was read into a buffer, to be sent. Its room is used again when that
    /// is gone.
    pub(super) fn lend(&mut self, buffer: BytesMut) -> Bytes {
        if buffer.len() < FEW {
            let few = Bytes::copy_from_slice(&buffer);
            self.give_back(buffer);
            return few;
        }
        let bytes = buffer.freeze();
        if self.lent.len() < REMEMBERED {
            self.lent.push_back(bytes.clone());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_when_nobody_holds_it() {
        let mut buffers = Buffers::default();
        let mut buffer = buffers.take();
        buffer.extend_from_slice(&vec![7; FEW]);
        let place = buffer.as_ptr();
        let first = buffers.lend(buffer);
        assert_ne!(buffers.take().as_ptr(), place, "it is held");
        assert_eq!(first, vec![7; FEW]);
        drop(first);
        let again = buffers.take();
        assert_eq!(again.as_ptr(), place);
        assert!(again.is_empty());
        assert_eq!(again.capacity(), SIZE);
    }

    #[test]
    fn few_bytes_hold_no_buffer() {
        let mut buffers = Buffers::default();
        let mut buffer = buffers.take();
        buffer.extend_from_slice(b"few");
        let place = buffer.as_ptr();
        let few = buffers.lend(buffer);
        assert_eq!(buffers.take().as_ptr(), place);
        assert_eq!(few, b"few".as_slice());
    }

    #[test]
    fn only_so_many_are_remembered() {
        let mut buffers = Buffers::default();
        let held: Vec<Bytes> = (0..2 * REMEMBERED)
            .map(|_| buffers.lend(BytesMut::zeroed(FEW)))
            .collect();
        assert_eq!(buffers.lent.len(), REMEMBERED);
        drop(held);
    }
}
