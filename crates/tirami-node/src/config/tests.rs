//! Precedence, messages, and the promise that one table drives everything.

use std::path::Path;

use tirami_core::ModelShape;

use super::*;
use crate::mesh::MeshOptions;
use crate::models::Serves;

const HOME: &str = "/home/ada";

fn sources(file: Option<&Path>, env: &[(&str, &str)], flags: &[(Key, &str)]) -> Sources {
    Sources {
        home: Some(HOME.into()),
        file: file.map(Into::into),
        env: env.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect(),
        flags: flags.iter().map(|(key, text)| (*key, key.field().parse(text).unwrap())).collect(),
    }
}

fn with_file<T>(content: &str, check: impl FnOnce(&Path) -> T) -> T {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tirami.toml");
    std::fs::write(&path, content).unwrap();
    check(&path)
}

#[test]
fn the_table_has_one_row_per_key_in_order_and_its_defaults_parse() {
    for (index, field) in FIELDS.iter().enumerate() {
        assert_eq!(field.key as usize, index, "{}", field.name);
        assert!(field.parse(field.default).is_ok(), "{}", field.name);
        assert_eq!(field.env, format!("TIRAMI_{}", field.name.to_uppercase()));
        assert_eq!(field.flag, field.name.replace('_', "-"));
    }
}

#[test]
fn both_ends_of_every_range_arrive_unchanged() {
    for field in &FIELDS {
        let Kind::Number { min, max } = field.kind else {
            continue;
        };
        for end in [min, max] {
            let text = end.to_string();
            let resolved = resolve(&sources(None, &[(field.env, text.as_str())], &[])).unwrap();
            let config = format!("{:?}", resolved.config);
            assert!(config.contains(&format!("{}: {end}", field.name)), "{config}");
        }
        assert!(field.parse(&(max + 1).to_string()).is_err(), "{}", field.name);
    }
}

#[test]
fn flags_win_over_the_environment_and_the_environment_over_the_file() {
    with_file("port = 1\nthreads = 1\nsequences = 1\n", |path| {
        let env = [("TIRAMI_PORT", "2"), ("TIRAMI_THREADS", "2")];
        let resolved = resolve(&sources(Some(path), &env, &[(Key::Port, "3")])).unwrap();
        let config = &resolved.config;
        assert_eq!((config.port, config.threads, config.sequences), (3, 2, 1));
        assert_eq!(config.gpu_layers, Config::defaults(Path::new(HOME)).gpu_layers);
        let origins: Vec<String> =
            resolved.rows().map(|(_, _, origin)| origin.to_string()).collect();
        assert_eq!(origins[Key::Port as usize], "flag --port");
        assert_eq!(origins[Key::Threads as usize], "env TIRAMI_THREADS");
        assert_eq!(origins[Key::Sequences as usize], format!("{}:3", path.display()));
        assert_eq!(origins[Key::Bind as usize], "default");
    });
}

#[test]
fn every_refusal_names_place_key_and_what_is_allowed() {
    let cases = [
        ("prot = 3000", ":1: unknown key `prot`; did you mean `port`?"),
        ("\n\nzzz = 1", ":3: unknown key `zzz`; the keys are data_dir, models_dir"),
        ("[port]\nx = 1", ":1: port must be a whole number from 0 to 65535, not"),
        ("port = \"3000\"", ":1: port must be a whole number from 0 to 65535, not \"3000\""),
        ("# a\nport = -1", ":2: port must be a whole number from 0 to 65535, not -1"),
        ("port = 65536", ":1: port must be a whole number from 0 to 65535, not 65536"),
        ("bind = \"here\"", ":1: bind must be an IP address such as 127.0.0.1 or ::1, not"),
        ("model = \"\"", ":1: model must be a model or a list of up to 64 models, not \"\""),
        ("mesh_public = \"true\"", ":1: mesh_public must be true or false, not \"true\""),
        ("mesh_dns_origin = \"a b\"", ":1: mesh_dns_origin must be DOMAIN, DOMAIN@IP:PORT, or"),
        ("bootstrap_peers = [1]", ":1: bootstrap_peers must be a list of peers: PUBKEY, PUBKEY@"),
        ("trusted_peers = [\"me\"]", ":1: trusted_peers must be a list of parties, each 64"),
        ("cors_origins = [\"https://a.example/\"]", ":1: cors_origins must be a list of origins"),
        ("cors_origins = [\"*\"]", ":1: cors_origins must be a list of origins such as"),
        ("port = 1\nport = 2", ":2: duplicate key"),
        ("port = ", ":1: "),
    ];
    for (content, expected) in cases {
        with_file(content, |path| {
            let error = resolve(&sources(Some(path), &[], &[])).unwrap_err().to_string();
            let expected = format!("{}{expected}", path.display());
            assert!(error.starts_with(&expected), "{content:?}\n {error}\n {expected}");
        });
    }
    let error = resolve(&sources(None, &[("TIRAMI_PORT", "x")], &[])).unwrap_err().to_string();
    assert_eq!(error, "TIRAMI_PORT: port must be a whole number from 0 to 65535, not \"x\"");
    let error = resolve(&sources(Some(Path::new("/nowhere.toml")), &[], &[])).unwrap_err();
    assert!(error.to_string().starts_with("cannot read the config file /nowhere.toml: "));
}

