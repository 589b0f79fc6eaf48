//! From opinions to drafts of rows: of each rater the last word counts, of several raters the majority.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    Answered, Counts, Draft, Judged, Material, Opinion, OpinionSaid,
    row::{DataRow, Lesson},
};
use crate::learning::policy::Signals;

/// An answer: completion and choice.
type AnswerId<'a> = (&'a str, u32);
/// Who showed a text, in which feedback.
type Shown<'a> = (BTreeSet<String>, BTreeSet<&'a str>);
/// Two of them, the smaller one first.
type Pair<'a> = (AnswerId<'a>, AnswerId<'a>);

/// One rater's word on something, and the feedback that it is.
#[derive(Debug)]
struct Vote<'a> {
    is_for: bool,
    feedback: Vec<&'a str>,
}

/// What the majority says, who says so, in which feedback.
struct Majority<'a> {
    is_for: bool,
    users: BTreeSet<String>,
    feedback: BTreeSet<&'a str>,
}

/// Who has said something: the rater, else who asked; if nobody is known, whoever that was.
fn voice(opinion: &Opinion, completion: &Answered) -> String {
    let known = opinion.rater.as_ref().or(completion.user.as_ref());
    known.cloned().unwrap_or_else(|| format!("completion:{}", completion.id))
}

fn majority<'a>(votes: &BTreeMap<String, Vote<'a>>, counts: &mut Counts) -> Option<Majority<'a>> {
    let n_for = votes.values().filter(|vote| vote.is_for).count();
    let n_against = votes.len() - n_for;
    if n_for == n_against {
        counts.ties += usize::from(!votes.is_empty());
        return None;
    }
    let is_for = n_for > n_against;
    let winners = || votes.iter().filter(|(_, vote)| vote.is_for == is_for);
    Some(Majority {
        is_for,
        users: winners().map(|(user, _)| user.clone()).collect(),
        feedback: winners().flat_map(|(_, vote)| vote.feedback.iter().copied()).collect(),
    })
}

/// Rows of all methods, before the cap.
pub(super) fn drafts(material: &Material, signals: &Signals, counts: &mut Counts) -> Vec<Draft> {
    let mut drafts = Vec::new();
    for judged in &material.judged {
        rated(judged, signals, counts, &mut drafts);
        if signals.demonstrations {
            demonstrated(judged, counts, &mut drafts);
        }
    }
    if signals.comparisons {
        compared(material, counts, &mut drafts);
    }
    drafts
}

/// Answers that were liked or not: one row for each.
fn rated(judged: &Judged, signals: &Signals, counts: &mut Counts, drafts: &mut Vec<Draft>) {
    // By answer, voice and metric, the last value.
    let mut last: BTreeMap<(u32, String, &str), (&str, bool)> = BTreeMap::new();
    for opinion in &judged.opinions {
        let OpinionSaid::Metric { name, value } = &opinion.said else { continue };
        let Some(good) = signals.metrics.get(name).and_then(|rule| rule.judge(value)) else {
            continue;
        };
        let key = (opinion.choice, voice(opinion, &judged.completion), name.as_str());
        let known = last.entry(key).or_insert((&opinion.id, good));
        if *opinion.id > *known.0 {
            *known = (&opinion.id, good);
        }
    }
    // Of each voice the sum over metrics.
    let mut sums: BTreeMap<u32, BTreeMap<String, (i64, Vec<&str>)>> = BTreeMap::new();
    for ((choice, voice, _), (id, good)) in last {
        let sum = sums.entry(choice).or_default().entry(voice).or_default();
        sum.0 += if good { 1 } else { -1 };
        sum.1.push(id);
    }
    for (choice, sums) in sums {
        let votes = sums.into_iter().filter(|(_, (sum, _))| *sum != 0);
        let votes = votes
            .map(|(voice, (sum, feedback))| (voice, Vote { is_for: sum > 0, feedback }))
            .collect();
        let Some(said) = majority(&votes, counts) else { continue };
        let completion = &judged.completion;
        let Some(answer) = completion.choices.get(choice as usize) else {
            counts.unusable += 1;
            continue;
        };
        let lesson = Lesson::Rated { answer, good: said.is_for };
        push(&lesson, completion, &[], said.users, &said.feedback, counts, drafts);
    }
}

