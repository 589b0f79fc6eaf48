//! Targets, ranks and scales against the output of PEFT's own functions (`tests/fixtures/adapters/make.py`).

use pleach_adapters::{
    AdapterConfig,
    peft::{ConfigError, TreeRoot},
};
use pleach_engine::site::{Site, TargetModule};
use serde_json::Value;

use crate::support::{config_with, fixture, toy_spec};

fn expected_sites(case: &Value) -> Vec<(Site, usize, f32)> {
    let sites = case["sites"].as_array().unwrap().iter().map(|site| {
        let layer = usize::try_from(site[0].as_u64().unwrap()).unwrap();
        let module = TargetModule::from_name(site[1].as_str().unwrap()).unwrap();
        #[expect(clippy::cast_possible_truncation, reason = "the script rounded to f32")]
        let scale = site[3].as_f64().unwrap() as f32;
        (Site { layer, module }, usize::try_from(site[2].as_u64().unwrap()).unwrap(), scale)
    });
    let mut sites: Vec<_> = sites.collect();
    sites.sort_by_key(|(site, ..)| *site);
    sites
}

#[test]
fn sites_ranks_and_scales_are_those_of_peft() {
    let expected = std::fs::read(fixture("expected.json")).unwrap();
    let expected: Value = serde_json::from_slice(&expected).unwrap();
    let spec = toy_spec(usize::try_from(expected["n_layers"].as_u64().unwrap()).unwrap());
    let cases = expected["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 175);
    let mut n_empty = 0;
    for case in cases {
        let root = if case["root"] == "" { TreeRoot::Decoder } else { TreeRoot::CausalLm };
        let config = config_with(case["settings"].clone()).to_string();
        let config = AdapterConfig::from_json(config.as_bytes()).unwrap();
        let expected = expected_sites(case);
        match config.sites(&spec, root) {
            Ok(sites) => {
                let found: Vec<_> =
                    sites.into_iter().map(|(site, s)| (site, s.rank, s.lora_scale)).collect();
                assert_eq!(found, expected, "{case}");
            }
            Err(ConfigError::NoSite) => {
                assert!(expected.is_empty(), "{case}");
                n_empty += 1;
            }
            Err(error) => panic!("{error}: {case}"),
        }
    }
    assert!(n_empty < cases.len() / 4, "{n_empty} cases without any site prove little");
}

#[test]
fn all_linear_is_written_in_any_case() {
    for spelling in ["all-linear", "All-Linear"] {
        let config = config_with(serde_json::json!({ "target_modules": spelling })).to_string();
        let sites = AdapterConfig::from_json(config.as_bytes())
            .unwrap()
            .sites(&toy_spec(3), TreeRoot::CausalLm);
        assert_eq!(sites.unwrap().len(), 3 * TargetModule::ALL.len());
    }
}
