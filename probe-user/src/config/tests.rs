//! Every bad input and its one message; the reference configuration.

mod checks;
mod examples;
mod fixture;
mod meaning;
mod messages;

use std::time::Duration;

use super::*;
use fixture::{GOOD, about_http, http, message, parse, pki, with_check};
