//! The status page in a real browser, without a screen: headless Chromium, told what to do over
//! two pipes by its DevTools protocol. When the pipes close it ends, whatever became of us.
//!
//! `PROBE_SCREENSHOTS=FOLDER` keeps a picture of each look.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    Limits,
    tests::{Bench, endpoint, service, status},
};
use crate::{failover::Reason, health::State};

/// However slow the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

struct Browser {
    child: Child,
    orders: Option<ChildStdin>,
    answers: mpsc::Receiver<Value>,
    session: Option<String>,
    number: u64,
    /// What it said beside answers: errors and warnings.
    complaints: Vec<String>,
    _profile: TempDir,
}

impl Browser {
    /// Starts it; nothing where there is none.
    fn start() -> Option<Self> {
        let found = ["chromium", "chromium-browser", "google-chrome"]
            .into_iter()
            .find(|name| {
                let asked = Command::new(name).arg("--version").output();
                asked.is_ok_and(|output| output.status.success())
            });
        let Some(name) = found else {
            let reason = "needs chromium";
            assert!(
                std::env::var_os("CI").is_none(),
                "{reason}, and CI allows no skip"
            );
            println!("SKIPPED: {reason}");
            return None;
        };
        let profile = tempfile::tempdir().unwrap();
        let mut child = Command::new("sh")
            // It reads orders at descriptor 3 and answers at 4.
            .args([
                "-c",
                r#"exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1"#,
                "sh",
                name,
            ])
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--hide-scrollbars",
                "--remote-debugging-pipe",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let (sender, answers) = mpsc::channel();
        thread::spawn(move || {
            let mut message = Vec::new();
            while said
                .read_until(0, &mut message)
                .is_ok_and(|count| count > 0)
            {
                message.pop();
                let parsed = serde_json::from_slice(&message);
                if parsed.is_ok_and(|parsed| sender.send(parsed).is_err()) {
                    return;
                }
                message.clear();
            }
        });
        Some(Self {
            orders: child.stdin.take(),
            child,
            answers,
            session: None,
            number: 0,
            complaints: Vec::new(),
            _profile: profile,
        })
    }

    /// One order and its answer.
    fn order(&mut self, method: &str, parameters: Value) -> Value {
        self.number += 1;
        let mut order = json!({"id": self.number, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            order["sessionId"] = session.as_str().into();
        }
        let orders = self.orders.as_mut().unwrap();
        orders.write_all(format!("{order}\0").as_bytes()).unwrap();
        orders.flush().unwrap();
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let said = self.answers.recv_timeout(left);
            let said = said.unwrap_or_else(|error| panic!("{method}: {error}"));
            if said["id"] == self.number {
                assert_eq!(said["error"], Value::Null, "{method}");
                return said["result"].clone();
            }
            self.note(&said);
        }
    }

    /// Keeps what a person would see in red in the console.
    fn note(&mut self, said: &Value) {
        let (method, about) = (said["method"].as_str().unwrap_or_default(), &said["params"]);
        let bad = match method {
            "Runtime.exceptionThrown" => true,
            "Runtime.consoleAPICalled" => {
                ["error", "warning", "assert"].contains(&about["type"].as_str().unwrap_or_default())
            }
            "Log.entryAdded" => {
                let level = about["entry"]["level"].as_str().unwrap_or_default();
                ["error", "warning"].contains(&level)
            }
            _ => false,
        };
        if bad {
            self.complaints.push(about.to_string());
        }
    }

    fn open(&mut self, at: SocketAddr) {
        let target = self.order("Target.createTarget", json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = self.order("Target.attachToTarget", attach);
        self.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Runtime.enable", "Log.enable", "Page.enable"] {
            self.order(domain, json!({}));
        }
        self.order("Page.navigate", json!({"url": format!("http://{at}/")}));
    }