/// Answers as they should have been: a row of each kind for every text.
fn demonstrated(judged: &Judged, counts: &mut Counts, drafts: &mut Vec<Draft>) {
    let mut last: BTreeMap<(u32, String), (&str, &str)> = BTreeMap::new();
    for opinion in &judged.opinions {
        let OpinionSaid::Demonstration(text) = &opinion.said else { continue };
        let key = (opinion.choice, voice(opinion, &judged.completion));
        let known = last.entry(key).or_insert((&opinion.id, text));
        if *opinion.id > *known.0 {
            *known = (&opinion.id, text);
        }
    }
    let mut texts: BTreeMap<(u32, &str), Shown<'_>> = BTreeMap::new();
    for ((choice, voice), (id, text)) in last {
        let (users, feedback) = texts.entry((choice, text)).or_default();
        users.insert(voice);
        feedback.insert(id);
    }
    let completion = &judged.completion;
    for ((choice, text), (users, feedback)) in texts {
        let lesson = Lesson::Demonstrated(text);
        push(&lesson, completion, &[], users.clone(), &feedback, counts, drafts);
        let Some(worse) = completion.choices.get(choice as usize) else { continue };
        // To say again what was said is no preference.
        if worse.trim() != text.trim() {
            let lesson = Lesson::Pair { better: text, worse };
            push(&lesson, completion, &[], users, &feedback, counts, drafts);
        }
    }
}

/// Pairs of answers that were compared.
fn compared(material: &Material, counts: &mut Counts, drafts: &mut Vec<Draft>) {
    let judged = material.judged.iter().map(|judged| &judged.completion);
    let known: HashMap<&str, &Answered> =
        judged.chain(material.others.values()).map(|answered| (&*answered.id, answered)).collect();
    // By pair, the smaller answer first, and voice: whether that is the better one, in the last word.
    let mut last: BTreeMap<Pair<'_>, BTreeMap<String, (&str, bool)>> = BTreeMap::new();
    for judged in &material.judged {
        for opinion in &judged.opinions {
            let OpinionSaid::BetterThan { id, choice } = &opinion.said else { continue };
            let better = (&*judged.completion.id, opinion.choice);
            let worse = (&**id, *choice);
            let is_first = better < worse;
            let pair = if is_first { (better, worse) } else { (worse, better) };
            let voices = last.entry(pair).or_default();
            let voice = voice(opinion, &judged.completion);
            let known = voices.entry(voice).or_insert((&opinion.id, is_first));
            if *opinion.id > *known.0 {
                *known = (&opinion.id, is_first);
            }
        }
    }
    for ((first, second), voices) in last {
        let votes = voices
            .into_iter()
            .map(|(voice, (id, is_for))| (voice, Vote { is_for, feedback: vec![id] }))
            .collect();
        let Some(said) = majority(&votes, counts) else { continue };
        let (better, worse) = if said.is_for { (first, second) } else { (second, first) };
        let answer = |(id, choice): AnswerId<'_>| {
            let answered = known.get(id).copied()?;
            Some((answered, answered.choices.get(choice as usize)?))
        };
        let (Some((asked, better)), Some((other, worse))) = (answer(better), answer(worse)) else {
            counts.unusable += 1;
            continue;
        };
        let lesson = Lesson::Pair { better, worse };
        push(&lesson, asked, &[&other.id], said.users, &said.feedback, counts, drafts);
    }
}

fn push(
    lesson: &Lesson<'_>,
    asked: &Answered,
    others: &[&String],
    users: BTreeSet<String>,
    feedback: &BTreeSet<&str>,
    counts: &mut Counts,
    drafts: &mut Vec<Draft>,
) {
    let own = format!("completion:{}", asked.id);
    let group = match users.first() {
        Some(user) if *user != own => user.clone(),
        _ => match &asked.episode {
            Some(episode) => format!("episode:{episode}"),
            None => own,
        },
    };
    let Some(value) = lesson.row(asked) else {
        counts.unusable += 1;
        return;
    };
    let completions = [&asked.id].into_iter().chain(others.iter().copied()).cloned().collect();
    let row = DataRow {
        method: lesson.method(),
        value,
        group,
        completions,
        feedback: feedback.iter().map(|&id| id.to_owned()).collect(),
    };
    drafts.push(Draft { row, users });
}
