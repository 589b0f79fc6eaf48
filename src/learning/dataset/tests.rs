use std::collections::{BTreeMap, BTreeSet, HashMap};

use pleach_trainer::data::{ReadLimits, RowReader};
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn asked(id: &str, user: Option<&str>) -> Answered {
    Answered {
        id: id.to_owned(),
        user: user.map(str::to_owned),
        episode: None,
        messages: vec![json!({"role": "user", "content": format!("question of {id}")})],
        tools: None,
        choices: vec![format!("answer 0 of {id}"), format!("answer 1 of {id}")],
    }
}

fn opinion(id: &str, rater: Option<&str>, said: OpinionSaid) -> Opinion {
    Opinion { id: id.to_owned(), choice: 0, rater: rater.map(str::to_owned), said }
}

fn liked(id: &str, rater: Option<&str>, value: bool) -> Opinion {
    opinion(id, rater, OpinionSaid::Metric { name: "liked".to_owned(), value: json!(value) })
}

fn shown(id: &str, rater: Option<&str>, text: &str) -> Opinion {
    opinion(id, rater, OpinionSaid::Demonstration(text.to_owned()))
}

fn judged(id: &str, user: Option<&str>, opinions: Vec<Opinion>) -> Judged {
    Judged { completion: asked(id, user), opinions }
}

fn of(judged: Vec<Judged>) -> Material {
    Material { judged, ..Material::default() }
}

/// A policy whose cap is out of the way.
fn any_share(method: MethodChoice) -> Policy {
    Policy { method, user_share_max: 1.0, ..Policy::default() }
}

#[test]
fn every_signal_makes_rows_of_its_method() {
    let better = OpinionSaid::BetterThan { id: "c2".to_owned(), choice: 1 };
    let mut material = of(vec![
        judged("c1", Some("u1"), vec![shown("f1", None, "as it should be")]),
        judged("c3", Some("u1"), vec![opinion("f2", None, better), liked("f3", None, false)]),
    ]);
    material.others.insert("c2".to_owned(), asked("c2", None));
    let supervised = build(&material, &any_share(MethodChoice::Supervised));
    assert_eq!(supervised.rows.len(), 1);
    let messages = &supervised.rows[0].value["messages"];
    assert_eq!(messages[1], json!({"role": "assistant", "content": "as it should be"}));
    let dpo = build(&material, &any_share(MethodChoice::Dpo));
    let pairs: BTreeSet<_> = dpo
        .rows
        .iter()
        .map(|row| {
            let text = |name: &str| row.value[name][0]["content"].as_str().unwrap().to_owned();
            (text("preferred_output"), text("non_preferred_output"))
        })
        .collect();
    let expected = [
        ("as it should be".to_owned(), "answer 0 of c1".to_owned()),
        ("answer 0 of c3".to_owned(), "answer 1 of c2".to_owned()),
    ];
    assert_eq!(pairs, expected.into());
    let of_comparison = dpo.rows.iter().find(|row| row.completions.contains("c2")).unwrap();
    assert_eq!(of_comparison.completions, ["c2".to_owned(), "c3".to_owned()].into());
    assert_eq!(of_comparison.feedback, ["f2".to_owned()].into());
    let kto = build(&material, &any_share(MethodChoice::Kto));
    assert_eq!(kto.rows.len(), 1);
    assert_eq!(kto.rows[0].value["label"], false);
    let auto = build(&material, &any_share(MethodChoice::Auto));
    assert_eq!(auto.method, Method::Dpo, "most rows");
    assert_eq!(auto.counts.by_method["supervised"], 1);
    // Of equally many the first.
    let tie = of(vec![judged("c1", None, vec![shown("f1", None, "so"), liked("f2", None, true)])]);
    assert_eq!(build(&tie, &any_share(MethodChoice::Auto)).method, Method::Supervised);
}

