"""What a run will cost, before it starts: `malt plan`.

config -> work       completions, tokens and training examples, under stated assumptions
       -> sizes      shapes of the programs that the run compiles
       -> programs   those programs, with shapes in place of arrays
       -> compiler   bytes and operations of each, compiled where a compiler is at hand
       -> hours      how often each runs, times its seconds
"""
