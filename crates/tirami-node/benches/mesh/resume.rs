//! How long a reader waits when the node that answers is killed in the middle.

use std::time::Duration;

use crate::jobs_support::{Mesh, Stream, ask, script, words};
use crate::report::{Row, Table, median};

const ROUNDS: usize = 5;
const TOKENS: u32 = 130;
const PACE: Duration = Duration::from_millis(15);
const KILLED_AT: usize = 20;
const RESUMED_WITHIN_S: f64 = 5.0;

/// Row (g).
pub(crate) fn after_a_kill(table: &Table) {
    let mut pauses = Vec::new();
    for _ in 0..ROUNDS {
        let mut mesh = Mesh::of(&[script(TOKENS, PACE), script(TOKENS, PACE)]);
        let mut stream = Stream::open(mesh.user(), &ask(200, true));
        stream.until_words(KILLED_AT);
        mesh.kill_running();
        let answer = stream.rest();
        assert_eq!(answer.text, words(TOKENS as usize));
        pauses.push(answer.longest_pause.as_secs_f64());
    }
    let pause = median(&mut pauses);
    let worst = pauses.last().copied().unwrap_or(f64::NAN);
    table.push(Row {
        what: "(g) provider killed in the middle: until the next token comes".into(),
        measured: format!("{pause:.2} s, at worst {worst:.2} s"),
        limit: "silence after which a connection has ended: 3 s".into(),
        ratio: Some(pause / 3.0),
        target: Some(("≤ 5 s", worst <= RESUMED_WITHIN_S)),
    });
}
