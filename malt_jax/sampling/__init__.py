"""From prompts to completions, each prompt's keys and values computed and stored once.

Read `reference` first: it is the same function without a cache. Then, in the order in which a token
travels: `request`, `sampler` (the loop), `scheduler` and `prefix_cache` (the host's bookkeeping),
`prefill` and `decode` (the device programs), `attention` and `cache` below them, `filters` (logits
to tokens). `memory` chooses the sizes, `device` holds the arrays and executables of one run.

Axes in signatures, beside the package's `B T D H K V`: `R` rows, which decode one completion each;
`P` prefix cache entries, which hold one prompt each; `s` rows that may read one entry at a time;
`L` capacity of a cache in tokens; `h` width of a head; `g` query heads per key head.
"""
