"""Units of work of a study, named after what determines them."""
