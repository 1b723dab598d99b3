//! What an endpoint says of itself: HAProxy's agent-check.
//!
//! Beside the checks a TCP connection is made to a port where an agent of the endpoint
//! listens. It writes a line and closes: words that say how the endpoint wants to be
//! treated. The grammar is HAProxy's (`src/check.c`, `process_chk_agent`; configuration
//! manual, "agent-check"): up to the first CR or LF words between blanks and commas, of any
//! case.
//!
//! - `up`, and `down`, `stopped` or `fail`, the latter three with a reason behind `#`;
//! - `ready`, `drain` (no new clients), `maint` (out of service);
//! - `NN%` of the configured weight;
//! - `maxconn:NN`, which has no meaning here: nobody counts connections.
//!
//! What is not said stays as it was said last. Of words that contradict each other the last
//! one holds, and all else on the line is ignored but told. An agent that cannot be reached, or says
//! nothing that is known, changes nothing: whether the endpoint can be reached is the
//! checks' business.

use std::{fmt, io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};
use tracing::debug;

/// A line that is longer is cut.
const LONGEST: usize = 1024;
/// A description that is longer is cut.
const LONGEST_REASON: usize = 120;
/// HAProxy's: a weight is 256 at most, and the least that is more than nothing is 1.
pub const MOST_PERCENT: u32 = 25_600;

/// How an endpoint wants to be treated by who may choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Admin {
    /// As any other.
    #[default]
    Ready,
    /// No new clients; those that are there stay.
    Drain,
    /// Out of service.
    Maint,
}

impl Admin {
    /// Its word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maint => "maint",
        }
    }
}

/// What one answer says; nothing of what it does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// `up`, or `down`, `stopped`, `fail`.
    pub running: Option<bool>,
    /// `ready`, `drain`, `maint`.
    pub admin: Option<Admin>,
    /// Percent of the configured weight.
    pub percent: Option<u32>,
    /// Behind `#`, of one that is not running.
    pub reason: String,
    /// The first word that means nothing here.
    pub ignored: Option<String>,
}

impl Said {
    /// Reads an answer, whatever it is.
    pub fn parse(answer: &[u8]) -> Self {
        let text = String::from_utf8_lossy(answer);
        let line = text.split(['\r', '\n']).next().unwrap_or_default();
        let (words, reason) = line.split_once('#').unwrap_or((line, ""));
        let mut said = Self::default();
        for word in words
            .split([' ', '\t', ','])
            .filter(|word| !word.is_empty())
        {
            let word = word.to_ascii_lowercase();
            match word.as_str() {
                "up" => said.running = Some(true),
                "down" | "stopped" | "fail" | "failed" => said.running = Some(false),
                "ready" => said.admin = Some(Admin::Ready),
                "drain" => said.admin = Some(Admin::Drain),
                "maint" => said.admin = Some(Admin::Maint),
                _ => match percent(&word) {
                    Some(percent) => said.percent = Some(percent),
                    None if said.ignored.is_none() => {
                        said.ignored = Some(visible(&word, LONGEST_REASON));
                    }
                    None => {}
                },
            }
        }
        if said.running == Some(false) {
            said.reason = visible(reason.trim(), LONGEST_REASON);
        }
        said
    }

    /// Does it say anything?
    pub fn is_empty(&self) -> bool {
        self.running.is_none() && self.admin.is_none() && self.percent.is_none()
    }
}

/// `75%`
fn percent(word: &str) -> Option<u32> {
    let digits = word.strip_suffix('%')?;
    // A sign would be parsed too.
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse::<u32>().unwrap_or(MOST_PERCENT);
    Some(number.min(MOST_PERCENT))
}

/// What people may be shown of it.
fn visible(text: &str, most: usize) -> String {
    let shown = text.chars().filter(|c| !c.is_control());
    shown.take(most).collect()
}

/// What an agent has said up to now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// Not `down`.
    pub running: bool,
    /// What it wants.
    pub admin: Admin,
    /// Of the configured weight.
    pub percent: u32,
    /// Why it is down.
    pub reason: String,
}

