//! What was measured, beside what was wanted.

use std::path::Path;

use anyhow::Context;

/// Whether more or less is better.
#[derive(Clone, Copy)]
pub enum Target {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
    /// For information.
    None,
}

/// One line of the table.
pub struct Figure {
    what: String,
    value: f64,
    unit: &'static str,
    target: Target,
    note: String,
}

impl Figure {
    /// A figure with its target.
    pub fn new(what: &str, value: f64, unit: &'static str, target: Target) -> Self {
        Figure { what: what.into(), value, unit, target, note: String::new() }
    }

    /// With what it was made from.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The value below which so many of a thousand are.
pub fn per_mille(values: &mut [f64], rank: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values
        .get((values.len() * rank / 1_000).min(values.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}

/// A table in Markdown.
pub fn table(figures: &[Figure]) -> String {
    let mut text = String::from("| figure | measured | target | | from |\n|---|---|---|---|---|\n");
    for figure in figures {
        let (target, verdict) = match figure.target {
            Target::AtLeast(least) => {
                (format!("≥ {least}"), if figure.value >= least { "ok" } else { "**missed**" })
            }
            Target::AtMost(most) => {
                (format!("≤ {most}"), if figure.value <= most { "ok" } else { "**missed**" })
            }
            Target::None => (String::new(), ""),
        };
        let value = match figure.value {
            value if value >= 1_000.0 => format!("{value:.0}"),
            value if value >= 10.0 => format!("{value:.1}"),
            value => format!("{value:.2}"),
        };
        let (what, unit, note) = (&figure.what, figure.unit, &figure.note);
        text.push_str(&format!("| {what} | {value}{unit} | {target} | {verdict} | {note} |\n"));
    }
    text
}

const BEGIN: &str = "<!-- figures: written by `make bench` -->\n";
const END: &str = "<!-- end of figures -->";

/// Replaces the table of a file.
pub fn write(path: &Path, table: &str) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    let (before, rest) = text.split_once(BEGIN).context("the file has no marker for the table")?;
    let (_, after) = rest.split_once(END).context("the file has no marker for the table's end")?;
    std::fs::write(path, format!("{before}{BEGIN}\n{table}\n{END}{after}"))?;
    Ok(())
}
