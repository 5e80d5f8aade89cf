//! What a client sends to the world: inputs, and the request to send a page again.

use crate::block::{CellId, PageId};
use crate::codec::{DecodeError, Full, Reader, Writer};
use crate::limits::{CELLS_PER_MAP, INPUTS_PER_MESSAGE, PAGES_PER_CELL};

/// What a player asks for during one tick. The server decides what comes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Input {
    /// Share of the greatest speed along the view direction, -127 = backwards .. 127 = forwards.
    pub forward: i8,
    /// Share of the greatest speed to the right of the view direction, -127 = left .. 127 = right.
    pub right: i8,
    /// View direction, 65,536 to the full turn, 0 = along X, growing towards Y.
    pub yaw: u16,
    /// Keys that are held down.
    pub buttons: Buttons,
}

impl Input {
    /// Bytes of an input in a message.
    const BYTES: usize = 5;

    #[inline]
    fn to_bytes(self) -> [u8; Self::BYTES] {
        let [low, high] = self.yaw.to_le_bytes();
        [self.forward as u8, self.right as u8, low, high, self.buttons.0]
    }

    #[inline]
    fn from_bytes([forward, right, low, high, buttons]: [u8; Self::BYTES]) -> Self {
        let yaw = u16::from_le_bytes([low, high]);
        Self { forward: forward as i8, right: right as i8, yaw, buttons: Buttons(buttons) }
    }
}

/// Keys that are held down. Reserved bits are ignored by the server, so that a newer client may set them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Buttons(pub u8);

impl Buttons {
    /// Run faster.
    pub const SPRINT: Self = Self(1 << 0);
    /// Crouch.
    pub const CROUCH: Self = Self(1 << 1);
    /// Jump.
    pub const JUMP: Self = Self(1 << 2);
    /// Strike whoever is nearest.
    pub const ATTACK: Self = Self(1 << 3);

    /// The keys of both.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all keys of `other` are held.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Input: the newest inputs, oldest first, numbered without gaps. Each is sent several times in a row, so that
/// a lost packet loses none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputMessage {
    newest: u32,
    count: usize,
    inputs: [Input; INPUTS_PER_MESSAGE],
}

impl InputMessage {
    /// A message of the last inputs; the last one has the number `newest` (numbers start at 1).
    ///
    /// # Panics
    /// When there are no inputs, more than [`INPUTS_PER_MESSAGE`], or more than `newest`.
    #[must_use]
    pub fn new(newest: u32, last: &[Input]) -> Self {
        assert!(!last.is_empty() && last.len() <= INPUTS_PER_MESSAGE && last.len() <= newest as usize);
        let mut inputs = [Input::default(); INPUTS_PER_MESSAGE];
        inputs[..last.len()].copy_from_slice(last);
        Self { newest, count: last.len(), inputs }
    }

    /// The inputs with their numbers, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Input)> + '_ {
        let first = self.newest - (self.count as u32 - 1);
        // No number beyond the newest is ever made: it may be the last that there is.
        (first..=self.newest).zip(self.inputs[..self.count].iter().copied())
    }

    /// Writes the message's body.
    pub fn encode(&self, writer: &mut Writer<'_>) -> Result<(), Full> {
        writer.varint(self.newest.into())?;
        writer.u8(self.count as u8)?;
        self.inputs[..self.count].iter().try_for_each(|input| writer.bytes(&input.to_bytes()))
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let ReceivedInputs { newest, inputs: received } = ReceivedInputs::decode(body)?;
        let mut inputs = [Input::default(); INPUTS_PER_MESSAGE];
        for (input, &bytes) in inputs.iter_mut().zip(received) {
            *input = Input::from_bytes(bytes);
        }
        Ok(Self { newest, count: received.len(), inputs })
    }
}

/// An [`InputMessage`] where it has arrived. Most of its inputs are known from earlier ones, and are not even read.
#[derive(Debug, Clone, Copy)]
pub struct ReceivedInputs<'a> {
    newest: u32,
    inputs: &'a [[u8; Input::BYTES]],
}