impl Default for Wishes {
    /// As if there were no agent, which is how HAProxy begins too.
    fn default() -> Self {
        Self {
            running: true,
            admin: Admin::Ready,
            percent: 100,
            reason: String::new(),
        }
    }
}

impl Wishes {
    /// Takes an answer. True if it changed something.
    pub fn hear(&mut self, said: &Said) -> bool {
        let before = self.clone();
        if let Some(running) = said.running {
            self.running = running;
            self.reason.clone_from(&said.reason);
        }
        self.admin = said.admin.unwrap_or(self.admin);
        self.percent = said.percent.unwrap_or(self.percent);
        *self != before
    }

    /// Is the endpoint out of service, whatever its checks say?
    pub fn down(&self) -> bool {
        !self.running || self.admin == Admin::Maint
    }

    /// May it have new clients?
    pub fn serves(&self) -> bool {
        self.admin == Admin::Ready && self.percent > 0
    }
}

impl fmt::Display for Wishes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let running = if self.running { "up" } else { "down" };
        write!(f, "{running}, {}, {}%", self.admin.label(), self.percent)?;
        if !self.reason.is_empty() {
            write!(f, ": {}", self.reason)?;
        }
        Ok(())
    }
}

/// Where an agent is asked, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where it listens.
    pub target: SocketAddr,
    /// Time between two questions.
    pub inter: Duration,
    /// How long one may take.
    pub timeout: Duration,
    /// What is sent first, if anything.
    pub send: Vec<u8>,
}

/// Asks until the task is ended; `tell` is called with each answer that says something.
pub async fn run<T: Future<Output = ()>>(plan: Plan, mut tell: impl FnMut(Said) -> T) {
    let mut grid = interval_at(Instant::now(), plan.inter);
    grid.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        grid.tick().await;
        let target = plan.target;
        match timeout(plan.timeout, ask(&plan)).await {
            Ok(Ok(answer)) => {
                let said = Said::parse(&answer);
                if said.is_empty() || said.ignored.is_some() {
                    debug!(%target, ?said, "the agent says what means nothing here");
                }
                if !said.is_empty() {
                    tell(said).await;
                }
            }
            Ok(Err(error)) => debug!(%target, "the agent cannot be asked: {error}"),
            Err(_) => debug!(%target, "the agent does not answer in time"),
        }
    }
}

