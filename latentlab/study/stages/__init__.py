"""What the cells of a study do, stage by stage: each function takes a `CellRun` and returns JSON values."""