impl<'a> ReceivedInputs<'a> {
    /// Checks a body.
    #[inline]
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let newest = reader.varint_u32()?;
        let count = usize::from(reader.u8()?);
        if count > INPUTS_PER_MESSAGE {
            return Err(DecodeError::LimitExceeded("inputs per message"));
        }
        if count == 0 || count > newest as usize {
            return Err(DecodeError::BadValue("input count"));
        }
        let (inputs, _) = reader.bytes(count * Input::BYTES)?.as_chunks();
        reader.finish()?;
        Ok(Self { newest, inputs })
    }

    /// The inputs with larger numbers than `number`, oldest first.
    #[inline]
    pub fn after(self, number: u32) -> impl Iterator<Item = (u32, Input)> + 'a {
        let news = self.inputs.len().min(self.newest.saturating_sub(number) as usize);
        let before = self.newest - news as u32;
        let inputs = &self.inputs[self.inputs.len() - news..];
        // No number beyond the newest is ever made: it may be the last that there is.
        (1..).zip(inputs).map(move |(step, &bytes)| (before + step, Input::from_bytes(bytes)))
    }
}

/// ResetPage: the client could not apply a block of this page; send it complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResetPage {
    /// The page.
    pub page: PageId,
}

impl ResetPage {
    /// Writes the message's body.
    pub fn encode(&self, writer: &mut Writer<'_>) -> Result<(), Full> {
        writer.varint(self.page.cell.0.into())?;
        writer.varint(self.page.number.into())
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let cell = reader.varint_u32()?;
        let number = reader.varint_u32()?;
        reader.finish()?;
        if cell >= CELLS_PER_MAP || number >= PAGES_PER_CELL {
            return Err(DecodeError::LimitExceeded("page"));
        }
        Ok(Self { page: PageId { cell: CellId(cell), number: number as u16 } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // Found by fuzzing: a client that begins its inputs with the last number ended the server.
    #[test]
    fn the_last_number_that_there_is_can_be_the_newest() {
        let message = InputMessage::new(u32::MAX, &[Input::default(); 3]);
        let numbers: Vec<_> = message.iter().map(|(number, _)| number).collect();
        assert_eq!(numbers, [u32::MAX - 2, u32::MAX - 1, u32::MAX]);
    }

    proptest! {
        #[test]
        fn inputs_survive_the_round_trip(
            newest in 8u32..,
            behind in 0u32..=8,
            raw in proptest::collection::vec(any::<(i8, i8, u16, u8)>(), 1..=INPUTS_PER_MESSAGE),
        ) {
            let inputs: Vec<Input> = raw
                .into_iter()
                .map(|(forward, right, yaw, buttons)| Input { forward, right, yaw, buttons: Buttons(buttons) })
                .collect();
            let message = InputMessage::new(newest, &inputs);
            let mut buffer = [0; 64];
            let mut writer = Writer::new(&mut buffer);
            message.encode(&mut writer).unwrap();
            let decoded = InputMessage::decode(writer.written()).unwrap();
            prop_assert_eq!(decoded, message);
            prop_assert_eq!(decoded.iter().last().unwrap(), (newest, *inputs.last().unwrap()));
            let received = ReceivedInputs::decode(writer.written()).unwrap();
            let known = newest - behind;
            let news: Vec<_> = decoded.iter().filter(|&(number, _)| number > known).collect();
            prop_assert_eq!(received.after(known).collect::<Vec<_>>(), news);
            prop_assert_eq!(received.after(newest.saturating_add(behind)).count(), 0);
        }

        #[test]
        fn any_bytes_decode_to_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(message) = InputMessage::decode(&bytes) {
                prop_assert!(message.iter().count() <= INPUTS_PER_MESSAGE);
            }
            let _ = ResetPage::decode(&bytes);
        }
    }

    #[test]
    fn input_numbers_start_at_one() {
        assert_eq!(InputMessage::decode(&[0, 1, 0, 0, 0, 0, 0]), Err(DecodeError::BadValue("input count")));
        assert!(InputMessage::decode(&[1, 1, 0, 0, 0, 0, 0]).is_ok());
    }
}
