//! Bad input: what must hold for any frame that reaches the packet code.
//!
//! [`check`] takes one byte string, a [`Case`]: a few bytes that decide what is done
//! to a frame, then the frame. It parses, translates, answers by RST, and panics where
//! an invariant does not hold; etherparse is the second opinion. It is called by the
//! coverage-guided target (`cargo xtask fuzz`), by a test that replays `tests/cases`,
//! and its parts by the packet tests, over what the real programs made of a frame.
//!
//! - [`made`]: hand-made cases with telling names.
//! - [`answers`]: the same for what servers answer to checks by HTTP.
//! - [`talks`]: the same for the other kinds of check, and for endpoints' own agents.
//! - `opinion`: what etherparse says of the same bytes.

pub mod answers;
mod case;
mod check;
pub mod made;
mod opinion;
#[cfg(feature = "talks")]
pub mod talks;

pub use case::{Case, draws, stored, stored_answers, stored_talks};
pub use check::{
    Carried, Found, Ip, check, check_error, check_piece, check_reset, check_segment, look,
};
