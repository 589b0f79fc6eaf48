//! What does not fit is refused by name, and a pass can go on afterwards.

use std::sync::Arc;

use pleach_engine::{
    adapter_weights::{AdapterWeights, SiteWeights},
    cpu::{Isa, TrainPass},
    site::Site,
    train::{
        AdapterGradients, AdapterShape, Dropout, MicroBatch, ProductPrecision, Purpose, TrainError,
        TrainOptions,
    },
};

use crate::{
    adapter, base, options, pass, slopes,
    support::random::{Random, case_seed},
};

const LEARN: Purpose = Purpose::Learn { dropout: None };

fn batch(tokens: &[u32]) -> MicroBatch {
    let mut batch = MicroBatch::default();
    batch.push(tokens, &vec![true; tokens.len()], 0);
    batch
}

fn message(result: Result<(), TrainError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn batches_and_adapters_that_do_not_fit() {
    let base = base("llama-plain", Isa::Portable);
    let random = &mut Random::new(case_seed(700));
    let weights = Arc::new(adapter(random, base.spec(), 0));
    let mut pass = pass(&base, &weights, options(Isa::Portable, 1, 0));
    let mut begin = |batch, adapter: &Arc<AdapterWeights>, purpose| {
        message(pass.begin(batch, Some(Arc::clone(adapter)), purpose))
    };
    let long = batch(&[1; 162]);
    assert_eq!(begin(long, &weights, LEARN), "161 rows in a micro-batch of at most 160");
    let context = batch(&[1; 130]);
    assert_eq!(
        begin(context, &weights, LEARN),
        "a sequence of 129 tokens, the model's context is 128"
    );
    // The last token is a target only.
    assert_eq!(begin(batch(&[1, 320]), &weights, LEARN), "token 320 of a vocabulary of 320");
    let dropout = Some(Dropout { probability: 1.0, seed: 0 });
    assert_eq!(
        begin(batch(&[1, 2]), &weights, Purpose::Learn { dropout }),
        "dropout is 1, expected at least 0 and below 1"
    );

    let mut other = AdapterWeights::clone(&weights);
    let site = other.sites.remove(3);
    assert_eq!(
        begin(batch(&[1, 2]), &Arc::new(other.clone()), LEARN),
        format!("{}: rank 0, the pass has room for rank {} there", site.site, site.rank)
    );
    let rank = site.rank + 1;
    let (a, b) = (site.a.len() / site.rank * rank, site.b.len() / site.rank * rank);
    let wider = SiteWeights::lora(site.site, rank, 1.0, vec![0.0; a], vec![0.0; b]);
    other.sites.insert(3, wider);
    assert_eq!(
        begin(batch(&[1, 2]), &Arc::new(other.clone()), LEARN),
        format!("{}: rank {rank}, the pass has room for rank {} there", site.site, site.rank)
    );
    other.sites[3].magnitude = Some(vec![1.0; b / rank]);
    assert!(
        begin(batch(&[1, 2]), &Arc::new(other), LEARN)
            .ends_with("DoRA (`use_dora`) is not supported on the trainer")
    );
    let spec = base.spec();
    let (vocab, hidden) = (vec![0.0; spec.vocab], vec![0.0; spec.hidden]);
    let head = AdapterWeights {
        sites: vec![SiteWeights::lora(Site::HEAD, 1, 1.0, hidden, vocab)],
        ..AdapterWeights::default()
    };
    assert!(
        begin(batch(&[1, 2]), &Arc::new(head), LEARN).contains("LoRA on the head is not supported")
    );
}

#[test]
fn calls_out_of_order_and_the_next_pass_works() {
    let base = base("llama-plain", Isa::Portable);
    let random = &mut Random::new(case_seed(701));
    let weights = Arc::new(adapter(random, base.spec(), 0));
    let zeros = || AdapterGradients::zeros(&weights);
    let mut pass = pass(&base, &weights, options(Isa::Portable, 1, 0));
    assert_eq!(pass.logps().unwrap_err().to_string(), "logps needs a forward half, done");
    pass.begin(batch(&[1, 2, 3]), None, LEARN).unwrap();
    pass.run();
    assert_eq!(
        message(pass.begin_backward(slopes(&[1.0, 1.0]), zeros())),
        "a backward half needs an adapter"
    );
    pass.begin(batch(&[1, 2, 3]), Some(Arc::clone(&weights)), Purpose::Score).unwrap();
    pass.run();
    assert_eq!(
        message(pass.begin_backward(slopes(&[1.0, 1.0]), zeros())),
        "a backward half needs a forward half for learning, done"
    );
    pass.begin(batch(&[1, 2, 3]), Some(Arc::clone(&weights)), LEARN).unwrap();
    assert!(pass.begin_backward(slopes(&[1.0, 1.0]), zeros()).is_err());
    pass.run();
    assert_eq!(
        message(pass.begin_backward(slopes(&[1.0]), zeros())),
        "1 slopes of logps, expected 2"
    );
    pass.begin_backward(slopes(&[1.0, 1.0]), zeros()).unwrap();
    assert_eq!(
        pass.take_gradients().unwrap_err().to_string(),
        "take_gradients needs a backward half, done"
    );
    pass.run();
    assert!(pass.take_gradients().unwrap().norm() > 0.0);
    assert!(pass.take_gradients().is_err());
    // A batch without targets is a pass without work.
    pass.begin(batch(&[1]), Some(Arc::clone(&weights)), LEARN).unwrap();
    pass.run();
    assert!(pass.logps().unwrap().is_empty());
    pass.begin_backward(slopes(&[]), zeros()).unwrap();
    pass.run();
    assert!(pass.take_gradients().unwrap().norm().abs() < f64::MIN_POSITIVE);
}

#[test]
fn settings_out_of_range() {
    let base = base("llama-plain", Isa::Portable);
    let shape = AdapterShape { sites: Vec::new() };
    for (threads, rows_max, expected) in
        [(0, 1, "threads is 0, expected at least 1"), (1, 0, "rows_max is 0, expected at least 1")]
    {
        let options = TrainOptions { threads, rows_max, ..options(Isa::Portable, 1, 0) };
        let error = TrainPass::new(&base, &shape, options).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn a_precision_that_the_kernels_lack() {
    assert_eq!(ProductPrecision::Bf16.check(Isa::Portable), Ok(()));
    if !Isa::Avx2.is_available() {
        eprintln!("skipped: no AVX2 here");
        return;
    }
    let base = base("llama-plain", Isa::Avx2);
    let weights = adapter(&mut Random::new(case_seed(706)), base.spec(), 0);
    let options = TrainOptions { precision: ProductPrecision::Bf16, ..options(Isa::Avx2, 1, 0) };
    let error = TrainPass::new(&base, &AdapterShape::of(&weights), options).unwrap_err();
    assert_eq!(
        error.to_string(),
        "products in bf16 need kernels with AVX512-BF16, which avx2 are not; f32 works everywhere"
    );
    assert_eq!("bf16".parse(), Ok(ProductPrecision::Bf16));
    let unknown = "f16".parse::<ProductPrecision>().unwrap_err();
    assert_eq!(unknown.to_string(), "unknown precision \"f16\": f32 or bf16");
}
