//! `virga completions`, `virga man`.

use std::path::PathBuf;
use std::process::ExitCode;

use super::term;
use crate::base::{Context as _, Result, fs};

/// `virga completions`
#[derive(clap::Args, Debug)]
pub struct CompletionArgs {
    /// The shell
    shell: clap_complete::Shell,
}

/// `virga man`
#[derive(clap::Args, Debug)]
pub struct ManArgs {
    /// The folder
    folder: PathBuf,
}

/// Runs `virga completions`.
///
/// # Errors
/// None.
pub fn completions(args: CompletionArgs, command: &mut clap::Command) -> Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, command, "virga", &mut text);
    term::bytes(&text);
    Ok(ExitCode::SUCCESS)
}

/// Runs `virga man`: one page for virga and for each of uvtool's commands, and one a verb.
///
/// # Errors
/// When a page cannot be written.
pub fn man(args: &ManArgs, command: clap::Command) -> Result<ExitCode> {
    fs::create_dir(&args.folder)?;
    let mut pages = vec![command];
    pages.extend(super::uvt::commands());
    while let Some(page) = pages.pop() {
        let name = page.get_name().to_owned();
        let mut text = Vec::new();
        clap_mangen::Man::new(page.clone()).render(&mut text).context(|| format!("writing the page of '{name}'"))?;
        fs::write_atomic(&args.folder.join(format!("{name}.1")), &text, 0o644)?;
        for verb in page.get_subcommands().filter(|verb| !verb.is_hide_set() && verb.get_name() != "help") {
            let full = format!("{name}-{}", verb.get_name());
            pages.push(verb.clone().name(full));
        }
    }
    Ok(ExitCode::SUCCESS)
}
