//! How targets read what happens next out of a fuzzer's bytes.

use std::time::Duration;

use shadowland_wire::codec::{DecodeError, Reader};
use shadowland_wire::header::Flags;

/// A script that has ended is over, wherever it was.
pub(crate) type Step<T = ()> = Result<T, DecodeError>;

/// Reads a script from the front. At its end every read is an error, which ends the target.
pub(crate) struct Script<'a>(Reader<'a>);

impl<'a> Script<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(Reader::new(bytes))
    }

    /// Ends it here.
    pub(crate) fn end(&mut self) -> Step {
        self.0.rest();
        Err(DecodeError::UnexpectedEnd)
    }

    pub(crate) fn u8(&mut self) -> Step<u8> {
        self.0.u8()
    }

    pub(crate) fn u16(&mut self) -> Step<u16> {
        self.0.u16()
    }

    pub(crate) fn u32(&mut self) -> Step<u32> {
        self.0.u32()
    }

    pub(crate) fn u64(&mut self) -> Step<u64> {
        self.0.u64()
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        self.0.array()
    }

    pub(crate) fn flag(&mut self) -> Step<bool> {
        Ok(self.u8()? & 1 != 0)
    }

    /// A packet that the hostile side seals: how many sequences it leaves out before, its flags and its payload.
    pub(crate) fn packet(&mut self) -> Step<(u64, Flags, &'a [u8])> {
        Ok((self.number()?, Flags::from_bits(self.u8()?), self.bytes()?))
    }

    /// A number below `count`.
    pub(crate) fn below(&mut self, count: usize) -> Step<usize> {
        Ok(usize::from(self.u8()?) % count)
    }

    /// Bytes with their number, one byte or two, before them; fewer where the script ends.
    pub(crate) fn bytes(&mut self) -> Step<&'a [u8]> {
        let claimed = match self.u8()? {
            long @ 0xf8.. => usize::from(long & 7) << 8 | usize::from(self.u8()?),
            short => usize::from(short),
        };
        self.0.bytes(claimed.min(self.0.remaining()))
    }

    /// A number of which small ones are likelier.
    pub(crate) fn number(&mut self) -> Step<u64> {
        match self.u8()? {
            0xff => self.u64(),
            0xfe => Ok(self.u32()?.into()),
            0xfd => Ok(self.u16()?.into()),
            small => Ok(small.into()),
        }
    }

    /// From nothing to a minute.
    pub(crate) fn pause(&mut self) -> Step<Duration> {
        Ok(Duration::from_millis(match self.u8()? {
            long @ 0xc0.. => u64::from(long - 0xbf) * 1_000,
            short => u64::from(short),
        }))
    }
}
