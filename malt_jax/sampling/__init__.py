"""From prompts to completions, each prompt's keys and values computed and stored once.

Read `reference` first: it is the same function without a cache. Then, in the order in which a token
travels: `request` (what goes in and out), `sampler` (groups of requests) or `open_call` (a call
that takes further ones), `stream` (the loop over chunks), `scheduler` and `prefix_cache` (the
host's bookkeeping), `device` (caches and executables), `prefill` and `decode` (the device
programs), `cache` and `attention` below them, `filters` (logits to tokens). Beside this path:
`memory` chooses the sizes, `attention_choice` the implementation (`tree_attention`, `tree_kernel`
and `work_list` are the TPU's), `thoughts` closes long thoughts, `stats` counts.

Axes in signatures, beside the package's `B T D H K V`: `R` rows, which decode one completion each;
`P` prefix cache entries, which hold one prompt each; `s` rows that may read one entry at a time;
`L` capacity of a cache in tokens; `h` width of a head; `g` query heads per key head.
"""
