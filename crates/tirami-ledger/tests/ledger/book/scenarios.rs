//! Plays every scenario in `scenarios/book`: each file is one test of one rule of the book.

use super::play::Play;
use crate::script;

/// Fewer files than this means that some were lost.
const SCENARIOS_MIN: usize = 60;

#[test]
fn every_scenario_comes_out_as_written() {
    script::play_all(("book", SCENARIOS_MIN), |_| {
        let mut play = Play::new();
        move |step| play.step(step)
    });
}