#[test]
fn the_default_file_parses_and_equals_the_defaults_as_it_is_and_with_every_line_active() {
    let page = default_file();
    let active: String = page
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    // A blank line stands before each setting, and one before the tables.
    let shown = active.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(shown, FIELDS.len() * 2 + 1);
    for content in [page, active] {
        with_file(&content, |path| {
            let resolved = resolve(&sources(Some(path), &[], &[])).unwrap();
            assert_eq!(resolved.config, Config::defaults(Path::new(HOME)));
        });
    }
}

#[test]
fn directories_know_the_home_directory_and_where_the_file_is() {
    with_file("data_dir = \"store\"\nmodels_dir = \"~/m\"\n", |path| {
        let config = resolve(&sources(Some(path), &[], &[])).unwrap().config;
        assert_eq!(config.data_dir, path.parent().unwrap().join("store"));
        assert_eq!(config.models_dir, Path::new("/home/ada/m"));
    });
    let config = Config::defaults(Path::new(HOME));
    assert_eq!(config.data_dir, Path::new("/home/ada/.tirami"));
}

#[test]
fn lists_are_arrays_in_the_file_and_words_elsewhere() {
    let peers = [format!("{}@192.0.2.1:3001", "a5".repeat(32)), "b6".repeat(32)];
    let file = format!("bootstrap_peers = [{:?}, {:?}]\nmesh_public = true\n", peers[0], peers[1]);
    let config = with_file(&file, |path| resolve(&sources(Some(path), &[], &[])).unwrap().config);
    let read = |config: &Config| -> Vec<String> {
        config.bootstrap_peers.iter().map(ToString::to_string).collect()
    };
    assert_eq!((read(&config), config.mesh_public), (peers.to_vec(), true));
    let env = peers.join(", ");
    let env = [("TIRAMI_BOOTSTRAP_PEERS", env.as_str()), ("TIRAMI_MESH_ENABLED", "no")];
    let config = resolve(&sources(None, &env, &[])).unwrap().config;
    assert_eq!((read(&config), config.mesh_enabled), (peers.to_vec(), false));
}

