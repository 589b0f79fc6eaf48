//! Recipes: which steps they are, and from where they begin.

use std::{collections::BTreeMap, sync::Arc};

use pleach_adapters::load_peft;
use pleach_engine::{
    adapter_weights::{AdapterWeights, OwnMatrix, SiteWeights},
    cpu::Isa,
    site::{Site, TargetModule},
    train::{ProductPrecision, TrainOptions},
};
use pleach_text::{ChatTemplate, Tokenizer};
use pleach_trainer::{
    LoraSettings, Precision, Sample,
    data::{Level, Position, ReadLimits, RowReader},
    recipe::{
        ACTIVATION_BYTES, Auto, Compute, Hyperparameters, Method, Parent, Prepared, Recipe,
        RecipeError, Text, load,
    },
    save_peft,
};

use crate::{rated, sequence, supervised, tiny};

fn recipe(method: Method) -> Recipe {
    let hyperparameters = Hyperparameters {
        batch_size: Auto::Set(2),
        n_epochs: Auto::Set(2),
        lora_rank: Auto::Set(4),
        ..Hyperparameters::default()
    };
    Recipe { method, hyperparameters, seed: 5, precision: ProductPrecision::F32 }
}

fn compute() -> Compute {
    let (isa, unit_work) = (Isa::detect(), TrainOptions::UNIT_WORK_UNSLICED);
    Compute { isa, threads: 2, activation_bytes: ACTIVATION_BYTES, unit_work }
}

/// A parent with partial sites of several ranks and scales.
fn mixed_parent() -> AdapterWeights {
    let site = |layer, module| Site { layer, module };
    let settings = LoraSettings {
        modules: vec![TargetModule::VProj],
        ranks: BTreeMap::from([
            (site(0, TargetModule::VProj), 0),
            (site(1, TargetModule::DownProj), 3),
        ]),
        use_rslora: true,
        ..LoraSettings::all_linear(4)
    };
    let mut weights = settings.fresh(tiny().spec(), 9).unwrap();
    for (index, site) in weights.sites.iter_mut().enumerate() {
        site.b.iter_mut().enumerate().for_each(|(i, value)| *value = (i % 7) as f32 / 512.0);
        site.lora_scale *= 1.0 + index as f32 / 3.0;
    }
    weights
}

#[test]
fn every_record_comes_once_in_every_epoch_and_a_position_goes_on() {
    let base = tiny();
    let prepared =
        Prepared::of_samples(recipe(Method::Supervised), supervised(), &[], None, base.spec())
            .unwrap();
    assert_eq!((prepared.steps_per_epoch(), prepared.total_steps()), (2, 4));
    let steps: Vec<_> = prepared.steps_from(Position::default()).collect();
    assert_eq!(steps.len(), 4);
    for epoch in steps.chunks(2) {
        let mut records: Vec<u32> = epoch.iter().flat_map(|step| step.records.clone()).collect();
        records.sort_unstable();
        assert_eq!(records, [0, 1, 2, 3]);
        assert_eq!(
            (prepared.is_epoch_end(&epoch[0]), prepared.is_epoch_end(&epoch[1])),
            (false, true)
        );
    }
    let mut position = Position::default();
    for step in &steps {
        assert_eq!(prepared.steps_from(position).next().as_ref(), Some(step));
        position = prepared.next(step);
    }
    assert_eq!(prepared.steps_from(position).next(), None);
    // Room for an answer after another's prompt.
    let kto = Prepared::of_samples(
        recipe(Method::Kto),
        vec![Sample::Rated { answer: sequence(3, 1, 400, 10), desirable: true }],
        &rated(),
        None,
        base.spec(),
    );
    assert_eq!(kto.unwrap().train_options(compute()).rows_max, 800);
}

