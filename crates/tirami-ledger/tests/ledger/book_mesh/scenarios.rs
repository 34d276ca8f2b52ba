//! Plays every scenario in `scenarios/book_mesh`: each file is one test of one rule of jobs between
//! nodes, with a consumer, two providers and a witness.

use super::play::Play;
use crate::script;

/// Fewer files than this means that some were lost.
const SCENARIOS_MIN: usize = 30;

#[test]
fn every_scenario_comes_out_as_written() {
    script::play_all(("book_mesh", SCENARIOS_MIN), |first| {
        let fee_ppm = if first.verb == "fee" { first.args[0].parse().unwrap() } else { 0 };
        let mut play = Play::new(fee_ppm);
        move |step| play.step(step)
    });
}
