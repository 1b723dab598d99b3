//! What only the kernel side needs: maps, direct packet access, entry points.

mod direct;
mod maps;
mod own;
mod route;
mod tc;
mod xdp;
