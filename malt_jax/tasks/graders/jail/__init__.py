"""Running code written by a model, in two processes that share nothing but messages.

`solution` executes the submitted code and answers calls; `judge` executes the benchmark's tests and
calls the solution through a proxy. What the solution returns reaches the judge as plain data, so
nothing the submitted code does to its own process (exits, patched builtins, overridden `__eq__`,
frames, memory) can make a test pass: it can only return right values. Both processes lock
themselves in first (`limits`). The folder is run as `python -I jail judge` or `... solution`, and
imports the standard library only.
"""
