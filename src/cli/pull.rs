//! `pleach pull`: fetches a model and prints where it is.
#![expect(clippy::print_stdout, reason = "the path goes to standard output, for scripts")]

use crate::models::{DEFAULT_MODEL, resolve};

/// Fetch a model into the store, unless it is there.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A known name, or hf:OWNER/REPO[:FILE].
    #[arg(default_value = DEFAULT_MODEL)]
    name: String,
    /// Tell nothing but the path.
    #[arg(long, short)]
    quiet: bool,
}

/// Fetches and prints the path.
///
/// # Errors
/// See [`resolve`].
pub async fn run(args: Args) -> anyhow::Result<()> {
    let path = resolve(&args.name, !args.quiet).await?;
    println!("{}", path.display());
    Ok(())
}