#[test]
fn earlier_answers_are_not_learned_and_what_cannot_be_read_is_left_out() {
    let mut long = judged("c1", None, vec![shown("f1", None, "yes")]);
    long.completion.messages = vec![
        json!({"role": "user", "content": "a"}),
        json!({"role": "assistant", "content": "b"}),
        json!({"role": "user", "content": "c"}),
    ];
    let mut odd = judged("c2", None, vec![shown("f2", None, "yes")]);
    odd.completion.messages = vec![json!({"role": "wizard", "content": "a"})];
    let empty = judged("c3", None, vec![shown("f3", None, "  ")]);
    let data = build(&of(vec![long, odd, empty]), &any_share(MethodChoice::Supervised));
    assert_eq!(data.rows.len(), 1);
    let messages = data.rows[0].value["messages"].as_array().unwrap();
    assert_eq!(messages[1]["weight"], 0);
    assert_eq!(messages[3].get("weight"), None);
    assert!(data.counts.unusable >= 2, "{:?}", data.counts);
    for row in RowReader::new(data.jsonl(None).as_bytes(), None, ReadLimits::default()) {
        row.unwrap();
    }
}

#[test]
fn the_majority_counts_ties_do_not_and_of_one_rater_the_last_word() {
    let votes = |values: &[(&str, &str, bool)]| {
        let opinions =
            values.iter().map(|(id, rater, value)| liked(id, Some(rater), *value)).collect();
        let data =
            build(&of(vec![judged("c1", Some("asker"), opinions)]), &any_share(MethodChoice::Kto));
        let row = data.rows.first().map(|row| (row.value["label"] == true, row.feedback.clone()));
        (row, data.counts.ties)
    };
    let ids = |ids: &[&str]| ids.iter().map(|&id| id.to_owned()).collect::<BTreeSet<_>>();
    let two_to_one = votes(&[("f1", "a", true), ("f2", "b", false), ("f3", "c", true)]);
    assert_eq!(two_to_one, (Some((true, ids(&["f1", "f3"]))), 0));
    assert_eq!(votes(&[("f1", "a", true), ("f2", "b", false)]), (None, 1));
    // Whoever repeats it has one voice, and may change it.
    let repeated = [("f1", "a", true), ("f2", "a", true), ("f3", "a", true), ("f4", "b", false)];
    assert_eq!(votes(&repeated), (None, 1));
    let changed = votes(&[("f2", "a", false), ("f1", "a", true)]);
    assert_eq!(changed, (Some((false, ids(&["f2"]))), 0));
    // So it is with comparisons, whichever of the two answers they were given on.
    let better = |id: &str, rater: &str, choice: u32| Opinion {
        choice,
        ..opinion(
            id,
            Some(rater),
            OpinionSaid::BetterThan { id: "c1".to_owned(), choice: 1 - choice },
        )
    };
    let opinions = vec![better("f1", "a", 0), better("f2", "b", 1), better("f3", "c", 1)];
    let data = build(&of(vec![judged("c1", None, opinions)]), &any_share(MethodChoice::Dpo));
    assert_eq!(data.rows.len(), 1);
    assert_eq!(data.rows[0].value["preferred_output"][0]["content"], "answer 1 of c1");
}

#[test]
fn groups_are_users_then_episodes_then_completions() {
    let mut of_episode = judged("c2", None, vec![liked("f2", None, true)]);
    of_episode.completion.episode = Some("e".to_owned());
    let material = of(vec![
        judged("c1", Some("u1"), vec![liked("f1", None, true)]),
        of_episode,
        judged("c3", None, vec![liked("f3", None, true)]),
        judged("c4", Some("u1"), vec![liked("f4", Some("u2"), true)]),
    ]);
    let data = build(&material, &any_share(MethodChoice::Kto));
    let groups: BTreeMap<_, _> = data
        .rows
        .iter()
        .map(|row| (row.completions.first().unwrap().as_str(), row.group.as_str()))
        .collect();
    let expected = [("c1", "u1"), ("c2", "episode:e"), ("c3", "completion:c3"), ("c4", "u2")];
    assert_eq!(groups, expected.into());
    // The names themselves are not in the file.
    assert!(!data.jsonl(None).contains("\"u1\""));
}

