//! The default config file and the reference pages, written from the table.

use std::fmt::Write as _;

use super::field::{FIELDS, Field, Kind};
use super::resolve::{ENV_API_KEY, ENV_CONFIG, ENV_HUB, ENV_URL};

/// Columns of a comment in the default file.
const COMMENT_COLUMNS: usize = 88;

/// What the tables `[[engine]]` do.
const ENGINE_DOC: &str = "Servers elsewhere that speak OpenAI's API, such as vLLM, SGLang, \
                          llama-server, Ollama or another node: this node sells their answers \
                          as those of its own models. Where the model's file is at hand, \
                          gguf names it: its vocabulary counts the tokens, its digest names the \
                          model, the weights in it are not loaded. Where it is not, shape says \
                          what a token costs, and each four bytes of text are counted as a \
                          token; the server's own count is never believed. serves says what the \
                          server has of a model: chat and completions where it is left out, \
                          embeddings only where they are named; nothing is tried out. A vector \
                          has embedding_width numbers, or as many as the model's file says. The \
                          API key comes from the variable that api_key_env names. A server that \
                          gives no text for first_text_seconds, or after that for as long, a \
                          minute at most, has failed, and so has one that takes longer than \
                          first_text_seconds for the vectors of 32 texts.";
/// One of them.
const ENGINE_EXAMPLE: &str = "[[engine]]
kind = \"openai\"
url = \"http://10.0.0.2:8000/v1\"
api_key_env = \"VLLM_API_KEY\"
jobs_max = 16
first_text_seconds = 300
models = [
  { name = \"qwen2.5:32b\", upstream = \"Qwen/Qwen2.5-32B\", gguf = \"~/qwen32b.gguf\" },
  { name = \"nomic\", upstream = \"nomic-embed\", gguf = \"~/n.gguf\", serves = [\"embeddings\"] },
  { name = \"big\", upstream = \"vendor/Big-70B\", context_tokens = 32768, shape = \
    { parameters_active = 70_000_000_000, layers = 80, attention_width = 8192 } },
]
";

/// Variables that set no row of the table, with what they do.
const OTHER_ENV: [(&str, &str); 5] = [
    (ENV_CONFIG, "The config file, like `--config`."),
    (ENV_URL, "The node the commands talk to, like `--url`."),
    (ENV_API_KEY, "The API key the commands use, like `--api-key`."),
    (ENV_HUB, "The address models are downloaded from, for a mirror of the hub."),
    ("NO_COLOR", "Set to anything: no colour in the output."),
];

/// A config file that sets nothing: every setting with its meaning, its default in a comment.
pub fn default_file() -> String {
    let mut page = String::from(
        "# Settings of a Tirami node. Every line is a default; remove the `#` before a key to \
         change it.\n\
         # Environment variables (TIRAMI_*) win over this file, flags win over both.\n\
         # `tirami config show` tells where each value comes from.\n",
    );
    for field in &FIELDS {
        page.push('\n');
        for line in wrap(field.doc) {
            let _ = writeln!(page, "# {line}");
        }
        let _ = writeln!(page, "# It is {}.", field.allowed());
        let _ = writeln!(page, "#{} = {}", field.name, literal(field));
    }
    page.push('\n');
    for line in wrap(ENGINE_DOC).into_iter().chain(ENGINE_EXAMPLE.lines().map(str::to_owned)) {
        let _ = writeln!(page, "# {line}");
    }
    page
}

/// The reference page of the config file.
pub fn config_markdown() -> String {
    let mut page = String::from(
        "# The config file\n\n\
         `~/.tirami/config.toml`, or the file named by `--config` or `TIRAMI_CONFIG`. It is TOML; \
         an unknown key is refused. `tirami config init` writes one with every default and its \
         meaning, `tirami config show` tells the value of every setting and where it was set.\n\n\
         Precedence: config file < environment < flags.\n\n\
         | key | allowed | default | flag | variable |\n|---|---|---|---|---|\n",
    );
    for field in &FIELDS {
        let _ = writeln!(
            page,
            "| [`{0}`](#{0}) | {1} | `{2}` | `--{3}` | `{4}` |",
            field.name,
            field.allowed(),
            literal(field),
            field.flag,
            field.env,
        );
    }
    for field in &FIELDS {
        let _ = writeln!(page, "\n## {}\n\n{}", field.name, field.doc);
    }
    let _ = writeln!(
        page,
        "\n## engine\n\n{ENGINE_DOC} It is {}.\n\n```toml\n{ENGINE_EXAMPLE}```",
        super::engine::ALLOWED
    );
    page.push_str(
        "\nIn a directory, `~/` is the home directory; a relative directory in the file is meant \
         from where the file is.\n",
    );
    page
}

/// The reference page of the environment variables.
pub fn env_markdown() -> String {
    let mut page = String::from(
        "# Environment variables\n\n\
         They win over the [config file](config.md); flags win over them. A variable that is set \
         to nothing counts as not set.\n\n\
         | variable | meaning |\n|---|---|\n",
    );
    for field in &FIELDS {
        let _ = writeln!(
            page,
            "| `{}` | {} It is {}. Default `{}`. |",
            field.env,
            field.doc,
            field.allowed(),
            field.default
        );
    }
    for (name, meaning) in OTHER_ENV {
        let _ = writeln!(page, "| `{name}` | {meaning} |");
    }
    page
}

fn literal(field: &Field) -> String {
    match field.kind {
        Kind::Number { .. } | Kind::Flag => field.default.to_owned(),
        // No list has anything in it by default.
        Kind::List(_) => "[]".to_owned(),
        Kind::Directory
        | Kind::Text
        | Kind::Label { .. }
        | Kind::Url
        | Kind::Choice(_)
        | Kind::Hours
        | Kind::Origin
        | Kind::Models
        | Kind::KeepAlive
        | Kind::AutoOr { .. }
        | Kind::Address => {
            format!("{:?}", field.default)
        }
    }
}

fn wrap(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let full = lines.last().is_some_and(|line| line.len() + word.len() + 1 > COMMENT_COLUMNS);
        if full {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}
