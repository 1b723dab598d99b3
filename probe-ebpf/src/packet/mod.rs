//! Reading a frame within its bounds, and changing it.
