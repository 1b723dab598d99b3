//! The PostgreSQL check: who asks, and what must answer.

use std::{fmt, time::Duration};

use super::{Keep, Reach, Secret};
use crate::config::{error::Fault, raw, scalar::word};

/// Longest name of a user or a database (NAMEDATALEN).
const LONGEST_NAME: usize = 63;

/// A connection, and perhaps the role.
#[derive(Clone, Debug, PartialEq)]
pub struct PostgresCheck {
    reach: Reach,
    keep: Keep,
    login: Option<PostgresLogin>,
    role: PostgresRole,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresLogin {
    /// A user who may connect; none of its rights is needed.
    pub user: String,
    /// None where the server trusts us.
    pub password: Option<Secret>,
    /// A database that it may connect to.
    pub database: String,
}

/// What the endpoint must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostgresRole {
    /// Anything that takes connections, and queries if there is a user.
    Any,
    /// Not in recovery.
    Primary,
    /// In recovery.
    Standby,
}

impl PostgresRole {
    /// The role's word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Primary => "primary",
            Self::Standby => "standby",
        }
    }
}

impl PostgresCheck {
    /// How it connects.
    pub fn reach(&self) -> &Reach {
        &self.reach
    }
    /// How long connections are kept.
    pub fn keep(&self) -> Keep {
        self.keep
    }
    /// Who asks; nobody is enough to see that connections are taken.
    pub fn login(&self) -> Option<&PostgresLogin> {
        self.login.as_ref()
    }
    /// What the endpoint must be.
    pub fn role(&self) -> PostgresRole {
        self.role
    }

    pub(super) fn parse(field: &str, raw: &raw::Postgres, inter: Duration) -> Result<Self, Fault> {
        let password = Secret::parse(field, &raw.password, &raw.password_file)?;
        let name = |key: &str, text: &String| {
            if text.is_empty() || text.len() > LONGEST_NAME || text.contains('\0') {
                return Err(Fault::new(
                    format!("{field}.{key}"),
                    text,
                    "not a name of PostgreSQL's",
                    format!("1 to {LONGEST_NAME} bytes"),
                ));
            }
            Ok(text.clone())
        };
        let role = match &raw.role {
            Some(text) => {
                let words = [
                    PostgresRole::Any,
                    PostgresRole::Primary,
                    PostgresRole::Standby,
                ];
                let words = words.map(|role| (role.label(), role));
                word(&format!("{field}.role"), text, &words)?
            }
            None => PostgresRole::Any,
        };
        let login = match &raw.user {
            Some(user) => Some(PostgresLogin {
                user: name("user", user)?,
                password,
                database: match &raw.database {
                    Some(database) => name("database", database)?,
                    // As the server does.
                    None => user.clone(),
                },
            }),
            None => {
                let needs = [
                    ("password", password.is_some()),
                    ("database", raw.database.is_some()),
                    ("role", role != PostgresRole::Any),
                ];
                if let Some((key, _)) = needs.iter().find(|(_, given)| *given) {
                    return Err(Fault::absent(
                        format!("{field}.{key}"),
                        "nobody logs in without a user",
                        "`user` beside it",
                    ));
                }
                None
            }
        };
        Ok(Self {
            reach: Reach::parse(field, &raw.port, &raw.address, &raw.send_proxy, &raw.tls)?,
            keep: Keep::parse(field, &raw.connection, &raw.fresh_every, inter)?,
            login,
            role,
        })
    }
}

impl fmt::Display for PostgresCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgreSQL{}", self.reach)?;
        if let Some(login) = &self.login {
            let role = self.role.label();
            write!(f, " as {}, role {role}{}", login.user, self.keep)?;
        }
        Ok(())
    }
}
