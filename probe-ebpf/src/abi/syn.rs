//! What is remembered of clients' SYNs, so that one that was refused can be sent to
//! another endpoint.
//!
//! Beside each [`super::Recent`] stands a [`SynCell`], found by the same number and place.
//! It holds the options of most systems; a [`MoreCell`] holds the rest of those that have
//! more. Two CPUs may write one cell at once, each word whole: the sequence number is
//! stored mixed with all other words, so of a mixture comes a number that no refusal
//! acknowledges.

use super::Shared;

/// Words of options that a [`SynCell`] holds: as many as Linux sends.
pub const SYN_WORDS: usize = 5;
/// Words of options that a TCP header may have (RFC 9293 section 3.1).
pub const OPTION_WORDS: usize = 10;
/// Words of options that a [`MoreCell`] holds.
pub const MORE_WORDS: usize = OPTION_WORDS - SYN_WORDS;

/// Words of options beyond the first, zero where there are none.
pub type More = [u32; MORE_WORDS];

/// A SYN, packed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Syn {
    /// Sequence number, host order.
    pub seq: u32,
    /// Bits 0..16 the window as it stands in the packet, 16..32 the bytes of payload (TCP
    /// Fast Open has some, RFC 7413).
    pub window: u32,
    /// Bits 0..16 when it was seen, the low half of [`super::seen`]; 16..24 words of options;
    /// 24..32 the flag bits.
    pub what: u32,
    /// The fifth word of options. Options are as they stand in the packet, and zero where
    /// there are none.
    pub last: u32,
    /// The first four.
    pub options: [u64; 2],
}

impl Syn {
    /// [`Syn::what`] of these.
    #[inline(always)]
    pub const fn what(seen: u32, words: u32, flags: u8) -> u32 {
        (seen & 0xffff) | (words & 0xff) << 16 | (flags as u32) << 24
    }

    /// The window as it stands in the packet.
    #[inline(always)]
    pub const fn window_be(&self) -> u16 {
        self.window as u16
    }

    /// Bytes of payload.
    #[inline(always)]
    pub const fn payload(&self) -> u32 {
        self.window >> 16
    }

    /// When it was seen, the low half of [`super::seen`].
    #[inline(always)]
    pub const fn seen(&self) -> u16 {
        self.what as u16
    }

    /// Words of options, at most [`OPTION_WORDS`].
    #[inline(always)]
    pub const fn words(&self) -> u32 {
        self.what >> 16 & 0xff
    }

    /// Flag bits.
    #[inline(always)]
    pub const fn flags(&self) -> u8 {
        (self.what >> 24) as u8
    }

    /// The options in the order of the packet; those from the sixth on are elsewhere.
    #[inline(always)]
    pub const fn option_words(&self) -> [u32; SYN_WORDS] {
        // The words of a pair as they lie in memory.
        let [a, b] = halves(self.options[0]);
        let [c, d] = halves(self.options[1]);
        [a, b, c, d, self.last]
    }

    /// Is this number the acknowledgment of this SYN, with its payload or without?
    #[inline(always)]
    pub const fn is_acknowledged_by(&self, ack: u32) -> bool {
        let bare = self.seq.wrapping_add(1);
        ack == bare || ack == bare.wrapping_add(self.payload())
    }

    #[inline(always)]
    fn mix(&self, more: &More) -> u32 {
        let [a, b] = self.options;
        let pair = a ^ b.rotate_left(8);
        let [c, d, e, f, g] = *more;
        let rest = c ^ d.rotate_left(1) ^ e.rotate_left(2) ^ f.rotate_left(3) ^ g.rotate_left(4);
        self.window
            ^ self.what.rotate_left(16)
            ^ self.last
            ^ pair as u32
            ^ (pair >> 32) as u32
            ^ rest
    }
}

/// Two words that were loaded as one.
#[inline(always)]
const fn halves(pair: u64) -> [u32; 2] {
    let (low, high) = (pair as u32, (pair >> 32) as u32);
    if cfg!(target_endian = "little") {
        [low, high]
    } else {
        [high, low]
    }
}

/// Two words as if they were loaded as one.
#[inline(always)]
pub const fn pair(first: u32, second: u32) -> u64 {
    if cfg!(target_endian = "little") {
        first as u64 | (second as u64) << 32
    } else {
        second as u64 | (first as u64) << 32
    }
}

/// A [`Syn`] that several CPUs write and read.
#[repr(C)]
#[derive(Debug, Default)]
pub struct SynCell {
    mixed: Shared<u32>,
    window: Shared<u32>,
    what: Shared<u32>,
    last: Shared<u32>,
    options: [Shared<u64>; 2],
}

