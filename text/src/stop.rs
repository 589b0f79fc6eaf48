//! Stop strings in text that arrives in pieces.
//!
//! The result is that of a search in the whole text, however the text was cut: the stop that begins first wins, and of
//! those that begin at the same place the one listed first. So text is held back while it may still become a stop, and
//! even a stop that is complete is held back while one with precedence may still be completed:
//!
//! ```text
//! stops "abcd", "bc"     text so far "xabc"     leaves: "x"     held: "abc"     next "d": "abcd" wins; next "e": "bc" wins
//! ```

/// What one piece of text led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopStep {
    /// Text that may leave.
    pub emit: String,
    /// Index of the stop string that was found; nothing leaves after that.
    pub matched: Option<usize>,
}

/// Looks for stop strings in the text of one completion.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    include_stop: bool,
    /// Text that may be the beginning of a stop: shorter than the longest one between calls.
    held: String,
    /// No stop ends within so many bytes of `held`, see [`push_exempt`](Self::push_exempt).
    exempt: usize,
    matched: Option<usize>,
}

/// What begins at one place of the held text.
enum Begins {
    Nothing,
    /// This stop, and none with precedence.
    Stop(usize),
    /// Perhaps a stop: more text decides.
    Undecided,
}

impl StopStrings {
    /// Starts a completion. An empty stop string never matches.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, ..Self::default() }
    }

    /// Whether the stop string that was found leaves too. It doesn't unless this is called.
    #[must_use]
    pub fn include_stop(mut self, include_stop: bool) -> Self {
        self.include_stop = include_stop;
        self
    }

    /// Takes a piece of text.
    pub fn push(&mut self, text: &str) -> StopStep {
        if self.matched.is_some() {
            return StopStep { emit: String::new(), matched: self.matched };
        }
        if self.stops.is_empty() {
            return StopStep { emit: text.to_owned(), matched: None };
        }
        self.held.push_str(text);
        self.search(false)
    }

    /// Takes a piece of text in which no stop string may end yet, though one that ends later may begin in it. Returns the
    /// text that may leave.
    pub fn push_exempt(&mut self, text: &str) -> String {
        if self.matched.is_some() {
            return String::new();
        }
        if self.stops.is_empty() {
            return text.to_owned();
        }
        self.held.push_str(text);
        self.exempt = self.held.len();
        self.search(false).emit
    }

    /// Ends the completion: what was held back leaves, unless it holds a stop that only waited for one with
    /// precedence.
    pub fn finish(&mut self) -> StopStep {
        if self.matched.is_some() {
            return StopStep { emit: String::new(), matched: self.matched };
        }
        self.search(true)
    }

    fn search(&mut self, at_end: bool) -> StopStep {
        for (at, _) in self.held.char_indices() {
            // A stop that begins here must be longer than this.
            let exempt = self.exempt.saturating_sub(at);
            match begins(&self.stops, &self.held.as_bytes()[at..], exempt, at_end) {
                Begins::Nothing => {}
                Begins::Undecided => {
                    let rest = self.held.split_off(at);
                    self.exempt = exempt;
                    return StopStep {
                        emit: std::mem::replace(&mut self.held, rest),
                        matched: None,
                    };
                }
                Begins::Stop(index) => {
                    self.matched = Some(index);
                    let mut emit = std::mem::take(&mut self.held);
                    emit.truncate(at + if self.include_stop { self.stops[index].len() } else { 0 });
                    return StopStep { emit, matched: self.matched };
                }
            }
        }
        self.exempt = 0;
        StopStep { emit: std::mem::take(&mut self.held), matched: None }
    }
}

