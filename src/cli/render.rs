//! Listings as a table for people or as JSON for programs.

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};

use super::term;
use crate::base::{Context as _, Result, harmless};

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// One JSON document for programs.
    Json,
}

/// Prints rows under a header; an empty listing prints nothing.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) {
    if rows.is_empty() {
        return;
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    // No wrapping: a script that cuts columns must not depend on the terminal's width.
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.into_iter().map(|cell| harmless::line(&cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text: String = table.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    term::data(&text);
}

/// Prints a value as indented JSON.
///
/// # Errors
/// When it cannot be encoded.
pub fn json<T: serde::Serialize>(value: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context(|| "encoding JSON".into())?;
    term::data(&format!("{}\n", harmless::json(&text)));
    Ok(())
}