#[test]
fn a_server_elsewhere_is_a_table_and_every_mistake_in_one_is_told_with_its_line() {
    let whole = "port = 1\n[[engine]]\nkind = \"openai\"\nurl = \"http://10.0.0.2:8000/v1\"\n\
                 api_key_env = \"KEY\"\njobs_max = 3\nfirst_text_seconds = 9\nmodels = [{ name = \"m\", upstream = \"M\", \
                 gguf = \"~/m.gguf\", context_tokens = 512 }]\n";
    let read = |file: &str| with_file(file, |path| resolve(&sources(Some(path), &[], &[])));
    let model = EngineModel {
        name: "m".to_owned(),
        upstream: "M".to_owned(),
        known_by: KnownBy::Gguf(Path::new(HOME).join("m.gguf")),
        context_tokens: 512,
        serves: Serves { chat: true, completions: true, embeddings: None },
    };
    let mut engine = EngineSetting {
        url: "http://10.0.0.2:8000/v1".to_owned(),
        api_key_env: Some("KEY".to_owned()),
        jobs_max: 3,
        first_text_seconds: 9,
        models: vec![model],
    };
    assert_eq!(read(whole).unwrap().config.engines, [engine.clone()]);
    engine.models[0].context_tokens = 0;
    (engine.jobs_max, engine.first_text_seconds, engine.api_key_env) = (16, 300, None);
    let least = whole.replace("jobs_max = 3\nfirst_text_seconds = 9\n", "");
    let least = least.replace(", context_tokens = 512", "");
    let least = least.replace("api_key_env = \"KEY\"\n", "");
    assert_eq!(read(&least).unwrap().config.engines, [engine.clone()]);
    let vectors = "context_tokens = 512, serves = [\"embeddings\"]";
    let vectors = whole.replace("context_tokens = 512", vectors);
    let read_models = &read(&vectors).unwrap().config.engines[0].models;
    let serves = Serves { chat: false, completions: false, embeddings: Some(0) };
    assert_eq!(read_models[0].serves, serves);
    // Without its file, by its shape.
    let shape = "shape = { parameters_active = 70_000_000_000, layers = 80 }";
    let shaped = whole.replace("gguf = \"~/m.gguf\"", shape);
    let context_max = 512;
    let told = ModelShape {
        parameters_active: 70_000_000_000,
        layers: 80,
        attention_width: 0,
        context_max,
    };
    let read_models = &read(&shaped).unwrap().config.engines[0].models;
    assert_eq!(read_models[0].known_by, KnownBy::Shape(told));
    assert_eq!(read_models[0].context_tokens, 512);
    for (said, instead, found) in [
        (", context_tokens = 512", "", "no `context_tokens`"),
        ("context_tokens = 512", "context_tokens = 0", "context_tokens that is no whole number"),
        ("parameters_active = 70_000_000_000, ", "", "without `parameters_active`"),
        ("70_000_000_000", "0", "parameters_active that is no whole number"),
        ("70_000_000_000", "1125899906842625", "parameters_active that is no whole number"),
        ("layers = 80", "layers = 65537", "layers that is no whole number"),
        ("layers = 80", "heads = 80", "the key `heads`"),
        (shape, "shape = 5", "a shape that is no table"),
        ("context_tokens", "serves = [\"embeddings\"], context_tokens", "no `embedding_width`"),
        ("shape =", "gguf = \"~/m.gguf\", shape =", "both `gguf` and `shape`"),
    ] {
        let error = read(&shaped.replace(said, instead)).unwrap_err().to_string();
        assert!(error.contains("tirami.toml:8") && error.contains(found), "{instead}: {error}");
    }
    for (said, instead, line, found) in [
        ("\"openai\"", "\"magic\"", 2, "kind = \"magic\""),
        ("kind = \"openai\"\n", "", 2, "a table without `kind`"),
        ("http:", "file:", 2, "which begins with neither http:// nor https://"),
        ("jobs_max = 3", "jobs_max = 0", 6, "a jobs_max that is no whole number"),
        ("jobs_max = 3", "jobs_max = \"3\"", 6, "a jobs_max that is no whole number"),
        ("jobs_max = 3", "key = \"secret\"", 6, "the key `key`"),
        ("text_seconds = 9", "text_seconds = 0", 7, "first_text_seconds that is no whole number"),
        ("api_key_env = \"KEY\"", "api_key_env = 5", 2, "api_key_env that is no text"),
        ("upstream = \"M\", ", "", 8, "a model without `upstream`"),
        ("name = \"m\"", "name = \"\"", 8, "a model without `name`"),
        ("context_tokens", "context", 8, "the key `context`"),
        ("context_tokens", "serves = [], context_tokens", 8, "serves that is no list"),
        ("context_tokens", "serves = \"chat\", context_tokens", 8, "serves that is no list"),
        ("context_tokens", "serves = [\"chats\"], context_tokens", 8, "has \"chats\" in serves"),
        ("context_tokens", "serves = [5], context_tokens", 8, "has a value in serves"),
        ("context_tokens", "embedding_width = 8, context_tokens", 8, "serves none"),
        ("gguf = \"~/m.gguf\", ", "", 8, "a model without `gguf` or `shape`"),
        ("[[engine]]", "[engine]", 2, "a value"),
    ] {
        let error = read(&whole.replace(said, instead)).unwrap_err().to_string();
        assert!(error.contains(&format!("tirami.toml:{line}")), "{instead}: {error}");
        assert!(error.contains(found) && !error.contains("secret"), "{instead}: {error}");
    }
}

