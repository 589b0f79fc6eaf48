//! From files and feedback to examples.
