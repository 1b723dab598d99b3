//! In which words the metrics are told: OpenMetrics for who asks for it, else the older text
//! format of Prometheus, as its own client libraries choose.
//!
//! The registry speaks OpenMetrics 1.0. The older format differs in little: the names of
//! counters and of information include their suffix in HELP and TYPE, information is a
//! gauge, and there is neither UNIT nor EOF. So it is made from the other, line by line.
//!
//! Sources: OpenMetrics 1.0, "Text format"; Prometheus, "Exposition formats";
//! RFC 9110, 12.5.1 (Accept).

/// A format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Text,
}

impl Format {
    /// Its media type.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// The one that fits a request's Accept headers best; text in doubt.
    pub fn accepted<'a>(headers: impl Iterator<Item = &'a str>) -> Self {
        let mut open = 0;
        let mut text = None;
        let mut any = 0;
        for range in headers.flat_map(|header| header.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let quality = parts.clone().skip(1).find_map(quality).unwrap_or(1000);
            match parts
                .next()
                .unwrap_or_default()
                .to_ascii_lowercase()
                .as_str()
            {
                "application/openmetrics-text" => open = open.max(quality),
                "text/plain" => text = text.max(Some(quality)),
                "*/*" | "text/*" => any = any.max(quality),
                _ => {}
            }
        }
        // `*/*` alone is curl, and a browser: they show text. Who names OpenMetrics knows it.
        if open > 0 && open >= text.unwrap_or(any) {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }
}

/// A weight in thousandths; one that is not understood is as if it were not there.
fn quality(parameter: &str) -> Option<u32> {
    let (name, value) = parameter.split_once('=')?;
    if !name.trim().eq_ignore_ascii_case("q") {
        return None;
    }
    let value: f64 = value.trim().parse().ok()?;
    let weights = (0.0..=1.0).contains(&value);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 1000"
    )]
    weights.then_some((value * 1000.0).round() as u32)
}

/// The same in the older format.
pub fn text(open: &str) -> String {
    let mut out = String::with_capacity(open.len());
    let mut help = None;
    for line in open.lines() {
        if let Some(of) = line.strip_prefix("# HELP ") {
            // Its name depends on the type, which comes next.
            help = of.split_once(' ');
            continue;
        }
        let Some(comment) = line.strip_prefix("# ") else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        let typed = comment
            .strip_prefix("TYPE ")
            .and_then(|of| of.split_once(' '));
        let Some((name, kind)) = typed else { continue };
        let (suffix, kind) = match kind {
            "counter" => ("_total", kind),
            "info" => ("_info", "gauge"),
            kind => ("", kind),
        };
        if let Some((_, help)) = help.take().filter(|(of, _)| *of == name) {
            out.push_str(&format!("# HELP {name}{suffix} {help}\n"));
        }
        out.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(accept: &str) -> Format {
        Format::accepted([accept].into_iter())
    }

    #[test]
    fn who_asks_for_openmetrics_gets_it() {
        // Prometheus 2.42 and 3.0 as they are.
        let two = "application/openmetrics-text;version=1.0.0,\
                   application/openmetrics-text;version=0.0.1;q=0.75,\
                   text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let three = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                     application/openmetrics-text;version=0.0.1;q=0.5,\
                     text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
                     text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for accept in [
            two,
            three,
            "application/openmetrics-text",
            "Application/OpenMetrics-Text; q=0.1",
        ] {
            assert_eq!(of(accept), Format::OpenMetrics, "{accept}");
        }
        for accept in [
            "*/*",
            "",
            "text/html,application/xhtml+xml,*/*;q=0.8",
            "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=0.3,text/plain",
            "application/openmetrics-text;q=0.999,text/plain;q=zwei",
        ] {
            assert_eq!(of(accept), Format::Text, "{accept}");
        }
        assert_eq!(Format::accepted(std::iter::empty()), Format::Text);
        let two_headers = ["text/plain;q=0.2", "application/openmetrics-text"];
        assert_eq!(
            Format::accepted(two_headers.into_iter()),
            Format::OpenMetrics
        );
    }

    #[test]
    fn the_older_format() {
        let open = "# HELP a_checks Made.\n# TYPE a_checks counter\n# UNIT a_checks checks\n\
                    a_checks_total{x=\"# HELP\"} 1\n# HELP a_build B.\n# TYPE a_build info\n\
                    a_build_info{v=\"1\"} 1\n# TYPE a gauge\na 1.0\n# EOF\n";
        assert_eq!(
            text(open),
            "# HELP a_checks_total Made.\n# TYPE a_checks_total counter\n\
             a_checks_total{x=\"# HELP\"} 1\n# HELP a_build_info B.\n# TYPE a_build_info gauge\n\
             a_build_info{v=\"1\"} 1\n# TYPE a gauge\na 1.0\n"
        );
    }
}
