//! Templates in the forms of well-known models, each given one conversation with all that an agent
//! sends: a system's words, tools, a picture, a call, its result, and a question after it.

use super::*;
use crate::engine::Placed;
use crate::image::Image;

/// As SmolVLM and Idefics: content is a list of parts.
const PARTS: &str = r"<s>{% for m in messages %}{{ m['role'] | capitalize }}
{%- if m['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}
{%- for line in m['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}
{%- elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end>
{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}";

/// As LLaVA: the parts are chosen by their type, and what the assistant says is marked.
const CHOSEN_PARTS: &str = r"{% for m in messages %}{{ m['role'] | upper }}:
{%- for part in m['content'] | selectattr('type', 'equalto', 'image') %}{{ ' <image>' }}{% endfor %}
{%- for part in m['content'] | selectattr('type', 'equalto', 'text') %}
{%- if m['role'] == 'assistant' %}{% generation %}{{ ' ' + part['text'] }}{% endgeneration %}
{%- else %}{{ ' ' + part['text'] }}{% endif %}{% endfor %}{{ '\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}";

/// As Gemma 2: no system, and the roles alternate.
const NO_SYSTEM: &str = r"{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('There is no system') }}{% endif %}
{%- for m in messages %}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('The roles must alternate') }}{% endif %}
{%- set role = 'model' if m['role'] == 'assistant' else m['role'] %}
{{- '<turn>' + role + '\n' + m['content'] | trim + '</turn>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}";

/// As Mistral: the roles alternate after a system, which is told the day where it says nothing.
const ALTERNATING: &str = r"{%- set today = strftime_now('%Y-%m-%d') %}
{%- if messages[0]['role'] == 'system' %}
{%- set told = messages[0]['content'] %}{% set turns = messages[1:] %}
{%- else %}{% set told = 'Today is ' + today + '.' %}{% set turns = messages %}{% endif %}
{{- bos_token + '[SYSTEM]' + told + '[/SYSTEM]' }}
{%- for m in turns %}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('The roles must alternate') }}{% endif %}
{%- if m['role'] == 'user' %}{{ '[INST]' + m['content'] + '[/INST]' }}
{%- else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}";

/// As SmolLM3 and Granite: the day, marks for training, and tools whose calls are not written.
const DATED: &str = r"{{- '<|im_start|>system\nToday: ' + strftime_now('%d %B %Y') + '\n' }}
{%- set turns = messages %}
{%- if messages[0].role == 'system' %}{{ messages[0].content }}
{%- set turns = messages[1:] %}{% endif %}
{%- if tools %}{{ '\nWrite <tool_call> for one of ' }}{{ tools | tojson }}{% endif %}
{{- '<|im_end|>\n' }}
{%- for m in turns %}
    {%- if m.role == 'assistant' %}
        {%- generation -%}
        {{- '<|im_start|>assistant\n' + m.content + '<|im_end|>\n' }}
        {%- endgeneration -%}
    {%- else %}
        {{- '<|im_start|>' + ('user' if m.role == 'tool' else m.role) + '\n' }}
        {{- m.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// As Qwen3: tools, calls and results are the template's own.
const TOOLS: &str = r#"{%- if tools %}{{ '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}
    {{- '# Tools' }}{% for tool in tools %}{{ '\n' }}{{ tool | tojson }}{% endfor %}
    {{- '<|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
    {%- elif m.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' + m.content }}
        {%- for call in m.tool_calls %}
            {{- '<tool_call>\n{"name": "' + call.function.name }}
            {{- '", "arguments": ' }}{{ call.function.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}{{ '<|im_end|>\n' }}
    {%- elif m.role == 'tool' %}
        {{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"#;

const TOOL: &str = r#"{"type": "function", "function": {"name": "look", "parameters": {}}}"#;
const CALL: &str =
    "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"sky\"}}\n</tool_call>";
const RESULT: &str = "<tool_response>\nblue\n</tool_response>";

fn picture() -> Image {
    let mut file = Vec::new();
    let encoder = png::Encoder::new(&mut file, 1, 1);
    encoder.write_header().unwrap().write_image_data(&[0]).unwrap();
    Image::open(file).unwrap()
}

/// All that an agent sends.
fn agents() -> Conversation {
    let arguments = r#"{"at": "sky"}"#.to_owned();
    let call = Call { id: "1".to_owned(), name: "look".to_owned(), arguments };
    let (question, image) = ("What is this? ", picture());
    let placed = Placed { at: question.len(), image };
    let messages = vec![
        Message::new("system", "Be brief."),
        Message { images: vec![placed], ..Message::new("user", question) },
        Message { calls: vec![call], ..Message::new("assistant", "") },
        Message::new("tool", "blue"),
        Message::new("user", "And now?"),
    ];
    Conversation { messages, tools: vec![TOOL.to_owned()] }
}

/// How a model without a way of its own is told of the tool.
fn told() -> String {
    let tools = vec![TOOL.to_owned()];
    calls::as_text(&Conversation { messages: Vec::new(), tools }).messages[0].content.clone()
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(Some(source), "<s>", "</s>").unwrap()
}

/// The whole prompt, in which a picture is its number.
fn written(source: &str, conversation: &Conversation) -> String {
    let segments = ControlTexts::default().render_shielded(&template(source), conversation);
    let text = |segment| match segment {
        Segment::Template(text) | Segment::Quoted(text) => text,
        Segment::Image(number) => format!("[picture {number}]"),
    };
    segments.unwrap().into_iter().map(text).collect()
}

#[test]
fn every_form_of_template_writes_all_that_an_agent_sends() {
    let told = told();
    let cases = [
        (
            "parts",
            PARTS,
            format!(
                "<s>System: Be brief.\n\n{told}<end>\nUser: What is this? [picture 0]<end>\n\
                 Assistant: {CALL}<end>\nUser: {RESULT}<end>\nUser: And now?<end>\nAssistant:"
            ),
        ),
        (
            "chosen parts",
            CHOSEN_PARTS,
            format!(
                "SYSTEM: Be brief.\n\n{told}\nUSER: What is this? [picture 0]\nASSISTANT: {CALL}\n\
                 USER: {RESULT}\nUSER: And now?\nASSISTANT:"
            ),
        ),
        (
            "no system",
            NO_SYSTEM,
            format!(
                "<s><turn>user\nBe brief.\n\n{told}\n\nWhat is this? [picture 0]</turn>\n\
                 <turn>model\n{CALL}</turn>\n<turn>user\n{RESULT}\n\nAnd now?</turn>\n\
                 <turn>model\n"
            ),
        ),
        (
            "alternating",
            ALTERNATING,
            format!(
                "<s>[SYSTEM]Be brief.\n\n{told}[/SYSTEM][INST]What is this? [picture 0][/INST]\
                 {CALL}</s>[INST]{RESULT}\n\nAnd now?[/INST]"
            ),
        ),
        (
            "dated",
            DATED,
            format!(
                "<|im_start|>system\nToday: 26 July 2024\nBe brief.\n\n{told}<|im_end|>\n\
                 <|im_start|>user\nWhat is this? [picture 0]<|im_end|>\n\
                 <|im_start|>assistant\n{CALL}<|im_end|>\n\
                 <|im_start|>user\n{RESULT}<|im_end|>\n\
                 <|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n"
            ),
        ),
        (
            "tools",
            TOOLS,
            format!(
                "<|im_start|>system\nBe brief.\n\n# Tools\n{TOOL}<|im_end|>\n\
                 <|im_start|>user\nWhat is this? [picture 0]<|im_end|>\n\
                 <|im_start|>assistant\n{CALL}<|im_end|>\n\
                 <|im_start|>user\n{RESULT}<|im_end|>\n\
                 <|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n"
            ),
        ),
    ];
    for (name, source, expected) in cases {
        assert_eq!(written(source, &agents()), expected, "{name}");
    }
}

#[test]
fn a_template_is_given_no_other_messages_than_it_needs() {
    let chat = |said: &[(&str, &str)]| {
        let messages = said.iter().map(|(role, content)| Message::new(role, *content));
        Conversation::from(messages.collect::<Vec<_>>())
    };
    // ChatML takes everything.
    let said = [("system", "S"), ("user", "A"), ("user", "B"), ("system", "T"), ("user", "C")];
    let plain = ChatTemplate::new(None, "", "").unwrap();
    let turns = said.map(|(role, text)| format!("<|im_start|>{role}\n{text}<|im_end|>\n"));
    let expected = format!("{}<|im_start|>assistant\n", turns.concat());
    assert_eq!(plain.render(&chat(&said)).unwrap(), expected);
    // What a system says stands before what it is about, and no system takes no turn.
    assert_eq!(
        template(NO_SYSTEM).render(&chat(&said)).unwrap(),
        "<s><turn>user\nS\n\nA\n\nB\n\nT\n\nC</turn>\n<turn>model\n"
    );
    let left_out = "{% for m in messages if m.role != 'system' %}[{{ m.content }}]{% endfor %}";
    assert_eq!(template(left_out).render(&chat(&said)).unwrap(), "[S\n\nA][B][T\n\nC]");
    let twice = [("user", "A"), ("assistant", "B"), ("assistant", "C"), ("user", "D")];
    assert_eq!(
        template(ALTERNATING).render(&chat(&twice)).unwrap(),
        "<s>[SYSTEM]Today is 2024-07-26.[/SYSTEM][INST]A[/INST]B\n\nC</s>[INST]D[/INST]"
    );
}

#[test]
fn a_template_that_loses_what_is_asked_is_refused_with_a_reason() {
    for (source, reason) in [
        ("<s>{{ messages | length }}", "it leaves out what a user says"),
        ("{{ raise_exception('No chats') }}", "it refuses a user's question: No chats"),
    ] {
        let question = Conversation::from(vec![Message::new("user", "Hi")]);
        let refused = PrepareError::Template { reason: reason.to_owned() };
        assert_eq!(template(source).render(&question), Err(refused));
    }
}

#[test]
fn a_template_that_wants_a_system_is_asked_with_one() {
    let source = "{% if messages[0].role != 'system' %}{{ raise_exception('No system') }}\
                  {% endif %}{% for m in messages %}[{{ m.content }}]{% endfor %}";
    let question = Message::new("user", "A");
    let led = vec![Message::new("system", "S"), question.clone()];
    assert_eq!(template(source).render(&Conversation::from(led)).unwrap(), "[S][A]");
    let refused = PrepareError::Template { reason: "No system".to_owned() };
    assert_eq!(template(source).render(&Conversation::from(vec![question])), Err(refused));
}

#[test]
fn marks_for_training_leave_the_white_space_as_it_was() {
    for (source, without) in [
        ("a {%- generation -%} b {% endgeneration +%}", "a {%- if true -%} b {% endif +%}"),
        ("{%generation%}{{ generation }}", "{%if true%}{{ generation }}"),
        ("{% if add_generation_prompt %} {% x", "{% if add_generation_prompt %} {% x"),
        ("{{ '{%' }}{% generation %}", "{{ '{%' }}{% if true %}"),
    ] {
        assert_eq!(without_training_marks(source), without);
    }
}
