//! What the command does without a node: settings, exit codes, models, completions, pages.

mod common;

use common::{run, tirami};
use tempfile::tempdir;

#[test]
fn settings_come_from_file_environment_and_flags_in_this_precedence() {
    let home = tempdir().unwrap();
    let file = home.path().join("tirami.toml");
    std::fs::write(&file, "port = 1\nthreads = 1\n\nsequences = 1\n").unwrap();
    let shown = common::Ran::of(
        tirami(home.path())
            .env("TIRAMI_PORT", "2")
            .env("TIRAMI_THREADS", "2")
            .env("TIRAMI_CONFIG", &file)
            .args(["config", "show", "--json", "--port", "3"])
            .output()
            .unwrap(),
    );
    let settings = &shown.succeeds().json()["settings"];
    for (name, value, from) in [
        ("port", 3, "flag --port".to_owned()),
        ("threads", 2, "env TIRAMI_THREADS".to_owned()),
        ("sequences", 1, format!("{}:4", file.display())),
        ("body_max_bytes", 4_194_304, "default".to_owned()),
    ] {
        assert_eq!(settings[name]["value"], value, "{name}");
        assert_eq!(settings[name]["from"], from.as_str(), "{name}");
    }
    let home_dir = settings["data_dir"]["value"].as_str().unwrap();
    assert_eq!(home_dir, home.path().join(".tirami").to_str().unwrap());
}

#[test]
fn a_written_config_file_is_read_and_says_the_defaults() {
    let home = tempdir().unwrap();
    let before = run(home.path(), &["config", "show", "--json"]).json()["settings"].clone();
    run(home.path(), &["config", "init"]).succeeds();
    assert!(home.path().join(".tirami/config.toml").is_file());
    let after = run(home.path(), &["config", "show", "--json"]).json()["settings"].clone();
    assert_eq!(before, after);
    run(home.path(), &["config", "init"]).fails(3, "exists; --force replaces it");
    run(home.path(), &["config", "init", "--force"]).succeeds();
}

#[test]
fn every_wrong_setting_ends_with_3_and_a_sentence_that_names_the_place() {
    let home = tempdir().unwrap();
    let file = home.path().join("tirami.toml");
    for (content, sentence) in [
        ("# ports\nprot = 3000\n", "tirami.toml:2: unknown key `prot`; did you mean `port`?"),
        ("port = 70000\n", "tirami.toml:1: port must be a whole number from 0 to 65535, not 70000"),
        ("bind = 1\n", "tirami.toml:1: bind must be an IP address such as 127.0.0.1 or ::1, not 1"),
        ("port == 1\n", "tirami.toml:1: "),
    ] {
        std::fs::write(&file, content).unwrap();
        let config = file.to_str().unwrap();
        for command in [&["config", "show"][..], &["start"], &["status"], &["doctor"]] {
            let args: Vec<&str> = command.iter().copied().chain(["--config", config]).collect();
            run(home.path(), &args).fails(3, sentence);
        }
    }
    run(home.path(), &["status", "--config", "/nowhere.toml"]).fails(3, "cannot read the config");
    let wrong = tirami(home.path()).env("TIRAMI_PORT", "x").args(["status"]).output().unwrap();
    common::Ran::of(wrong).fails(3, "TIRAMI_PORT: port must be a whole number from 0 to 65535");
    run(home.path(), &["start", "--log", "no=such=level"]).fails(3, "log: ");
    run(home.path(), &["status", "--url", "ftp://here"]).fails(3, "is not an address of a node");
}

#[test]
fn a_mistyped_variable_is_told() {
    let home = tempdir().unwrap();
    let output = tirami(home.path()).env("TIRAMI_PROT", "1").args(["config", "show"]).output();
    let ran = common::Ran::of(output.unwrap());
    assert_eq!(ran.code, 0);
    assert!(ran.stderr.contains("TIRAMI_PROT means nothing; did you mean TIRAMI_PORT?"));
    // By every command, once, and as JSON when JSON was asked for.
    let output = tirami(home.path()).env("TIRAMI_DATADIR", "x").args(["models", "--json"]).output();
    let ran = common::Ran::of(output.unwrap());
    let warning: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
    let text = "the variable TIRAMI_DATADIR means nothing; did you mean TIRAMI_DATA_DIR?";
    assert_eq!(warning["warning"], text);
    assert_eq!(ran.json()["models"].as_array().map(Vec::len), Some(7));
}