#[test]
fn a_parent_is_gone_on_from_as_it_is_and_saved_as_it_became() {
    let base = tiny();
    let parent = Arc::new(mixed_parent());
    let begin = || Some(Parent::new(Arc::clone(&parent)).unwrap());
    let mut asked = recipe(Method::Supervised);
    asked.hyperparameters.lora_rank = Auto::Auto;
    let prepared = Prepared::of_samples(asked, supervised(), &[], begin(), base.spec()).unwrap();
    assert_eq!(prepared.resolved().lora_rank, 4);
    let mut learner = prepared.learner(&base, compute()).unwrap();
    assert_eq!(**learner.adapter(), *parent);
    let report = learner.step(supervised()).unwrap();
    assert!(report.update_norm > 0.0);
    let folder = tempfile::tempdir().unwrap();
    let (weights, lora) = (learner.adapter(), prepared.lora());
    save_peft(folder.path(), weights, lora, base.spec(), "b", Precision::F32).unwrap();
    let loaded = load_peft(folder.path(), base.spec()).unwrap();
    assert_eq!(loaded.weights, **weights, "sites, ranks and scales, too");

    // Preferences begin where the parent is: no margin yet.
    let pairs = crate::preferences();
    let mut asked = recipe(Method::Dpo);
    asked.hyperparameters.lora_rank = Auto::Auto;
    let prepared = Prepared::of_samples(asked, pairs.clone(), &[], begin(), base.spec()).unwrap();
    let loss = prepared.learner(&base, compute()).unwrap().step(pairs).unwrap().loss;
    assert!((loss - std::f64::consts::LN_2).abs() < 1e-9, "{loss}");
}

#[test]
fn what_is_begun_anew_has_the_parents_shape_and_nothing_of_what_it_learned() {
    let base = tiny();
    let parent = Parent::new(Arc::new(mixed_parent())).unwrap();
    let anew = parent.anew(base.spec(), 7).unwrap();
    let shape = |parent: &Parent| -> Vec<_> {
        let sites = parent.weights().sites.iter();
        sites.map(|site| (site.site, site.rank, site.lora_scale)).collect()
    };
    assert_eq!(shape(&anew), shape(&parent));
    assert!(anew.weights().sites.iter().all(|site| site.b.iter().all(|b| *b == 0.0)));
    let other = parent.anew(base.spec(), 8).unwrap();
    assert_ne!(other.weights().sites[0].a, anew.weights().sites[0].a);
    assert_eq!(parent.anew(base.spec(), 7).unwrap().weights(), anew.weights());
}

#[test]
fn parents_that_cannot_be_trained_are_refused_by_name() {
    let base = tiny();
    let site = Site { layer: 1, module: TargetModule::UpProj };
    let refused = |change: &dyn Fn(&mut AdapterWeights)| {
        let mut weights = LoraSettings::all_linear(2).fresh(base.spec(), 1).unwrap();
        change(&mut weights);
        Parent::new(Arc::new(weights)).unwrap_err().to_string()
    };
    let at = |weights: &mut AdapterWeights| {
        weights.sites.iter().position(|weights| weights.site == site).unwrap()
    };
    let dora = refused(&|weights| {
        let at = at(weights);
        weights.sites[at].magnitude = Some(vec![1.0; 96]);
    });
    assert_eq!(dora, "model.layers.1.mlp.up_proj: DoRA cannot be trained");
    let bias = refused(&|weights| {
        let at = at(weights);
        weights.sites[at].bias = Some(vec![0.0; 96]);
    });
    assert_eq!(bias, "model.layers.1.mlp.up_proj: lora_bias cannot be trained");
    let own = refused(&|weights| {
        weights.head = Some(OwnMatrix { values: Vec::new(), of_base: false });
    });
    assert_eq!(own, "lm_head: a whole matrix of the adapter's own cannot be trained");
    let head = refused(&|weights| {
        weights.sites.push(SiteWeights::lora(Site::HEAD, 1, 1.0, vec![0.0; 64], vec![0.0; 320]));
    });
    assert_eq!(head, "lm_head: an embedding or head cannot be trained");

    let parent = Parent::new(Arc::new(mixed_parent())).unwrap();
    let mut asked = recipe(Method::Supervised);
    asked.hyperparameters.lora_rank = Auto::Set(16);
    let error = Prepared::of_samples(asked, supervised(), &[], Some(parent), base.spec());
    assert_eq!(
        error.unwrap_err().to_string(),
        "the rank 16 was asked for, the adapter to go on from has the rank 4"
    );
}

