//! The state folder's version: one integer in a file.

use super::layout::STATE_VERSION;
use super::{Context as _, Error, Kind, Layout, Result, fs};

const ANOTHER: &str = "VIRGA_HOME=FOLDER keeps the state in another one, of your own";

/// Checks that the state folder, if there is one, is of a shape that this
/// build knows. Makes nothing. Returns whether there is one.
///
/// # Errors
/// [`Kind::Failed`] when a newer virga made it.
pub fn check(layout: &Layout) -> Result<bool> {
    if let Some(barred) = fs::barred(layout.home()) {
        let error = Error::failed(format!("the state folder '{}' cannot be used", layout.home().display()));
        return Err(error.hint(barred).hint(ANOTHER));
    }
    let found = match fs::read_text(&layout.version(), 64) {
        Ok(text) => text.trim().parse::<u32>().context(|| format!("reading '{}'", layout.version().display()))?,
        Err(error) if error.kind() == Kind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if found > STATE_VERSION {
        return Err(Error::failed(format!("the state in '{}' was made by a newer virga", layout.home().display()))
            .hint("update virga, or set VIRGA_HOME to another folder"));
    }
    Ok(true)
}

/// Makes the state folder where there is none and checks that its shape is
/// one that this build knows. Repeatable.
///
/// # Errors
/// [`Kind::Failed`] when a newer virga made it, or it cannot be made.
pub fn prepare(layout: &Layout) -> Result<()> {
    if !check(layout)? {
        fs::create_private_dir(layout.home()).map_err(elsewhere)?;
        fs::write_atomic(&layout.version(), format!("{STATE_VERSION}\n").as_bytes(), 0o644).map_err(elsewhere)?;
    }
    Ok(())
}

/// Says how the state is kept elsewhere, unless that is said already.
fn elsewhere(error: Error) -> Error {
    if error.hints().iter().any(|hint| hint.contains("VIRGA_HOME")) { error } else { error.hint(ANOTHER) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_folder_that_cannot_be_made_is_kept_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write_new(&file, b"", 0o600).unwrap();
        let layout = Layout::new(file.join("home"), folder.path().join("run")).unwrap();
        let error = fs::create_private_dir(layout.home()).map_err(elsewhere).unwrap_err();
        assert_eq!(error.hints(), [ANOTHER]);
        let full = Error::failed("x").hint("VIRGA_HOME moves the state");
        assert_eq!(elsewhere(full).hints().len(), 1);
    }
}
