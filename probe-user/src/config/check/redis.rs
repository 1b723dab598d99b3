//! The Redis check: who asks, and what must answer.

use std::{fmt, time::Duration};

use super::{Keep, Reach, Secret};
use crate::config::{error::Fault, raw, scalar::word};

/// PING, and perhaps the role.
#[derive(Clone, Debug, PartialEq)]
pub struct RedisCheck {
    reach: Reach,
    keep: Keep,
    login: Option<RedisLogin>,
    role: RedisRole,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisLogin {
    /// One of the ACL (Redis 6); else the password alone, of the user `default`.
    pub user: Option<String>,
    /// Its password.
    pub password: Secret,
}

/// What the endpoint must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisRole {
    /// Anything that answers PING.
    Any,
    /// One that takes writes.
    Master,
    /// One that follows a master.
    Replica,
}

impl RedisRole {
    /// The role's word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Master => "master",
            Self::Replica => "replica",
        }
    }
}

impl RedisCheck {
    /// How it connects.
    pub fn reach(&self) -> &Reach {
        &self.reach
    }
    /// How long connections are kept.
    pub fn keep(&self) -> Keep {
        self.keep
    }
    /// Who asks, if that must be said.
    pub fn login(&self) -> Option<&RedisLogin> {
        self.login.as_ref()
    }
    /// What the endpoint must be.
    pub fn role(&self) -> RedisRole {
        self.role
    }

    pub(super) fn parse(field: &str, raw: &raw::Redis, inter: Duration) -> Result<Self, Fault> {
        let secret = Secret::parse(field, &raw.password, &raw.password_file)?;
        let login = match (&raw.user, secret) {
            (Some(user), _) if user.is_empty() || user.contains(char::is_whitespace) => {
                return Err(Fault::new(
                    format!("{field}.user"),
                    user,
                    "not a user of Redis",
                    "a name of the ACL, without blanks",
                ));
            }
            (Some(user), None) => {
                return Err(Fault::new(
                    format!("{field}.user"),
                    user,
                    "a user without a password",
                    "`password` or `password_file` beside it",
                ));
            }
            (user, Some(password)) => Some(RedisLogin {
                user: user.clone(),
                password,
            }),
            (None, None) => None,
        };
        let role = match &raw.role {
            Some(text) => {
                let words = [RedisRole::Any, RedisRole::Master, RedisRole::Replica];
                let words = words.map(|role| (role.label(), role));
                word(&format!("{field}.role"), text, &words)?
            }
            None => RedisRole::Any,
        };
        Ok(Self {
            reach: Reach::parse(field, &raw.port, &raw.address, &raw.send_proxy, &raw.tls)?,
            keep: Keep::parse(field, &raw.connection, &raw.fresh_every, inter)?,
            login,
            role,
        })
    }
}

impl fmt::Display for RedisCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = self.role.label();
        write!(f, "Redis{}, role {role}{}", self.reach, self.keep)
    }
}
