//! Keeps what operators ordered, and which tiers come and go, over restarts of the agent, in a small
//! file.
//!
//! The core never waits for a disk: it says what is to be kept, and this task writes it, whole,
//! under another name, synced, and moved into place, so that the file is always one version or
//! the next. Whoever ordered something waits for that, so that an order that was answered
//! survives the machine. A file that cannot be read is moved aside and said; the agent starts
//! without orders then, since it must steer.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    config::Config,
    core::order::{Kept, Standing, Written},
};

/// The format's version.
const VERSION: u32 = 1;
/// A file of thousands of orders is smaller.
const LONGEST: u64 = 4 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
struct Format {
    version: u32,
    #[serde(flatten)]
    standing: Standing,
}

/// What an earlier agent kept, and what was wrong with that.
pub fn load(path: &Path) -> (Standing, Option<String>) {
    let shown = path.display();
    match read(path) {
        Ok(Some(standing)) => {
            if standing.has_orders() {
                info!(file = %shown, services = standing.services.len(), "orders of operators are in effect");
            }
            (standing, None)
        }
        Ok(None) => (Standing::default(), None),
        Err(error) => {
            let mut aside = path.as_os_str().to_owned();
            aside.push(".broken");
            let moved = match fs::rename(path, &aside) {
                Ok(()) => format!("it is moved to {}", Path::new(&aside).display()),
                Err(error) => format!("it cannot be moved aside: {error}"),
            };
            let problem = format!(
                "orders of operators are lost: {shown}: {error:#}; {moved}, and every endpoint is \
                 ready, no service frozen"
            );
            warn!("{problem}");
            (Standing::default(), Some(problem))
        }
    }
}

fn read(path: &Path) -> anyhow::Result<Option<Standing>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context("cannot read it"),
    };
    let mut text = String::new();
    file.take(LONGEST + 1)
        .read_to_string(&mut text)
        .context("cannot read it")?;
    if text.len() as u64 > LONGEST {
        bail!("it is longer than {LONGEST} bytes");
    }
    let format: serde_json::Value = serde_json::from_str(&text).context("it is not JSON")?;
    match format["version"].as_u64() {
        Some(version) if version == u64::from(VERSION) => {}
        _ => bail!(
            "its version is {}, this agent's {VERSION}",
            format["version"]
        ),
    }
    let mut format = format;
    if let Some(object) = format.as_object_mut() {
        object.remove("version");
    }
    let standing = serde_json::from_value(format).context("it is not what this agent wrote")?;
    Ok(Some(standing))
}

/// Writes each version until the agent ends.
pub async fn keep(
    path: PathBuf,
    mut kept: watch::Receiver<Kept>,
    written: watch::Sender<Written>,
) -> anyhow::Result<()> {
    loop {
        if kept.changed().await.is_err() {
            // The core is gone, and the agent with it.
            return std::future::pending().await;
        }
        let Kept { version, standing } = kept.borrow_and_update().clone();
        let to = path.clone();
        let result = tokio::task::spawn_blocking(move || write(&to, &standing)).await?;
        let problem = result.err().map(|error| {
            let problem = format!(
                "cannot be kept in {}, and ends with the agent: {error:#}",
                path.display()
            );
            warn!("an order of an operator {problem}");
            problem
        });
        written.send_replace(Written { version, problem });
    }
}

fn write(path: &Path, standing: &Standing) -> anyhow::Result<()> {
    let folder = path.parent().context("it has no folder")?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("make the folder {}", folder.display()))?;
    let mut making = path.as_os_str().to_owned();
    making.push(format!(".{}", std::process::id()));
    let making = PathBuf::from(making);
    let format = Format {
        version: VERSION,
        standing: standing.clone(),
    };
    let mut text = serde_json::to_vec_pretty(&format).context("write it as JSON")?;
    text.push(b'\n');
    let result = (|| -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&making)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&making, path)?;
        File::open(folder)?.sync_all()
    })();
    result.map_err(|error| {
        let _ = fs::remove_file(&making);
        error.into()
    })
}

/// Where it is: in the configuration's folder, or the service manager's, or beside the socket.
pub fn place(config: &Config) -> PathBuf {
    let stem = config.socket().file_stem().unwrap_or_default();
    let mut name = stem.to_owned();
    name.push(".orders.json");
    // Of several the first, as systemd.exec(5) has them.
    let managed = std::env::var("STATE_DIRECTORY").ok();
    let managed = managed
        .as_deref()
        .and_then(|all| all.split(':').next())
        .filter(|of| of.starts_with('/'));
    let folder = config
        .state()
        .or(managed.map(Path::new))
        .or(config.socket().parent())
        .unwrap_or(Path::new("/"));
    folder.join(name)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::unix::fs::PermissionsExt as _};

    use super::*;
    use crate::core::order::{Given, ModeWord, OfEndpoint, OfService};

    fn standing() -> Standing {
        let endpoint = OfEndpoint {
            mode: ModeWord::Drain,
            deadline_ms: Some(30_000),
            given: Given::default(),
        };
        let service = OfService {
            endpoints: BTreeMap::from([("sen2".to_owned(), endpoint)]),
            ..OfService::default()
        };
        Standing {
            services: BTreeMap::from([("sense".to_owned(), service)]),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/probe.orders.json");
        assert_eq!(load(&path), (Standing::default(), None));
        write(&path, &standing()).unwrap();
        assert_eq!(load(&path), (standing(), None));
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        write(&path, &Standing::default()).unwrap();
        assert_eq!(load(&path), (Standing::default(), None));
        // Nothing else is left there.
        let files = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(files, 1);
    }

    #[test]
    fn a_broken_file_is_moved_aside_and_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("probe.orders.json");
        for (text, why) in [
            ("", "not JSON"),
            ("{\"version\": 1, \"services\": {\"sense\":", "not JSON"),
            ("{\"version\": 2, \"services\": {}}", "version is 2"),
            ("[]", "version is null"),
            (
                "{\"version\": 1, \"services\": {\"a\": {\"nosuch\": 1}}}",
                "nosuch",
            ),
            ("{\"version\": 1}", "services"),
        ] {
            fs::write(&path, text).unwrap();
            let (standing, problem) = load(&path);
            assert_eq!(standing, Standing::default());
            let problem = problem.unwrap();
            assert!(problem.contains(why), "{text}: {problem}");
            assert!(!path.exists());
            let aside = folder.path().join("probe.orders.json.broken");
            assert_eq!(fs::read_to_string(aside).unwrap(), text);
        }
        fs::write(&path, vec![b' '; LONGEST as usize + 1]).unwrap();
        assert!(load(&path).1.unwrap().contains("longer"));
    }

    #[tokio::test]
    async fn an_unwritable_folder_is_told_to_who_waits() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        fs::write(&blocked, "").unwrap();
        let kept = watch::Sender::new(Kept::default());
        let written = watch::Sender::new(Written::default());
        let mut seen = written.subscribe();
        let path = blocked.join("probe.orders.json");
        let task = tokio::spawn(keep(path, kept.subscribe(), written));
        kept.send_replace(Kept {
            version: 1,
            standing: standing().into(),
        });
        let found = seen.wait_for(|w| w.version == 1).await.unwrap().clone();
        assert!(found.problem.unwrap().contains("cannot be kept"));
        task.abort();
    }
}
