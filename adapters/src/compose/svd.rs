//! The best approximation of a low-rank product by one of lower rank.
//!
//! `M = B A` has no more singular values than `B` has columns, so `M` itself is never made: with `B = Q_b R_b` and
//! `Aᵀ = Q_a R_a` (Householder), `M = Q_b (R_b R_aᵀ) Q_aᵀ`, and the small matrix between is decomposed by one-sided Jacobi
//! rotations. Those are slow for large matrices and the most accurate way for small ones; whenever they stop, the product is
//! still `M` to the rounding of f64. Sources: Golub and Van Loan, *Matrix Computations*, 5.2 and 8.6.3; Drmač and Veselić,
//! "New fast and accurate Jacobi SVD algorithm" (2008).

/// Most rounds over all pairs of columns. About ten are needed.
const SWEEPS_MAX: usize = 64;

/// Columns of equal length, one after the other.
#[derive(Clone, Debug)]
struct Columns {
    n_rows: usize,
    values: Vec<f64>,
}

/// `B A` cut down to a lower rank.
#[derive(Clone, Debug)]
pub(super) struct Truncated {
    /// At most the rank that was asked for.
    pub(super) rank: usize,
    /// `[rank, K]`, row-major: right singular vectors.
    pub(super) a: Vec<f64>,
    /// `[N, rank]`, row-major: left singular vectors times singular values.
    pub(super) b: Vec<f64>,
    /// Frobenius norm of what was cut off, as a share of that of `B A`.
    pub(super) relative_error: f64,
}

/// The best product of rank `rank_max` (at least 1) for `b a`; `a` is `[R, K]`, `b` `[N, R]`, row-major.
pub(super) fn truncate(a: &[f32], b: &[f32], rank: usize, rank_max: usize) -> Truncated {
    let (n_in, n_out) = (a.len() / rank, b.len() / rank);
    let a = Columns { n_rows: n_in, values: a.iter().map(|&value| f64::from(value)).collect() };
    let mut b_columns = Columns::zeros(n_out, rank);
    for (n, row) in b.chunks_exact(rank).enumerate() {
        for (r, &value) in row.iter().enumerate() {
            b_columns.values[r * n_out + n] = f64::from(value);
        }
    }
    let (a, b) = (Householder::of(a), Householder::of(b_columns));
    let (left, right, singular) = jacobi(product(&b.upper(), &a.upper()));

    let mut order: Vec<usize> = (0..singular.len()).collect();
    order.sort_by(|&i, &j| singular[j].total_cmp(&singular[i]));
    let kept = &order[..rank_max.min(order.len())];
    let square = |columns: &[usize]| columns.iter().fold(0.0, |sum, &j| sum + singular[j].powi(2));
    let total = square(&order);
    let relative_error =
        if total > 0.0 { (square(&order[kept.len()..]) / total).sqrt() } else { 0.0 };
    let a = a.times(&left_of(&right, kept));
    let b = b.times(&left_of(&left, kept));
    let mut b_rows = vec![0.0; b.values.len()];
    for (j, column) in b.iter().enumerate() {
        for (n, &value) in column.iter().enumerate() {
            b_rows[n * kept.len() + j] = value;
        }
    }
    Truncated { rank: kept.len(), a: a.values, b: b_rows, relative_error }
}

impl Columns {
    fn zeros(n_rows: usize, n_columns: usize) -> Self {
        Self { n_rows, values: vec![0.0; n_rows * n_columns] }
    }

    fn len(&self) -> usize {
        self.values.len() / self.n_rows
    }

    fn iter(&self) -> impl Iterator<Item = &[f64]> {
        self.values.chunks_exact(self.n_rows)
    }

    fn column(&self, j: usize) -> &[f64] {
        &self.values[j * self.n_rows..][..self.n_rows]
    }

    /// Two different columns, the first before the second.
    fn pair(&mut self, p: usize, q: usize) -> (&mut [f64], &mut [f64]) {
        let n_rows = self.n_rows;
        let (head, tail) = self.values.split_at_mut(q * n_rows);
        (&mut head[p * n_rows..][..n_rows], &mut tail[..n_rows])
    }
}

