"""The published claims as code: each one a function from the results in a ``studies`` folder to a verdict.

    verdict.py         an effect with its interval, and the rule that makes a verdict of effects
    intervals.py       the intervals; ratios.py: effects that are ratios over seeds
    evidence.py        what lies in a studies folder, read when asked for; result_files.py: the parts of the files that count
    study_cells.py     the table of a study, tokenizer by tokenizer; statistic.py: what is made in each of its cells;
                       study_effects.py: effects and notes that claims on it share
    claim.py           one claim: what was published, and the function that judges it; registry.py: all of them
    collapse.py        C1                 ranking.py         C2, C7                      diffusability.py    C3, C4, C5, C8
    geometry.py        C6                 generators.py      C9, C15, C17, C18           mind_ablations.py   C10 to C14
    mask_modelling.py  C16
    page.py            the table and the page

Imports no torch.
"""