fn begins(stops: &[String], text: &[u8], exempt: usize, at_end: bool) -> Begins {
    for (index, stop) in stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty()) {
        if stop.len() > exempt && text.starts_with(stop.as_bytes()) {
            return Begins::Stop(index);
        }
        if !at_end && stop.len() > text.len() && stop.as_bytes().starts_with(text) {
            return Begins::Undecided;
        }
    }
    Begins::Nothing
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stops(list: &[&str]) -> StopStrings {
        StopStrings::new(list.iter().map(|&stop| stop.to_owned()).collect())
    }

    fn step(emit: &str, matched: Option<usize>) -> StopStep {
        StopStep { emit: emit.to_owned(), matched }
    }

    #[test]
    fn a_stop_across_pieces_is_found_and_nothing_of_it_leaves() {
        let mut search = stops(&["\n\nUser:"]);
        assert_eq!(search.push("Hi.\n"), step("Hi.", None));
        assert_eq!(search.push("\nUs"), step("", None));
        assert_eq!(search.push("er: more"), step("", Some(0)));
        assert_eq!(search.push("x"), step("", Some(0)));
        assert_eq!(search.finish(), step("", Some(0)));
    }

    #[test]
    fn what_did_not_become_a_stop_leaves() {
        let mut search = stops(&["STOP"]);
        assert_eq!(search.push("aST"), step("a", None));
        assert_eq!(search.push("STO"), step("ST", None));
        assert_eq!(search.finish(), step("STO", None));
    }

    #[test]
    fn the_earliest_wins_even_if_it_is_complete_later() {
        let mut search = stops(&["bc", "abcd"]);
        assert_eq!(search.push("xabc"), step("x", None));
        assert_eq!(search.clone().push("d"), step("", Some(1)));
        assert_eq!(search.clone().push("e"), step("a", Some(0)));
        assert_eq!(search.finish(), step("a", Some(0)));
    }

    #[test]
    fn at_the_same_place_the_first_listed_wins() {
        let mut search = stops(&["abc", "ab"]);
        assert_eq!(search.push("ab"), step("", None));
        assert_eq!(search.clone().push("c"), step("", Some(0)));
        assert_eq!(search.push("x"), step("", Some(1)));
        assert_eq!(stops(&["ab", "abc"]).push("ab"), step("", Some(0)));
    }

    #[test]
    fn a_stop_may_begin_but_not_end_in_exempt_text() {
        let mut search = stops(&["STOP"]);
        assert_eq!(search.push_exempt("a STOP, ST"), "a STOP, ");
        assert_eq!(search.clone().push("OP"), step("", Some(0)));
        assert_eq!(search.push("ART"), step("START", None));
    }

    #[test]
    fn include_stop_lets_the_stop_leave() {
        let mut search = stops(&["é"]).include_stop(true);
        assert_eq!(search.push("caféx"), step("café", Some(0)));
    }

    #[test]
    fn empty_stops_never_match() {
        assert_eq!(stops(&["", "b"]).push("ab"), step("a", Some(1)));
        assert_eq!(stops(&[""]).push("ab"), step("ab", None));
    }

    /// The definition: the whole text at once, where no stop ends in the first `exempt` bytes.
    fn naive(
        stops: &[String],
        text: &str,
        exempt: usize,
        include_stop: bool,
    ) -> (String, Option<usize>) {
        let found = stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty());
        let found = found.filter_map(|(index, stop)| {
            let places = text.char_indices().map(|(at, _)| at);
            let mut places = places.filter(|at| at + stop.len() > exempt);
            Some((places.find(|&at| text[at..].starts_with(stop.as_str()))?, index))
        });
        match found.min() {
            Some((at, index)) => (
                text[..at + if include_stop { stops[index].len() } else { 0 }].to_owned(),
                Some(index),
            ),
            None => (text.to_owned(), None),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn equals_a_search_in_the_whole_text(
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
            stops in prop::collection::vec("[abé]{0,4}", 0..4),
            n_exempt in 0..4_usize,
            include_stop: bool,
        ) {
            let text = pieces.concat();
            let mut search = StopStrings::new(stops.clone()).include_stop(include_stop);
            let mut out = String::new();
            let mut matched = None;
            let mut exempt = 0;
            for (index, piece) in pieces.iter().enumerate() {
                let step = if index < n_exempt {
                    exempt += piece.len();
                    step(&search.push_exempt(piece), None)
                } else {
                    search.push(piece)
                };
                prop_assert!(matched.is_none() || step.emit.is_empty());
                prop_assert!(search.held.is_empty() || stops.iter().any(|stop| stop.len() > 1));
                out.push_str(&step.emit);
                matched = step.matched;
            }
            let last = search.finish();
            out.push_str(&last.emit);
            prop_assert_eq!((out, last.matched), naive(&stops, &text, exempt, include_stop));
        }
    }
}