/// Some of the columns, in this order.
fn left_of(columns: &Columns, kept: &[usize]) -> Columns {
    let values = kept.iter().flat_map(|&j| columns.column(j).iter().copied()).collect();
    Columns { n_rows: columns.n_rows, values }
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// A matrix as `Q R`: reflectors `I - 2 w wᵀ`, of which `Q` is the product, and `R` in the first rows.
struct Householder {
    columns: Columns,
    /// Unit vectors, or zero for the identity; the `i`-th acts from row `i` on.
    reflectors: Vec<Vec<f64>>,
}

impl Householder {
    fn of(mut columns: Columns) -> Self {
        let (n_rows, n_columns) = (columns.n_rows, columns.len());
        let mut reflectors = Vec::new();
        for i in 0..n_rows.min(n_columns) {
            let mut w = columns.column(i)[i..].to_vec();
            // Away from zero, so that nothing cancels.
            w[0] += dot(&w, &w).sqrt().copysign(w[0]);
            let norm = dot(&w, &w).sqrt();
            if norm > 0.0 {
                for value in &mut w {
                    *value /= norm;
                }
            }
            for column in columns.values.chunks_exact_mut(n_rows).skip(i) {
                reflect(&w, &mut column[i..]);
            }
            reflectors.push(w);
        }
        Self { columns, reflectors }
    }

    /// `R`, all columns of its rows that are not zero.
    fn upper(&self) -> Columns {
        let n_rows = self.reflectors.len();
        let mut upper = Columns::zeros(n_rows, self.columns.len());
        let rows = upper.values.chunks_exact_mut(n_rows).zip(self.columns.iter());
        for (j, (to, from)) in rows.enumerate() {
            let filled = n_rows.min(j + 1);
            to[..filled].copy_from_slice(&from[..filled]);
        }
        upper
    }

    /// `Q x`, for columns of as many rows as `R` has.
    fn times(&self, x: &Columns) -> Columns {
        let mut out = Columns::zeros(self.columns.n_rows, x.len());
        for (to, from) in out.values.chunks_exact_mut(self.columns.n_rows).zip(x.iter()) {
            to[..from.len()].copy_from_slice(from);
            for (i, w) in self.reflectors.iter().enumerate().rev() {
                reflect(w, &mut to[i..]);
            }
        }
        out
    }
}

fn reflect(w: &[f64], x: &mut [f64]) {
    let twice = 2.0 * dot(w, x);
    for (x, w) in x.iter_mut().zip(w) {
        *x -= twice * w;
    }
}

/// `x yᵀ`, for as many columns in both.
fn product(x: &Columns, y: &Columns) -> Columns {
    let mut out = Columns::zeros(x.n_rows, y.n_rows);
    for (x, y) in x.iter().zip(y.iter()) {
        for (to, &y) in out.values.chunks_exact_mut(x.len()).zip(y) {
            for (to, x) in to.iter_mut().zip(x) {
                *to += x * y;
            }
        }
    }
    out
}

/// `m = left rightᵀ` with orthogonal columns on the left, whose norms are the singular values, and orthonormal ones on the
/// right.
fn jacobi(m: Columns) -> (Columns, Columns, Vec<f64>) {
    let n = m.len();
    // The cosine that rounding alone may leave between orthogonal columns.
    let cosine_min = f64::EPSILON * (m.n_rows as f64).sqrt();
    let mut left = m;
    let mut right = Columns::zeros(n, n);
    for j in 0..n {
        right.values[j * n + j] = 1.0;
    }
    for _ in 0..SWEEPS_MAX {
        let mut is_done = true;
        for p in 0..n {
            for q in p + 1..n {
                let (x, y) = left.pair(p, q);
                let (xx, yy, xy) = (dot(x, x), dot(y, y), dot(x, y));
                // Also where one is zero.
                if xy.abs() <= cosine_min * (xx * yy).sqrt() {
                    continue;
                }
                is_done = false;
                let zeta = (yy - xx) / (2.0 * xy);
                let tangent = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
                let cosine = 1.0 / tangent.hypot(1.0);
                let sine = cosine * tangent;
                rotate(x, y, cosine, sine);
                let (x, y) = right.pair(p, q);
                rotate(x, y, cosine, sine);
            }
        }
        if is_done {
            break;
        }
    }
    let singular = left.iter().map(|column| dot(column, column).sqrt()).collect();
    (left, right, singular)
}

fn rotate(x: &mut [f64], y: &mut [f64], cosine: f64, sine: f64) {
    for (x, y) in x.iter_mut().zip(y) {
        (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values in `-1..1`.
    fn random(seed: u32, n: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from(u16::try_from(state >> 16).unwrap()) / 32_768.0 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    /// `b a`, `[N, K]`.
    fn multiply(a: &[f64], b: &[f64], rank: usize) -> Vec<f64> {
        let n_in = a.len() / rank;
        let row = |b: &[f64]| -> Vec<f64> {
            (0..n_in).map(|k| (0..rank).map(|r| b[r] * a[r * n_in + k]).sum()).collect()
        };
        b.chunks_exact(rank).flat_map(row).collect()
    }

    fn widen(values: &[f32]) -> Vec<f64> {
        values.iter().map(|&value| f64::from(value)).collect()
    }

    fn norm(values: impl Iterator<Item = f64>) -> f64 {
        values.map(|value| value * value).sum::<f64>().sqrt()
    }

    /// Truncates, checks the stated error, and returns the share that was cut off.
    fn check(a: &[f32], b: &[f32], rank: usize, rank_max: usize) -> f64 {
        let found = truncate(a, b, rank, rank_max);
        let (n_in, n_out) = (a.len() / rank, b.len() / rank);
        assert_eq!((found.a.len(), found.b.len()), (found.rank * n_in, n_out * found.rank));
        let whole = multiply(&widen(a), &widen(b), rank);
        let cut = multiply(&found.a, &found.b, found.rank);
        let total = norm(whole.iter().copied());
        let missing = norm(whole.iter().zip(&cut).map(|(whole, cut)| whole - cut));
        let share = if total > 0.0 { missing / total } else { missing };
        assert!((share - found.relative_error).abs() < 1e-12, "{share} {}", found.relative_error);
        // Right singular vectors are orthonormal.
        for (i, x) in found.a.chunks_exact(n_in).enumerate() {
            for (j, y) in found.a.chunks_exact(n_in).enumerate() {
                let expected = f64::from(u8::from(i == j));
                assert!((dot(x, y) - expected).abs() < 1e-12, "{i} {j}: {}", dot(x, y));
            }
        }
        share
    }

    #[test]
    fn the_whole_rank_loses_nothing_whatever_the_shape() {
        for (n_in, n_out, rank) in
            [(9, 7, 3), (3, 9, 5), (9, 2, 5), (1, 1, 1), (40, 31, 17), (2, 2, 8)]
        {
            let (a, b) = (random(1, rank * n_in), random(2, rank * n_out));
            let share = check(&a, &b, rank, rank);
            assert!(share < 1e-13, "{n_in} {n_out} {rank}: {share}");
        }
    }

    #[test]
    fn a_lower_rank_loses_what_it_says_and_less_than_any_other_product() {
        let (n_in, n_out, rank) = (33, 20, 12);
        let (a, b) = (random(3, rank * n_in), random(4, rank * n_out));
        let mut before = 1.0;
        for rank_max in 1..rank {
            let share = check(&a, &b, rank, rank_max);
            assert!(share < before, "rank {rank_max}: {share}");
            before = share;
            // Another product of that rank: leave out the last rows of A.
            let whole = multiply(&widen(&a), &widen(&b), rank);
            let b_rows = b.chunks_exact(rank).flat_map(|row| &row[..rank_max]);
            let b_cut: Vec<f64> = b_rows.map(|&value| f64::from(value)).collect();
            let cut = multiply(&widen(&a[..rank_max * n_in]), &b_cut, rank_max);
            let missing = norm(whole.iter().zip(&cut).map(|(whole, cut)| whole - cut));
            assert!(share <= missing / norm(whole.iter().copied()));
        }
    }

    #[test]
    fn equal_and_vanishing_directions() {
        // Rank one eight times over, a zero row, and nothing at all.
        let (a, b) = (random(5, 10), random(6, 6));
        let repeated_a: Vec<f32> = (0..8).flat_map(|_| a.clone()).collect();
        let repeated_b: Vec<f32> = b.iter().flat_map(|&value| [value; 8]).collect();
        assert!(check(&repeated_a, &repeated_b, 8, 1) < 1e-13);
        let mut gap = random(7, 30);
        gap[10..20].fill(0.0);
        assert!(check(&gap, &random(8, 18), 3, 2) < 1e-13);
        let nothing = truncate(&[0.0; 8], &[0.0; 6], 2, 1);
        assert_eq!((nothing.rank, nothing.relative_error), (1, 0.0));
        assert!(nothing.b.iter().all(|value| *value == 0.0));
    }

    #[test]
    fn singular_values_of_many_magnitudes_are_kept_apart() {
        // Diagonal factors: the singular values are their products.
        let rank = 6;
        let mut a = vec![0.0; rank * 9];
        let mut b = vec![0.0; 7 * rank];
        for r in 0..rank {
            a[r * 9 + r] = 10f32.powi(-2 * i32::try_from(r).unwrap());
            b[r * rank + r] = 1.0;
        }
        for kept in 1..rank {
            let cut = 10f64.powi(-2 * i32::try_from(kept).unwrap());
            let share = check(&a, &b, rank, kept);
            assert!((share / cut - 1.0).abs() < 1e-3, "{kept}: {share}");
        }
    }
}
