//! What does not fit is refused by name.
