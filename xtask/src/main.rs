//! The only door: what CI runs is what a person types.
fn main() {}
