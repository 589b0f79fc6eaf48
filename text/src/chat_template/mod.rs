//! Chat messages to the text that a model was trained on, by the template in the model's own file.
//!
//! Templates are written for `transformers`, which runs them with jinja2 in a sandbox. This module makes minijinja do
//! the same: trimmed blocks, `break` and `continue`, `raise_exception`, `strftime_now`, Python's methods on strings and
//! mappings, Python's spelling of values, `tojson` as `json.dumps` writes it, `{% generation %}` blocks as plain text.
//! Undefined values are jinja2's default ones: empty when printed, an error when looked into.
//!
//! A template comes from a file, so it may be wrong or hostile: its steps, its output and its recursion are bounded.
//! What the engine gives no hold on is the size and nesting of values that a template builds up step by step (a string
//! doubled again and again): one made for that can end the process. Clients can't: they give values, not templates.
//!
//! Special tokens written in a message's content become special tokens, as they do in `transformers`.

mod clock;
mod json;
mod messages;
mod python;

use std::{fmt, io, sync::LazyLock, time::SystemTime};

use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value as JinjaValue,
    value::{Rest, ValueKind},
};
use minijinja_contrib::pycompat::unknown_method_callback;
use pleach_engine::gguf::GgufFile;
use regex::Regex;
use serde_json::{Map, Value};

pub use self::clock::strftime;
use crate::TemplateError;

/// Steps (instructions of the template engine) that a chat may take whatever its length. Known templates take tens of
/// steps for a message and a few hundred for the rest.
const FUEL_BASE: u64 = 100_000;
/// Steps for each message and each tool more.
const FUEL_PER_ITEM: u64 = 5_000;
/// Rendered text; a context of a million tokens is a fraction of it.
const OUTPUT_BYTES_MAX: usize = 64 << 20;
/// Depth of calls in a template; a macro counts four. Templates describe nested tool schemas by recursion, a few deep.
const RECURSION_MAX: usize = 200;

const CHAT: &str = "chat";
const TOOL_USE: &str = "tool_use";
const KEY_TEMPLATE: &str = "tokenizer.chat_template";
const KEY_TEMPLATE_TOOL_USE: &str = "tokenizer.chat_template.tool_use";

/// What a rendering needs besides the messages.
#[derive(Clone, Debug, Default)]
pub struct RenderOptions {
    /// Whether the text ends with the beginning of the assistant's answer.
    pub add_generation_prompt: bool,
    /// Tools that the model may call, as in the `OpenAI` API.
    pub tools: Option<Value>,
    /// More variables for the template (`chat_template_kwargs`); they don't replace those named here.
    pub extra: Map<String, Value>,
    /// What `strftime_now` shows, in UTC; `None` is the system's clock.
    pub now: Option<SystemTime>,
}

/// A model's chat template, compiled.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: Option<String>,
    eos: Option<String>,
}

