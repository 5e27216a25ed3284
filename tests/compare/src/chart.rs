//! The durable writes as a bar chart: a group for each size, a bar for each peer, batches of 100.

use crate::contest::{Outcome, SIZES};
use crate::report::length;
use std::fmt::Write;

const HUNDREDS: usize = 1;
const BAR: usize = 16;
const GAP: usize = 44;
const HEIGHT: f64 = 260.0;
const TOP: f64 = 40.0;
const COLOURS: [&str; 11] = [
    "#999999", "#444444", "#d1495b", "#a11d33", "#4f86c6", "#67a9cf", "#8fb339", "#4b9b6e", "#c9a227",
    "#8d6a9f", "#b0a08a",
];

/// An SVG picture.
pub fn svg(outcomes: &[Outcome]) -> String {
    let peers = outcomes.len() / SIZES.len();
    let group = peers * BAR + GAP;
    let width = group * SIZES.len() + 190;
    let ratio = |outcome: &Outcome| {
        let append = outcomes.iter().find(|other| other.size == outcome.size && other.peer == "append");
        append.map_or(0.0, |append| {
            outcome.written[HUNDREDS].bytes_per_second / append.written[HUNDREDS].bytes_per_second
        })
    };
    let most = outcomes.iter().map(ratio).fold(1.0, f64::max);
    let scale = HEIGHT / most;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"16\" y=\"22\">Durable writes in batches of 100 blocks; plain append + fdatasync = 1</text>\n",
        TOP + HEIGHT + 50.0
    );
    for (number, size) in SIZES.into_iter().enumerate() {
        let left = 16 + number * group;
        for (place, outcome) in outcomes.iter().filter(|outcome| outcome.size == size).enumerate() {
            let (x, high) = (left + place * BAR, ratio(outcome) * scale);
            let _ = writeln!(
                text,
                "<rect x=\"{x}\" y=\"{:.1}\" width=\"{}\" height=\"{high:.1}\" fill=\"{}\"><title>{} {:.2}</title></rect>",
                TOP + HEIGHT - high,
                BAR - 2,
                COLOURS[place % COLOURS.len()],
                outcome.peer,
                ratio(outcome)
            );
        }
        let _ = writeln!(text, "<text x=\"{left}\" y=\"{:.0}\">{}</text>", TOP + HEIGHT + 20.0, length(size));
    }
    let line = TOP + HEIGHT - scale;
    let _ = writeln!(
        text,
        "<line x1=\"16\" x2=\"{}\" y1=\"{line:.1}\" y2=\"{line:.1}\" stroke=\"#000\" stroke-dasharray=\"4 3\"/>",
        group * SIZES.len()
    );
    for (place, outcome) in outcomes.iter().take(peers).enumerate() {
        let (x, y) = (group * SIZES.len() + 24, TOP as usize + place * 20);
        let colour = COLOURS[place % COLOURS.len()];
        let _ = writeln!(text, "<rect x=\"{x}\" y=\"{y}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>");
        let _ = writeln!(text, "<text x=\"{}\" y=\"{}\">{}</text>", x + 18, y + 11, outcome.peer);
    }
    text + "</svg>\n"
}