#[test]
fn rows_about_one_answer_are_one_group() {
    let better = OpinionSaid::BetterThan { id: "c3".to_owned(), choice: 0 };
    let material = of(vec![
        judged("c1", None, vec![shown("f1", Some("u5"), "so"), shown("f2", Some("u2"), "or so")]),
        judged("c2", None, vec![shown("f3", Some("u5"), "and so")]),
        judged("c3", None, vec![shown("f4", Some("u3"), "not so")]),
        judged("c4", None, vec![opinion("f5", Some("u4"), better)]),
    ]);
    let data = build(&material, &any_share(MethodChoice::Supervised));
    let groups = data.rows.iter().map(|row| (row.feedback.first().unwrap().as_str(), &*row.group));
    let expected = [("f1", "u2"), ("f2", "u2"), ("f3", "u2"), ("f4", "u3")];
    assert_eq!(groups.collect::<BTreeMap<_, _>>(), expected.into());
    // A comparison is about both answers.
    let data = build(&material, &any_share(MethodChoice::Dpo));
    let groups = data.rows.iter().map(|row| (row.feedback.first().unwrap().as_str(), &*row.group));
    let expected = [("f1", "u2"), ("f2", "u2"), ("f3", "u2"), ("f4", "u3"), ("f5", "u3")];
    assert_eq!(groups.collect::<BTreeMap<_, _>>(), expected.into());
    // The file tells them apart too.
    let of_file: BTreeSet<_> =
        data.rows.iter().map(|row| row.value["group"].as_str().unwrap()).collect();
    assert_eq!(of_file.len(), 2);
}