/// Lines of a file, what of the mesh they set, and how it reads without and with them.
type MeshRow<'a> = (&'a str, fn(&MeshOptions) -> String, &'a str, &'a str);

#[test]
fn every_setting_of_the_mesh_arrives_where_the_mesh_is_told_of_it() {
    let bind = |options: &MeshOptions| format!("{:?}", options.bind);
    let lan = |options: &MeshOptions| options.finding.lan.to_string();
    let keep = |options: &MeshOptions| format!("{:?}", options.keep);
    let bootstrap = |options: &MeshOptions| {
        options.bootstrap.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    let faucet = |options: &MeshOptions| {
        let of = |open: Faucet| {
            let FaucetBounds { day_max, source_max } = open.bounds;
            [open.amount.micro(), open.work_bits.into(), day_max.micro(), source_max.into()]
        };
        format!("{:?}", options.faucet.map(of))
    };
    let peer = format!("{}@192.0.2.1:3001", "a5".repeat(32));
    let peers = format!("bootstrap_peers = [{peer:?}]");
    let open = "faucet_day_trm = 9\nfaucet_trm = 3\nfaucet_work_bits = 5\nfaucet_source_day = 7";
    let rows: [MeshRow<'_>; 14] = [
        ("mesh_enabled = false", bind, "Some(0.0.0.0:3001)", "None"),
        ("mesh_bind = \"192.0.2.9\"", bind, "Some(0.0.0.0:3001)", "Some(192.0.2.9:3001)"),
        ("mesh_port = 7", bind, "Some(0.0.0.0:3001)", "Some(0.0.0.0:7)"),
        (&peers, bootstrap, "", &peer),
        ("mesh_public = true", |options| options.public.to_string(), "false", "true"),
        (open, faucet, "None", "Some([3000000, 5, 9000000, 7])"),
        ("faucet_trm = 3", faucet, "None", "None"),
        (
            "mesh_relay_urls = [\"https://relay.example\"]",
            |options| options.finding.relay_urls.join(" "),
            "",
            "https://relay.example",
        ),
        ("mesh_lan = false", lan, "true", "false"),
        ("mesh_bind = \"127.0.0.1\"", lan, "true", "false"),
        (
            "mesh_pkarr_url = \"https://pkarr.example\"",
            |options| options.finding.pkarr_url.clone().unwrap_or_default(),
            "",
            "https://pkarr.example",
        ),
        (
            "mesh_dns_origin = \"nodes.example@192.0.2.53:53\"",
            |options| options.finding.dns.as_ref().map(ToString::to_string).unwrap_or_default(),
            "",
            "nodes.example@192.0.2.53:53",
        ),
        ("keep_chains = \"own\"", keep, "None", "Some(Own)"),
        ("keep_chains = \"all\"", keep, "None", "Some(All)"),
    ];
    let of = |lines: &str| {
        let resolved = with_file(lines, |path| resolve(&sources(Some(path), &[], &[])).unwrap());
        MeshOptions::of(&resolved.config)
    };
    let nothing = of("");
    for (lines, read, without, with) in rows {
        assert_eq!(read(&nothing), without, "without {lines}");
        assert_eq!(read(&of(lines)), with, "{lines}");
    }
}

#[test]
fn a_mistyped_variable_is_named_with_the_one_that_was_meant() {
    let env = [("TIRAMI_PROT", "1"), ("TIRAMI_TEST_MODEL", "x"), ("TIRAMI_URL", "y")];
    let resolved = resolve(&sources(None, &env, &[])).unwrap();
    assert_eq!(resolved.unknown_env, [("TIRAMI_PROT".to_owned(), Some("TIRAMI_PORT"))]);
    assert_eq!(resolved.hub, None);
}

#[test]
fn a_mirror_of_the_hub_is_named_by_the_hubs_own_variable() {
    for (value, hub) in [("", None), ("http://127.0.0.1:1", Some("http://127.0.0.1:1"))] {
        let resolved = resolve(&sources(None, &[("HF_ENDPOINT", value)], &[])).unwrap();
        assert_eq!(resolved.hub.as_deref(), hub);
    }
}

#[test]
fn the_reference_pages_name_every_setting() {
    for field in &FIELDS {
        assert!(config_markdown().contains(&format!("## {}\n", field.name)));
        assert!(env_markdown().contains(&format!("| `{}` |", field.env)));
    }
}
