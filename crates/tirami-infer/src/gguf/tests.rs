//! Headers made by hand, and thousands of damaged ones.