#[test]
fn exit_codes_tell_what_was_wrong() {
    let home = tempdir().unwrap();
    let text = home.path().join("not-a-model.gguf");
    std::fs::write(&text, "hello").unwrap();
    let text = text.to_str().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    // Nobody listens on a port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let free = format!("http://{free}");
    let mesh = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mesh_port = mesh.local_addr().unwrap().port().to_string();
    let bare = ["start", "--no-model", "--port", "0"];
    let chosen = [&bare[..], &["--mesh-port", &mesh_port]].concat();
    let no_folder = [&bare[..], &["--data-dir", "/etc/passwd"]].concat();
    let nowhere = [&bare[..], &["--data-dir", "/proc/x"]].concat();
    let cases: [(&[&str], i32, &str); 15] = [
        (&["--nonsense"], 2, "--nonsense"),
        (&["start", "--port", "70000"], 2, "it must be a whole number from 0 to 65535"),
        (&["trades", "list", "--limit", "0"], 2, "--limit"),
        (&["approve", "all"], 2, "is no approval"),
        (&["chat", "--json"], 2, "the prompt is empty"),
        (&["policy", "set", "node"], 2, "name a limit to set"),
        (&["keys", "rotate", "0", "--grace", "1w"], 2, "such as 12h"),
        (&["start", "--model", "no-such-model", "--port", "0"], 5, "no-such-model"),
        (&["start", "--model", text, "--port", "0"], 5, "not-a-model.gguf"),
        (&["start", "--port", &port], 3, "choose another port with --port"),
        (&chosen, 3, "choose another port with --mesh-port"),
        (&no_folder, 4, "/etc/passwd is a file and no folder; choose another one"),
        (&nowhere, 4, "choose another one with --data-dir"),
        (&["status", "--url", &free], 6, "no node answers"),
        (&["chat", "hello", "--url", &free], 6, "start one with `tirami start`"),
    ];
    for (args, code, sentence) in cases {
        run(home.path(), args).fails(code, sentence);
    }
}

