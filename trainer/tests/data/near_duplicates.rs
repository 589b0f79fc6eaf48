//! Near duplicates are found where they were made, and nowhere else.

use std::collections::HashSet;

use pleach_trainer::data::{NearDuplicateSettings, NearDuplicates};

/// Pseudo-random numbers for texts (a linear congruential generator, Knuth's constants).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % n
    }

    fn words(&mut self, n: usize) -> Vec<String> {
        (0..n)
            .map(|_| {
                format!(
                    "w{}",
                    ["a", "b", "c", "d", "e", "f", "g", "h"]
                        .map(|l| l.repeat(1 + self.below(5)))
                        .concat()
                )
            })
            .collect()
    }
}

fn groups(texts: &[String]) -> Vec<u32> {
    let mut near = NearDuplicates::new(NearDuplicateSettings::default());
    for text in texts {
        near.push(text);
    }
    near.groups()
}

fn jaccard(a: &[String], b: &[String]) -> f64 {
    let grams = |words: &[String]| -> HashSet<String> {
        let pairs = words.windows(2).map(|pair| pair.join(" "));
        words.iter().cloned().chain(pairs).collect()
    };
    let (a, b) = (grams(a), grams(b));
    a.intersection(&b).count() as f64 / a.union(&b).count() as f64
}

/// The text with one word in `every` replaced.
fn changed(words: &[String], every: usize, numbers: &mut Numbers) -> Vec<String> {
    let mut changed = words.to_vec();
    let start = numbers.below(every);
    for place in (start..words.len()).step_by(every) {
        changed[place] = numbers.words(1).remove(0);
    }
    changed
}

#[test]
fn most_pairs_above_the_threshold_are_found_and_few_below() {
    let mut numbers = Numbers(1);
    let (mut above, mut found_above, mut below, mut found_below) = (0, 0, 0, 0);
    let mut texts = Vec::new();
    let mut pairs = Vec::new();
    for n_words in [20, 50, 100, 400] {
        for every in [3, 4, 5, 6, 8, 10, 12, 15, 20, 40] {
            for _ in 0..40 {
                let first = numbers.words(n_words);
                let second = changed(&first, every, &mut numbers);
                pairs.push((texts.len(), jaccard(&first, &second)));
                texts.extend([first.join(" "), second.join(" ")]);
            }
        }
    }
    let groups = groups(&texts);
    for (index, similarity) in pairs {
        let found = groups[index] == groups[index + 1];
        // Between the two, four standard errors of the estimate, both answers are right.
        if similarity >= 0.8 {
            above += 1;
            found_above += usize::from(found);
        } else if similarity <= 0.55 {
            below += 1;
            found_below += usize::from(found);
        }
    }
    assert!(above > 200 && below > 200, "{above} {below}");
    assert!(found_above * 100 >= above * 99, "recall {found_above} of {above}");
    assert!(found_below * 100 <= below, "{found_below} of {below} are none");
    // No two texts of different pairs are in one group.
    for (index, group) in groups.iter().enumerate() {
        assert_eq!(*group as usize / 2, index / 2);
    }
}

#[test]
fn groups_are_chains_named_by_their_first_text() {
    let mut numbers = Numbers(2);
    let first = numbers.words(200);
    let mut texts = vec![first.join(" "), numbers.words(200).join(" ")];
    let mut last = first.clone();
    for _ in 0..10 {
        last = changed(&last, 30, &mut numbers);
        texts.push(last.join(" "));
    }
    assert!(jaccard(&first, &last) < 0.55);
    let found = groups(&texts);
    assert_eq!(found[1], 1);
    assert!(found[2..].iter().all(|group| *group == 0), "{found:?}");
}

#[test]
fn case_punctuation_and_numbers_do_not_count() {
    let text = "On May 3 2021, the Committee met; 14 of its members voted for the new rules.";
    let same = "on may 17 1999 the committee met: 9 of its members voted FOR the new rules!";
    let other = "The weather in the north was cold, and nobody went out until the spring came.";
    assert_eq!(groups(&[text, same, other].map(str::to_owned)), [0, 0, 2]);
    // Texts without words are told by themselves; scripts without spaces by their characters.
    assert_eq!(groups(&["?!", " ?! ", "!!", "?"].map(str::to_owned)), [0, 0, 2, 3]);
    let chinese = "今天天气很好我们一起去公园散步然后回家吃饭看书睡觉";
    let nearly = "今天天气很好我们一起去公园散步然后回家吃饭看书休息";
    let another = "经济学家认为明年的增长速度会比今年慢一些但是就业稳定";
    assert_eq!(groups(&[chinese, nearly, another].map(str::to_owned)), [0, 0, 2]);
}

#[test]
fn many_equal_texts_take_no_square_of_time() {
    let mut texts = vec!["the very same text again and again".to_owned(); 30_000];
    // As many with one word of their own each: they fill every bucket.
    texts.extend((0..30_000).map(|n| {
        format!("a template with many fixed words and the name {} in it", "x".repeat(n % 97))
    }));
    let began = std::time::Instant::now();
    let found = groups(&texts);
    assert!(found[..30_000].iter().all(|group| *group == 0));
    // By the square, these would be 3.6 billion comparisons.
    assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
}
