//! What a truncation lost, as a table of layers and linears.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use pleach_adapters::compose::SiteLoss;
use pleach_engine::site::{Site, TargetModule};

/// Shares of the Frobenius norm that were cut off, in percent.
pub(super) struct LossTable<'a>(pub(super) &'a [SiteLoss]);

impl fmt::Display for LossTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by_site: BTreeMap<Site, f64> =
            self.0.iter().map(|loss| (loss.site, 100.0 * loss.relative_error)).collect();
        let (ends, linears): (Vec<Site>, Vec<Site>) =
            by_site.keys().copied().partition(|site: &Site| site.module.is_end());
        let modules: BTreeSet<TargetModule> = linears.iter().map(|site| site.module).collect();
        let layers: BTreeSet<usize> = linears.iter().map(|site| site.layer).collect();
        writeln!(f, "lost of the exact delta (Frobenius norm), %")?;
        write!(f, "{:>5}", "layer")?;
        modules.iter().try_for_each(|module| write!(f, " {:>9}", module.name()))?;
        writeln!(f)?;
        for &layer in &layers {
            write!(f, "{layer:>5}")?;
            for &module in &modules {
                match by_site.get(&Site { layer, module }) {
                    Some(percent) => write!(f, " {percent:>9.3}")?,
                    None => write!(f, " {:>9}", "-")?,
                }
            }
            writeln!(f)?;
        }
        for site in ends {
            writeln!(f, "{} {:.3}", site.path(), by_site[&site])?;
        }
        let worst = self.0.iter().max_by(|a, b| a.relative_error.total_cmp(&b.relative_error));
        match worst {
            Some(worst) => {
                writeln!(f, "most: {:.3} at {}", 100.0 * worst.relative_error, worst.site)
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_that_are_not_there_are_dashes() {
        let loss = |layer, module, relative_error| SiteLoss {
            site: Site { layer, module },
            rank: 8,
            relative_error,
        };
        let losses = [
            loss(0, TargetModule::QProj, 0.0125),
            loss(11, TargetModule::QProj, 0.5),
            loss(11, TargetModule::DownProj, 0.0),
            loss(0, TargetModule::LmHead, 0.25),
        ];
        assert_eq!(
            LossTable(&losses).to_string(),
            "lost of the exact delta (Frobenius norm), %\n\
             layer    q_proj down_proj\n    0     1.250         -\n   11    50.000     0.000\n\
             lm_head 25.000\n\
             most: 50.000 at model.layers.11.self_attn.q_proj\n"
        );
    }
}
