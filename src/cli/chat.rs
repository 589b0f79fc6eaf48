//! `pleach chat`: talk to a model in the terminal, on a running server or on one of its own.
#![expect(clippy::print_stdout, reason = "the conversation goes to standard output")]
#![expect(
    clippy::print_stderr,
    reason = "what is not part of the conversation goes to standard error"
)]

mod conversation;
pub(super) mod server;

use std::{
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    time::Duration,
};

use anyhow::Context as _;
use tokio::sync::mpsc;

use self::{
    conversation::{Conversation, Sampling},
    server::{ensure_served, is_nobody_there, list_models, trim_url},
};
use super::serve::{self, Serving};
use crate::http::ids;

const URL_DEFAULT: &str = "http://127.0.0.1:8000";
/// How long our own server may take to stop; nothing runs on it by then.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
const HELP: &str = "\
/model [NAME]  list the models, or talk to another one (an adapter, for example)
/system [TEXT] set the system prompt and start anew; without TEXT, none
/reset         forget the conversation
/quit          end (Ctrl-D too); Ctrl-C stops an answer";

/// Talk to a model in the terminal. Without --url and --adapter, a server on port 8000 of this machine is used if one
/// answers there; otherwise one is started inside this process.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A running server.
    #[arg(long, env = "PLEACH_URL")]
    url: Option<String>,
    /// Model or adapter to talk to; for a server of our own, the model to load, as in `serve`.
    #[arg(long)]
    model: Option<String>,
    /// Adapter to load into a server of our own, and to talk to. Repeatable.
    #[arg(long, value_name = "NAME=DIR", conflicts_with = "url")]
    adapter: Vec<String>,
    /// System prompt.
    #[arg(long)]
    system: Option<String>,
    #[command(flatten)]
    sampling: Sampling,
    /// Sent as a bearer token.
    #[arg(long, env = "PLEACH_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
}

/// Reads lines from standard input until it ends, and prints an answer to each.
///
/// # Errors
/// No server, no such model; a failed answer, unless a person sits at the terminal and can go on.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let host = Host::find(&args).await?;
    if io::stdin().is_terminal() {
        eprintln!("{} at {} · /help tells the commands", host.model, host.url);
    }
    let Host { url, model, api_key, own } = host;
    let chat = Conversation::new(url, api_key, model, args.system, args.sampling)?;
    let outcome = talk(chat).await;
    if let Some(serving) = own {
        serving.stop(SHUTDOWN_GRACE).await;
    }
    outcome
}

/// Who answers.
struct Host {
    url: String,
    model: String,
    api_key: Option<String>,
    /// The server inside this process, if it is one.
    own: Option<Serving>,
}

impl Host {
    async fn find(args: &Args) -> anyhow::Result<Self> {
        if !args.adapter.is_empty() {
            return Self::start(args).await;
        }
        let url = trim_url(args.url.as_deref().unwrap_or(URL_DEFAULT));
        let models = match list_models(&url, args.api_key.as_deref()).await {
            Ok(models) => models,
            Err(error) if args.url.is_none() && is_nobody_there(&error) => {
                return Self::start(args).await;
            }
            Err(error) => return Err(error),
        };
        let first = models.first().with_context(|| format!("{url} serves no model"))?;
        let model = args.model.clone().unwrap_or_else(|| first.id.clone());
        ensure_served(&models, &model)?;
        Ok(Self { url, model, api_key: args.api_key.clone(), own: None })
    }

    async fn start(args: &Args) -> anyhow::Result<Self> {
        // Tenants may have keys in the store, and then who has none is let in nowhere.
        let api_key = args.api_key.clone().unwrap_or_else(|| ids::random("chat-"));
        let settings = serve::Args {
            model: args.model.clone(),
            adapter: args.adapter.clone(),
            api_key: Some(api_key.clone()),
            port: Some(0),
            ..serve::Args::default()
        };
        let own = serve::start_in_process(settings).await?;
        let url = format!("http://{}", own.address());
        let models = list_models(&url, Some(&api_key)).await?;
        let adapter = models.iter().find(|card| card.parent.is_some());
        let first = adapter.or(models.first()).context("the server of our own serves no model")?;
        Ok(Self { model: first.id.clone(), url, api_key: Some(api_key), own: Some(own) })
    }
}

/// The loop of lines and answers.
async fn talk(mut chat: Conversation) -> anyhow::Result<()> {
    let is_interactive = io::stdin().is_terminal();
    let mut lines = stdin_lines();
    loop {
        if is_interactive {
            print!("> ");
            io::stdout().flush()?;
        }
        let line = tokio::select! {
            line = lines.recv() => line,
            // At the prompt there is nothing to stop but the chat.
            Ok(()) = tokio::signal::ctrl_c() => None,
        };
        let Some(line) = line else { break };
        let outcome = match Command::read(&line) {
            Command::Nothing => Ok(()),
            Command::Quit => break,
            Command::Help => {
                eprintln!("{HELP}");
                Ok(())
            }
            Command::Reset => {
                chat.reset();
                Ok(())
            }
            Command::System(text) => {
                chat.set_system(text);
                Ok(())
            }
            Command::Model(name) => chat.switch(name).await,
            Command::Unknown(word) => {
                Err(anyhow::anyhow!("no command {word}: /help tells the commands"))
            }
            Command::Say(text) => chat.say(text).await,
        };
        match outcome {
            Ok(()) => {}
            Err(error) if is_interactive => eprintln!("{}", super::describe(&error)),
            Err(error) => return Err(error),
        }
    }
    if is_interactive {
        println!();
    }
    Ok(())
}

/// Lines of standard input. They are read on a thread of their own, which nothing waits for at the end: the read of a
/// terminal cannot be broken off.
fn stdin_lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut line = Vec::new();
        while matches!(stdin.read_until(b'\n', &mut line), Ok(count) if count > 0) {
            if sender.blocking_send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
            line.clear();
        }
    });
    lines
}

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Command<'a> {
    Nothing,
    Say(&'a str),
    Model(Option<&'a str>),
    System(&'a str),
    Reset,
    Help,
    Quit,
    Unknown(&'a str),
}

impl<'a> Command<'a> {
    fn read(line: &'a str) -> Self {
        let line = line.trim();
        if line.is_empty() {
            return Self::Nothing;
        }
        if !line.starts_with('/') {
            return Self::Say(line);
        }
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        match word {
            "/model" | "/models" => Self::Model((!rest.is_empty()).then_some(rest)),
            "/system" => Self::System(rest),
            "/reset" => Self::Reset,
            "/help" => Self::Help,
            "/quit" | "/exit" => Self::Quit,
            _ => Self::Unknown(word),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_words_or_commands() {
        let cases = [
            ("", Command::Nothing),
            ("  \n", Command::Nothing),
            (" hello \n", Command::Say("hello")),
            ("/model", Command::Model(None)),
            ("/model  a:b ", Command::Model(Some("a:b"))),
            ("/system be brief\n", Command::System("be brief")),
            ("/system", Command::System("")),
            ("/reset", Command::Reset),
            ("/help", Command::Help),
            ("/quit", Command::Quit),
            ("/foo bar", Command::Unknown("/foo")),
        ];
        for (line, expected) in cases {
            assert_eq!(Command::read(line), expected, "{line:?}");
        }
    }
}
