//! No user has more than a share of what is learned from.

use std::collections::HashMap;

use super::Draft;

/// What is left of the rows of a method.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    /// In their order.
    pub(super) drafts: Vec<Draft>,
    pub(super) n_left_out: usize,
}

/// Keeps rows, the first ones first, so that nobody is behind more than `share_max` of those that are kept. A row that
/// several said the same of counts for each of them: any of them may have tipped the scales.
pub(super) fn cap(drafts: Vec<Draft>, share_max: f64) -> Kept {
    let n_all = drafts.len();
    let mut wanted = n_all;
    loop {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a count"
        )]
        let of_one_max = (share_max * wanted as f64) as usize;
        let is_kept = choose(&drafts, of_one_max);
        let n_kept = is_kept.iter().filter(|is_kept| **is_kept).count();
        // Fewer rows have a smaller share, and so on until it holds; at none it does.
        if n_kept >= wanted {
            let kept =
                drafts.into_iter().zip(is_kept).filter_map(|(draft, is)| is.then_some(draft));
            return Kept { drafts: kept.collect(), n_left_out: n_all - n_kept };
        }
        wanted = n_kept;
    }
}

fn choose(drafts: &[Draft], of_one_max: usize) -> Vec<bool> {
    let mut of_user: HashMap<&str, usize> = HashMap::new();
    let mut kept = Vec::with_capacity(drafts.len());
    for draft in drafts {
        let is_full = draft
            .users
            .iter()
            .any(|user| of_user.get(user.as_str()).copied().unwrap_or_default() >= of_one_max);
        if !is_full {
            for user in &draft.users {
                *of_user.entry(user).or_default() += 1;
            }
        }
        kept.push(!is_full);
    }
    kept
}
