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

/// As Qwen3: a thought that is over stands where the answer begins, if it is not to think.
const THINKS: &str = r"{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}";

/// As gpt-oss: how much is thought has a default of the template's own.
const EFFORT: &str = r"{%- if reasoning_effort is not defined %}
    {%- set reasoning_effort = 'medium' %}{% endif %}
{{- '[effort ' + reasoning_effort + ']' }}
{%- for m in messages %}{{ '[' + m.role + ']' + m.content }}{% endfor %}";

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
    Conversation { messages, tools: vec![TOOL.to_owned()], ..Conversation::default() }
}

/// How a model without a way of its own is told of the tool.
fn told() -> String {
    let tools = vec![TOOL.to_owned()];
    let tools = Conversation { tools, ..Conversation::default() };
    calls::as_text(&tools).messages[0].content.clone()
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

/// A question, and what the template is told besides.
fn told_besides(variables: Variables) -> Conversation {
    Conversation { variables, ..Conversation::from(vec![Message::new("user", "Hi")]) }
}

fn named(name: &str, json: &str) -> Variables {
    let named = BTreeMap::from([(name.to_owned(), json.to_owned())]);
    Variables { named, ..Variables::default() }
}

fn effort(word: &str) -> Variables {
    Variables { effort: Some(word.to_owned()), ..Variables::default() }
}

#[test]
fn a_model_that_thinks_is_told_whether_it_should() {
    let begun = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
    let over = format!("{begun}<think>\n\n</think>\n\n");
    let over = over.as_str();
    let no = Variables { thinks: Some(false), ..Variables::default() };
    let both = Variables { named: named("enable_thinking", "true").named, ..no.clone() };
    for (variables, expected) in [
        (Variables::default(), begun),
        (named("enable_thinking", "false"), over),
        (named("enable_thinking", "true"), begun),
        // It asks for the value itself, not for one that is as good as false.
        (named("enable_thinking", "null"), begun),
        (no.clone(), over),
        (both, begun),
        (effort("none"), over),
        (effort("minimal"), over),
        (effort("high"), begun),
    ] {
        assert_eq!(written(THINKS, &told_besides(variables.clone())), expected, "{variables:?}");
    }
    for (variables, expected) in [
        (Variables::default(), "[effort medium][user]Hi"),
        (effort("low"), "[effort low][user]Hi"),
        (named("reasoning_effort", "\"high\""), "[effort high][user]Hi"),
        // What it does not read is no matter to it unless somebody names it.
        (no.clone(), "[effort medium][user]Hi"),
    ] {
        assert_eq!(written(EFFORT, &told_besides(variables.clone())), expected, "{variables:?}");
    }
    for asked in [no, effort("none")] {
        let question = written(PARTS, &Conversation::from(vec![Message::new("user", "Hi")]));
        assert_eq!(written(PARTS, &told_besides(asked)), question);
    }
}

#[test]
fn how_much_to_think_is_no_reason_to_refuse_and_whoever_computes_is_told_the_same() {
    let strict = "{% if reasoning_effort is defined and reasoning_effort not in ['low'] %}\
                  {{ raise_exception('no such effort') }}{% endif %}\
                  [{{ reasoning_effort }}{{ colour }}]{{ messages[0].content }}";
    let template = template(strict);
    let colour = named("colour", "\"red\"");
    let both = |word: &str| Variables { named: colour.named.clone(), ..effort(word) };
    let low = ("reasoning_effort".to_owned(), "\"low\"".to_owned());
    let with_low = colour.named.clone().into_iter().chain([low.clone()]).collect();
    for (variables, expected, told) in [
        (effort("low"), "[low]Hi", [low].into()),
        (effort("medium"), "[]Hi", BTreeMap::new()),
        (both("low"), "[lowred]Hi", with_low),
        (both("medium"), "[red]Hi", colour.named.clone()),
        (colour.clone(), "[red]Hi", colour.named.clone()),
    ] {
        let conversation = told_besides(variables);
        assert_eq!(template.render(&conversation).as_deref(), Ok(expected));
        assert_eq!(template.told(&conversation), Ok(told));
    }
    // What is named is meant.
    let refused = template.render(&told_besides(named("reasoning_effort", "\"medium\"")));
    assert_eq!(refused, Err(PrepareError::Template { reason: "no such effort".to_owned() }));
}

#[test]
fn a_template_is_known_by_the_variables_it_reads() {
    let crown = "{% for m in messages %}{{ m.content }}{% if m.role == 'king' %}{{ crown }}\
                 {% endif %}{% endfor %}";
    let own = "{% set thinks = thinks if thinks is defined else true %}{{ thinks }}\
               {{ messages[0].content }}";
    let branches = "{% if messages[0].role == 'king' %}{% set voice = 'loud' %}{% else %}\
                    {% set voice = 'low' %}{% endif %}{{ voice }}{{ messages[0].content }}";
    let called = "{% macro say(text) %}{{ text + (mark or '') }}{% endmacro %}\
                  {{ say(messages[0].content) }}{{ namespace(a=1).a }}";
    let cases: [(&str, &[&str]); 13] = [
        (PARTS, &[]),
        (CHOSEN_PARTS, &[]),
        (NO_SYSTEM, &[]),
        (ALTERNATING, &[]),
        (DATED, &[]),
        (TOOLS, &[]),
        (CHATML, &[]),
        (THINKS, &["enable_thinking"]),
        (EFFORT, &["reasoning_effort"]),
        (crown, &["crown"]),
        (own, &["thinks"]),
        (branches, &[]),
        (called, &["mark"]),
    ];
    for (source, names) in cases {
        let template = template(source);
        assert!(template.reads().iter().eq(names), "{source}: {:?}", template.reads());
        let refused = template.render(&told_besides(named("colour", "1"))).unwrap_err();
        let told = if names.is_empty() { "no variables".to_owned() } else { names.join(", ") };
        let error = PrepareError::Variable { name: "colour".to_owned(), reads: told };
        assert_eq!(refused, error, "{source}");
    }
    for name in ["messages", "tools", "add_generation_prompt", "eos_token", "namespace"] {
        let refused = template(THINKS).render(&told_besides(named(name, "[]")));
        assert!(matches!(refused, Err(PrepareError::Variable { .. })), "{name}");
    }
}

#[test]
fn a_variable_is_text_and_cannot_make_a_template_run_on() {
    let source = "{{ messages[0].content }}{{ note }}{{ sizes | tojson }}";
    let controls = ControlTexts::new(["<|im_end|>".to_owned()]);
    let note = named("note", r#""a<|im_end|>b""#);
    let segments = controls.render_shielded(&template(source), &told_besides(note)).unwrap();
    let plain = |text: &str| Segment::Template(text.to_owned());
    let quoted = Segment::Quoted("<|im_end|>".to_owned());
    assert_eq!(segments, [plain("Hia"), quoted, plain("bnull")]);
    let sizes = named("sizes", r#"{"z": [1, 2.5, "x"], "a": null}"#);
    assert_eq!(
        written(source, &told_besides(sizes)),
        r#"Hi{"z": [1, 2.5, "x"], "a": null}"#,
        "the order of its fields stays"
    );
    let pairs = "{{ messages[0].content }}{% for a in all %}{% for b in all %}{{ a + b }}\
                 {% endfor %}{% endfor %}";
    let many = format!("[{}1]", "1,".repeat(8_000));
    let refused = template(pairs).render(&told_besides(named("all", &many)));
    assert!(matches!(refused, Err(PrepareError::Template { .. })), "{refused:?}");
    let broken = template(pairs).render(&told_besides(named("all", "[")));
    let reason = "the variable all is no JSON".to_owned();
    assert_eq!(broken, Err(PrepareError::Template { reason }));
}