impl ChatTemplate {
    /// Compiles the template of a model file. A second one for chats with tools is used for them if the file has it.
    ///
    /// # Errors
    /// [`TemplateError::NoTemplate`] for a file without one, [`TemplateError::Syntax`] for one that doesn't compile.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, TemplateError> {
        let source = file.str(KEY_TEMPLATE)?.ok_or(TemplateError::NoTemplate)?;
        let tokens = file.strings("tokenizer.ggml.tokens")?.unwrap_or_default();
        let text_of = |key: &str| -> Result<Option<&str>, TemplateError> {
            Ok(file.u32(key)?.and_then(|id| tokens.get(id as usize).copied()))
        };
        let (bos, eos) =
            (text_of("tokenizer.ggml.bos_token_id")?, text_of("tokenizer.ggml.eos_token_id")?);
        let mut template = Self::new(source, bos, eos)?;
        if let Some(source) = file.str(KEY_TEMPLATE_TOOL_USE)? {
            template.add(TOOL_USE, source)?;
        }
        Ok(template)
    }

    /// Compiles a template. `bos` and `eos` are the texts of these tokens, for models that have them.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`].
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self, TemplateError> {
        let mut template = Self {
            environment: environment(),
            bos: bos.map(str::to_owned),
            eos: eos.map(str::to_owned),
        };
        template.add(CHAT, source)?;
        Ok(template)
    }

    fn add(&mut self, name: &'static str, source: &str) -> Result<(), TemplateError> {
        self.environment.add_template_owned(name, prepared(source)).map_err(|error| {
            TemplateError::Syntax { line: error.line().unwrap_or(0), detail: detail(&error) }
        })
    }

    /// Renders a chat. Each message is an object with `role` and `content`; content that is a list of text parts is
    /// joined with line breaks, and the arguments of tool calls, which the `OpenAI` API has as text, become objects.
    ///
    /// # Errors
    /// [`TemplateError`]: a message is not one, or the template refused or failed.
    pub fn render(
        &self,
        messages: &[Value],
        options: &RenderOptions,
    ) -> Result<String, TemplateError> {
        let messages = messages::prepared(messages)?;
        let tools = options.tools.as_ref().filter(|tools| !tools.is_null());
        let n_tools = tools.and_then(Value::as_array).map_or(0, Vec::len);
        let fuel = FUEL_BASE + FUEL_PER_ITEM * (messages.len() + n_tools) as u64;

        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        let now = options.now;
        environment.add_function("strftime_now", move |format: &str| {
            clock::strftime(format, now.unwrap_or_else(SystemTime::now))
                .map_err(|detail| Error::new(ErrorKind::InvalidOperation, detail))
        });

        let mut variables: Vec<(&str, JinjaValue)> = options
            .extra
            .iter()
            .map(|(name, value)| (name.as_str(), JinjaValue::from_serialize(value)))
            .collect();
        variables.extend([
            ("messages", JinjaValue::from_serialize(&messages)),
            ("tools", tools.map_or(JinjaValue::from(()), JinjaValue::from_serialize)),
            ("documents", JinjaValue::from(())),
            ("add_generation_prompt", JinjaValue::from(options.add_generation_prompt)),
        ]);
        // Where a model has no such token, the variable is undefined, not empty.
        variables.extend(self.bos.as_deref().map(|bos| ("bos_token", JinjaValue::from(bos))));
        variables.extend(self.eos.as_deref().map(|eos| ("eos_token", JinjaValue::from(eos))));
        let variables: JinjaValue = variables.into_iter().collect();

        let name = if tools.is_some() { TOOL_USE } else { CHAT };
        let template = environment.get_template(name).or_else(|_| environment.get_template(CHAT));
        let mut output = Bounded { bytes: Vec::new(), over: false };
        match template
            .and_then(|template| template.render_captured_to(variables, &mut output).map(drop))
        {
            Ok(()) => Ok(String::from_utf8_lossy(&output.bytes).into_owned()),
            Err(_) if output.over => {
                Err(TemplateError::OutputTooLong { bytes_max: OUTPUT_BYTES_MAX })
            }
            Err(error) => Err(render_error(&error, fuel)),
        }
    }
}

/// What `raise_exception` raises; told from the engine's own errors by its type.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn raise_exception(message: &JinjaValue) -> Result<JinjaValue, Error> {
    let message = message.to_string();
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

/// What `transformers` gives a template, apart from what each rendering gives it.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_recursion_limit(RECURSION_MAX);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.set_formatter(|out, _, value| {
        if let Some(text) = value.as_str() {
            out.write_str(text).map_err(Error::from)
        } else {
            out.write_str(&python::str(value)?).map_err(Error::from)
        }
    });
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("string", |value: &JinjaValue| python::str(value));
    // To jinja2 whatever has a length and items is a sequence: strings and mappings too.
    environment.add_test("sequence", |value: &JinjaValue| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    environment.add_function("raise_exception", |message: Rest<JinjaValue>| {
        raise_exception(message.first().unwrap_or(&JinjaValue::from("")))
    });
    environment
}

/// The source as jinja2 with `transformers`' extensions reads it: line breaks are `\n`, and a `generation` block
/// (which marks what the assistant said, for training) is its content.
fn prepared(source: &str) -> String {
    static GENERATION: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").ok());
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    match &*GENERATION {
        Some(generation) => generation
            .replace_all(&source, |found: &regex::Captures<'_>| {
                let block = if found.get(2).is_some() { "endif" } else { "if true" };
                format!("{{%{} {block} {}%}}", &found[1], &found[3])
            })
            .into_owned(),
        None => source,
    }
}

fn detail(error: &Error) -> String {
    error
        .detail()
        .map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()))
}

/// The innermost cause that says something of its own: errors in a macro arrive wrapped.
fn render_error(error: &Error, fuel: u64) -> TemplateError {
    let mut innermost = error;
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(this) = cause {
        if let Some(Raised(message)) = this.downcast_ref::<Raised>() {
            return TemplateError::Raised { message: message.clone() };
        }
        if let Some(this) = this.downcast_ref::<Error>() {
            if this.kind() == ErrorKind::OutOfFuel {
                return TemplateError::OutOfFuel { fuel };
            }
            innermost = this;
        }
        cause = this.source();
    }
    TemplateError::Render { line: innermost.line().unwrap_or(0), detail: detail(innermost) }
}

/// Takes output up to [`OUTPUT_BYTES_MAX`].
struct Bounded {
    bytes: Vec<u8>,
    over: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > OUTPUT_BYTES_MAX - self.bytes.len() {
            self.over = true;
            return Err(io::Error::other("output too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
