//! Which endpoint a segment belongs to.