#[test]
fn rows_of_another_kind_are_refused_by_their_line() {
    let path = pleach_test_setup::fixtures().join("models/llama-plain.gguf");
    let tokenizer =
        Tokenizer::from_gguf(&pleach_engine::gguf::GgufFile::open(&path).unwrap()).unwrap();
    let text = Text { tokenizer: &tokenizer, template: None };
    let row = |n: u32| format!("{{\"text\": \"row {n} of {}\"}}", n * n);
    let rows = (0..12).map(row).collect::<Vec<_>>().join("\n");
    let load_rows = |rows: &str| {
        let mut rows = RowReader::new(rows.as_bytes(), None, ReadLimits::default());
        load(&mut rows, None, text, 128)
    };
    let loaded = load_rows(&rows).unwrap();
    assert!(loaded.report.worst().is_none_or(|worst| worst < Level::Fail));
    let base = tiny();
    let prepared = Prepared::new(recipe(Method::Supervised), &loaded, None, base.spec()).unwrap();
    assert_eq!((prepared.samples().len(), prepared.data_sha256()), (12, loaded.data.digest()));
    let error = Prepared::new(recipe(Method::Dpo), &loaded, None, base.spec()).unwrap_err();
    assert_eq!(error.to_string(), "line 1: the method dpo cannot learn from such rows");
    let bad = load_rows("{\"text\": \"a\"}\n{\"text\": 7}\n\n{\"text\": 8}\n").unwrap_err();
    assert_eq!(
        RecipeError::Rows(bad).to_string(),
        "line 2: text: expected a string, found a number; line 4: text: expected a string, found a number"
    );
}

#[test]
fn prompts_are_taken_by_steps_and_answers_have_room() {
    let path = pleach_test_setup::fixtures().join("models/llama-plain.gguf");
    let tokenizer =
        Tokenizer::from_gguf(&pleach_engine::gguf::GgufFile::open(&path).unwrap()).unwrap();
    let template = "{% for m in messages %}{{ m.content }} {% endfor %}";
    let template = ChatTemplate::new(template, None, None).unwrap();
    let text = Text { tokenizer: &tokenizer, template: Some(&template) };
    let row = |n: u32| {
        let message = format!("{{\"role\": \"user\", \"content\": \"how much is {n}\"}}");
        format!("{{\"messages\": [{message}], \"answer\": {n}}}")
    };
    let rows = (0..12).map(row).collect::<Vec<_>>().join("\n");
    let load_rows = |rows: &str| {
        let mut rows = RowReader::new(rows.as_bytes(), None, ReadLimits::default());
        load(&mut rows, None, text, 128).unwrap()
    };
    let (loaded, base) = (load_rows(&rows), tiny());
    let mut asked = recipe(Method::Reinforcement);
    asked.hyperparameters.max_completion_tokens = Auto::Set(600);
    asked.hyperparameters.eval_interval = Auto::Set(5);
    let prepared = Prepared::new(asked, &loaded, None, base.spec()).unwrap();
    assert_eq!((prepared.total_steps(), prepared.samples().len()), (12, 0));
    assert_eq!((prepared.prompts().0.len(), prepared.prompts().1.len()), (12, 0));
    assert_eq!(prepared.data_sha256(), loaded.data.digest());
    let steps: Vec<_> = prepared.steps_from(Position::default()).collect();
    let evaluated: Vec<usize> =
        (1..=12).filter(|step| prepared.is_evaluated(&steps[step - 1])).collect();
    assert_eq!(evaluated, [5, 10, 12]);
    let prompts = prepared.prompts_of(&steps[0]);
    assert_eq!(prompts.len(), 2);
    let first = prompts[0].item["answer"].as_u64().unwrap();
    assert_eq!(prompts[0].line, first + 1);
    assert!(tokenizer.decode(&prompts[0].tokens, true).contains("how much is"));
    // As long as the context allows, which is less than was asked for.
    let context = base.spec().context;
    assert_eq!(prepared.train_options(compute()).rows_max, context.clamp(512, 600 + 512));
    let need = prepared.memory(base.spec(), compute()).unwrap();
    assert_eq!(need.rows, prepared.train_options(compute()).rows_max);
    // Rows of other kinds, and prompts for other methods.
    let error = Prepared::new(recipe(Method::Supervised), &loaded, None, base.spec()).unwrap_err();
    assert_eq!(error.to_string(), "line 1: the method supervised cannot learn from such rows");
    let texts = load_rows("{\"text\": \"a b c\"}");
    let error = Prepared::new(asked, &texts, None, base.spec()).unwrap_err();
    assert_eq!(error.to_string(), "line 1: the method reinforcement cannot learn from such rows");
}