/// The first line of the answer, or all of it.
async fn ask(plan: &Plan) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(plan.target).await?;
    stream.write_all(&plan.send).await?;
    let mut answer = Vec::new();
    let mut piece = [0; 256];
    loop {
        let length = stream.read(&mut piece).await?;
        answer.extend_from_slice(&piece[..length]);
        let whole = piece[..length].iter().any(|b| matches!(b, b'\r' | b'\n'));
        if length == 0 || whole || answer.len() >= LONGEST {
            return Ok(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said(text: &str) -> Said {
        Said::parse(text.as_bytes())
    }

    #[test]
    fn every_word_of_haproxys_manual_is_known() {
        assert_eq!(said("up\n").running, Some(true));
        for word in ["down", "stopped", "fail", "DOWN", "Failed"] {
            assert_eq!(said(&format!("{word}\r\n")).running, Some(false), "{word}");
        }
        assert_eq!(said("ready").admin, Some(Admin::Ready));
        assert_eq!(said("drain\n").admin, Some(Admin::Drain));
        assert_eq!(said("maint\n").admin, Some(Admin::Maint));
        assert_eq!(said("75%\n").percent, Some(75));
        let all = said("ready, up 50%\tmaxconn:30\nand this is another line: down");
        assert_eq!(
            all,
            Said {
                running: Some(true),
                admin: Some(Admin::Ready),
                percent: Some(50),
                reason: String::new(),
                ignored: Some("maxconn:30".to_owned()),
            }
        );
        let down = said("down # the disk is full\nup");
        assert_eq!(
            (down.running, down.reason.as_str()),
            (Some(false), "the disk is full")
        );
    }

    #[test]
    fn what_means_nothing_says_nothing() {
        for text in [
            "",
            "\nup",
            "#up",
            "%",
            "-5%",
            "+5%",
            "5 %",
            "upp",
            "HTTP/1.1 200 OK",
        ] {
            assert!(said(text).is_empty(), "{text:?}");
        }
        assert_eq!(said("99999999999999%").percent, Some(MOST_PERCENT));
        assert_eq!(said("up down").running, Some(false));
    }

    #[test]
    fn what_is_not_said_stays() {
        let mut wishes = Wishes::default();
        assert!(!wishes.hear(&said("up 100% ready")));
        assert!(wishes.hear(&said("drain")));
        assert!(wishes.hear(&said("50%")));
        assert!(!wishes.serves() && !wishes.down());
        assert!(wishes.hear(&said("down # by hand")));
        assert!(wishes.down());
        // Only `up` brings it back, and `ready` is another matter.
        wishes.hear(&said("ready"));
        assert!(wishes.down() && wishes.serves());
        assert_eq!(wishes.to_string(), "down, ready, 50%: by hand");
        wishes.hear(&said("up"));
        assert_eq!(wishes.to_string(), "up, ready, 50%");
        wishes.hear(&said("0%"));
        assert!(!wishes.serves() && !wishes.down());
        wishes.hear(&said("maint"));
        assert!(wishes.down());
    }

    proptest! {
        /// Whatever comes is read, and only what HAProxy's words mean has an effect.
        #[test]
        fn garbage_is_harmless(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let said = Said::parse(&bytes);
            prop_assert!(said.percent.is_none_or(|percent| percent <= MOST_PERCENT));
            prop_assert!(said.reason.chars().count() <= LONGEST_REASON);
            prop_assert!(!said.reason.chars().any(char::is_control));
            let mut wishes = Wishes::default();
            wishes.hear(&said);
            prop_assert!(!wishes.hear(&said), "the same again changes nothing");
        }

        /// Words among other words are found, and the last one holds.
        #[test]
        fn words_are_found_among_garbage(
            before in "[a-z:;./]{0,5}[;:.]",
            words in prop::collection::vec(0usize..6, 1..10),
            gap in "[ ,\t]{1,3}",
        ) {
            const WORDS: [&str; 6] = ["up", "down", "ready", "drain", "maint", "7%"];
            let mut all = vec![before.as_str()];
            all.extend(words.iter().map(|word| WORDS[*word]));
            let said = Said::parse(all.join(&gap).as_bytes());
            let last = |of: &[usize]| words.iter().rev().find(|word| of.contains(word)).copied();
            prop_assert_eq!(said.running, last(&[0, 1]).map(|word| word == 0));
            let admin = [Admin::Ready, Admin::Drain, Admin::Maint];
            prop_assert_eq!(said.admin, last(&[2, 3, 4]).map(|word| admin[word - 2]));
            prop_assert_eq!(said.percent, last(&[5]).map(|_| 7));
        }
    }

    #[tokio::test]
    async fn an_agent_is_asked_again_and_again() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let plan = Plan {
            target: server.local_addr().unwrap(),
            inter: Duration::from_millis(5),
            timeout: Duration::from_secs(5),
            send: b"state\n".to_vec(),
        };
        let (tx, mut rx) = tokio::sync::mpsc::channel(1);
        let task = tokio::spawn(run(plan, move |said| {
            let tx = tx.clone();
            async move { tx.send(said).await.unwrap() }
        }));
        for answer in ["drain\n", "", "up 30%"] {
            let (mut stream, _) = server.accept().await.unwrap();
            let mut asked = [0; 6];
            stream.read_exact(&mut asked).await.unwrap();
            assert_eq!(&asked, b"state\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            drop(stream);
            if !answer.is_empty() {
                assert_eq!(rx.recv().await.unwrap(), said(answer));
            }
        }
        task.abort();
    }
}