#[test]
fn with_json_an_error_is_json_on_stderr_and_stdout_is_empty() {
    let home = tempdir().unwrap();
    let ran = run(home.path(), &["status", "--json", "--url", "http://127.0.0.1:1"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (6, ""));
    let error: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!(error["error"]["exit_code"], 6);
}

#[test]
fn with_json_a_wrong_command_line_is_json_too_and_so_is_everything_else() {
    let home = tempdir().unwrap();
    let cases: [(&[&str], &str); 8] = [
        (&["--nonsense"], "unexpected argument '--nonsense' found; see `tirami --help`"),
        (&["identiti"], "a similar subcommand exists: 'identity'"),
        (&["kill"], "<STATE>"),
        (&["kill", "perhaps"], "[possible values: on, off]; see `tirami kill --help`"),
        (&["start", "--port", "70000"], "it must be a whole number from 0 to 65535"),
        (&["chat", "--temperature", "-1", "hello"], "it must be a number from 0 to 2"),
        (&["chat", "--top-p", "1.5", "hello"], "it must be a number from 0 to 1"),
        (&["config"], "see `tirami config --help`"),
    ];
    for (args, sentence) in cases {
        for json in [&[&["--json"], args].concat()[..], &[args, &["--json"]].concat()] {
            let ran = run(home.path(), json);
            assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{args:?} {ran:?}");
            let error: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
            assert_eq!(error["error"]["exit_code"], 2, "{args:?}");
            let message = error["error"]["message"].as_str().unwrap();
            assert!(message.contains(sentence) && !message.contains('\n'), "{message}");
        }
        let human = run(home.path(), args);
        assert_eq!(human.code, 2, "{human:?}");
        if args != ["config"] {
            assert_eq!(human.stderr.lines().count(), 1, "{human:?}");
            assert!(human.stderr.starts_with("error: ") && human.stderr.contains(sentence));
        }
    }
    let script = run(home.path(), &["completions", "bash", "--json"]).succeeds().json();
    assert_eq!(script["shell"], "bash");
    assert!(script["script"].as_str().unwrap().contains("identity"));
    assert!(run(home.path(), &["--version", "--json"]).succeeds().json()["version"].is_string());
    let help = run(home.path(), &["keys", "--help", "--json"]).succeeds().json();
    assert!(help["help"].as_str().unwrap().contains("rotate"));
    // After `--` it is a word of the prompt and no flag.
    let ran = run(home.path(), &["chat", "--temperature", "x", "--", "--json"]);
    ran.fails(2, "error: invalid value 'x'");
}

#[test]
fn models_are_listed_shown_and_removed_in_the_given_directory() {
    let home = tempdir().unwrap();
    let dir = home.path().join("models");
    std::fs::create_dir(&dir).unwrap();
    let at = ["--models-dir", dir.to_str().unwrap()];
    let list = run(home.path(), &["models", "list", "--json", at[0], at[1]]).succeeds().json();
    let models = list["models"].as_array().unwrap();
    assert_eq!(models.len(), 7);
    assert!(models.iter().all(|model| model["downloaded"] == false));

    let source = common::model();
    let target = dir.join(source.file_name().unwrap());
    let linked = std::fs::hard_link(&source, &target);
    linked.or_else(|_| std::fs::copy(&source, &target).map(drop)).unwrap();
    let list = run(home.path(), &["models", "list", "--json", at[0], at[1]]).json();
    let models = list["models"].as_array().unwrap();
    let ours = models.iter().find(|model| model["name"] == "smollm2:135m").unwrap();
    assert_eq!(ours["downloaded"], true);
    let shown = run(home.path(), &["models", "show", "smollm2:135m", "--json", at[0], at[1]]);
    assert_eq!(shown.succeeds().json()["details"]["architecture"], "llama");
    assert_eq!(shown.json()["sampling"], serde_json::json!({"temperature": 0.2, "top_p": 0.9}));
    let human = run(home.path(), &["models", "show", "qwen2.5:7b", at[0], at[1]]);
    assert!(human.succeeds().stdout.contains("temperature 0.7, top-p 0.8"), "{human:?}");
    run(home.path(), &["models", "show", "nonsense", at[0], at[1]]).fails(5, "nonsense");
    run(home.path(), &["models", "rm", "smollm2:135m", at[0], at[1]]).succeeds();
    assert!(!target.exists() && source.exists());
}

#[test]
fn completions_know_the_commands() {
    let home = tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(home.path(), &["completions", shell]).succeeds().stdout.clone();
        assert!(script.contains("identity") && script.contains("approve"), "{shell}");
    }
}

#[test]
fn the_reference_pages_have_every_command_setting_and_exit_code() {
    let home = tempdir().unwrap();
    let cli = run(home.path(), &["__reference", "cli"]).succeeds().stdout.clone();
    for part in ["`tirami start`", "`tirami keys rotate`", "--price-ppm <N>", "| 130 |", "--json"] {
        assert!(cli.contains(part), "{part}");
    }
    assert!(!cli.contains("__reference"));
    assert!(!cli.contains(home.path().to_str().unwrap()));
    let config = run(home.path(), &["__reference", "config"]).succeeds().stdout.clone();
    assert!(config.contains("## personal_agent_answers"));
    let env = run(home.path(), &["__reference", "env"]).succeeds().stdout.clone();
    assert!(env.contains("| `TIRAMI_API_KEY` |"));
}

#[test]
fn help_is_given_for_every_command_and_names_the_exit_codes() {
    let home = tempdir().unwrap();
    let help = run(home.path(), &["--help"]).succeeds().stdout.clone();
    assert!(help.contains("Exit codes:") && !help.contains("__reference"));
    let short = run(home.path(), &["start", "-h"]).succeeds().stdout.clone();
    assert!(short.contains("\nFlags of every command:\n") && short.contains("\nSettings, also"));
    assert!(short.lines().count() < 52 && !short.contains("--mesh-port"));
    let long = run(home.path(), &["start", "--help"]).succeeds().stdout.clone();
    assert!(long.contains("--mesh-port") && !short.contains("[env: TIRAMI_URL=]"), "{short}");
    for command in
        ["start", "chat", "estimate", "models", "trades", "agents", "keys", "kill", "policy"]
    {
        assert!(help.contains(&format!("\n  {command} ")), "{command}");
        run(home.path(), &[command, "--help"]).succeeds();
    }
}