impl SynCell {
    /// Replaces it.
    #[inline(always)]
    pub fn write(&self, syn: &Syn, more: &More) {
        self.mixed.set(syn.seq ^ syn.mix(more));
        self.window.set(syn.window);
        self.what.set(syn.what);
        self.last.set(syn.last);
        self.options[0].set(syn.options[0]);
        self.options[1].set(syn.options[1]);
    }

    /// What it is now, without its number.
    #[inline(always)]
    pub fn read(&self) -> Syn {
        Syn {
            seq: 0,
            window: self.window.get(),
            what: self.what.get(),
            last: self.last.get(),
            options: [self.options[0].get(), self.options[1].get()],
        }
    }

    /// The number that belongs to what was read.
    #[inline(always)]
    pub fn seq(&self, read: &Syn, more: &More) -> u32 {
        self.mixed.get() ^ read.mix(more)
    }
}

/// SYNs of one [`super::RecentSet`], a cache line.
#[repr(C)]
#[derive(Debug, Default)]
pub struct SynSet([SynCell; 2]);

impl SynSet {
    /// The one of this place in the set.
    #[inline(always)]
    pub fn at(&self, place: u32) -> &SynCell {
        &self.0[place as usize & 1]
    }
}

/// The rest of a SYN's options.
#[repr(C)]
#[derive(Debug, Default)]
pub struct MoreCell([Shared<u32>; MORE_WORDS]);

impl MoreCell {
    /// Replaces it.
    #[inline(always)]
    pub fn write(&self, more: &More) {
        let [a, b, c, d, e] = &self.0;
        a.set(more[0]);
        b.set(more[1]);
        c.set(more[2]);
        d.set(more[3]);
        e.set(more[4]);
    }

    /// What it is now.
    #[inline(always)]
    pub fn read(&self) -> More {
        let [a, b, c, d, e] = &self.0;
        [a.get(), b.get(), c.get(), d.get(), e.get()]
    }
}

/// The rest of the options of one [`super::RecentSet`]'s SYNs.
#[repr(C)]
#[derive(Debug, Default)]
pub struct MoreSet([MoreCell; 2]);

impl MoreSet {
    /// The one of this place in the set.
    #[inline(always)]
    pub fn at(&self, place: u32) -> &MoreCell {
        &self.0[place as usize & 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn syn() -> impl Strategy<Value = (Syn, More)> {
        let words = (any::<u32>(), any::<u32>(), any::<u32>(), any::<[u64; 2]>());
        (any::<u32>(), words, any::<More>()).prop_map(
            |(seq, (window, what, last, options), more)| {
                let syn = Syn {
                    seq,
                    window,
                    what,
                    last,
                    options,
                };
                (syn, more)
            },
        )
    }

    proptest! {
        #[test]
        fn a_cell_gives_back_what_was_written((syn, more) in syn()) {
            let cell = SynCell::default();
            cell.write(&syn, &more);
            let read = cell.read();
            prop_assert_eq!(Syn { seq: cell.seq(&read, &more), ..read }, syn);
        }

        /// Whichever word is another CPU's, the number is not the SYN's.
        #[test]
        fn a_mixture_has_another_number((syn, more) in syn(), (other, _) in syn(), word in 0..5) {
            let cell = SynCell::default();
            cell.write(&syn, &more);
            let mixed = match word {
                0 => { cell.window.set(other.window); other.window != syn.window }
                1 => { cell.what.set(other.what); other.what != syn.what }
                2 => { cell.last.set(other.last); other.last != syn.last }
                3 => { cell.options[0].set(other.options[0] & 0xffff_ffff); pairs_differ(other.options[0] & 0xffff_ffff, syn.options[0]) }
                _ => { cell.options[1].set(other.options[1] & 0xffff_ffff); pairs_differ(other.options[1] & 0xffff_ffff, syn.options[1]) }
            };
            let read = cell.read();
            prop_assert_eq!(cell.seq(&read, &more) != syn.seq, mixed);
        }
    }

    /// Do the folded halves differ?
    fn pairs_differ(a: u64, b: u64) -> bool {
        let fold = |pair: u64| (pair as u32) ^ (pair >> 32) as u32;
        fold(a) != fold(b)
    }

    #[test]
    fn options_keep_their_order() {
        let syn = Syn {
            options: [pair(1, 2), pair(3, 4)],
            last: 5,
            ..Syn::default()
        };
        assert_eq!(syn.option_words(), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn acknowledgments_are_exact() {
        let syn = Syn {
            seq: u32::MAX,
            window: 100 << 16,
            ..Syn::default()
        };
        assert!(syn.is_acknowledged_by(0));
        assert!(syn.is_acknowledged_by(100));
        assert!(!syn.is_acknowledged_by(1));
        assert!(!syn.is_acknowledged_by(u32::MAX));
    }
}