    /// What an expression of the page is worth.
    fn ask(&mut self, expression: &str) -> Value {
        let ask = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.order("Runtime.evaluate", ask);
        assert_eq!(answer["exceptionDetails"], Value::Null, "{expression}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is worth this.
    fn until(&mut self, expression: &str, worth: &Value) {
        let until = Instant::now() + PATIENCE;
        loop {
            let is = self.ask(expression);
            if is == *worth {
                return;
            }
            assert!(Instant::now() < until, "{expression}: {is}, not {worth}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Another size and scheme of colours.
    fn look(&mut self, width: u32, height: u32, scheme: &str) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1,
            "mobile": width < 500});
        self.order("Emulation.setDeviceMetricsOverride", size);
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.order("Emulation.setEmulatedMedia", media);
    }

    /// The page as a picture, from top to bottom.
    fn picture(&mut self) -> Vec<u8> {
        let how = json!({"format": "png", "captureBeyondViewport": true});
        let picture = self.order("Page.captureScreenshot", how);
        BASE64_STANDARD
            .decode(picture["data"].as_str().unwrap())
            .unwrap()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It ends by itself and takes its own processes along.
        drop(self.orders.take());
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The words in the cells of an endpoint's row.
fn cells(name: &str) -> String {
    format!(
        "[...document.querySelectorAll('tbody tr')].filter(r => r.querySelector('th span')\
         .textContent === '{name}').flatMap(r => [...r.querySelectorAll('td > span:first-child')])\
         .slice(0, 3).map(c => c.textContent)"
    )
}

/// The least contrast of text with what is behind it, over all that is seen (WCAG 2, 1.4.3), and
/// where that is.
const CONTRAST: &str = r"(() => {
  const numbers = (c) => c.match(/[\d.]+/g).map(Number);
  const light = (c) => numbers(c).slice(0, 3).map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0);
  const ground = (e) => { for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor; if ((numbers(c)[3] ?? 1) > 0) return c; } return 'rgb(255, 255, 255)'; };
  let least = [99, ''];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest('script, style, noscript, .unseen, [hidden]') || !e.getClientRects().length) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(e.closest('svg') ? style.fill : style.color), light(ground(e))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < least[0]) least = [ratio, `${e.tagName}.${e.className} ${e.textContent.slice(0, 30)}`];
  }
  return least; })()";

/// Structure that a screen reader needs: what is missing.
const MISSING: &str = r"(() => {
  const missing = [];
  for (const of of ['header', 'main', 'footer', 'html[lang]', 'title', '[role=log][aria-live=polite]', '[role=alert]', 'label[for=filter]'])
    if (!document.querySelector(of)) missing.push(of);
  const unnamed = (of, named) => document.querySelectorAll(of).forEach(e => named(e) || missing.push(e.outerHTML.slice(0, 80)));
  unnamed('table', t => t.caption);
  unnamed('th', t => t.scope);
  unnamed('svg[role=img]', s => s.getAttribute('aria-label'));
  unnamed('section', s => document.getElementById(s.getAttribute('aria-labelledby')));
  const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
  if (new Set(ids).size !== ids.length) missing.push('ids are not unique');
  return missing; })()";

fn before() -> Value {
    let endpoints = [
        endpoint("sen2", 0, "up", true),
        endpoint("sen1", 1, "up", false),
    ];
    service("sense", &["sen2"], &endpoints)
}

fn after() -> Value {
    let mut down = endpoint("sen2", 0, "down", false);
    down["detail"] = "<img src=x onerror=alert(1)>".into();
    let mut service = service("sense", &["sen1"], &[down, endpoint("sen1", 1, "up", true)]);
    service["selection"]["reason"] = "master-down".into();
    service["selection"]["tier"] = 1.into();
    service["selection"]["switches"] = 1.into();
    service
}

fn other(mut first: Value, mut second: Value) -> Value {
    first["needed"] = 2.into();
    second["needed"] = 2.into();
    service("redis", &["r1"], &[first, second])
}