#[test]
fn some_anchors_are_learned_the_others_judge() {
    let opinions = (0..30).map(|n| {
        judged(&format!("c{n}"), Some(&format!("u{n}")), vec![liked(&format!("f{n}"), None, true)])
    });
    let anchor = |n: usize| json!({"prompt": "q", "completion": format!("a{n}"), "label": true});
    let other_kind = json!({"messages": [
        {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    ]});
    let mut material = of(opinions.collect());
    material.anchors = (0..20).map(anchor).chain([other_kind]).collect();
    let data = build(&material, &Policy { method: MethodChoice::Kto, ..Policy::default() });
    // A tenth of all is 3 of 33; all others judge.
    assert_eq!((data.anchors_learned.len(), data.anchors_judged.len()), (3, 18));
    assert!(data.anchors_learned.iter().all(|row| row["trusted"] == true));
    let few = Material { anchors: material.anchors[..3].to_vec(), ..material.clone() };
    let data = build(&few, &Policy { method: MethodChoice::Kto, ..Policy::default() });
    assert_eq!(data.anchors_learned.len(), 1, "never more than half");
    // A fold leaves out its rows, and no anchor.
    let fold_of: Vec<u32> = (0..30).map(|index| index % 3).collect();
    assert_eq!(data.jsonl(Some((1, &fold_of))).lines().count(), 20 + 1);
}

fn arbitrary() -> impl Strategy<Value = Vec<Judged>> {
    let user = prop::option::weighted(0.8, 0_u8..6);
    let said = (0_u8..3, any::<bool>());
    let opinion = (user.clone(), said, 0_u32..2);
    let completion = (user, prop::collection::vec(opinion, 0..5));
    prop::collection::vec(completion, 0..40).prop_map(|completions| {
        let name = |user: Option<u8>| user.map(|user| format!("u{user}"));
        let mut n_feedback = 0;
        let judged = completions.into_iter().enumerate().map(|(index, (asker, opinions))| {
            let completion = Answered { user: name(asker), ..asked(&format!("c{index:03}"), None) };
            let opinions = opinions.into_iter().map(|(rater, (kind, flag), choice)| {
                n_feedback += 1;
                let said = match kind {
                    0 => OpinionSaid::Metric { name: "liked".to_owned(), value: json!(flag) },
                    1 => OpinionSaid::Demonstration(format!("demonstration {flag}")),
                    _ => OpinionSaid::BetterThan { id: format!("c{index:03}"), choice: 1 - choice },
                };
                let id = format!("f{n_feedback:05}");
                Opinion { id, choice, rater: name(rater), said }
            });
            Judged { opinions: opinions.collect(), completion }
        });
        judged.collect()
    })
}

/// By user, how many rows of the data hang on what the user said.
fn influence(data: &LoopData, material: &Material) -> HashMap<String, usize> {
    let mut said_by: HashMap<&str, String> = HashMap::new();
    for judged in &material.judged {
        for opinion in &judged.opinions {
            let known = opinion.rater.clone().or(judged.completion.user.clone());
            let own = format!("completion:{}", judged.completion.id);
            said_by.insert(&opinion.id, known.unwrap_or(own));
        }
    }
    let mut rows_of = HashMap::new();
    for row in &data.rows {
        let users: BTreeSet<_> = row.feedback.iter().map(|id| &said_by[id.as_str()]).collect();
        for user in users {
            *rows_of.entry(user.clone()).or_default() += 1;
        }
    }
    rows_of
}

proptest! {
    #[test]
    fn no_user_has_more_than_the_share(judged in arbitrary(), share in 0.05_f64..1.0) {
        let material = of(judged);
        for method in [MethodChoice::Supervised, MethodChoice::Dpo, MethodChoice::Kto] {
            let data = build(&material, &Policy { method, user_share_max: share, ..Policy::default() });
            for (user, n_rows) in influence(&data, &material) {
                prop_assert!(
                    n_rows as f64 <= share * data.rows.len() as f64 + 1e-9,
                    "{user} is behind {n_rows} of {}", data.rows.len()
                );
            }
        }
    }

    #[test]
    fn the_order_does_not_matter(judged in arbitrary(), seed in any::<u64>()) {
        let material = of(judged.clone());
        let mut shuffled = judged;
        // Any other order will do.
        shuffled.sort_by_key(|judged| {
            let number: u64 = judged.completion.id[1..].parse().unwrap();
            number.wrapping_mul(seed | 1)
        });
        for judged in &mut shuffled {
            judged.opinions.reverse();
        }
        let policy = Policy { user_share_max: 0.4, ..Policy::default() };
        let (one, other) = (build(&material, &policy), build(&of(shuffled), &policy));
        prop_assert_eq!(one.jsonl(None), other.jsonl(None));
        prop_assert_eq!(one, other);
    }

    #[test]
    fn whatever_one_user_says_is_at_most_the_share(judged in arbitrary(), n_poisoned in 0_usize..200) {
        let mut material = of(judged);
        for n in 0..n_poisoned {
            let id = format!("p{n:03}");
            let said = vec![shown(&format!("q{n:03}"), Some("poisoner"), "poison")];
            material.judged.push(Judged { completion: asked(&id, Some("poisoner")), opinions: said });
        }
        let policy = Policy { method: MethodChoice::Supervised, ..Policy::default() };
        let data = build(&material, &policy);
        let poisoned = data.rows.iter().filter(|row| row.value.to_string().contains("poison\"")).count();
        prop_assert!(poisoned as f64 <= policy.user_share_max * data.rows.len() as f64 + 1e-9);
    }

    #[test]
    fn rows_are_made_of_what_was_given(judged in arbitrary()) {
        let material = of(judged);
        let data = build(&material, &Policy { user_share_max: 1.0, ..Policy::default() });
        let known: BTreeSet<_> = material
            .judged.iter().flat_map(|judged| judged.opinions.iter().map(|opinion| &opinion.id)).collect();
        for row in &data.rows {
            prop_assert!(!row.feedback.is_empty());
            prop_assert!(row.feedback.iter().all(|id| known.contains(id)));
        }
        if !data.rows.is_empty() {
            for row in RowReader::new(data.jsonl(None).as_bytes(), None, ReadLimits::default()) {
                prop_assert!(row.is_ok());
            }
        }
    }
}
