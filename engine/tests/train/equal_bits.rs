//! Equal bits: threads, slices, activations kept or not, sequences packed or alone, dropout.