#[test]
fn the_page_shows_what_happens() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let pair = || {
        other(
            endpoint("r1", 0, "up", true),
            endpoint("r2", 1, "unknown", false),
        )
    };
    let started = status(&[before(), pair()]);
    let bench = runtime.block_on(Bench::new(started, Limits::default()));
    browser.open(bench.at);
    browser.look(1280, 800, "light");
    browser.until(&cells("sen2"), &json!(["UP", "active", "◀ here"]));
    browser.until(&cells("sen1"), &json!(["UP", "backup", "-"]));
    browser.until(&cells("r2"), &json!(["no check", "backup", "-"]));
    browser.until(
        "document.getElementById('live').textContent",
        &"live".into(),
    );

    // One is going down, one is going up.
    let (mut falling, mut rising) = (
        endpoint("r1", 0, "up", true),
        endpoint("r2", 1, "down", false),
    );
    falling["against"] = 1.into();
    rising["against"] = 1.into();
    bench.say(status(&[before(), other(falling, rising)]));
    browser.until(&cells("r1"), &json!(["UP 1/2 ↓", "active", "◀ here"]));
    browser.until(&cells("r2"), &json!(["DOWN 1/2 ↑", "backup", "-"]));

    // A switch: seen in the table, the list, the drawing, the title, and said aloud.
    bench.say(status(&[after(), pair()]));
    bench.feed.state("sense", "sen2", State::Down);
    bench.feed.switched("sense", Reason::MasterDown);
    bench.feed.selected("sense", &["sen1"]);
    browser.until(&cells("sen2"), &json!(["DOWN", "active", "-"]));
    browser.until(&cells("sen1"), &json!(["UP", "backup", "◀ here"]));
    let switched = "switched from sen2 to sen1: the one before went down";
    browser.until(
        "document.querySelector('.changes li span').textContent",
        &switched.into(),
    );
    browser.until(
        "document.getElementById('log').lastChild.textContent",
        &format!("sense: {switched}").into(),
    );
    browser.until("document.querySelectorAll('svg .mark').length", &1.into());
    browser.until("document.title", &"1 down - probe".into());
    // What an endpoint says is text.
    browser.until("document.querySelectorAll('img').length", &0.into());

    // Orders of operators, from an agent that tells of them.
    let ordered = "(() => { const s = structuredClone(model.status); \
        Object.assign(s.services[1].endpoints[0], {mode: 'maint', ordered: {what: 'maint', \
        since_unix_ms: 0, by: {uid: 0, user: 'root'}}}); s.services[1].endpoints[1].mode = 'drain'; \
        s.services[1].frozen = {what: 'frozen', since_unix_ms: 0, by: {uid: 7}}; \
        model.status = s; render(); return CELLS; })()";
    let both = format!("[...{}, ...{}]", cells("r1"), cells("r2"));
    let shown = browser.ask(&ordered.replace("CELLS", &both));
    let expected = json!(["MAINT", "active", "◀ here", "DRAIN", "backup", "-"]);
    assert_eq!(shown, expected);

    // Only what was asked for.
    let filter = "(() => { const f = document.getElementById('filter'); f.value = 'SEN'; \
        f.dispatchEvent(new Event('input')); return document.querySelectorAll('.service').length; })()";
    assert_eq!(browser.ask(filter), 1);
    browser.ask("document.getElementById('filter').value = ''");
    browser.until("document.querySelectorAll('.service').length", &2.into());

    let keep = std::env::var_os("PROBE_SCREENSHOTS").map(std::path::PathBuf::from);
    for (scheme, ground) in [("light", "rgb(246, 247, 249)"), ("dark", "rgb(18, 22, 27)")] {
        for (name, width, height) in [("desktop", 1280, 800), ("phone", 360, 740)] {
            browser.look(width, height, scheme);
            let color = "getComputedStyle(document.body).backgroundColor";
            browser.until(color, &ground.into());
            // Nothing is wider than the screen.
            browser.until("document.documentElement.scrollWidth", &width.into());
            let least = browser.ask(CONTRAST);
            assert!(
                least[0].as_f64().unwrap() >= 4.5,
                "{scheme} {name}: {least}"
            );
            let picture = browser.picture();
            assert!(picture.starts_with(b"\x89PNG"));
            if let Some(folder) = &keep {
                std::fs::write(folder.join(format!("{name}-{scheme}.png")), picture).unwrap();
            }
        }
    }
    assert_eq!(browser.ask(MISSING), json!([]));
    assert_eq!(browser.complaints, [""; 0]);

    // The agent goes away: the page says so.
    runtime.block_on(async { drop(bench) });
    runtime.shutdown_background();
    browser.until("document.getElementById('live').className", &"lost".into());
}
