//! `virga template`.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use super::args::{FormatArg, MachineArgs, value};
use super::render::{self, Format};
use super::term;
use crate::base::{Result, TemplateId, Trust, harmless};
use crate::ops::template::Listed;
use crate::ops::{Env, template};

/// `virga template`
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the template for a machine: boots a guest once and saves it
    Create {
        #[command(flatten)]
        machine: MachineArgs,
        #[command(flatten)]
        format: FormatArg,
    },
    /// List the templates
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        format: FormatArg,
    },
    /// Show what a template was made of, and who was resumed from it
    Info {
        /// The template
        #[arg(value_parser = value::<TemplateId>, value_name = "ID")]
        id: TemplateId,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Remove templates
    #[command(visible_alias = "rm")]
    Remove {
        /// The templates
        #[arg(required = true, value_parser = value::<TemplateId>, value_name = "ID")]
        ids: Vec<TemplateId>,
        /// Even if guests stand on them, which are lost then
        #[arg(long)]
        force: bool,
    },
    /// Hash the files of templates again
    Verify {
        /// The templates [default: all]
        #[arg(value_parser = value::<TemplateId>, value_name = "ID")]
        ids: Vec<TemplateId>,
    },
}

/// Runs `virga template`.
///
/// # Errors
/// As the functions of [`template`].
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    match args.command {
        Command::Create { machine, format } => {
            let (made, new) = template::create(env, &machine.request())?;
            if !new {
                env.reporter.note("there is one already");
            }
            match format.format {
                Format::Json => render::json(&value_of(&template::info(env, &made.id)?))?,
                _ => term::line(&made.id.to_string()),
            }
        }
        Command::List { format } => listing(&template::list(env)?, format.format)?,
        Command::Info { id, format } => info(&template::info(env, &id)?, format.format)?,
        Command::Remove { ids, force } => template::remove(env, &ids, force)?,
        Command::Verify { ids } => template::verify(env, &ids, |id, verdict| match verdict {
            Ok(()) => term::line(&format!("{id} ok")),
            Err(error) => term::line(&format!("{id} {error}")),
        })?,
    }
    Ok(ExitCode::SUCCESS)
}

fn value_of(line: &Listed) -> serde_json::Value {
    let clones: Vec<&str> = line.clones.iter().map(|name| name.as_str()).collect();
    match &line.template {
        Err(error) => json!({"id": line.id, "broken": error.to_string(), "clones": clones}),
        Ok(template) => json!({
            "id": line.id,
            "key": template.record.key,
            "trust": line.trust,
            "created": template.record.created,
            "facts": template.record.facts,
            "size": template.on_disk(),
            "folder": template.files.folder(),
            "clones": clones,
        }),
    }
}

fn listing(lines: &[Listed], format: Format) -> Result<()> {
    if format == Format::Json {
        return render::json(&lines.iter().map(value_of).collect::<Vec<_>>());
    }
    let row = |line: &Listed| {
        let clones = line.clones.len().to_string();
        match &line.template {
            Err(_) => {
                let [a, b, c, d] = [const { String::new() }; 4];
                vec![line.id.to_string(), "broken".into(), a, b, c, d, clones]
            }
            Ok(template) => {
                let key = &template.record.key;
                vec![
                    line.id.to_string(),
                    match line.trust {
                        Some(trust @ Trust::Unsigned) => format!("{} {trust}", &key.image.hex()[..12]),
                        _ => key.image.hex()[..12].to_owned(),
                    },
                    key.memory.to_string(),
                    key.cpus.to_string(),
                    key.backend.get("accelerator").cloned().unwrap_or_default(),
                    template.on_disk().to_string(),
                    clones,
                ]
            }
        }
    };
    render::table(&["ID", "IMAGE", "MEMORY", "CPUS", "ACCEL", "SIZE", "CLONES"], lines.iter().map(row).collect());
    Ok(())
}

fn info(line: &Listed, format: Format) -> Result<()> {
    if format == Format::Json {
        return render::json(&value_of(line));
    }
    let template = match &line.template {
        Err(error) => {
            term::line(&format!("{}: {error}", line.id));
            return Ok(());
        }
        Ok(template) => template,
    };
    let (key, facts) = (&template.record.key, &template.record.facts);
    let clones: Vec<&str> = line.clones.iter().map(|name| name.as_str()).collect();
    let mut rows = vec![
        ("id", line.id.to_string()),
        ("created", template.record.created.to_string()),
        ("image", key.image.to_string()),
        ("trust", line.trust.map(|trust| trust.to_string()).unwrap_or_default()),
        ("memory", key.memory.to_string()),
        ("cpus", key.cpus.to_string()),
        ("disk", key.disk.to_string()),
        ("user", key.user.clone()),
        ("driver", key.driver.to_string()),
    ];
    rows.extend(key.backend.iter().map(|(name, value)| (name.as_str(), value.clone())));
    rows.extend([
        ("recipe", key.recipe.clone()),
        ("kernel", facts.kernel.clone()),
        ("tcp connections", facts.tcp.to_string()),
        ("size", template.on_disk().to_string()),
        ("folder", template.files.folder().display().to_string()),
        ("clones", clones.join(", ")),
    ]);
    let text: String = rows.iter().map(|(name, value)| format!("{name:16} {}\n", harmless::line(value))).collect();
    term::data(&text);
    Ok(())
}
