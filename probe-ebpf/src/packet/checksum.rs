//! Internet checksums (RFC 1071), whole and incremental (RFC 1624).
//!
//! Two values are easily mixed up, so they have types of their own: what stands
//! in a header is a complement ([`Stored`]); what is added up is not ([`Sum`]).
//! One's complement addition does not care about byte order as long as all
//! operands agree, so everything here takes words just as they stand in the
//! packet and nothing is swapped.

/// A running one's complement sum, not yet folded or complemented.
///
/// 64 bits hold the carries of 2^32 words, more than any packet has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

/// A checksum as it stands in a header: the complement of the folded sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored(pub u16);

impl Sum {
    /// Nothing added yet.
    #[inline(always)]
    pub const fn new() -> Self {
        Self(0)
    }

    /// Adds a 16-bit word of the packet.
    #[inline(always)]
    pub const fn add_u16(self, word_be: u16) -> Self {
        Self(self.0 + word_be as u64)
    }

    /// Adds two words at once: 2^16 is 1 modulo 2^16 - 1, so a 32-bit word adds
    /// what its halves add.
    #[inline(always)]
    pub const fn add_u32(self, word_be: u32) -> Self {
        Self(self.0 + word_be as u64)
    }

    /// Takes `old` out and puts `new` in (RFC 1624 equation 3: add the complement).
    #[inline(always)]
    pub const fn replace_u16(self, old_be: u16, new_be: u16) -> Self {
        Self(self.0 + !old_be as u64 + new_be as u64)
    }

    /// As [`Sum::replace_u16`] for 32 bits.
    #[inline(always)]
    pub const fn replace_u32(self, old_be: u32, new_be: u32) -> Self {
        Self(self.0 + !old_be as u64 + new_be as u64)
    }

    /// Adds another sum.
    #[inline(always)]
    pub const fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The sum in 16 bits, carries added in.
    #[inline(always)]
    pub const fn fold(self) -> u16 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        sum as u16
    }

    /// The sum in 32 bits, for the kernel's `*_csum_replace` helpers.
    #[inline(always)]
    pub const fn fold_u32(self) -> u32 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff_ffff) + (sum >> 32);
        sum as u32
    }

    /// What stands in the header.
    #[inline(always)]
    pub const fn store(self) -> Stored {
        Stored(!self.fold())
    }
}

impl Stored {
    /// The checksum after a change of `delta`, a sum made only of replacements, at most a
    /// hundred: below 2^40, so that three steps fold it.
    #[inline(always)]
    pub const fn update(self, delta: Sum) -> Self {
        let sum = !self.0 as u64 + delta.0;
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        Self(!(sum as u16))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The example of RFC 1071 section 3.
    #[test]
    fn rfc_1071_example() {
        let sum = [0x0001u16, 0xf203, 0xf4f5, 0xf6f7]
            .into_iter()
            .fold(Sum::new(), Sum::add_u16);
        assert_eq!(sum.fold(), 0xddf2);
    }

    /// The example of RFC 1624 section 4, where the older method fails.
    #[test]
    fn rfc_1624_example() {
        let delta = Sum::new().replace_u16(0x5555, 0x3285);
        assert_eq!(Stored(0xdd2f).update(delta), Stored(0x0000));
    }

    proptest! {
        #[test]
        fn update_equals_recomputation(words in prop::collection::vec(any::<u16>(), 2..40), at in any::<prop::sample::Index>(), new in any::<u16>()) {
            // A sum of nothing but zeros has two representations; packets never have it.
            prop_assume!(words.iter().any(|w| *w != 0));
            let stored = words.iter().fold(Sum::new(), |s, w| s.add_u16(*w)).store();
            let at = at.index(words.len());
            let mut changed = words.clone();
            changed[at] = new;
            prop_assume!(changed.iter().any(|w| *w != 0));
            let whole = changed.iter().fold(Sum::new(), |s, w| s.add_u16(*w)).store();
            let updated = stored.update(Sum::new().replace_u16(words[at], new));
            prop_assert_eq!(updated, whole);
        }

        #[test]
        fn wide_words_add_like_their_halves(word in any::<u32>()) {
            let bytes = word.to_ne_bytes();
            let halves = Sum::new()
                .add_u16(u16::from_ne_bytes([bytes[0], bytes[1]]))
                .add_u16(u16::from_ne_bytes([bytes[2], bytes[3]]));
            prop_assert_eq!(Sum::new().add_u32(word).fold(), halves.fold());
        }
    }
}
